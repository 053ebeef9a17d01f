"""Checks of notebook 05's last two exercises: how much variety guidance costs, and how much there is."""

import math
from collections import Counter
from collections.abc import Sequence

from minicogvx.course.exercises.clouds import guided_numbers
from minicogvx.course.exercises.exercise import Wrong

# ---- 5.5 half_variety


def scale_that_halves() -> float:
    """The guidance scale at which the four clouds' samples spread half as widely as with scale 1."""
    target, low, high = guided_numbers(1.0).std() / 2, 1.0, 10.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if guided_numbers(middle).std() > target else (low, middle)
    return round((low + high) / 2, 2)


def check_half_variety(half_variety) -> None:
    """A scale above 1 at which the spread of the four clouds' samples is 45 to 55 % of that with scale 1."""
    got = half_variety()
    if got is None:
        raise Wrong("half_variety() is None; does your function end in return?")
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        raise Wrong(f"half_variety() is a {type(got).__name__}; it must be one number, the scale.")
    if got < 1:
        raise Wrong(f"half_variety() is {got:g}, below 1, where guidance begins; return the scale, not the spread.")
    whole, left = guided_numbers(1.0).std().item(), guided_numbers(float(got)).std().item()
    if not 0.45 <= left / whole <= 0.55:
        raise Wrong(f"With the scale {got:g} the spread is {left:.3f}, {left / whole:.0%} of the {whole:.3f} with "
                    f"scale 1; it must be half, 45 to 55 %. Try a {'larger' if left > whole / 2 else 'smaller'} scale.")


# ---- 5.6 variety


def entropy_bits(answers: Sequence[str | None]) -> float:
    """The entropy of the answers in bits: 0 if all are equal, log2 n if n are all different."""
    shares = [count / len(answers) for count in Counter(answers).values()]
    return math.fsum(-share * math.log2(share) for share in shares)


def check_variety(variety) -> None:
    """0 for equal answers, bits, shares instead of counts, any order, and None as an answer like others."""
    cases = {
        ("black",) * 8: "all are equal",
        ("black", "navy"): "two answers, equally often, are one yes-or-no question: 1 bit",
        ("black", "navy") * 4: "only shares count, not how many clips there are",
        ("black", "navy", "grey", "brown"): "four answers, equally often, are two questions; take log2",
        ("black",) * 6 + ("navy", "grey"): "a share p of the answers adds -p log2 p",
        ("black", None, None, "navy", "black", "navy", None): "None, an unreadable clip, is an answer like any other",
        ("navy", "black", "black", "black"): "a share p of the answers adds -p log2 p",
        ("black", "black", "navy", "black"): "the order of the answers must not matter",
    }
    for answers, why in cases.items():
        what, got = f"variety({list(answers)})", variety(list(answers))
        if got is None:
            raise Wrong(f"{what} is None; does your function end in return?")
        got, wanted = float(got), entropy_bits(answers)
        if not abs(got - wanted) < 1e-4:
            raise Wrong(f"{what} is {got:.3f}; it must be {wanted:.3f}: {why}.")
