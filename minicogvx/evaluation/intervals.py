"""How sure a figure is: intervals of a share, of the difference of two shares, of a mean over seeds, of an exponent."""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, 0..1, that was found in `count` independent clips (Wilson 1927).

    It covers the chance in which clips were drawn, not that in which model a seed leads to.
    """
    found = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def intervals(share: Mapping[str, float], count: int) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each share."""
    return {name: wilson(value, count) for name, value in share.items()}


def say_interval(share: float, count: int) -> str:
    """In words, such as "95 % interval 96.1 to 98.8 %"."""
    low, high = wilson(share, count)
    return f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"


def at_least(values: Sequence[float]) -> float:
    """What the mean over all seeds exceeds with 95 % confidence, by one-sided t-test, from the values of some.

    Raises ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"there are {len(values)} values; how much they vary takes at least 2")
    reach = stats.t.ppf(0.95, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return float(statistics.fmean(values) - reach)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of `values`, and the 95 % interval of the mean of all such values, by Student's t.

    For a comparison paired by seed, give the differences. Of one value it is infinite.
    Raises ValueError for none.
    """
    if not values:
        raise ValueError("values is empty; give at least one")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, -math.inf, math.inf
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - reach, mean + reach


def paired_difference(new: Sequence[bool], old: Sequence[bool]) -> tuple[float, float, float]:
    """By how much the share of `new` is higher than that of `old`, and its 95 % interval (Agresti and Min 2005).

    Entries i of both are of the same caption: those on which they agree say nothing about the difference.
    """
    gained, lost = (sum(a and not b for a, b in zip(*pair, strict=True)) for pair in ((new, old), (old, new)))
    up, down, count = gained + 0.5, lost + 0.5, len(new) + 2
    middle = (up - down) / count
    spread = stats.norm.ppf(0.975) * math.sqrt(up + down - (up - down) ** 2 / count) / count
    return (gained - lost) / len(new), float(middle - spread), float(middle + spread)


def exponent(x: Sequence[int | float], y: Sequence[int | float]) -> tuple[float, float, float] | None:
    """p of y ~ x^p by least squares on logarithms, and its 95 % interval; None for fewer than three points.

    The interval is that of a straight line with independent errors. If the points bend, it is wide for that reason.
    """
    if len(x) < 3:
        return None
    (slope, _), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    spread = stats.t.ppf(0.975, len(x) - 2) * math.sqrt(covariance[0, 0])
    return float(slope), float(slope - spread), float(slope + spread)
