"""Exercises 17.2 to 17.4 of notebook 17: the chance of a step, advantages within a group, the clipped objective."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_shape
from minicogvx.training.policy import gaussian_log_prob
from minicogvx.training.reward import group_advantages

# ---- 17.3 advantages


def check_advantages(advantages) -> None:
    """Each group has the mean 0 and the spread 1; equal rewards give 0; other groups and units do not matter."""
    mixed = torch.tensor([[0.2, 0.8, 0.6, 1.0], [1.0, 1.0, 0.0, 0.4], [0.0, 0.2, 0.0, 0.0]])
    tied = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.2, 0.8, 0.6, 1.0]])
    got = _advantages("advantages of three groups", advantages, mixed)
    means = got.mean(dim=1)
    if means.abs().max() > 1e-4:
        whole = " Over all groups together it is 0: subtract each group's own mean." if got.mean().abs() < 1e-4 else ""
        raise Wrong(f"The advantages of a group have the mean {means[means.abs().argmax()]:.3f}; it must be 0.{whole}")
    wanted = group_advantages(mixed)
    if not _either_spread(got, wanted):
        spreads = ", ".join(f"{each:.2f}" for each in got.std(dim=1, correction=0))
        centred = mixed - mixed.mean(dim=1, keepdim=True)
        variance = centred / mixed.var(dim=1, keepdim=True, correction=0)
        why = (", not by the variance" if torch.allclose(got, variance, atol=1e-3) else
               "; here it was not divided at all" if torch.allclose(got, centred, atol=1e-3) else "")
        raise Wrong(f"The advantages of the three groups have the standard deviations {spreads}; each must be 1. "
                    f"Divide by the standard deviation of the group's own rewards{why}.")
    got = _advantages("advantages where one group has equal rewards", advantages, tied)
    if not torch.isfinite(got).all():
        raise Wrong("Where all rewards of a group are equal, the advantages are NaN or infinite: 0 / 0. Nothing can be "
                    "learned from such a group, so they must be 0.")
    if got[0].abs().max() > 1e-3:
        raise Wrong(f"Where all rewards of a group are equal, the advantages are {got[0].tolist()}; they must be 0.")
    for what, change in (("ten times larger", 10 * mixed), ("all raised by 5", mixed + 5)):
        if not torch.allclose(_advantages(f"advantages of rewards that are {what}", advantages, change),
                              advantages(mixed.clone()).float(), atol=1e-2):
            raise Wrong(f"Rewards that are {what} give other advantages; only differences within a group may count, in "
                        f"units of their spread.")


def _advantages(what: str, advantages, rewards: Tensor) -> Tensor:
    got = advantages(rewards.clone())
    expect_shape(what, got, tuple(rewards.shape))
    return got.float()


def _either_spread(got: Tensor, wanted: Tensor) -> bool:
    """Whether the spread is that of the group (divided by n), or as estimated from a sample (by n - 1)."""
    n = got.shape[1]
    return any(torch.allclose(got, scale * wanted, atol=2e-3) for scale in (1.0, math.sqrt((n - 1) / n)))


# ---- 17.2 log_chance


def log_prob_of_step(x_next: Float[Tensor, "b *rest"], x0: Float[Tensor, "b *rest"], noise: Float[Tensor, "b *rest"],
                     bar: float, bar_next: float, eta: float) -> Float[Tensor, "b"]:
    """The log-probability of landing at x_next from the predicted x0 and noise, by DDIM with eta."""
    std = eta * math.sqrt((1 - bar_next) / (1 - bar) * (1 - bar / bar_next))
    mean = math.sqrt(bar_next) * x0 + math.sqrt(max(0.0, 1 - bar_next - std**2)) * noise
    return gaussian_log_prob(x_next, mean, std)


def check_log_chance(log_chance) -> None:
    """Highest at the mean; falls with the squared distance; sums over all numbers; one value for each clip."""
    x0, noise, push = (torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(i)) for i in (1, 2, 3))
    for bar, bar_next, eta in ((0.3, 0.7, 1.0), (0.0, 0.4, 0.5), (0.5, 0.9, 0.3)):
        what = f"log_chance(..., bar={bar}, bar_next={bar_next}, eta={eta})"
        std = eta * math.sqrt((1 - bar_next) / (1 - bar) * (1 - bar / bar_next))
        x_next = math.sqrt(bar_next) * x0 + math.sqrt(1 - bar_next - std**2) * noise + std * push
        got, right = log_chance(x_next, x0, noise, bar, bar_next, eta), log_prob_of_step(x_next, x0, noise, bar,
                                                                                         bar_next, eta)
        if isinstance(got, Tensor) and got.shape == x_next.shape:
            raise Wrong(f"{what} has one value for each number of the latents, shape {tuple(got.shape)}; sum over all "
                        f"but the first axis: the log of a product is the sum of logs.")
        if isinstance(got, Tensor) and got.ndim == 0:
            raise Wrong(f"{what} is one number for the whole batch; it must have shape (3,), one for each clip.")
        expect_shape(what, got, (3,))
        if not torch.allclose(got.float(), right, atol=1e-2, rtol=1e-3):
            raise Wrong(f"{what} is {got[0]:.2f} for the first clip; it must be {right[0]:.2f}. "
                        f"{_why(got.float(), x_next, x0, noise, bar, bar_next, eta, std)}")


def _why(got: Tensor, x_next: Tensor, x0: Tensor, noise: Tensor, bar: float, bar_next: float, eta: float,
         std: float) -> str:
    mean = math.sqrt(bar_next) * x0 + math.sqrt(1 - bar_next - std**2) * noise
    numbers, squares = x0[0].numel(), (x_next - mean).square().flatten(1).sum(dim=1)
    whole = math.sqrt(bar_next) * x0 + math.sqrt(1 - bar_next) * noise  # as if nothing were random
    guesses = (
        (gaussian_log_prob(x_next, mean, std) / numbers, "This is the mean over all numbers; their logs are summed."),
        (-squares / (2 * std**2), "The density of a Gaussian also has -log(std) - log(2 pi) / 2 for each number. It "
                                  "does not change the gradient, but it is no log-probability without."),
        (-squares / (2 * std**2) - numbers * math.log(std), "- log(2 pi) / 2 for each number is missing."),
        (-gaussian_log_prob(x_next, mean, std), "The sign is wrong: what is far from the mean is less likely."),
        (gaussian_log_prob(x_next, whole, std), "Random noise of variance std^2 takes the place of some of the "
                                                "predicted noise: its factor is sqrt(1 - bar' - std^2)."),
        (gaussian_log_prob(x_next, mean, std**2), "std^2 is the variance; the density divides by std."),
        (gaussian_log_prob(x_next, mean, std / eta), "eta is missing in std."),
    )
    return next((words for value, words in guesses if torch.allclose(got, value, atol=1e-2, rtol=1e-3)),
                "The mean is sqrt(bar') x0 + sqrt(1 - bar' - std^2) noise.")


# ---- 17.4 surrogate


def clipped_surrogate(new: Float[Tensor, "b"], old: Float[Tensor, "b"], advantage: Float[Tensor, "b"],
                      clip: float) -> Float[Tensor, "b"]:
    """min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A), with ratio = exp(new - old)."""
    ratio = (new - old).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def check_surrogate(surrogate) -> None:
    """The ratio of chances times the advantage; no more reward beyond the clip, but all of the punishment."""
    cases = (
        (0.1, 1.0, "A ratio within the clip counts in full."),
        (0.1, -1.0, "A ratio within the clip counts in full, even where the advantage is negative."),
        (1.0, 1.0, "A good clip has become much more likely: beyond 1 + clip there is nothing more to gain."),
        (-1.0, -1.0, "A bad clip has become much less likely: below 1 - clip there is nothing more to gain."),
        (1.0, -1.0, "A bad clip has become more likely: that must hurt in full, without a limit. The minimum of both "
                    "products does it, not the clamp alone."),
        (-1.0, 1.0, "A good clip has become less likely: that must hurt in full. The minimum of both products does it, "
                    "not the clamp alone."),
    )
    for step, advantage, why in cases:
        old = torch.tensor([-5.0])
        new, worth = old + step, torch.tensor([advantage])
        what = f"surrogate(new={new.item():.1f}, old=-5.0, advantage={advantage}, clip=0.2)"
        got, right = surrogate(new, old, worth, 0.2), clipped_surrogate(new, old, worth, 0.2)
        expect_shape(what, got, (1,))
        if torch.allclose(got.float(), right, atol=1e-4):
            continue
        raise Wrong(f"{what} is {got.item():.3f}; it must be {right.item():.3f}. "
                    f"{_mistake(got.item(), step, advantage, why)}")
    new, old = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.1, -1.0, -4.0])
    worth = torch.tensor([1.0, -1.0, 2.0])
    got = surrogate(new, old, worth, 0.1)
    expect_shape("surrogate of three clips", got, (3,))
    if not torch.allclose(got.float(), clipped_surrogate(new, old, worth, 0.1), atol=1e-4):
        raise Wrong("surrogate of three clips with clip=0.1 differs; each clip has a ratio of its own, and 0.1 must "
                    "count in place of 0.2.")


def _mistake(got: float, step: float, advantage: float, why: str) -> str:
    def of(ratio: float) -> float:
        return min(ratio * advantage, max(0.8, min(1.2, ratio)) * advantage)

    def near(value: float) -> bool:
        return math.isclose(got, value, abs_tol=1e-3)

    if near(step * advantage) or near(of(step)):
        return "new - old is the logarithm of the ratio; take exp."
    if near(of(math.exp(-step))):
        return "The ratio is new over old, exp(new - old)."
    if near(-of(math.exp(step))):
        return "The sign is turned: the objective is to be made large."
    return why
