"""Representation alignment: an auxiliary, easier loss inside the transformer during training.

Shape explains less than one hundredth of a latent's variance, so the diffusion loss hardly rewards reading the word for
it. REPA (arXiv 2410.06940) also trains a middle layer to predict the features of a pretrained vision network, and
converges many times faster. In the shapes world the features are known: which shape, motion and colour cover each
latent cell. A small head predicts some of them from the video tokens after the middle block; it is discarded after
training. CogVideoX does not do this: weight 0 is the published training.

`alignment_blocks`: several blocks instead, each with a head of its own; the loss is the mean of theirs, as in SR-DiT
(arXiv 2512.12386). `alignment_schedule` and `alignment_end`: the weight falls to 0 in a straight line, or it stays and
is then switched off at once, as in HASTE (arXiv 2505.16792): a teacher that is followed for too long holds back.
"""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.compat import products_in
from minicogvx.data.clips.clips import Clips
from minicogvx.data.world.features import check_kinds, span
from minicogvx.transformer.model import ExpertTransformer


class Alignment(nn.Module):
    """A head for each aligned block, and hooks on these blocks that feed them."""

    def __init__(self, model: ExpertTransformer, kinds: tuple[str, ...] = ("shape", "motion"), variance: float = 1.0,
                 blocks: tuple[int, ...] = ()):
        """`kinds`: the features that heads predict. `blocks`: as in `aligned_blocks`, whose errors it raises.

        `variance`: of these features over all clips, so that a loss of 1 is no better than guessing their mean.
        """
        super().__init__()
        self.variance = variance
        check_kinds(kinds)
        self.asked = [feature for kind in kinds for feature in span(kind)]
        self.blocks, self.patch = aligned_blocks(blocks, len(model.transformer_blocks)), model.config.patch_size
        self.heads = nn.ModuleList([self._head(model.config.width) for _ in self.blocks])
        self._seen: dict[int, Tensor] = {}
        for block in self.blocks:
            model.transformer_blocks[block].register_forward_hook(partial(self._keep, block))

    def _head(self, d: int) -> nn.Module:
        return nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, len(self.asked) * self.patch**2))

    def _keep(self, block: int, module, inputs, output):
        self._seen[block] = output[0] if isinstance(output, tuple) else output  # a pair: see ValueResidualBlock

    def forward(self, features: Float[Tensor, "b t h w k"]) -> Float[Tensor, ""]:
        """Squared error of the heads on the model's last forward pass, over the variance; the mean over blocks."""
        target = rearrange(features[..., self.asked].float(), "b t (h p) (w q) k -> b (t h w) (p q k)", p=self.patch,
                           q=self.patch)
        error = sum(self._error(head, self._seen.pop(block), target) for block, head in zip(self.blocks, self.heads))
        return error / len(self.blocks) / self.variance

    def _error(self, head: nn.Module, x: Float[Tensor, "b n d"], target: Float[Tensor, "b n_video m"]) -> Tensor:
        tokens = x[:, -target.shape[1]:].float()
        with products_in(x.dtype, x.device):
            found = head(F.layer_norm(tokens, tokens.shape[-1:]))
        return (found.float() - target).square().mean()


def aligned_blocks(blocks: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """The numbers of the aligned blocks of a model with so many layers; of () the middle one's.

    Raises ValueError for a block that is not there or named twice.
    """
    if len(set(blocks)) < len(blocks) or not set(blocks) <= set(range(layers)):
        raise ValueError(f"alignment_blocks is {blocks}; it must hold different numbers from 0 to {layers - 1}")
    return blocks or ((layers - 1) // 2,)


def feature_variance(clips: Clips, kinds: tuple[str, ...], most: int = 1024) -> float:
    """The variance of the features of these kinds over the cells of the first `most` clips."""
    asked = [feature for kind in kinds for feature in span(kind)]
    features = torch.stack([clips.features(i)[..., asked] for i in range(min(most, len(clips)))])
    return max(features.float().var().item(), 1e-6)
