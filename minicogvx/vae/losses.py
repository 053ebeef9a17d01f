"""What trains the VAE (paper 2.1): L1 + LPIPS + KL, and after a few thousand steps a GAN loss from a 3D discriminator.

Every part comes back under its own name, so that it can be plotted:

    losses, last_layer = VAELoss(VAELossConfig(), PatchDiscriminator3D()), vae.decoder.conv_out.conv.weight
    parts = losses.autoencoder(video, reconstruction, posterior.mean, posterior.logvar, step, last_layer)
    parts["total"].backward()                                   # then the autoencoder's optimizer
    parts = losses.discriminator(video, reconstruction, step)
    parts["total"].backward()                                   # then the discriminator's optimizer
"""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.vae.discriminator import PatchDiscriminator3D
from minicogvx.vae.gan_losses import gradient_penalty, hinge_discriminator_loss, hinge_generator_loss
from minicogvx.vae.lpips_weights import load_lpips

_SMALLEST_SIDE = {"alex": 31, "vgg": 16}  # pixels; below, a pooling layer of the network has nothing left to pool


@dataclass(frozen=True)
class VAELossConfig:
    """Weights and choices of the VAE's loss.

    The authors never published their numbers. The defaults are those of the loss class that their repository left
    behind (weight 1 for L1, LPIPS and GAN; hinge; adaptive weight; VGG16 on one random frame per clip), the usual
    latent-diffusion weight 1e-6 for the KL, and a start of the GAN after "a few thousand training steps" (paper 2.1).

    That class sums errors over all pixels of a clip; here everything is divided by their number (c t h w), which keeps
    the ratios and gives readable figures: `total = l1_weight * l1 + l2_weight * l2 + lpips_weight * lpips
    + kl_weight * kl / (c t h w) + gan_weight * gan_generator`.
    """

    l1_weight: float = 1.0
    # A departure for training from nothing. L1 is smallest at the median, and the median of a pixel that shows an
    # object less than half the time is the background: an L1-only run sees no object for long. L2 asks for the mean.
    l2_weight: float = 0.0
    lpips_weight: float = 1.0  # 0: LPIPS is not even loaded
    kl_weight: float = 1e-6  # of nats per clip against L1 summed over a clip
    gan_weight: float = 1.0  # 0: no GAN
    gan_start: int = 5000  # optimizer steps without GAN, counted over all stages of a training
    adaptive_weight: bool = True  # the GAN's pull on the decoder's last layer is made as strong as L1's and LPIPS's
    lpips_net: Literal["alex", "vgg"] = "vgg"  # alex: a tenth of the work
    lpips_frames: int | None = 1  # random frames per clip; None: all of them
    lpips_upscale: int = 1  # 2: frames are enlarged twofold (bilinear) first; for frames of 32 pixels
    gradient_penalty: Literal["unit_norm", "r1"] = "unit_norm"  # on real clips; see `gradient_penalty`
    gradient_penalty_weight: float = 0.0

    def __post_init__(self):
        for name in ("l1_weight", "l2_weight", "lpips_weight", "kl_weight", "gan_weight", "gan_start",
                     "gradient_penalty_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.lpips_net not in _SMALLEST_SIDE:
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


def kl_divergence(mean: Float[Tensor, "b c t h w"], logvar: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
    """KL of N(mean, exp(logvar)) from N(0, 1) in nats: summed over a clip's latent, averaged over the clips."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / mean.shape[0]


def adaptive_weight(nll: Float[Tensor, ""], g_loss: Float[Tensor, ""], last_layer: Tensor) -> Float[Tensor, ""]:
    """|gradient of nll| / (|gradient of g_loss| + 1e-4) on the decoder's `last_layer` weight, clamped to 0..1e4.

    The result carries no gradient. `nll` is the weighted reconstruction loss, L1 and LPIPS. From VQGAN
    (arXiv 2012.09841, eq. 7).
    """
    nll_gradient, = torch.autograd.grad(nll, last_layer, retain_graph=True)
    g_gradient, = torch.autograd.grad(g_loss, last_layer, retain_graph=True)
    return (nll_gradient.float().norm() / (g_gradient.float().norm() + 1e-4)).clamp(0, 1e4).detach()


class PerceptualDistance(nn.Module):
    """LPIPS of videos: the mean distance of their frames, each frame an image of its own.

    Computes what `lpips.LPIPS` computes with its weights, with two differences: the features are compared in float32
    also under autocast, and a place where no feature answers (flat colour) gives gradient 0, not NaN.
    """

    def __init__(self, net: Literal["alex", "vgg"] = "vgg", frames: int | None = None, upscale: int = 1,
                 model: nn.Module | None = None, part: tuple[int, int] = (0, 1)):
        """`model`: an `lpips.LPIPS` to use instead of `load_lpips(net)`.

        `part`: (i, n) where it is given the i-th of n equal parts of a batch, as on one of many ranks. Random frames
        are drawn for the whole batch, so that they do not depend on how it is cut.
        """
        super().__init__()
        self.part = part
        self.model = (load_lpips(net) if model is None else model).eval().requires_grad_(False)
        self.frames, self.upscale, self.smallest_side = frames, upscale, _SMALLEST_SIDE[net]

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """Stays in eval mode: its linear layers hold dropout."""
        return super().train(False)

    def forward(self, video: Float[Tensor, "b c t h w"], reconstruction: Float[Tensor, "b c t h w"],
                generator: torch.Generator | None = None) -> Float[Tensor, ""]:
        """Mean LPIPS over frames, pixels in -1..1. `generator` draws the frames where only some are compared.

        Raises ValueError for frames too small for the network.
        """
        side = min(video.shape[-2:]) * self.upscale
        if side < self.smallest_side:
            raise ValueError(f"LPIPS got frames of {video.shape[-2]}x{video.shape[-1]} pixels with "
                             f"lpips_upscale={self.upscale}; {self.smallest_side} a side is the least after enlarging")
        index = self._choose(video, generator)
        with torch.no_grad():
            real = self._features(video, index)
        fake = self._features(reconstruction, index)
        distance = torch.zeros((), device=video.device)
        for a, b, linear in zip(real, fake, self.model.lins):
            weight = linear.model[-1].weight.float()  # 1 c 1 1; by hand, as autocast would round a convolution
            distance = distance + ((_unit(a) - _unit(b)).square() * weight).sum(1).mean()
        return distance

    def _choose(self, video: Tensor, generator: torch.Generator | None) -> Tensor | None:
        b, t = video.shape[0], video.shape[2]
        if self.frames is None or self.frames >= t:
            return None
        device = generator.device if generator else "cpu"
        i, n = self.part
        drawn = torch.rand(n * b, t, generator=generator, device=device)[i * b:(i + 1) * b]
        return drawn.topk(self.frames).indices.to(video.device)

    def _features(self, video: Tensor, index: Tensor | None) -> list[Tensor]:
        frames = rearrange(video, "b c t h w -> b t c h w")
        if index is not None:
            frames = frames[torch.arange(len(frames), device=frames.device)[:, None], index]
        frames = rearrange(frames, "b t c h w -> (b t) c h w")
        if self.upscale > 1:
            frames = F.interpolate(frames, scale_factor=self.upscale, mode="bilinear", align_corners=False)
        return list(self.model.net(self.model.scaling_layer(frames)))


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features * (features.square().sum(1, keepdim=True) + 1e-20).rsqrt()


class VAELoss(nn.Module):
    """All losses of the VAE. The discriminator is a part of it; its optimizer takes `discriminator_net.parameters()`.

    The networks compute in the dtype of the reconstruction: bfloat16 in, bfloat16 inside, and every loss in float32.
    """

    def __init__(self, config: VAELossConfig, discriminator: PatchDiscriminator3D | None = None,
                 perceptual: PerceptualDistance | None = None, strict: bool = True, part: tuple[int, int] = (0, 1)):
        """Raises ValueError where `gan_weight` is above 0 and there is no discriminator; see `load_lpips` for LPIPS.

        `strict`: NaN and infinity are refused. False lets them through into losses and gradients, for a trainer that
        leaves such a step out. `part`: see `PerceptualDistance`.
        """
        super().__init__()
        if config.gan_weight and discriminator is None:
            raise ValueError(f"gan_weight is {config.gan_weight} but no discriminator is given; pass one or set 0")
        self.config, self.discriminator_net, self.strict = config, discriminator, strict
        if perceptual is None and config.lpips_weight:
            perceptual = PerceptualDistance(config.lpips_net, config.lpips_frames, config.lpips_upscale, part=part)
        self.perceptual = perceptual if config.lpips_weight else None

    def gan_active(self, step: int) -> bool:
        """Whether the GAN takes part in optimizer step `step` (counted from 0)."""
        return self.config.gan_weight > 0 and step >= self.config.gan_start

    def autoencoder(self, video: Float[Tensor, "b c t h w"], reconstruction: Float[Tensor, "b c t h w"],
                    mean: Float[Tensor, "b c_z t_z h_z w_z"], logvar: Float[Tensor, "b c_z t_z h_z w_z"], step: int,
                    last_layer: Tensor | None = None, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Loss of the autoencoder and its parts, each a scalar.

        "total" is to be minimised; "l1", "l2", "lpips", "kl" (nats per clip), "kl_per_element" (nats per latent
        number), "gan_generator" and "gan_weight" (the one in force, 0 before `gan_start`) are without gradient.
        `last_layer` is the weight of the decoder's last convolution; only the adaptive weight needs it, and only where
        gradients are on. `generator` draws the frames for LPIPS.

        Raises ValueError for NaN or infinity in an input, unless `strict` is off, and for a missing `last_layer`.
        """
        c, zero = self.config, torch.zeros((), device=video.device)
        adaptive = c.adaptive_weight and self.gan_active(step) and torch.is_grad_enabled()
        if adaptive and last_layer is None:
            raise ValueError("last_layer is None; the adaptive weight needs the decoder's last convolution weight")
        l1, kl = reconstruction_l1(video, reconstruction), kl_divergence(mean, logvar)
        if self.strict:
            _check_finite(l1 + kl, video=video, reconstruction=reconstruction, mean=mean, logvar=logvar)
        lpips, gan, gan_weight = zero, zero, zero
        with _dtype_of(reconstruction):
            # Where two gradients are wanted on the last layer, each is taken to the pixels once and kept there.
            pixels = reconstruction.detach().requires_grad_() if adaptive else reconstruction
            if self.perceptual:
                lpips = self.perceptual(video, pixels, generator)
            nll = c.l1_weight * reconstruction_l1(video, pixels) + c.lpips_weight * lpips
            if c.l2_weight:
                nll = nll + c.l2_weight * reconstruction_l2(video, pixels)
            if self.gan_active(step):
                gan, gan_weight = self._generator_loss(pixels), zero + c.gan_weight
        if adaptive:
            nll, gan = (_carried_to(reconstruction, loss, pixels) for loss in (nll, gan))
            gan_weight = c.gan_weight * adaptive_weight(nll, gan, last_layer)
        total = nll + c.kl_weight * kl / video[0].numel() + gan_weight * gan
        l2 = reconstruction_l2(video, reconstruction.detach())
        parts = {"l1": l1, "l2": l2, "lpips": lpips, "kl": kl, "kl_per_element": kl / mean[0].numel(),
                 "gan_generator": gan, "gan_weight": gan_weight}
        return {"total": total} | {name: part.detach() for name, part in parts.items()}

    def discriminator(self, video: Float[Tensor, "b c t h w"],
                      reconstruction: Float[Tensor, "b c t h w"], step: int) -> dict[str, Tensor]:
        """Loss of the discriminator and its parts, each a scalar; the autoencoder gets no gradient from it.

        "total" is to be minimised (before `gan_start` it is 0 and hangs on nothing: skip the optimizer unless
        `gan_active(step)`); "gan_discriminator", "gradient_penalty", "logits_real" and "logits_fake" are for the eye.
        Raises ValueError for NaN or infinity in an input, unless `strict` is off.
        """
        loss, penalty, real, fake = torch.zeros(4, device=video.device)
        if self.gan_active(step):
            if self.strict:
                _check_finite(reconstruction_l1(video, reconstruction.detach()), video=video,
                              reconstruction=reconstruction)
            with _dtype_of(reconstruction):
                real, fake = self.discriminator_net(video), self.discriminator_net(reconstruction.detach())
                loss = hinge_discriminator_loss(real, fake)
            if self.config.gradient_penalty_weight:  # in float32: its gradient is a second derivative
                penalty = gradient_penalty(self.discriminator_net, video.float(), self.config.gradient_penalty)
        total = loss + self.config.gradient_penalty_weight * penalty
        parts = {"gan_discriminator": loss, "gradient_penalty": penalty, "logits_real": real.float().mean(),
                 "logits_fake": fake.float().mean()}
        return {"total": total} | {name: part.detach() for name, part in parts.items()}

    def _generator_loss(self, pixels: Tensor) -> Tensor:
        # The discriminator must not gather gradients here, and need not compute them.
        with _frozen(self.discriminator_net):
            return hinge_generator_loss(self.discriminator_net(pixels))


def _carried_to(reconstruction: Tensor, loss: Tensor, pixels: Tensor) -> Tensor:
    """`loss` of the detached `pixels`, hung on `reconstruction`: same value, same gradient.

    Backward from the result costs only the decoder. Without this, LPIPS and the discriminator would run backward
    once for the adaptive weight and once more for the total.
    """
    gradient, = torch.autograd.grad(loss, pixels)
    product = (reconstruction * gradient).float().sum()
    return loss.detach() + (product - product.detach())


def _dtype_of(x: Tensor):
    """Autocast to the dtype of `x` if that is a short one; else nothing, so that an outer autocast stays in force."""
    if x.dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(x.device.type, x.dtype)
    return nullcontext()


@contextmanager
def _frozen(module: nn.Module):
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _check_finite(summary: Tensor, **inputs: Tensor) -> None:
    # One number says whether all is well (one synchronisation on a GPU); the search for the culprit comes after.
    if torch.isfinite(summary):
        return
    for name, values in inputs.items():
        bad = (~torch.isfinite(values)).sum().item()
        if bad:
            raise ValueError(f"{name} holds NaN or infinity in {bad} of {values.numel()} numbers; all must be finite")
    raise ValueError("the loss overflowed although its inputs are finite; logvar must stay below about 80")
