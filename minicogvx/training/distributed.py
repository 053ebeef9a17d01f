"""Distributed training: one process for each GPU, started by `torchrun`, with PyTorch's own DDP and FSDP2.

Data parallel ("replicate"): every rank holds the whole model, and gradients are averaged. FSDP2 ("fsdp"): every rank
holds 1/n of each weight, of its gradient and of its optimizer state, and gathers each block for as long as it computes.
The model files know nothing of either; without torchrun none of this is active.

A weight under FSDP2 is a DTensor. Make the optimizer, and a moving average (a clone of each parameter), after `wrap`.
AdamW is the optimizer for shards. Muon works as well, with the same result, but gathers its matrices in every
iteration: on two CPU ranks and the toy's transformer a step took 1.0 to 1.8 s, against 0.3 s under "replicate".
"""

import gc
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from minicogvx.compat import choose_device
from minicogvx.transformer.model import ExpertTransformer


@dataclass(frozen=True)
class Ranks:
    """This process's rank, the number of ranks, and its device. The default is a single process.

    `context` neighbouring ranks form a team that splits the frames of each clip (vae/context_parallel.py).
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    context: int = 1
    group: dist.ProcessGroup | None = None  # this rank's team; None: all ranks

    def __post_init__(self):
        if self.context < 1 or self.world_size % self.context:
            raise ValueError(f"context_ranks is {self.context}; it must divide {self.world_size}, the number of ranks")

    @property
    def first(self) -> bool:
        """Whether this rank is the one that prints and writes."""
        return self.rank == 0

    @property
    def teams(self) -> int:
        """The number of teams: as many as ranks, unless neighbours share their clips."""
        return self.world_size // self.context

    def part(self, batch_size: int) -> slice:
        """This rank's slice of a joint batch, which is cut into equal, consecutive parts.

        Raises ValueError for a batch that the ranks, or teams of ranks, do not divide.
        """
        if batch_size % self.teams:
            who = "ranks" if self.context == 1 else f"teams of {self.context} ranks"
            raise ValueError(f"batch_size is {batch_size}, of all ranks together; it must be a multiple of "
                             f"{self.teams}, the number of {who}")
        own, team = batch_size // self.teams, self.rank // self.context
        return slice(team * own, (team + 1) * own)


def ranks(device: str | None = None, timeout: float = 600.0) -> Ranks:
    """Joins the processes that `torchrun` started, by nccl on CUDA and gloo on the CPU.

    Without torchrun this is a single process, without a process group. `device`: as for `compat.choose_device`; None is
    MINICOGVX_DEVICE, else the fastest here. Under torchrun "cuda" means the GPU with the rank's local number. A rank
    that waits longer than `timeout` seconds for another raises an error instead of hanging.
    Raises ValueError for a device that is missing or that ranks cannot share, for an environment variable of torchrun
    that is not a number, and for more ranks on this machine than GPUs.
    """
    name = choose_device(device)
    if "RANK" not in os.environ:
        return Ranks(device=torch.device(name))
    rank, world, local = (environment_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}; under torchrun it must be 'cpu' or 'cuda', of which each rank takes the "
                         f"GPU of its own number")
    place = torch.device(name)
    if name == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(f"LOCAL_RANK is {local}, and this machine has {torch.cuda.device_count()} GPUs; "
                             f"--nproc-per-node must be at most that")
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        waits = timedelta(seconds=timeout)
        dist.init_process_group(_backend(place), store=_meeting_place(rank, world, waits), rank=rank, world_size=world,
                                timeout=waits)
    return Ranks(rank, world, place)


def _backend(device: torch.device) -> str:
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _be_a_group(device: torch.device) -> None:
    """A process group of one, which FSDP2 needs even on a single process. `leave` destroys it."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    dist.init_process_group(_backend(device), store=dist.HashStore(), rank=0, world_size=1)


def _meeting_place(rank: int, world: int, waits: timedelta) -> dist.Store:
    """The store in which the ranks publish their addresses.

    `torchrun --max-restarts` restarts ranks with the same store, which still holds the addresses of the dead ones. On
    one machine all ranks know the number of restarts and use it as a prefix. On several machines each counts its own;
    there, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun create a new store.
    """
    store, _, _ = next(rendezvous("env://", rank, world, timeout=waits))
    if os.environ.get("LOCAL_WORLD_SIZE") != str(world):
        return store
    return dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def barrier(ranks: Ranks) -> None:
    """Waits until every rank has reached this call."""
    if ranks.world_size > 1:
        dist.barrier()


def leave() -> None:
    """Destroys the process group, if there is one; the last call of a run.

    gloo's threads outlive a group that PyTorch's caches still reference, and after a message they need the interpreter
    to free its tensors. A process that exits at that moment aborts, so this waits briefly.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
        time.sleep(0.1)


def environment_number(name: str) -> int:
    """A variable that torchrun sets, such as WORLD_SIZE. Raises ValueError if it is not a number."""
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise ValueError(f"{name} is {value!r}; torchrun sets it to a whole number, so start the run with torchrun")
    return int(value)


# ---- the model


def check_sharding(sharding: str, device: torch.device) -> None:
    """Raises ValueError for an unknown sharding, and for FSDP2 on a device without process groups."""
    if sharding not in ("replicate", "fsdp"):
        raise ValueError(f"sharding is {sharding!r}; it must be 'replicate' or 'fsdp'")
    if sharding == "fsdp" and device.type not in ("cpu", "cuda"):
        raise ValueError(f"sharding is 'fsdp'; it goes with the device 'cpu' or 'cuda', not {device.type!r}")


def wrap(model: nn.Module, ranks: Ranks, sharding: str = "replicate", dtype: torch.dtype | None = None,
         offload: bool = False) -> nn.Module:
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
    for block in model.transformer_blocks if isinstance(model, ExpertTransformer) else ():
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


# ---- gradients and losses


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


def mean_over_ranks(values: Mapping[str, float | Tensor], ranks: Ranks) -> dict[str, float | Tensor]:
    """Averages logged values over ranks, in one all-reduce; every rank must pass the same names."""
    if ranks.world_size == 1:
        return dict(values)
    both = torch.tensor([float(value) for value in values.values()], dtype=torch.float64, device=ranks.device)
    dist.all_reduce(both)
    return dict(zip(values, (both / ranks.world_size).tolist()))
