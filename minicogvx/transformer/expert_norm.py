"""Expert adaptive layer norm (paper 2.2): one layer norm for both modalities, a modulation for each.

A sequence is "b n d" with the text first: x = [text | video]. Modulations and gates are "b 1 d".
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def by_modality(x: Float[Tensor, "b n d"], num_text: int) -> tuple[
        Float[Tensor, "b n_text d"], Float[Tensor, "b n_video d"]]:
    """The two slices of a sequence, as views: text and video."""
    text, video = x.split([num_text, x.shape[1] - num_text], dim=1)
    return text, video


class LayerNorm(nn.LayerNorm):
    """PyTorch's, with the gradients of weight and bias right in 16 bits on a CPU.

    There PyTorch sums them in 16 bits: wrong by 7 to 50 % over 7,000 rows. Applied apart from the norm, weight and bias
    have sums in float32.
    """

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        if x.device.type != "cpu" or x.element_size() != 2:
            return super().forward(x)
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:], eps=self.eps), self.weight).to(x.dtype)


def modulate(x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"],
             scale: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b n d"]:
    """x (1 + scale) + shift."""
    return torch.addcmul(shift, x, 1 + scale)


def add_gated(x: Float[Tensor, "b n d"], y: Float[Tensor, "b n d"], text_gate: Float[Tensor, "b 1 d"],
              video_gate: Float[Tensor, "b 1 d"], num_text: int) -> Float[Tensor, "b n d"]:
    """The residual x + gate y, with a gate for each modality."""
    x_text, x_video = by_modality(x, num_text)
    y_text, y_video = by_modality(y, num_text)
    return torch.cat([torch.addcmul(x_text, y_text, text_gate), torch.addcmul(x_video, y_video, video_gate)], dim=1)


class ExpertNorm(nn.Module):
    """LayerNorm, then the shift and scale that the time embedding chooses: one pair for video, one for text.

    It returns the modulated sequence and the gates (text, video) of the residual that follows. With
    `experts=False` text and video share one (shift, scale, gate). With `own_text_norm=True` the text has
    layer norm weights of its own, too (MMDiT); the published models share them.
    """

    def __init__(self, width: int, time_dim: int, eps: float, experts: bool = True, own_text_norm: bool = False):
        super().__init__()
        self.linear = nn.Linear(time_dim, (6 if experts else 3) * width)
        self.norm = LayerNorm(width, eps)
        self.text_norm = LayerNorm(width, eps) if own_text_norm else None
        nn.init.zeros_(self.linear.weight)  # AdaLN-Zero: every gate starts at 0, so every block as the identity
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Float[Tensor, "b n d"], num_text: int, time: Float[Tensor, "b d_time"]) -> tuple[
            Float[Tensor, "b n d"], Float[Tensor, "b 1 d"], Float[Tensor, "b 1 d"]]:
        """`time` is the time embedding after its SiLU."""
        modulation = self.linear(time)[:, None].split(x.shape[-1], dim=-1)  # 6 (or 3) times b 1 d
        shift, scale, gate = modulation[:3]
        text_shift, text_scale, text_gate = modulation[-3:]
        if self.text_norm is None:
            text, video = by_modality(self.norm(x), num_text)
        else:
            text, video = by_modality(x, num_text)
            text, video = self.text_norm(text), self.norm(video)
        y = torch.cat([modulate(text, text_shift, text_scale), modulate(video, shift, scale)], dim=1)
        return y, text_gate, gate


class OutputNorm(nn.Module):
    """The last adaptive norm, of the video tokens alone: LayerNorm, then shift and scale from the time embedding."""

    def __init__(self, width: int, time_dim: int, eps: float):
        super().__init__()
        self.linear = nn.Linear(time_dim, 2 * width)
        self.norm = LayerNorm(width, eps)

    def forward(self, x: Float[Tensor, "b n d"], time: Float[Tensor, "b d_time"]) -> Float[Tensor, "b n d"]:
        shift, scale = self.linear(time)[:, None].chunk(2, dim=-1)
        return modulate(self.norm(x), shift, scale)
