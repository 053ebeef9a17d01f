"""The few operations that a VAE spends its time in, each with exact algebra that makes it quick.

Every function here equals a plain formula, which its docstring states and the tests hold it to. A reader of
`blocks.py` may read the formula and skip the rest. Nothing here has parameters of its own.

Layout: tensors are `b c t h w`, stored `channels_last_3d` (channels lie next to each other in memory).
That is the layout in which CPU and GPU convolutions are fastest and in which a channel-wise operation is a
row operation. Arithmetic runs in the dtype of the activations: parameters are cast to it.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

FRONT_ROOM = 2  # spare frames kept before an activation, for the two past frames that the next convolution wants
IN_CACHE = 2**17  # numbers that pass through several operations while they are in a core's cache


def channels_last(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
    """The same tensor, stored with its channels next to each other."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def as_frames(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "bt c h w"]:
    """Frames folded into the batch; a view of a `channels_last` tensor."""
    return rearrange(x, "b c t h w -> (b t) c h w")


def from_frames(x: Float[Tensor, "bt c h w"], batch: int) -> Float[Tensor, "b c t h w"]:
    """The inverse of `as_frames`; a view."""
    return rearrange(x, "(b t) c h w -> b c t h w", b=batch)


def repeat_index(latent_frames: int, frames: int, first_alone: bool, device=None) -> Int[Tensor, " t"]:
    """Which latent frame each of `frames` frames comes from when time is nearest-upsampled.

    `first_alone`: frame 0 stands for itself and only the others are repeated, 3 -> 0 1 1 2 2.
    """
    if first_alone and latent_frames > 1:
        later = torch.arange(frames - 1, device=device) * (latent_frames - 1) // (frames - 1)
        return torch.cat([later.new_zeros(1), later + 1])
    return torch.arange(frames, device=device) * latent_frames // frames


def conv3d(x: Float[Tensor, "b c t h w"], weight: Float[Tensor, "o c kt kh kw"], bias: Float[Tensor, " o"],
           padding: int) -> Float[Tensor, "b o t2 h w"]:
    """`F.conv3d(x, weight, bias, padding=(0, padding, padding))`.

    For one small clip in float32, PyTorch leaves its quick CPU kernel for one that is five times slower. Two halves of
    the clip that share a few frames are a batch of two, which it does not.
    """
    weight, bias, padding = weight.to(x.dtype), bias.to(x.dtype), (0, padding, padding)
    frames = x.shape[2] - weight.shape[2] + 1
    small = x.shape[0] == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= 20480 and weight.shape[3] > 1
    if not (small and x.device.type == "cpu" and x.dtype == torch.float32 and frames > 1):
        return F.conv3d(x, weight, bias, padding=padding)
    half = (frames + 1) // 2
    halves = torch.cat([x[:, :, :x.shape[2] - frames + half], x[:, :, frames - half:]])
    first, second = F.conv3d(channels_last(halves), weight, bias, padding=padding).split(1)
    return _Join.apply(first, second[:, :, 2 * half - frames:])


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
    """`x[:, :, repeat_index(n, frames, first_alone)]`: nearest up-sampling in time."""
    n = x.shape[2]
    if frames == n:
        return x
    alone = int(first_alone and n > 1)
    parts = [x[:, :, :alone], x[:, :, alone:].repeat_interleave((frames - alone) // (n - alone), dim=2)]
    return _Join.apply(*parts) if alone else channels_last(parts[1])


def pad_front(x: Float[Tensor, "b c t h w"], past: Float[Tensor, "b c k h w"]) -> Float[Tensor, "b c tk h w"]:
    """`cat([past, x], dim=2)`. Where `x` was made with room in front (`norm_silu` does so), nothing is moved.

    Except under torch.compile, which refuses to write into a tensor that as_strided made.
    """
    frames = past.shape[2]
    if torch.compiler.is_compiling() or getattr(x, "front_room", 0) < frames:
        return _Join.apply(past, x)
    b, c, t, h, w = x.shape
    grown = x.as_strided((b, c, t + frames, h, w), x.stride(), x.storage_offset() - frames * x.stride(2))
    grown[:, :, :frames] = past
    return grown


def pad_first(x: Float[Tensor, "b c t h w"], frames: int) -> Float[Tensor, "b c tk h w"]:
    """`pad_front(x, copies of x's first frame)`, with a backward that costs one frame and not three passes over all."""
    return _PadFirst.apply(x, frames) if torch.is_grad_enabled() and x.requires_grad else pad_front(
        x, x[:, :, :1].expand(-1, -1, frames, -1, -1))


class _PadFirst(torch.autograd.Function):
    """Autograd would fill a clip with zeros for the gradient of the first frame, and then add that clip."""

    @staticmethod
    def forward(ctx, x, frames):
        ctx.frames = frames
        return _Join.forward(ctx, x[:, :, :1].expand(-1, -1, frames, -1, -1), x)

    @staticmethod
    def backward(ctx, grad):
        """Adds in place: what a convolution hands back as the gradient of its input belongs to nobody else."""
        own = grad[:, :, ctx.frames:]
        for copy in range(ctx.frames):
            own[:, :, 0] += grad[:, :, copy]
        return own, None


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
    x = channels_last(x)
    gain, bias = gain.to(x.dtype), bias.to(x.dtype)
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (x, gain, bias, scale, shift)):
        return _NormSiLU.apply(x, gain, bias, scale, shift, groups, eps)
    return _norm_silu_with_room(x, groups, eps, gain, bias, scale, shift)


def group_statistics(x: Float[Tensor, "b c t h w"], groups: int) -> tuple[Float[Tensor, "b g"], Float[Tensor, "b g"]]:
    """Mean and variance of each group of channels over all frames and pixels, to the last digits of float32.

    PyTorch's own kernel for this layout adds x and x^2 one after the other: at 9x480x720 its 1/std is off by 1e-3, and
    differently for another number of threads. Here the mean is known before squares are summed, `Tensor.sum` adds in
    pairs of pairs, and the differences from the mean are made for a few lines of pixels at a time.
    """
    b, c = x.shape[:2]
    pixels = x.permute(0, 2, 3, 4, 1).reshape(b, -1, c)  # a view of a `channels_last` tensor
    mean = pixels.mean(1).view(b, groups, -1).mean(2)
    centre = mean.repeat_interleave(c // groups, 1)[:, None]
    at_once = max(1, IN_CACHE // (b * c))
    squares = sum((some - centre).square_().sum(1) for some in pixels.split(at_once, 1))
    return mean, squares.view(b, groups, -1).mean(2) / pixels.shape[1]


def _needs_exact_sums(x):
    return x.device.type == "cpu" and x.element_size() >= 4  # 16 bits are coarser than what the kernel loses


def _affine(x, groups, eps, gain, bias):
    """(slope, offset, mean, rstd) with `group_norm(x) = x * slope + offset`, each `b c 1 1 1` but mean and rstd `b g`."""
    mean, variance = group_statistics(x, groups)
    rstd = (variance + eps).rsqrt()
    slope = _per_channel(rstd, len(gain)) * gain[:, None, None, None]
    return slope, bias[:, None, None, None] - _per_channel(mean, len(gain)) * slope, mean, rstd


def _norm_and_modulate(x, groups, eps, gain, bias, scale, shift, out=None):
    """(`group_norm(x) * up(scale) + up(shift)`, mean, rstd), written into `out` where it is given."""
    if _needs_exact_sums(x):
        slope, offset, mean, rstd = _affine(x, groups, eps, gain, bias)
        if scale is None:
            return torch.addcmul(offset, x, slope, out=out), mean, rstd
        normed, shift, scale = x, torch.addcmul(shift, scale, offset), scale * slope  # one pass over the pixels, not two
    else:
        normed, mean, rstd = _group_norm(x, groups, eps, gain, bias)
        if scale is None:
            return normed if out is None else out.copy_(normed), mean, rstd
    out = torch.empty_like(x) if out is None else out
    for clip in range(len(x)):  # one clip is one contiguous block, in a buffer with room, too
        rows = _rows(out[clip:clip + 1], scale.shape[3])
        torch.addcmul(_widen(shift[clip:clip + 1], x.shape[4]), _rows(normed[clip:clip + 1], scale.shape[3]),
                      _widen(scale[clip:clip + 1], x.shape[4]), out=rows)
    return out, mean, rstd


def _group_norm(x, groups, eps, gain, bias):
    """Group norm, mean and 1/std; frames lie under each other as one tall picture: PyTorch's kernel is quick there."""
    b, c, t, h, w = x.shape
    tall = x.permute(0, 2, 3, 4, 1).reshape(b, t * h, w, c).permute(0, 3, 1, 2)
    normed, mean, rstd = torch.native_group_norm(tall, gain, bias, b, c, t * h * w, groups, eps)
    return _unrows(normed.permute(0, 2, 3, 1), x.shape), mean, rstd


def _norm_silu_with_room(x, groups, eps, gain, bias, scale, shift):
    b, c, t, h, w = x.shape
    # A single frame, as `norm_over="frame"` makes them, would take three times its size.
    room = FRONT_ROOM if t > 1 else 0
    buffer = x.new_empty((b, t + room, h, w, c))
    y = buffer[:, room:].permute(0, 4, 1, 2, 3)
    _norm_and_modulate(x, groups, eps, gain, bias, scale, shift, out=y)
    F.silu(y, inplace=True)
    y.front_room = room
    return y


class _NormSiLU(torch.autograd.Function):
    """`norm_silu` with its backward written out: every sum over pixels goes by way of sums over latent cells."""

    @staticmethod
    def forward(ctx, x, gain, bias, scale, shift, groups, eps):
        """Keeps the input and the group statistics, not the activations in between."""
        y, mean, rstd = _norm_and_modulate(x, groups, eps, gain, bias, scale, shift)
        ctx.save_for_backward(x, gain, bias, mean, rstd, scale, shift)
        ctx.groups = groups
        return F.silu(y, inplace=True)

    @staticmethod
    def backward(ctx, grad):
        """The written-out gradient: sums at latent resolution where scale and shift are that small."""
        x, gain, bias, mean, rstd, scale, shift = ctx.saved_tensors
        w, count = x.shape[4], x[0].numel() // ctx.groups
        conditioned = scale is not None
        if not conditioned:  # one cell, the whole frame, with scale 1 and shift 0
            scale, shift = x.new_ones(*x.shape[:3], 1, 1), x.new_zeros(*x.shape[:3], 1, 1)
        cells = scale.shape[3]
        rstd, mean = (_per_channel(v, gain.numel()) for v in (rstd, mean))  # b c 1 1 1
        slope = rstd * gain.float()[:, None, None, None]
        offset = bias.float()[:, None, None, None] - mean * slope  # group_norm(x) = x * slope + offset
        xs, scale = _rows(x, cells), scale.float()
        before = torch.addcmul(_widen(scale * offset + shift, w, x), xs, _widen(scale * slope, w, x))
        grad = torch.ops.aten.silu_backward(_rows(grad, cells), before)
        # sums over each cell, then over all pixels
        grad_shift = _sum_cells(grad, scale.shape)
        cell_x = _sum_cells(grad * xs, scale.shape)
        total = (scale * grad_shift).sum((2, 3, 4), keepdim=True)
        along = rstd * ((scale * cell_x).sum((2, 3, 4), keepdim=True) - mean * total)  # with the normalised x
        # dx = slope * scale * grad - rstd * (mean_grad + normalised x * mean_along), means over the group
        mean_grad, mean_along = (_group_sum(v * gain.float()[:, None, None, None], ctx.groups) / count
                                 for v in (total, along))
        of_x = -rstd * rstd * mean_along
        grad_x = torch.addcmul(_widen(-rstd * mean_grad - of_x * mean, w, x), xs, _widen(of_x, w, x))
        grad_x = torch.addcmul(grad_x, grad, _widen(scale * slope, w, x), out=grad_x)
        grads = (_unrows(grad_x, x.shape), along.sum(0).flatten().to(gain.dtype), total.sum(0).flatten().to(bias.dtype))
        if not conditioned:
            return *grads, None, None, None, None
        return *grads, (slope * cell_x + offset * grad_shift).to(x.dtype), grad_shift.to(x.dtype), None, None


def _rows(x, cells):
    """`b c t h w` as `b t cell row (w c)`: one line of pixels is one contiguous row."""
    b, c, t, h, w = x.shape
    return x.permute(0, 2, 3, 4, 1).reshape(b, t, cells, h // cells, w * c)


def _unrows(x, shape):
    b, c, t, h, w = shape
    return x.reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3)


def _widen(x, width, like=None):
    """A latent-sized map `b c t lh lw`, repeated along the width only, as rows that broadcast against `_rows`."""
    x = (x if like is None else x.to(like.dtype)).permute(0, 2, 3, 4, 1)
    b, t, lh, lw, c = x.shape
    return x.unsqueeze(4).expand(b, t, lh, lw, width // lw, c).reshape(b, t, lh, 1, width * c)


def _sum_cells(rows, shape):
    """Sums of `_rows` over the pixels of each latent cell, `b c t lh lw`, in float32."""
    b, c, t, lh, lw = shape
    rows = rows.sum(3).view(b, t, lh, lw, -1, c).float().sum(4)
    return rows.permute(0, 4, 1, 2, 3)


def _per_channel(v, channels):
    """Per-group values `b g` for each channel: `b c 1 1 1`, in float32 at least."""
    return v.to(torch.promote_types(v.dtype, torch.float32)).repeat_interleave(channels // v.shape[1], 1)[:, :, None, None, None]


def _group_sum(v, groups):
    """Each channel's value replaced by the sum over its group, `b c 1 1 1`."""
    b, c = v.shape[:2]
    return v.view(b, groups, -1).sum(2, keepdim=True).expand(b, groups, c // groups).reshape(b, c, 1, 1, 1)
