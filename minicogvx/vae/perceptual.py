"""LPIPS of videos: how far apart two pictures look to a network trained on photos (paper 2.1)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

SMALLEST_SIDE = {"alex": 31, "vgg": 16}  # pixels; below, a pooling layer of the network has nothing left to pool


class PerceptualDistance(nn.Module):
    """LPIPS of videos: the mean distance of their frames, each frame an image of its own (arXiv 1801.03924).

    Computes what `lpips.LPIPS` computes with its weights, with two differences: the features are compared in float32
    also under autocast, and a place where all features are 0 (flat colour) gives gradient 0, not NaN.
    """

    def __init__(self, model: nn.Module, frames: int | None = None, upscale: int = 1, shard: tuple[int, int] = (0, 1)):
        """`model`: an `lpips.LPIPS`, such as `interop.lpips_weights.load_lpips("vgg")` gives. `frames`: how many random
        frames of each clip are compared, None for all. `upscale`: enlarges frames first (bilinear).

        `shard`: (rank, world size) if each call sees one equal shard of the batch. Random frames are drawn for the
        whole batch, so that they do not depend on the number of ranks.
        """
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.frames, self.upscale, self.shard = frames, upscale, shard
        self.smallest_side = SMALLEST_SIDE.get(model.pnet_type, 1)

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """Stays in eval mode: its linear layers hold dropout."""
        return super().train(False)

    def forward(self, video: Float[Tensor, "b c t h w"], reconstruction: Float[Tensor, "b c t h w"],
                generator: torch.Generator | None = None) -> Float[Tensor, ""]:
        """Mean LPIPS over frames, pixels in -1..1. `generator` draws the frames where only some are compared.

        Raises ValueError for frames too small for the network.
        """
        side = min(video.shape[-2:]) * self.upscale
        if side < self.smallest_side:
            raise ValueError(f"LPIPS got frames of {video.shape[-2]}x{video.shape[-1]} pixels with "
                             f"lpips_upscale={self.upscale}; {self.smallest_side} a side is the least after enlarging")
        index = self._choose(video, generator)
        with torch.no_grad():
            real = self._features(video, index)
        fake = self._features(reconstruction, index)
        distance = torch.zeros((), device=video.device)
        for a, b, linear in zip(real, fake, self.model.lins):
            weight = linear.model[-1].weight.float()  # 1 c 1 1; by hand, as autocast would round a convolution
            distance = distance + ((_unit(a) - _unit(b)).square() * weight).sum(1).mean()
        return distance

    def _choose(self, video: Tensor, generator: torch.Generator | None) -> Tensor | None:
        b, t = video.shape[0], video.shape[2]
        if self.frames is None or self.frames >= t:
            return None
        device = generator.device if generator else "cpu"
        rank, world = self.shard
        drawn = torch.rand(world * b, t, generator=generator, device=device)[rank * b:(rank + 1) * b]
        return drawn.topk(self.frames).indices.to(video.device)

    def _features(self, video: Tensor, index: Tensor | None) -> list[Tensor]:
        frames = rearrange(video, "b c t h w -> b t c h w")
        if index is not None:
            frames = frames[torch.arange(len(frames), device=frames.device)[:, None], index]
        frames = rearrange(frames, "b t c h w -> (b t) c h w")
        if self.upscale > 1:
            frames = F.interpolate(frames, scale_factor=self.upscale, mode="bilinear", align_corners=False)
        return list(self.model.net(self.model.scaling_layer(frames)))


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features * (features.square().sum(1, keepdim=True) + 1e-20).rsqrt()
