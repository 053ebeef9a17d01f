"""Checks of notebook 15: a test that assumes no bell curve, and how many seeds a difference needs."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from minicogvx.course.exercises.exercise import Wrong
from minicogvx.course.exercises.seeds_15 import as_number

# ---- 15.3 sign_flips


def exact_flips(differences: Sequence[float]) -> float:
    """The share of all 2^n choices of signs whose mean is at least as far from 0 as that of `differences`."""
    sizes = [abs(each) for each in differences]
    seen, choices = abs(sum(differences)), list(itertools.product((1, -1), repeat=len(sizes)))
    far = sum(abs(sum(sign * size for sign, size in zip(signs, sizes))) >= seen - 1e-9 * (1 + seen)
              for signs in choices)
    return far / len(choices)


_FLIPPED = (  # differences, why
    ((0.1, 0.2, 0.3, 0.1, 0.2), "2 of 32 choices are as extreme: all signs as they are, and all of them turned"),
    ((-0.1, -0.2, -0.3, -0.1, -0.2), "below 0 counts as much as above"),
    ((0.4,), "of one difference both signs are equally extreme"),
    ((5.0, 1.0, 1.0, 1.0, -1.0), "how large a difference is counts, not only its sign"),
    ((0.1, 0.1, -0.2), "a mean of 0 is the least extreme, so all choices are at least as extreme"),
    ((0.3, 0.7, -0.1, 0.2), "all 2^n choices count, the one that was seen among them"),
    ((1.0, 1.1, 0.9, 1.2, 1.0, 0.8, 1.1, 1.0), "2 of 256 choices are as extreme"),
)


def check_sign_flips(sign_flips) -> None:
    """Known differences; both sides; the choice that was seen counts; sizes count; the same answer each time."""
    for differences, why in _FLIPPED:
        what, wanted = f"sign_flips({list(differences)})", exact_flips(differences)
        got, again = (as_number(what, sign_flips(list(differences))) for _ in range(2))
        if got != again:
            raise Wrong(f"{what} is {got:.4g}, and when asked again {again:.4g}; go through all 2^n choices of signs "
                        f"instead of drawing some.")
        if not math.isclose(got, wanted, abs_tol=1e-6):
            hint = " You count one side only." if wanted < 1 and math.isclose(got, wanted / 2, abs_tol=1e-6) else ""
            raise Wrong(f"{what} is {got:.4g}; it must be {wanted:.4g}: {why}.{hint}")


# ---- 15.4 seeds_needed


def reach_of(seeds: int, spread: float) -> float:
    """How far the 95 % interval of the mean of `seeds` differences reaches, if their standard deviation is `spread`."""
    from scipy.stats import t  # slow to import

    return float(t.ppf(0.975, seeds - 1)) * spread / math.sqrt(seeds)


def fewest_seeds(effect: float, spread: float) -> int:
    """The smallest number of seeds, 2 or more, for which the interval around `effect` excludes 0."""
    seeds = 2
    while reach_of(seeds, spread) >= abs(effect):
        seeds += 1
    return seeds


def check_seeds_needed(seeds_needed) -> None:
    """The number is enough, one fewer is not, and the sign does not matter."""
    for effect, spread in ((1.0, 1.0), (0.5, 1.0), (0.25, 1.0), (0.01, 0.025), (2.0, 1.0), (-0.5, 1.0), (30.0, 1.0)):
        what, wanted = f"seeds_needed({effect}, {spread})", fewest_seeds(effect, spread)
        got = _whole(what, seeds_needed(effect, spread))
        if got != wanted:
            raise Wrong(f"{what} is {got}; it must be {wanted}. {_why_seeds(got, effect, spread)}")


def _whole(what: str, value: Any) -> int:
    got = as_number(what, value)
    if got != int(got):
        raise Wrong(f"{what} is {got:.3g}; there are no parts of a seed, so round up.")
    return int(got)


def _why_seeds(got: int, effect: float, spread: float) -> str:
    from scipy.stats import norm, t

    size = abs(effect)
    if got < 2:
        return "One seed has no interval, so 2 is the least."
    if got in (math.ceil((1.96 * spread / size) ** 2), math.ceil((norm.ppf(0.975) * spread / size) ** 2)):
        return "1.96 is for many seeds; Student's t depends on the number, so try 2, 3, 4 .. in turn."
    if got == next(n for n in range(2, 10**6) if t.ppf(0.95, n - 1) * spread / math.sqrt(n) < size):
        return "0.95 leaves 5 % at one side; 2.5 % at each is 0.975."
    if got == next(n for n in range(2, 10**6) if t.ppf(0.975, n - 1) * spread ** 2 / math.sqrt(n) < size):
        return "spread is a standard deviation already; do not square it."
    if got < fewest_seeds(effect, spread):
        return (f"With {got} seeds the interval reaches {reach_of(got, spread):.3f} to either side, not less than the "
                f"effect. (Half the effect needs about four times as many seeds, not twice.)")
    return (f"{got - 1} seeds are enough: there the interval reaches {reach_of(got - 1, spread):.3f}, less than the "
            f"effect.")
