"""Quick versions of the VAE's leaf modules: the same numbers in fewer passes over memory.

No learner needs this file. Each function equals the formula of the leaf that calls it (`layers.py`, `causal_conv.py`),
and the tests hold it to that. Group norms, the longest of them, are in `fast_norm.py`.

Tensors are `b c t h w`, stored `channels_last_3d`: the channels of a pixel lie next to each other in memory. In that
layout convolutions are fastest on CPU and GPU, and what is done to each channel is done to rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.vae.fast_norm import FusedNormSiLU, empty_buffer, norm_silu_into

_switched_off = False


def on(compiled: bool = False) -> bool:
    """Whether a leaf computes its quick version.

    Not under `torch.compile`, which fuses by itself and sees through no trick; but what is plain algebra (`compiled`)
    saves work there, too.
    """
    return not _switched_off and (compiled or not torch.compiler.is_compiling())


@contextmanager
def off() -> Iterator[None]:
    """While open, every leaf computes its formula as it is written."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def channels_last(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
    """The same tensor, stored with its channels next to each other."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def _as_frames(x):
    return rearrange(channels_last(x), "b c t h w -> (b t) c h w")  # a view


def _from_frames(x, batch):
    return rearrange(x, "(b t) c h w -> b c t h w", b=batch)


def conv3d(x: Float[Tensor, "b c t h w"], weight: Float[Tensor, "o c kt kh kw"], bias: Float[Tensor, " o"],
           padding: tuple[int, int, int]) -> Float[Tensor, "b o t2 h2 w2"]:
    """`F.conv3d(x, weight, bias, padding=padding)`, without padding in time.

    For one small clip in float32, PyTorch leaves its quick CPU kernel for one that is five times slower. Two halves of
    the clip that share a few frames are a batch of two, which it does not.
    """
    x, weight, bias = channels_last(x), weight.to(x.dtype), bias.to(x.dtype)
    frames = x.shape[2] - weight.shape[2] + 1
    small = x.shape[0] == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= 20480 and weight.shape[3] > 1
    if not (small and x.device.type == "cpu" and x.dtype == torch.float32 and frames > 1):
        return F.conv3d(x, weight, bias, padding=padding)
    half = (frames + 1) // 2
    halves = torch.cat([x[:, :, :x.shape[2] - frames + half], x[:, :, frames - half:]])
    first, second = F.conv3d(channels_last(halves), weight, bias, padding=padding).split(1)
    return _Join.apply(first, second[:, :, 2 * half - frames:])


def downsample_conv(x: Float[Tensor, "b c t h w"], weight: Float[Tensor, "o c 3 3"],
                    bias: Float[Tensor, " o"]) -> Float[Tensor, "b o t h2 w2"]:
    """`conv2d(pad(frame, right=1, bottom=1), weight, bias, stride=2)` for every frame.

    Padding by 2 on all sides and leaving out the first row and column sees the same windows without a padded copy.
    """
    y = F.conv2d(_as_frames(x), weight.to(x.dtype), bias.to(x.dtype), stride=2, padding=2)
    return channels_last(_from_frames(y[:, :, 1:, 1:], len(x)))


def upsample_conv(x: Float[Tensor, "b c t h w"], weight: Float[Tensor, "o c 3 3"],
                  bias: Float[Tensor, " o"]) -> Float[Tensor, "b o t h2 w2"]:
    """`conv2d(nearest_x2(frame), weight, bias, padding=1)` for every frame."""
    kernel = upsample_weight(weight).to(x.dtype)
    y = F.conv_transpose2d(_as_frames(x), kernel, bias.to(x.dtype), stride=2, padding=1)
    return _from_frames(y, len(x))


def upsample_weight(weight: Float[Tensor, "o i 3 3"]) -> Float[Tensor, "i o 4 4"]:
    """Kernel of the transposed convolution (stride 2, padding 1) that equals nearest x2, then a 3x3 convolution.

    An input pixel is seen through its 2x2 copies, so along each axis W[q] = w[2-q] + w[3-q]: 16 products for
    four output pixels where the plain order spends 36.
    """
    flipped = rearrange(weight.flip(2, 3), "o i kh kw -> i o kh kw")
    rows = F.pad(flipped, (0, 0, 0, 1)) + F.pad(flipped, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


def stretch_time(x: Float[Tensor, "b c n h w"], frames: int) -> Float[Tensor, "b c t h w"]:
    """Nearest up-sampling in time to another number of frames; of an odd number the first stays single."""
    first, rest = x.split([frames % 2, x.shape[2] - frames % 2], dim=2)
    return _Join.apply(first, rest.repeat_interleave(frames // 2 * 2 // rest.shape[2], dim=2))


def pad_time(x: Float[Tensor, "b c t h w"], frames: int,
             past: Float[Tensor, "b c k h w"] | None = None) -> Float[Tensor, "b c p h w"]:
    """`cat([past, x], dim=2)`; without `past`, `frames` copies of the first frame stand before x.

    Where x is the end of a buffer with so many frames before it (`norm_silu`), x is not copied.
    """
    buffer, version = vars(x).pop("buffer", (None, None))  # the frames before x are used once
    if buffer is None or version != _version(x) or buffer.shape[2] != frames + x.shape[2]:
        return _PadFirst.apply(x, frames) if past is None else _Join.apply(past, x)
    if past is None and buffer.requires_grad == x.requires_grad:
        return buffer
    if past is None or x.requires_grad or past.requires_grad:
        return _PadFirst.apply(x, frames) if past is None else _Join.apply(past, x)
    buffer[:, :, :frames] = past
    return buffer


def _version(x):
    """Rises with every change in place, but for tensors of `torch.inference_mode`, which have none."""
    return None if x.is_inference() else x._version


class _Join(torch.autograd.Function):
    """`cat([first, second], dim=2)`, always stored channels last, which torch.cat gives up for an expanded input."""

    @staticmethod
    def forward(ctx, first, second):
        ctx.frames = first.shape[2]
        b, c, t, h, w = second.shape
        joined = second.new_empty(b, ctx.frames + t, h, w, c).permute(0, 4, 1, 2, 3)
        joined[:, :, :ctx.frames], joined[:, :, ctx.frames:] = first, second
        return joined

    @staticmethod
    def backward(ctx, grad):
        return grad[:, :, :ctx.frames], grad[:, :, ctx.frames:]


class _PadFirst(torch.autograd.Function):
    """Autograd would fill a clip with zeros for the gradient of the first frame, and then add that clip."""

    @staticmethod
    def forward(ctx, x, frames):
        return _Join.forward(ctx, x[:, :, :1].expand(-1, -1, frames, -1, -1), x)

    @staticmethod
    def backward(ctx, grad):
        own = grad[:, :, ctx.frames:].clone()  # `grad` may have other consumers
        for copy in range(ctx.frames):
            own[:, :, 0] += grad[:, :, copy]
        return own, None


def norm_silu(x: Float[Tensor, "b c t h w"], groups: int, eps: float,
              gain: Float[Tensor, " c"], bias: Float[Tensor, " c"],
              scale: Float[Tensor, "b c t lh lw"] | None = None, shift: Float[Tensor, "b c t lh lw"] | None = None,
              ) -> Float[Tensor, "b c t h w"]:
    """`silu(group_norm(x, gain, bias) * up(scale) + up(shift))`; without scale and shift, `silu(group_norm(x))`.

    `scale` and `shift` stay at the latents' height and width: a 1x1x1 convolution commutes with nearest
    up-sampling, so each of their values is read for a whole cell of pixels and never copied to them.
    """
    x, gain, bias = channels_last(x), gain.to(x.dtype), bias.to(x.dtype)
    free = 2 if x.shape[2] > 1 else 0  # before the convolution that follows; one frame would take three times its size
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (x, gain, bias, scale, shift)):
        buffer = FusedNormSiLU.apply(x, gain, bias, scale, shift, groups, eps, free)
    else:
        buffer = empty_buffer(x, free)
        norm_silu_into(buffer, x, groups, eps, gain, bias, scale, shift)
    y = buffer[:, :, free:]
    y.buffer = buffer, _version(y)
    return y
