"""Exercises of notebook 04, diffusion: a schedule that ends in noise, what training needs, one step, timesteps."""

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_close, expect_shape
from minicogvx.diffusion.schedule import rescale_to_zero_terminal_snr
from minicogvx.diffusion.timesteps import stratified_timesteps

BARS = (0.9, 0.3, 0.02)  # alpha_bar of little, middling and much noise

# ---- 4.1 zero_terminal_betas


def rescaled_betas(betas: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """The betas of the schedule whose last timestep holds no signal (Lin et al. 2024, algorithm 1)."""
    bars = rescale_to_zero_terminal_snr((1 - betas).cumprod(dim=0))
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


# ---- 4.2 training_pair


def mixed_and_velocity(x0: Float[Tensor, "b c t h w"], noise: Float[Tensor, "b c t h w"],
                       bars: Float[Tensor, "b"]) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b c t h w"]]:
    """x_t and v of every sample, each at its own alpha_bar."""
    a, s = bars.sqrt().reshape(-1, 1, 1, 1, 1), (1 - bars).sqrt().reshape(-1, 1, 1, 1, 1)
    return a * x0 + s * noise, a * noise - s * x0


def check_training_pair(training_pair) -> None:
    """Each sample has its own alpha_bar; the two ends; and that (x_t, v) is (x0, noise) turned."""
    # as many samples as columns: a "b" that meets the last axis fits there without an error
    x0, noise, bars = torch.randn(3, 2, 2, 3, 3), torch.randn(3, 2, 2, 3, 3), torch.tensor(BARS)
    x_t, v = _two("training_pair(x0, noise, bars)", training_pair(x0, noise, bars), ("x_t", "v"), x0.shape)
    other, _ = _two("training_pair(x0, noise, bars)", training_pair(x0, noise, bars * torch.tensor([1, 1, 0.5])),
                    ("x_t", "v"), x0.shape)
    if not torch.equal(other[0], x_t[0]):
        raise Wrong("alpha_bar of sample 2 was changed, and x_t of sample 0 changed with it. bars has shape (b,); "
                    "against b c t h w it must become (b, 1, 1, 1, 1).")
    for bar, names, wanted in ((1.0, ("x0", "the noise"), (x0, noise)), (0.0, ("the noise", "-x0"), (noise, -x0))):
        pair = training_pair(x0, noise, torch.full((3,), bar))
        for mine, got, name, want in zip(("x_t", "v"), pair, names, wanted):
            if not torch.allclose(got, want, atol=1e-5):
                raise Wrong(f"Where alpha_bar is {bar:g}, {mine} must be {name}; it differs by up to "
                            f"{(got - want).abs().max().item():.3g}.")
    before, after = (x0 ** 2 + noise ** 2).mean().item(), (x_t ** 2 + v ** 2).mean().item()
    if abs(after - before) > 1e-3:
        raise Wrong(f"A turn keeps lengths: the mean of x_t^2 + v^2 is {after:.3g}, that of x0^2 + noise^2 is "
                    f"{before:.3g}. Signal and noise go in with sqrt(alpha_bar) and sqrt(1 - alpha_bar).")
    right_x_t, right_v = mixed_and_velocity(x0, noise, bars)
    expect_close("x_t of training_pair(x0, noise, bars)", x_t, right_x_t)
    expect_close("v of training_pair(x0, noise, bars)", v, right_v)


def _two(what: str, got, names: tuple[str, str], shape) -> tuple[Tensor, Tensor]:
    if got is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong(f"{what} is one {type(got).__name__}; it must be two tensors, {names[0]} and {names[1]}.")
    for name, tensor in zip(names, got):
        expect_shape(f"{name} of {what}", tensor, tuple(shape))
    return tuple(got)


# ---- 4.3 clean_and_noise


def turned_back(x_t: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"],
                bar: float) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """x0 and the noise that x_t and v imply."""
    a, s = bar ** 0.5, (1 - bar) ** 0.5
    return a * x_t - s * v, a * v + s * x_t


def check_clean_and_noise(clean_and_noise) -> None:
    """Finite at both ends, and mixed again the two give what came in."""
    x_t, v = torch.randn(2, 3, 1, 4, 4), torch.randn(2, 3, 1, 4, 4)
    for bar in (0.5, 0.0, 1.0):
        what = f"clean_and_noise(x_t, v, bar={bar:g})"
        for name, got in zip(("x0", "noise"),
                             _two(what, clean_and_noise(x_t, v, bar), ("x0", "noise"), x_t.shape)):
            if not torch.isfinite(got).all():
                raise Wrong(f"{name} of {what} holds NaN or infinity; there is a way back without any division.")
    for bar in (*BARS, 0.0, 1.0):
        x0, noise = clean_and_noise(x_t, v, bar)
        a, s = bar ** 0.5, (1 - bar) ** 0.5
        for name, again, wanted in (("x_t", a * x0 + s * noise, x_t), ("v", a * noise - s * x0, v)):
            apart = (again - wanted).abs().max().item()
            if not apart < 1e-4:
                raise Wrong(f"With bar={bar:g}: mixed again, your x0 and noise do not give {name} back; it is off by "
                            f"up to {apart:.3g}.")


# ---- 4.4 renewing_step


def partly_renewed(x0: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], fresh: Float[Tensor, "*shape"],
                   bar: float, bar_next: float, eta: float) -> Float[Tensor, "*shape"]:
    """One sampling step: DDIM at eta = 0, DDPM at eta = 1 (Song et al. 2021, eq. 12 and 16, in shares of noise)."""
    kept = bar * (1 - bar_next) / ((1 - bar) * bar_next)  # SNR before over SNR after
    new = eta ** 2 * (1 - kept)
    return bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * ((1 - new) ** 0.5 * noise + new ** 0.5 * fresh)


def check_renewing_step(renewing_step) -> None:
    """The clean part, the power of the noise, how much of it is new; the first and the last step of a run."""
    x0, noise, fresh = torch.randn(3, 1, 2, 1, 3, 3).unbind()
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    for bar, bar_next, eta in ((0.3, 0.5, 0.0), (0.3, 0.5, 1.0), (0.3, 0.5, 0.5), (0.0, 0.02, 1.0), (0.9, 1.0, 1.0)):
        what = f"renewing_step with bar={bar:g}, bar_next={bar_next:g}, eta={eta:g}"
        got = renewing_step(x0, noise, fresh, bar, bar_next, eta)
        expect_shape(what, got, tuple(x0.shape))
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


# ---- 4.5 spread_timesteps


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
    many = torch.stack([_drawn(spread_timesteps, 4, 1000, seed) for seed in range(200)])  # draws b
    if (many.argsort(dim=1) == many.argsort(dim=1)[0]).all():
        raise Wrong("The parts come in the same order in every batch, so each sample keeps its part; shuffle them.")
    inside = many.sort(dim=1).values % 250
    if (inside == inside[:, :1]).all(dim=1).float().mean() > 0.5:
        raise Wrong("All timesteps of a batch stand at the same place in their parts; each needs a draw of its own.")
    _check_frequencies(spread_timesteps, 4, 10)


def _check_frequencies(spread_timesteps, b: int, T: int, batches: int = 2000) -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.cat([spread_timesteps(b, T, generator) for _ in range(batches)])
    counts, wanted = torch.bincount(drawn, minlength=T), b * batches / T
    worst = int((counts - wanted).abs().argmax())
    if abs(counts[worst].item() - wanted) > 0.2 * wanted:
        raise Wrong(f"Over {batches} batches of {b} with T = {T}, timestep {worst} was drawn {int(counts[worst])} "
                    f"times; all must come equally often, about {wanted:.0f} times, also where b does not divide T.")


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
        "4.1", "zero_terminal_betas", difficulty=2, minutes=15, reference=rescaled_betas,
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
        "4.2", "training_pair", difficulty=1, minutes=10, reference=mixed_and_velocity, check=check_training_pair,
        hints=(
            "Every sample has its own alpha_bar. What shape must bars have, so that it meets the first axis of "
            "b c t h w and no other?",
            "a = bars.sqrt().reshape(-1, 1, 1, 1, 1), and s from 1 - bars in the same way. Section 3 has both "
            "equations.",
            "x_t = a * x0 + s * noise, v = a * noise - s * x0; return both. At alpha_bar = 0, v is -x0.",
        ),
    ),
    Exercise(
        "4.3", "clean_and_noise", difficulty=1, minutes=10, reference=turned_back, check=check_clean_and_noise,
        hints=(
            "(x_t, v) is (x0, noise) turned by an angle. Which turn undoes it?",
            "Two equations, two unknowns: multiply x_t = a x0 + s noise by a, v = a noise - s x0 by s, and subtract. "
            "What is a^2 + s^2?",
            "x0 = a x_t - s v. For the noise, multiply the other way round and add: s x_t + a v.",
        ),
    ),
    Exercise(
        "4.4", "renewing_step", difficulty=2, minutes=15, reference=partly_renewed, check=check_renewing_step,
        hints=(
            "With eta = 0 this is the DDIM step. What may change with eta: the clean part, the noise, or how much "
            "noise there is?",
            "kept = bar * (1 - bar_next) / ((1 - bar) * bar_next), and the new share of the power is "
            "new = eta ** 2 * (1 - kept). Independent noises add in power, not in size.",
            "The noise is sqrt(1 - new) * noise + sqrt(new) * fresh; it comes in with sqrt(1 - bar_next), and x0 "
            "with sqrt(bar_next).",
        ),
    ),
    Exercise(
        "4.5", "spread_timesteps", difficulty=2, minutes=15, reference=stratified_timesteps,
        check=check_spread_timesteps,
        hints=(
            "Part i reaches from i T / b to (i + 1) T / b. How do you draw one number in it, and how all b at once?",
            "(torch.arange(b) + torch.rand(b, generator=generator)) * T / b, made to integers with .long(). T / b, "
            "not T // b: the rest would never be drawn.",
            "Then shuffle: t[torch.randperm(b, generator=generator)]. Both random calls get the generator.",
        ),
    ),
)
