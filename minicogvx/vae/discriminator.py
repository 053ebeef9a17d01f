"""The 3D discriminator of the VAE's GAN loss (paper 2.1: "GAN loss from a 3D discriminator").

Neither the paper nor any released config specifies the discriminator; the repository contains an unused
`Discriminator3D`, which we follow.

What is the same: stages with a residual 1x1x1 stride-2 skip beside 3x3x3 convolutions with leaky ReLU (slope 0.1),
summed and divided by sqrt(2); down-sampling by moving 2x2(x2) neighbours onto channels and mixing them 1x1, which is
exactly a convolution with kernel 2 and stride 2; log2(frames) stages that halve time and space, then stages that halve
space alone; widths that double up to a limit; no normalisation by default.

What differs: it takes any number of frames (an odd number, 9 or 17, repeats its first frame; theirs needs a power of
two) and any frame size, because it returns one logit per patch, where theirs flattens a fixed map into a linear layer;
the number of stages is fixed, not log2(size) - 2; the second of the two convolutions comes after the down-sampling,
which costs an eighth; the space-only stages keep a kernel over time; no linear attention and no blur.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of `PatchDiscriminator3D`. One logit sees a patch of a few times 2 ** stages pixels."""

    in_channels: int = 3
    width: int = 32  # channels after the first stage; they double in each further stage
    max_width: int = 512
    stages: int = 3  # each halves height and width
    num_frames: int = 17  # the first log2 of these stages halve time, too
    negative_slope: float = 0.1
    norm: Literal["none", "group"] = "none"
    spectral_norm: bool = False

    @property
    def time_stages(self) -> int:
        """How many of the stages halve the number of frames."""
        return min(self.stages, int(math.log2(self.num_frames)))

    def __post_init__(self):
        for name in ("in_channels", "width", "max_width", "stages", "num_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.norm not in ("none", "group"):
            raise ValueError(f"norm is {self.norm!r}; it must be 'none' or 'group'")


class PatchDiscriminator3D(nn.Module):
    """Tells real clips from reconstructed ones, patch by patch. High logits mean "real"."""

    def __init__(self, config: DiscriminatorConfig = DiscriminatorConfig()):
        super().__init__()
        self.config = config
        widths = [config.in_channels] + [min(config.width * 2**i, config.max_width) for i in range(config.stages)]
        self.stages = nn.ModuleList(
            DiscriminatorStage(widths[i], widths[i + 1], temporal=i < config.time_stages, config=config)
            for i in range(config.stages))
        self.to_logits = nn.Sequential(
            _conv(config, widths[-1], widths[-1], 3, padding=1),
            nn.LeakyReLU(config.negative_slope),
            _conv(config, widths[-1], 1, 1))

    def forward(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b t_out h_out w_out"]:
        """Logits of the patches of `video`, pixels in -1..1; t, h and w each halved (rounding up) once per stage.

        Raises ValueError for frames smaller than one patch of 2 ** stages pixels.
        """
        smallest = 2 ** self.config.stages
        if min(video.shape[-2:]) < smallest:
            raise ValueError(f"the discriminator got frames of {video.shape[-2]}x{video.shape[-1]} pixels; "
                             f"with {self.config.stages} stages they need at least {smallest} a side")
        x = video.to(next(self.parameters()).dtype)
        for stage in self.stages:
            x = stage(x)
        return self.to_logits(x).squeeze(1)


class DiscriminatorStage(nn.Module):
    """Halves height and width and, if `temporal`, the number of frames; a residual block."""

    def __init__(self, in_channels: int, out_channels: int, temporal: bool, config: DiscriminatorConfig):
        super().__init__()
        self.step = (2 if temporal else 1, 2, 2)
        self.conv1 = _conv(config, in_channels, out_channels, 3, padding=1)
        self.norm1 = _norm(config, out_channels)
        self.down = _conv(config, out_channels, out_channels, self.step, stride=self.step)
        self.conv2 = _conv(config, out_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(config, out_channels)
        self.skip = _conv(config, in_channels, out_channels, 1, stride=self.step)
        self.act = nn.LeakyReLU(config.negative_slope)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c_out t_out h_out w_out"]:
        """One stage."""
        x = self._pad(x)                                  # b c t h w, each even where it will be halved
        y = self.act(self.norm1(self.conv1(x)))           # b c_out t h w
        y = self.down(y)                                  # b c_out t/2 h/2 w/2
        y = self.act(self.norm2(self.conv2(y)))
        return (y + self.skip(x)) * 0.5**0.5

    def _pad(self, x: Tensor) -> Tensor:
        t, h, w = (-size % step for size, step in zip(x.shape[2:], self.step))
        # The first frame is the one to repeat: it is also the one that the causal VAE treats on its own.
        return F.pad(x, (0, w, 0, h, t, 0), mode="replicate") if t or h or w else x


def _conv(config: DiscriminatorConfig, in_channels: int, out_channels: int, kernel, stride=1, padding=0) -> nn.Module:
    conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding)
    return spectral_norm(conv) if config.spectral_norm else conv


def _norm(config: DiscriminatorConfig, channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, channels), channels) if config.norm == "group" else nn.Identity()
