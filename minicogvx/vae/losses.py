"""What trains the VAE (paper 2.1): L1 + LPIPS + KL, and after a few thousand steps a GAN loss from a 3D discriminator.

LPIPS is in `perceptual.py`, the GAN's share in `gan.py`. Every part is returned under its own name, for plots:

    losses = VAELoss(VAELossConfig(), PatchDiscriminator3D(), PerceptualDistance(load_lpips("vgg"), frames=1))
    parts = losses.autoencoder(video, reconstruction, posterior, step, vae.decoder.conv_out.conv.weight)
    parts["total"].backward()                                   # then the autoencoder's optimizer
    parts = losses.discriminator(video, reconstruction, step)
    parts["total"].backward()                                   # then the discriminator's optimizer
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.compat import products_in
from minicogvx.vae.autoencoder import DiagonalGaussian
from minicogvx.vae.discriminator import PatchDiscriminator3D
from minicogvx.vae.gan import adaptive_weight, discriminator_losses, generator_loss, reattach
from minicogvx.vae.perceptual import SMALLEST_SIDE, PerceptualDistance
from minicogvx.vae.regularise import local_correlation


@dataclass(frozen=True)
class VAELossConfig:
    """Weights and choices of the VAE's loss.

    The authors never published their numbers. The defaults are those of an unused loss class in their repository
    (weight 1 for L1, LPIPS and GAN; hinge; adaptive weight; VGG16 on one random frame per clip), the usual
    latent-diffusion weight 1e-6 for the KL, and a start of the GAN after "a few thousand training steps" (paper 2.1).

    That class sums errors over all pixels of a clip; here everything is divided by their number (c t h w), which keeps
    the ratios and gives readable figures: `total = l1_weight * l1 + l2_weight * l2 + lpips_weight * lpips
    + kl_weight * kl / (c t h w) + gan_weight * gan_generator`.
    """

    l1_weight: float = 1.0
    # A departure for training from scratch. L1 is minimised by the median. A pixel covered by an object less than half
    # of the time has the background as its median, so an L1-only run ignores objects for many steps; L2 is minimised by
    # the mean and does not.
    l2_weight: float = 0.0
    lpips_weight: float = 1.0  # 0: LPIPS is not even loaded
    kl_weight: float = 1e-6  # of nats per clip against L1 summed over a clip
    gan_weight: float = 1.0  # 0: no GAN
    gan_start: int = 5000  # optimizer steps without GAN, counted over all stages of a training
    adaptive_weight: bool = True  # scales the GAN's gradient on the decoder's last layer to that of L1 and LPIPS
    lpips_net: Literal["alex", "vgg"] = "vgg"  # alex: a tenth of the work
    lpips_frames: int | None = 1  # random frames per clip; None: all of them
    lpips_upscale: int = 1  # 2: frames are enlarged twofold (bilinear) first; for frames of 32 pixels
    gradient_penalty: Literal["unit_norm", "r1"] = "unit_norm"  # on real clips; see `gradient_penalty`
    gradient_penalty_weight: float = 0.0
    # Departures for latents that a transformer learns more quickly; see `regularise.py`.
    masked_latents: float = 0.0  # share of the clips some of whose latent cells are hidden from the decoder; SSVAE: 0.3
    correlation_weight: float = 0.0  # of local correlation, relative to the other losses' gradient; SSVAE: 0.002
    correlation_threshold: float = 0.75  # more is not asked for
    equivariance: float = 0.0  # share of the steps that decode a smaller, turned latent; EQ-VAE: 0.5

    def __post_init__(self):
        for name in ("l1_weight", "l2_weight", "lpips_weight", "kl_weight", "gan_weight", "gan_start",
                     "gradient_penalty_weight", "correlation_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("masked_latents", "equivariance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if not -1 < self.correlation_threshold <= 1:
            raise ValueError(f"correlation_threshold is {self.correlation_threshold}; it must be above -1 and at "
                             f"most 1")
        if self.lpips_net not in SMALLEST_SIDE:
            raise ValueError(f"lpips_net is {self.lpips_net!r}; it must be 'alex' or 'vgg'")
        if self.lpips_frames is not None and self.lpips_frames < 1:
            raise ValueError(f"lpips_frames is {self.lpips_frames}; it must be at least 1, or None for all frames")
        if self.lpips_upscale < 1:
            raise ValueError(f"lpips_upscale is {self.lpips_upscale}; it must be at least 1")
        if self.gradient_penalty not in ("unit_norm", "r1"):
            raise ValueError(f"gradient_penalty is {self.gradient_penalty!r}; it must be 'unit_norm' or 'r1'")


def reconstruction_l1(video: Float[Tensor, "b c t h w"],
                      reconstruction: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
    """Mean absolute difference over all pixels."""
    return (video.float() - reconstruction.float()).abs().mean()


def reconstruction_l2(video: Float[Tensor, "b c t h w"],
                      reconstruction: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
    """Mean squared difference over all pixels."""
    return (video.float() - reconstruction.float()).square().mean()


class VAELoss(nn.Module):
    """The losses of the autoencoder and of the discriminator (`discriminator_net`, which has an optimizer of its own).

    The networks compute in the dtype of the reconstruction: bfloat16 in, bfloat16 inside, and every loss in float32.
    """

    def __init__(self, config: VAELossConfig, discriminator: PatchDiscriminator3D | None = None,
                 perceptual: PerceptualDistance | None = None, strict: bool = True):
        """Raises ValueError for a weight of GAN or LPIPS without its network. `strict`: refuses NaN and infinity; False
        lets them through into losses and gradients, for a trainer that skips such a step."""
        super().__init__()
        for weight, network, name in (("gan_weight", discriminator, "discriminator"),
                                      ("lpips_weight", perceptual, "perceptual distance")):
            if getattr(config, weight) and network is None:
                raise ValueError(f"{weight} is {getattr(config, weight)} but no {name} is given; pass one or set 0")
        self.config, self.discriminator_net, self.strict = config, discriminator, strict
        self.perceptual = perceptual if config.lpips_weight else None

    def gan_active(self, step: int) -> bool:
        """Whether the GAN takes part in optimizer step `step` (counted from 0)."""
        return self.config.gan_weight > 0 and step >= self.config.gan_start

    def autoencoder(self, video: Float[Tensor, "b c t h w"], reconstruction: Float[Tensor, "b c t h w"],
                    posterior: DiagonalGaussian, step: int, last_layer: Tensor | None = None,
                    generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Loss of the autoencoder and its parts, each a scalar: "total" is to be minimised, the others are detached.

        "kl" is in nats per clip, "kl_per_element" in nats per latent number. The adaptive weight needs `last_layer`,
        the weight of the decoder's last convolution. `generator` draws the frames for LPIPS.
        Raises ValueError for NaN or infinity in an input, unless `strict` is off, and for a missing `last_layer`.
        """
        c, gan_active, zero = self.config, self.gan_active(step), torch.zeros((), device=video.device)
        adaptive = gan_active and c.adaptive_weight and torch.is_grad_enabled()
        if adaptive and last_layer is None:
            raise ValueError("last_layer is None; the adaptive weight needs the decoder's last convolution weight")
        # The adaptive weight wants two gradients: each network then runs backward once, to detached pixels.
        pixels = reconstruction.detach().requires_grad_() if adaptive else reconstruction
        l1, l2, kl = reconstruction_l1(video, pixels), reconstruction_l2(video, pixels), posterior.kl().mean()
        if self.strict:
            _check_finite(l1 + kl, video=video, reconstruction=reconstruction, mean=posterior.mean,
                          logvar=posterior.logvar)
        with products_in(reconstruction.dtype, reconstruction.device):
            lpips = self.perceptual(video, pixels, generator) if self.perceptual else zero
            gan = generator_loss(self.discriminator_net, pixels) if gan_active else zero
        nll = c.l1_weight * l1 + c.lpips_weight * lpips + (c.l2_weight * l2 if c.l2_weight else zero)
        gan_weight = zero + c.gan_weight * gan_active
        if adaptive:
            nll, gan = (reattach(loss, pixels, reconstruction) for loss in (nll, gan))
            gan_weight = c.gan_weight * adaptive_weight(nll, gan, last_layer)
        total = nll + c.kl_weight * kl / video[0].numel() + gan_weight * gan
        parts = {"l1": l1, "l2": l2, "lpips": lpips, "kl": kl, "kl_per_element": kl / posterior.mean[0].numel(),
                 "gan_generator": gan, "gan_weight": gan_weight}
        return {"total": total} | {name: part.detach() for name, part in parts.items()}

    def regularised(self, losses: dict[str, Tensor], posterior: DiagonalGaussian, encoder_layer: Tensor,
                    encoded: int, decoded: int) -> dict[str, Tensor]:
        """The losses of `autoencoder`, changed by what makes latents easier to learn (`regularise.py`), where it is on.

        "correlation", the mean local correlation, is then among them. Its loss, relu(threshold - correlation), has an
        adaptive weight at the weight of the encoder's last convolution, `encoder_layer`: SSVAE's, but against the whole
        total. Each pass measures it for itself; that runs the decoder backward once more, unless the loss is 0.
        `encoded`, `decoded`: numbers c t h w of a clip as the encoder saw it, and as it was decoded; equivariance makes
        the latter smaller, and the KL goes by the former.
        """
        c, total = self.config, losses["total"]
        if encoded != decoded:
            total = total + c.kl_weight * posterior.kl().mean() * (1 / encoded - 1 / decoded)
        if not c.correlation_weight:
            return losses | {"total": total}
        correlation = local_correlation(posterior.mean)
        lacking = (c.correlation_threshold - correlation).relu().mean()
        if lacking > 0:
            total = total + c.correlation_weight * adaptive_weight(total, lacking, encoder_layer) * lacking
        return losses | {"total": total, "correlation": correlation.mean().detach()}

    def discriminator(self, video: Float[Tensor, "b c t h w"],
                      reconstruction: Float[Tensor, "b c t h w"], step: int) -> dict[str, Tensor]:
        """Loss of the discriminator and its parts, each a scalar: "total" is to be minimised, the others are detached.

        The autoencoder gets no gradient from it. Before `gan_start` it is 0 without a graph: do not step the optimizer.
        Raises ValueError for NaN or infinity in an input, unless `strict` is off.
        """
        if not self.gan_active(step):
            names = ("total", "gan_discriminator", "gradient_penalty", "logits_real", "logits_fake")
            return {name: torch.zeros((), device=video.device) for name in names}
        if self.strict:
            _check_finite(reconstruction_l1(video, reconstruction.detach()), video=video, reconstruction=reconstruction)
        return discriminator_losses(self.discriminator_net, video, reconstruction, self.config.gradient_penalty,
                                    self.config.gradient_penalty_weight)


def _check_finite(summary: Tensor, **inputs: Tensor) -> None:
    # One number says whether all is well (one synchronisation on a GPU); the search for the culprit comes after.
    if torch.isfinite(summary):
        return
    for name, values in inputs.items():
        bad = (~torch.isfinite(values)).sum().item()
        if bad:
            raise ValueError(f"{name} holds NaN or infinity in {bad} of {values.numel()} numbers; all must be finite")
    raise ValueError("the loss overflowed although its inputs are finite; logvar must stay below about 80")
