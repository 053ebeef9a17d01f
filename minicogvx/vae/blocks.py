"""Residual blocks and resampling of the 3D causal VAE (paper 2.1; the published weights' structure and names).

Shapes: `b c t h w`. A latent `z` enters each decoder block a second time, through the norm (`SpatialNormSiLU`).
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.presets import VAEConfig
from minicogvx.vae.causal_conv import CausalConv3d, ConvCache
from minicogvx.vae.layers import Conv3d, DownConv2d, NormSiLU, UpConv2d, fold, halve_time, stretch_time, unfold


class SpatialNormSiLU(nn.Module):
    """silu(group_norm(x) * conv_y(z) + conv_b(z)): a norm whose scale and shift are read off the latent z.

    Both convolutions are 1x1x1, so they run at the latent's size; the norm upsamples what they give.
    """

    def __init__(self, channels: int, config: VAEConfig):
        super().__init__()
        self.norm_layer = NormSiLU(channels, config)
        self.conv_y = CausalConv3d(config.latent_channels, channels, kernel=1)
        self.conv_b = CausalConv3d(config.latent_channels, channels, kernel=1)

    def forward(self, x: Float[Tensor, "b c t h w"], z: Float[Tensor, "b z lt lh lw"]) -> Float[Tensor, "b c t h w"]:
        """`z` is the latent of the same frames."""
        scale = stretch_time(self.conv_y(z), x.shape[2])        # b c t lh lw
        shift = stretch_time(self.conv_b(z), x.shape[2])        # b c t lh lw
        return self.norm_layer(x, scale, shift)                 # b c t h w: silu(group_norm(x) * scale + shift)


class ResnetBlock(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))). With `conditioned`, both norms read the latent: the decoder's."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, conditioned: bool):
        super().__init__()
        # norm_eps is of these norms of the encoder alone, as in diffusers; all others have 1e-6
        norm_silu = SpatialNormSiLU if conditioned else partial(NormSiLU, eps=config.norm_eps)
        self.norm1 = norm_silu(in_channels, config)
        self.conv1 = CausalConv3d(in_channels, out_channels, time_padding=config.time_padding)
        self.norm2 = norm_silu(out_channels, config)
        self.conv2 = CausalConv3d(out_channels, out_channels, time_padding=config.time_padding)
        self.conv_shortcut = Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Float[Tensor, "b c t h w"], z: Float[Tensor, "b z lt lh lw"] | None = None,
                cache: ConvCache | None = None) -> Float[Tensor, "b o t h w"]:
        """`z` is the latent that the decoder's norms read; the encoder has none."""
        h = self.norm1(x, z)            # b c t h w: silu(norm(x))
        h = self.conv1(h, cache)        # b o t h w
        h = self.norm2(h, z)            # b o t h w: silu(norm(h))
        h = self.conv2(h, cache)        # b o t h w
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)   # b o t h w
        return h + x


class Downsample(nn.Module):
    """Halves height and width by a strided convolution and, if `temporal`, the frames by averaging pairs."""

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.conv = DownConv2d(channels, channels, 3, stride=2)
        self.temporal = temporal

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        """Half the height and width; if `temporal`, (t + 1) / 2 frames of an odd number, t / 2 of an even one."""
        if self.temporal:
            x = halve_time(x)       # b c t2 h w
        return self.conv(x)         # b c t2 h/2 w/2


class Upsample(nn.Module):
    """Doubles height and width and, if `temporal`, the frames, by nearest neighbours; then a 3x3 convolution a frame.

    The convolution sees each frame once: repeating frames afterwards gives the same video.
    """

    def __init__(self, channels: int, temporal: bool, rule: str):
        super().__init__()
        self.conv = UpConv2d(channels, channels, 3, padding=1)
        self.temporal, self.rule = temporal, rule

    def forward(self, x: Float[Tensor, "b c t h w"], cache: ConvCache | None = None) -> Float[Tensor, "b c t2 h2 w2"]:
        """Twice the height and width; if `temporal`, 2t - 1 frames where the first stays single, else 2t."""
        frames = x.shape[2]
        x = self.conv(x)                                                # b c t 2h 2w
        if self.temporal:
            single = first_stays_single(frames, cache, self.rule)
            x = stretch_time(x, 2 * frames - single)                    # b c t2 2h 2w
        return x


def first_stays_single(frames: int, cache: ConvCache | None, rule: str) -> bool:
    """Whether the first of `frames` frames is not doubled, as it is the first of the video (`VAEConfig.first_frame`).

    "start": if the piece begins the video, so 4k+1 frames come back as 4k+1. "parity", as published: if the number is
    odd. The two agree on 1, 9, 17, ... frames of a video; for 5, "parity" returns 8.
    """
    return frames % 2 == 1 if rule == "parity" else cache is None or cache.start


class ResidualDownsample(nn.Module):
    """A down-sampling that changes the number of channels, and a shortcut without weights around it (`fold`)."""

    def __init__(self, in_channels: int, out_channels: int, temporal: bool):
        super().__init__()
        self.conv = DownConv2d(in_channels, out_channels, 3, stride=2)
        self.channels, self.temporal = out_channels, temporal

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t2 h2 w2"]:
        """As many frames, rows and columns as `Downsample` gives."""
        y = self.conv(halve_time(x) if self.temporal else x)            # b o t2 h/2 w/2
        return y + fold(x, self.channels, self.temporal)


class ResidualUpsample(nn.Module):
    """An up-sampling that changes the number of channels, and a shortcut without weights around it (`unfold`)."""

    def __init__(self, in_channels: int, out_channels: int, temporal: bool, rule: str):
        super().__init__()
        self.conv = UpConv2d(in_channels, out_channels, 3, padding=1)
        self.channels, self.temporal, self.rule = out_channels, temporal, rule

    def forward(self, x: Float[Tensor, "b c t h w"], cache: ConvCache | None = None) -> Float[Tensor, "b o t2 h2 w2"]:
        """As many frames, rows and columns as `Upsample` gives."""
        y, shortcut = self.conv(x), unfold(x, self.channels, self.temporal)
        if self.temporal:
            frames = 2 * x.shape[2] - first_stays_single(x.shape[2], cache, self.rule)
            y, shortcut = stretch_time(y, frames), shortcut[:, :, -frames:]
        return y + shortcut                                             # b o t2 2h 2w


def stage_widths(widths: Sequence[int], config: VAEConfig) -> list[tuple[int, int, int]]:
    """Of each stage, the channels that come in, of its residual blocks, and after its down- or up-sampling.

    As published, the first residual block of a stage changes their number. With "residual" re-sampling this does,
    because its shortcut moves pixels onto channels.
    """
    if config.resampling == "residual":
        return [(width, width, after) for width, after in pairwise([*widths, widths[-1]])]
    return [(before, width, width) for before, width in pairwise([widths[0], *widths])]


class DownBlock(nn.Module):
    """`layers` residual blocks, then a down-sampling unless it is the last stage. `widths`: see `stage_widths`."""

    def __init__(self, widths: tuple[int, int, int], config: VAEConfig, temporal: bool, last: bool):
        super().__init__()
        before, width, after = widths
        self.resnets = nn.ModuleList(ResnetBlock(before if i == 0 else width, width, config, False)
                                     for i in range(config.layers_per_block))
        self.downsamplers = None if last else nn.ModuleList([
            ResidualDownsample(width, after, temporal) if config.resampling == "residual"
            else Downsample(width, temporal)])

    def forward(self, x: Float[Tensor, "b c t h w"], cache: ConvCache | None = None) -> Float[Tensor, "b o t2 h2 w2"]:
        for block in self.resnets:
            x = block(x, None, cache)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class UpBlock(nn.Module):
    """`layers` + 1 residual blocks that read the latent, then an up-sampling unless it is the last stage."""

    def __init__(self, widths: tuple[int, int, int], config: VAEConfig, temporal: bool, last: bool):
        super().__init__()
        before, width, after = widths
        self.resnets = nn.ModuleList(ResnetBlock(before if i == 0 else width, width, config, True)
                                     for i in range(config.layers_per_block + 1))
        self.upsamplers = None if last else nn.ModuleList([
            ResidualUpsample(width, after, temporal, config.first_frame) if config.resampling == "residual"
            else Upsample(width, temporal, config.first_frame)])

    def forward(self, x: Float[Tensor, "b c t h w"], z: Float[Tensor, "b z lt lh lw"],
                cache: ConvCache | None = None) -> Float[Tensor, "b o t2 h2 w2"]:
        for block in self.resnets:
            x = block(x, z, cache)
        return x if self.upsamplers is None else self.upsamplers[0](x, cache)


class MidBlock(nn.Module):
    """Two residual blocks at the lowest resolution. No attention anywhere: so any size works."""

    def __init__(self, channels: int, config: VAEConfig, conditioned: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, config, conditioned) for _ in range(2))

    def forward(self, x: Float[Tensor, "b c t h w"], z: Float[Tensor, "b z lt lh lw"] | None = None,
                cache: ConvCache | None = None) -> Float[Tensor, "b c t h w"]:
        for block in self.resnets:
            x = block(x, z, cache)
        return x
