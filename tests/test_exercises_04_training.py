"""Exercises of notebook 04 on training distinguish right from wrong, and name the mistake."""

import torch

from minicogvx.course.exercises import find
from minicogvx.diffusion import NoiseSchedule, diffusion_loss
from minicogvx.diffusion.schedule import scaled_linear_alphas_cumprod
from minicogvx.presets import ScheduleConfig
from tests.guards import guard

# ---- 4.2 zero_terminal_betas


def betas_of(bars):
    return 1 - bars / torch.cat([torch.ones_like(bars[:1]), bars[:-1]])


def right_zero_terminal_betas(betas):
    roots = torch.cumprod(1 - betas, 0).sqrt()
    return betas_of(((roots - roots[-1]) / (roots[0] - roots[-1]) * roots[0]) ** 2)


def untouched(betas):
    return betas


def only_the_last(betas):
    return torch.cat([betas[:-1], torch.ones_like(betas[-1:])])


def not_the_roots(betas):
    bars = (1 - betas).cumprod(0)
    return betas_of((bars - bars[-1]) * bars[0] / (bars[0] - bars[-1]))


def shifted_only(betas):
    roots = (1 - betas).cumprod(0).sqrt()
    return betas_of((roots - roots[-1]) ** 2)


def stretched_to_one(betas):
    roots = (1 - betas).cumprod(0).sqrt()
    return betas_of(((roots - roots[-1]) / (roots[0] - roots[-1])) ** 2)


def not_squared(betas):
    roots = (1 - betas).cumprod(0).sqrt()
    return betas_of((roots - roots[-1]) / (roots[0] - roots[-1]) * roots[0])


def the_bars_themselves(betas):
    return (1 - right_zero_terminal_betas(betas)).cumprod(0)


def a_beta_too_few(betas):
    bars = (1 - right_zero_terminal_betas(betas)).cumprod(0)
    return 1 - bars[1:] / bars[:-1]


def stretched_betas(betas):
    return betas[0] + (betas - betas[0]) * (1 - betas[0]) / (betas[-1] - betas[0])


def betas_in_place(betas):
    betas.copy_(right_zero_terminal_betas(betas))
    return betas


def test_zero_terminal_betas():
    guard("4.2", right_zero_terminal_betas, [
        ("the last timestep still holds signal, sqrt(alpha_bar) = 0.0", untouched),
        ("Shift and stretch sqrt(alpha_bar), not alpha_bar and not beta", only_the_last),
        ("Shift and stretch sqrt(alpha_bar), not alpha_bar and not beta", not_the_roots),
        ("you shift sqrt(alpha_bar) but do not stretch it", shifted_only),
        ("you stretch the first sqrt(alpha_bar) to 1", stretched_to_one),
        ("you do not square: after shift and stretch it is still sqrt(alpha_bar)", not_squared),
        ("the first beta is 0.999; it must stay 0.00085", the_bars_themselves),
        ("of 1000 timesteps has shape (999,); it must be (1000,)", a_beta_too_few),
        ("Shift and stretch sqrt(alpha_bar), not alpha_bar and not beta", stretched_betas),
        ("changes its input betas", betas_in_place),
    ])


# ---- 4.3 denoising_loss


def parts(x0, bars, generator):
    """Timesteps, noise, and the two factors in the shape of x0."""
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    t = (torch.rand(len(x0), generator=generator) * len(bars)).long()
    bar = bars[t].to(x0.dtype).view([-1] + [1] * (x0.ndim - 1))
    return t, noise, bar ** 0.5, (1 - bar) ** 0.5


def right_denoising_loss(network, x0, bars, generator):
    t, noise, a, s = parts(x0, bars, generator)
    return torch.nn.functional.mse_loss(network(a * x0 + s * noise, t), a * noise - s * x0)


def against_the_last_axis(network, x0, bars, generator):
    t, noise, _, _ = parts(x0, bars, generator)
    a, s = bars[t] ** 0.5, (1 - bars[t]) ** 0.5
    return (network(a * x0 + s * noise, t) - a * noise + s * x0).square().mean()


def without_roots(network, x0, bars, generator):
    t, noise, a, s = parts(x0, bars, generator)
    return (network(a ** 2 * x0 + s ** 2 * noise, t) - a * noise + s * x0).square().mean()


def signal_and_noise_exchanged(network, x0, bars, generator):
    t, noise, a, s = parts(x0, bars, generator)
    return (network(s * x0 + a * noise, t) - a * noise + s * x0).square().mean()


def compared_with_the_noise(network, x0, bars, generator):
    t, noise, a, s = parts(x0, bars, generator)
    return (network(a * x0 + s * noise, t) - noise).square().mean()


def compared_with_the_clip(network, x0, bars, generator):
    t, noise, a, s = parts(x0, bars, generator)
    return (network(a * x0 + s * noise, t) - x0).square().mean()


def wrong_sign(network, x0, bars, generator):
    t, noise, a, s = parts(x0, bars, generator)
    return (network(a * x0 + s * noise, t) - (s * x0 - a * noise)).square().mean()


def summed(network, x0, bars, generator):
    t, noise, a, s = parts(x0, bars, generator)
    return (network(a * x0 + s * noise, t) - a * noise + s * x0).square().sum()


def not_reduced(network, x0, bars, generator):
    t, noise, a, s = parts(x0, bars, generator)
    return (network(a * x0 + s * noise, t) - a * noise + s * x0).square().flatten(1).mean(dim=1)


def one_timestep(network, x0, bars, generator):
    t, noise, _, _ = parts(x0, bars, generator)
    t = t[:1].expand(len(x0))
    a, s = bars[t[0]] ** 0.5, (1 - bars[t[0]]) ** 0.5
    return (network(a * x0 + s * noise, t) - a * noise + s * x0).square().mean()


def one_noise(network, x0, bars, generator):
    t, noise, a, s = parts(x0, bars, generator)
    noise = noise[:1].expand_as(x0)
    return (network(a * x0 + s * noise, t) - a * noise + s * x0).square().mean()


def loss_without_the_generator(network, x0, bars, generator):
    return right_denoising_loss(network, x0, bars, None)


def seed_of_its_own(network, x0, bars, generator):
    return right_denoising_loss(network, x0, bars, torch.Generator().manual_seed(0))


def never_the_last(network, x0, bars, generator):
    t = torch.randint(len(bars) - 1, (len(x0),), generator=generator)
    _, noise, _, _ = parts(x0, bars, generator)
    bar = bars[t].view([-1] + [1] * (x0.ndim - 1))
    a, s = bar ** 0.5, (1 - bar) ** 0.5
    return (network(a * x0 + s * noise, t) - a * noise + s * x0).square().mean()


def uniform_noise(network, x0, bars, generator):
    t, _, a, s = parts(x0, bars, generator)
    noise = torch.rand(x0.shape, generator=generator, dtype=x0.dtype)
    return (network(a * x0 + s * noise, t) - a * noise + s * x0).square().mean()


def sample_by_sample(network, x0, bars, generator):
    return torch.stack([right_denoising_loss(network, x[None], bars, generator) for x in x0]).mean()


def test_denoising_loss():
    guard("4.3", right_denoising_loss, [
        ("Within one sample the signal comes in with several factors", against_the_last_axis),
        ("it must be sqrt(alpha_bar) =", without_roots),
        ("it must be sqrt(alpha_bar) =", signal_and_noise_exchanged),
        ("Your target is the noise; it must be v", compared_with_the_noise),
        ("Your target is x0; it must be v", compared_with_the_clip),
        ("Your target is -v; change its sign", wrong_sign),
        ("the mean of v^2 over the batch and all its numbers", summed),
        ("has shape (6,); it must be ()", not_reduced),
        ("All samples of the batch have the timestep", one_timestep),
        ("Samples 0 and 1 have the same noise", one_noise),
        ("The same generator gives other timesteps or other noise", loss_without_the_generator),
        ("Another seed of the generator gives the same timesteps or the same noise", seed_of_its_own),
        ("0 are 49; each must come equally often", never_the_last),
        ("it must be 0 and 1, with the factor sqrt(1 - alpha_bar)", uniform_noise),
        ("x_t, as the network gets it, has shape (1, 2, 1, 6, 6)", sample_by_sample),
    ])


# ---- 4.6 spread_timesteps


def right_spread_timesteps(b, T, generator):
    order = torch.randperm(b, generator=generator)
    return ((order + torch.rand(b, generator=generator)) / b * T).long()


def independent(b, T, generator):
    return torch.randint(0, T, (b,), generator=generator)


def sorted_always(b, T, generator):
    return right_spread_timesteps(b, T, generator).sort().values


def rolled(b, T, generator):
    by = int(torch.randint(b, (1,), generator=generator))
    return sorted_always(b, T, generator).roll(by)


def sometimes_reversed(b, T, generator):
    t = sorted_always(b, T, generator)
    return t.flip(0) if torch.rand(1, generator=generator) < 0.5 else t


def in_the_middle(b, T, generator):
    return ((torch.randperm(b, generator=generator) + 0.5) / b * T).long()


def one_draw_for_all(b, T, generator):
    return ((torch.randperm(b, generator=generator) + torch.rand(1, generator=generator)) / b * T).long()


def without_the_generator(b, T, generator):
    return right_spread_timesteps(b, T, None)


def as_floats(b, T, generator):
    return right_spread_timesteps(b, T, generator).float()


def counted_from_one(b, T, generator):
    return right_spread_timesteps(b, T, generator) + 1


def parts_rounded_down(b, T, generator):
    return torch.randperm(b, generator=generator) * (T // b) + torch.randint(0, T // b, (b,), generator=generator)


def test_spread_timesteps():
    guard("4.6", right_spread_timesteps, [
        ("of them; it must have 1", independent),
        ("so each sample keeps its part; shuffle them", sorted_always),
        ("came in 4 different orders; there are 24", rolled),
        ("came in 2 different orders; there are 24", sometimes_reversed),
        ("are at the same place in their parts", in_the_middle),
        ("are at the same place in their parts", one_draw_for_all),
        ("The same generator gives other timesteps the second time", without_the_generator),
        ("has dtype torch.float32", as_floats),
        ("to 1000; timesteps must be in 0..999", counted_from_one),
        ("timestep 8 was drawn 0 times", parts_rounded_down),
        ("T / b is 2.5 here: keep the fraction to the end", parts_rounded_down),
    ])


# ---- what replaces the learner's own


def test_the_references_are_what_the_package_computes():
    schedule, bars = NoiseSchedule(ScheduleConfig()), scaled_linear_alphas_cumprod(1000, 0.00085, 0.012)
    torch.testing.assert_close((1 - find("4.2").reference(betas_of(bars))).cumprod(0), schedule.alphas_cumprod)
    x0, seen = torch.randn(5, 3, 1, 4, 4).double(), []

    def network(x_t, t):
        seen.append((x_t, t))
        return torch.sin(x_t)

    loss = find("4.3").reference(network, x0, schedule.alphas_cumprod, torch.Generator().manual_seed(0))
    (x_t, t), = seen
    a, s = (share[t].sqrt().reshape(-1, 1, 1, 1, 1) for share in (schedule.alphas_cumprod, 1 - schedule.alphas_cumprod))
    noise = (x_t - a * x0) / s
    torch.testing.assert_close(loss, diffusion_loss(torch.sin(x_t), x0, noise, t, schedule).mean())
