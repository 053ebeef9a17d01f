"""Training targets and losses (paper 3): v-prediction, and two other targets for ablations."""

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from minicogvx.diffusion.schedule import NoiseSchedule


def diffusion_target(x0: Float[Tensor, "b *rest"], noise: Float[Tensor, "b *rest"], t: Int[Tensor, "b"],
                     schedule: NoiseSchedule) -> Float[Tensor, "b *rest"]:
    """The regression target: v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0, or the noise, or x0.

    Which one is the `prediction_type` of the schedule's config.
    """
    if schedule.config.prediction_type == "epsilon":
        return noise
    if schedule.config.prediction_type == "sample":
        return x0
    return schedule.velocity(x0, noise, t)


def diffusion_loss(prediction: Float[Tensor, "b *rest"], x0: Float[Tensor, "b *rest"],
                   noise: Float[Tensor, "b *rest"], t: Int[Tensor, "b"], schedule: NoiseSchedule,
                   weight: Tensor | None = None) -> Float[Tensor, "b"]:
    """Mean squared error of each sample, in at least float32: |v_hat - v|^2 / numel, unweighted.

    For v-prediction this equals the published loss, `weighted_x0_loss`, exactly. `weight`: of each squared error, of
    any shape that broadcasts; None, as published: 1.
    """
    return _mean_square(prediction, diffusion_target(x0, noise, t, schedule), weight)


def weighted_x0_loss(prediction: Float[Tensor, "b *rest"], x0: Float[Tensor, "b *rest"],
                     noise: Float[Tensor, "b *rest"], t: Int[Tensor, "b"],
                     schedule: NoiseSchedule) -> Float[Tensor, "b"]:
    """The loss as the published code writes it: |x0_hat - x0|^2 / (numel (1 - alpha_bar_t)), for each sample.

    x0_hat = a x_t - s v_hat and x0 = a x_t - s v differ by s (v - v_hat), and s^2 = 1 - alpha_bar_t cancels
    the weight, which leaves |v_hat - v|^2. For comparison; `diffusion_loss` is the one to train with.
    """
    wide = torch.promote_types(x0.dtype, torch.float32)
    x_t = schedule.add_noise(x0.to(wide), noise.to(wide), t)
    weight = 1 / (1 - schedule.alphas_cumprod).to(wide).to(x0.device)[t.to(x0.device)]
    return weight * _mean_square(schedule.to_x0(prediction, x_t, t), x0)


def _mean_square(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)
    squared = (a.to(wide) - b.to(wide)).square()
    return reduce(squared if weight is None else weight * squared, "b ... -> b", "mean")
