"""Exercises of notebook 15, ablations: an interval, a verdict, flipped signs, seeds needed, confounds, a fair width."""

from minicogvx.course.exercises.confounds_15 import check_confounds, check_fair_width, differing_fields, paying_width
from minicogvx.course.exercises.exercise import Exercise
from minicogvx.course.exercises.flips_15 import check_seeds_needed, check_sign_flips, exact_flips, fewest_seeds
from minicogvx.course.exercises.seeds_15 import check_paired_interval, check_verdict, t_interval, told_verdict

EXERCISES = (
    Exercise(
        "15.1", "paired_interval", difficulty=1, minutes=10, reference=t_interval, check=check_paired_interval,
        hints=(
            "Begin with the differences, one for each seed: gains = [a - b for a, b in zip(new, old)]. From here on "
            "there is one list only.",
            "The standard error of their mean is statistics.stdev(gains) / math.sqrt(n). How many of them the interval "
            "reaches is scipy.stats.t.ppf(0.975, n - 1).",
            "mean = statistics.fmean(gains); return mean, mean - reach, mean + reach. For one pair, return mean, "
            "-math.inf, math.inf before stdev is asked.",
        ),
    ),
    Exercise(
        "15.2", "verdict", difficulty=1, minutes=10, reference=told_verdict, check=check_verdict,
        hints=(
            "The differences are new less old, so paired_interval(differences, [0.0] * len(differences)) gives their "
            "interval.",
            "First the case in which the interval contains 0; then only the side is left to look at.",
            '"agrees" if (low > 0) == (expected == "higher") else "disagrees".',
        ),
    ),
    Exercise(
        "15.3", "sign_flips", difficulty=2, minutes=15, reference=exact_flips, check=check_sign_flips,
        hints=(
            "itertools.product((1, -1), repeat=n) gives all 2^n choices of signs.",
            "If the variants were equal, each choice would have been equally likely. Count those with abs(sum) at "
            "least as large as the one that was seen.",
            "seen = abs(sum(differences)); count abs(sum(s * d ...)) >= seen - 1e-9, because sums in another order "
            "differ in the last digit; divide by 2 ** n.",
        ),
    ),
    Exercise(
        "15.4", "seeds_needed", difficulty=2, minutes=15, reference=fewest_seeds, check=check_seeds_needed,
        hints=(
            "The interval of n seeds reaches t(n) * spread / sqrt(n) to either side. It excludes 0 if that is less "
            "than the effect.",
            "t(n) is scipy.stats.t.ppf(0.975, n - 1), which changes with n. So no formula gives n at once; try.",
            "n = 2; while t.ppf(0.975, n - 1) * spread / math.sqrt(n) >= abs(effect): n += 1; return n.",
        ),
    ),
    Exercise(
        "15.5", "confounds", difficulty=2, minutes=15, reference=differing_fields, check=check_confounds,
        hints=(
            "For each field, collect for each variant the set of its values: {run[field] for run in runs if "
            'run["variant"] == variant}.',
            "Two variants are alike in a field if these sets are equal. Seeds too are such a field.",
            '"parameters" is the exception: take the largest and the smallest of all runs, and compare their ratio '
            "with 1.03.",
        ),
    ),
    Exercise(
        "15.6", "fair_width", difficulty=2, minutes=15, reference=paying_width, check=check_fair_width,
        hints=(
            "A loop over widths will do: replace(config, time_embed_dim=width), and count_all of it. How does the "
            "count change with the width?",
            "It only grows. So go up until it is no longer too small; the width before may be nearer.",
            "return min(range(1, 400), key=lambda width: abs(count_all(replace(config, time_embed_dim=width)) - "
            "parameters)) is slow, but right.",
        ),
    ),
)
