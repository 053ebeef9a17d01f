"""Checks of notebook 04's sampling: the loop, a step that renews noise, a better list of timesteps."""

import operator

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.clouds import ddim_walk, walk_error
from minicogvx.course.exercises.exercise import Wrong, expect_close, expect_shape
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.presets import ScheduleConfig

# ---- walk


def check_walk(walk) -> None:
    """One guess a timestep, in order; the mixture that the next guess sees; the end without noise."""
    bars, timesteps = NoiseSchedule(ScheduleConfig()).alphas_cumprod, [999, 799, 599, 399, 199]
    start, clip = torch.randn(2, 1, 3).double(), torch.randn(2, 1, 3).double()

    seen = _seen(walk, lambda x, t: clip, start.clone(), timesteps, bars)
    asked = [t for _, t in seen[:-1]]
    if asked != timesteps:
        raise Wrong(f"guess was asked at the timesteps {asked}; it must be asked once at each of {timesteps}, in this "
                    f"order.")
    expect_shape("walk(guess, x, timesteps, bars)", seen[-1][0], tuple(start.shape))
    what = "With a guess that always says the same clip,"
    for i in range(1, len(timesteps)):
        bar = float(bars[timesteps[i]])
        got, wanted = seen[i][0], bar ** 0.5 * clip + (1 - bar) ** 0.5 * start
        if torch.allclose(got, seen[i - 1][0]):
            raise Wrong(f"{what} x is at timestep {timesteps[i]} what it was at {timesteps[i - 1]}: mix with the "
                        f"alpha_bar of the next timestep, not of this one.")
        if not torch.allclose(got, wanted, atol=1e-5):
            raise Wrong(f"{what} x must be sqrt({bar:.3g}) of the clip and sqrt({1 - bar:.3g}) of the noise that is "
                        f"left at timestep {timesteps[i]}; yours is off by up to {(got - wanted).abs().max():.3g}.")
    if not torch.allclose(seen[-1][0], clip, atol=1e-5):
        raise Wrong(f"{what} the walk must end at that clip; yours is off by up to "
                    f"{(seen[-1][0] - clip).abs().max():.3g}. After the last timestep alpha_bar is 1: no noise stays.")
    _check_remaining_noise(walk, start, timesteps, bars)


def _check_remaining_noise(walk, start: Tensor, timesteps: list[int], bars: Tensor) -> None:
    """The same with a guess that changes, so that the noise behind x changes, too."""

    def changing(x: Tensor, t: int) -> Tensor:
        return torch.tanh(x) + t / 1000

    given = start.clone()
    got = walk(changing, given, timesteps, bars)
    if not torch.equal(given, start):
        raise Wrong("walk changes its input x; make a new tensor in each step.")
    wanted = ddim_walk(changing, start, timesteps, bars)
    if not torch.allclose(got, wanted, atol=1e-5):
        raise Wrong(f"With a guess that changes from step to step, the result is off by up to "
                    f"{(got - wanted).abs().max():.3g}. The noise to mix in is what remains of x when the newest guess "
                    f"is taken out of it, not the noise of the beginning and not fresh noise.")


def _seen(walk, guess, x: Tensor, timesteps: list[int], bars: Tensor) -> list[tuple[Tensor, int | None]]:
    """What the guess was given, call by call, and at the end the result."""
    calls: list[tuple[Tensor, int | None]] = []

    def spy(x: Tensor, t: int) -> Tensor:
        calls.append((x.clone(), int(t)))
        return guess(x, t)

    result = walk(spy, x, timesteps, bars)
    return [*calls, (result, None)]


# ---- renewing_step


def partly_renewed(x0: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], fresh: Float[Tensor, "*shape"],
                   bar: float, bar_next: float, eta: float) -> Float[Tensor, "*shape"]:
    """One sampling step: DDIM at eta = 0, DDPM at eta = 1 (Song et al. 2021, eq. 12 and 16, in shares of noise)."""
    kept = bar * (1 - bar_next) / ((1 - bar) * bar_next)  # SNR before over SNR after
    new = eta ** 2 * (1 - kept)
    return bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * ((1 - new) ** 0.5 * noise + new ** 0.5 * fresh)


def check_renewing_step(renewing_step) -> None:
    """The clean part, the power of the noise, how much of it is new; the first and the last step of a run."""
    x0, noise, fresh = torch.randn(3, 1, 2, 1, 3, 3).unbind()
    for bar, bar_next, eta in ((0.3, 0.5, 0.0), (0.3, 0.5, 1.0), (0.3, 0.5, 0.5), (0.0, 0.02, 1.0), (0.0, 0.02, 0.5),
                               (0.9, 1.0, 1.0)):
        _check_one_step(renewing_step, x0, noise, fresh, bar, bar_next, eta)


def _check_one_step(renewing_step, x0: Tensor, noise: Tensor, fresh: Tensor, bar: float, bar_next: float,
                    eta: float) -> None:
    what = f"renewing_step with bar={bar:g}, bar_next={bar_next:g}, eta={eta:g}"
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    got = renewing_step(x0, noise, fresh, bar, bar_next, eta)
    expect_shape(what, got, tuple(x0.shape))
    if got.is_complex():
        raise Wrong(f"{what} has complex numbers: rounding made the number under a root slightly negative. max(..., 0) "
                    f"helps, or a formula whose shares cannot become negative.")
    if not torch.isfinite(got).all():
        raise Wrong(f"{what} holds NaN or infinity; kept is 0 where bar is 0, and where bar_next is 1.")
    clean = renewing_step(one, zero, zero, bar, bar_next, eta).mean().item()
    if abs(clean - bar_next ** 0.5) > 1e-4:
        raise Wrong(f"{what}: x0 comes in with the factor {clean:.3g}; it must be sqrt(bar_next) = "
                    f"{bar_next ** 0.5:.3g}.")
    old, new = (renewing_step(zero, *pair, bar, bar_next, eta).mean().item() for pair in ((one, zero), (zero, one)))
    if abs(old ** 2 + new ** 2 - (1 - bar_next)) > 1e-4:
        raise Wrong(f"{what}: old and fresh noise come in with the factors {old:.3g} and {new:.3g}, so the power "
                    f"of the noise is {old ** 2 + new ** 2:.3g}; it must be 1 - bar_next = {1 - bar_next:.3g}.")
    wanted = partly_renewed(zero, zero, one, bar, bar_next, eta).mean().item()
    if abs(new - wanted) > 1e-4:
        raise Wrong(f"{what}: the fresh noise comes in with the factor {new:.3g}; it must be {wanted:.3g}. Of the "
                    f"power of the noise, the share eta^2 (1 - kept) is new.")
    expect_close(what, got, partly_renewed(x0, noise, fresh, bar, bar_next, eta))


# ---- better_timesteps

COUNT, ENOUGH = 10, 0.75  # timesteps, and the share of the even list's error that is left


def timesteps_of_even_angles() -> list[int]:
    """Ten timesteps between which x_t turns by equal angles, a quarter of a circle in all."""
    angles = NoiseSchedule(ScheduleConfig()).alphas_cumprod.sqrt().acos()  # 0 for clean data, pi / 2 for noise
    return [int((angles - angles[-1] * (COUNT - i) / COUNT).abs().argmin()) for i in range(COUNT)]


def _whole(t) -> int:
    try:
        return operator.index(t)  # also of NumPy's and PyTorch's integers
    except TypeError:
        raise Wrong(f"better_timesteps() holds {t!r}; timesteps index a table, so all must be whole "
                    f"numbers.") from None


def check_better_timesteps(better_timesteps) -> None:
    """Ten timesteps from 999 down with which the walk to the three clouds errs clearly less than with even ones."""
    got = better_timesteps()
    if got is None:
        raise Wrong("better_timesteps() is None; does your function end in return?")
    got = [_whole(t) for t in (got.tolist() if isinstance(got, Tensor) else got)]
    if len(got) != COUNT:
        raise Wrong(f"better_timesteps() has {len(got)} timesteps; it must have {COUNT}. The list is to be better, not "
                    f"longer.")
    if got[0] != 999:
        raise Wrong(f"The walk begins at timestep {got[0]}; it must begin at 999, the only one that is pure noise.")
    for before, after in zip(got, got[1:]):
        if after >= before:
            raise Wrong(f"{after} comes after {before}; timesteps must fall in every step.")
    if got[-1] < 0:
        raise Wrong(f"The last timestep is {got[-1]}; timesteps must be in 0..999.")
    even, mine = walk_error(list(range(999, 0, -1000 // COUNT))), walk_error(got)
    if mine > ENOUGH * even:
        raise Wrong(f"With {got} the walk errs by {mine:.4f}, {mine / even:.0%} of the {even:.4f} of even timesteps; "
                    f"it must be at most {ENOUGH:.0%}. Where does the guess change most?")
