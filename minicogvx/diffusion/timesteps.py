"""Timesteps: the few that sampling visits, and the random ones that training draws (paper 3.3)."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from minicogvx.diffusion.schedule import NoiseSchedule

# ---------------------------------------------------------------------------- sampling

def inference_timesteps(schedule: NoiseSchedule, num_inference_steps: int) -> Int[Tensor, "steps"]:
    """The timesteps of a sampling run, in decreasing order, by the schedule's `timestep_spacing`.

    trailing (published): round(T - i T / n) - 1. For n = 50 and T = 1000 this is 999, 979, .., 19.
    leading: (n - 1 - i) floor(T / n), here 980, 960, .., 0.   linspace: from T - 1 to 0 in equal steps, both included.
    Only trailing and linspace begin at T - 1, where the noise is pure with zero terminal SNR.

    The rounding is that of the published code, to the last bit. There, 62 values of n up to 1000 (the least is 61)
    give one entry too many, a timestep -1 due to a rounding error; here there are always n.
    Raises ValueError unless 1 <= num_inference_steps <= T.
    """
    T, n = schedule.num_train_timesteps, num_inference_steps
    if not 1 <= n <= T:
        raise ValueError(f"num_inference_steps is {n}; it must be from 1 to {T}")
    if schedule.config.timestep_spacing == "leading":
        return torch.arange(n - 1, -1, -1) * (T // n)
    if schedule.config.timestep_spacing == "linspace":
        step = (T - 1) / max(n - 1, 1)  # in float64, and half to even, as numpy rounds: one step starts at 0
        return torch.tensor([round(i * step) for i in range(n - 1, -1, -1)])
    stride = (T - T / n) - T  # -T/n with the rounding error that numpy's arange has: it decides ties
    return torch.tensor([round(T + i * stride) - 1 for i in range(n)])


def target_timesteps(schedule: NoiseSchedule, num_inference_steps: int,
                     target: Literal["stride", "next"] = "stride") -> Int[Tensor, "steps"]:
    """Where each sampling step lands; a negative timestep is the clean latent.

    stride (published): t - T // n. Where n does not divide T this is sometimes off the next timestep by one,
    and for some n (7, say) the last step lands on timestep 0, which leaves a trace of noise.
    next: exactly the next timestep of the list, and clean at the end.

    Raises ValueError for another target.
    """
    if target not in ("stride", "next"):
        raise ValueError(f"target is {target!r}; it must be 'stride' or 'next'")
    timesteps = inference_timesteps(schedule, num_inference_steps)
    if target == "next":
        return torch.cat([timesteps[1:], torch.tensor([-1])])
    return timesteps - schedule.num_train_timesteps // num_inference_steps


def start_index(strength: float, num_inference_steps: int) -> int:
    """The step at which video to video starts: n - floor(n strength), so strength 1 runs all n steps.

    Noise the video to `timesteps[index]`, then take steps index .. n-1. With strength < 1/n there is no step to
    take (the index is n) and the video is unchanged. Raises ValueError unless 0 <= strength <= 1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it must be from 0 to 1")
    return num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps)


# ---------------------------------------------------------------------------- training

def uniform_timesteps(b: int, T: int, generator: torch.Generator | None = None) -> Int[Tensor, "b"]:
    """b independent draws from 0 .. T-1. A batch leaves gaps by chance."""
    return torch.randint(0, T, (b,), generator=generator, device=_device(generator))


def stratified_timesteps(b: int, T: int, generator: torch.Generator | None = None) -> Int[Tensor, "b"]:
    """Explicit uniform sampling on one device: one draw from each of b equal parts of [0, T), in random order.

    t_i = floor((i + u_i) T / b) with u_i ~ U[0, 1).  What the paper does over ranks, here over the batch: the same
    mean loss, less variance. Each timestep is equally likely, also where b does not divide T.
    """
    device = _device(generator)
    u = torch.rand(b, generator=generator, device=device)
    t = ((torch.arange(b, device=device) + u) * (T / b)).long().clamp(max=T - 1)  # b - 1 + u can round up to b
    return t[torch.randperm(b, generator=generator, device=device)]


def rank_timesteps(b: int, T: int, rank: int, world_size: int, generator: torch.Generator | None = None,
                   grouping: Literal["paper", "v1.0"] = "paper") -> Int[Tensor, "b"]:
    """Explicit uniform sampling over data-parallel ranks (paper 3.3): b draws from this rank's own interval."""
    low, high = rank_interval(T, rank, world_size, grouping)
    return torch.randint(low, high, (b,), generator=generator, device=_device(generator))


def rank_interval(T: int, rank: int, world_size: int, grouping: Literal["paper", "v1.0"] = "paper") -> tuple[int, int]:
    """[low, high): the timesteps from which a rank draws. The intervals of all ranks cover 0 .. T-1.

    paper: as many intervals as ranks, [rank T / world, (rank + 1) T / world), rounded down.
    v1.0 (the code released with the 2B and 5B): only interval counts that divide both T and the number of ranks,
    the largest such; neighbouring ranks share one. (Later code disables it for up to 8 ranks.)
    Raises ValueError for a rank outside 0 .. world_size-1, or more ranks than timesteps.
    """
    if grouping not in ("paper", "v1.0"):
        raise ValueError(f"grouping is {grouping!r}; it must be 'paper' or 'v1.0'")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}; with world_size {world_size} it must be in 0..{world_size - 1}")
    ranks_per_group = 1
    if grouping == "v1.0":
        while world_size % ranks_per_group or T % (world_size // ranks_per_group):
            ranks_per_group += 1
    groups, group = world_size // ranks_per_group, rank // ranks_per_group
    if groups > T:
        raise ValueError(f"world_size is {world_size}; explicit uniform sampling needs at most {T} ranks, "
                         f"one for each timestep")
    return group * T // groups, (group + 1) * T // groups


def _device(generator: torch.Generator | None) -> torch.device:
    return generator.device if generator is not None else torch.device("cpu")
