"""Group norm, modulation and SiLU in one operation, forward and backward: the kernel of `fast.norm_silu`.

The formula is in `layers.NormSiLU`. This is the same in fewer passes over memory, and more exact on a CPU.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

IN_CACHE = 2**17  # numbers that pass through several operations while they are in a core's cache


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
    """(slope, offset, mean, rstd), the last two `b g`: `group_norm(x) = x * slope + offset`, both `b c 1 1 1`."""
    mean, variance = group_statistics(x, groups)
    rstd = (variance + eps).rsqrt()
    slope = _per_channel(rstd, len(gain)) * gain[:, None, None, None]
    return slope, bias[:, None, None, None] - _per_channel(mean, len(gain)) * slope, mean, rstd


def _group_norm(x, groups, eps, gain, bias):
    """Group norm, mean and 1/std; frames lie under each other as one tall picture: PyTorch's kernel is quick there."""
    b, c, t, h, w = x.shape
    tall = x.permute(0, 2, 3, 4, 1).reshape(b, t * h, w, c).permute(0, 3, 1, 2)
    normed, mean, rstd = torch.native_group_norm(tall, gain, bias, b, c, t * h * w, groups, eps)
    return _from_rows(normed.permute(0, 2, 3, 1), x.shape), mean, rstd


def norm_silu_into(buffer: Float[Tensor, "b c p h w"], x: Float[Tensor, "b c t h w"], groups: int, eps: float,
                   gain: Float[Tensor, " c"], bias: Float[Tensor, " c"], scale: Float[Tensor, "b c t lh lw"] | None,
                   shift: Float[Tensor, "b c t lh lw"] | None) -> tuple[Float[Tensor, "b g"], Float[Tensor, "b g"]]:
    """The formula, written into the last frames of `buffer`; copies of the first stand before. Mean and 1/std."""
    free = buffer.shape[2] - x.shape[2]
    out = buffer[:, :, free:]
    if _needs_exact_sums(x):
        slope, offset, mean, rstd = _affine(x, groups, eps, gain, bias)
        if scale is not None:  # one pass over the pixels, not two
            slope, offset = scale * slope, torch.addcmul(shift, scale, offset)
        _affine_silu(out, x, slope, offset)
    else:
        normed, mean, rstd = _group_norm(x, groups, eps, gain, bias)
        if scale is None:
            torch.ops.aten.silu.out(normed, out=out)
        else:
            _affine_silu(out, normed, scale, shift)
    buffer[:, :, :free] = out[:, :, :1]
    return mean, rstd


def _affine_silu(out, x, slope, offset):
    """out = silu(x * up(slope) + up(offset)); on a CPU a few frames at a time, which stay in the cache for the SiLU."""
    _, c, t, h, w = x.shape
    cells, at_once = slope.shape[3], max(1, IN_CACHE // (c * h * w)) if x.device.type == "cpu" else t
    slope, offset = (_repeat_width(v.expand(-1, c, t, *v.shape[3:]), w) for v in (slope, offset))
    for b in range(len(x)):  # each clip is one contiguous block of `out`
        rows, pixels = _pixel_rows(out[b:b + 1], cells), _pixel_rows(x[b:b + 1], cells)
        clip = rows, pixels, slope[b:b + 1], offset[b:b + 1]
        for to, one, factor, summand in zip(*(v.split(at_once, 1) for v in clip)):
            torch.addcmul(summand, one, factor, out=to)
            F.silu(to, inplace=True)


def empty_buffer(x: Float[Tensor, "b c t h w"], free: int) -> Float[Tensor, "b c p h w"]:
    """Room for a tensor like `x` and `free` frames before it, stored channels last."""
    b, c, t, h, w = x.shape
    return torch.empty(b, c, free + t, h, w, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)


class FusedNormSiLU(torch.autograd.Function):
    """silu(group_norm(x) * up(scale) + up(shift)), behind `free` copies of its first frame; its backward written out.

    Sums over pixels go by way of sums over latent cells. A gradient that is itself to be differentiated
    (`create_graph=True`) is made from the formula instead.
    """

    @staticmethod
    def forward(ctx, x, gain, bias, scale, shift, groups, eps, free):
        """Keeps the input and the group statistics, not the activations in between."""
        buffer = empty_buffer(x, free)
        mean, rstd = norm_silu_into(buffer, x, groups, eps, gain, bias, scale, shift)
        ctx.save_for_backward(x, gain, bias, mean, rstd, scale, shift)
        ctx.groups, ctx.eps, ctx.free = groups, eps, free
        return buffer

    @staticmethod
    def backward(ctx, grad):
        """The written-out gradient: sums at latent resolution where scale and shift are that small."""
        x, gain, bias, mean, rstd, scale, shift = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = x, gain, bias, scale, shift
            return *_gradients_of_formula(inputs, ctx.groups, ctx.eps, ctx.free, grad), None, None, None
        w, count = x.shape[4], x[0].numel() // ctx.groups
        conditioned = scale is not None
        if not conditioned:  # one cell, the whole frame, with scale 1 and shift 0
            scale, shift = x.new_ones(*x.shape[:3], 1, 1), x.new_zeros(*x.shape[:3], 1, 1)
        cells = scale.shape[3]
        rstd, mean = (_per_channel(v, gain.numel()) for v in (rstd, mean))  # b c 1 1 1
        slope = rstd * gain.float()[:, None, None, None]
        offset = bias.float()[:, None, None, None] - mean * slope  # group_norm(x) = x * slope + offset
        xs, scale = _pixel_rows(x, cells), scale.float()
        before = torch.addcmul(_repeat_width(scale * offset + shift, w, x), xs, _repeat_width(scale * slope, w, x))
        of_copies, grad = grad[:, :, :ctx.free].sum(2, keepdim=True), grad[:, :, ctx.free:]
        grad = torch.ops.aten.silu_backward(_pixel_rows(grad, cells), before)
        if ctx.free:
            grad[:, :1] += torch.ops.aten.silu_backward(_pixel_rows(of_copies, cells), before[:, :1])
        # sums over each cell, then over all pixels
        grad_shift = _cell_sums(grad, scale.shape)
        cell_x = _cell_sums(grad * xs, scale.shape)
        total = (scale * grad_shift).sum((2, 3, 4), keepdim=True)
        along = rstd * ((scale * cell_x).sum((2, 3, 4), keepdim=True) - mean * total)  # with the normalised x
        # dx = slope * scale * grad - rstd * (mean_grad + normalised x * mean_along), means over the group
        mean_grad, mean_along = (_group_sum(v * gain.float()[:, None, None, None], ctx.groups) / count
                                 for v in (total, along))
        of_x = -rstd * rstd * mean_along
        grad_x = torch.addcmul(_repeat_width(-rstd * mean_grad - of_x * mean, w, x), xs, _repeat_width(of_x, w, x))
        grad_x = torch.addcmul(grad_x, grad, _repeat_width(scale * slope, w, x), out=grad_x)
        grads = [_from_rows(grad_x, x.shape), along.sum(0).flatten().to(gain.dtype),
                 total.sum(0).flatten().to(bias.dtype)]
        if not conditioned:
            return *grads, None, None, None, None, None
        return *grads, (slope * cell_x + offset * grad_shift).to(x.dtype), grad_shift.to(x.dtype), None, None, None


def _gradients_of_formula(inputs, groups, eps, free, grad):
    """Gradients of the plain formula, which can be differentiated again; None for what needs none."""
    x, gain, bias, scale, shift = inputs
    y = F.group_norm(x, groups, gain, bias, eps)
    if scale is not None:
        y = y * F.interpolate(scale, x.shape[2:]) + F.interpolate(shift, x.shape[2:])
    y = F.silu(y)
    y = torch.cat([y[:, :, :1]] * free + [y], dim=2)
    wanted = [v for v in inputs if v is not None and v.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if v is not None and v.requires_grad else None for v in inputs]


def _pixel_rows(x, cells):
    """`b c t h w` as `b t cell row (w c)`: one line of pixels is one contiguous row."""
    b, c, t, h, w = x.shape
    return x.permute(0, 2, 3, 4, 1).reshape(b, t, cells, h // cells, w * c)


def _from_rows(x, shape):
    b, c, t, h, w = shape
    return x.reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3)


def _repeat_width(x, width, like=None):
    """A latent-sized map `b c t lh lw`, repeated along the width only, as rows that broadcast against `_pixel_rows`."""
    x = (x if like is None else x.to(like.dtype)).permute(0, 2, 3, 4, 1)
    b, t, lh, lw, c = x.shape
    return x.unsqueeze(4).expand(b, t, lh, lw, width // lw, c).reshape(b, t, lh, 1, width * c)


def _cell_sums(rows, shape):
    """Sums of `_pixel_rows` over the pixels of each latent cell, `b c t lh lw`, in float32."""
    b, c, t, lh, lw = shape
    rows = rows.sum(3).view(b, t, lh, lw, -1, c).float().sum(4)
    return rows.permute(0, 4, 1, 2, 3)


def _per_channel(v, channels):
    """Per-group values `b g` for each channel: `b c 1 1 1`, in float32 at least."""
    v = v.to(torch.promote_types(v.dtype, torch.float32))
    return v.repeat_interleave(channels // v.shape[1], 1)[:, :, None, None, None]


def _group_sum(v, groups):
    """Each channel's value replaced by the sum over its group, `b c 1 1 1`."""
    b, c = v.shape[:2]
    return v.view(b, groups, -1).sum(2, keepdim=True).expand(b, groups, c // groups).reshape(b, c, 1, 1, 1)
