"""Departures from the published block, for ablations (paper 4.1): 2D+1D attention, MMDiT's own weights for text, and
the value residual.

2D+1D (attention="factorised"): tokens first attend within their latent frame, then along time. MMDiT
(modulation="separate", Esser et al. 2024): text and video meet only in the attention. Value residual
(value_residual=True, ResFormer, arXiv 2410.17897): what the first block reads from a token, later blocks read as well.
"""

from dataclasses import replace
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.presets import TransformerConfig
from minicogvx.transformer.attention import Attention, attention
from minicogvx.transformer.block import Block, FeedForward
from minicogvx.transformer.expert_norm import ExpertNorm, LayerNorm, Parts, add_gated
from minicogvx.transformer.layout import DenseLayout, Layout
from minicogvx.transformer.positions import rotate


class VariantBlock(nn.Module):
    """`Block` with one departure, or both. They add weights beside the published ones.

    2D+1D adds `norm_time` and `attn_time`; MMDiT adds `text_norm` in both norms, `attn1.text` and `ff_text`.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        d, heads, d_time, eps = config.width, config.num_attention_heads, config.time_embed_dim, config.norm_eps
        factorised, mmdit = config.attention == "factorised", config.modulation == "separate"
        experts = config.modulation != "shared"
        self.norm1 = MMDiTNorm(d, d_time, eps) if mmdit else ExpertNorm(d, d_time, eps, experts)
        self.attn1 = VariantAttention(d, heads, "spatial" if factorised else "full", mmdit)
        self.norm_time = ExpertNorm(d, d_time, eps, experts=False) if factorised else None
        self.attn_time = VariantAttention(d, heads, "temporal") if factorised else None
        self.norm2 = MMDiTNorm(d, d_time, eps) if mmdit else ExpertNorm(d, d_time, eps, experts)
        self.ff = FeedForward(d)
        self.ff_text = FeedForward(d) if mmdit else None

    def forward(self, x: Float[Tensor, "b n d"], t_emb: Float[Tensor, "b d_time"],
                layout: DenseLayout) -> Float[Tensor, "b n d"]:
        """As in `Block`."""
        y, gates = self.norm1(x, t_emb, layout)                 # b n d; a gate for text, a gate for video
        x = add_gated(x, self.attn1(y, layout), gates, layout)  # b n d
        if self.attn_time is not None:
            x = self.attend_over_time(x, t_emb, layout)         # b n d
        y, gates = self.norm2(x, t_emb, layout)                 # b n d; a gate for text, a gate for video
        if self.ff_text is None:
            y = self.ff(y)                                      # b n d
        else:
            text, video = layout.split(y)
            y = layout.join([self.ff_text(text), self.ff(video)])
        return add_gated(x, y, gates, layout)                   # b n d

    def attend_over_time(self, x: Float[Tensor, "b n d"], t_emb: Float[Tensor, "b d_time"],
                         layout: DenseLayout) -> Float[Tensor, "b n d"]:
        """The 1D half of 2D+1D, for the video tokens, with a norm and a gate of its own."""
        text, video = layout.split(x)
        # At one place rows and columns are equal, so of the 3D rotation only the time part acts.
        rope = None if layout.rope is None else layout.rope[layout.num_text:]
        alone = replace(layout, num_text=0, rope=rope)
        y, (_, gate) = self.norm_time(video, t_emb, alone)
        return layout.join([text, torch.addcmul(video, self.attn_time(y, alone), gate)])


class ValueResidualBlock(Block):
    """`Block` whose values are v' = (1 - share) v + share v_first, v_first being those of the first block.

    It adds `attn1.first_share` to the published weights of every block but the first. Blocks hand v_first on: they
    return a pair of the sequence and of v_first, the last one the sequence alone.
    """

    def __init__(self, config: TransformerConfig, number: int):
        super().__init__(config)
        self.is_first, self.is_last = number == 0, number == config.num_layers - 1
        self.attn1 = ValueResidualAttention(config.width, config.num_attention_heads, mixes=not self.is_first)

    def forward(self, x: Float[Tensor, "b n d"] | tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]],
                t_emb: Float[Tensor, "clips d_time"],
                layout: Layout) -> Float[Tensor, "b n d"] | tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """As in `Block`, with the pairs said above."""
        x, v_first = (x, None) if self.is_first else x
        y, gates = self.norm1(x, t_emb, layout)                 # b n d; a gate for text, a gate for video
        y, v_first = self.attn1(y, layout, v_first)             # b n d, twice
        x = add_gated(x, y, gates, layout)                      # b n d
        y, gates = self.norm2(x, t_emb, layout)                 # b n d; a gate for text, a gate for video
        x = add_gated(x, self.ff(y), gates, layout)             # b n d
        return x if self.is_last else (x, v_first)


class ValueResidualAttention(Attention):
    """`Attention` that also takes and gives the values of the first block, with all heads side by side."""

    def __init__(self, width: int, heads: int, mixes: bool):
        super().__init__(width, heads)
        # It begins with a half, as in ResFormer. It has an axis, because FSDP2 takes no scalars.
        self.first_share = nn.Parameter(torch.full((1,), 0.5)) if mixes else None

    def forward(self, x: Float[Tensor, "b n d"], layout: Layout,
                v_first: Float[Tensor, "b n d"] | None) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """As in `Attention`. `v_first` None: this is the first block."""
        q, k, v = self.project(x)                               # b heads n d_head each
        if v_first is None:
            v_first = rearrange(v, "b heads n d_head -> b n (heads d_head)")
        else:
            first = v_first.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            v = torch.lerp(v, first, self.first_share.to(v))    # b heads n d_head
        if layout.rope is not None:
            q, k = rotate(q, layout.rope), rotate(k, layout.rope)
        out = layout.within_clips(attention, q, k, v)           # b heads n d_head
        return self.to_out[0](rearrange(out, "b heads n d_head -> b n (heads d_head)")), v_first


class MMDiTNorm(ExpertNorm):
    """`ExpertNorm` whose layer norm has weights of its own for the text, too."""

    def __init__(self, width: int, time_dim: int, eps: float):
        super().__init__(width, time_dim, eps)
        self.text_norm = LayerNorm(width, eps)

    def normalised(self, x: Float[Tensor, "b n d"], layout: DenseLayout) -> Parts:
        """The layer norm of text and of video."""
        text, video = layout.split(x)
        return self.text_norm(text), self.norm(video)


class VariantAttention(Attention):
    """`pattern` selects which tokens attend to which; with `own_text_weights` the text has its own projections.

    "full": all to all (published). "spatial": a video token to the text and its own latent frame, a text token to all.
    "temporal": a video token to its own place in every frame; there the sequence has no text.
    """

    def __init__(self, width: int, heads: int, pattern: Literal["full", "spatial", "temporal"],
                 own_text_weights: bool = False):
        super().__init__(width, heads)
        self.pattern = pattern
        self.text = Attention(width, heads) if own_text_weights else None  # of it, the layers; it is not called

    def forward(self, x: Float[Tensor, "b n d"], layout: DenseLayout) -> Float[Tensor, "b n d"]:
        """As in `Attention`."""
        if self.text is None:
            q, k, v = self.project(x)                           # b heads n d_head each
        else:
            text, video = layout.split(x)
            q, k, v = (torch.cat(pair, dim=2) for pair in zip(self.text.project(text), self.project(video)))
        if layout.rope is not None:
            q, k = rotate(q, layout.rope), rotate(k, layout.rope)
        if self.pattern == "full":
            out = attention(q, k, v)
        elif self.pattern == "spatial":
            out = spatial_attention(q, k, v, layout.num_text, layout.grid[0])
        else:
            out = temporal_attention(q, k, v, layout.grid[0])
        out = rearrange(out, "b heads n d_head -> b n (heads d_head)")
        if self.text is None:
            return self.to_out[0](out)
        text, video = layout.split(out)
        return layout.join([self.text.to_out[0](text), self.to_out[0](video)])


def spatial_attention(q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"],
                      num_text: int, frames: int) -> Float[Tensor, "b heads n d"]:
    """The 2D half of 2D+1D: each frame is a short sequence of its own, with the text in front; text sees everything."""
    def by_frame(x):
        return rearrange(x[:, :, num_text:], "b heads (frames s) d -> (b frames) heads s d", frames=frames)

    def after_text(x):
        text = repeat(x[:, :, :num_text], "b heads n d -> (b frames) heads n d", frames=frames)
        return torch.cat([text, by_frame(x)], dim=2)

    video = attention(by_frame(q), after_text(k), after_text(v))
    video = rearrange(video, "(b frames) heads s d -> b heads (frames s) d", frames=frames)
    return torch.cat([attention(q[:, :, :num_text], k, v), video], dim=2)


def temporal_attention(q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads n d"],
                       v: Float[Tensor, "b heads n d"], frames: int) -> Float[Tensor, "b heads n d"]:
    """The 1D half of 2D+1D: each place in the frame is a sequence of `frames` tokens."""
    b = q.shape[0]
    q, k, v = (rearrange(x, "b heads (frames s) d -> (b s) heads frames d", frames=frames) for x in (q, k, v))
    return rearrange(attention(q, k, v), "(b s) heads frames d -> b heads (frames s) d", b=b)
