"""What each rank draws in a step: its clips, its random numbers and its timesteps, none of them another's."""

import torch
from jaxtyping import Int
from torch import Tensor

from minicogvx.diffusion.timesteps import rank_interval, rank_timesteps, stratified_timesteps, uniform_timesteps
from minicogvx.training.distributed import Ranks


def rank_clips(clips: int, batch_size: int, step: int, ranks: Ranks, seed: int = 0) -> Int[Tensor, " b"]:
    """The clips (numbers below `clips`) of this rank's batch at `step`: each epoch a new order, no clip twice.

    The ranks' batches, one behind the other, are the batch that one rank of `batch_size` x world would draw: a run
    sees the same clips in the same order on any number of ranks. What is left over of an epoch is not used.
    Raises ValueError where the joined batch needs more clips than there are.
    """
    joined = batch_size * ranks.world_size
    if not 1 <= joined <= clips:
        raise ValueError(f"batch_size is {batch_size}, on {ranks.world_size} ranks together {joined} clips; it must be "
                         f"at least 1 and they at most the {clips} there are")
    epoch, step = divmod(step, clips // joined)
    order = torch.randperm(clips, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    start = step * joined + ranks.rank * batch_size
    return order[start:start + batch_size]


def rank_generator(step_seed: int, ranks: Ranks) -> torch.Generator:
    """Random numbers of this rank for one step: no two ranks alike, and on one rank those of `step_seed` itself."""
    return torch.Generator().manual_seed(step_seed * ranks.world_size + ranks.rank)


def draw_timesteps(b: int, T: int, ranks: Ranks, generator: torch.Generator | None = None,
                   how: str = "rank") -> Int[Tensor, " b"]:
    """This rank's b timesteps.

    rank: explicit uniform sampling as published (paper 3.3), each rank from its own interval; plain on one rank.
    stratified: ours, each rank's interval cut again into b parts with one draw from each: so also of use on one rank.
    uniform: plain draws from all of 0 .. T-1.
    """
    if how not in ("rank", "stratified", "uniform"):
        raise ValueError(f"how is {how!r}; it must be 'rank', 'stratified' or 'uniform'")
    if how == "uniform":
        return uniform_timesteps(b, T, generator)
    if how == "rank":
        return rank_timesteps(b, T, ranks.rank, ranks.world_size, generator)
    low, high = rank_interval(T, ranks.rank, ranks.world_size)
    return low + stratified_timesteps(b, high - low, generator)
