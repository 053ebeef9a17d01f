"""Many ranks: one process for each GPU, started by `torchrun`, and PyTorch's own engines to keep them in step.

Data parallel ("replicate"): every rank holds the whole model, and gradients are averaged. FSDP2 ("fsdp"): every rank
holds 1/n of each weight, of its gradient and of its optimizer state, and gathers a block while it is at work. The model
files know nothing of either; without torchrun nothing of this is active.

A weight under FSDP2 is a DTensor. Make the optimizer, and a moving average (a clone of each parameter), after `wrap`.
AdamW is the optimizer for shards. Muon works on them, too, with the same result, but gathers its matrices in every
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
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from minicogvx.compat import choose_device
from minicogvx.transformer.model import ExpertTransformer


@dataclass(frozen=True)
class Ranks:
    """Who this process is: its number, of how many, and where it computes. The default is a process alone.

    `context` neighbours are a team that holds each of its clips together, some frames each (vae/context_parallel.py).
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
        """How many teams there are: as many as ranks, unless neighbours share their clips."""
        return self.world_size // self.context

    def part(self, batch_size: int) -> slice:
        """Where this rank's clips lie in a batch of all ranks together: equal parts, one behind the other.

        Raises ValueError for a batch that the ranks, or teams of them, do not divide.
        """
        if batch_size % self.teams:
            who = "ranks" if self.context == 1 else f"teams of {self.context} ranks"
            raise ValueError(f"batch_size is {batch_size}, of all ranks together; it must be a multiple of "
                             f"{self.teams}, the number of {who}")
        own, team = batch_size // self.teams, self.rank // self.context
        return slice(team * own, (team + 1) * own)


def ranks(device: str | None = None, timeout: float = 600.0) -> Ranks:
    """This process among those that `torchrun` started: joins them by nccl on CUDA, by gloo on the CPU.

    Without torchrun it is alone, and there is no process group. `device`: as `compat.choose_device` takes it; None is
    MINICOGVX_DEVICE, else the fastest here. Under torchrun "cuda" is for each rank the GPU of its own number. A rank
    that waits longer than `timeout` seconds for another raises an error instead of hanging.
    Raises ValueError for a device that is not here or that ranks cannot share, for a variable of torchrun that is no
    number, and for more ranks on this machine than GPUs.
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
    """A process group of this process alone, which FSDP2 needs even to shard nothing. `leave` ends it."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    dist.init_process_group(_backend(device), store=dist.HashStore(), rank=0, world_size=1)


def _meeting_place(rank: int, world: int, waits: timedelta) -> dist.Store:
    """Where the ranks leave each other their addresses.

    `torchrun --max-restarts` starts dead ranks again beside the same store, with the addresses of the dead still in it.
    On one machine all ranks know how often that was, and leave theirs apart. On several each counts for itself; there
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 asks torchrun for a new store.
    """
    store, _, _ = next(rendezvous("env://", rank, world, timeout=waits))
    if os.environ.get("LOCAL_WORLD_SIZE") != str(world):
        return store
    return dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def barrier(ranks: Ranks) -> None:
    """Waits until every rank has come here."""
    if ranks.world_size > 1:
        dist.barrier()


def leave() -> None:
    """Leaves the process group, if there is one; the last call of a run.

    gloo's threads outlive the group where PyTorch's caches hold it, and after a message they need the interpreter to
    let go of its tensors. A process that ends at that moment aborts, so they are given a moment.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
        time.sleep(0.1)


def environment_number(name: str) -> int:
    """A variable that torchrun sets, such as WORLD_SIZE. Raises ValueError where it is no number."""
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise ValueError(f"{name} is {value!r}; torchrun sets it to a whole number, so start the run by torchrun")
    return int(value)


# ---- the model


def check_sharding(sharding: str, device: torch.device) -> None:
    """Raises ValueError for a sharding that there is not, and for FSDP2 on a device that has no process groups."""
    if sharding not in ("replicate", "fsdp"):
        raise ValueError(f"sharding is {sharding!r}; it must be 'replicate' or 'fsdp'")
    if sharding == "fsdp" and device.type not in ("cpu", "cuda"):
        raise ValueError(f"sharding is 'fsdp'; it goes with the device 'cpu' or 'cuda', not {device.type!r}")


def wrap(model: nn.Module, ranks: Ranks, sharding: str = "replicate", dtype: torch.dtype | None = None,
         offload: bool = False) -> nn.Module:
    """`model`, ready to train on all ranks; call what is returned. All ranks start from the weights of rank 0.

    "replicate": `DistributedDataParallel` around it, whose `.module` it is; without torchrun the model itself. "fsdp":
    the model itself, its weights cut in place along their first axis, block by block where it is an ExpertTransformer;
    the weights keep their own dtype and are updated in it. A process alone then holds all shards, which is of use with
    `offload`. A model on the meta device is cut first and then gets memory for the shards alone, without values:
    `sharded_checkpoints.read_slices` brings them.

    Args:
        dtype: under FSDP2, what forward and backward compute in (published: bfloat16); gradients are summed in float32.
            None: the weights' own. Under "replicate" a model computes in the dtype of its weights, and `dtype` must be
            None; gradients of 16 bits are summed in float32 there, too.
        offload: under FSDP2, weights, gradients and optimizer state lie in the memory of the CPU.

    Raises ValueError for options that do not go together.
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
    """DDP's mean of gradients, with the sum over ranks in float32: in 16 bits it loses small gradients."""
    buffer = bucket.buffer()
    wide = buffer.float().div_(world_size)
    if wide.is_cuda:  # while the backward pass goes on
        done = dist.all_reduce(wide, async_op=True).get_future()
        return done.then(lambda future: buffer.copy_(future.value()[0]))
    dist.all_reduce(wide)
    done = torch.futures.Future()
    done.set_result(buffer.copy_(wide))
    return done


@torch.no_grad()
def broadcast_weights(model: nn.Module, ranks: Ranks) -> None:
    """Gives every rank the weights of rank 0, in place."""
    for tensor in (*model.parameters(), *model.buffers()) if ranks.world_size > 1 else ():
        dist.broadcast(tensor, src=0)


# ---- gradients and losses


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor], ranks: Ranks) -> None:
    """Replaces each gradient by its mean over ranks, in one message: for small modules that `wrap` has not seen.

    Within a team, whose ranks hold parts of the same clips, gradients are summed. A missing one counts as zero, so that
    all ranks send the same.
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


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales all gradients so that their joint norm is at most `max_norm`; returns the norm before, alike on all ranks.

    Right for whole gradients (averaged already), for FSDP2's shards, whose squares are summed over ranks, and for both
    together. A norm that is not finite is returned and nothing is scaled: the caller skips the step.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    kinds = [g for g in grads if isinstance(g, DTensor)], [g for g in grads if not isinstance(g, DTensor)]
    norms = [nn.utils.get_total_norm(kind) for kind in kinds if kind]
    norms = [n.full_tensor() if isinstance(n, DTensor) else n for n in norms]
    norm = torch.stack([n.to(norms[-1].device) for n in norms]).norm()  # offloaded shards lie on the CPU
    if torch.isfinite(norm):
        factor = min(max_norm / (norm.item() + 1e-6), 1.0)
        for kind in kinds:
            if kind and factor < 1:
                torch._foreach_mul_(kind, factor)
    return norm


def mean_over_ranks(values: Mapping[str, float | Tensor], ranks: Ranks) -> dict[str, float | Tensor]:
    """Each logged value averaged over ranks, all of them in one message; every rank must give the same names."""
    if ranks.world_size == 1:
        return dict(values)
    both = torch.tensor([float(value) for value in values.values()], dtype=torch.float64, device=ranks.device)
    dist.all_reduce(both)
    return dict(zip(values, (both / ranks.world_size).tolist()))
