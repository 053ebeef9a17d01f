"""Representation alignment: an auxiliary, easier loss on the middle of the transformer during training.

Shape explains less than one hundredth of a latent's variance, so the diffusion loss hardly rewards reading the word for
it. REPA (arXiv 2410.06940) also trains a middle layer to predict the features of a pretrained vision network, and
converges many times faster. In the shapes world the features are known: which shape, motion and colour cover each
latent cell. A small head predicts some of them from the middle layer's video tokens; it is discarded after training.
CogVideoX does not do this: weight 0 is the published training.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.data.shapes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Scene, ShapeObject, render_batch
from minicogvx.transformer.model import ExpertTransformer

NAMES = {"shape": SHAPES, "motion": MOTIONS, "colour": tuple(COLOURS)}  # one feature for each name, in this order
FEATURES = sum(map(len, NAMES.values()))
_PIXELS_PER_CELL = 2


def scene_features(scenes: list[Scene], num_frames: int, cells: int,
                   temporal_ratio: int = 4) -> Float[Tensor, "b t h w k"]:
    """The features to align with: the covered share of each latent cell, by shape, by motion and by colour.

    `cells` is the latent's height and width. Latent frame 0 covers frame 0, each later one `temporal_ratio` frames.
    """
    latent_frames = (num_frames - 1) // temporal_ratio + 1
    features = torch.zeros(len(scenes), latent_frames, cells, cells, FEATURES)
    things = [(i, thing) for i, scene in enumerate(scenes) for thing in scene.objects]
    for (i, thing), share in zip(things, _coverage([thing for _, thing in things], num_frames, cells, temporal_ratio)):
        for kind in NAMES:
            features[i, ..., _span(kind)[NAMES[kind].index(getattr(thing, kind))]] += share
    return features


def check_kinds(kinds: tuple[str, ...]) -> None:
    """Raises ValueError for an unknown feature and for an empty tuple."""
    if not kinds:
        raise ValueError(f"alignment_kinds is (); it must hold at least one of {', '.join(NAMES)}")
    for kind in kinds:
        if kind not in NAMES:
            raise ValueError(f"there is no feature {kind!r} to align with; the features are {', '.join(NAMES)}")


def _span(kind: str) -> range:
    """The indices of the features of a kind."""
    kinds = list(NAMES)
    start = sum(len(NAMES[before]) for before in kinds[:kinds.index(kind)])
    return range(start, start + len(NAMES[kind]))


def _coverage(things: list[ShapeObject], num_frames: int, cells: int, ratio: int) -> Float[Tensor, "n t h w"]:
    """Each object drawn alone, white on black, averaged over the pixels and frames of a latent cell."""
    p = _PIXELS_PER_CELL
    alone = [Scene((replace(thing, colour="white"),), "black") for thing in things]
    clips = render_batch(alone, num_frames, p * cells, p * cells)[..., 0]
    black, white = BACKGROUNDS["black"][0], COLOURS["white"][0]
    clips = (clips - black) / (white - black)
    clips = torch.cat([clips[:, :1].expand(-1, ratio - 1, -1, -1), clips], dim=1)
    return rearrange(clips, "n (t r) (h p) (w q) -> n t h w (r p q)", r=ratio, p=p, q=p).mean(-1)


class Alignment(nn.Module):
    """The head, and a hook on the model's middle block that feeds it. `kinds`: the features that it predicts."""

    def __init__(self, model: ExpertTransformer, kinds: tuple[str, ...] = ("shape", "motion")):
        super().__init__()
        check_kinds(kinds)
        self.asked = [feature for kind in kinds for feature in _span(kind)]
        d, self.patch = model.config.width, model.config.patch_size
        self.head = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, len(self.asked) * self.patch**2))
        self._seen: list[Tensor] = []
        model.transformer_blocks[(len(model.transformer_blocks) - 1) // 2].register_forward_hook(self._keep)

    def _keep(self, module, inputs, output):
        self._seen[:] = [output]

    def forward(self, features: Float[Tensor, "b t h w k"]) -> Float[Tensor, ""]:
        """Squared error of the head on the model's last forward pass; 1 is no better than guessing the mean."""
        target = rearrange(features[..., self.asked].float(), "b t (h p) (w q) k -> b (t h w) (p q k)", p=self.patch,
                           q=self.patch)
        tokens = self._seen.pop()[:, -target.shape[1]:].float()
        error = self.head(F.layer_norm(tokens, tokens.shape[-1:])) - target
        return error.square().mean() / target.var().clamp(min=1e-6)
