"""Exercises of notebook 14, evaluation: similarity, a cheat, a distance of sets, an interval, pairs, a blind test."""

from minicogvx.course.exercises.cheat_14 import check_cheat, few_jumps
from minicogvx.course.exercises.exercise import Exercise
from minicogvx.course.exercises.frechet_14 import check_frechet, distance_of_clouds
from minicogvx.course.exercises.shares_14 import (
    check_paired_p,
    check_share_interval,
    exact_paired_p,
    wilson_interval,
)
from minicogvx.course.exercises.sides_14 import check_blind_pairs, pairs_with_key
from minicogvx.course.exercises.windows_14 import check_structural, similarity_of_windows

EXERCISES = (
    Exercise(
        "14.1", "structural", difficulty=2, minutes=15, reference=similarity_of_windows, check=check_structural,
        hints=(
            "F.conv2d(x[None, None], weights[None, None]) is the weighted mean of every window that lies inside the "
            "picture. Which five means does the formula need?",
            "Of a, b, a * a, b * b and a * b. The variance of a in a window is the mean of a * a less the squared mean "
            "of a; the covariance is the mean of a * b less the product of the means.",
            "weights = torch.exp(-(torch.arange(11.0) - 5) ** 2 / (2 * 1.5 ** 2)), then its outer product with itself, "
            "divided by the sum. At the end, the mean over all windows.",
        ),
    ),
    Exercise(
        "14.2", "cheat", difficulty=2, minutes=15, reference=few_jumps, check=check_cheat,
        hints=(
            "Read the last line of the rule again: in how many of the 16 pairs must something move? What may happen in "
            "the others?",
            "In the others nothing need move at all. Begin with video[:1].repeat(len(video), 1, 1, 1).",
            "Move some frames aside with .roll(3, dims=2), so that four neighbouring pairs differ: every second one of "
            "the last four.",
        ),
    ),
    Exercise(
        "14.3", "frechet", difficulty=3, minutes=20, reference=distance_of_clouds, check=check_frechet,
        hints=(
            "a.T.cov() is the covariance of the columns; of a single column it is one number, so reshape it to (d, d).",
            "No root of a matrix is needed, only its trace: the sum of its eigenvalues, which are the roots of the "
            "eigenvalues of C1 C2.",
            "torch.linalg.eigvals(c1 @ c2) is complex, with imaginary parts of 0 up to rounding: take .real, and clamp "
            "at 0 before the root. Compute in float64.",
        ),
    ),
    Exercise(
        "14.4", "share_interval", difficulty=2, minutes=15, reference=wilson_interval, check=check_share_interval,
        hints=(
            "Square both sides of |s - p| = z sqrt(p (1 - p) / n), with s = right / n. What kind of equation for p is "
            "that?",
            "(1 + z^2 / n) p^2 - (2 s + z^2 / n) p + s^2 = 0. Its two solutions are the ends.",
            "middle = (s + z^2 / (2 n)) / (1 + z^2 / n), and the reach is z / (1 + z^2 / n) * sqrt(s (1 - s) / n + "
            "z^2 / (4 n^2)).",
        ),
    ),
    Exercise(
        "14.5", "paired_p", difficulty=2, minutes=10, reference=exact_paired_p, check=check_paired_p,
        hints=(
            "Count the pairs that only the new one got right, and those that only the old one did. The rest say "
            "nothing.",
            "If neither is better, each of these n pairs is a coin. How likely is it that one side has at most as many "
            "as the loser has here?",
            "2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2 ** n, and at most 1.",
        ),
    ),
    Exercise(
        "14.6", "blind_pairs", difficulty=1, minutes=10, reference=pairs_with_key, check=check_blind_pairs,
        hints=(
            "How many tosses does a list of pairs need? One for all, one for each, or none, as left and right take "
            "turns?",
            "torch.rand(len(ours), generator=generator) < 0.5 tosses for every pair.",
            "[(a, b) if left else (b, a) for a, b, left in zip(ours, theirs, key)], and the key as a list of its own.",
        ),
    ),
)
