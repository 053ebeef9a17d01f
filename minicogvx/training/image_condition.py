"""Image to video: a picture's latent beside the noisy one, on channels (paper, Appendix D).

    channels   [noisy latents | image latents]        16 + 16 in the published models
    time       image latent in frame 0, zeros after

The picture is noised before the VAE, so that the model does not copy its every flaw: sigma = exp(N(-3, 0.5^2)). Now
and then it is left out altogether.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.training.limits import check_limits
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

    So it starts as a model that computes what the old one did, whatever the picture.
    Raises ValueError for a model that has image channels already.
    """
    config = model.config
    if config.in_channels != config.out_channels:
        raise ValueError(f"in_channels is {config.in_channels} for {config.out_channels} out_channels: this model "
                         f"takes an image already")
    wide = ExpertTransformer(replace(config, in_channels=2 * config.in_channels))
    wide.to(model.proj_out.weight.device, model.proj_out.weight.dtype)
    tensors, name = model.state_dict(), "patch_embed.proj.weight"
    # In the Linear of the 1.5 models, too, the channel is the slowest index of a patch.
    tensors[name] = torch.cat([tensors[name], torch.zeros_like(tensors[name])], dim=1)
    wide.load_state_dict(tensors)
    return wide


@torch.no_grad()
def image_latents(vae: CausalVAE, pictures: Float[Tensor, "b 3 1 h w"], frames: int, condition: ImageCondition,
                  generator: torch.Generator) -> Float[Tensor, "b c t lh lw"]:
    """What stands beside `frames` noisy latent frames: the noised pictures' latent, then zeros; or zeros alone.

    `pictures` are pixels in -1..1. `generator` draws dropout, sigmas, pixel noise and the posterior's noise, in this
    order and always all of them, so that dropping a picture changes no later number.
    """
    kept = torch.rand((), generator=generator).item() >= condition.dropout
    log_sigma = condition.log_sigma_mean + condition.log_sigma_std * torch.randn(len(pictures), generator=generator)
    noise = torch.randn(pictures.shape, generator=generator)
    noised = pictures + log_sigma.exp()[:, None, None, None, None] * noise
    weight = next(vae.parameters())
    latent = vae.encode(noised.to(weight.device, weight.dtype)).sample(generator)
    factor = vae.config.scaling_factor
    latent = latent / factor if vae.config.invert_scale_latents else latent * factor
    beside = latent.new_zeros(*latent.shape[:2], frames, *latent.shape[3:])
    if kept:
        beside[:, :, :1] = latent
    return beside
