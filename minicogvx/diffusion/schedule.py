"""The noise schedule (paper 2.2 and 3): the table of alpha_bar, and the three quantities computed from it.

With a = sqrt(alpha_bar_t) and s = sqrt(1 - alpha_bar_t), so that a^2 + s^2 = 1:

    x_t = a x0 + s eps          the noisy latent         (forward diffusion, paper eq. 1)
    v   = a eps - s x0          what the network predicts (Salimans and Ho 2022)
    x0  = a x_t - s v           the way back              (a rotation undone)
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minicogvx.presets import ScheduleConfig


class NoiseSchedule:
    """Table of alpha_bar_t, t = 0 .. T-1: the share of signal power left in x_t.

    `alphas_cumprod` is float64 on the CPU. Coefficients are computed in float64, rounded once to float32 (or float64 if
    the inputs are) and then moved to the device of the inputs.
    """

    def __init__(self, config: ScheduleConfig):
        self.config = config
        alphas_cumprod = scaled_linear_alphas_cumprod(config.num_train_timesteps, config.beta_start, config.beta_end)
        alphas_cumprod = shift_snr(alphas_cumprod, config.snr_shift_scale)  # before the next line, not after
        if config.rescale_betas_zero_snr:
            alphas_cumprod = rescale_to_zero_terminal_snr(alphas_cumprod)
        self.alphas_cumprod: Float[Tensor, " T"] = alphas_cumprod

    @property
    def num_train_timesteps(self) -> int:
        """T, 1000 in every published model."""
        return self.config.num_train_timesteps

    def alpha_bar(self, t: int) -> float:
        """alpha_bar at one timestep. A negative t is the clean latent: 1."""
        if t >= self.num_train_timesteps:
            raise ValueError(f"timestep is {t}; it must be below {self.num_train_timesteps}")
        return float(self.alphas_cumprod[t]) if t >= 0 else 1.0

    def add_noise(self, x0: Float[Tensor, "b *rest"], noise: Float[Tensor, "b *rest"],
                  t: Int[Tensor, "b"] | int) -> Float[Tensor, "b *rest"]:
        """x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) noise, computed in float32, in the dtype of x0."""
        a, s = self._signal_and_noise(t, x0)
        return (a * _wide(x0) + s * _wide(noise)).to(x0.dtype)

    def velocity(self, x0: Float[Tensor, "b *rest"], noise: Float[Tensor, "b *rest"],
                 t: Int[Tensor, "b"] | int) -> Float[Tensor, "b *rest"]:
        """v = sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) x0, the target of v-prediction, at least float32."""
        a, s = self._signal_and_noise(t, x0)
        return a * _wide(noise) - s * _wide(x0)

    def to_x0(self, model_output: Float[Tensor, "b *rest"], x_t: Float[Tensor, "b *rest"],
              t: Int[Tensor, "b"] | int) -> Float[Tensor, "b *rest"]:
        """The clean latent that a model output implies, at least float32.

        v_prediction: x0 = a x_t - s v.   epsilon: x0 = (x_t - s eps) / a.   sample: x0 itself.
        """
        model_output = _wide(model_output)
        if self.config.prediction_type == "sample":
            return model_output
        a, s = self._signal_and_noise(t, x_t)
        if self.config.prediction_type == "epsilon":
            return (_wide(x_t) - s * model_output) / a
        return a * _wide(x_t) - s * model_output

    def _signal_and_noise(self, t: Int[Tensor, "b"] | int, like: Tensor):
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t): numbers for one t, tensors "b 1 1 .." for a batch of them."""
        if isinstance(t, int):
            alpha_bar = self.alpha_bar(t)
            return alpha_bar ** 0.5, (1 - alpha_bar) ** 0.5
        _check_timesteps(t, self.num_train_timesteps)
        table = torch.stack([self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()])
        table = table.to(torch.promote_types(like.dtype, torch.float32)).to(like.device)  # some devices have no float64
        a, s = table[:, t.to(like.device)].reshape(2, -1, *[1] * (like.ndim - 1))
        return a, s


def scaled_linear_alphas_cumprod(num_train_timesteps: int, beta_start: float, beta_end: float) -> Float[Tensor, "T"]:
    """alpha_bar_t = prod_{i <= t} (1 - beta_i), where sqrt(beta) is linear in t: the schedule of latent diffusion."""
    betas = torch.linspace(beta_start ** 0.5, beta_end ** 0.5, num_train_timesteps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(dim=0)


def shift_snr(alphas_cumprod: Float[Tensor, "T"], scale: float) -> Float[Tensor, "T"]:
    """Divides the signal-to-noise ratio by `scale`: alpha_bar <- alpha_bar / (scale + (1 - scale) alpha_bar).

    log SNR falls by log(scale) at every timestep. The 2B uses 3: the more latents a video has, the more noise it
    takes to hide it (Esser et al. 2024).
    """
    return alphas_cumprod / (scale + (1 - scale) * alphas_cumprod)


def rescale_to_zero_terminal_snr(alphas_cumprod: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """Makes the last timestep pure noise, as it is when sampling starts (Lin et al. 2024, algorithm 1).

    With r = sqrt(alpha_bar):  r_t <- (r_t - r_last) r_0 / (r_0 - r_last).  r_0 stays, r_last becomes exactly 0.
    """
    roots = alphas_cumprod.sqrt()
    first, last = roots[0], roots[-1]
    return ((roots - last) * (first / (first - last))) ** 2


def _wide(x: Tensor) -> Tensor:
    """x in at least float32: noising and sampling never run in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_timesteps(t: Tensor, num_train_timesteps: int) -> None:
    # On the CPU only: on an accelerator the check would synchronise with the host.
    if t.device.type == "cpu" and t.numel() and not 0 <= int(t.min()) <= int(t.max()) < num_train_timesteps:
        raise ValueError(f"timesteps run from {int(t.min())} to {int(t.max())}; "
                         f"they must be in 0..{num_train_timesteps - 1}")
