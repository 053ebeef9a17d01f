"""Exercises of notebook 04 distinguish right from wrong, and name the mistake."""

import torch

from minicogvx.course.exercises import find
from minicogvx.diffusion import DDIMSampler, NoiseSchedule, draw_noise
from minicogvx.diffusion.schedule import scaled_linear_alphas_cumprod
from minicogvx.presets import ScheduleConfig
from tests.guards import guard

# ---- 4.1 zero_terminal_betas


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
    guard("4.1", right_zero_terminal_betas, [
        ("the last timestep still holds signal, sqrt(alpha_bar) = 0.0", untouched),
        ("Shift and stretch sqrt(alpha_bar), not alpha_bar and not beta", only_the_last),
        ("Shift and stretch sqrt(alpha_bar), not alpha_bar and not beta", not_the_roots),
        ("it must stay 0.00085, because the first timestep keeps its noise", shifted_only),
        ("it must stay 0.00085, because the first timestep keeps its noise", stretched_to_one),
        ("the first beta is 0.999; it must stay 0.00085", the_bars_themselves),
        ("of 1000 timesteps has shape (999,); it must be (1000,)", a_beta_too_few),
        ("Shift and stretch sqrt(alpha_bar), not alpha_bar and not beta", stretched_betas),
        ("changes its input betas", betas_in_place),
    ])


# ---- 4.2 training_pair


def columns(bars):
    return bars.view(-1, 1, 1, 1, 1)


def right_training_pair(x0, noise, bars):
    a, s = columns(bars) ** 0.5, (1 - columns(bars)) ** 0.5
    return x0 * a + noise * s, noise * a - x0 * s


def against_the_last_axis(x0, noise, bars):
    return bars.sqrt() * x0 + (1 - bars).sqrt() * noise, bars.sqrt() * noise - (1 - bars).sqrt() * x0


def without_roots(x0, noise, bars):
    a, s = columns(bars), 1 - columns(bars)
    return a * x0 + s * noise, a * noise - s * x0


def wrong_sign(x0, noise, bars):
    x_t, v = right_training_pair(x0, noise, bars)
    return x_t, -v


def plus_instead_of_minus(x0, noise, bars):
    return right_training_pair(x0, noise, bars)[0], right_training_pair(noise, x0, bars)[0]


def signal_and_noise_exchanged(x0, noise, bars):
    return right_training_pair(x0, noise, 1 - bars)


def only_x_t(x0, noise, bars):
    return right_training_pair(x0, noise, bars)[0]


def one_for_all(x0, noise, bars):
    return right_training_pair(x0, noise, bars.mean().expand(len(bars)))


def test_training_pair():
    guard("4.2", right_training_pair, [
        ("x_t of sample 0 changed with it. bars has shape (b,)", against_the_last_axis),
        ("A turn keeps lengths: the mean of x_t^2 + v^2 is", without_roots),
        ("Where alpha_bar is 1, v must be the noise", wrong_sign),
        ("Where alpha_bar is 0, v must be -x0", plus_instead_of_minus),
        ("Where alpha_bar is 1, x_t must be x0", signal_and_noise_exchanged),
        ("is one Tensor; it must be two tensors, x_t and v", only_x_t),
        ("alpha_bar of sample 2 was changed", one_for_all),
    ])


# ---- 4.3 clean_and_noise


def right_clean_and_noise(x_t, v, bar):
    a, s = bar ** 0.5, (1 - bar) ** 0.5
    return -s * v + a * x_t, a * v + s * x_t


def by_dividing(x_t, v, bar):
    x0 = bar ** 0.5 * x_t - (1 - bar) ** 0.5 * v
    return x0, (x_t - bar ** 0.5 * x0) / torch.tensor(1 - bar).sqrt()


def turned_on(x_t, v, bar):
    a, s = bar ** 0.5, (1 - bar) ** 0.5
    return a * x_t + s * v, a * v - s * x_t


def exchanged(x_t, v, bar):
    return right_clean_and_noise(x_t, v, bar)[::-1]


def roots_forgotten(x_t, v, bar):
    return bar * x_t - (1 - bar) * v, (1 - bar) * x_t + bar * v


def stacked(x_t, v, bar):
    return torch.stack(right_clean_and_noise(x_t, v, bar))


def v_taken_for_noise(x_t, v, bar):
    return (x_t - (1 - bar) ** 0.5 * v) / torch.tensor(bar).sqrt(), v


def test_clean_and_noise():
    guard("4.3", right_clean_and_noise, [
        ("noise of clean_and_noise(x_t, v, bar=1) holds NaN or infinity", by_dividing),
        ("With bar=0.9: mixed again, your x0 and noise do not give x_t back", turned_on),
        ("do not give x_t back", exchanged),
        ("do not give x_t back", roots_forgotten),
        ("is one Tensor; it must be two tensors, x0 and noise", stacked),
        ("there is a way back without any division", v_taken_for_noise),
    ])


# ---- 4.4 renewing_step


def right_renewing_step(x0, noise, fresh, bar, bar_next, eta):
    sigma = eta * ((1 - bar_next) / (1 - bar) * (1 - bar / bar_next)) ** 0.5  # as the DDIM paper writes it
    return bar_next ** 0.5 * x0 + max(1 - bar_next - sigma ** 2, 0) ** 0.5 * noise + sigma * fresh


def never_renews(x0, noise, fresh, bar, bar_next, eta):
    return bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * noise


def adds_on_top(x0, noise, fresh, bar, bar_next, eta):
    new = eta ** 2 * (1 - bar * (1 - bar_next) / ((1 - bar) * bar_next))
    return never_renews(x0, noise, fresh, bar, bar_next, eta) + (new * (1 - bar_next)) ** 0.5 * fresh


def adds_sizes(x0, noise, fresh, bar, bar_next, eta):
    new = eta ** 2 * (1 - bar * (1 - bar_next) / ((1 - bar) * bar_next))
    return bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * ((1 - new) * noise + new * fresh)


def eta_not_squared(x0, noise, fresh, bar, bar_next, eta):
    return right_renewing_step(x0, noise, fresh, bar, bar_next, eta ** 0.5)


def everything_new(x0, noise, fresh, bar, bar_next, eta):
    return right_renewing_step(x0, eta * fresh + (1 - eta ** 2) ** 0.5 * noise, fresh, bar, bar_next, 0.0)


def still_at_bar(x0, noise, fresh, bar, bar_next, eta):
    return bar ** 0.5 * x0 + (1 - bar) ** 0.5 * noise


def divides_by_the_ratio(x0, noise, fresh, bar, bar_next, eta):
    kept = bar / (1 - bar) / (bar_next / (1 - bar_next))
    new = eta ** 2 * (1 - kept)
    return bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * ((1 - new) ** 0.5 * noise + new ** 0.5 * fresh)


def test_renewing_step():
    guard("4.4", right_renewing_step, [
        ("eta=1: the fresh noise comes in with the factor 0; it must be", never_renews),
        ("so the power of the noise is", adds_on_top),
        ("so the power of the noise is", adds_sizes),
        ("eta=0.5: the fresh noise comes in with the factor", eta_not_squared),
        ("the share eta^2 (1 - kept) is new", everything_new),
        ("x0 comes in with the factor 0.548; it must be sqrt(bar_next) = 0.707", still_at_bar),
        ("ZeroDivisionError", divides_by_the_ratio),
    ])


# ---- 4.5 spread_timesteps


def right_spread_timesteps(b, T, generator):
    order = torch.randperm(b, generator=generator)
    return ((order + torch.rand(b, generator=generator)) / b * T).long()


def independent(b, T, generator):
    return torch.randint(0, T, (b,), generator=generator)


def sorted_always(b, T, generator):
    return right_spread_timesteps(b, T, generator).sort().values


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
    guard("4.5", right_spread_timesteps, [
        ("of them; it must have 1", independent),
        ("so each sample keeps its part; shuffle them", sorted_always),
        ("stand at the same place in their parts", in_the_middle),
        ("stand at the same place in their parts", one_draw_for_all),
        ("The same generator gives other timesteps the second time", without_the_generator),
        ("has dtype torch.float32", as_floats),
        ("timesteps", counted_from_one),
        ("timestep 8 was drawn 0 times", parts_rounded_down),
    ])


# ---- what replaces the learner's own


def test_the_references_are_what_the_package_computes():
    schedule, bars = NoiseSchedule(ScheduleConfig()), scaled_linear_alphas_cumprod(1000, 0.00085, 0.012)
    torch.testing.assert_close((1 - find("4.1").reference(betas_of(bars))).cumprod(0), schedule.alphas_cumprod)
    x0, noise, t = torch.randn(2, 3, 1, 4, 4), torch.randn(2, 3, 1, 4, 4), torch.tensor([10, 700])
    x_t, v = find("4.2").reference(x0, noise, schedule.alphas_cumprod[t].float())
    torch.testing.assert_close(x_t, schedule.add_noise(x0, noise, t))
    torch.testing.assert_close(v, schedule.velocity(x0, noise, t))
    clean, eps = find("4.3").reference(x_t, v, schedule.alpha_bar(700))
    torch.testing.assert_close((clean[1], eps[1]), (x0[1], noise[1]), atol=1e-5, rtol=1e-4)
    sampler, x = DDIMSampler(schedule, 10), draw_noise((2, 3, 1, 4, 4), torch.Generator().manual_seed(0))
    now, after = schedule.alpha_bar(int(sampler.timesteps[3])), schedule.alpha_bar(int(sampler.targets[3]))
    clean, eps = find("4.3").reference(x, v, now)
    torch.testing.assert_close(find("4.4").reference(clean, eps, noise, now, after, 0.0), sampler.step(v, 3, x)[0],
                               atol=1e-5, rtol=1e-4)
