"""Representation alignment: an auxiliary, easier loss on the middle of the transformer during training.

Shape explains less than one hundredth of a latent's variance, so the diffusion loss hardly rewards reading the word for
it. REPA (arXiv 2410.06940) also trains a middle layer to predict the features of a pretrained vision network, and
converges many times faster. In the shapes world the features are known: which shape, motion and colour cover each
latent cell. A small head predicts some of them from the middle layer's video tokens; it is discarded after training.
CogVideoX does not do this: weight 0 is the published training.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.data.clips.clips import Clips
from minicogvx.data.world.features import check_kinds, span
from minicogvx.transformer.model import ExpertTransformer


class Alignment(nn.Module):
    """The head, and a hook on the model's middle block that feeds it. `kinds`: the features that it predicts."""

    def __init__(self, model: ExpertTransformer, kinds: tuple[str, ...] = ("shape", "motion"), variance: float = 1.0):
        """`variance`: of these features over all clips, so that a loss of 1 is no better than guessing their mean."""
        super().__init__()
        self.variance = variance
        check_kinds(kinds)
        self.asked = [feature for kind in kinds for feature in span(kind)]
        d, self.patch = model.config.width, model.config.patch_size
        self.head = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, len(self.asked) * self.patch**2))
        self._seen: list[Tensor] = []
        model.transformer_blocks[(len(model.transformer_blocks) - 1) // 2].register_forward_hook(self._keep)

    def _keep(self, module, inputs, output):
        self._seen[:] = [output]

    def forward(self, features: Float[Tensor, "b t h w k"]) -> Float[Tensor, ""]:
        """Squared error of the head on the model's last forward pass, over the variance."""
        target = rearrange(features[..., self.asked].float(), "b t (h p) (w q) k -> b (t h w) (p q k)", p=self.patch,
                           q=self.patch)
        tokens = self._seen.pop()[:, -target.shape[1]:].float()
        error = self.head(F.layer_norm(tokens, tokens.shape[-1:])) - target
        return error.square().mean() / self.variance


def feature_variance(clips: Clips, kinds: tuple[str, ...], most: int = 1024) -> float:
    """The variance of the features of these kinds over the cells of the first `most` clips."""
    asked = [feature for kind in kinds for feature in span(kind)]
    features = torch.stack([clips.features(i)[..., asked] for i in range(min(most, len(clips)))])
    return max(features.float().var().item(), 1e-6)
