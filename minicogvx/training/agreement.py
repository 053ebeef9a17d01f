"""Decisions that all ranks must share, although each sees its own disk and its own signals."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minicogvx.training.distributed import Ranks


def from_first(value: Any, ranks: Ranks) -> Any:
    """Broadcasts rank 0's `value` to every rank."""
    return _broadcast(value) if ranks.world_size > 1 else value


@torch.no_grad()
def share_from_first(done: int, tensors: Callable[[], Iterable[Tensor]]) -> int:
    """Broadcasts rank 0's `done` and, if it is above 0, its `tensors` (in place). Returns `done`."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return done
    done = _broadcast(done)
    for tensor in tensors() if done else ():
        dist.broadcast(tensor, src=0)
    return done


def any_rank(said: bool) -> bool:
    """Whether `said` is true on any rank. All ranks must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return said
    flag = torch.tensor(int(said))
    dist.all_reduce(flag)
    return bool(flag)


def _broadcast(value: Any) -> Any:
    given = [value]
    dist.broadcast_object_list(given, src=0)
    return given[0]
