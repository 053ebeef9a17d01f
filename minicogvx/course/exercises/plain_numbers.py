"""Answers that are plain numbers, for checks: what a learner's function gives, as a float or as a sentence."""

import math
from typing import Any

from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong


def number_of(what: str, got: Any) -> float:
    """`got` as a float. Raises Wrong for nothing, for text, and for more than one number; `what` names the call."""
    if got is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    shape = tuple(getattr(got, "shape", ()))
    if math.prod(shape) != 1:
        raise Wrong(f"{what} has shape {shape}; it must be one number.")
    if isinstance(got, complex) or (isinstance(got, Tensor) and got.is_complex()):
        raise Wrong(f"{what} is {got}, a complex number; take its real part where the imaginary one is rounding.")
    try:
        return float(got)
    except (TypeError, ValueError):
        raise Wrong(f"{what} is a {type(got).__name__}; it must be one number.") from None


def close(got: float, wanted: float, relative: float = 1e-3, absolute: float = 1e-4) -> bool:
    """Whether two numbers are the same, up to the rounding of float32. NaN is close to nothing."""
    return math.isclose(got, wanted, rel_tol=relative, abs_tol=absolute)
