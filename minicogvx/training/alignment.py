"""Representation alignment: a second, easier question for the middle of the transformer while it trains.

Shape explains less than one hundredth of a latent's variance, so the diffusion loss hardly rewards reading the word for
it. REPA (arXiv 2410.06940) asks a middle layer for the features of a pretrained vision network as well, and trains many
times faster. The shapes world knows its features: which shape, with which motion, covers each latent cell. A small head
predicts that from the middle layer's video tokens; it is thrown away after training. Not part of CogVideoX: weight 0 is
the published training.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.data.shapes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Scene, ShapeObject, render_batch
from minicogvx.transformer.model import ExpertTransformer

FEATURES = len(SHAPES) + len(MOTIONS)
_PIXELS_PER_CELL = 2


def scene_features(scenes: list[Scene], num_frames: int, cells: int,
                   temporal_ratio: int = 4) -> Float[Tensor, "b t h w k"]:
    """For each latent cell the share that is covered, by shape and by motion: the features to align with.

    `cells` is the latent's height and width. Latent frame 0 covers frame 0, each later one `temporal_ratio` frames.
    """
    latent_frames = (num_frames - 1) // temporal_ratio + 1
    features = torch.zeros(len(scenes), latent_frames, cells, cells, FEATURES)
    things = [(i, thing) for i, scene in enumerate(scenes) for thing in scene.objects]
    for (i, thing), share in zip(things, _coverage([thing for _, thing in things], num_frames, cells, temporal_ratio)):
        features[i, ..., SHAPES.index(thing.shape)] += share
        features[i, ..., len(SHAPES) + MOTIONS.index(thing.motion)] += share
    return features


def _coverage(things: list[ShapeObject], num_frames: int, cells: int, ratio: int) -> Float[Tensor, "n t h w"]:
    """Each object alone, white on black, averaged over the pixels and frames of a latent cell."""
    p = _PIXELS_PER_CELL
    alone = [Scene((replace(thing, colour="white"),), "black") for thing in things]
    clips = render_batch(alone, num_frames, p * cells, p * cells)[..., 0]
    black, white = BACKGROUNDS["black"][0], COLOURS["white"][0]
    clips = (clips - black) / (white - black)
    clips = torch.cat([clips[:, :1].expand(-1, ratio - 1, -1, -1), clips], dim=1)
    return rearrange(clips, "n (t r) (h p) (w q) -> n t h w (r p q)", r=ratio, p=p, q=p).mean(-1)


class Alignment(nn.Module):
    """The head, and the tap on the model's middle block that it reads."""

    def __init__(self, model: ExpertTransformer):
        super().__init__()
        d, self.patch = model.config.width, model.config.patch_size
        self.head = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, FEATURES * self.patch**2))
        self._seen: list[Tensor] = []
        model.transformer_blocks[(len(model.transformer_blocks) - 1) // 2].register_forward_hook(self._keep)

    def _keep(self, module, inputs, output):
        self._seen[:] = [output]

    def forward(self, features: Float[Tensor, "b t h w k"]) -> Float[Tensor, ""]:
        """Squared error of what the head reads off the model's last forward pass; 1 is as good as a blind guess."""
        target = rearrange(features.float(), "b t (h p) (w q) k -> b (t h w) (p q k)", p=self.patch, q=self.patch)
        tokens = self._seen.pop()[:, -target.shape[1]:].float()
        error = self.head(F.layer_norm(tokens, tokens.shape[-1:])) - target
        return error.square().mean() / target.var().clamp(min=1e-6)
