"""Image to video: the image's latent is concatenated to the noisy one, along the channels (paper, Appendix D).

    channels   [noisy latents | image latents]        16 + 16 in the published models
    time       image latent in frame 0, zeros after

The image is noised before the VAE, with sigma = exp(N(-3, 0.5^2)), so that the model does not copy its artefacts. In a
share of the steps it is dropped.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minicogvx.training.settings import ImageCondition
from minicogvx.transformer.widen import widen_for_image
from minicogvx.vae import CausalVAE

__all__ = ["image_channels", "noised_picture", "widen_for_image"]


def noised_picture(picture: Float[Tensor, "3 1 h w"], condition: ImageCondition,
                   generator: torch.Generator) -> Float[Tensor, "3 1 h w"]:
    """The picture, in -1..1, with noise of its own strength."""
    log_sigma = condition.log_sigma_mean + condition.log_sigma_std * torch.randn((), generator=generator)
    return picture + log_sigma.exp() * torch.randn(picture.shape, generator=generator)


@torch.no_grad()
def image_channels(vae: CausalVAE, pictures: Float[Tensor, "b 3 1 h w"], noise: Float[Tensor, "b c 1 lh lw"],
                   frames: int) -> Float[Tensor, "b c t lh lw"]:
    """The image channels for `frames` latent frames: the latents of the noised pictures, then zeros.

    `noise`: standard normal, of the posterior.
    """
    weight, factor = next(vae.parameters()), vae.config.scaling_factor
    posterior = vae.encode(pictures.to(weight.device, weight.dtype))
    latent = posterior.mean + posterior.std * noise.to(weight.device)
    latent = latent / factor if vae.config.invert_scale_latents else latent * factor
    return F.pad(latent, (0, 0, 0, 0, 0, frames - 1))
