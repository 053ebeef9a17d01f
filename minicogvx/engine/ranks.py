"""Ranks: one process for each GPU, started by `torchrun`, and what they must agree on.

Without torchrun there is one rank and no process group.
"""

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from minicogvx.compat import choose_device

LONG = timedelta(days=1)  # how long ranks wait for one that scans films, say, or writes a checkpoint


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
        dist.init_process_group(backend(place), store=_meeting_place(rank, world, waits), rank=rank, world_size=world,
                                timeout=waits)
    return Ranks(rank, world, place)


def backend(device: torch.device) -> str:
    """The name of the collectives' library for `init_process_group`."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


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
        _patient.cache_clear()
        gc.collect()
        dist.destroy_process_group()
        time.sleep(0.1)


def environment_number(name: str) -> int:
    """A variable that torchrun sets, such as WORLD_SIZE. Raises ValueError if it is not a number."""
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise ValueError(f"{name} is {value!r}; torchrun sets it to a whole number, so start the run with torchrun")
    return int(value)


# ---- decisions that all ranks must share, although each sees its own disk and its own signals


def from_first(value: Any, ranks: Ranks) -> Any:
    """Broadcasts rank 0's `value` to every rank."""
    return _broadcast(value) if ranks.world_size > 1 else value


def any_rank(said: bool) -> bool:
    """Whether `said` is true on any rank. All ranks must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return said
    flag = torch.tensor(int(said))
    dist.all_reduce(flag)
    return bool(flag)


def _broadcast(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    given = [value]
    dist.broadcast_object_list(given, src=0, group=group)
    return given[0]


# ---- long work that can fail on one rank: all ranks make these calls, and an error on one is raised on each


def by_first(work: Callable[[], Any], ranks: Ranks) -> Any:
    """The result of `work()` on rank 0, on every rank."""
    if ranks.world_size == 1:
        return work()
    value, error = _outcome(work) if ranks.first else (None, None)
    told, problem = _broadcast((value, _portable(error)), _patient(dist.group.WORLD))
    if problem is not None:
        raise error or problem
    return told


def on_each(work: Callable[[], Any], ranks: Ranks) -> list[Any]:
    """The results of `work()` on all ranks, in their order, on every rank."""
    if ranks.world_size == 1:
        return [work()]
    value, error = _outcome(work)
    told: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(told, (value, _portable(error)), group=_patient(dist.group.WORLD))
    problems = [problem for _, problem in told if problem is not None]
    if problems:
        raise error or problems[0]
    return [value for value, _ in told]


@lru_cache
def _patient(everyone: dist.ProcessGroup) -> dist.ProcessGroup:
    """All ranks again, in a group that waits for a `LONG` time. A dead rank is noticed at once."""
    return dist.new_group(backend="gloo", timeout=LONG)


def _outcome(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except Exception as error:  # of any kind: the other ranks are waiting
        return None, error


def _portable(error: Exception | None) -> Exception | None:
    """`error` as one that can be sent: the classes of some need more than a message."""
    if error is None:
        return None
    kind = next((kind for kind in (ValueError, OSError, MemoryError) if isinstance(error, kind)), None)
    return kind(str(error)) if kind else RuntimeError(f"{type(error).__name__}: {error}")
