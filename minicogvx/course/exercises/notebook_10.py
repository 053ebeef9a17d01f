"""Exercises of notebook 10, progressive training: batches, one schedule, a run that goes on, sharpness, the best."""

from minicogvx.course.exercises.choosing_10 import (
    best_by_score,
    captions_to_tell_apart,
    check_captions_needed,
    check_clip_sharpness,
    check_top_share,
    sharpness_of_clip,
)
from minicogvx.course.exercises.exercise import Exercise
from minicogvx.course.exercises.staged_10 import (
    check_clips_a_step,
    check_copy_of_run,
    check_rate,
    clips_for_tokens,
    one_rate,
    taken_over,
)

EXERCISES = (
    Exercise(
        "10.1", "clips_a_step", difficulty=1, minutes=10, reference=clips_for_tokens, check=check_clips_a_step,
        hints=(
            "Count the tokens of one clip first: words, and patches of latents.",
            "49 frames become (49 - 1) / 4 + 1 latent frames; height and width are divided by 8 by the VAE and by 2 by "
            "the patches.",
            "tokens = text + ((frames - 1) // 4 + 1) * (height // 16) * (width // 16); then budget // tokens, but at "
            "least 1.",
        ),
    ),
    Exercise(
        "10.2", "rate", difficulty=2, minutes=15, reference=one_rate, check=check_rate,
        hints=(
            "The stages do not matter for the rate, except for how many steps they have together.",
            "Below `warmup` the rate rises in a straight line; after it, the share of the remaining steps that is done "
            "goes from 0 to 1.",
            "done = (step - warmup) / (sum(stages) - warmup); the rate is (1 + math.cos(math.pi * done)) / 2.",
        ),
    ),
    Exercise(
        "10.3", "copy_of_run", difficulty=2, minutes=20, reference=taken_over, check=check_copy_of_run,
        hints=(
            "What does the next step depend on? Go through `Run.step` line by line, and copy all that it reads.",
            "The weights are not enough: the optimizer remembers past gradients, the generator where it is, and the "
            "schedule needs the number of the step.",
            "fresh.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict())); "
            "fresh.generator.set_state(run.generator.get_state()); the average with .clone().",
        ),
    ),
    Exercise(
        "10.4", "clip_sharpness", difficulty=2, minutes=15, reference=sharpness_of_clip, check=check_clip_sharpness,
        hints=(
            "Blur takes away quick changes from pixel to pixel. Brightness and contrast must cancel out.",
            "Differences of neighbours do not see brightness. Divide them by something that grows with contrast, such "
            "as the standard deviation of the frame.",
            "grey = clip.mean(dim=-1); change = (grey[:, :, 1:] - grey[:, :, :-1]).square().mean().sqrt(); divide by "
            "grey.flatten(1).std(dim=1).mean(), and give 0 where that is 0.",
        ),
    ),
    Exercise(
        "10.5", "top_share", difficulty=1, minutes=10, reference=best_by_score, check=check_top_share,
        hints=(
            "How many are wanted? round(share * len(scores)), and at least one.",
            "Sort the clip numbers by their scores, highest first; Python's sorted leaves equals in their order.",
            "sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count]).",
        ),
    ),
    Exercise(
        "10.6", "captions_needed", difficulty=3, minutes=20, reference=captions_to_tell_apart,
        check=check_captions_needed,
        hints=(
            "Of n captions, a share p is off by sqrt(p (1 - p) / n) or so. What is the variance of the difference of "
            "two independent shares?",
            "The variances add up: (a (1 - a) + b (1 - b)) / n. The 95 % interval reaches 1.96 standard deviations.",
            "Solve 1.96 * sqrt((a (1 - a) + b (1 - b)) / n) = |a - b| for n, and round up.",
        ),
    ),
)
