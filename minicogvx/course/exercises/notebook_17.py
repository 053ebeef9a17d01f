"""Exercises of notebook 17, the oracle as a teacher: distillation, chances, advantages, PPO, a cheat, a diagnosis."""

from minicogvx.course.exercises.exercise import Exercise
from minicogvx.course.exercises.policy_17 import (
    check_advantages,
    check_log_chance,
    check_surrogate,
    clipped_surrogate,
    log_prob_of_step,
)
from minicogvx.course.exercises.teacher_17 import (
    check_diagnose,
    check_landing_x0,
    check_outwit,
    clean_for_landing,
    flooded,
    verdict_on_policy,
)
from minicogvx.training.reward import group_advantages

EXERCISES = (
    Exercise(
        "17.1", "landing_x0", difficulty=2, minutes=15, reference=clean_for_landing, check=check_landing_x0,
        hints=(
            "A step of DDIM: landing = A x + (sqrt(bar') - A sqrt(bar)) x0 with A = sqrt((1 - bar') / (1 - bar)).",
            "Everything but x0 is known. Take A x to the other side, and divide.",
            "(landing - A * x) / (math.sqrt(bar_next) - A * math.sqrt(bar))",
        ),
    ),
    Exercise(
        "17.2", "log_chance", difficulty=2, minutes=20, reference=log_prob_of_step, check=check_log_chance,
        hints=(
            "First std from the formula above, then the mean: sqrt(bar') x0 + sqrt(1 - bar' - std^2) noise.",
            "The density of one number is exp(-(x - mean)^2 / (2 std^2)) / (std sqrt(2 pi)). Take its logarithm, and "
            "sum over all numbers of a clip: .flatten(1).sum(dim=1).",
            "torch.distributions.Normal(mean, std).log_prob(x_next).flatten(1).sum(dim=1)",
        ),
    ),
    Exercise(
        "17.3", "advantages", difficulty=1, minutes=10, reference=group_advantages, check=check_advantages,
        hints=(
            "rewards.mean(dim=1, keepdim=True) is the mean of each group, with a shape that can be subtracted.",
            "Divide by rewards.std(dim=1, keepdim=True). What is it where all rewards are equal?",
            "torch.where(spread > 0, (rewards - mean) / spread.clamp(min=1e-6), 0 * rewards); rounding can leave a "
            "spread just above 0, so compare with 1e-6.",
        ),
    ),
    Exercise(
        "17.4", "surrogate", difficulty=2, minutes=10, reference=clipped_surrogate, check=check_surrogate,
        hints=(
            "new and old are logarithms: the ratio of the chances is exp(new - old).",
            "ratio.clamp(1 - clip, 1 + clip) is the clipped ratio. Multiply both by the advantage.",
            "torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)",
        ),
    ),
    Exercise(
        "17.5", "outwit", difficulty=1, minutes=10, reference=flooded, check=check_outwit,
        hints=(
            "show_source(colour_seen): which pixels count? Does it matter where they are, or what shape they form?",
            "COLOURS[scene.objects[0].colour] are the three numbers of the colour. How many pixels can have it?",
            "torch.tensor(COLOURS[scene.objects[0].colour]).expand(17, 64, 64, 3).clone()",
        ),
    ),
    Exercise(
        "17.6", "diagnose", difficulty=3, minutes=20, reference=verdict_on_policy, check=check_diagnose,
        hints=(
            "matches(read(clip), scene) says for each property whether it is right. Count for each property over all "
            "clips, not over all properties together.",
            "Where a property is right in fewer than half of the clips, the answer is 'hacked', however alike they "
            "are. Only then ask for layout_spread(clips).",
            "found = [matches(read(clip), scene) for clip in clips]; hacked if any(sum(f[name] for f in found) < "
            "len(found) / 2 for name in PROPERTIES); collapsed if layout_spread(clips) < 0.1.",
        ),
    ),
)
