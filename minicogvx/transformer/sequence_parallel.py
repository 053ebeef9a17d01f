"""A clip with too many tokens for one GPU, split over several: DeepSpeed-Ulysses (arXiv 2309.14509).

Each rank holds one slice of the joined sequence of text and video. Norms, gates and linear layers act on single
tokens, so each rank computes them for its own. Attention needs every token, but each head by itself: an all-to-all
exchanges tokens for heads, each rank attends over the whole sequence with its share of the heads, and a second
all-to-all takes the results back.

                   projections, rotation                            attention
    rank 0    [ text 0 1 | video 0 1 ], heads 0 1    [ text 0 1 | video 0 1 2 3 4 5 ], head 0
    rank 1    [      video 2 3 4 5   ], heads 0 1    [ text 0 1 | video 0 1 2 3 4 5 ], head 1

Slices are cut from the joined sequence with its positions, and may differ by one token: no token is repeated, and none
is padding. (Two published frameworks split the video alone and joined the whole text to it on every rank: the videos
were plausible and wrong, without an error: VideoSys #210, xDiT #295.)

Every rank of the group calls the model with the same clips, gets the whole output, and calls backward on the same loss.
The gradients that this leaves on its weights and inputs are the share of its own tokens: the sum over the group is the
gradient of one rank (`engine.sharding`: `average_gradients`, under FSDP2 `sum_within_teams`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Complex, Float, Num
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minicogvx.presets import TransformerConfig
from minicogvx.transformer.layout import DenseLayout, Heads, PackLayout
from minicogvx.transformer.model import ExpertTransformer, check_inputs


def forward_split(model: ExpertTransformer, latents: Float[Tensor, "b c t h w"], timestep: Num[Tensor, " b"],
                  text: Float[Tensor, "b n_text d_text"], ofs: Num[Tensor, " b"] | None = None,
                  group: dist.ProcessGroup | None = None) -> Float[Tensor, "b c_out t h w"]:
    """`model(latents, timestep, text, ofs)`, whole on every rank of `group`; each computes a part of it.

    All ranks of the group must call it, with equal arguments; who computes which gradient is said above.
    `group` None: this rank computes alone. For packs, `packed.forward_clips` takes the group.

    Raises ValueError as the model does, and as `check_split`.
    """
    if group is None:
        return model(latents, timestep, text, ofs)
    check_inputs(model.config, latents, text, ofs)
    layout = model.layout(model.grid(latents), text.shape[1], latents.device)
    return model(latents, timestep, text, ofs, split_layout(layout, model.config, group))


def check_split(config: TransformerConfig, ranks: int) -> None:
    """Raise a ValueError of one sentence unless so many ranks can share a clip."""
    if config.attention != "full":
        raise ValueError(f"attention is {config.attention!r}; ranks can share a clip only with 'full'")
    if config.modulation == "separate":
        raise ValueError("modulation is 'separate'; ranks can share a clip only with 'expert' or 'shared'")
    if config.num_attention_heads % ranks:
        raise ValueError(f"num_attention_heads is {config.num_attention_heads}; it must be a multiple of {ranks}, the "
                         f"number of ranks that share a clip")


@dataclass(frozen=True)
class Part:
    """Neighbouring tokens that share a modulation: text or video, of one clip of a pack or of each row of a batch."""

    clips: slice  # whose tokens; in a batch all
    is_video: bool
    length: int


@dataclass(frozen=True)
class SplitLayout:
    """This rank's slice of each row of another layout; `n` is the slice's length, `parts` are what lies in it."""

    whole: DenseLayout | PackLayout
    group: dist.ProcessGroup  # the ranks that share the rows
    own: slice
    parts: list[Part]
    rope: Complex[Tensor, "n half"] | None
    lengths: list[int]  # tokens of each rank
    video_lengths: list[int]  # of these, video tokens

    def embed(self, patch_embed: nn.Module, latents, text) -> Float[Tensor, "b n d"]:
        """This rank's slice of the sequence that enters the first block; cloned, to free the rest."""
        return self.whole.embed(patch_embed, latents, text)[:, self.own].clone()

    def split(self, x: Float[Tensor, "b n d"]) -> Sequence[Float[Tensor, "b _n d"]]:
        """The parts of the slice, as views."""
        return x.split([part.length for part in self.parts], dim=1)

    def join(self, parts: Sequence[Float[Tensor, "b _n d"]]) -> Float[Tensor, "b n d"]:
        """Inverse of `split`."""
        return torch.cat(tuple(parts), dim=1)

    def for_parts(self, text: Float[Tensor, "clips m"],
                  video: Float[Tensor, "clips m"]) -> Sequence[Float[Tensor, "_clips 1 m"]]:
        """A vector for every part, out of one a clip for text and one for video."""
        return [(video if part.is_video else text)[part.clips, None] for part in self.parts]

    def within_clips(self, attend: Callable[[Heads, Heads, Heads], Heads], q: Heads, k: Heads, v: Heads) -> Heads:
        """attend(q, k, v) over the tokens of all ranks, with this rank's share of the heads."""
        ranks, qkv = len(self.lengths), [q.to(v.dtype), k.to(v.dtype), v]
        own_to_each = [v.shape[2]] * ranks
        qkv = rearrange(qkv, "qkv b (ranks h) n d -> (ranks n) qkv b h d", ranks=ranks)
        qkv = AllToAll.apply(qkv, own_to_each, self.lengths, self.group)       # n_all qkv b h d
        out = self.whole.within_clips(attend, *rearrange(qkv, "n_all qkv b h d -> qkv b h n_all d"))
        out = rearrange(out, "b h n_all d -> n_all b h d")
        out = AllToAll.apply(out, self.lengths, own_to_each, self.group)       # ranks*n b h d
        return rearrange(out, "(ranks n) b h d -> b (ranks h) n d", ranks=ranks)

    def video(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n_video d"]:
        """The video tokens of the slice; there may be none."""
        return torch.cat([tokens for tokens, part in zip(self.split(x), self.parts) if part.is_video], dim=1)

    def for_video(self, m: Float[Tensor, "clips m"]) -> Float[Tensor, "b n_video m"]:
        """One vector a clip, repeated for each of its video tokens."""
        return torch.cat([m[part.clips, None].expand(-1, part.length, -1) for part in self.parts if part.is_video], 1)

    def unpatchify(self, x: Float[Tensor, "b n_video patch_values"]):
        """The latents of the whole layout, from the outputs of all ranks; only this rank's are differentiated."""
        return self.whole.unpatchify(join_tokens(x, self.video_lengths, self.group))


def split_layout(whole: DenseLayout | PackLayout, config: TransformerConfig, group: dist.ProcessGroup) -> SplitLayout:
    """`whole`, its rows cut into one slice a rank, as equal as possible. Raises ValueError as `check_split`."""
    ranks, rank, parts = group.size(), group.rank(), parts_of(whole)
    check_split(config, ranks)
    tokens = sum(part.length for part in parts)
    slices = [slice(tokens * i // ranks, tokens * (i + 1) // ranks) for i in range(ranks)]
    by_rank = [slice_parts(parts, one) for one in slices]
    rope = None if whole.rope is None else whole.rope[slices[rank]]
    lengths = [one.stop - one.start for one in slices]
    video_lengths = [sum(part.length for part in own if part.is_video) for own in by_rank]
    return SplitLayout(whole, group, slices[rank], by_rank[rank], rope, lengths, video_lengths)


def parts_of(layout: DenseLayout | PackLayout) -> list[Part]:
    """What lies in a row: text, video, and in a pack those of the next clip, and so on."""
    if isinstance(layout, DenseLayout):
        return [Part(slice(None), False, layout.num_text), Part(slice(None), True, layout.num_video)]
    return [replace(part, clips=slice(i, i + 1)) for i, clip in enumerate(layout.clips) for part in parts_of(clip)]


def slice_parts(parts: Sequence[Part], tokens: slice) -> list[Part]:
    """What lies in a slice of a row. The first text and the first video are always there, empty if outside it."""
    pieces, start = [], 0
    for i, part in enumerate(parts):
        stop = start + part.length
        length = max(0, min(stop, tokens.stop) - max(start, tokens.start))
        if length or i < 2:
            pieces.append(replace(part, length=length))
        start = stop
    return pieces


# ---- collectives


def all_to_all(x: Float[Tensor, "n *rest"], sent: list[int], received: list[int],
               group: dist.ProcessGroup) -> Float[Tensor, "_n ..."]:
    """Sends the next `sent[i]` rows of `x` to each rank i, and joins the `received[i]` rows that each rank i sends."""
    out = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
    return out


class AllToAll(torch.autograd.Function):
    """`all_to_all`. Backward: the gradient of each row returns to the rank that sent it."""

    @staticmethod
    def forward(ctx, x, sent, received, group):
        ctx.way_back = received, sent, group
        return all_to_all(x, sent, received, group)

    @staticmethod
    @once_differentiable  # autograd does not record collectives
    def backward(ctx, grad):
        return all_to_all(grad, *ctx.way_back), None, None, None


def join_tokens(own: Float[Tensor, "b n_own d"], lengths: list[int],
                group: dist.ProcessGroup) -> Float[Tensor, "b n d"]:
    """The slices of all ranks, on every rank. The others' are constants here, so a gradient reaches `own` alone."""
    to_each = rearrange(own.detach(), "b n d -> n b d").repeat(len(lengths), 1, 1)
    tokens = all_to_all(to_each, [own.shape[1]] * len(lengths), lengths, group)
    slices = list(rearrange(tokens, "n b d -> b n d").split(lengths, dim=1))
    slices[group.rank()] = own
    return torch.cat(slices, dim=1)
