"""How sure a figure is: intervals of a share, of a difference of shares, of a mean over seeds; a test for pairs."""

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


def with_sign(value: int | float, digits: int) -> str:
    """A difference in words, such as "+0.12" or "-0.12"; what rounds to 0 has no sign."""
    said = f"{value:+z.{digits}f}"
    return said if float(said) else said[1:]


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


def sign_test(new: Sequence[int | float], old: Sequence[int | float]) -> float:
    """How likely a difference as large as this one would be if neither were better: two-sided, exact, 0..1.

    Entries i of both are of the same caption. Pairs that agree say nothing and are left out; of the others, each is
    won by either side with the chance 1/2. Of True and False this is McNemar's exact test (McNemar 1947).
    """
    won, lost = (sum(a > b for a, b in zip(*pair, strict=True)) for pair in ((new, old), (old, new)))
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2 ** (won + lost))


def answers_needed(share: int | float, most: int = 100_000) -> int | None:
    """How many answers it takes, if so large a share of them goes one way, until the 95 % interval leaves out one half.

    None where more than `most` are needed, as for one half itself. Raises ValueError for a share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must lie in 0..1")
    z2 = float(stats.norm.ppf(0.975)) ** 2
    gap = (2 * share - 1) ** 2
    # Wilson's interval leaves out 1/2 where (share - 1/2)^2 exceeds z^2 / (4 n), the spread at 1/2 itself.
    return None if gap * most <= z2 else math.floor(z2 / gap) + 1


def exponent(x: Sequence[int | float], y: Sequence[int | float]) -> tuple[float, float, float] | None:
    """p of y ~ x^p by least squares on logarithms, and its 95 % interval; None for fewer than three points.

    The interval is that of a straight line with independent errors. If the points bend, it is wide for that reason.
    """
    if len(x) < 3:
        return None
    (slope, _), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    spread = stats.t.ppf(0.975, len(x) - 2) * math.sqrt(covariance[0, 0])
    return float(slope), float(slope - spread), float(slope + spread)
