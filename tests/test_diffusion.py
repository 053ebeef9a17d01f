"""Schedule and objective: published numbers, identities, and diffusers."""

import math
from itertools import product

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from minicogvx.diffusion import NoiseSchedule, diffusion_loss, diffusion_target, weighted_x0_loss
from minicogvx.diffusion.schedule import scaled_linear_alphas_cumprod, shift_snr
from minicogvx.presets import PRESETS, ScheduleConfig

T = 1000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(b: int = 8, dtype: torch.dtype = torch.float64):
    """x0, noise, t, prediction."""
    g = seeded(b)
    x0, noise, prediction = torch.randn(3, b, 4, 3, 2, 2, generator=g, dtype=dtype)
    return x0, noise, torch.randint(0, T, (b,), generator=g), prediction


def reference(schedule: ScheduleConfig) -> CogVideoXDDIMScheduler:
    return CogVideoXDDIMScheduler(
        num_train_timesteps=schedule.num_train_timesteps, beta_start=schedule.beta_start, beta_end=schedule.beta_end,
        snr_shift_scale=schedule.snr_shift_scale, rescale_betas_zero_snr=schedule.rescale_betas_zero_snr,
        prediction_type=schedule.prediction_type, clip_sample=False, timestep_spacing="trailing")


# ---------------------------------------------------------------------------- schedule

PUBLISHED_ALPHA_BARS = {
    3.0: {0: .997454, 19: .946573, 100: .728242, 250: .389054, 500: .0953281, 750: .0108389, 900: 9.4545e-4},
    1.0: {0: .99915, 19: .981010, 100: .886761, 250: .652457, 500: .241019, 750: .0327991, 900: 2.9604e-3},
}


def test_published_alpha_bars(subtests):
    for shift, last in ((1.0, .0046601), (3.0, .0015582)):
        with subtests.test(shift=shift):
            schedule = NoiseSchedule(ScheduleConfig(snr_shift_scale=shift))
            for t, expected in PUBLISHED_ALPHA_BARS[shift].items():
                assert schedule.alpha_bar(t) == pytest.approx(expected, rel=2e-5), t
            assert schedule.alphas_cumprod.dtype == torch.float64
            assert schedule.alphas_cumprod[-1] == 0
            assert schedule.alpha_bar(-1) == 1
            assert (schedule.alphas_cumprod.diff() < 0).all()
            unscaled = ScheduleConfig(snr_shift_scale=shift, rescale_betas_zero_snr=False)  # some signal is left
            assert NoiseSchedule(unscaled).alpha_bar(T - 1) == pytest.approx(last, rel=2e-5)
    for preset in PRESETS.values():
        schedule = NoiseSchedule(preset.schedule)
        assert schedule.alphas_cumprod[-1] == 0 and (schedule.alphas_cumprod < 1).all()


def test_table_is_that_of_diffusers(subtests):
    for rescale, shift in product((True, False), (1.0, 3.0, 0.5)):
        with subtests.test(rescale=rescale, shift=shift):
            config = ScheduleConfig(snr_shift_scale=shift, rescale_betas_zero_snr=rescale)
            torch.testing.assert_close(NoiseSchedule(config).alphas_cumprod, reference(config).alphas_cumprod,
                                       rtol=1e-13, atol=0)


def test_snr_shift_moves_log_snr_by_minus_log_scale():
    plain = scaled_linear_alphas_cumprod(T, 0.00085, 0.012)
    torch.testing.assert_close(shift_snr(plain, 3.0).logit() - plain.logit(), torch.full((T,), -math.log(3.0)).double())


def test_velocity_and_noisy_latent_are_a_rotation():
    x0, noise, t, _ = batch()
    schedule = NoiseSchedule(PRESETS["2b"].schedule)
    x_t, v = schedule.add_noise(x0, noise, t), schedule.velocity(x0, noise, t)
    torch.testing.assert_close(x_t ** 2 + v ** 2, x0 ** 2 + noise ** 2)
    torch.testing.assert_close(schedule.to_x0(v, x_t, t), x0)


def test_last_timestep_is_pure_noise_and_a_timestep_may_be_a_number():
    x0, noise, _, _ = batch(3)
    schedule, t = NoiseSchedule(ScheduleConfig()), torch.full((3,), 321)
    torch.testing.assert_close(schedule.add_noise(x0, noise, T - 1), noise)
    torch.testing.assert_close(schedule.velocity(x0, noise, T - 1), -x0)
    for method in (schedule.add_noise, schedule.velocity, schedule.to_x0):
        torch.testing.assert_close(method(x0, noise, 321), method(x0, noise, t))


def test_against_diffusers_add_noise_and_velocity():
    x0, noise, t, _ = batch(dtype=torch.float32)
    config = PRESETS["2b"].schedule
    schedule, theirs = NoiseSchedule(config), reference(config)
    torch.testing.assert_close(schedule.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=0, atol=2e-6)
    torch.testing.assert_close(schedule.velocity(x0, noise, t), theirs.get_velocity(x0, noise, t), rtol=0, atol=2e-6)


def test_half_precision_is_computed_in_float32():
    x0, noise, t, prediction = batch(dtype=torch.float32)
    low = [x.bfloat16() for x in (x0, noise, prediction)]
    schedule = NoiseSchedule(ScheduleConfig())
    assert schedule.add_noise(low[0], low[1], t).dtype == torch.bfloat16
    torch.testing.assert_close(schedule.add_noise(low[0], low[1], t),
                               schedule.add_noise(low[0].float(), low[1].float(), t).bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(schedule.velocity(low[0], low[1], t),
                               schedule.velocity(low[0].float(), low[1].float(), t), rtol=0, atol=0)
    for prediction_type in ("v_prediction", "sample"):
        schedule = NoiseSchedule(ScheduleConfig(prediction_type=prediction_type))
        loss = diffusion_loss(low[2], low[0], low[1], t, schedule)
        expected = diffusion_loss(low[2].float(), low[0].float(), low[1].float(), t, schedule)
        torch.testing.assert_close(loss, expected, rtol=0, atol=0)


def test_tables_follow_the_inputs_to_their_device():
    # The meta device stands for any other: mixing it with the CPU raises.
    x0, t = torch.empty(3, 2, 1, 4, 4, device="meta"), torch.empty(3, dtype=torch.long, device="meta")
    schedule = NoiseSchedule(ScheduleConfig())
    for loss in (diffusion_loss, weighted_x0_loss):
        assert loss(x0, x0, x0, t, schedule).device.type == "meta"
    assert schedule.add_noise(x0, x0, t).device.type == "meta"


def test_timesteps_outside_the_table(subtests):
    x0, noise, _, _ = batch(2)
    for t in (T, torch.tensor([0, T]), torch.tensor([-1, 5])):
        with subtests.test(t=t), pytest.raises(ValueError, match="must be (below 1000|in 0..999)"):
            NoiseSchedule(ScheduleConfig()).add_noise(x0, noise, t)


# ---------------------------------------------------------------------------- objective

def test_published_loss_equals_plain_error_of_v():
    x0, noise, t, prediction = batch(64)
    t[0] = T - 1
    for name in ("2b", "5b"):
        schedule = NoiseSchedule(PRESETS[name].schedule)
        loss = diffusion_loss(prediction, x0, noise, t, schedule)
        torch.testing.assert_close(loss, weighted_x0_loss(prediction, x0, noise, t, schedule))
        assert loss.shape == (64,) and loss.min() > 0.1


def test_the_target_leads_back_to_x0_and_the_loss_is_the_mean_square_beside_it(subtests):
    for prediction_type in ("v_prediction", "epsilon", "sample"):
        with subtests.test(prediction_type):
            x0, noise, t, _ = batch()
            schedule = NoiseSchedule(ScheduleConfig(prediction_type=prediction_type, rescale_betas_zero_snr=False))
            target = diffusion_target(x0, noise, t, schedule)
            torch.testing.assert_close(schedule.to_x0(target, schedule.add_noise(x0, noise, t), t), x0)
            wrong = target.clone()
            wrong[1] += 2
            expected = torch.zeros(8).double()
            expected[1] = 4
            torch.testing.assert_close(diffusion_loss(wrong, x0, noise, t, schedule), expected)


def test_loss_has_the_gradient_of_a_mean():
    x0, noise, t, prediction = batch(4, torch.float32)
    schedule = NoiseSchedule(ScheduleConfig())
    prediction.requires_grad_()
    diffusion_loss(prediction, x0, noise, t, schedule).sum().backward()
    expected = 2 * (prediction.detach() - schedule.velocity(x0, noise, t)) / x0[0].numel()
    torch.testing.assert_close(prediction.grad, expected)
