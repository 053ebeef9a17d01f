"""How a model lies on several ranks, by PyTorch's own DDP and FSDP2, and how gradients are averaged.

Data parallel ("replicate"): every rank holds the whole model, and gradients are averaged. FSDP2 ("fsdp"): every rank
holds 1/n of each weight, of its gradient and of its optimizer state, and gathers each block for as long as it computes.
The model files know nothing of either; without torchrun none of this is active.

A weight under FSDP2 is a DTensor. Make the optimizer, and a moving average (a clone of each parameter), after `wrap`.
AdamW is the optimizer for shards. Muon works as well, with the same result, but gathers its matrices in every
iteration: on two CPU ranks and the toy's transformer a step took 1.0 to 1.8 s, against 0.3 s under "replicate".
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from minicogvx.engine.ranks import Ranks, backend


def _be_a_group(device: torch.device) -> None:
    """A process group of one, which FSDP2 needs even on a single process. `leave` destroys it."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    dist.init_process_group(backend(device), store=dist.HashStore(), rank=0, world_size=1)


def check_sharding(sharding: str, device: torch.device) -> None:
    """Raises ValueError for an unknown sharding, and for FSDP2 on a device without process groups."""
    if sharding not in ("replicate", "fsdp"):
        raise ValueError(f"sharding is {sharding!r}; it must be 'replicate' or 'fsdp'")
    if sharding == "fsdp" and device.type not in ("cpu", "cuda"):
        raise ValueError(f"sharding is 'fsdp'; it goes with the device 'cpu' or 'cuda', not {device.type!r}")


def wrap(model: nn.Module, ranks: Ranks, sharding: str = "replicate", dtype: torch.dtype | None = None,
         offload: bool = False,
         blocks: Iterable[nn.Module] = ()) -> nn.Module:
    """`model`, ready to train on all ranks; call what is returned. All ranks start from the weights of rank 0.

    "replicate": the model wrapped in `DistributedDataParallel`; without torchrun the model itself. "fsdp": the model
    itself, its weights sharded in place along their first axis (block by block for an ExpertTransformer) and updated in
    their own dtype. On a single process it holds all shards, which is useful with `offload`. A model on the meta device
    is sharded first and then gets uninitialised memory for its shards; `sharded_checkpoints.read_slices` fills it.

    Args:
        dtype: under FSDP2, the format of forward and backward (published: bfloat16); gradients are summed in float32.
            None: that of the weights. Under "replicate" a model computes in the dtype of its weights, and `dtype` must
            be None; 16-bit gradients are summed in float32 as well.
        offload: under FSDP2, keep weights, gradients and optimizer state in CPU memory.

    Raises ValueError for options that exclude each other.
    """
    check_sharding(sharding, ranks.device)
    if sharding == "replicate" and (dtype is not None or offload):
        raise ValueError("dtype and offload belong to sharding='fsdp'; leave them out with 'replicate'")
    if sharding == "replicate":
        return _replicate(model, ranks) if dist.is_initialized() else model
    if not dist.is_initialized():
        _be_a_group(ranks.device)
    on_meta = any(p.is_meta for p in model.parameters())
    if not on_meta:
        broadcast_weights(model, ranks)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32)
    offloading = CPUOffloadPolicy(pin_memory=ranks.device.type == "cuda") if offload else OffloadPolicy()
    mesh = dist.init_device_mesh(ranks.device.type, (ranks.world_size,))
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offloading)
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=offloading)
    return model.to_empty(device="cpu" if offload else ranks.device) if on_meta else model


def _replicate(model, ranks):
    on_gpu = ranks.device.type == "cuda"
    wrapped = DistributedDataParallel(model.to(ranks.device), device_ids=[ranks.device] if on_gpu else None,
                                      gradient_as_bucket_view=True)
    if any(p.element_size() < 4 for p in model.parameters()):
        wrapped.register_comm_hook(ranks.world_size, _mean_in_float32)
    return wrapped


def _mean_in_float32(world_size: int, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A DDP hook: the mean of gradients, summed over ranks in float32; a 16-bit sum loses small gradients."""
    buffer = bucket.buffer()
    wide = buffer.float().div_(world_size)
    if wide.is_cuda:  # overlaps with the backward pass
        done = dist.all_reduce(wide, async_op=True).get_future()
        return done.then(lambda future: buffer.copy_(future.value()[0]))
    dist.all_reduce(wide)
    done = torch.futures.Future()
    done.set_result(buffer.copy_(wide))
    return done


@torch.no_grad()
def broadcast_weights(model: nn.Module, ranks: Ranks) -> None:
    """Broadcasts the weights of rank 0, in place."""
    for tensor in (*model.parameters(), *model.buffers()) if ranks.world_size > 1 else ():
        dist.broadcast(tensor, src=0)


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor], ranks: Ranks) -> None:
    """Replaces each gradient by its mean over ranks, in one all-reduce: for small modules outside `wrap`.

    Within a team, whose ranks hold parts of the same clips, gradients are summed. A missing gradient counts as zero:
    all ranks must send the same sizes.
    """
    if ranks.world_size == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                      .to(torch.promote_types(p.dtype, torch.float32)) for p in parameters])
    dist.all_reduce(flat)
    flat /= ranks.teams
    for p, grad in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = grad.view_as(p).to(p.dtype)


def sum_within_teams(model: nn.Module, ranks: Ranks) -> None:
    """Makes FSDP2 reduce gradients as `average_gradients` does: summed within a team, averaged over teams."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded if ranks.context > 1 else ():
        module.set_gradient_divide_factor(ranks.teams)
        module.set_force_sum_reduction_for_comms(True)  # sum, then divide: gloo has no other way


def mean_over_ranks(values: Mapping[str, float | Tensor], ranks: Ranks) -> dict[str, float | Tensor]:
    """Averages logged values over ranks, in one all-reduce; every rank must pass the same names."""
    if ranks.world_size == 1:
        return dict(values)
    both = torch.tensor([float(value) for value in values.values()], dtype=torch.float64, device=ranks.device)
    dist.all_reduce(both)
    return dict(zip(values, (both / ranks.world_size).tolist()))


def form_team(here: Ranks) -> Ranks:
    """`here` with the process group of its team, if neighbours share clips. All ranks must call it."""
    return replace(here, group=dist.new_subgroups(here.context)[0]) if here.context > 1 else here


@contextmanager
def joint_gradient(weight: Tensor, ranks: Ranks) -> Iterator[None]:
    """Within this context, each gradient of `weight` is replaced by its mean over ranks (its sum within a team).

    For the adaptive weight of the GAN, which compares gradient norms: each rank needs those of the whole batch.
    """
    if ranks.world_size == 1:
        yield
        return

    def mean(gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient / ranks.teams

    handle = weight.register_hook(mean)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def without_sync(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Provisional."""
    yield
