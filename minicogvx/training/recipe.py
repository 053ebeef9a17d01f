"""The recipes of the models that this repository trains: every number of the shipped model's training, in one place."""

from dataclasses import dataclass, replace

from minicogvx.training.vae import VAEStage
from minicogvx.vae.losses import VAELossConfig

_L1_KL = VAELossConfig(lpips_weight=0.0, kl_weight=0.06, gan_weight=0.0)
_L1_LPIPS_KL = replace(_L1_KL, lpips_weight=0.1, lpips_net="alex", lpips_frames=2)


@dataclass(frozen=True)
class Recipe:
    """How one preset is trained from nothing on the shapes world."""

    preset: str
    vae: tuple[VAEStage, ...]


TOY = Recipe(
    preset="toy",
    vae=(VAEStage(steps=1000, batch_size=16, num_frames=9, height=32, width=32, loss=_L1_KL),
         VAEStage(steps=380, batch_size=8, num_frames=17, height=64, width=64, loss=_L1_LPIPS_KL, muon_lr=0.01)),
)
