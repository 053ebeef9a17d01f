"""Where the tokens of each clip lie: one clip a row (dense), or clips of many sizes in one row (packed, paper 3.1).

Linear layers act on single tokens and need no layout. Norms, gates, attention and both ends of the network depend on
the clip or the modality of a token: for these a layout has methods, the same ones dense and packed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from minicogvx.presets import TransformerConfig
from minicogvx.transformer.patchify import unpatchify
from minicogvx.transformer.positions import rope_3d, sincos_3d, with_text

Heads = Float[Tensor, "b heads n d"]


def by_modality(x: Float[Tensor, "b n d"], num_text: int) -> tuple[
        Float[Tensor, "b n_text d"], Float[Tensor, "b n_video d"]]:
    """The two slices of a sequence, as views: text and video."""
    text, video = x.split([num_text, x.shape[1] - num_text], dim=1)
    return text, video


@dataclass(frozen=True)
class DenseLayout:
    """One clip a row, all of one size: x = [text | video]. A row has two parts, text and video."""

    num_text: int
    grid: tuple[int, int, int]  # patches along time, height and width
    patch: tuple[int, int, int] = (1, 2, 2)
    rope: Complex[Tensor, "n half"] | None = None  # the rotary table of a row
    sincos: Float[Tensor, "n_video d"] | None = None  # the table to add to the video tokens

    @property
    def num_video(self) -> int:
        """Video tokens of one clip."""
        return math.prod(self.grid)

    @property
    def num_tokens(self) -> int:
        """Tokens of one clip."""
        return self.num_text + self.num_video

    def embed(self, patch_embed: nn.Module, latents: Float[Tensor, "b c t h w"],
              text: Float[Tensor, "b n_text d_text"]) -> Float[Tensor, "b n d"]:
        """The sequence that enters the first block."""
        return patch_embed(latents, text, self.sincos)

    def split(self, x: Float[Tensor, "b n d"]) -> Sequence[Float[Tensor, "b _n d"]]:
        """The parts of the sequence, as views: text, video."""
        return by_modality(x, self.num_text)

    def join(self, parts: Sequence[Float[Tensor, "b _n d"]]) -> Float[Tensor, "b n d"]:
        """Inverse of `split`."""
        return torch.cat(parts, dim=1)

    def for_parts(self, text: Float[Tensor, "clips m"],
                  video: Float[Tensor, "clips m"]) -> Sequence[Float[Tensor, "clips 1 m"]]:
        """A vector for every part, out of one a clip for text and one for video."""
        return text[:, None], video[:, None]

    def within_clips(self, attend: Callable[[Heads, Heads, Heads], Heads], q: Heads, k: Heads, v: Heads) -> Heads:
        """attend(q, k, v), where a token sees the tokens of its own clip and no others."""
        return attend(q, k, v)

    def video(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n_video d"]:
        """The video tokens."""
        return x[:, self.num_text:]

    def for_video(self, m: Float[Tensor, "clips m"]) -> Float[Tensor, "b _n m"]:
        """One vector a clip, in a shape that broadcasts over `video(x)`."""
        return m[:, None]

    def unpatchify(self, x: Float[Tensor, "b n_video patch_values"]) -> Float[Tensor, "b c t h w"]:
        """The output at the video tokens, as latents."""
        return unpatchify(x, self.grid, self.patch[0], self.patch[1])


@dataclass(frozen=True)
class PackLayout:
    """Clips of many sizes in one row, so `b` is 1: clip after clip, each as [text | video].

    Clips of equal length are adjacent, so the row is a few dense batches end to end, each with two parts, text and
    video. Nothing is larger than a row of tokens or one vector a clip.
    """

    clips: tuple[DenseLayout, ...]  # as they lie in the row
    rope: Complex[Tensor, "n half"] | None  # every clip is counted from its own first token
    masked: Callable[[Heads, Heads, Heads], Heads] | None = None  # attention of a whole row, masked; None: by batches

    @property
    def batches(self) -> list[tuple[DenseLayout, int]]:
        """The layout of one clip of each batch, and how many clips the batch has."""
        runs = [list(run) for _, run in groupby(self.clips, lambda clip: (clip.num_text, clip.num_video))]
        return [(run[0], len(run)) for run in runs]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each batch."""
        return [count * clip.num_tokens for clip, count in self.batches]

    def embed(self, patch_embed: nn.Module, latents: Sequence[Float[Tensor, "c _t _h _w"]],
              text: Sequence[Float[Tensor, "_n_text d_text"]]) -> Float[Tensor, "1 n d"]:
        """The sequence that enters the first block; each clip has its own position table."""
        each = zip(self.clips, latents, text)
        return torch.cat([clip.embed(patch_embed, z[None], words[None]) for clip, z, words in each], dim=1)

    def split(self, x: Float[Tensor, "1 n d"]) -> Sequence[Float[Tensor, "_clips _n d"]]:
        """The parts of the sequence, as views: text and video of the first batch, of the second, and so on."""
        batches = x[0].split(self.lengths)  # at once: the backward pass of a slice fills a whole row with zeros
        return [part for (clip, count), batch in zip(self.batches, batches)
                for part in clip.split(batch.unflatten(0, (count, -1)))]

    def join(self, parts: Sequence[Float[Tensor, "_clips _n d"]]) -> Float[Tensor, "1 n d"]:
        """Inverse of `split`."""
        batches = zip(parts[::2], parts[1::2])
        return torch.cat([torch.cat(batch, dim=1).flatten(0, 1) for batch in batches])[None]

    def for_parts(self, text: Float[Tensor, "clips m"],
                  video: Float[Tensor, "clips m"]) -> Sequence[Float[Tensor, "_clips 1 m"]]:
        """A vector for every part, out of one a clip for text and one for video."""
        counts = [count for _, count in self.batches]
        return [m[:, None] for batch in zip(text.split(counts), video.split(counts)) for m in batch]

    def within_clips(self, attend: Callable[[Heads, Heads, Heads], Heads], q: Heads, k: Heads, v: Heads) -> Heads:
        """attend(q, k, v), where a token sees the tokens of its own clip and no others."""
        if self.masked is not None:
            return self.masked(q, k, v)
        out = []
        for (_, count), *qkv in zip(self.batches, *(x.split(self.lengths, dim=2) for x in (q, k, v))):
            qkv = (rearrange(x, "1 heads (b n) d -> b heads n d", b=count) for x in qkv)
            out.append(rearrange(attend(*qkv), "b heads n d -> (b n) heads d"))
        return rearrange(torch.cat(out), "n heads d -> 1 heads n d")

    def video(self, x: Float[Tensor, "1 n d"]) -> Float[Tensor, "1 n_video d"]:
        """The video tokens."""
        return torch.cat([part.flatten(0, 1) for part in self.split(x)[1::2]])[None]

    def for_video(self, m: Float[Tensor, "clips m"]) -> Float[Tensor, "1 n_video m"]:
        """One vector a clip, repeated for each of its video tokens."""
        return torch.cat([one.expand(clip.num_video, -1) for one, clip in zip(m, self.clips)])[None]

    def unpatchify(self, x: Float[Tensor, "1 n_video patch_values"]) -> tuple[Float[Tensor, "c _t _h _w"], ...]:
        """The output at the video tokens, as the latents of each clip."""
        parts = x.split([clip.num_video for clip in self.clips], dim=1)
        return tuple(clip.unpatchify(part)[0] for clip, part in zip(self.clips, parts))


def keep_video(layout: DenseLayout, kept: Int[Tensor, "b k"]) -> tuple[PackLayout, Int[Tensor, " m"]]:
    """Where tokens lie if each clip keeps its text and only these of its video tokens: in one pack, clip after clip.

    Also where they were in the batch: the pack is `x.flatten(0, 1)[rows]`. Each token keeps its position.
    """
    b, num_text = len(kept), layout.num_text
    text = torch.arange(num_text, device=kept.device).expand(b, -1)             # b n_text
    places = torch.cat([text, num_text + kept], dim=1)                          # b n_text+k: in the row of its clip
    first = layout.num_tokens * torch.arange(b, device=kept.device)[:, None]    # b 1: the first of each row
    rope = None if layout.rope is None else layout.rope[places.flatten()]
    return PackLayout((DenseLayout(num_text, (kept.shape[1], 1, 1)),) * b, rope), (first + places).flatten()


@runtime_checkable
class Layout(Protocol):
    """What the network asks of a layout: `DenseLayout`, `PackLayout`, or a slice of one (`sequence_parallel.py`)."""

    rope: Complex[Tensor, "n half"] | None

    def embed(self, patch_embed: nn.Module, latents, text) -> Float[Tensor, "b n d"]: ...

    def split(self, x: Float[Tensor, "b n d"]) -> Sequence[Float[Tensor, "_b _n d"]]: ...

    def join(self, parts: Sequence[Float[Tensor, "_b _n d"]]) -> Float[Tensor, "b n d"]: ...

    def for_parts(self, text: Float[Tensor, "clips m"],
                  video: Float[Tensor, "clips m"]) -> Sequence[Float[Tensor, "_clips 1 m"]]: ...

    def within_clips(self, attend: Callable[[Heads, Heads, Heads], Heads], q: Heads, k: Heads, v: Heads) -> Heads: ...

    def video(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n_video d"]: ...

    def for_video(self, m: Float[Tensor, "clips m"]) -> Float[Tensor, "b _n m"]: ...

    def unpatchify(self, x: Float[Tensor, "b n_video patch_values"]): ...


def dense_layout(config: TransformerConfig, grid: tuple[int, int, int], num_text: int,
                 device: torch.device) -> DenseLayout:
    """The layout of clips of one size, with the position tables of the config on `device`, in float32."""
    rope = sincos = None
    if "rope" in config.position:
        base = (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
        table = rope_3d(grid, config.attention_head_dim, base if config.position_scaling == "interpolate" else None)
        rope = with_text(table, num_text).to(device)
    if config.position == "sincos":
        sincos = sincos_3d(grid, config.width, config.spatial_interpolation_scale,
                           config.temporal_interpolation_scale).to(device)
    return DenseLayout(num_text, grid, config.patch, rope, sincos)
