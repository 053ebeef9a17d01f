"""Attention over one sequence of text and video tokens (paper 2.2), in full or factorised into space and time."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Complex, Float
from torch import Tensor, nn

from minicogvx.transformer.expert_norm import LayerNorm, by_modality
from minicogvx.transformer.positions import rotate


class Attention(nn.Module):
    """Multi-head attention with a layer norm on queries and keys (before the rotation) and no mask.

    `over` says who sees whom. "all": every token sees every token (published). "frame": a video token sees the text and
    its own latent frame; a text token sees everything. "time": a video token sees its own place in every frame;
    there the sequence has no text. With `own_text_weights=True` the text has projections and norms of its own (MMDiT).
    """

    def __init__(self, width: int, heads: int, over: Literal["all", "frame", "time"] = "all",
                 own_text_weights: bool = False):
        super().__init__()
        self.heads, self.over = heads, over
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.norm_q = LayerNorm(width // heads, eps=1e-6)  # shared by the heads
        self.norm_k = LayerNorm(width // heads, eps=1e-6)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.text = Attention(width, heads) if own_text_weights else None  # only its weights are used

    def forward(self, x: Float[Tensor, "b n d"], num_text: int, frames: int,
                rope: Complex[Tensor, "n half_dim"] | None) -> Float[Tensor, "b n d"]:
        """`x` is text, then video; `frames` counts latent frames; `rope` None leaves out the rotation."""
        if self.text is None:
            q, k, v = self.project(x)                                 # each b heads n d_head
        else:
            text, video = by_modality(x, num_text)
            q, k, v = (torch.cat(pair, dim=2) for pair in zip(self.text.project(text), self.project(video)))
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        if self.over == "all":
            out = attend(q, k, v)
        elif self.over == "frame":
            out = attend_within_frames(q, k, v, num_text, frames)
        else:
            out = attend_along_time(q, k, v, frames)
        out = rearrange(out, "b heads n d_head -> b n (heads d_head)")
        if self.text is None:
            return self.to_out[0](out)
        text, video = by_modality(out, num_text)
        return torch.cat([self.text.to_out[0](text), self.to_out[0](video)], dim=1)

    def project(self, x: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b heads n d_head"], ...]:
        """Queries, keys and values; queries and keys normalised."""
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for project in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v


def attend_within_frames(q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads n d"],
                         v: Float[Tensor, "b heads n d"], num_text: int, frames: int) -> Float[Tensor, "b heads n d"]:
    """The 2D part of 2D+1D attention: each frame is a short sequence of its own, led by the text."""
    def by_frame(x):
        return rearrange(x[:, :, num_text:], "b heads (frames s) d -> (b frames) heads s d", frames=frames)

    def led_by_text(x):
        text = repeat(x[:, :, :num_text], "b heads n d -> (b frames) heads n d", frames=frames)
        return torch.cat([text, by_frame(x)], dim=2)

    video = attend(by_frame(q), led_by_text(k), led_by_text(v))
    video = rearrange(video, "(b frames) heads s d -> b heads (frames s) d", frames=frames)
    return torch.cat([attend(q[:, :, :num_text], k, v), video], dim=2)


def attend_along_time(q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"],
                      frames: int) -> Float[Tensor, "b heads n d"]:
    """The 1D part of 2D+1D attention: each place in the frame is a sequence of `frames` tokens."""
    b = q.shape[0]
    q, k, v = (rearrange(x, "b heads (frames s) d -> (b s) heads frames d", frames=frames) for x in (q, k, v))
    return rearrange(attend(q, k, v), "(b s) heads frames d -> b heads (frames s) d", b=b)


# Which program computes softmax(q k^T / sqrt(d)) v: the same mathematics, chosen for speed.

BLOCK_SCORES = 2**20  # elements of the score matrix at a time: in 16 bits they stay in a core's cache
KEPT_SCORES = 2**23  # elements that may be kept for the backward pass of one attention: 16 MiB in 16 bits


def attend(q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"],
           v: Float[Tensor, "b heads m d"]) -> Float[Tensor, "b heads n d"]:
    """softmax(q k^T / sqrt(d)) v.

    PyTorch's fused kernel, except in 16 bits on a CPU, where writing it out is 1.5 to 5 times faster.
    """
    q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast the norms of q and k give float32
    if v.device.type != "cpu" or v.element_size() != 2:
        return F.scaled_dot_product_attention(q, k, v)
    shape, (q, k, v) = q.shape, (x.flatten(0, 1) for x in (q, k, v))
    scores = q.shape[0] * q.shape[1] * k.shape[1]
    if scores <= (KEPT_SCORES if torch.is_grad_enabled() else BLOCK_SCORES):
        return written_out(q, k, v).view(shape)
    return BlockedAttention.apply(q, k, v).view(shape)


def written_out(q: Float[Tensor, "b n d"], k: Float[Tensor, "b m d"],
                v: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
    """softmax(q k^T / sqrt(d)) v, as it reads."""
    return torch.bmm(probabilities(q, k), v)


def probabilities(q: Float[Tensor, "b n d"], k: Float[Tensor, "b m d"]) -> Float[Tensor, "b n m"]:
    """softmax(q k^T / sqrt(d)); the division happens inside the matrix product."""
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    return scores.softmax(dim=-1)


class BlockedAttention(torch.autograd.Function):
    """`written_out` for a few heads or a few queries at a time: memory grows with n + m, not with n x m.

    The backward pass computes each block of probabilities again instead of keeping them.
    """

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        out = torch.empty_like(q)
        for heads, rows in blocks(q.shape[0], q.shape[1], k.shape[1]):
            out[heads, rows] = written_out(q[heads, rows], k[heads], v[heads])
        return out

    @staticmethod
    def backward(ctx, grad_out):
        """Gradients of q, k and v, block by block."""
        q, k, v = ctx.saved_tensors
        grad_q, scale = torch.empty_like(q), q.shape[-1] ** -0.5
        grad_k, grad_v = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for heads, rows in blocks(q.shape[0], q.shape[1], k.shape[1]):
            p, g = probabilities(q[heads, rows], k[heads]), grad_out[heads, rows]
            grad_p = torch.bmm(g, v[heads].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[heads, rows] = torch.bmm(grad_scores, k[heads]) * scale
            grad_k[heads] += torch.bmm(grad_scores.transpose(1, 2), q[heads, rows]) * scale
            grad_v[heads] += torch.bmm(p.transpose(1, 2), g)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def blocks(heads: int, queries: int, keys: int) -> list[tuple[slice, slice]]:
    """Slices of heads and of queries, each with at most about BLOCK_SCORES scores."""
    some_heads = max(1, BLOCK_SCORES // (queries * keys))
    some_rows = min(queries, max(1, BLOCK_SCORES // keys))
    return [(slice(i, i + some_heads), slice(j, j + some_rows))
            for i in range(0, heads, some_heads) for j in range(0, queries, some_rows)]
