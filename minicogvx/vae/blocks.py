"""Residual blocks and resampling of the 3D causal VAE (paper 2.1; the published weights' structure and names).

Shapes: `b c t h w`. A latent `z` enters each decoder block a second time, through the norm (`SpatialNorm`).
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.presets import VAEConfig
from minicogvx.vae.causal_conv import CausalConv3d, Conv3d, ConvCache, add
from minicogvx.vae.ops import (
    as_frames, channels_last, downsample_conv, from_frames, norm_silu, repeat_time, upsample_conv,
)

Modulation = tuple[Float[Tensor, "b c t lh lw"], Float[Tensor, "b c t lh lw"]]  # scale and shift, at the latent's size


def first_frame_alone(frames: int, cache: ConvCache | None, rule: str) -> bool:
    """Does frame 0 of this piece pass a change of frame rate by itself, the others in pairs?

    "start": yes where the piece begins the video, so 4k+1 frames come back as 4k+1. "parity", as published: yes
    where the count is odd. The two agree on 1, 9, 17, ... frames; "parity" returns 8 frames for 5.
    """
    return frames % 2 == 1 if rule == "parity" else cache is None or cache.start


class GroupNorm(nn.GroupNorm):
    """silu(group_norm(x)), or silu(group_norm(x) * scale + shift) where the latent chooses a scale and a shift.

    Statistics run over all frames of the chunk (published) or over each frame alone.
    """

    def __init__(self, channels: int, config: VAEConfig, eps: float = 1e-6):
        super().__init__(config.norm_num_groups, channels, eps)
        self.over = config.norm_over

    def forward(self, x: Float[Tensor, "b c t h w"], modulation: Modulation | None = None,
                cache: ConvCache | None = None) -> Float[Tensor, "b c t h w"]:
        """`modulation` is (scale, shift); they may be smaller than x and are then nearest-upsampled to it."""
        scale, shift = modulation or (None, None)
        if self.over == "chunk":
            compute = norm_silu if cache is None else cache.norm_silu
            return compute(x, self.num_groups, self.eps, self.weight, self.bias, scale, shift)
        # a frame becomes a clip of its own
        frames = [v if v is None else as_frames(channels_last(v)).unsqueeze(2) for v in (x, scale, shift)]
        y = norm_silu(frames[0], self.num_groups, self.eps, self.weight, self.bias, *frames[1:])
        return from_frames(y.squeeze(2), x.shape[0])


class SpatialNorm(nn.Module):
    """silu(group_norm(x) * conv_y(z) + conv_b(z)): a norm whose gain and bias are read off the latent, place by place.

    `z` is nearest-upsampled to x. Both convolutions are 1x1x1, so they run before that, at the latent's size.
    """

    def __init__(self, channels: int, config: VAEConfig):
        super().__init__()
        self.norm_layer = GroupNorm(channels, config)
        self.conv_y = CausalConv3d(config.latent_channels, channels, kernel=1)
        self.conv_b = CausalConv3d(config.latent_channels, channels, kernel=1)
        self.rule = config.first_frame

    def forward(self, x: Float[Tensor, "b c t h w"], z: Float[Tensor, "b z lt lh lw"],
                cache: ConvCache | None = None) -> Float[Tensor, "b c t h w"]:
        """`z` is the latent of the same frames; its frames are repeated in time to those of x."""
        frames = x.shape[2]
        alone = first_frame_alone(frames, cache, self.rule)
        scale = repeat_time(self.conv_y(z), frames, alone)      # b c t lh lw
        shift = repeat_time(self.conv_b(z), frames, alone)      # b c t lh lw
        return self.norm_layer(x, (scale, shift), cache)        # b c t h w: silu(group_norm(x) * scale + shift)


class ResnetBlock(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))). With `conditioned`, both norms read the latent: the decoder's.

    Each norm ends in its SiLU, so that the two together pass the activations once.
    """

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, conditioned: bool):
        super().__init__()
        # norm_eps is of these norms of the encoder alone, as in diffusers; all others have 1e-6
        norm = SpatialNorm if conditioned else partial(GroupNorm, eps=config.norm_eps)
        self.norm1 = norm(in_channels, config)
        self.conv1 = CausalConv3d(in_channels, out_channels, time_padding=config.time_padding)
        self.norm2 = norm(out_channels, config)
        self.conv2 = CausalConv3d(out_channels, out_channels, time_padding=config.time_padding)
        self.conv_shortcut = Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Float[Tensor, "b c t h w"], z: Float[Tensor, "b z lt lh lw"] | None = None,
                cache: ConvCache | None = None) -> Float[Tensor, "b o t h w"]:
        """`z` is the latent that a conditioned block reads; None in the encoder."""
        h = self.conv1(self.norm1(x, z, cache), cache)      # b o t h w: conv(silu(norm(x)))
        h = self.conv2(self.norm2(h, z, cache), cache)      # b o t h w: conv(silu(norm(h)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)                       # b o t h w
        return add(x, h, self.conv2)                        # b o t h w: x + h


class DownConv2d(nn.Conv2d):
    """conv2d(pad(x)) of every frame: the convolution of stride 2 behind one row below and one column to the right."""

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t h2 w2"]:
        return downsample_conv(x, self.weight, self.bias)


class UpConv2d(nn.Conv2d):
    """conv2d(nearest_x2(x)) of every frame."""

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t h2 w2"]:
        return upsample_conv(x, self.weight, self.bias)


class Downsample(nn.Module):
    """Halves height and width by a strided convolution and, with `time`, the frames by averaging pairs."""

    def __init__(self, channels: int, time: bool, rule: str):
        super().__init__()
        self.conv = DownConv2d(channels, channels, 3, stride=2)
        self.time, self.rule = time, rule

    def forward(self, x: Float[Tensor, "b c t h w"], cache: ConvCache | None = None) -> Float[Tensor, "b c t2 h2 w2"]:
        if self.time:
            x = halve_time(x, first_frame_alone(x.shape[2], cache, self.rule))
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles height and width and, with `time`, the frames, by nearest neighbours; then a 3x3 convolution a frame.

    The convolution sees each frame once: repeating frames afterwards gives the same video.
    """

    def __init__(self, channels: int, time: bool, rule: str):
        super().__init__()
        self.conv = UpConv2d(channels, channels, 3, padding=1)
        self.time, self.rule = time, rule

    def forward(self, x: Float[Tensor, "b c t h w"], cache: ConvCache | None = None) -> Float[Tensor, "b c t2 h2 w2"]:
        """Twice the height and width; with `time` 2t - 1 frames where the piece begins the video, else 2t."""
        frames = x.shape[2]
        x = self.conv(x)
        if self.time:
            alone = first_frame_alone(frames, cache, self.rule)
            x = repeat_time(x, 2 * frames - alone, alone)
        return x


def halve_time(x: Float[Tensor, "b c t h w"], first_alone: bool) -> Float[Tensor, "b c t2 h w"]:
    """Averages frames in pairs; with `first_alone`, frame 0 is kept and the rest is paired. An unpaired last frame is
    dropped, as published (only "parity" can meet one)."""
    first, rest = (x[:, :, :1], x[:, :, 1:]) if first_alone else (x[:, :, :0], x)
    pairs = rest.shape[2] // 2
    if not pairs:
        return x[:, :, :1]
    rest = (rest[:, :, 0:2 * pairs:2] + rest[:, :, 1:2 * pairs:2]) * 0.5
    return channels_last(torch.cat([first, rest], dim=2))


class DownBlock(nn.Module):
    """`layers` residual blocks, then a down-sampling unless it is the last stage."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, time: bool, last: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(in_channels if i == 0 else out_channels, out_channels, config, False)
                                     for i in range(config.layers_per_block))
        self.downsamplers = None if last else nn.ModuleList([Downsample(out_channels, time, config.first_frame)])

    def forward(self, x: Float[Tensor, "b c t h w"], cache: ConvCache | None = None) -> Float[Tensor, "b o t2 h2 w2"]:
        for block in self.resnets:
            x = block(x, None, cache)
        return x if self.downsamplers is None else self.downsamplers[0](x, cache)


class UpBlock(nn.Module):
    """`layers` + 1 residual blocks that read the latent, then an up-sampling unless it is the last stage."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, time: bool, last: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(in_channels if i == 0 else out_channels, out_channels, config, True)
                                     for i in range(config.layers_per_block + 1))
        self.upsamplers = None if last else nn.ModuleList([Upsample(out_channels, time, config.first_frame)])

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
