"""The causal convolution in time and the cache that lets a long video pass through it piece by piece (paper 2.1)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.vae import fast
from minicogvx.vae.layers import Conv3d


class ConvCache:
    """For a video that passes piece by piece: the last frames that each convolution has seen of it.

    `start` is true during the first piece. Use one cache for all pieces, in order:

        cache = ConvCache()
        for piece in pieces:
            out = encoder(piece, cache)
            cache.start = False
    """

    def __init__(self):
        self.start = True
        self.past: dict[nn.Module, Tensor] = {}

    def pad(self, conv: "CausalConv3d", x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c p h w"]:
        """The last frames that `conv` saw of the piece before, then `x`; keeps the end of `x` for the next piece."""
        x = conv.pad(x, self.past.get(conv))
        self.past[conv] = x[:, :, -conv.past_frames:].clone()
        return x


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
            x = self.pad(x) if cache is None else cache.pad(self, x)    # b c t+past h w
        return self.conv(x)                                             # b o t h w

    def pad(self, x: Float[Tensor, "b c t h w"],
            past: Float[Tensor, "b c k h w"] | None = None) -> Float[Tensor, "b c p h w"]:
        """`past`, then `x`, along time. Without `past` the video begins: its first frame is repeated (or zeros)."""
        if past is None and self.time_padding == "zeros":
            past = torch.zeros_like(x[:, :, :1]).expand(-1, -1, self.past_frames, -1, -1)
        if fast.on():
            return fast.pad_time(x, self.past_frames, past)
        first = x[:, :, :1].expand(-1, -1, self.past_frames, -1, -1)
        return torch.cat([first if past is None else past, x], dim=2)
