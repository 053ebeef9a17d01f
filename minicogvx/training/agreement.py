"""What all ranks must decide alike, though each sees its own disk and its own signals."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minicogvx.training.distributed import Ranks


def from_first(value: Any, ranks: Ranks) -> Any:
    """What rank 0 gives for `value`, on every rank."""
    return _broadcast(value) if ranks.world_size > 1 else value


@torch.no_grad()
def share_from_first(done: int, tensors: Callable[[], Iterable[Tensor]]) -> int:
    """`done` as rank 0 has it and, where that is above 0, its values of `tensors` on all ranks; alone, `done`."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return done
    done = _broadcast(done)
    for tensor in tensors() if done else ():
        dist.broadcast(tensor, src=0)
    return done


def any_rank(said: bool) -> bool:
    """Whether one rank says so; all must ask."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return said
    flag = torch.tensor(int(said))
    dist.all_reduce(flag)
    return bool(flag)


def _broadcast(value: Any) -> Any:
    given = [value]
    dist.broadcast_object_list(given, src=0)
    return given[0]
