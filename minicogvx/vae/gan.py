"""The GAN of the VAE's loss (paper 2.1): hinge losses, a penalty on the discriminator's gradient, the adaptive weight.

High logits mean "real". All losses are float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.compat import products_in


def hinge_discriminator_loss(logits_real: Float[Tensor, "..."], logits_fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """0.5 (max(0, 1 - real) + max(0, 1 + fake)), averaged over patches: 1 when undecided, 0 when sure."""
    return 0.5 * (F.relu(1 - logits_real.float()).mean() + F.relu(1 + logits_fake.float()).mean())


def hinge_generator_loss(logits_fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Minus the mean logit: the autoencoder wants its patches to look real."""
    return -logits_fake.float().mean()


def generator_loss(discriminator: nn.Module, reconstruction: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
    """`hinge_generator_loss` of a reconstruction; leaves no gradient in the discriminator."""
    with _frozen(discriminator):
        return hinge_generator_loss(discriminator(reconstruction))


def gradient_penalty(discriminator: nn.Module, video: Float[Tensor, "b c t h w"], kind: str) -> Float[Tensor, ""]:
    """Penalty on the gradient of the summed logits with respect to real clips, averaged over clips.

    "unit_norm": (|gradient| - 1)^2, as in the published repository's unused loss class. "r1": |gradient|^2
    (arXiv 1801.04406, eq. 9).
    """
    video = video.detach().requires_grad_()
    gradient, = torch.autograd.grad(discriminator(video).float().sum(), video, create_graph=True)
    squared = gradient.flatten(1).square().sum(1)
    # sqrt(0) has an infinite slope
    return squared.mean() if kind == "r1" else ((squared + 1e-12).sqrt() - 1).square().mean()


def discriminator_losses(discriminator: nn.Module, video: Float[Tensor, "b c t h w"],
                         reconstruction: Float[Tensor, "b c t h w"], penalty_kind: str = "unit_norm",
                         penalty_weight: float = 0.0) -> dict[str, Tensor]:
    """"total", to be minimised, and for logging, detached, what it is made of; no gradient for the reconstruction."""
    with products_in(reconstruction.dtype, reconstruction.device):
        real, fake = discriminator(video), discriminator(reconstruction.detach())
    loss, penalty = hinge_discriminator_loss(real, fake), torch.zeros((), device=video.device)
    if penalty_weight:  # in float32: its gradient is a second derivative
        penalty = gradient_penalty(discriminator, video.float(), penalty_kind)
    return {"total": loss + penalty_weight * penalty, "gan_discriminator": loss.detach(),
            "gradient_penalty": penalty.detach(), "logits_real": real.detach().float().mean(),
            "logits_fake": fake.detach().float().mean()}


def adaptive_weight(nll: Float[Tensor, ""], g_loss: Float[Tensor, ""], last_layer: Tensor) -> Float[Tensor, ""]:
    """|gradient of nll| / (|gradient of g_loss| + 1e-4) on the decoder's `last_layer` weight, clamped to 0..1e4.

    The result carries no gradient. `nll` is the weighted reconstruction loss, L1 and LPIPS. From VQGAN
    (arXiv 2012.09841, eq. 7).
    """
    nll_gradient, = torch.autograd.grad(nll, last_layer, retain_graph=True)
    g_gradient, = torch.autograd.grad(g_loss, last_layer, retain_graph=True)
    return (nll_gradient.float().norm() / (g_gradient.float().norm() + 1e-4)).clamp(0, 1e4).detach()


def reattach(loss: Float[Tensor, ""], pixels: Float[Tensor, "b c t h w"],
             reconstruction: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
    """Attaches `loss`, computed on detached `pixels`, to the decoder's graph with the same value and gradient.

    Backward from the result costs only the decoder. Without this, LPIPS and the discriminator would run backward
    once for the adaptive weight and once more for the total.
    """
    gradient, = torch.autograd.grad(loss, pixels)
    product = (reconstruction * gradient).float().sum()
    return loss.detach() + (product - product.detach())


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
