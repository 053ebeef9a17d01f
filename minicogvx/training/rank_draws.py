"""The random numbers and timesteps of each rank in a step; no two ranks share any."""

import torch
from jaxtyping import Int
from torch import Tensor

from minicogvx.diffusion.timesteps import rank_interval, rank_timesteps, stratified_timesteps, uniform_timesteps
from minicogvx.engine.ranks import Ranks


def rank_generator(step_seed: int, ranks: Ranks) -> torch.Generator:
    """The generator of this rank for one step: different on every rank; on a single rank seeded by `step_seed`."""
    return torch.Generator().manual_seed(step_seed * ranks.world_size + ranks.rank)


def draw_timesteps(b: int, T: int, ranks: Ranks, generator: torch.Generator | None = None,
                   how: str = "rank") -> Int[Tensor, " b"]:
    """This rank's b timesteps.

    rank: explicit uniform sampling as published (paper 3.3), each rank from its own interval; plain on one rank.
    stratified: ours; each rank's interval is cut into b parts, with one draw from each, which also helps on one rank.
    uniform: plain draws from 0 .. T-1.
    """
    if how not in ("rank", "stratified", "uniform"):
        raise ValueError(f"how is {how!r}; it must be 'rank', 'stratified' or 'uniform'")
    if how == "uniform":
        return uniform_timesteps(b, T, generator)
    if how == "rank":
        return rank_timesteps(b, T, ranks.rank, ranks.world_size, generator)
    low, high = rank_interval(T, ranks.rank, ranks.world_size)
    return low + stratified_timesteps(b, high - low, generator)
