"""DDIM and DPM-Solver++ against diffusers, step by step over whole runs, and on problems whose answer is known."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange

from minicogvx.diffusion import DDIMSampler, DPMSampler, NoiseSchedule, draw_noise, start_index
from minicogvx.presets import PRESETS, ScheduleConfig

SHAPE = (2, 4, 3, 2, 2)  # b c t h w


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(x, t):
    """A smooth stand-in for the network: it mixes every number of x and depends on the timestep."""
    return torch.tanh(1.3 * x.roll(1, dims=-1) - 0.4 * x.flip(1)) + 0.2 * x * (t / 1000) - 0.1


def run(sampler, latents, generator, start=0, network=model):
    """All latents and x0 of a run."""
    x0, trace = None, []
    for i in range(start, len(sampler.timesteps)):
        latents, x0 = sampler.step(network(latents, int(sampler.timesteps[i])), i, latents, x0, generator)
        trace.append((latents, x0))
    return trace


def reference_run(scheduler, n, latents, generator, start=0):
    """The loop of the CogVideoX pipelines of diffusers, whose latents are b t c h w."""
    swap, dtype = "b i j h w -> b j i h w", latents.dtype
    wide = torch.promote_types(dtype, torch.float32)
    scheduler.set_timesteps(n)
    latents, old, trace, timesteps = rearrange(latents, swap), None, [], scheduler.timesteps[start:]
    for i, t in enumerate(timesteps):
        output = rearrange(model(rearrange(latents, swap), int(t)), swap).to(wide)
        if isinstance(scheduler, CogVideoXDPMScheduler):
            back = timesteps[i - 1] if i > 0 else None
            latents, old = scheduler.step(output, old, t, back, latents, generator=generator, return_dict=False)
        else:
            latents, old = scheduler.step(output, t, latents, return_dict=False)
        latents = latents.to(dtype)
        trace.append((rearrange(latents, swap), rearrange(old, swap)))
    return trace


def reference(kind, config: ScheduleConfig):
    return kind(num_train_timesteps=config.num_train_timesteps, beta_start=config.beta_start, beta_end=config.beta_end,
                snr_shift_scale=config.snr_shift_scale, rescale_betas_zero_snr=config.rescale_betas_zero_snr,
                prediction_type=config.prediction_type, clip_sample=False, timestep_spacing="trailing")


PAIRS = [(DDIMSampler, CogVideoXDDIMScheduler), (DPMSampler, CogVideoXDPMScheduler)]


def compare(ours, theirs, rtol, atol):
    assert len(ours) == len(theirs)
    for i, ((x, x0), (their_x, their_x0)) in enumerate(zip(ours, theirs)):
        for name, a, b in (("latents", x, their_x), ("x0", x0, their_x0)):
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda m: f"{name} of step {i}: {m}")


def test_whole_runs_are_those_of_diffusers(subtests):
    shifted = [ScheduleConfig(snr_shift_scale=shift) for shift in (1.0, 3.0)]
    others = [ScheduleConfig(prediction_type=kind, rescale_betas_zero_snr=False)
              for kind in ("v_prediction", "epsilon", "sample")]
    runs = [*product(shifted, (50, 30, 25, 10, 7, 2, 1)), *product(others, (10,))]
    for (sampler, scheduler), (config, n) in product(PAIRS, runs):
        with subtests.test(sampler.__name__, steps=n, config=config):
            for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-6)):
                if dtype == torch.float64 or config in shifted:
                    noise = draw_noise(SHAPE, seeded(1), dtype)
                    theirs = reference_run(reference(scheduler, config), n, noise, seeded(2))
                    compare(run(sampler(NoiseSchedule(config), n), noise, seeded(2)), theirs, tolerance, tolerance)


def test_video_to_video_starts_in_the_middle(subtests):
    for strength, (sampler, scheduler) in product((0.3, 0.8, 1.0), PAIRS):
        with subtests.test(sampler.__name__, strength=strength):
            config, n = PRESETS["5b"].schedule, 20
            schedule, theirs, start = NoiseSchedule(config), reference(scheduler, config), start_index(strength, n)
            clean, noise = draw_noise(SHAPE, seeded(3)), draw_noise(SHAPE, seeded(4))
            ours = sampler(schedule, n)
            t = int(ours.timesteps[start])
            ours_start = schedule.add_noise(clean, noise, t)
            theirs_start = theirs.add_noise(clean, noise, torch.tensor([t]))
            torch.testing.assert_close(ours_start, theirs_start, rtol=0, atol=2e-6)
            compare(run(ours, ours_start, seeded(5), start),
                    reference_run(theirs, n, theirs_start, seeded(5), start), 2e-5, 2e-5)


def test_noise_is_drawn_as_diffusers_does_from_one_generator_or_one_for_each_video():
    b, c, t, h, w = SHAPE
    for generators in (seeded(7), [seeded(7), seeded(3)]):
        again = [seeded(7), seeded(3)] if isinstance(generators, list) else seeded(7)
        theirs = randn_tensor((b, t, c, h, w), generator=generators)
        assert torch.equal(draw_noise(SHAPE, again), rearrange(theirs, "b t c h w -> b c t h w"))
    assert draw_noise(SHAPE, seeded(7), torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(draw_noise(SHAPE, [seeded(7), seeded(3)])[1:], draw_noise((1, c, t, h, w), seeded(3)))
    with pytest.raises(ValueError, match="there are 3 generators; it must be one, or one for each of the 2 videos"):
        draw_noise(SHAPE, [seeded(i) for i in range(3)])


def test_single_draw_of_noise_is_an_option():
    schedule, noise = NoiseSchedule(ScheduleConfig()), draw_noise(SHAPE, seeded(1))
    twice, once = seeded(2), seeded(2)
    a = run(DPMSampler(schedule, 4), noise, twice)
    b = run(DPMSampler(schedule, 4, redraw_noise=False), noise, once)
    torch.testing.assert_close(a[0], b[0], rtol=0, atol=0)
    assert not torch.allclose(a[1][0], b[1][0])
    draws = seeded(2)
    for _ in range(6):  # 4 steps, of which the middle 2 are of second order
        draw_noise(SHAPE, draws)
    assert torch.equal(twice.get_state(), draws.get_state())


def test_same_seed_same_latents_and_ddim_takes_no_further_noise(subtests):
    for sampler in (DDIMSampler, DPMSampler):
        with subtests.test(sampler.__name__):
            ours, noise = sampler(NoiseSchedule(ScheduleConfig()), 10), draw_noise(SHAPE, seeded(1))
            first, second, other = (run(ours, noise, seeded(seed))[-1][0] for seed in (2, 2, 3))
            assert torch.equal(first, second) and torch.equal(first, other) == (sampler is DDIMSampler)
            assert not torch.allclose(first, run(ours, draw_noise(SHAPE, seeded(3)), seeded(2))[-1][0])
            generator = seeded(2)
            run(ours, noise, generator)
            assert torch.equal(generator.get_state(), seeded(2).get_state()) == (sampler is DDIMSampler)


def test_a_network_that_knows_the_answer_reaches_it(subtests):
    for n, sampler in product((1, 2, 10), (DDIMSampler, DPMSampler)):
        with subtests.test(sampler.__name__, n=n):
            # v that points at `clean` from wherever x_t is: eps = (x_t - a x0) / s.
            schedule, clean = NoiseSchedule(ScheduleConfig()), draw_noise(SHAPE, seeded(6), torch.float64)

            def oracle(x, t):
                a, s = schedule.alpha_bar(t) ** 0.5, (1 - schedule.alpha_bar(t)) ** 0.5
                return (a * x - clean) / s

            noise = draw_noise(SHAPE, seeded(1), torch.float64)
            torch.testing.assert_close(run(sampler(schedule, n), noise, seeded(2), network=oracle)[-1][0], clean)


def test_gaussian_data_come_out_with_their_mean_and_spread(subtests):
    for sampler in (DDIMSampler, DPMSampler):
        with subtests.test(sampler.__name__):
            # For data ~ N(mu, std^2) the perfect network is known: E[x0 | x_t] is linear in x_t.
            mu, std, schedule = 0.7, 0.5, NoiseSchedule(PRESETS["2b"].schedule)

            def posterior_mean(x, t):
                bar = schedule.alpha_bar(t)
                x0 = mu + std ** 2 * bar ** 0.5 / (std ** 2 * bar + 1 - bar) * (x - bar ** 0.5 * mu)
                return (bar ** 0.5 * x - x0) / (1 - bar) ** 0.5

            noise = draw_noise((2, 4, 5, 10, 10), seeded(1), torch.float64)
            out = run(sampler(schedule, 1000), noise, seeded(2), network=posterior_mean)[-1][0]
            assert out.mean().item() == pytest.approx(mu, abs=0.02)
            assert out.std().item() == pytest.approx(std, abs=0.015)


def test_stride_can_leave_noise_where_next_does_not():
    schedule, noise = NoiseSchedule(ScheduleConfig()), draw_noise(SHAPE, seeded(1))
    for sampler in (DDIMSampler, DPMSampler):
        published, exact = (run(sampler(schedule, 7, rule), noise, seeded(2))[-1] for rule in ("stride", "next"))
        assert not torch.allclose(published[0], published[1])
        torch.testing.assert_close(exact[0], exact[1])
        torch.testing.assert_close(run(sampler(schedule, 10), noise, seeded(2)),
                                   run(sampler(schedule, 10, "next"), noise, seeded(2)), rtol=0, atol=0)


def test_half_precision_latents_stay_half_and_are_computed_in_float32(subtests):
    for sampler in (DDIMSampler, DPMSampler):
        with subtests.test(sampler.__name__):
            ours = sampler(NoiseSchedule(ScheduleConfig()), 10)
            latents, output = (draw_noise(SHAPE, seeded(s)).bfloat16() for s in (1, 2))
            low, low_x0 = ours.step(output, 3, latents, None, seeded(3))
            high, high_x0 = ours.step(output.float(), 3, latents.float(), None, seeded(3))
            assert low.dtype == torch.bfloat16 and low_x0.dtype == torch.float32
            assert torch.equal(low_x0, high_x0)
            torch.testing.assert_close(low.float(), high, rtol=2 ** -7, atol=2 ** -7)


def test_bfloat16_runs_are_no_further_from_exact_than_those_of_diffusers(subtests):
    for sampler, scheduler in PAIRS:
        with subtests.test(sampler.__name__):
            # They round the scaled latents to bfloat16 before adding; here only the sum is rounded.
            config, noise = ScheduleConfig(), draw_noise(SHAPE, seeded(1), torch.bfloat16)
            ours = run(sampler(NoiseSchedule(config), 10), noise, seeded(2))[-1][0]
            theirs = reference_run(reference(scheduler, config), 10, noise, seeded(2))[-1][0]
            exact = run(sampler(NoiseSchedule(config), 10), noise.float(), seeded(2))[-1][0]
            assert ours.dtype == theirs.dtype == torch.bfloat16
            ours_off, theirs_off = ((x.float() - exact).abs().mean() for x in (ours, theirs))
            assert ours_off < 1.2 * theirs_off and ours_off < 0.02


def test_bad_steps(subtests):
    x = draw_noise(SHAPE, seeded(1))
    for sampler in (DDIMSampler, DPMSampler):
        with subtests.test(sampler.__name__):
            ours = sampler(NoiseSchedule(ScheduleConfig()), 10)
            for bad in (float("nan"), float("inf")):
                output = x.clone()
                output[1, 2, 0, 1, 1] = bad
                with pytest.raises(ValueError, match=r"output of step 3 \(timestep 699\) holds NaN or infinity"):
                    ours.step(output, 3, x)
            for i in (-1, 10):
                with pytest.raises(ValueError, match=rf"step is {i}; with 10 inference steps it must be in 0\.\.9"):
                    ours.step(x, i, x)
            for n in (0, 1001):
                with pytest.raises(ValueError, match=f"num_inference_steps is {n}; it must be from 1 to 1000"):
                    sampler(NoiseSchedule(ScheduleConfig()), n)
            with pytest.raises(ValueError, match="epsilon"):
                sampler(NoiseSchedule(replace(ScheduleConfig(), prediction_type="epsilon")), 10)
            # jaxtyping speaks first where it checks; without it the sampler does
            with pytest.raises(Exception, match="(?s)the model output has shape|Type-check error"):
                ours.step(x[:1], 0, x)
    with pytest.raises(ValueError, match="x0_before is given at step 0; it must be None"):
        DPMSampler(NoiseSchedule(ScheduleConfig()), 10).step(x, 0, x, x)
