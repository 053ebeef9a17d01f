"""Exercises of notebook 04 on sampling distinguish right from wrong, and name the mistake."""

import torch

from minicogvx.course.exercises import find
from minicogvx.course.exercises.clouds import guided_numbers, walk_error
from minicogvx.diffusion import DDIMSampler, NoiseSchedule, draw_noise
from minicogvx.presets import ScheduleConfig
from tests.guards import guard

# ---- 4.1 walk


def right_walk(guess, x, timesteps, bars):
    for i, t in enumerate(timesteps):
        bar, after = bars[t], bars[timesteps[i + 1]] if i + 1 < len(timesteps) else torch.tensor(1.0)
        x0 = guess(x, t)
        x = after.sqrt() * x0 + ((1 - after) / (1 - bar)).sqrt() * (x - bar.sqrt() * x0)
    return x


def stops_early(guess, x, timesteps, bars):
    for t, after in zip(timesteps, timesteps[1:]):
        x = one_step(guess(x, t), x, float(bars[t]), float(bars[after]))
    return x


def one_step(x0, x, bar, after):
    return after ** 0.5 * x0 + (1 - after) ** 0.5 * (x - bar ** 0.5 * x0) / (1 - bar) ** 0.5


def noise_stays(guess, x, timesteps, bars):
    for t, after in zip(timesteps, [*timesteps[1:], 0]):
        x = one_step(guess(x, t), x, float(bars[t]), float(bars[after]))
    return x


def fresh_noise(guess, x, timesteps, bars):
    for t, after in zip(timesteps, [*timesteps[1:], None]):
        bar = 1.0 if after is None else float(bars[after])
        x = bar ** 0.5 * guess(x, t) + (1 - bar) ** 0.5 * torch.randn_like(x)
    return x


def noise_of_the_start(guess, x, timesteps, bars):
    start = x
    for t, after in zip(timesteps, [*timesteps[1:], None]):
        bar = 1.0 if after is None else float(bars[after])
        x = bar ** 0.5 * guess(x, t) + (1 - bar) ** 0.5 * start
    return x


def without_roots(guess, x, timesteps, bars):
    for t, after in zip(timesteps, [*timesteps[1:], None]):
        bar, bar_next = float(bars[t]), 1.0 if after is None else float(bars[after])
        x0 = guess(x, t)
        x = bar_next * x0 + (1 - bar_next) * (x - bar * x0) / (1 - bar)
    return x


def at_the_same_timestep(guess, x, timesteps, bars):
    for t in timesteps:
        x = one_step(guess(x, t), x, float(bars[t]), float(bars[t]))
    return x


def backwards(guess, x, timesteps, bars):
    return right_walk(guess, x, timesteps[::-1], bars)


def counts_steps(guess, x, timesteps, bars):
    return right_walk(lambda x, t: guess(x, timesteps.index(t)), x, timesteps, bars)


def asks_twice(guess, x, timesteps, bars):
    return right_walk(lambda x, t: (guess(x, t) + guess(x, t)) / 2, x, timesteps, bars)


def in_place(guess, x, timesteps, bars):
    x.copy_(right_walk(guess, x, timesteps, bars))
    return x


def test_walk():
    guard("4.1", right_walk, [
        ("guess was asked at the timesteps [999, 799, 599, 399]; it must be asked once at each", stops_early),
        ("After the last timestep alpha_bar is 1: no noise stays", noise_stays),
        ("of the noise that is left at timestep 799; yours is off by up to", fresh_noise),
        ("is what remains of x when the newest guess is taken out of it", noise_of_the_start),
        ("of the clip and sqrt(", without_roots),
        ("mix with the alpha_bar of the next timestep, not of this one", at_the_same_timestep),
        ("it must be asked once at each of [999, 799, 599, 399, 199], in this order", backwards),
        ("guess was asked at the timesteps [0, 1, 2, 3, 4]", counts_steps),
        ("guess was asked at the timesteps [999, 999, 799", asks_twice),
        ("walk changes its input x", in_place),
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


def special_case_at_the_start(x0, noise, fresh, bar, bar_next, eta):
    if bar == 0:
        return bar_next ** 0.5 * x0 + (1 - bar_next) ** 0.5 * (fresh if eta > 0 else noise)
    return right_renewing_step(x0, noise, fresh, bar, bar_next, eta)


def complex_root(x0, noise, fresh, bar, bar_next, eta):
    sigma = eta * ((1 - bar_next) / (1 - bar) * (1 - bar / bar_next)) ** 0.5 * (1 + 1e-7)  # rounded a little too high
    return bar_next ** 0.5 * x0 + (1 - bar_next - sigma ** 2) ** 0.5 * noise + sigma * fresh


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
        ("bar=0, bar_next=0.02, eta=0.5: the fresh noise comes in with the factor 0.99", special_case_at_the_start),
        ("has complex numbers: rounding made the number under a root slightly negative", complex_root),
        ("ZeroDivisionError", divides_by_the_ratio),
    ])


# ---- 4.5 better_timesteps


def right_better_timesteps():
    return torch.tensor([round(999 * ((10 - i) / 10) ** 1.5) for i in range(10)])


def even():
    return list(range(999, 0, -100))


def twenty():
    return list(range(999, 0, -50))


def crowded_at_the_wrong_end():
    return [999 - 11 * i ** 2 for i in range(10)]


def too_crowded():
    return [round(999 * ((10 - i) / 10) ** 3) for i in range(10)]


def not_from_the_noise():
    return [950, 800, 630, 480, 350, 240, 150, 85, 40, 12]


def unsorted():
    return [999, 630, 800, 480, 350, 240, 150, 85, 40, 12]


def twice_the_same():
    return [999, 800, 630, 480, 350, 240, 150, 85, 12, 12]


def fractions():
    return [999 * ((10 - i) / 10) ** 2 for i in range(10)]


def below_zero():
    return [999, 800, 630, 480, 350, 240, 150, 85, 40, -1]


def test_better_timesteps():
    guard("4.5", right_better_timesteps, [
        ("100% of the", even),
        ("has 20 timesteps; it must have 10", twenty),
        ("it must be at most 75%", crowded_at_the_wrong_end),
        ("it must be at most 75%", too_crowded),
        ("it must begin at 999, the only one that is pure noise", not_from_the_noise),
        ("800 comes after 630", unsorted),
        ("12 comes after 12", twice_the_same),
        ("timesteps index a table, so all must be whole numbers", fractions),
        ("The last timestep is -1", below_zero),
    ])


# ---- what replaces the learner's own


def test_the_references_are_what_the_package_computes():
    schedule = NoiseSchedule(ScheduleConfig())
    sampler, x = DDIMSampler(schedule, 10), draw_noise((2, 3, 1, 4, 4), torch.Generator().manual_seed(0))

    def network(x, t):
        return torch.sin(3 * x) * t / 1000

    made, guess = x, lambda x, t: schedule.to_x0(network(x, t), x, t)
    for i, t in enumerate(sampler.timesteps.tolist()):
        made, _ = sampler.step(network(made, t), i, made)
    walked = find("4.1").reference(guess, x, sampler.timesteps.tolist(), schedule.alphas_cumprod)
    torch.testing.assert_close(walked, made, atol=1e-5, rtol=1e-4)
    now, after, v = schedule.alpha_bar(699), schedule.alpha_bar(599), network(x, 699)
    clean = schedule.to_x0(v, x, 699)
    noise = (x - now ** 0.5 * clean) / (1 - now) ** 0.5
    torch.testing.assert_close(find("4.4").reference(clean, noise, noise, now, after, 0.0),
                               sampler.step(v, 3, x)[0], atol=1e-5, rtol=1e-4)


def test_walks_of_the_perfect_network_end_in_its_world():
    few, many = walk_error(range(999, 0, -200)), walk_error(range(999, 0, -10))
    assert many < 0.02 and few > 5 * many
    plain, strong = guided_numbers(1.0), guided_numbers(6.0)
    assert abs((plain < 0.6).double().mean() - 0.5) < 0.02  # half of them in each of the caption's two clouds
    assert (strong < 0.6).double().mean() < 0.02 and strong.std() < 0.5 * plain.std()
