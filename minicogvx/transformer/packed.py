"""The expert transformer on a packed sequence: many clips, each of its own size, text, time and positions (paper 3.1).

A pack is `n d`: clip after clip, each as [text | video]. Clips of equal length lie side by side, so a pack is also a
few ordinary batches `b n d` laid end to end. The linear layers, nearly all of the work, do not care which clip a token
is from and see the whole pack at once; norms, modulations and gates run batch by batch, through the model's own
modules, and so need nothing larger than one vector a clip. Attention stays within each clip. The weights are the
model's, and the result is that of running each clip alone. The published layout and masks are not known; this is ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Complex, Float, Int, Num
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minicogvx.presets import TransformerConfig
from minicogvx.transformer.attention import Attention, attend
from minicogvx.transformer.expert_norm import add_gated
from minicogvx.transformer.model import Block, ExpertTransformer, check_inputs
from minicogvx.transformer.patchify import unpatchify
from minicogvx.transformer.positions import rotate

Batches = list[Float[Tensor, "_b _n d"]]  # the parts of a pack, one for each `Batch` of its layout


@dataclass(frozen=True)
class Batch:
    """Clips with equally many text and equally many video tokens, side by side in the pack."""

    clips: tuple[int, ...]  # their places in the caller's lists
    num_text: int
    num_video: int

    @property
    def tokens(self) -> int:
        """Tokens of one clip."""
        return self.num_text + self.num_video


@dataclass(frozen=True)
class PackLayout:
    """What lies where in a pack."""

    batches: tuple[Batch, ...]

    @property
    def order(self) -> list[int]:
        """The clips as they lie in the pack."""
        return [i for batch in self.batches for i in batch.clips]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each batch."""
        return [len(batch.clips) * batch.tokens for batch in self.batches]

    def split(self, x: Float[Tensor, "n d"]) -> Batches:
        """The pack's batches, as views."""
        parts = x.split(self.lengths)  # one split: the backward pass of each slice would fill a whole pack with zeros
        return [part.unflatten(0, (len(batch.clips), -1)) for part, batch in zip(parts, self.batches)]

    def clip_of_token(self, device: torch.device) -> Int[Tensor, " n"]:
        """For each token the number of its clip, counted along the pack."""
        lengths = torch.tensor([batch.tokens for batch in self.batches for _ in batch.clips], device=device)
        return torch.arange(len(lengths), device=device).repeat_interleave(lengths)


def pack_layout(lengths: Sequence[tuple[int, int]]) -> PackLayout:
    """Where clips with so many (text, video) tokens go, batches in the order of their first clips."""
    batches: dict[tuple[int, int], list[int]] = {}
    for i, length in enumerate(lengths):
        batches.setdefault(length, []).append(i)
    return PackLayout(tuple(Batch(tuple(clips), *length) for length, clips in batches.items()))


def packed_forward(model: ExpertTransformer, latents: Sequence[Float[Tensor, "c _t _h _w"]],
                   timesteps: Num[Tensor, " clips"], texts: Sequence[Float[Tensor, "_n_text d_text"]],
                   ofs: Num[Tensor, " clips"] | None = None,
                   kernel: Literal["auto", "batches", "flex"] = "auto") -> list[Float[Tensor, "c_out _t _h _w"]]:
    """`model(latents, timesteps, texts)` for clips of any mixture of sizes at once.

    Args:
        latents: scaled latents of each clip; an image has one frame.
        timesteps: 0..999, one a clip.
        texts: text features of each clip; their lengths may differ, too.
        ofs: as in the model, one a clip.
        kernel: how attention is kept within clips. "batches": one ordinary attention a batch. "flex": PyTorch's
            flex_attention with a document mask, one call for the pack, on a GPU only. "auto": "flex" on CUDA.

    Returns:
        The network's output for each clip, in the order of `latents`.

    Raises:
        ValueError: if a size does not fit the config, or if the config has positions, modulations or attention that
            packing does not know; the sentence names the clip or the field.
    """
    check_pack(model.config, latents, timesteps, texts, ofs)
    if kernel not in ("auto", "batches", "flex"):
        raise ValueError(f"kernel is {kernel!r}; it must be one of 'auto', 'batches', 'flex'")
    device, grids = latents[0].device, [model.grid(clip[None]) for clip in latents]
    layout = pack_layout([(len(text), math.prod(grid)) for text, grid in zip(texts, grids)])
    flex = kernel == "flex" or (kernel == "auto" and device.type == "cuda")
    mask = clip_mask(layout, device) if flex else None
    # Every clip has its own tables: its own grid, counted from its own first token.
    ropes, sincos = zip(*(model.positions(grid, len(text), device) for text, grid in zip(texts, grids)))
    rope = None if ropes[0] is None else torch.cat([ropes[i] for i in layout.order])

    time = model.time_embedding(timesteps)                      # clips d_time
    if ofs is not None:
        time = time + model.ofs_embedding(ofs)                  # clips d_time
    time = F.silu(time)[layout.order].split([len(batch.clips) for batch in layout.batches])  # b d_time each

    x = [torch.cat([model.patch_embed(latents[i][None], texts[i][None], sincos[i]) for i in batch.clips])
         for batch in layout.batches]                           # b n d each
    for block in model.transformer_blocks:
        if model.gradient_checkpointing and torch.is_grad_enabled():
            x = checkpoint(packed_block, block, x, time, layout, rope, mask, use_reentrant=False)
        else:
            x = packed_block(block, x, time, layout, rope, mask)  # b n d each
    patches = [patch for batch, part, t in zip(layout.batches, x, time) for patch in _head(model, part, t, batch)]
    outputs = {i: unpatchify(patch, grids[i], model.patch[0], model.patch[1])[0]
               for i, patch in zip(layout.order, patches)}
    return [outputs[i] for i in range(len(latents))]            # c_out t h w each


def packed_block(block: Block, x: Batches, time: Sequence[Float[Tensor, "_b d_time"]], layout: PackLayout,
                 rope: Complex[Tensor, "n half_dim"] | None, mask: object | None) -> Batches:
    """`block(x)`: what needs to know the clip goes batch by batch, the linear layers take the pack as one."""
    y, gates = _modulated(block.norm1, x, time, layout)         # n d
    y = attend_within_clips(block.attn1, y, layout, rope, mask)  # n d
    x = _residual(x, y, gates, layout)                          # b n d each
    y, gates = _modulated(block.norm2, x, time, layout)         # n d
    y = block.ff(y[None])[0]                                    # n d
    return _residual(x, y, gates, layout)                       # b n d each


def _modulated(norm, x, time, layout):
    parts = [norm(part, batch.num_text, t) for part, batch, t in zip(x, layout.batches, time)]
    return torch.cat([y.flatten(0, 1) for y, *_ in parts]), [gates for _, *gates in parts]


def _residual(x, y, gates, layout):
    return [add_gated(part, branch, *gate, batch.num_text)
            for part, branch, gate, batch in zip(x, layout.split(y), gates, layout.batches)]


def _head(model, x, time, batch):
    x = model.norm_final(x[:, batch.num_text:])                 # b n_video d
    return model.proj_out(model.norm_out(x, time)).split(1)     # 1 n_video patch_values each


def attend_within_clips(attention: Attention, x: Float[Tensor, "n d"], layout: PackLayout,
                        rope: Complex[Tensor, "n half_dim"] | None, mask: object | None) -> Float[Tensor, "n d"]:
    """`attention(x)` where a token sees the tokens of its own clip and no others."""
    q, k, v = attention.project(x[None])                        # 1 heads n d_head
    if rope is not None:
        q, k = rotate(q, rope), rotate(k, rope)
    if mask is not None:
        out = _flex(q.is_cuda)(q.to(v.dtype), k.to(v.dtype), v, block_mask=mask)
        return attention.to_out[0](rearrange(out, "1 heads n d_head -> n (heads d_head)"))
    parts = []
    for batch, *qkv in zip(layout.batches, *(part.split(layout.lengths, dim=2) for part in (q, k, v))):
        qkv = (rearrange(part, "1 heads (b n) d_head -> b heads n d_head", n=batch.tokens) for part in qkv)
        parts.append(rearrange(attend(*qkv), "b heads n d_head -> (b n) (heads d_head)"))
    return attention.to_out[0](torch.cat(parts))


def clip_mask(layout: PackLayout, device: torch.device):
    """The document mask of flex_attention: a query sees a key if both are of one clip; empty blocks cost nothing.

    Not yet run on a GPU. On a CPU it is checked forward; PyTorch has no backward for it there.
    """
    from torch.nn.attention.flex_attention import create_block_mask
    clip = layout.clip_of_token(device)

    # Compiled, it never makes the n x n mask, which has 5.6 billion entries at 75k tokens.
    return create_block_mask(lambda b, head, query, key: clip[query] == clip[key], None, None, len(clip), len(clip),
                             device=device, _compile=device.type == "cuda")


@cache
def _flex(compiled: bool):
    from torch.nn.attention.flex_attention import flex_attention
    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention  # packs differ in length


def check_pack(config: TransformerConfig, latents: Sequence[Tensor], timesteps: Tensor, texts: Sequence[Tensor],
               ofs: Tensor | None) -> None:
    """Raise a ValueError of one sentence if packing does not know the config or if a clip does not fit it."""
    if config.position not in ("rope", "sincos", "none"):
        raise ValueError(f"position is {config.position!r}; clips of many sizes need 'rope', 'sincos' or 'none'")
    if config.modulation == "separate":
        raise ValueError("modulation is 'separate'; packing works with 'expert' and 'shared'")
    if config.attention != "full":
        raise ValueError(f"attention is {config.attention!r}; packing works with 'full'")
    if not latents:
        raise ValueError("latents is empty; a pack has at least one clip")
    for name, values in (("texts", texts), ("timesteps", timesteps), ("ofs", ofs)):
        if values is not None and len(values) != len(latents):
            raise ValueError(f"{name} has {len(values)} entries for {len(latents)} clips; give one for each")
    for i, (clip, text) in enumerate(zip(latents, texts)):
        if clip.ndim != 4 or text.ndim != 2:
            raise ValueError(f"clip {i} of the pack has latents of shape {tuple(clip.shape)} and text of shape "
                             f"{tuple(text.shape)}; they must be (c, t, h, w) and (n_text, d_text)")
        try:
            check_inputs(config, clip[None], text[None], None if ofs is None else ofs[i:i + 1])
        except ValueError as error:
            raise ValueError(f"clip {i} of the pack: {error}") from None
