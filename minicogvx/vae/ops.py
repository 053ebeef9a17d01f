"""The few operations that a VAE spends its time in, each with exact algebra that makes it quick.

Every function here equals a plain formula, which its docstring states and the tests hold it to. A reader of
`blocks.py` may read the formula and skip the rest. Nothing here has parameters of its own.

Layout: tensors are `b c t h w`, stored `channels_last_3d` (channels lie next to each other in memory).
That is the layout in which CPU and GPU convolutions are fastest and in which a channel-wise operation is a
row operation. Arithmetic runs in the dtype of the activations: parameters are cast to it.

Under `torch.compile` every function is its formula: a compiler fuses by itself, and sees through no trick.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.vae.norm_kernels import NormSiLU, norm_silu_into, silu_of_norm

FRONT_ROOM = 2  # spare frames kept before an activation, for the two past frames that the next convolution wants


def channels_last(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
    """The same tensor, stored with its channels next to each other."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def as_frames(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "bt c h w"]:
    """Frames folded into the batch; a view of a `channels_last` tensor."""
    return rearrange(x, "b c t h w -> (b t) c h w")


def from_frames(x: Float[Tensor, "bt c h w"], batch: int) -> Float[Tensor, "b c t h w"]:
    """The inverse of `as_frames`; a view."""
    return rearrange(x, "(b t) c h w -> b c t h w", b=batch)


def conv3d(x: Float[Tensor, "b c t h w"], weight: Float[Tensor, "o c kt kh kw"], bias: Float[Tensor, " o"],
           padding: int) -> Float[Tensor, "b o t2 h w"]:
    """`F.conv3d(x, weight, bias, padding=(0, padding, padding))`.

    For one small clip in float32, PyTorch leaves its quick CPU kernel for one that is five times slower. Two halves of
    the clip that share a few frames are a batch of two, which it does not.
    """
    weight, bias, padding = weight.to(x.dtype), bias.to(x.dtype), (0, padding, padding)
    frames = x.shape[2] - weight.shape[2] + 1
    small = x.shape[0] == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= 20480 and weight.shape[3] > 1
    slow = small and x.device.type == "cpu" and x.dtype == torch.float32 and frames > 1
    if torch.compiler.is_compiling() or not slow:
        return F.conv3d(x, weight, bias, padding=padding)
    half = (frames + 1) // 2
    halves = torch.cat([x[:, :, :x.shape[2] - frames + half], x[:, :, frames - half:]])
    first, second = F.conv3d(channels_last(halves), weight, bias, padding=padding).split(1)
    return _join(first, second[:, :, 2 * half - frames:])


def upsample_weight(weight: Float[Tensor, "o i 3 3"]) -> Float[Tensor, "i o 4 4"]:
    """Kernel of the transposed convolution (stride 2, padding 1) that equals nearest x2, then a 3x3 convolution.

    An input pixel is seen through its 2x2 copies, so along each axis W[q] = w[2-q] + w[3-q]: 16 products for
    four output pixels where the plain order spends 36.
    """
    flipped = rearrange(weight.flip(2, 3), "o i kh kw -> i o kh kw")
    rows = F.pad(flipped, (0, 0, 0, 1)) + F.pad(flipped, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


def upsample_conv(x: Float[Tensor, "b c t h w"], weight: Float[Tensor, "o c 3 3"],
                  bias: Float[Tensor, " o"]) -> Float[Tensor, "b o t h2 w2"]:
    """`conv2d(nearest_x2(frame), weight, bias, padding=1)` for every frame."""
    kernel = upsample_weight(weight).to(x.dtype)
    y = F.conv_transpose2d(as_frames(x), kernel, bias.to(x.dtype), stride=2, padding=1)
    return from_frames(y, x.shape[0])


def downsample_conv(x: Float[Tensor, "b c t h w"], weight: Float[Tensor, "o c 3 3"],
                    bias: Float[Tensor, " o"]) -> Float[Tensor, "b o t h2 w2"]:
    """`conv2d(pad(frame, right=1, bottom=1), weight, bias, stride=2)` for every frame.

    Padding by 2 on all sides and leaving out the first row and column sees the same windows without a padded copy.
    """
    y = F.conv2d(as_frames(x), weight.to(x.dtype), bias.to(x.dtype), stride=2, padding=2)
    return channels_last(from_frames(y[:, :, 1:, 1:], x.shape[0]))


def repeat_time(x: Float[Tensor, "b c n h w"], frames: int, first_alone: bool) -> Float[Tensor, "b c t h w"]:
    """Nearest up-sampling in time; with `first_alone`, frame 0 stands for itself: 3 -> 0 1 1 2 2."""
    n = x.shape[2]
    if frames == n:
        return x
    alone = int(first_alone and n > 1)
    parts = [x[:, :, :alone], x[:, :, alone:].repeat_interleave((frames - alone) // (n - alone), dim=2)]
    return _join(*parts) if alone else channels_last(parts[1])


def pad_front(x: Float[Tensor, "b c t h w"], past: Float[Tensor, "b c k h w"]) -> Float[Tensor, "b c tk h w"]:
    """`cat([past, x], dim=2)`. Where `x` was made with room in front (`norm_silu` does so), nothing is moved."""
    frames = past.shape[2]
    if torch.compiler.is_compiling() or recorded(x, past) or getattr(x, "front_room", 0) < frames:
        return _join(past, x)
    x.front_room = 0  # it is given away once: whoever pads `x` again must not change what was made here
    b, c, t, h, w = x.shape
    grown = x.as_strided((b, c, t + frames, h, w), x.stride(), x.storage_offset() - frames * x.stride(2))
    grown[:, :, :frames] = past
    return grown


def pad_first(x: Float[Tensor, "b c t h w"], frames: int, unseen: bool = False) -> Float[Tensor, "b c tk h w"]:
    """`pad_front(x, copies of x's first frame)`, with a quicker backward.

    `unseen`: the result goes into one convolution and nowhere else; its gradient then needs no copy.
    """
    if recorded(x) and not torch.compiler.is_compiling():
        return _PadFirst.apply(x, frames, unseen)
    return pad_front(x, x[:, :, :1].expand(-1, -1, frames, -1, -1))


class _PadFirst(torch.autograd.Function):
    """Autograd would fill a clip with zeros for the gradient of the first frame, and then add that clip."""

    @staticmethod
    def forward(ctx, x, frames, unseen):
        ctx.unseen = unseen
        return _Join.forward(ctx, x[:, :, :1].expand(-1, -1, frames, -1, -1), x)

    @staticmethod
    def backward(ctx, grad):
        """Adds to a copy, as `grad` may have other readers, unless it is known to have none."""
        own = grad[:, :, ctx.frames:]
        if not ctx.unseen or torch.is_grad_enabled():
            own = own.clone()
        for copy in range(ctx.frames):
            own[:, :, 0] += grad[:, :, copy]
        return own, None, None


def recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with them."""
    return torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors)


def _join(first, second):
    """`cat([first, second], dim=2)`, channels last."""
    if torch.compiler.is_compiling():
        return channels_last(torch.cat([first, second], dim=2))
    return _Join.apply(first, second)


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


def norm_silu(x: Float[Tensor, "b c t h w"], groups: int, eps: float,
              gain: Float[Tensor, " c"], bias: Float[Tensor, " c"],
              scale: Float[Tensor, "b c t lh lw"] | None = None, shift: Float[Tensor, "b c t lh lw"] | None = None,
              ) -> Float[Tensor, "b c t h w"]:
    """`silu(group_norm(x, gain, bias) * up(scale) + up(shift))`; without scale and shift, `silu(group_norm(x))`.

    `scale` and `shift` stay at the latents' height and width: a 1x1x1 convolution commutes with nearest
    up-sampling, so each of their values is read for a whole cell of pixels and never copied to them.
    """
    gain, bias = gain.to(x.dtype), bias.to(x.dtype)
    if torch.compiler.is_compiling():
        return silu_of_norm(x, groups, eps, gain, bias, scale, shift)
    x = channels_last(x)
    if recorded(x, gain, bias, scale, shift):
        return NormSiLU.apply(x, gain, bias, scale, shift, groups, eps)
    b, c, t, h, w = x.shape
    # A single frame, as `norm_over="frame"` makes them, would take three times its size.
    room = FRONT_ROOM if t > 1 else 0
    y = x.new_empty((b, t + room, h, w, c))[:, room:].permute(0, 4, 1, 2, 3)
    norm_silu_into(y, x, groups, eps, gain, bias, scale, shift)
    y.front_room = room
    return y
