"""Exercise 7.6 of notebook 07: at which dose half of a gain is gone."""

from collections.abc import Sequence

from minicogvx.course.exercises.exercise import Wrong


def dose_of_half(doses: Sequence[float], gains: Sequence[float]) -> float | None:
    """The first dose at which the gain is half of that at dose 0, on straight lines between what was measured.

    None if it stays above. `doses` rise, from 0.
    """
    half = gains[0] / 2
    for (a, g), (b, h) in zip(zip(doses, gains), zip(doses[1:], gains[1:])):
        if h <= half:
            return a + (g - half) / (g - h) * (b - a)
    return None


_CASES = (  # what it is, doses, gains
    ("falls in a straight line", (0.0, 0.5, 1.0), (1.0, 0.5, 0.0)),
    ("falls between two doses", (0.0, 1.0), (0.8, 0.2)),
    ("never reaches 0", (0.0, 0.5, 1.0), (1.0, 0.8, 0.2)),
    ("is measured at uneven doses", (0.0, 0.1, 0.6, 1.0), (0.4, 0.38, 0.1, 0.0)),
    ("falls, rises and falls again", (0.0, 0.25, 0.5, 0.75, 1.0), (1.0, 0.4, 0.7, 0.3, 0.1)),
    ("falls below zero", (0.0, 0.5, 1.0), (0.2, 0.15, -0.1)),
    ("stays above half", (0.0, 0.5, 1.0), (1.0, 0.9, 0.7)),
)


def check_half_gone(half_gone) -> None:
    """Known curves: half of the gain at dose 0, between the doses, at the first fall, and None if there is none."""
    for kind, doses, gains in _CASES:
        what, wanted = f"half_gone({list(doses)}, {list(gains)})", dose_of_half(doses, gains)
        got = half_gone(list(doses), list(gains))
        if wanted is None and got is not None:
            raise Wrong(f"{what} is {got!r}; this gain {kind}, so no dose can be named: return None.")
        if wanted is None:
            continue
        if isinstance(got, bool) or not isinstance(got, (int, float)):
            raise Wrong(f"{what} is {got!r}; it must be a number, the dose.")
        if abs(got - wanted) > 1e-6:
            raise Wrong(f"{what} is {got:.4g}; it must be {wanted:.4g}. This gain {kind}{_why(got, doses, gains)}.")


def _why(got: float, doses: Sequence[float], gains: Sequence[float]) -> str:
    if abs(got - gains[0] / 2) < 1e-6:
        return "; that is the gain itself, not the dose at which it is reached"
    middle = (gains[0] + min(gains)) / 2
    for (a, g), (b, h) in zip(zip(doses, gains), zip(doses[1:], gains[1:])):
        if h <= middle:
            if abs(got - (a + (g - middle) / (g - h) * (b - a))) < 1e-6:
                return "; half means half of the gain at dose 0, not the middle of its range"
            break
    if min(abs(got - dose) for dose in doses) < 1e-6:
        return "; between two measured doses, take the straight line"
    if got > dose_of_half(doses, gains):
        return "; half is gone where it is first reached"
    return f"; half of the gain at dose 0 is {gains[0] / 2:.3g}"
