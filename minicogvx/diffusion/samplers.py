"""From noise to a video's latents: DDIM, and the stochastic DPM-Solver++(2M). Stateless; both are called the same way:

    latents, x0 = draw_noise(shape, generator), None
    for i, t in enumerate(sampler.timesteps):
        latents, x0 = sampler.step(model(latents, t.expand(b)), i, latents, x0, generator)

For video to video, start from `schedule.add_noise(video, noise, t)` at `i = start_index(strength, n)`.

In the equations x is the latent, x0 the clean one that the model output implies, bar is alpha_bar_t, and a prime marks
the timestep on which the step lands:  sigma = sqrt(1 - bar),  lambda = log(sqrt(bar) / sigma).
"""

import math
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.diffusion.timesteps import inference_timesteps, target_timesteps

Generators = torch.Generator | list[torch.Generator]  # one for a whole batch, or one for each of its videos


class DDIMSampler:
    """Deterministic: the same starting noise gives the same video (Song et al. 2021, eq. 12 with eta = 0).

    x' = A x + (sqrt(bar') - A sqrt(bar)) x0,   A = sigma' / sigma.
    """

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, target: Literal["stride", "next"] = "stride"):
        self.schedule = schedule
        self.timesteps = inference_timesteps(schedule, num_inference_steps)
        self.targets = target_timesteps(schedule, num_inference_steps, target)

    def step(self, model_output: Float[Tensor, "b c t h w"], i: int, latents: Float[Tensor, "b c t h w"],
             x0_before: Float[Tensor, "b c t h w"] | None = None, generator: Generators | None = None,
             ) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b c t h w"]]:
        """Step i of the run: the next latents, in the dtype of `latents`, and the predicted x0 (at least float32).

        `x0_before` and `generator` are unused; they are here because DPMSampler has them.
        Raises ValueError for a model output that is not finite, or of another shape than the latents.
        """
        _check_step(model_output, i, latents, self.timesteps)
        t = int(self.timesteps[i])
        x0 = self.schedule.to_x0(model_output, latents, t)
        bar, bar_next = self.schedule.alpha_bar(t), self.schedule.alpha_bar(int(self.targets[i]))
        A = math.sqrt((1 - bar_next) / (1 - bar))
        x = A * latents.to(x0.dtype) + (math.sqrt(bar_next) - A * math.sqrt(bar)) * x0
        return x.to(latents.dtype), x0


class DPMSampler:
    """DPM-Solver++(2M) for the diffusion SDE: second order in x0, with fresh noise at every step (Lu et al. 2022).

    x' = A e^-h x + sqrt(bar') B D + sigma' sqrt(B) noise,   A = sigma' / sigma,  B = 1 - e^-2h,  h = lambda' - lambda,
    D  = (1 + C) x0 - C x0_before,                           C = 1 / (2r),        r = h_before / h.

    B is the share of the noise that is new. The first and the last step use D = x0: there is no x0 before the first,
    and h is infinite in the last.

    `redraw_noise`: both published programs draw the noise of a second-order step twice and throw the first away.
    True does the same, so that the same generator gives the same video; False draws once.
    """

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, target: Literal["stride", "next"] = "stride",
                 redraw_noise: bool = True):
        self.schedule = schedule
        self.timesteps = inference_timesteps(schedule, num_inference_steps)
        self.targets = target_timesteps(schedule, num_inference_steps, target)
        self.redraw_noise = redraw_noise

    def step(self, model_output: Float[Tensor, "b c t h w"], i: int, latents: Float[Tensor, "b c t h w"],
             x0_before: Float[Tensor, "b c t h w"] | None = None, generator: Generators | None = None,
             ) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b c t h w"]]:
        """Step i of the run: the next latents, in the dtype of `latents`, and the predicted x0 (at least float32).

        x0_before: the second result of the previous step, None at step 0. generator: what the noise is drawn with.
        Raises ValueError for a model output that is not finite, or of another shape than the latents.
        """
        _check_step(model_output, i, latents, self.timesteps)
        if i == 0 and x0_before is not None:
            raise ValueError("x0_before is given at step 0; it must be None there, as no step came before")
        t, t_next = int(self.timesteps[i]), int(self.targets[i])
        x0 = self.schedule.to_x0(model_output, latents, t)
        bar, bar_next = self.schedule.alpha_bar(t), self.schedule.alpha_bar(t_next)
        h = _half_log_snr(bar_next) - _half_log_snr(bar)

        second_order = x0_before is not None and t_next >= 0
        noise = draw_noise(latents.shape, generator, latents.dtype, latents.device)
        if second_order and self.redraw_noise:
            noise = draw_noise(latents.shape, generator, latents.dtype, latents.device)

        D = x0
        if second_order:
            h_before = _half_log_snr(bar) - _half_log_snr(self.schedule.alpha_bar(int(self.timesteps[i - 1])))
            C = h / (2 * h_before)  # 0 after a first step from pure noise, whose h is infinite
            D = (1 + C) * x0 - C * x0_before

        A, B = math.sqrt((1 - bar_next) / (1 - bar)), -math.expm1(-2 * h)
        x = (A * math.exp(-h) * latents.to(x0.dtype)
             + math.sqrt(bar_next) * B * D
             + math.sqrt((1 - bar_next) * B) * noise.to(x0.dtype))
        return x.to(latents.dtype), x0


SAMPLERS = {"ddim": DDIMSampler, "dpm": DPMSampler}


def draw_noise(shape: tuple[int, ...], generator: Generators | None = None, dtype: torch.dtype = torch.float32,
               device: torch.device | str = "cpu") -> Float[Tensor, "b c t h w"]:
    """Standard normal noise of shape (b, c, t, h, w), drawn on the generator's device and moved to `device`.

    It is drawn frame by frame, as `b t c h w`: the layout of the published programs, whose seeds thus mean the same
    noise here. A CPU generator gives the same video on every device; one for each video gives it in every batch.
    Raises ValueError for a list that does not have b generators.
    """
    b, c, t, h, w = shape
    return rearrange(randn((b, t, c, h, w), generator, dtype, device), "b t c h w -> b c t h w")


def randn(shape: tuple[int, ...], generator: Generators | None = None, dtype: torch.dtype = torch.float32,
          device: torch.device | str = "cpu") -> Float[Tensor, "*shape"]:
    """Standard normal noise, drawn on the generator's device and moved to `device`; a list draws one row each."""
    if isinstance(generator, list):
        if len(generator) != shape[0]:
            raise ValueError(f"there are {len(generator)} generators; it must be one, or one for each of the "
                             f"{shape[0]} videos")
        return torch.cat([randn((1, *shape[1:]), one, dtype, device) for one in generator])
    drawn_on = generator.device if generator is not None else device
    return torch.randn(*shape, generator=generator, dtype=dtype, device=drawn_on).to(device)


def check_finite(values: Float[Tensor, "*shape"], what: str) -> Float[Tensor, "*shape"]:
    """`values`. Raises ValueError, which names `what` they are, if there is NaN or infinity among them."""
    # The sum of all is NaN or infinite where one of them is, and unlike a mask takes no memory.
    if not torch.isfinite(values.sum(dtype=torch.promote_types(values.dtype, torch.float32))):
        raise ValueError(f"{what} holds NaN or infinity; it must be finite, so look at the weights and, if they are "
                         f"float16, use bfloat16 or float32")
    return values


def _half_log_snr(bar: float) -> float:
    """lambda = 1/2 log(bar / (1 - bar)): minus infinity for pure noise, plus infinity for the clean latent."""
    if bar == 0 or bar == 1:
        return math.inf if bar else -math.inf
    return 0.5 * math.log(bar / (1 - bar))


def _check_step(model_output: Tensor, i: int, latents: Tensor, timesteps: Tensor) -> None:
    if not 0 <= i < len(timesteps):
        raise ValueError(f"step is {i}; with {len(timesteps)} inference steps it must be in 0..{len(timesteps) - 1}")
    if model_output.shape != latents.shape:
        raise ValueError(f"the model output has shape {tuple(model_output.shape)}; "
                         f"it must be that of the latents, {tuple(latents.shape)}")
    check_finite(model_output, f"the model output of step {i} (timestep {int(timesteps[i])})")
