"""The GAN's losses on logits of real and of reconstructed clips, and a penalty on the discriminator's gradient."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def hinge_discriminator_loss(logits_real: Float[Tensor, "..."], logits_fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """0.5 (max(0, 1 - real) + max(0, 1 + fake)), averaged over patches: 1 when undecided, 0 when sure."""
    return 0.5 * (F.relu(1 - logits_real.float()).mean() + F.relu(1 + logits_fake.float()).mean())


def hinge_generator_loss(logits_fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Minus the mean logit: the autoencoder wants its patches to look real."""
    return -logits_fake.float().mean()


def gradient_penalty(discriminator: nn.Module, video: Float[Tensor, "b c t h w"], kind: str) -> Float[Tensor, ""]:
    """Penalty on the gradient of the summed logits with respect to real clips, averaged over clips.

    "unit_norm": (|gradient| - 1)^2, as in the loss class left behind. "r1": |gradient|^2 (arXiv 1801.04406, eq. 9).
    """
    video = video.detach().requires_grad_()
    gradient, = torch.autograd.grad(discriminator(video).float().sum(), video, create_graph=True)
    squared = gradient.flatten(1).square().sum(1)
    # sqrt(0) has an infinite slope
    return squared.mean() if kind == "r1" else ((squared + 1e-12).sqrt() - 1).square().mean()
