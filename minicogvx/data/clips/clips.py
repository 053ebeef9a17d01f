"""What a trainer of the transformer reads: one encoded clip at a time, by its number.

The clips of the shapes world are in memory (world.py), those of films in files (cache.py). For another source, write a
class with these methods: nothing in training/ needs to change.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.presets import VAEConfig
from minicogvx.visible import many


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

    def latents(self, i: int, generator: torch.Generator | None = None) -> Float[Tensor, "c t h w"]:
        """Scaled latents in float32, drawn from the posterior of clip `i` (paper 2.1); without a generator its mean."""
        ...

    def caption(self, i: int, words: random.Random, style: str | None = None) -> str:
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


def stack_latents(clips: Clips, numbers: Sequence[int],
                  generator: torch.Generator | None = None) -> Float[Tensor, "b c t h w"]:
    """The latents of some clips of one size, as one batch."""
    return torch.stack([clips.latents(i, generator) for i in numbers])


def pixel_size(clips: Clips, i: int, vae: VAEConfig) -> tuple[int, int, int]:
    """Frames, height and width in pixels of clip `i`; a picture has one frame."""
    time, space = vae.temporal_compression_ratio, vae.spatial_compression_ratio
    frames, height, width = clips.latent_size(i)
    return (frames - 1) * time + 1, height * space, width * space


def pixel_sizes(clips: Clips, vae: VAEConfig) -> Counter[tuple[int, int, int]]:
    """How many clips have each `pixel_size`."""
    return Counter(pixel_size(clips, i, vae) for i in range(len(clips)))


def sizes_sentence(sizes: Counter[tuple[int, int, int]], what: str = "clip", most: int = 6) -> str:
    """Such as "10 clips, 17 frames each: 7 at 48x80, 3 at 80x48 (height x width)"; `most`: sizes that are named."""
    pictures = sum(count for (frames, _, _), count in sizes.items() if frames == 1)
    films, lengths = sizes.total() - pictures, {frames for frames, _, _ in sizes}
    whole = " and ".join([many(films, what)] * bool(films) + [many(pictures, "picture")] * bool(pictures))
    same = len(lengths) == 1
    whole += f", {many(max(lengths), 'frame')} each" if same and films else ""
    parts = [f"{count} " + ("" if same else "of 1 frame " if frames == 1 else f"of {frames} frames ")
             + f"at {height}x{width}" for (frames, height, width), count in sizes.most_common(most)]
    rest = sizes.total() - sum(count for _, count in sizes.most_common(most))
    return f"{whole}: {', '.join(parts + [f'{rest} of other sizes'] * bool(rest))} (height x width)"


@dataclass(frozen=True)
class Selected:
    """Some of the clips of a set: those of these numbers."""

    clips: Clips
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def scaling_factor(self) -> float:
        """See `Clips`."""
        return self.clips.scaling_factor

    @property
    def has_text(self) -> bool:
        """See `Clips`."""
        return self.clips.has_text

    @property
    def has_first_frames(self) -> bool:
        """See `Clips`."""
        return self.clips.has_first_frames

    def empty_text(self) -> Float[Tensor, "n d"]:
        """See `Clips`."""
        return self.clips.empty_text()

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
        """What the alignment head must predict, which only `WorldClips` know."""
        return self.clips.features(self.numbers[i])


@dataclass(frozen=True)
class BriefCaptions(Selected):
    """Some clips, with the phrasings of at most `slots` tokens alone, for a text encoder whose tokens are words."""

    slots: int

    def caption(self, i: int, words: random.Random, style: str | None = None) -> str:
        """Phrased anew until it is short enough. Raises ValueError after 10,000 that are not."""
        for _ in range(10_000):
            text = super().caption(i, words, style)
            if len(text.split()) < self.slots:  # one token ends it
                return text
        raise ValueError(f"text_slots is {self.slots}; no phrasing of clip {i} is that short, as {text!r}")
