"""Worlds of single numbers: each is drawn from one of a few narrow bell curves, "clouds".

Their perfect network can be written down, so whatever is wrong with a sample is the sampler's doing, or guidance's.
The claims that learners make in exercises 4.5 and 5.5 are tested here.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.diffusion.guidance import guide
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.presets import ScheduleConfig

Guess = Callable[[Tensor, int], Tensor]  # noisy numbers and their timestep -> what is clean behind them


def evenly_likely(count: int) -> Float[Tensor, " count"]:
    """The standard bell curve as `count` points, each as likely as any other; float64, rising."""
    return torch.special.ndtri((torch.arange(count).double() + 0.5) / count)


def ddim_walk(guess: Guess, x: Float[Tensor, "*shape"], timesteps: Sequence[int],
              bars: Float[Tensor, "T"]) -> Float[Tensor, "*shape"]:
    """Clean numbers from noise, in as many DDIM steps as there are timesteps, which fall; `bars`: alpha_bar."""
    targets = [*timesteps[1:], None]
    for t, target in zip(timesteps, targets):
        bar, bar_next = float(bars[t]), 1.0 if target is None else float(bars[target])
        clean = guess(x, t)
        remaining = (x - bar ** 0.5 * clean) / (1 - bar) ** 0.5
        x = bar_next ** 0.5 * clean + (1 - bar_next) ** 0.5 * remaining
    return x


def best_clean(x: Float[Tensor, "n"], bar: float, places: Float[Tensor, " k"], width: float,
               shares: Float[Tensor, " k"] | None = None) -> Float[Tensor, "n"]:
    """The mean of all clean numbers that x may hide at this alpha_bar, each as likely as it is.

    The world: clouds of this width (standard deviation) around `places`, of equal shares or of `shares`.
    """
    spread = 1 - bar + bar * width ** 2
    weight = torch.zeros(len(places)).double() if shares is None else shares.log()
    likely = torch.softmax(weight - (x[:, None] - bar ** 0.5 * places).square() / (2 * spread), dim=1)
    near = likely @ places
    return near + bar ** 0.5 * width ** 2 / spread * (x - bar ** 0.5 * near)


# ---- three clouds, for timesteps

PLACES, WIDTH = torch.tensor([-1.2, 0.3, 1.0]).double(), 0.2


def walk_error(timesteps: Sequence[int], count: int = 600) -> float:
    """How far the results of a DDIM walk over `timesteps` are from the three clouds, on average.

    The perfect network makes 3 `count` numbers; both are sorted and subtracted, which in one dimension is the transport
    distance. No randomness: the starting noise is the bell curve as evenly likely points.
    """
    bars = NoiseSchedule(ScheduleConfig()).alphas_cumprod
    made = ddim_walk(lambda x, t: best_clean(x, float(bars[t]), PLACES, WIDTH), evenly_likely(3 * count), timesteps,
                     bars)
    world = (PLACES[:, None] + WIDTH * evenly_likely(count)).flatten().sort().values
    return (made.sort().values - world).abs().mean().item()


# ---- four clouds, for guidance

EVERYTHING, RIGHT, NARROW = torch.tensor([-1.0, -0.2, 0.2, 1.0]).double(), torch.tensor([0.2, 1.0]).double(), 0.22


def guided_numbers(scale: float, steps: int = 50, count: int = 1000) -> Float[Tensor, " count"]:
    """What guidance makes of the four clouds with the caption "right", in DDIM steps, rising."""
    bars = NoiseSchedule(ScheduleConfig()).alphas_cumprod

    def guess(x: Tensor, t: int) -> Tensor:
        uncond, cond = (best_clean(x, float(bars[t]), places, NARROW) for places in (EVERYTHING, RIGHT))
        return guide(uncond, cond, scale)

    return ddim_walk(guess, evenly_likely(count), range(999, 0, -1000 // steps), bars).sort().values
