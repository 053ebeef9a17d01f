"""What the transformer is trained on: encoded clips, one at a time by number, whether drawn or filmed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Clips(Protocol):
    """Encoded clips. `world.py` keeps drawn ones in memory, `cache.py` those of films in files.

    Where `has_text`, there are also `text(i)` and `empty_text()`, the stored features `n d` of the caption and of the
    empty one; of drawn clips `features(i)`, which says what covers each latent cell.
    """

    scaling_factor: float  # of the VAE that made the latents
    has_text: bool  # whether text features are stored; else the captions are encoded in every step
    has_first_frames: bool  # whether first frames are stored, for image to video

    def __len__(self) -> int:
        """How many."""

    def latent_size(self, i: int) -> tuple[int, int, int]:
        """Frames, height and width of the latents of clip `i`."""

    def latents(self, i: int, generator: torch.Generator | None = None) -> Float[Tensor, "c t h w"]:
        """Scaled latents in float32, drawn from the posterior; without a generator its mean."""

    def caption(self, i: int, words: random.Random, style: str | None = None) -> str:
        """The caption of clip `i`; drawn clips have many phrasings, of which `words` chooses."""

    def first_pixels(self, i: int) -> Float[Tensor, "3 1 h w"]:
        """The first frame in -1..1, for image to video."""


def stack_latents(clips: Clips, numbers: Sequence[int],
                  generator: torch.Generator | None = None) -> Float[Tensor, "b c t h w"]:
    """The latents of some clips of one size, as one batch."""
    return torch.stack([clips.latents(i, generator) for i in numbers])


@dataclass(frozen=True)
class Selected:
    """Some of the clips of a set: those of these numbers."""

    clips: Clips
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getattr__(self, name: str):
        """What is true of the whole set."""
        if name.startswith("__") or name in ("clips", "numbers"):  # pickle asks before they are set
            raise AttributeError(name)
        return getattr(self.clips, name)

    def latent_size(self, i: int) -> tuple[int, int, int]:
        """See `Clips`."""
        return self.clips.latent_size(self.numbers[i])

    def latents(self, i: int, generator: torch.Generator | None = None) -> Float[Tensor, "c t h w"]:
        """See `Clips`."""
        return self.clips.latents(self.numbers[i], generator)

    def caption(self, i: int, words: random.Random, style: str | None = None) -> str:
        """See `Clips`."""
        return self.clips.caption(self.numbers[i], words, style)

    def text(self, i: int) -> Float[Tensor, "n d"]:
        """See `Clips`."""
        return self.clips.text(self.numbers[i])

    def first_pixels(self, i: int) -> Float[Tensor, "3 1 h w"]:
        """See `Clips`."""
        return self.clips.first_pixels(self.numbers[i])

    def features(self, i: int) -> Float[Tensor, "t h w k"]:
        """See `Clips`."""
        return self.clips.features(self.numbers[i])
