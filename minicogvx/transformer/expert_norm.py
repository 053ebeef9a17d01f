"""Expert adaptive layer norm (paper 2.2): one layer norm for both modalities, a modulation for each.

A sequence is "b n d" with the text first: x = [text | video]. Modulations and gates are "b 1 d", one for each part.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.transformer.layout import Layout

Parts = Sequence[Float[Tensor, "_b _n d"]]  # what `layout.split` gives: text, video


class LayerNorm(nn.LayerNorm):
    """PyTorch's, with the gradients of weight and bias right in 16 bits on a CPU.

    There PyTorch sums them in 16 bits: wrong by 7 to 50 % over 7,000 rows. Applied apart from the norm, weight and bias
    have sums in float32.
    """

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        if x.device.type != "cpu" or x.element_size() != 2:
            return super().forward(x)
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:], eps=self.eps), self.weight).to(x.dtype)


def modulate(x: Float[Tensor, "b n d"], shift: Float[Tensor, "b m d"],
             scale: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
    """x (1 + scale) + shift. `m` is 1, or n for a shift and a scale of every token."""
    return torch.addcmul(shift, x, 1 + scale)


def add_gated(x: Float[Tensor, "b n d"], y: Float[Tensor, "b n d"], gates: Parts,
              layout: Layout) -> Float[Tensor, "b n d"]:
    """The residual x + gate y, with a gate for text and a gate for video."""
    return layout.join([torch.addcmul(*part) for part in zip(layout.split(x), layout.split(y), gates)])


class ExpertNorm(nn.Module):
    """LayerNorm, then the shift and scale that the time embedding chooses: one pair for text, one for video.

    It returns the modulated sequence and the gates (text, video) of the residual that follows. With
    `experts=False` text and video share one (shift, scale, gate).
    """

    def __init__(self, width: int, time_dim: int, eps: float, experts: bool = True):
        super().__init__()
        self.experts = experts
        self.linear = nn.Linear(time_dim, (6 if experts else 3) * width)
        self.norm = LayerNorm(width, eps)
        nn.init.zeros_(self.linear.weight)  # AdaLN-Zero: every gate starts at 0, so every block as the identity
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Float[Tensor, "b n d"], t_emb: Float[Tensor, "clips d_time"],
                layout: Layout) -> tuple[Float[Tensor, "b n d"], Parts]:
        """`t_emb` is the time embedding after its SiLU."""
        m = self.linear(t_emb)                                     # clips 6d: (shift, scale, gate) of video, of text
        video, text = m.chunk(2, dim=-1) if self.experts else (m, m)
        shifts, scales, gates = zip(*(part.chunk(3, dim=-1) for part in layout.for_parts(text, video)))
        parts = zip(self.normalised(x, layout), shifts, scales)    # of text, of video
        return layout.join([modulate(y, shift, scale) for y, shift, scale in parts]), gates

    def normalised(self, x: Float[Tensor, "b n d"], layout: Layout) -> Parts:
        """The layer norm of text and of video: the same weights, unlike the modulation."""
        return layout.split(self.norm(x))


class OutputNorm(nn.Module):
    """The last adaptive norm, of the video tokens alone: LayerNorm, then shift and scale from the time embedding."""

    def __init__(self, width: int, time_dim: int, eps: float):
        super().__init__()
        self.linear = nn.Linear(time_dim, 2 * width)
        self.norm = LayerNorm(width, eps)

    def forward(self, x: Float[Tensor, "b n d"], t_emb: Float[Tensor, "clips d_time"],
                layout: Layout) -> Float[Tensor, "b n d"]:
        """`x` holds the video tokens alone; `t_emb` is the time embedding after its SiLU."""
        shift, scale = layout.for_video(self.linear(t_emb)).chunk(2, dim=-1)
        return modulate(self.norm(x), shift, scale)
