"""A clip too long for one GPU, split along time over several: context parallelism of the causal VAE (paper 2.1).

Rank 0 holds the first frame and its groups of four, each later rank the groups that follow. A causal convolution
looks two frames back, so each rank sends the last frames of its shard to the next; a group norm pools its statistics.
The modules of the VAE know nothing of this: the one comes in by the cache (`RankBoundary`), the other in place of the
norms' `forward` (`_pooled_norms`).

    rank 0   f | 1 2 3 4 | 5 6 7 8          latents 0 1 2
                            7 8 ->
    rank 1                  . . | 9 ...     latents 3 4

With both, outputs and gradients are those of one rank that sees the whole clip in one chunk. Every rank must take part
in every forward pass, and in the backward pass, too: one that has no loss of its own starts from `output.sum() * 0`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from minicogvx.vae.autoencoder import CausalVAE, DiagonalGaussian
from minicogvx.vae.causal_conv import CausalConv3d, ConvCache
from minicogvx.vae.checks import check_latents, check_piece
from minicogvx.vae.layers import NormSiLU

Group = dist.ProcessGroup | None  # the ranks that share one clip; None: all
BorrowedGradient = Literal["returned", "dropped"]


def latent_shares(latent_frames: int, ranks: int) -> list[int]:
    """How many latent frames each rank holds: whole groups, as evenly as possible, and on rank 0 the first frame, too.

    Raises ValueError if there are fewer latent frames than ranks.
    """
    if latent_frames < ranks:
        raise ValueError(f"the clip has {latent_frames} latent frames; to split it over {ranks} ranks it must have at "
                         f"least {ranks}")
    return [(latent_frames - 1 + rank) // ranks + (rank == 0) for rank in range(ranks)]


def own_frames(video: Float[Tensor, "b c t h w"], ratio: int = 4, group: Group = None) -> Float[Tensor, "b c s h w"]:
    """This rank's frames of a whole video. Raises ValueError unless it has `ratio` k + 1, enough for all ranks."""
    frames, rank = video.shape[2], dist.get_rank(group)
    if (frames - 1) % ratio:
        raise ValueError(f"the video has {frames} frames; it must have {ratio}k + 1")
    latents = latent_shares((frames - 1) // ratio + 1, dist.get_world_size(group))
    return video.split([ratio * share - (ratio - 1) * (i == 0) for i, share in enumerate(latents)], dim=2)[rank]


def own_latents(latents: Float[Tensor, "b c lt lh lw"], group: Group = None) -> Float[Tensor, "b c s lh lw"]:
    """This rank's shard of whole latents."""
    return latents.split(latent_shares(latents.shape[2], dist.get_world_size(group)), dim=2)[dist.get_rank(group)]


def encode(vae: CausalVAE, frames: Float[Tensor, "b c s h w"], group: Group = None, gather_norm: bool = True,
           borrowed_gradient: BorrowedGradient = "returned") -> DiagonalGaussian:
    """The posterior of this rank's frames (`own_frames`): its shard of `vae.encode(video, chunk_frames=None)`.

    Args:
        gather_norm: group norms over all ranks' frames (published for the encoder); False: over this rank's.
        borrowed_gradient: "returned" sends the gradient of the borrowed frames back to the rank that lent them, which
            is exact and our default. "dropped" is what the published code does: cheaper, but the gradient of a frame
            then lacks its effect on the frames of the next rank. On the toy's VAE and 33 frames that put the encoder's
            gradient off by 7 % on 2 ranks and 17 % on 4 (`benchmarks/context_parallel.py`).

    Raises ValueError for frames that are not whole groups, and if `first_frame` is "parity": that rule counts the
    frames of the whole clip, which no rank has.
    """
    ratio, rank = vae.config.temporal_compression_ratio, dist.get_rank(group)
    if (frames.shape[2] - (rank == 0)) % ratio or not frames.shape[2]:
        want = f"{ratio}k + 1" if rank == 0 else f"{ratio}k, at least {ratio}"
        raise ValueError(f"rank {rank} has {frames.shape[2]} frames; it must have {want}")
    check_piece(vae.config, frames)
    boundary = RankBoundary(vae, group, borrowed_gradient)
    with _pooled_norms(vae.encoder, group, gather_norm):
        return DiagonalGaussian(vae.encoder(frames, boundary))


def decode(vae: CausalVAE, latents: Float[Tensor, "b c s lh lw"], group: Group = None, gather_norm: bool = True,
           borrowed_gradient: BorrowedGradient = "returned") -> Float[Tensor, "b o t h w"]:
    """The video of this rank's latents (`own_latents`): its shard of `vae.decode(latents, chunk_latents=None)`.

    Arguments as in `encode`. Published: `gather_norm` False for 2B and 5B, True for 5B-I2V and 1.5.
    """
    check_latents(vae.config, latents)
    boundary = RankBoundary(vae, group, borrowed_gradient)
    with _pooled_norms(vae.decoder, group, gather_norm):
        return vae.decoder(latents, boundary)


def join_time(shard: Float[Tensor, "b c s h w"], group: Group = None) -> Float[Tensor, "b c t h w"]:
    """All ranks' shards, joined along time, on every rank.

    The gradient of a shard is its slice of this rank's gradient of the whole: a loss of the whole must be the same on
    all ranks.
    """
    return _GatherTime.apply(shard, group)


def encode_joined(vae: CausalVAE, video: Float[Tensor, "b c t h w"], group: Group = None) -> DiagonalGaussian:
    """The posterior of the whole video, on every rank, each having encoded its own frames; gradients as `join_time`."""
    own = encode(vae, own_frames(video, vae.config.temporal_compression_ratio, group), group)
    return DiagonalGaussian(join_time(torch.cat([own.mean, own.logvar], dim=1), group))


def decode_joined(vae: CausalVAE, latents: Float[Tensor, "b c lt lh lw"],
                  group: Group = None) -> Float[Tensor, "b o t h w"]:
    """The whole video, on every rank, each having decoded its own latents; gradients as `join_time`."""
    return join_time(decode(vae, own_latents(latents, group), group), group)


class RankBoundary(ConvCache):
    """Used in place of a `ConvCache`: the frames before this rank's come from the previous rank, not from the past."""

    def __init__(self, vae: CausalVAE, group: Group, borrowed_gradient: BorrowedGradient):
        super().__init__()
        if vae.config.first_frame != "start":
            raise ValueError(f"first_frame is {vae.config.first_frame!r}; context parallelism needs 'start'")
        if borrowed_gradient not in ("returned", "dropped"):
            raise ValueError(f"borrowed_gradient is {borrowed_gradient!r}; it must be 'returned' or 'dropped'")
        self.group, self.returned = group, borrowed_gradient == "returned"
        self.start = dist.get_rank(group) == 0

    def pad(self, conv: CausalConv3d, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c p h w"]:
        """The last frames that `conv` sees on the previous rank, then `x`; on rank 0 as at the start of a video."""
        first = conv.pad(x[:, :, :1])[:, :, :-1]
        return conv.pad(x, _Borrow.apply(x[:, :, -conv.past_frames:], first, self.group, self.returned))


@contextmanager
def _pooled_norms(network: nn.Module, group: Group, wanted: bool) -> Iterator[None]:
    """While open, the norms of `network` over a chunk take their statistics over the frames of all ranks."""
    norms = [norm for norm in network.modules() if wanted and isinstance(norm, NormSiLU) and norm.over == "chunk"]
    for norm in norms:
        norm.forward = partial(_pooled_norm_silu, norm, group)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # restores the method of the class


def _pooled_norm_silu(norm, group, x, scale=None, shift=None):
    """`NormSiLU.forward` with the mean and variance of all ranks' frames.

    `checkpoint` computes each half again in the backward pass instead of keeping float32 copies of x; neither half
    communicates.
    """
    mean, variance = pool(_Gather.apply(_checkpoint(_statistics, x, norm.num_groups), group))
    slope = _per_channel((variance + norm.eps).rsqrt(), x) * norm.weight[:, None, None, None]
    offset = norm.bias[:, None, None, None] - _per_channel(mean, x) * slope
    return _checkpoint(_affine_silu, x, slope, offset, scale, shift)


def pool(statistics: Float[Tensor, "ranks 3 b g"]) -> tuple[Float[Tensor, "b g"], Float[Tensor, "b g"]]:
    """Mean and variance of the whole from each shard's (count, mean, variance)."""
    count, means, variances = statistics.unbind(1)
    share = count / count.sum(0)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)


def _statistics(x, groups):
    values = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (groups, -1))  # b g c t h w
    variance, mean = torch.var_mean(values, dim=(2, 3, 4, 5), correction=0)
    return torch.stack([torch.full_like(mean, values[0, 0].numel()), mean, variance])  # 3 b g


def _affine_silu(x, slope, offset, scale, shift):
    y = torch.addcmul(offset, x.to(slope.dtype), slope)  # the group norm
    if scale is None:
        return F.silu(y).to(x.dtype)
    lh, lw = scale.shape[3:]
    cells = y.unflatten(4, (lw, -1)).unflatten(3, (lh, -1))  # b c t lh r lw q: each latent cell's pixels
    scale, shift = (v.to(y.dtype)[:, :, :, :, None, :, None] for v in (scale, shift))
    return F.silu(torch.addcmul(shift, cells, scale)).flatten(5).flatten(3, 4).to(x.dtype)


def _per_channel(v, x):
    return v.repeat_interleave(x.shape[1] // v.shape[1], dim=1)[:, :, None, None, None]  # b c 1 1 1


def _checkpoint(function, *inputs):
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


# ---- collectives


def _all_gather(x, group):
    gathered = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, x.contiguous(), group=group)
    return torch.stack(gathered)


class _Gather(torch.autograd.Function):
    """All-gather of `x`, stacked in front. Backward: all-reduces the gradients and returns this rank's slice."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    @once_differentiable  # autograd does not record collectives
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)  # all_reduce writes into its argument
        dist.all_reduce(grad, group=ctx.group)
        return grad[dist.get_rank(ctx.group)], None


class _GatherTime(torch.autograd.Function):
    """All-gather of shards, joined along time. Backward: this rank's slice of the gradient; no communication."""

    @staticmethod
    def forward(ctx, shard, group):
        """Pads shards of different lengths to the longest: ranks may only gather equal shapes."""
        sizes = _all_gather(torch.tensor([shard.shape[2]], device=shard.device), group).flatten().tolist()
        rank = dist.get_rank(group)
        ctx.own = slice(sum(sizes[:rank]), sum(sizes[:rank + 1]))
        padded = shard.new_zeros(*shard.shape[:2], max(sizes), *shard.shape[3:])
        padded[:, :, :shard.shape[2]] = shard
        return torch.cat([whole[:, :, :size] for whole, size in zip(_all_gather(padded, group), sizes)], dim=2)

    @staticmethod
    @once_differentiable  # autograd does not record collectives
    def backward(ctx, grad):
        return grad[:, :, ctx.own], None


class _Borrow(torch.autograd.Function):
    """The k frames before this rank's: the last k that the previous rank's convolution sees; on rank 0 `first`.

    `tail` is the end of this rank's own frames, k of them or all if there are fewer. With fewer, what is sent to the
    next rank begins with borrowed frames, so those must be received first. The node is part of every rank's graph,
    even if it borrows nothing: all ranks then reach their backward collectives in the same order.
    """

    @staticmethod
    def forward(ctx, tail, first, group, returned):
        """Sends and receives; see above."""
        ctx.group, ctx.returned = group, returned
        ctx.own, ctx.wanted = tail.shape[2], first.shape[2]
        if ctx.own == ctx.wanted:
            past = _exchange(group, +1, send=tail, like=first)
            return first.clone() if past is None else past
        past = _exchange(group, +1, like=first)
        past = first.clone() if past is None else past
        _exchange(group, +1, send=torch.cat([past[:, :, ctx.own:], tail], dim=2))
        return past

    @staticmethod
    @once_differentiable  # autograd does not record collectives
    def backward(ctx, grad):
        """Returns the gradient of borrowed frames to the rank that lent them."""
        lost, of_lent = ctx.wanted - ctx.own, None
        if ctx.returned and not lost:
            of_lent = _exchange(ctx.group, -1, send=grad, like=grad)
        elif ctx.returned:
            of_lent = _exchange(ctx.group, -1, like=grad)
            if of_lent is not None:
                grad = grad.clone()
                grad[:, :, ctx.own:] += of_lent[:, :, :lost]  # borrowed by this rank and lent again
            _exchange(ctx.group, -1, send=grad)
        of_tail = torch.zeros_like(grad[:, :, lost:]) if of_lent is None else of_lent[:, :, lost:]
        return of_tail, grad if dist.get_rank(ctx.group) == 0 else None, None, None


def _exchange(group, step, send=None, like=None):
    """Sends `send` to rank + step and receives a tensor like `like` from rank - step; None if there is no such rank.

    Always by `batch_isend_irecv`: on NCCL a single send would use another channel than a batched receive.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    operations, received = [], None
    if send is not None and 0 <= rank + step < world:
        operations.append(dist.P2POp(dist.isend, send.contiguous(), group=group, group_peer=rank + step))
    if like is not None and 0 <= rank - step < world:
        received = torch.empty_like(like, memory_format=torch.contiguous_format)
        operations.append(dist.P2POp(dist.irecv, received, group=group, group_peer=rank - step))
    for request in dist.batch_isend_irecv(operations) if operations else ():
        request.wait()
    return received
