"""3D full attention over one sequence of text and video tokens (paper 2.2)."""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.transformer import cpu_attention
from minicogvx.transformer.expert_norm import LayerNorm
from minicogvx.transformer.layout import Layout
from minicogvx.transformer.positions import rotate


class Attention(nn.Module):
    """Multi-head attention with a layer norm on queries and keys, before the rotation. Every token sees every token."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.norm_q = LayerNorm(width // heads, eps=1e-6)  # shared by the heads
        self.norm_k = LayerNorm(width // heads, eps=1e-6)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Float[Tensor, "b n d"], layout: Layout) -> Float[Tensor, "b n d"]:
        """`x` is text, then video; `layout` has the rotary table and says which tokens are of one clip."""
        q, k, v = self.project(x)                                    # b heads n d_head each
        if layout.rope is not None:
            q, k = rotate(q, layout.rope), rotate(k, layout.rope)    # by the places of their tokens
        out = layout.within_clips(attention, q, k, v)                # b heads n d_head
        return self.to_out[0](rearrange(out, "b heads n d_head -> b n (heads d_head)"))

    def project(self, x: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b heads n d_head"], ...]:
        """Queries, keys and values; queries and keys normalised."""
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for linear in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v


def attention(q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"],
              v: Float[Tensor, "b heads m d"]) -> Float[Tensor, "b heads n d"]:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1): PyTorch's fused kernel, or in 16 bits on a CPU ours."""
    q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast the norms of q and k give float32
    if cpu_attention.is_quicker(v):
        return cpu_attention.attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)
