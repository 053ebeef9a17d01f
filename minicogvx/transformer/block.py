"""A block of the expert transformer, the published one (paper 2.2, Figure 3). `variants.py` has the departures."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.presets import TransformerConfig
from minicogvx.transformer.attention import Attention
from minicogvx.transformer.expert_norm import ExpertNorm, add_gated
from minicogvx.transformer.layout import Layout


class Block(nn.Module):
    """Expert norm, attention, gated residual; expert norm, feed-forward, gated residual."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        d, d_time, experts = config.width, config.time_embed_dim, config.modulation != "shared"
        self.norm1 = ExpertNorm(d, d_time, config.norm_eps, experts)
        self.attn1 = Attention(d, config.num_attention_heads)
        self.norm2 = ExpertNorm(d, d_time, config.norm_eps, experts)
        self.ff = FeedForward(d)

    def forward(self, x: Float[Tensor, "b n d"], t_emb: Float[Tensor, "clips d_time"],
                layout: Layout) -> Float[Tensor, "b n d"]:
        """`x` is text, then video; `t_emb` is the time embedding after its SiLU."""
        y, gates = self.norm1(x, t_emb, layout)                 # b n d; a gate for text, a gate for video
        y = self.attn1(y, layout)                               # b n d
        x = add_gated(x, y, gates, layout)                      # b n d: x + gate y
        y, gates = self.norm2(x, t_emb, layout)                 # b n d; a gate for text, a gate for video
        y = self.ff(y)                                          # b n d
        return add_gated(x, y, gates, layout)                   # b n d: x + gate y


class FeedForward(nn.Module):
    """d -> 4d -> d with the tanh approximation of GELU (the exact one drifts from the published weights)."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([GELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.net[2](self.net[0](x))


class GELU(nn.Module):
    """A linear layer and its activation; a module of its own only because of the published name `net.0.proj`."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Linear(in_dim, out_dim)

    def forward(self, x: Float[Tensor, "b n d_in"]) -> Float[Tensor, "b n d_out"]:
        return F.gelu(self.proj(x), approximate="tanh")
