"""Exercises 14.4 and 14.5 of notebook 14: the interval of a share, and a test for pairs."""

import math
from collections.abc import Sequence
from typing import Any

from scipy import stats

from minicogvx.course.exercises.exercise import Wrong
from minicogvx.course.exercises.plain_numbers import close, number_of
from minicogvx.evaluation.intervals import sign_test, wilson

Z = 1.959964

# ---- 14.4 share_interval


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, from `right` of `n` (Wilson 1927)."""
    return wilson(right / n, n)


def check_share_interval(share_interval) -> None:
    """Inside 0..1, not empty at 0 and n, mirrored, and Wilson's numbers."""
    for right, n in ((0, 24), (24, 24), (1, 2), (9, 12), (60, 64), (470, 500)):
        what = f"share_interval({right}, {n})"
        low, high = _pair(what, share_interval(right, n))
        wanted = wilson_interval(right, n)
        if close(low, 100 * wanted[0], absolute=0.05) and close(high, 100 * wanted[1], absolute=0.05):
            raise Wrong(f"{what} is ({low:.4g}, {high:.4g}), in per cent; it must be a share, 0..1.")
        if close(low, wanted[0], absolute=1e-3) and close(high, wanted[1], absolute=1e-3):
            continue
        said = f"{what} is ({low:.4g}, {high:.4g}); it must be ({wanted[0]:.4g}, {wanted[1]:.4g})."
        raise Wrong(f"{said}{_why(low, high, right, n)}")


def _pair(what: str, got: Any) -> tuple[float, float]:
    if got is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    try:
        low, high = got
    except (TypeError, ValueError):
        raise Wrong(f"{what} is {got!r:.60}; it must be two numbers, (low, high).") from None
    return number_of(f"the lower end of {what}", low), number_of(f"the upper end of {what}", high)


def _why(low: float, high: float, right: int, n: int) -> str:
    share = right / n
    if low > high:
        return " The lower end comes first."
    if close(low, high):
        return f" Of {n} clips no share is certain, whatever was found: which true shares could well have given it?"
    if low < -1e-9 or high > 1 + 1e-9:
        return " No share lies outside 0..1. Take the spread at the true share p, not at the one that was found."
    reach = Z * math.sqrt(share * (1 - share) / n)
    if close(low, max(0.0, share - reach)) and close(high, min(1.0, share + reach)):
        return " That is the spread at the share that was found; take it at the true share p."
    for z, name in ((1.644854, "90 %"), (2.575829, "99 %")):
        if close(high - low, _width(right, n, z), absolute=2e-4):
            return f" That is the {name} interval; for 95 % take z = 1.96."
    if close(high - low, _width(share * (n - 1), n - 1, Z), absolute=2e-4):
        return " Divide by n: the spread of a share of n clips is sqrt(p (1 - p) / n)."
    return " Its ends are the p at which |right / n - p| = 1.96 sqrt(p (1 - p) / n)."


def _width(right: int | float, n: int, z: float) -> float:
    share, bend = right / n, z * z / n
    return 2 * z / (1 + bend) * math.sqrt(share * (1 - share) / n + bend / (4 * n))


# ---- 14.5 paired_p


def exact_paired_p(new: Sequence[bool], old: Sequence[bool]) -> float:
    """The exact two-sided test of McNemar: how surprising the pairs that differ would be, were neither better."""
    return sign_test(new, old)


def check_paired_p(paired_p) -> None:
    """Only pairs that differ count, both ways round, and no more than 1."""
    for won, lost, both, neither in ((5, 1, 0, 0), (5, 1, 40, 8), (1, 5, 10, 0), (3, 3, 4, 4), (0, 0, 9, 3),
                                     (12, 3, 2, 2), (6, 0, 6, 0)):
        new = [True] * won + [False] * lost + [True] * both + [False] * neither
        old = [False] * won + [True] * lost + [True] * both + [False] * neither
        what = f"paired_p for {won} won, {lost} lost, {both} both right, {neither} both wrong"
        got, wanted = number_of(what, paired_p(list(new), list(old))), exact_paired_p(new, old)
        if not close(got, wanted, absolute=1e-4):
            raise Wrong(f"{what} is {got:.4g}; it must be {wanted:.4g}.{_why_p(got, won, lost, both, neither)}")


def _why_p(got: float, won: int, lost: int, both: int, neither: int) -> str:
    differ, n = won + lost, won + lost + both + neither
    tail = stats.binom.cdf(min(won, lost), differ, 0.5) if differ else 1.0
    if differ == 0:
        return " No pair differs, so nothing speaks for either: 1."
    if got > 1:
        return " No probability exceeds 1."
    if close(got, tail) or close(got, stats.binom.sf(won - 1, differ, 0.5)):
        return " That is one side; an equally large difference the other way round counts, too."
    if close(got, 2 * tail - stats.binom.pmf(min(won, lost), differ, 0.5)):
        return " The case that happened belongs to the tail, with its whole probability."
    for tied, name in ((both, "both right"), (neither, "both wrong"), (both + neither, "alike")):
        if tied and close(got, stats.binomtest(won + tied, differ + tied, 0.5).pvalue):
            return f" Pairs in which {name} came out say nothing about the difference: leave them out."
    if n and close(got, stats.binomtest(won, n, 0.5).pvalue):
        return " Pairs that agree say nothing about the difference: leave them out."
    pooled = (2 * both + won + lost) / (2 * n)
    if 0 < pooled < 1:
        z = (won - lost) / n / math.sqrt(2 * pooled * (1 - pooled) / n)
        if close(got, 2 * stats.norm.sf(abs(z)), absolute=2e-3):
            return " That compares two shares as if they were of different clips; these are pairs."
    return f" Of the {differ} pairs that differ, each is won with the chance 1/2."
