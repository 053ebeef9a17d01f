"""Exercise 13.6 of notebook 13: a film continued with an overlap, again and again."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_shape

Film = Float[Tensor, "_ h w 3"]
LENGTH = 17  # frames of what the check's `make` gives


def continued(film: Film, make: Callable[[Film], Film], overlap: int, times: int) -> Film:
    """`film` and `times` continuations: each is made from the last `overlap` frames so far, which are not repeated."""
    for _ in range(times):
        film = torch.cat([film, make(film[-overlap:])[overlap:]])
    return film


def check_continue_film(continue_film) -> None:
    """Every frame shows its number: none is lost, none stands twice, and the given ones stay as they were."""
    for length, overlap, times in ((17, 9, 1), (17, 5, 3), (20, 1, 2)):
        film, asked = _numbered(0, length), []

        def make(prefix):
            asked.append(prefix)
            first = round(float(prefix.flatten(1)[0].median()) * 1000) if isinstance(prefix, Tensor) and len(
                prefix) else 0
            made = _numbered(first, LENGTH)
            made[:overlap] += 0.0004  # a model gives back the overlap nearly, not exactly
            return made

        what = f"continue_film(film, make, overlap={overlap}, times={times}) of a film of {length} frames"
        got = continue_film(film, make, overlap, times)
        _check_asked(what, asked, film, overlap, times)
        wanted = length + times * (LENGTH - overlap)
        numbers = _numbers(what, got)
        twice = next((i for i in range(1, len(numbers)) if numbers[i] <= numbers[i - 1]), None)
        if twice is not None:
            raise Wrong(f"{what}: frame {twice} shows moment {numbers[twice]}, after moment {numbers[twice - 1]}. What "
                        f"make gives begins with the overlap; only the frames after it are new.")
        gap = next((i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1), None)
        if gap is not None:
            raise Wrong(f"{what}: frame {gap} shows moment {numbers[gap]}, after moment {numbers[gap - 1]}: frames are "
                        f"missing. Of {LENGTH} frames the first {overlap} are the overlap, and all others are new.")
        expect_shape(what, got, (wanted, 2, 2, 3))
        if not torch.allclose(got[:length].float(), _numbered(0, length), atol=1e-5):
            raise Wrong(f"{what}: the given frames were replaced by what make gave for them. The film that is there "
                        f"stays; its copies in the new video are only nearly the same.")


def _check_asked(what: str, asked: list, film: Film, overlap: int, times: int) -> None:
    if len(asked) != times:
        raise Wrong(f"{what} called make {len(asked)} times; it must be {times}.")
    for place, prefix in enumerate(asked):
        if not isinstance(prefix, Tensor) or len(prefix) != overlap:
            shown = tuple(prefix.shape) if isinstance(prefix, Tensor) else type(prefix).__name__
            raise Wrong(f"{what} gave make a prefix of {shown}; it must be {overlap} frames, {overlap} 2 2 3. The "
                        f"overlap counts frames, not latents.")
        last = len(film) - 1 + place * (LENGTH - overlap)
        first = round(float(prefix[-1].median()) * 1000)
        if first != last:
            raise Wrong(f"{what}: call {place} of make (counted from 0) got a prefix that ends with moment {first}; it "
                        f"must end with moment {last}, the last frame of the film so far.")


def _numbered(first: int, count: int) -> Film:
    """Frames of 2 x 2 pixels whose value is their moment, in thousandths."""
    return (torch.arange(first, first + count) / 1000).view(-1, 1, 1, 1).expand(-1, 2, 2, 3).clone()


def _numbers(what: str, got) -> list[int]:
    if not isinstance(got, Tensor) or got.ndim != 4:
        expect_shape(what, got, (0, 2, 2, 3))
    return [round(float(frame.median()) * 1000) for frame in got]
