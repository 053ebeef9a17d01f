"""A clip too long for one GPU, split along time over several: context parallelism of the causal VAE (paper 2.1).

Rank 0 holds the first frame and its groups of four, each later rank the groups that follow. A causal convolution
looks two frames back, so each rank hands the end of its share to the next; a group norm pools its statistics.

    rank 0   f | 1 2 3 4 | 5 6 7 8          latents 0 1 2
                            7 8 ->
    rank 1                  . . | 9 ...     latents 3 4

With both, outputs and gradients are those of one rank that sees the whole clip in one chunk. Every rank must take part
in every forward pass, and in the backward pass, too: one that has no loss of its own starts from `output.sum() * 0`.
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from minicogvx.vae.autoencoder import CausalVAE, DiagonalGaussian
from minicogvx.vae.causal_conv import ConvCache

Group = dist.ProcessGroup | None  # the ranks that share one clip; None: all
BorrowedGradient = Literal["returned", "dropped"]


def latent_shares(latent_frames: int, ranks: int) -> list[int]:
    """How many latent frames each rank holds: whole groups, as even as can be, and rank 0 the first frame besides.

    Raises ValueError where a rank would go without.
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
    """This rank's part of whole latents."""
    return latents.split(latent_shares(latents.shape[2], dist.get_world_size(group)), dim=2)[dist.get_rank(group)]


def encode(vae: CausalVAE, frames: Float[Tensor, "b c s h w"], group: Group = None, gather_norm: bool = True,
           borrowed_gradient: BorrowedGradient = "returned") -> DiagonalGaussian:
    """The posterior of this rank's frames (`own_frames`): its part of `vae.encode(video, chunk_frames=None)`.

    Args:
        gather_norm: group norms over all ranks' frames (published for the encoder); False: over this rank's.
        borrowed_gradient: "returned" sends the gradient of the borrowed frames back to the rank that lent them, which
            is exact and our default. "dropped" is what the published code does: cheaper, and the gradient of a frame
            then lacks what it did for the frames behind the next rank's border. On the toy's VAE and 33 frames that
            put the encoder's gradient off by 7 % on 2 ranks and 17 % on 4 (`benchmarks/context_parallel.py`).

    Raises ValueError for frames that are not whole groups, and where `first_frame` is "parity": that rule counts the
    frames of the whole clip, which no rank has.
    """
    ratio, rank = vae.config.temporal_compression_ratio, dist.get_rank(group)
    if (frames.shape[2] - (rank == 0)) % ratio or not frames.shape[2]:
        want = f"{ratio}k + 1" if rank == 0 else f"{ratio}k, at least {ratio}"
        raise ValueError(f"rank {rank} has {frames.shape[2]} frames; it must have {want}")
    vae._check_pixels(frames)
    return DiagonalGaussian(vae.encoder(frames, RankCache(vae, group, gather_norm, borrowed_gradient)))


def decode(vae: CausalVAE, latents: Float[Tensor, "b c s lh lw"], group: Group = None, gather_norm: bool = True,
           borrowed_gradient: BorrowedGradient = "returned") -> Float[Tensor, "b o t h w"]:
    """The video of this rank's latents (`own_latents`): its part of `vae.decode(latents, chunk_latents=None)`.

    Arguments as in `encode`. Published: `gather_norm` False for 2B and 5B, True for 5B-I2V and 1.5.
    """
    vae._check_latents(latents)
    return vae.decoder(latents, RankCache(vae, group, gather_norm, borrowed_gradient))


def join_time(part: Float[Tensor, "b c s h w"], group: Group = None) -> Float[Tensor, "b c t h w"]:
    """All ranks' parts one behind the other, on every rank.

    The gradient of a part is the slice of what this rank made of the whole: a loss of the whole must be the same on all
    ranks.
    """
    return _Join.apply(part, group)


def encode_joined(vae: CausalVAE, video: Float[Tensor, "b c t h w"], group: Group = None) -> DiagonalGaussian:
    """The posterior of the whole video, on every rank, each having encoded its own frames; gradients as `join_time`."""
    own = encode(vae, own_frames(video, vae.config.temporal_compression_ratio, group), group)
    return DiagonalGaussian(join_time(torch.cat([own.mean, own.logvar], dim=1), group))


def decode_joined(vae: CausalVAE, latents: Float[Tensor, "b c lt lh lw"],
                  group: Group = None) -> Float[Tensor, "b o t h w"]:
    """The whole video, on every rank, each having decoded its own latents; gradients as `join_time`."""
    return join_time(decode(vae, own_latents(latents, group), group), group)


class RankCache(ConvCache):
    """Stands where `ConvCache` stands: the frames before this rank's come from the previous rank, not from the past."""

    def __init__(self, vae: CausalVAE, group: Group, gather_norm: bool, borrowed_gradient: BorrowedGradient):
        super().__init__()
        if vae.config.first_frame != "start":
            raise ValueError(f"first_frame is {vae.config.first_frame!r}; context parallelism needs 'start'")
        if borrowed_gradient not in ("returned", "dropped"):
            raise ValueError(f"borrowed_gradient is {borrowed_gradient!r}; it must be 'returned' or 'dropped'")
        self.group, self.returned = group, borrowed_gradient == "returned"
        self.start = dist.get_rank(group) == 0
        if gather_norm:
            self.norm_silu = self._gathered_norm_silu

    def before(self, conv: nn.Module, x: Tensor, first: Tensor | None) -> Tensor:
        """The end of what the previous rank's `conv` sees; on rank 0 `first`, or copies of the first frame."""
        if first is None:
            first = x[:, :, :1].expand(-1, -1, conv.past_frames, -1, -1)
        return _Borrow.apply(x[:, :, -conv.past_frames:], first, self.group, self.returned)

    def after(self, conv: nn.Module, seen: Tensor) -> None:
        """Nothing to keep: this rank sees its frames once."""

    def _gathered_norm_silu(self, x, groups, eps, gain, bias, scale=None, shift=None):
        """`ops.norm_silu` with the mean and variance of all ranks' frames.

        `checkpoint` computes each half again in the backward pass instead of keeping float32 copies of x; no rank
        talks to another inside one.
        """
        mean, variance = pool(_Gather.apply(_checkpoint(_statistics, x, groups), self.group))
        slope = _per_channel((variance + eps).rsqrt(), x) * gain[:, None, None, None]
        offset = bias[:, None, None, None] - _per_channel(mean, x) * slope
        return _checkpoint(_affine_silu, x, slope, offset, scale, shift)


def pool(statistics: Float[Tensor, "ranks 3 b g"]) -> tuple[Float[Tensor, "b g"], Float[Tensor, "b g"]]:
    """Mean and variance of the whole from each part's (count, mean, variance)."""
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


# ---- what ranks say to each other


def _all_gather(x, group):
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.stack(parts)


class _Gather(torch.autograd.Function):
    """Every rank's `x`, stacked in front. Backward: each rank receives what all made of its part."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    @once_differentiable  # what is said between ranks is not recorded
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)  # the sum is written into it; others may read `grad`
        dist.all_reduce(grad, group=ctx.group)
        return grad[dist.get_rank(ctx.group)], None


class _Join(torch.autograd.Function):
    """Every rank's `part`, one behind the other along time. Backward: this rank's slice, without a message."""

    @staticmethod
    def forward(ctx, part, group):
        """Gathers parts that may differ in length by padding them to the longest."""
        sizes = _all_gather(torch.tensor([part.shape[2]], device=part.device), group).flatten().tolist()
        rank = dist.get_rank(group)
        ctx.own = slice(sum(sizes[:rank]), sum(sizes[:rank + 1]))
        widest = part.new_zeros(*part.shape[:2], max(sizes), *part.shape[3:])  # ranks may only gather equal shapes
        widest[:, :, :part.shape[2]] = part
        return torch.cat([whole[:, :, :size] for whole, size in zip(_all_gather(widest, group), sizes)], dim=2)

    @staticmethod
    @once_differentiable  # what is said between ranks is not recorded
    def backward(ctx, grad):
        return grad[:, :, ctx.own], None


class _Borrow(torch.autograd.Function):
    """The k frames before this rank's: the last k that the previous rank's convolution sees; on rank 0 `first`.

    `tail` is the end of this rank's own frames, k of them or all if there are fewer. With fewer, what goes on to the
    next rank begins with what was borrowed, so it can be sent only after that has come. The node is part of every
    rank's graph, also where it borrows nothing: the backward passes of all ranks then meet in the same order.
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
    @once_differentiable  # what is said between ranks is not recorded
    def backward(ctx, grad):
        """The gradient of what was borrowed goes back to the rank that lent it."""
        lost, of_lent = ctx.wanted - ctx.own, None
        if ctx.returned and not lost:
            of_lent = _exchange(ctx.group, -1, send=grad, like=grad)
        elif ctx.returned:
            of_lent = _exchange(ctx.group, -1, like=grad)
            if of_lent is not None:
                grad = grad.clone()
                grad[:, :, ctx.own:] += of_lent[:, :, :lost]  # these frames were only handed through
            _exchange(ctx.group, -1, send=grad)
        of_tail = torch.zeros_like(grad[:, :, lost:]) if of_lent is None else of_lent[:, :, lost:]
        return of_tail, grad if dist.get_rank(ctx.group) == 0 else None, None, None


def _exchange(group, step, send=None, like=None):
    """Sends `send` to rank + step, receives something like `like` from rank - step; None where there is no such rank.

    Always by `batch_isend_irecv`: on NCCL a single send would go by another channel than a batched receive.
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
