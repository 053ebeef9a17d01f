"""What a trainer of the transformer reads: one encoded clip at a time, by its number.

The clips of the shapes world are in memory (world.py), those of films in files (cache.py). For another source, write a
class with these methods: nothing in training/ needs to change.
"""

import random
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Clips(Protocol):
    """Encoded clips and pictures with their captions."""

    scaling_factor: float  # of the VAE: it gives scaled latents a standard deviation near 1
    has_text: bool  # whether `text` and `empty_text` have features; a trainer of the text encoder needs only captions
    has_first_frames: bool  # whether `first_pixels` has pixels, for image to video

    def __len__(self) -> int: ...

    def latent_size(self, i: int) -> tuple[int, int, int]:
        """Frames, height and width of the latents of clip `i`; a picture has one frame. Opens no file."""
        ...

    def latents(self, i: int, generator: torch.Generator | None) -> Float[Tensor, "c t h w"]:
        """Scaled latents in float32, drawn from the posterior of clip `i` (paper 2.1); without a generator its mean."""
        ...

    def caption(self, i: int, words: random.Random, style: str | None) -> str:
        """The caption of clip `i`. The shapes world phrases it anew each time, by `words` and in a `style`."""
        ...

    def text(self, i: int) -> Float[Tensor, "n d"]:
        """Features of the caption of clip `i`, float32. Raises ValueError if there are none."""
        ...

    def empty_text(self) -> Float[Tensor, "n d"]:
        """Features of the empty caption, for text dropout. Raises ValueError if there are none."""
        ...

    def first_pixels(self, i: int) -> Float[Tensor, "3 1 h w"]:
        """The first frame of clip `i` in -1..1, for image to video. Raises ValueError if there is none."""
        ...
