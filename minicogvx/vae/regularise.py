"""Three ways to make latents easier to learn for a diffusion model. They act in training only; all are off by default.

A VAE that reconstructs well may still have latents that a transformer learns slowly. Each of these asks for more than
a good reconstruction, and leaves the VAE's structure and the names of its weights as they are:

    masked latents      the decoder must fill in cells that are hidden from it          SSVAE, arXiv 2512.05394
    local correlation   neighbouring cells should hold similar vectors                  SSVAE, arXiv 2512.05394
    equivariance        a smaller, turned latent must decode to the smaller, turned clip  EQ-VAE, arXiv 2502.09509

`VAELossConfig` has their settings, `training/vae.py` applies them, `minicogvx ablate latents` compares them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

HIDDEN_SHARES = (0.25, 0.5, 0.75)  # of the cells of a masked clip


class MaskedLatents(nn.Module):
    """Replaces a quarter, half or three quarters of a clip's latent cells by one learnt vector, the token.

    SSVAE masks 3 clips in 10, a tenth with each share. It draws one mask for a batch; here each clip has its own.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.token = nn.Parameter(torch.randn(channels))

    def forward(self, latents: Float[Tensor, "b c t h w"], chance: float,
                generators: Sequence[torch.Generator]) -> Float[Tensor, "b c t h w"]:
        """`chance`: of a clip to be masked; `generators`: one for each clip, on the CPU."""
        hidden = torch.stack([hidden_cells(tuple(latents.shape[2:]), chance, one) for one in generators])  # b t h w
        token = self.token.to(latents.dtype)[:, None, None, None]                                          # c 1 1 1
        return torch.where(hidden[:, None].to(latents.device), token, latents)


def hidden_cells(size: tuple[int, int, int], chance: float, generator: torch.Generator) -> Bool[Tensor, "t h w"]:
    """Which cells of a clip's latents are hidden: with probability `chance` one of `HIDDEN_SHARES`, else none."""
    cells = torch.Size(size).numel()
    masked, which = torch.rand(2, generator=generator).tolist()
    share = HIDDEN_SHARES[int(which * len(HIDDEN_SHARES))] if masked < chance else 0.0
    hidden = torch.zeros(cells, dtype=torch.bool)
    hidden[torch.randperm(cells, generator=generator)[:int(share * cells)]] = True
    return hidden.view(size)


def local_correlation(mean: Float[Tensor, "b c t h w"]) -> Float[Tensor, " b"]:
    """How alike neighbouring cells of each clip are: the mean Pearson correlation of their vectors of c channels.

    Over all pairs of cells in windows of 2x2x2 cells, and in windows of 2x2 in the first frame, which covers less time
    than the others; then the mean of both. Each channel is first scaled to mean 0 and variance 1 over the clip. Cells
    that fill no window are left out. As SSVAE computes it for a batch of one clip; of latents of 1 cell a side, NaN.
    """
    variance, centre = torch.var_mean(mean.detach(), dim=(2, 3, 4), keepdim=True)
    z = (mean - centre) / (variance.sqrt() + 1e-6)
    first = _correlation_in_windows(z[:, :, :1], 1)
    return first if z.shape[2] < 3 else (first + _correlation_in_windows(z[:, :, 1:], 2)) / 2


def _correlation_in_windows(z: Float[Tensor, "b c t h w"], frames: int) -> Float[Tensor, " b"]:
    t, h, w = z.shape[2] // frames * frames, z.shape[3] // 2 * 2, z.shape[4] // 2 * 2
    cells = rearrange(z[:, :, :t, :h, :w], "b c (t p) (h q) (w r) -> b (t h w) (p q r) c", p=frames, q=2, r=2)
    cells = F.normalize(cells - cells.mean(-1, keepdim=True), dim=-1, eps=1e-8)
    count = cells.shape[2]
    # |sum of v|^2 is the sum over all ordered pairs, which includes each v with itself.
    pairs = cells.sum(2).square().sum(-1) - cells.square().sum((2, 3))  # b windows
    return pairs.mean(1) / (count * (count - 1))


@dataclass(frozen=True)
class Transform:
    """A smaller size, then quarter turns, then a flip: the same for the pixels of a clip and for its latents."""

    size: tuple[int, int]  # height and width in latent cells, before the turn
    quarter_turns: int
    flipped: bool

    def __call__(self, x: Float[Tensor, "b c t h w"], cell: int = 1) -> Float[Tensor, "b c t h2 w2"]:
        """Of latents, or of pixels with `cell` of them a side of a latent cell. Bilinear, as in the paper's code."""
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        size = (self.size[0] * cell, self.size[1] * cell)
        if size != tuple(frames.shape[2:]):
            frames = F.interpolate(frames, size, mode="bilinear", align_corners=False)
        frames = frames.rot90(self.quarter_turns, (2, 3))
        frames = frames.flip(3) if self.flipped else frames
        return rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))


def draw_transform(size: tuple[int, int], chance: float, least: int = 1, seed: int = 0) -> Transform | None:
    """With probability `chance` a transform of latents of this height and width, else None.

    EQ-VAE takes half of the batches, a shorter side from a quarter of its length to one cell less, and a turn of 90,
    180 or 270 degrees. Here some are not turned, and half are flipped. `least`: cells that the shorter side must keep;
    if it has no more, the size stays.
    """
    drawn, shorter = random.Random(seed), min(size)
    if drawn.random() >= chance:
        return None
    sides = range(max(least, -(-shorter // 4)), shorter) or [shorter]
    side = drawn.choice(sides)
    height, width = (round(length * side / shorter) for length in size)
    return Transform((height, width), drawn.randrange(4), drawn.random() < 0.5)
