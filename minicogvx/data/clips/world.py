"""A set of training clips of the shapes world, encoded once: diffusion training then reads only latents."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.compat import choose_dtype
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.features import scene_features
from minicogvx.data.world.scenes import Scene, sample_scenes
from minicogvx.engine.ranks import Ranks
from minicogvx.vae import CausalVAE

STORED = torch.float16  # eight times finer than bfloat16; latents are far from its limit of 65,504


@dataclass(frozen=True)
class LatentSet:
    """Posteriors of clips, and their scenes."""

    scenes: list[Scene]
    mean: Float[Tensor, "m c t h w"]
    std: Float[Tensor, "m c t h w"]
    scaling_factor: float
    features: Float[Tensor, "m t h w k"]  # what covers each latent cell: see data/world/features.py
    sample: bool = True  # as published; False takes the mean, which spares a small model the noise

    def draw(self, index: Tensor, generator: torch.Generator) -> Float[Tensor, "b c t h w"]:
        """Scaled latents of the clips at `index`."""
        latents = self.mean[index].float()
        if self.sample:
            latents = latents + self.std[index].float() * torch.randn(latents.shape, generator=generator)
        return latents * self.scaling_factor

    def part(self, start: int, stop: int) -> "LatentSet":
        """The clips from `start` up to, not including, `stop`."""
        cut = slice(start, stop)
        return replace(self, scenes=self.scenes[cut], mean=self.mean[cut], std=self.std[cut],
                       features=self.features[cut])


@torch.no_grad()
def encode_world(vae: CausalVAE, clips: int, seed: int, num_frames: int, two_objects: float = 0.15,
                 dtype: torch.dtype | None = None, batch_size: int = 16, progress: bool = True,
                 side: int | None = None, here: Ranks = Ranks()) -> LatentSet:
    """Renders `clips` training scenes, encodes them in `dtype` (see choose_dtype) and stores them in 16 bits.

    `side`: height and width in pixels; None: the VAE's own size. Each rank encodes its share, and all of them get the
    whole set, on the CPU. Raises ValueError for fewer clips than ranks.
    """
    if clips < here.world_size:
        raise ValueError(f"clips is {clips}; it must be at least {here.world_size}, the number of ranks")
    scenes = sample_scenes(clips, seed, "train", two_objects)
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
    return LatentSet(scenes, mean, std, vae.config.scaling_factor, features)


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
