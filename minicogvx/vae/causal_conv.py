"""The causal convolution in time and the cache that lets a long video pass through it piece by piece (paper 2.1)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from minicogvx.vae.ops import conv3d, norm_silu, pad_first, pad_front, recorded


class ConvCache:
    """What a video leaves behind when only a piece of it has been seen: the last frames before each convolution.

    `start` is true while the first piece passes. Pass the same cache to every piece, in order:

        cache = ConvCache()
        for piece in pieces:
            out = encoder(piece, cache)
            cache.start = False
    """

    norm_silu = staticmethod(norm_silu)  # statistics of this piece alone; `context_parallel.RankCache` has them of all

    def __init__(self):
        self.start = True
        self.past: dict[nn.Module, Tensor] = {}

    def before(self, conv: nn.Module, x: Tensor, first: Tensor | None) -> Tensor | None:
        """The frames that `conv` sees just before `x`; where the video begins, `first` (None: copies of frame 0)."""
        return self.past.get(conv, first)

    def after(self, conv: nn.Module, seen: Tensor) -> None:
        """Keeps the end of what `conv` has seen for the next piece."""
        self.past[conv] = seen[:, :, -conv.past_frames:].clone()


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` that computes in the dtype of what it is given; stride 1, no padding in time."""

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t2 h w"]:
        return conv3d(x, self.weight, self.bias, self.padding[1])


class CausalConv3d(nn.Module):
    """A 3D convolution whose output at frame t sees frames up to t and none after (paper 2.1, figure 3).

    Time is padded at the front only, with copies of the first frame (or zeros); space with zeros. One image is
    a video of one frame: it is seen `kernel` times. Stride is 1: resampling is separate, see `blocks.py`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, time_padding: str = "first"):
        super().__init__()
        around = (kernel - 1) // 2
        self.conv = Conv3d(in_channels, out_channels, kernel, padding=(0, around, around))
        self.past_frames = kernel - 1
        self.time_padding = time_padding

    def forward(self, x: Float[Tensor, "b c t h w"], cache: ConvCache | None = None) -> Float[Tensor, "b o t h w"]:
        if self.past_frames:
            x = self._behind_its_past(x, cache)
            if cache is not None:
                cache.after(self, x)
        return self.conv(x)

    def _behind_its_past(self, x, cache):
        past = None  # copies of the first frame
        if self.time_padding == "zeros":
            past = torch.zeros_like(x[:, :, :1]).repeat(1, 1, self.past_frames, 1, 1)
        if cache is not None:
            past = cache.before(self, x, past)
        return pad_first(x, self.past_frames, unwatched(self)) if past is None else pad_front(x, past)


def add(x: Float[Tensor, "b c t h w"], h: Float[Tensor, "b c t h w"], conv: nn.Module) -> Float[Tensor, "b c t h w"]:
    """`x + h`, where `h` comes from `conv`; in the memory of `h` if no gradient needs it and nobody has seen it."""
    return h + x if recorded(x, h) or torch.compiler.is_compiling() or not unwatched(conv) else h.add_(x)


def unwatched(conv: nn.Module) -> bool:
    """Whether nobody sees what goes in and out of a causal convolution: no hook, no other layer in its place."""
    if type(conv) is not CausalConv3d or type(conv.conv) is not Conv3d or _has_any_global_hook():
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not any("forward" in vars(module) or any(getattr(module, name) for name in hooks)
                   for module in (conv, conv.conv))
