"""The discriminator's half of VAE training (paper 2.1: a GAN loss is added after a few thousand steps)."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.engine.optim import MuonAdamW
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharding import average_gradients, broadcast_weights
from minicogvx.vae.discriminator import DiscriminatorConfig, PatchDiscriminator3D
from minicogvx.vae.losses import VAELoss, VAELossConfig

_LEARNING_RATE, _BETAS = 1e-3, (0.5, 0.9)


class Critic:
    """The discriminator and its optimizer; without a GAN loss, an empty shell."""

    def __init__(self, loss: VAELossConfig, config: DiscriminatorConfig, num_frames: int, here: Ranks = Ranks(),
                 earlier: "Critic | None" = None):
        """`earlier`: the previous stage's; its weights are taken over where the shapes agree."""
        self.here, self.network = here, None
        if not loss.gan_weight:
            return
        self.network = PatchDiscriminator3D(replace(config, num_frames=num_frames))
        self.network.to(here.device)
        if earlier and earlier.network and _shapes(earlier.network) == _shapes(self.network):
            self.network.load_state_dict(earlier.network.state_dict())
        broadcast_weights(self.network, here)
        self.optimizer = MuonAdamW(self.network.named_parameters(), adamw_lr=_LEARNING_RATE,
                                   muon_on=lambda name, p: False, clip=float("inf"), betas=_BETAS)

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers such as the vectors of a spectral norm, and the optimizer's state, by name."""
        if self.network is None:
            return {}
        own = {name: tensor.detach() for name, tensor in self.network.state_dict(keep_vars=True).items()}
        return own | {f"optimizer/{name}": tensor for name, tensor in self.optimizer.state().items()}

    def step(self, objective: VAELoss, video: Float[Tensor, "b c t h w"], reconstruction: Float[Tensor, "b c t h w"],
             step: int) -> Mapping[str, Tensor]:
        """One step of the discriminator, from `gan_start` on; returns its figures by name."""
        if not objective.gan_active(step):
            return {}
        for p in self.network.parameters():
            p.grad = None  # the autoencoder's loss passed through it
        losses = objective.discriminator(video, reconstruction, step)
        losses["total"].backward()
        mark_if_not_finite(losses["total"], next(self.network.parameters()))
        average_gradients(self.network.parameters(), self.here)
        self.optimizer.step(1.0)
        return {name: loss.detach() for name, loss in losses.items() if name != "total"}


@torch.no_grad()
def mark_if_not_finite(loss: Tensor, weight: Tensor) -> None:
    """Makes the gradient of `weight` NaN if the loss is not finite: the optimizer then skips the step.

    Not every such loss does so by itself: the slope of |x| is 0 at NaN and 1 at infinity.
    """
    weight.grad += 0 * loss


def _shapes(network: PatchDiscriminator3D) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}
