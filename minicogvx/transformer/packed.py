"""Clips of many sizes through the expert transformer at once (paper 3.1, Frame Pack): lists in, lists out.

The model's own forward pass runs on one row of tokens, `1 n d`. The linear layers, nearly all of the work, see the
whole row; norms, gates and attention are kept within clips by `layout.PackLayout`. The weights are the model's, and the
result is that of running each clip alone. The published layout and masks are not known; this is ours.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor

from minicogvx.presets import TransformerConfig
from minicogvx.transformer.layout import DenseLayout, Heads, PackLayout
from minicogvx.transformer.model import ExpertTransformer, check_inputs
from minicogvx.transformer.sequence_parallel import split_layout


def forward_clips(model: ExpertTransformer, latents: Sequence[Float[Tensor, "c _t _h _w"]],
                  timesteps: Num[Tensor, " clips"], texts: Sequence[Float[Tensor, "_n_text d_text"]],
                  ofs: Num[Tensor, " clips"] | None = None,
                  kernel: Literal["auto", "batches", "flex", "dense"] = "auto",
                  group: dist.ProcessGroup | None = None,
                  mask: Bool[Tensor, "n n"] | None = None) -> list[Float[Tensor, "c_out _t _h _w"]]:
    """`model(latents, timesteps, texts)` for clips of any mixture of sizes at once.

    Args:
        latents: scaled latents of each clip; an image has one frame.
        timesteps: 0..999, one a clip.
        texts: text features of each clip; their lengths may differ, too.
        ofs: as in the model, one a clip.
        kernel: how attention is kept within clips. "batches": one ordinary attention a batch. "flex": PyTorch's
            flex_attention with a document mask, one call for the pack, on a GPU only. "auto": "flex" on CUDA.
            "dense": one attention under a mask of all pairs, to look at; it takes n x n numbers.
        group: ranks that share the pack's tokens, as in `sequence_parallel.forward_split`; None: this rank alone.
        mask: for "dense": whether query i, a row, sees key j, clip after clip as given, each as [text | video]. None:
            a clip sees itself. Any other mask computes something else than the clips alone.

    Returns:
        The network's output for each clip, in the order of `latents`.

    Raises:
        ValueError: if a size does not fit the config, if the config has positions, modulations or attention that
            packing does not know, or if the mask does not fit; the sentence names the clip or the field.
    """
    check_pack(model.config, latents, timesteps, texts, ofs)
    if kernel not in ("auto", "batches", "flex", "dense"):
        raise ValueError(f"kernel is {kernel!r}; it must be one of 'auto', 'batches', 'flex', 'dense'")
    if mask is not None and kernel != "dense":
        raise ValueError(f"mask is given with kernel={kernel!r}; only 'dense' takes one")
    clips = [model.layout(model.grid(clip[None]), len(text), clip.device) for clip, text in zip(latents, texts)]
    order = list(range(len(clips))) if kernel == "dense" else pack_order(clips)
    clips = [clips[i] for i in order]
    layout = pack_layout(clips, _masked(kernel, clips, latents[0].device, mask))
    if group is not None:
        layout = split_layout(layout, model.config, group)
    outputs = model([latents[i] for i in order], timesteps[order], [texts[i] for i in order],
                    None if ofs is None else ofs[order], layout)
    by_clip = dict(zip(order, outputs))
    return [by_clip[i] for i in range(len(latents))]


def _masked(kernel: str, clips: Sequence[DenseLayout], device: torch.device,
            mask: Tensor | None) -> Callable[[Heads, Heads, Heads], Heads] | None:
    """Attention of the whole pack under a mask; None: batch by batch."""
    if kernel == "flex" or (kernel == "auto" and device.type == "cuda"):
        return masked_attention(clips, device)
    if kernel != "dense":
        return None
    lengths = [clip.num_tokens for clip in clips]
    return dense_attention(same_clip(lengths).to(device) if mask is None else checked_mask(mask, lengths).to(device))


def pack_order(clips: Sequence[DenseLayout]) -> list[int]:
    """The clips in the order of the pack: those of equal length together, otherwise as they come."""
    first: dict[tuple[int, int], int] = {}
    for i, clip in enumerate(clips):
        first.setdefault((clip.num_text, clip.num_video), i)
    return sorted(range(len(clips)), key=lambda i: first[clips[i].num_text, clips[i].num_video])


def pack_layout(clips: Sequence[DenseLayout],
                masked: Callable[[Heads, Heads, Heads], Heads] | None = None) -> PackLayout:
    """Where clips lie that follow one another in this order. `masked`: attention of the whole pack at once."""
    rope = None if clips[0].rope is None else torch.cat([clip.rope for clip in clips])
    return PackLayout(tuple(clips), rope, masked)


def same_clip(lengths: Sequence[int]) -> Bool[Tensor, "n n"]:
    """Whether tokens i and j are of one clip, for clips of so many tokens end to end: squares along the diagonal."""
    clip = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return clip[:, None] == clip


def dense_attention(mask: Bool[Tensor, "n n"]) -> Callable[[Heads, Heads, Heads], Heads]:
    """Attention of the whole pack in which query i, a row of the mask, sees key j where the mask is true."""
    def attend(q: Heads, k: Heads, v: Heads) -> Heads:
        return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, mask)

    return attend


def checked_mask(mask: Tensor, lengths: Sequence[int]) -> Tensor:
    """The mask. Raises ValueError, one sentence, unless it is boolean, of all tokens, and shows each something."""
    n = sum(lengths)
    if tuple(mask.shape) != (n, n) or mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype} of shape {tuple(mask.shape)}; for clips of "
                         f"{', '.join(map(str, lengths))} tokens it must be torch.bool of shape ({n}, {n})")
    if not bool(mask.any(dim=1).all()):
        raise ValueError(f"mask shows query {int((~mask.any(dim=1)).nonzero()[0])} no key; each must see one at least")
    return mask


def masked_attention(clips: Sequence[DenseLayout], device: torch.device) -> Callable[[Heads, Heads, Heads], Heads]:
    """Attention of the whole pack by PyTorch's flex_attention, within clips by its mask."""
    mask = clip_mask(clips, device)

    def attend(q: Heads, k: Heads, v: Heads) -> Heads:
        return _flex(q.is_cuda)(q.to(v.dtype), k.to(v.dtype), v, block_mask=mask)

    return attend


def clip_mask(clips: Sequence[DenseLayout], device: torch.device):
    """The document mask of flex_attention: a query sees a key if both are of one clip; empty blocks cost nothing.

    Not yet run on a GPU. On a CPU it is checked forward; PyTorch has no backward for it there.
    """
    from torch.nn.attention.flex_attention import create_block_mask
    lengths = [clip.num_tokens for clip in clips]
    clip = torch.arange(len(clips), device=device).repeat_interleave(  # of each token
        torch.tensor(lengths, device=device), output_size=sum(lengths))  # given, so that a GPU is not waited for

    # Compiled, it never makes the n x n mask, which has 5.6 billion entries at 75k tokens.
    return create_block_mask(lambda b, head, query, key: clip[query] == clip[key], None, None, len(clip), len(clip),
                             device=device, _compile=device.type == "cuda")


@cache
def _flex(compiled: bool):
    from torch.nn.attention.flex_attention import flex_attention
    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention  # packs differ in length


def check_pack(config: TransformerConfig, latents: Sequence[Tensor], timesteps: Tensor, texts: Sequence[Tensor],
               ofs: Tensor | None) -> None:
    """Raises ValueError, one sentence, as `check_packable` does, and if a clip does not fit the config."""
    check_packable(config)
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


def check_packable(config: TransformerConfig) -> None:
    """Raises ValueError for positions, modulations or attention that packing does not know."""
    if config.position not in ("rope", "sincos", "none"):
        raise ValueError(f"position is {config.position!r}; clips of many sizes need 'rope', 'sincos' or 'none'")
    if config.modulation == "separate":
        raise ValueError("modulation is 'separate'; packing works with 'expert' and 'shared'")
    if config.attention != "full":
        raise ValueError(f"attention is {config.attention!r}; packing works with 'full'")
