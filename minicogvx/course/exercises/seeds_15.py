"""Checks of notebook 15's first exercises: the interval of a paired difference, and the verdict that follows."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong


def as_number(what: str, value: Any, finite: bool = True) -> float:
    """`value` as a float, whether it is Python's, numpy's or a tensor of one number. Raises Wrong for anything else.

    finite: also for NaN and infinity.
    """
    if value is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong(f"{what} is {_said(value)}; it must be one number.")
    if finite and not math.isfinite(value):
        raise Wrong(f"{what} is {value}; it must be a finite number.")
    return float(value)


def _said(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def as_numbers(what: str, value: Any, count: int) -> list[float]:
    """`value` as `count` floats. Raises Wrong for anything else."""
    if value is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    if not isinstance(value, (tuple, list)) or len(value) != count:
        raise Wrong(f"{what} is {_said(value)}; it must be {count} numbers.")
    return [as_number(f"number {place} of {what}", each, finite=False) for place, each in enumerate(value)]


# ---- 15.1 paired_interval


def t_interval(new: Sequence[float], old: Sequence[float]) -> tuple[float, float, float]:
    """The mean of new - old, and its 95 % interval by Student's t; entries i are of one seed. Of one pair: infinite."""
    from scipy.stats import t  # slow to import

    gains = [a - b for a, b in zip(new, old, strict=True)]
    mean, reach = statistics.fmean(gains), math.inf
    if len(gains) > 1:
        reach = float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))
    return mean, mean - reach, mean + reach


_NEW, _OLD = [0.52, 0.41, 0.63, 0.45, 0.58], [0.55, 0.45, 0.65, 0.50, 0.60]


def check_paired_interval(paired_interval) -> None:
    """Known pairs: the mean, the reach by Student's t with n - 1, the order of the two, and one pair."""
    for new, old in ((_NEW, _OLD), (_NEW[:3], _OLD[:3]), ([float(i % 4) for i in range(12)], [0.3 * i % 1.7
                                                                                           for i in range(12)])):
        what = f"paired_interval of {len(new)} pairs"
        mean, low, high = as_numbers(what, paired_interval(list(new), list(old)), 3)
        wanted, wanted_low, wanted_high = t_interval(new, old)
        if math.isclose(mean, -wanted, abs_tol=1e-6):
            raise Wrong(f"{what}: the mean is {mean:.4f}; it must be {wanted:.4f}, new less old.")
        if not math.isclose(mean, wanted, abs_tol=1e-6):
            raise Wrong(f"{what}: the mean is {mean:.4f}; it must be {wanted:.4f}, that of the differences.")
        if low > high:
            raise Wrong(f"{what} goes from {low:.4f} to {high:.4f}; give mean, low, high in this order.")
        if not math.isclose(high - mean, mean - low, rel_tol=1e-3, abs_tol=1e-9):
            raise Wrong(f"{what}: the mean {mean:.4f} is not in the middle between {low:.4f} and {high:.4f}.")
        reach = (high - low) / 2
        if not math.isclose(reach, (wanted_high - wanted_low) / 2, rel_tol=2e-3):
            raise Wrong(f"{what}: the interval reaches {reach:.4f} to either side; it must be "
                        f"{(wanted_high - wanted_low) / 2:.4f}. {_why(reach, new, old)}")
    mean, low, high = as_numbers("paired_interval of one pair", paired_interval([0.5], [0.6]), 3)
    if low != -math.inf or high != math.inf:
        raise Wrong(f"paired_interval of one pair gives {low:.3g} to {high:.3g}; one pair says nothing of how much "
                    f"seeds differ, so it must be -math.inf to math.inf.")


def _why(reach: float, new: Sequence[float], old: Sequence[float]) -> str:
    from scipy.stats import t  # slow to import

    n, gains = len(new), [a - b for a, b in zip(new, old)]
    spread, usual = statistics.stdev(gains), t.ppf(0.975, n - 1)
    apart = math.sqrt(statistics.variance(new) + statistics.variance(old))
    for factor, why in (
            (1.96 * spread / math.sqrt(n), "1.96 is for many seeds; for few, take Student's t."),
            (1.645 * spread / math.sqrt(n), "1.645 is for many seeds and one side."),
            (t.ppf(0.95, n - 1) * spread / math.sqrt(n), "0.95 leaves 5 % at one side; 2.5 % at each is 0.975."),
            (t.ppf(0.975, n) * spread / math.sqrt(n), "The mean has used up one of n differences: n - 1 are free."),
            (t.ppf(0.975, 2 * n - 2) * apart / math.sqrt(n), "Take the differences first: a seed's own luck, which "
                                                             "both variants share, then drops out."),
            (usual * apart / math.sqrt(n), "Take the differences first: a seed's own luck, which both variants share, "
                                           "then drops out."),
            (usual * statistics.pstdev(gains) / math.sqrt(n), "The standard deviation of a sample divides by n - 1."),
            (usual * spread / n, "The standard error is s divided by the root of n, not by n."),
            (usual * spread, "That is where single seeds lie; of their mean, divide by the root of n."),
            (usual * statistics.variance(gains) / math.sqrt(n), "Take the standard deviation, not the variance.")):
        if math.isclose(reach, factor, rel_tol=2e-3):
            return why
    return "It is t times s divided by the root of n, with s the standard deviation of the differences."


# ---- 15.2 verdict


def told_verdict(differences: Sequence[float], expected: str) -> str:
    """"agrees" or "disagrees" where the 95 % interval of the mean excludes 0, else "cannot be told"."""
    _, low, high = t_interval(differences, [0.0] * len(differences))
    if low <= 0 <= high:
        return "cannot be told"
    return "agrees" if (low > 0) == (expected == "higher") else "disagrees"


_VERDICTS = ("agrees", "disagrees", "cannot be told")
_CASES = (  # differences, expected, why
    ((0.10, 0.12, 0.11, 0.09, 0.10), "higher", "all seeds are above 0, and close together"),
    ((0.10, 0.12, 0.11, 0.09, 0.10), "lower", "the claim was lower, and the interval lies above 0"),
    ((-0.10, -0.12, -0.11, -0.09, -0.10), "lower", "the claim was lower, and lower it is"),
    ((0.9, -0.2, 0.5, -0.4, 0.6), "higher", "the mean is above 0, but the interval contains 0"),
    ((0.01, 0.02, 0.01, 0.02, 0.50), "higher", "all seeds are above 0, but one so far that the interval contains 0"),
    ((0.50, 0.60, 0.55, 0.58, -0.05), "higher", "one seed is below 0, and the interval is not"),
    ((1.0, 1.6, 0.4), "higher", "with three seeds the interval reaches 4.3 standard errors, not 1.96"),
    ((0.7,), "higher", "one seed has no interval"),
    ((-0.7,), "lower", "one seed has no interval"),
)


def check_verdict(verdict) -> None:
    """Known differences, and the other way round: exchanged variants exchange "agrees" and "disagrees"."""
    for differences, expected, why in _CASES:
        for sign, turned in ((1, expected), (-1, {"higher": "lower", "lower": "higher"}[expected])):
            values = [sign * each for each in differences]
            what, wanted = f"verdict({values}, {turned!r})", told_verdict(values, turned)
            got = verdict(list(values), turned)
            if got is None:
                raise Wrong(f"{what} is None; does your function end in return?")
            if not isinstance(got, str) or got not in _VERDICTS:
                raise Wrong(f"{what} is {_said(got)}; it must be one of {', '.join(map(repr, _VERDICTS))}.")
            if got != wanted:
                raise Wrong(f"{what} is {got!r}; it must be {wanted!r}: "
                            f"{why if sign == 1 else 'the same with both variants exchanged must say the same'}.")
