"""Exercises of notebook 04, diffusion: the sampling loop, a schedule that ends in noise, a loss, timesteps."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.clouds import ddim_walk
from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_shape
from minicogvx.course.exercises.loops import (
    check_better_timesteps,
    check_renewing_step,
    check_walk,
    partly_renewed,
    timesteps_of_even_angles,
)
from minicogvx.diffusion.schedule import rescale_to_zero_terminal_snr
from minicogvx.diffusion.timesteps import stratified_timesteps

# ---- 4.2 zero_terminal_betas


def rescaled_betas(betas: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """The betas of the schedule whose last timestep holds no signal (Lin et al. 2024, algorithm 1)."""
    return _betas_of(rescale_to_zero_terminal_snr((1 - betas).cumprod(dim=0)))


def _betas_of(bars: Tensor) -> Tensor:
    return 1 - torch.cat([bars[:1], bars[1:] / bars[:-1]])


def check_zero_terminal_betas(zero_terminal_betas) -> None:
    """No signal at the end, the first beta kept, and square roots of alpha_bar that are shifted and stretched."""
    for count, first, last in ((1000, 0.00085, 0.012), (20, 0.01, 0.3)):
        betas = torch.linspace(first ** 0.5, last ** 0.5, count, dtype=torch.float64) ** 2
        _check_betas(zero_terminal_betas, betas)


def _check_betas(zero_terminal_betas, betas: Tensor) -> None:
    given, what = betas.clone(), f"zero_terminal_betas(betas) of {len(betas)} timesteps"
    got = zero_terminal_betas(given)
    if not torch.equal(given, betas):
        raise Wrong("zero_terminal_betas changes its input betas; make a new tensor instead.")
    expect_shape(what, got, tuple(betas.shape))
    got = got.double()
    if not torch.isfinite(got).all():
        raise Wrong(f"{what} holds NaN or infinity at timestep {int((~torch.isfinite(got)).nonzero()[0])}.")
    _name_forgotten_move(what, got, betas)
    roots, wanted = (1 - got).clamp(min=0).cumprod(dim=0).sqrt(), (1 - rescaled_betas(betas)).cumprod(dim=0).sqrt()
    if roots[-1] > 1e-6:
        raise Wrong(f"{what}: the last timestep still holds signal, sqrt(alpha_bar) = {roots[-1].item():.3g}; it must "
                    f"be 0, so the last beta must be 1 (yours is {got[-1].item():.3g}).")
    if not torch.isclose(got[0], betas[0], rtol=1e-4):
        raise Wrong(f"{what}: the first beta is {got[0].item():.3g}; it must stay {betas[0].item():.3g}, because the "
                    f"first timestep keeps its noise.")
    worst = int((roots - wanted).abs().argmax())
    if not torch.allclose(roots, wanted, atol=1e-5):
        raise Wrong(f"{what}: at timestep {worst}, sqrt(alpha_bar) is {roots[worst].item():.4g}; it must be "
                    f"{wanted[worst].item():.4g}. Shift and stretch sqrt(alpha_bar), not alpha_bar and not beta.")


def _name_forgotten_move(what: str, got: Tensor, betas: Tensor) -> None:
    roots = (1 - betas).cumprod(dim=0).sqrt()
    shifted = roots - roots[-1]
    stretched = shifted * roots[0] / shifted[0]
    for bars, said in ((shifted ** 2, "you shift sqrt(alpha_bar) but do not stretch it: the first must be what it was"),
                       ((shifted / shifted[0]) ** 2, "you stretch the first sqrt(alpha_bar) to 1; it must be what it "
                                                     "was, because the first timestep keeps its noise"),
                       (stretched, "you do not square: after shift and stretch it is still sqrt(alpha_bar)")):
        if torch.allclose(got, _betas_of(bars), atol=1e-6):
            raise Wrong(f"{what}: {said}.")


# ---- 4.3 denoising_loss


def loss_of_v(network: Callable[[Tensor, Tensor], Tensor], x0: Float[Tensor, "b *rest"], bars: Float[Tensor, "T"],
              generator: torch.Generator) -> Float[Tensor, ""]:
    """The mean squared error of v, each sample at a timestep and with noise of its own, drawn with the generator."""
    t = torch.randint(len(bars), (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    bar = bars[t].to(x0.dtype)[(...,) + (None,) * (x0.ndim - 1)]
    v = bar.sqrt() * eps - (1 - bar).sqrt() * x0
    return (network(bar.sqrt() * x0 + (1 - bar).sqrt() * eps, t) - v).square().mean()


class _Spy:
    """Stands in for the network: remembers what it was given, and answers as it was told."""

    def __init__(self, bars: Tensor, x0: Tensor, answer: str):
        self.bars, self.x0, self.answer, self.calls = bars, x0, answer, 0

    def __call__(self, x_t, t):
        self.calls += 1
        expect_shape("x_t, as the network gets it,", x_t, tuple(self.x0.shape))
        expect_shape("t, as the network gets it,", t, (len(self.x0),))
        if t.dtype != torch.long:
            raise Wrong(f"The network gets t with dtype {t.dtype}; timesteps are indices, so it must be torch.int64.")
        if t.min() < 0 or t.max() >= len(self.bars):
            raise Wrong(f"The timesteps run from {int(t.min())} to {int(t.max())}; they must be in "
                        f"0..{len(self.bars) - 1}.")
        self.x_t, self.t = x_t, t
        bar = self.bars[t].reshape(-1, *[1] * (x_t.ndim - 1))
        a, s = bar.sqrt(), (1 - bar).sqrt()
        self.noise = (x_t - a * self.x0) / s
        answers = {"v": a * self.noise - s * self.x0, "minus v": s * self.x0 - a * self.noise, "noise": self.noise,
                   "x0": self.x0, "zero": torch.zeros_like(x_t)}
        return answers[self.answer]


def check_denoising_loss(denoising_loss) -> None:
    """What the network gets (each sample its own timestep and noise), what it is compared with, and the mean."""
    bars = torch.linspace(0.99, 0, 50).double()
    shape = (6, 2, 1, 6, 6)  # as many samples as columns: a "b" that meets the last axis fits there without an error

    def asked(answer: str, x0: Tensor, seed: int = 0) -> tuple[_Spy, float]:
        spy = _Spy(bars, x0, answer)
        loss = denoising_loss(spy, x0.clone(), bars, torch.Generator().manual_seed(seed))
        expect_shape("denoising_loss(network, x0, bars, generator)", loss, ())
        if spy.calls != 1:
            raise Wrong(f"The network was asked {spy.calls} times; one training step asks it once, with all samples.")
        return spy, loss.item()

    _check_signal(asked("zero", 1e6 * torch.ones(shape).double())[0])
    x0 = torch.randn(shape).double()
    _check_draws(asked("zero", x0)[0], asked("zero", x0)[0], asked("zero", x0, seed=1)[0])
    _check_target({answer: asked(answer, x0)[1] for answer in ("v", "minus v", "noise", "x0")})
    spy, loss = asked("zero", x0)
    bar = bars[spy.t].reshape(-1, 1, 1, 1, 1)
    wanted = (bar.sqrt() * spy.noise - (1 - bar).sqrt() * x0).square().mean().item()
    if abs(loss - wanted) > 1e-4 * wanted:
        raise Wrong(f"A network that answers 0 has the loss {loss:.4g}; it must be {wanted:.4g}, the mean of v^2 over "
                    f"the batch and all its numbers.")
    often = torch.bincount(asked("zero", torch.randn(5000, 1).double())[0].t, minlength=len(bars))
    if often.min() < 50:
        raise Wrong(f"Of 5000 timesteps drawn from 0..{len(bars) - 1}, {int(often.min())} are {int(often.argmin())}; "
                    f"each must come equally often, about {5000 // len(bars)} times.")


def _check_signal(spy: _Spy) -> None:
    """x0 is a million everywhere, so what the network gets is, but for the noise, the factor of the signal."""
    factors, wanted = spy.x_t.flatten(1) / 1e6, spy.bars[spy.t].sqrt()
    if (factors.amax(dim=1) - factors.amin(dim=1)).max() > 1e-3:
        raise Wrong("Within one sample the signal comes in with several factors. alpha_bar of a batch has shape (b,); "
                    "against b c t h w it must become (b, 1, 1, 1, 1), or it lines up with the last axis.")
    off = (factors.mean(dim=1) - wanted).abs()
    if off.max() > 1e-3:
        i = int(off.argmax())
        raise Wrong(f"At timestep {int(spy.t[i])} the signal comes in with the factor {factors[i].mean():.3g}; it must "
                    f"be sqrt(alpha_bar) = {wanted[i]:.3g} of that sample's own timestep.")


def _check_draws(first: _Spy, again: _Spy, other: _Spy) -> None:
    if not (torch.equal(first.t, again.t) and torch.equal(first.noise, again.noise)):
        raise Wrong("The same generator gives other timesteps or other noise; hand it to every random call.")
    if torch.equal(first.t, other.t) or torch.allclose(first.noise, other.noise):
        raise Wrong("Another seed of the generator gives the same timesteps or the same noise; draw both with it.")
    if (first.t == first.t[0]).all() and (other.t == other.t[0]).all():
        raise Wrong(f"All samples of the batch have the timestep {int(first.t[0])}; each needs a draw of its own.")
    if torch.allclose(first.noise[0], first.noise[1], atol=1e-3):
        raise Wrong("Samples 0 and 1 have the same noise; each needs its own.")
    if not 0.85 < first.noise.std() < 1.15 or abs(first.noise.mean()) > 0.2:
        raise Wrong(f"The noise in x_t has mean {first.noise.mean():.2g} and standard deviation "
                    f"{first.noise.std():.2g}; it must be 0 and 1, with the factor sqrt(1 - alpha_bar).")


def _check_target(losses: dict[str, float]) -> None:
    for answer, said in (("minus v", "-v; change its sign"), ("noise", "the noise; it must be v"),
                         ("x0", "x0; it must be v")):
        if losses[answer] < 1e-6 < losses["v"]:
            raise Wrong(f"Your target is {said}.")
    if losses["v"] > 1e-6:
        raise Wrong(f"A network that answers v exactly has the loss {losses['v']:.3g}; it must be 0.")


# ---- 4.6 spread_timesteps


def check_spread_timesteps(spread_timesteps) -> None:
    """Integers, one in each part, in random order, each equally likely, drawn with the generator."""
    for b, T in ((8, 1000), (4, 20), (1, 1000)):
        t = _drawn(spread_timesteps, b, T, 0)
        if not torch.equal(t, _drawn(spread_timesteps, b, T, 0)):
            raise Wrong("The same generator gives other timesteps the second time; hand it to every random call.")
        counts = torch.bincount(t * b // T, minlength=b)
        if (counts != 1).any():
            raise Wrong(f"spread_timesteps({b}, {T}, generator) gives {sorted(t.tolist())}: part "
                        f"{int((counts != 1).nonzero()[0])} of the {b} equal parts of 0 .. {T - 1} (counted from 0) "
                        f"has {int(counts[counts != 1][0])} of them; it must have 1.")
    many = torch.stack([_drawn(spread_timesteps, 4, 1000, seed) for seed in range(400)])  # draws b
    orders = len(set(map(tuple, many.argsort(dim=1).tolist())))
    if orders == 1:
        raise Wrong("The parts come in the same order in every batch, so each sample keeps its part; shuffle them.")
    if orders < 24:
        raise Wrong(f"In 400 batches of 4 the parts came in {orders} different orders; there are 24, and a shuffle "
                    f"gives all of them.")
    inside = many.sort(dim=1).values % 250
    if (inside == inside[:, :1]).all(dim=1).float().mean() > 0.5:
        raise Wrong("All timesteps of a batch are at the same place in their parts; each needs a draw of its own.")
    _check_frequencies(spread_timesteps, 4, 10)


def _check_frequencies(spread_timesteps, b: int, T: int, batches: int = 2000) -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.cat([spread_timesteps(b, T, generator) for _ in range(batches)])
    counts, wanted = torch.bincount(drawn, minlength=T), b * batches / T
    worst = int((counts - wanted).abs().argmax())
    if abs(counts[worst].item() - wanted) > 0.2 * wanted:
        raise Wrong(f"Over {batches} batches of {b} with T = {T}, timestep {worst} was drawn {int(counts[worst])} "
                    f"times; all must come equally often, about {wanted:.0f} times. T / b is {T / b:g} here: keep the "
                    f"fraction to the end, and round down once.")


def _drawn(spread_timesteps, b: int, T: int, seed: int) -> Tensor:
    what = f"spread_timesteps({b}, {T}, generator)"
    t = spread_timesteps(b, T, torch.Generator().manual_seed(seed))
    expect_shape(what, t, (b,))
    if t.dtype != torch.long:
        raise Wrong(f"{what} has dtype {t.dtype}; timesteps are indices, so it must be torch.int64.")
    if t.min() < 0 or t.max() >= T:
        raise Wrong(f"{what} runs from {int(t.min())} to {int(t.max())}; timesteps must be in 0..{T - 1}.")
    return t


EXERCISES = (
    Exercise(
        "4.1", "walk", difficulty=2, minutes=20, reference=ddim_walk, check=check_walk,
        hints=(
            "A loop over pairs: this timestep and the next. What stands for the next one after the last, and what is "
            "alpha_bar there?",
            "In each step: x0 = guess(x, t). Then solve x = sqrt(bar) x0 + sqrt(1 - bar) noise for the noise.",
            "for t, t_next in zip(timesteps, [*timesteps[1:], None]): ... and x becomes sqrt(bar_next) x0 + "
            "sqrt(1 - bar_next) noise, with bar_next = 1.0 in the last step.",
        ),
    ),
    Exercise(
        "4.2", "zero_terminal_betas", difficulty=2, minutes=15, reference=rescaled_betas,
        check=check_zero_terminal_betas,
        hints=(
            "Three moves: from beta to the root r of alpha_bar, shift and stretch r, and back to beta. Which r must "
            "become 0, and which must stay?",
            "r = (1 - betas).cumprod(0).sqrt(). Subtract the last r from all; then multiply by r_0 / (r_0 - r_last), "
            "so that the first is what it was.",
            "On the way back alpha_bar_t / alpha_bar_(t-1) is 1 - beta_t, and for t = 0 it is alpha_bar_0 itself: "
            "1 - torch.cat([bars[:1], bars[1:] / bars[:-1]]).",
        ),
    ),
    Exercise(
        "4.3", "denoising_loss", difficulty=2, minutes=20, reference=loss_of_v, check=check_denoising_loss,
        hints=(
            "What is drawn for each sample, and what does the network get to see of it? Two draws, one call, one mean.",
            "t = torch.randint(len(bars), (len(x0),), generator=generator), and noise in the shape of x0. bars[t] has "
            "shape (b,): which shape lines up with the first axis of x0 and no other?",
            "bar = bars[t].reshape(-1, *[1] * (x0.ndim - 1)); mix x_t, form v, and return "
            "(network(x_t, t) - v).square().mean().",
        ),
    ),
    Exercise(
        "4.4", "renewing_step", difficulty=2, minutes=15, reference=partly_renewed, check=check_renewing_step,
        hints=(
            "With eta = 0 this is a step of walk. What may change with eta: the clean part, the noise, or how much "
            "noise there is?",
            "kept = bar * (1 - bar_next) / ((1 - bar) * bar_next), and the new share of the power is "
            "new = eta ** 2 * (1 - kept). Independent noises add in power, not in size.",
            "The noise is sqrt(1 - new) * noise + sqrt(new) * fresh; it comes in with sqrt(1 - bar_next), and x0 "
            "with sqrt(bar_next).",
        ),
    ),
    Exercise(
        "4.5", "better_timesteps", difficulty=2, minutes=15, reference=timesteps_of_even_angles,
        check=check_better_timesteps,
        hints=(
            "Try error_of with lists that crowd at one end or at the other. Which end pays?",
            "A formula is easier to tune than ten numbers: 999 ((10 - i) / 10) ** p for i = 0 .. 9. Or think of "
            "section 3: by which angle does each of the even steps turn x_t?",
            "Equal angles do it: the timesteps whose angle, alphas_cumprod.sqrt().acos(), is nearest to pi / 2 times "
            "(10 - i) / 10. So does p = 1.5.",
        ),
    ),
    Exercise(
        "4.6", "spread_timesteps", difficulty=2, minutes=15, reference=stratified_timesteps,
        check=check_spread_timesteps,
        hints=(
            "Part i reaches from i T / b to (i + 1) T / b. How do you draw one number in it, and how all b at once?",
            "(torch.arange(b) + torch.rand(b, generator=generator)) * T / b, made to integers with .long(). T / b, "
            "not T // b: the rest would never be drawn.",
            "Then shuffle: t[torch.randperm(b, generator=generator)]. Both random calls get the generator.",
        ),
    ),
)
