"""A set of training clips, encoded once: diffusion training then never touches a pixel."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.data.shapes import Scene, render_batch, sample_scenes
from minicogvx.training.alignment import scene_features
from minicogvx.vae import CausalVAE


@dataclass(frozen=True)
class LatentSet:
    """Posteriors of clips and the scenes that they show."""

    scenes: list[Scene]
    mean: Float[Tensor, "m c t h w"]
    std: Float[Tensor, "m c t h w"]
    scaling_factor: float
    features: Float[Tensor, "m t h w k"]  # what covers each latent cell: see training/alignment.py
    sample: bool = True  # as published; False takes the mean, which leaves a small model less noise to fit

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
                 dtype: torch.dtype = torch.bfloat16, batch_size: int = 16, progress: bool = True,
                 side: int | None = None) -> LatentSet:
    """Renders `clips` training scenes of `side` x `side` pixels (None: the VAE's own size) and encodes them, in 16 bits."""
    scenes = sample_scenes(clips, seed, "train", two_objects)
    ratio, space = vae.config.temporal_compression_ratio, vae.config.spatial_compression_ratio
    side = side or vae.config.sample_height
    means, stds, features = [], [], []
    for i in tqdm(range(0, clips, batch_size), desc="encoding clips", disable=not progress, mininterval=5):
        video = render_batch(scenes[i:i + batch_size], num_frames, side, side).permute(0, 4, 1, 2, 3) * 2 - 1
        posterior = vae.encode(video.to(dtype))
        means.append(posterior.mean.bfloat16().contiguous())
        stds.append(posterior.std.bfloat16().contiguous())
        features.append(scene_features(scenes[i:i + batch_size], num_frames, side // space, ratio).bfloat16())
    return LatentSet(scenes, torch.cat(means), torch.cat(stds), vae.config.scaling_factor, torch.cat(features))
