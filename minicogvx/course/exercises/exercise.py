"""The definition of an exercise, and helpers with which a check says what is wrong with an answer.

A check is a function of the learner's answer. It tests properties, raises `Wrong` for the first that fails, and
returns nothing if all hold. It runs with torch's generator freshly seeded, so it may simply draw its tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STUB_MESSAGE = "write this"  # of the NotImplementedError in place of the learner's code


class Wrong(Exception):
    """A property that does not hold. The message says which, with shapes and numbers, in a sentence or two."""


@dataclass(frozen=True)
class Exercise:
    """One exercise. `reference` is the package's own version, used until the learner has solved it.

    Its name must differ from the learner's, because a notebook must not define names of the package.
    Raises ValueError for other than three hints, or a difficulty that is not 1, 2 or 3.
    """

    number: str  # "2.1": the first of notebook 02
    title: str
    hints: tuple[str, ...]
    reference: Any
    check: Callable[[Any], None]
    difficulty: int = 1  # 1 to 3
    minutes: int = 10

    def __post_init__(self):
        if len(self.hints) != 3:
            raise ValueError(f"exercise {self.number} has {len(self.hints)} hints; it must have 3")
        if self.difficulty not in (1, 2, 3):
            raise ValueError(f"exercise {self.number} has difficulty {self.difficulty}; it must be 1, 2 or 3")


def expect_shape(what: str, got: Any, shape: tuple[int, ...]) -> None:
    """Raises Wrong unless `got` is a tensor of `shape`; `what` names it, such as "pad_past(x, 3)"."""
    if got is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    if not isinstance(got, Tensor):
        raise Wrong(f"{what} is a {type(got).__name__}; it must be a tensor.")
    if tuple(got.shape) != tuple(shape):
        raise Wrong(f"{what} has shape {tuple(got.shape)}; it must be {tuple(shape)}.")


def expect_close(what: str, got: Any, wanted: Tensor, atol: float = 1e-4) -> None:
    """Raises Wrong unless `got` has the shape of `wanted` and, up to `atol`, its numbers; names the first mismatch."""
    expect_shape(what, got, tuple(wanted.shape))
    apart = ~torch.isclose(got.to(wanted.dtype), wanted, rtol=1e-4, atol=atol)
    if apart.any():
        place = tuple(apart.nonzero()[0].tolist())
        raise Wrong(f"{what} differs in {int(apart.sum())} of {apart.numel()} numbers: at {place} it is "
                    f"{got[place].item():.3g}; it must be {wanted[place].item():.3g}.")


def expect_equal(what: str, got: Any, wanted: Any) -> None:
    """Raises Wrong unless `got` is the same value as `wanted` and of its type; for numbers, text and tuples."""
    if got is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    if type(got) is not type(wanted):
        raise Wrong(f"{what} is {got!r}, of type {type(got).__name__}; "
                    f"it must be {wanted!r}, of type {type(wanted).__name__}.")
    if got != wanted:
        raise Wrong(f"{what} is {got!r}; it must be {wanted!r}.")


def expect_raises(what: str, kind: type[Exception], call: Callable[[], Any]) -> None:
    """Raises Wrong unless `call()` raises `kind`. Other exceptions propagate, so that a stub counts as a stub."""
    try:
        got = call()
    except kind:
        return
    raise Wrong(f"{what} gives {_short(got)}; it must raise {kind.__name__}.")


def _short(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
