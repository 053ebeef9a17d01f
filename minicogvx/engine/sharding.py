"""How a model lies on several ranks, by PyTorch's own FSDP2, and how gradients are averaged.

"replicate": every rank holds the whole model, and the trainer calls `average_gradients`. "fsdp": every rank holds 1/n
of each weight, of its gradient and of its optimizer state; it gathers each block for as long as it computes, and
gradients are averaged in the backward pass. "hsdp": the same among the ranks of each node, and every node holds a whole
copy, so that only gradients travel between nodes. The models know nothing of it; without torchrun none of it is active.

A weight under FSDP2 is a DTensor. Make the optimizer, and a moving average (a clone of each parameter), after `wrap`.
AdamW is the optimizer for shards. Trainings refuse Muon: it finds the same result, but gathers its matrices in every
iteration. On two CPU ranks and the toy's transformer a step took 1.0 to 1.8 s, against 0.3 s under "replicate".
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from minicogvx.engine.ranks import Ranks, backend, environment_number

SHARDINGS = "replicate", "fsdp", "hsdp"
MESSAGE = 2**26  # numbers in one all-reduce of gradients, at most: 256 MiB in float32


def check_sharding(sharding: str, device: torch.device) -> None:
    """Raises ValueError for an unknown sharding, and for FSDP2 on a device without process groups."""
    if sharding not in SHARDINGS:
        raise ValueError(f"sharding is {sharding!r}; it must be one of {', '.join(map(repr, SHARDINGS))}")
    if sharding != "replicate" and device.type not in ("cpu", "cuda"):
        raise ValueError(f"sharding is {sharding!r}; it goes with the device 'cpu' or 'cuda', not {device.type!r}")


def wrap(model: nn.Module, ranks: Ranks, sharding: str = "replicate", dtype: torch.dtype | None = None,
         offload: bool = False, blocks: Iterable[nn.Module] = (), ranks_a_node: int | None = None) -> nn.Module:
    """`model` itself, ready to train on all ranks, which start from the weights of rank 0.

    Under FSDP2 its weights are sharded in place along their first axis and updated in their own dtype. A single process
    holds all shards, which is useful with `offload`.

    Args:
        dtype: under FSDP2, the format of forward and backward (published: bfloat16); gradients are summed in float32.
            None: that of the weights.
        offload: under FSDP2, keep weights, gradients and optimizer state in CPU memory.
        blocks: parts of `model` that are gathered one at a time. Call them, and `model`, as modules.
        ranks_a_node: under "hsdp", how many neighbouring ranks share one copy; None: those of a machine, which torchrun
            gives in LOCAL_WORLD_SIZE.

    Raises ValueError for options that exclude each other, and for nodes that do not divide the ranks.
    """
    check_sharding(sharding, ranks.device)
    if sharding == "replicate":
        if dtype is not None or offload:
            raise ValueError(f"sharding is 'replicate'; dtype={dtype} and offload={offload} go with 'fsdp' and 'hsdp'")
        broadcast_weights(model, ranks)
        return model
    if not dist.is_initialized():
        _become_a_group(ranks.device)
    broadcast_weights(model, ranks)
    how = {"mesh": _mesh(ranks, sharding, ranks_a_node),
           "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32),
           "offload_policy": CPUOffloadPolicy(ranks.device.type == "cuda") if offload else OffloadPolicy()}
    for block in blocks:
        fully_shard(block, **how)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped .* returned a view")  # no output is changed in place
    return fully_shard(model, **how)


def _become_a_group(device: torch.device) -> None:
    """A process group of one, which FSDP2 needs even on a single process. `leave` destroys it."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    dist.init_process_group(backend(device), store=dist.HashStore(), rank=0, world_size=1)


def _mesh(ranks: Ranks, sharding: str, ranks_a_node: int | None) -> DeviceMesh:
    """The ranks in one row, or for "hsdp" a row for each node."""
    count = ranks.world_size
    if sharding == "fsdp":
        return dist.init_device_mesh(ranks.device.type, (count,))
    if ranks_a_node is None:
        ranks_a_node = environment_number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else count
    if ranks_a_node < 1 or count % ranks_a_node:
        raise ValueError(f"ranks_a_node is {ranks_a_node}; it must divide {count}, the number of ranks")
    return dist.init_device_mesh(ranks.device.type, (count // ranks_a_node, ranks_a_node),
                                 mesh_dim_names=("node", "rank"))


@contextmanager
def without_sync(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Within this context FSDP2 adds up gradients on each rank and sends none, if `active`.

    For all but the last backward pass of a step, whose messages then carry the sum. The gradients of the whole model
    are kept on every rank meanwhile. Other models are not affected: their trainer averages once a step anyway.
    """
    if not active or not isinstance(model, FSDPModule):
        yield
        return
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def reshard(modules: Iterable[nn.Module]) -> None:
    """Makes FSDP2 gather weights again that were written into.

    After a forward pass without a backward pass it keeps those of the outermost module, for the next one.
    """
    for module in modules:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


@torch.no_grad()
def broadcast_weights(model: nn.Module, ranks: Ranks) -> None:
    """Broadcasts the weights of rank 0, in place."""
    for tensor in (*model.parameters(), *model.buffers()) if ranks.world_size > 1 else ():
        dist.broadcast(tensor, src=0)


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor], ranks: Ranks) -> None:
    """Replaces each gradient by its mean over ranks, in few messages and summed in float32, for weights that are whole.

    Within a team, whose ranks hold parts of the same clips, gradients are summed. A missing gradient counts as zero:
    all ranks must send the same sizes. (A sum in 16 bits would lose small gradients.)
    """
    if ranks.world_size == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    for p in parameters:
        p.grad = (torch.zeros_like(p, memory_format=torch.contiguous_format) if p.grad is None
                  else p.grad.contiguous())
    for message in _messages([piece for p in parameters for piece in p.grad.view(-1).split(MESSAGE)]):
        flat = torch.cat([piece.to(torch.promote_types(piece.dtype, torch.float32)) for piece in message])
        dist.all_reduce(flat)
        flat /= ranks.teams
        torch._foreach_copy_(message, flat.split([piece.numel() for piece in message]))


def _messages(pieces: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """`pieces` in groups of at most MESSAGE numbers."""
    message, size = [], 0
    for piece in pieces:
        if size + piece.numel() > MESSAGE:
            yield message
            message, size = [], 0
        message.append(piece)
        size += piece.numel()
    if message:
        yield message


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
