"""Image to video: the image's latent is concatenated to the noisy one, along the channels (paper, Appendix D).

    channels   [noisy latents | image latents]        16 + 16 in the published models
    time       image latent in frame 0, zeros after

The image is noised before the VAE, with sigma = exp(N(-3, 0.5^2)), so that the model does not copy its artefacts. In a
share of the steps it is dropped.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.engine.limits import check_limits
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE


@dataclass(frozen=True)
class ImageCondition:
    """The published numbers. As published, `dropout` is drawn once for a whole batch, sigma for each clip."""

    log_sigma_mean: float = -3.0
    log_sigma_std: float = 0.5
    dropout: float = 0.05

    def __post_init__(self):
        check_limits(self, {"dropout": "from 0 to below 1", "log_sigma_std": "0 or more", "log_sigma_mean": "any"})


@torch.no_grad()
def widen_for_image(model: ExpertTransformer) -> ExpertTransformer:
    """A copy of a text-to-video model whose patches have twice the channels; the new weights are zero.

    So at first it computes what the old model did, whatever the image.
    Raises ValueError for a model that has image channels already.
    """
    config = model.config
    if config.image_to_video:
        raise ValueError(f"in_channels is {config.in_channels} for {config.out_channels} out_channels: this model "
                         f"takes an image already")
    wide = ExpertTransformer(replace(config, in_channels=2 * config.in_channels))
    wide.to(model.proj_out.weight.device, model.proj_out.weight.dtype)
    tensors, name = model.state_dict(), "patch_embed.proj.weight"
    # The channel is the slowest index of a patch, in the Linear of the 1.5 models as well.
    tensors[name] = torch.cat([tensors[name], torch.zeros_like(tensors[name])], dim=1)
    wide.load_state_dict(tensors)
    return wide


@torch.no_grad()
def image_latents(vae: CausalVAE, pictures: Float[Tensor, "b 3 1 h w"], frames: int, condition: ImageCondition,
                  generator: torch.Generator) -> Float[Tensor, "b c t lh lw"]:
    """The image channels for `frames` latent frames: the latents of the noised images, then zeros; or only zeros.

    `pictures` are pixels in -1..1. `generator` draws dropout, sigmas, pixel noise and the posterior's noise, always
    all of them and in this order, so that dropping an image changes no later number.
    """
    kept = torch.rand((), generator=generator).item() >= condition.dropout
    log_sigma = condition.log_sigma_mean + condition.log_sigma_std * torch.randn(len(pictures), generator=generator)
    noise = torch.randn(pictures.shape, generator=generator)
    noised = pictures + log_sigma.exp()[:, None, None, None, None] * noise
    weight = next(vae.parameters())
    latent = vae.encode(noised.to(weight.device, weight.dtype)).sample(generator)
    factor = vae.config.scaling_factor
    latent = latent / factor if vae.config.invert_scale_latents else latent * factor
    channels = latent.new_zeros(*latent.shape[:2], frames, *latent.shape[3:])
    if kept:
        channels[:, :, :1] = latent
    return channels
