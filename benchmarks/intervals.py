"""95 % intervals: of a share, of the difference of two shares of the same captions, and of an exponent."""

import math
from collections.abc import Sequence

import numpy as np

Z = 1.96  # standard deviations to either side of a normal distribution's middle 95 %
T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)  # the same of Student's, with 1, 2, ... 10 degrees


def wilson(right: int, count: int) -> tuple[float, float]:
    """Interval of the share right / count (Wilson 1927)."""
    middle, spread = right + Z * Z / 2, Z * math.sqrt(right * (count - right) / count + Z * Z / 4)
    return (middle - spread) / (count + Z * Z), (middle + spread) / (count + Z * Z)


def paired_difference(new: Sequence[bool], old: Sequence[bool]) -> tuple[float, float, float]:
    """By how much the share of `new` is higher than that of `old`, and its interval (Agresti and Min 2005).

    Entries i of both are of the same caption: those on which they agree say nothing about the difference.
    """
    gained, lost = (sum(a and not b for a, b in zip(*pair, strict=True)) for pair in ((new, old), (old, new)))
    up, down, count = gained + 0.5, lost + 0.5, len(new) + 2
    middle, spread = (up - down) / count, Z * math.sqrt(up + down - (up - down) ** 2 / count) / count
    return (gained - lost) / len(new), middle - spread, middle + spread


def exponent(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float] | None:
    """p of y ~ x^p by least squares on logarithms, and its interval; None for fewer than three points.

    The interval is that of a straight line with independent errors. If the points bend, it is wide for that reason.
    """
    if len(x) < 3:
        return None
    (slope, _), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    spread = T[min(len(x) - 2, len(T)) - 1] * math.sqrt(covariance[0, 0])
    return float(slope), float(slope - spread), float(slope + spread)
