"""How sure a share is: Wilson's interval over the clips that were counted, Student's t over seeds of one training."""

import math
import statistics
from collections.abc import Mapping, Sequence

_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations of its mean
# What Student's t exceeds with a probability of 5 %, for 1 to 9 degrees of freedom; for more it is smaller.
_T = (6.3138, 2.9200, 2.3534, 2.1318, 2.0150, 1.9432, 1.8946, 1.8595, 1.8331)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, 0..1, that was found in `count` independent clips (Wilson, 1927).

    It covers the chance in which clips were drawn, not that in which model a seed leads to.
    """
    centre = share + _Z**2 / (2 * count)
    reach = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    low, high = ((centre + sign * reach) / (1 + _Z**2 / count) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)  # rounding can leave 0..1


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
    t = _T[min(len(values) - 1, len(_T)) - 1]
    return statistics.fmean(values) - t * statistics.stdev(values) / math.sqrt(len(values))
