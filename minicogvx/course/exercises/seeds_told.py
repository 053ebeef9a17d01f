"""The check of exercise 3.6: whether a verdict on two variants errs as rarely, and sees as much, as it should."""

import math
import statistics
from collections.abc import Callable, Sequence

import torch

from minicogvx.course.exercises.exercise import Wrong

STUDIES = 1500  # simulated, of each kind
VERDICTS = ("higher", "lower", "cannot be told")


def told_of_pairs(new: Sequence[float], old: Sequence[float]) -> str:
    """"higher" or "lower" where the 95 % interval of new - old, paired by seed, excludes 0, else "cannot be told"."""
    from scipy.stats import t  # slow to import

    gains = [a - b for a, b in zip(new, old, strict=True)]
    if len(gains) < 2:
        return "cannot be told"
    reach = float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))
    middle = statistics.fmean(gains)
    return "higher" if middle > reach else "lower" if middle < -reach else "cannot be told"


def check_can_be_told(can_be_told) -> None:
    """In studies without a difference, at most 7 of 100 verdicts may name one; real differences must be seen."""
    for shift, wanted in ((1.0, "higher"), (-1.0, "lower")):
        got = can_be_told([20.0 + shift, 23.1 + shift, 19.2 + shift], [20.0, 23.0, 19.1])
        if got not in VERDICTS:
            raise Wrong(f"can_be_told gives {got!r}; it must be one of {', '.join(map(repr, VERDICTS))}.")
        if got != wanted:
            raise Wrong(f"new is {abs(shift):g} {'above' if shift > 0 else 'below'} old for each of 3 seeds, within "
                        f"0.1, and can_be_told gives {got!r}; it must be {wanted!r}.")
    for seeds, false, seen in ((5, 0.07, 0.9), (3, 0.07, 0.25), (8, 0.07, 0.99)):
        alarms = _share(can_be_told, seeds, 0.0, {"higher", "lower"})
        if alarms > false:
            raise Wrong(f"In {STUDIES} simulated studies of {seeds} seeds, two equal variants were called different in "
                        f"{100 * alarms:.0f} of 100; it must be about 5. With few seeds the interval is longer than "
                        f"1.96 standard errors: use Student's t.")
        found = _share(can_be_told, seeds, 0.7, {"higher"})
        if found < seen:
            raise Wrong(f"In {STUDIES} simulated studies of {seeds} seeds, a variant that is 0.7 dB better at every "
                        f"seed, within 0.3, was called higher in {100 * found:.0f} of 100; {100 * seen:.0f} can be "
                        f"reached. Seeds differ by 2 dB, but both variants share that: compare seed by seed.")


def _share(can_be_told: Callable, seeds: int, difference: float, counted: set[str]) -> float:
    """The share of simulated studies with a verdict in `counted`: seeds scatter by 2, pairs by 0.3."""
    common = 20 + 2 * torch.randn(STUDIES, seeds, 1)
    both = common + 0.3 * 0.5 ** 0.5 * torch.randn(STUDIES, seeds, 2)
    both[..., 0] += difference
    both = both.double().tolist()
    return sum(can_be_told([a for a, _ in study], [b for _, b in study]) in counted for study in both) / STUDIES
