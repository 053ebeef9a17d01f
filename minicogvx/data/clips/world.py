"""Clips of the shapes world, drawn and encoded once, in memory."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.compat import choose_dtype
from minicogvx.data.world.captions import caption
from minicogvx.data.world.drawing import render, render_batch
from minicogvx.data.world.features import scene_features
from minicogvx.data.world.scenes import Scene, sample_scenes
from minicogvx.engine.ranks import Ranks
from minicogvx.vae import CausalVAE

STORED = torch.float16  # eight times finer than bfloat16; latents are far from its limit of 65,504


@dataclass(frozen=True)
class WorldClips:
    """The posteriors of drawn clips, and their scenes: see `Clips`."""

    scenes: list[Scene]
    mean: Float[Tensor, "m c t h w"]
    std: Float[Tensor, "m c t h w"]
    scaling_factor: float
    covered: Float[Tensor, "m t h w k"]  # what covers each latent cell: see data/world/features.py
    side: int  # height and width in pixels
    has_text: ClassVar[bool] = False
    has_first_frames: ClassVar[bool] = True  # drawn when they are asked for

    def __len__(self) -> int:
        return len(self.scenes)

    def latent_size(self, i: int) -> tuple[int, int, int]:
        """Frames, height and width of the latents, the same for all."""
        t, h, w = self.mean.shape[2:]
        return t, h, w

    def latents(self, i: int, generator: torch.Generator | None = None) -> Float[Tensor, "c t h w"]:
        """Scaled latents in float32, drawn from the posterior; without a generator its mean."""
        latents = self.mean[i].float()
        if generator is not None:
            latents = latents + self.std[i].float() * torch.randn(latents.shape, generator=generator)
        return latents * self.scaling_factor

    def caption(self, i: int, words: random.Random, style: str | None = None) -> str:
        """One of the phrasings of what scene `i` shows."""
        return caption(self.scenes[i], words, style)

    def text(self, i: int) -> Float[Tensor, "n d"]:
        """Raises ValueError: captions are phrased anew each time, so no features are stored."""
        raise ValueError("clips of the shapes world have no text features; encode their captions")

    def empty_text(self) -> Float[Tensor, "n d"]:
        """Raises ValueError, as `text` does."""
        raise ValueError("clips of the shapes world have no text features; encode their captions")

    def features(self, i: int) -> Float[Tensor, "t h w k"]:
        """What covers each latent cell of clip `i`: which shape, motion and colour."""
        return self.covered[i]

    def first_pixels(self, i: int) -> Float[Tensor, "3 1 h w"]:
        """The first frame in -1..1."""
        return rearrange(render(self.scenes[i], 1, self.side, self.side) * 2 - 1, "t h w c -> c t h w")


@torch.no_grad()
def encode_world(vae: CausalVAE, clips: int = 0, seed: int = 0, num_frames: int = 17, two_objects: float = 0.15,
                 dtype: torch.dtype | None = None, batch_size: int = 16, progress: bool = True,
                 side: int | None = None, here: Ranks = Ranks(), scenes: Sequence[Scene] | None = None) -> WorldClips:
    """Renders `clips` training scenes, encodes them in `dtype` (see choose_dtype) and stores them in 16 bits.

    `side`: height and width in pixels; None: the VAE's own size. `scenes`: these, such as those of a smaller world, in
    place of `clips` drawn ones. Each rank encodes its share, and all of them get the whole set, on the CPU. Raises
    ValueError for fewer clips than ranks, and for both scenes and a number of clips.
    """
    if scenes is not None and clips:
        raise ValueError(f"clips is {clips}; where scenes are given, their number is that of the clips")
    scenes = sample_scenes(clips, seed, "train", two_objects) if scenes is None else list(scenes)
    if len(scenes) < here.world_size:
        raise ValueError(f"clips is {len(scenes)}; it must be at least {here.world_size}, the number of ranks")
    ratio, space = vae.config.temporal_compression_ratio, vae.config.spatial_compression_ratio
    side = side or vae.config.sample_height
    device, batches = next(vae.parameters()).device, _shares(scenes, batch_size, here)
    dtype = choose_dtype(device, dtype)
    means, stds, features = [], [], []
    for some in tqdm(batches[here.rank], desc="encoding clips", disable=not (progress and here.first), mininterval=5):
        video = render_batch(some, num_frames, side, side).permute(0, 4, 1, 2, 3) * 2 - 1
        posterior = vae.encode(video.to(device, dtype))
        means.append(posterior.mean.to(STORED).contiguous().cpu())
        stds.append(posterior.std.to(STORED).contiguous().cpu())
        features.append(scene_features(some, num_frames, side // space, ratio).to(STORED))
    lengths = [sum(map(len, share)) for share in batches]
    mean, std, features = (_gather(torch.cat(parts), lengths, here) for parts in (means, stds, features))
    return WorldClips(scenes, mean, std, vae.config.scaling_factor, features, side)


def _shares(scenes: list[Scene], batch_size: int, here: Ranks) -> list[list[list[Scene]]]:
    """The batches of each rank. None is empty, and given enough clips they are those of a single rank."""
    size = min(batch_size, len(scenes) // here.world_size)
    batches = [scenes[i:i + size] for i in range(0, len(scenes), size)]
    bounds = [len(batches) * rank // here.world_size for rank in range(here.world_size + 1)]
    return [batches[low:high] for low, high in zip(bounds, bounds[1:])]


def _gather(own: Tensor, lengths: Sequence[int], ranks: Ranks) -> Tensor:
    """Concatenates the parts of all ranks; `lengths`: the number of rows of each rank."""
    parts = [own if rank == ranks.rank else own.new_empty(length, *own.shape[1:])
             for rank, length in enumerate(lengths)]
    for rank, part in enumerate(parts) if ranks.world_size > 1 else ():
        dist.broadcast(part, src=rank)
    return torch.cat(parts)
