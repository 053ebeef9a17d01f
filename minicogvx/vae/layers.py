"""The leaf modules of the VAE (paper 2.1): the body of each is its formula.

Each has a quick version in `fast.py`: the same numbers in fewer passes over memory. Nothing there is needed to
understand the VAE, and `with fast.off():` computes all of it as written here.

Shapes are `b c t h w`. Modules compute in the dtype of their input: float32 weights and a bfloat16 video is how the VAE
is trained.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.presets import VAEConfig
from minicogvx.vae import fast


class NormSiLU(nn.GroupNorm):
    """silu(group_norm(x) * scale + shift); without scale and shift, silu(group_norm(x)).

    Statistics run over all frames of the chunk (published) or over each frame alone (`VAEConfig.norm_over`).
    """

    def __init__(self, channels: int, config: VAEConfig, eps: float = 1e-6):
        super().__init__(config.norm_num_groups, channels, eps)
        self.over = config.norm_over

    def forward(self, x: Float[Tensor, "b c t h w"], scale: Float[Tensor, "b c t lh lw"] | None = None,
                shift: Float[Tensor, "b c t lh lw"] | None = None) -> Float[Tensor, "b c t h w"]:
        """`scale` and `shift` may be smaller than x in height and width: they are nearest-upsampled to it."""
        if self.over == "frame" and x.shape[2] > 1:  # each frame becomes a clip of its own
            frames = [v if v is None else rearrange(v, "b c t h w -> (b t) c 1 h w") for v in (x, scale, shift)]
            return rearrange(self.forward(*frames), "(b t) c 1 h w -> b c t h w", b=len(x))
        if fast.on():
            return fast.norm_silu(x, self.num_groups, self.eps, self.weight, self.bias, scale, shift)
        y = F.group_norm(x, self.num_groups, *weights_like(x, self), self.eps)
        if scale is not None:
            y = y * F.interpolate(scale, y.shape[2:]) + F.interpolate(shift, y.shape[2:])
        return F.silu(y)


class Conv3d(nn.Conv3d):
    """A 3D convolution of stride 1."""

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t2 h w"]:
        if fast.on():
            return fast.conv3d(x, self.weight, self.bias, self.padding)
        return F.conv3d(x, *weights_like(x, self), padding=self.padding)


class DownConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2 on every frame, padded with a row below and a column on the right."""

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t h2 w2"]:
        if fast.on(compiled=True):
            return fast.downsample_conv(x, self.weight, self.bias)
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        frames = F.conv2d(F.pad(frames, (0, 1, 0, 1)), *weights_like(x, self), stride=2)
        return rearrange(frames, "(b t) o h w -> b o t h w", b=len(x))


class UpConv2d(nn.Conv2d):
    """Every frame doubled in height and width by nearest neighbours, then a 3x3 convolution."""

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t h2 w2"]:
        if fast.on(compiled=True):
            return fast.upsample_conv(x, self.weight, self.bias)
        frames = F.interpolate(rearrange(x, "b c t h w -> (b t) c h w"), scale_factor=2.0)
        frames = F.conv2d(frames, *weights_like(x, self), padding=1)
        return rearrange(frames, "(b t) o h w -> b o t h w", b=len(x))


def halve_time(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h w"]:
    """Averages frames in pairs. Of an odd number the first frame stays as it is: 17 frames become 9, and then 5."""
    first, rest = x.split([x.shape[2] % 2, x.shape[2] // 2 * 2], dim=2)
    return torch.cat([first, (rest[:, :, 0::2] + rest[:, :, 1::2]) * 0.5], dim=2)


def stretch_time(x: Float[Tensor, "b c n h w"], frames: int) -> Float[Tensor, "b c t h w"]:
    """Nearest up-sampling in time to `frames`. Of an odd number the first stays single: 3 frames become 0 1 1 2 2."""
    if x.shape[2] == frames:
        return x
    if fast.on():
        return fast.stretch_time(x, frames)
    first, rest = x.split([frames % 2, x.shape[2] - frames % 2], dim=2)
    return torch.cat([first, rest.repeat_interleave(frames // 2 * 2 // rest.shape[2], dim=2)], dim=2)


def fold(x: Float[Tensor, "b c t h w"], channels: int, temporal: bool) -> Float[Tensor, "b o t2 h2 w2"]:
    """Moves 2x2 pixels, of two frames if `temporal`, onto channels, and averages these in groups: `channels` are left.

    The shortcut around a down-sampling of DC-AE (arXiv 2410.10733): it has no weights and keeps what there is room for.
    Of an odd number of frames the first is paired with itself.
    """
    if temporal and x.shape[2] % 2:
        x = torch.cat([x[:, :, :1], x], dim=2)
    x = rearrange(x, "b c (t p) (h q) (w r) -> b (c p q r) t h w", p=1 + temporal, q=2, r=2)
    return x.unflatten(1, (channels, -1)).mean(2)


def unfold(x: Float[Tensor, "b c t h w"], channels: int, temporal: bool) -> Float[Tensor, "b o t2 h2 w2"]:
    """Repeats channels, and moves them onto 2x2 pixels, in two frames if `temporal`, of `channels` channels.

    The shortcut around an up-sampling of DC-AE; what it gives, `fold` takes back to x.
    """
    x = x.repeat_interleave(4 * (1 + temporal) * channels // x.shape[1], dim=1)
    return rearrange(x, "b (c p q r) t h w -> b c (t p) (h q) (w r)", p=1 + temporal, q=2, r=2)


def weights_like(x: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of `module` in the dtype of `x`."""
    return module.weight.to(x.dtype), module.bias.to(x.dtype)
