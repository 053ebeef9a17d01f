"""What covers each latent cell of a drawn clip: which shape, which motion, which colour. No latent shows it so plainly.

Training may ask the transformer to predict it (training/alignment.py).
"""

from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Scene, ShapeObject

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
            features[i, ..., span(kind)[NAMES[kind].index(getattr(thing, kind))]] += share
    return features


def check_kinds(kinds: tuple[str, ...]) -> None:
    """Raises ValueError for an unknown feature and for an empty tuple."""
    if not kinds:
        raise ValueError(f"alignment_kinds is (); it must hold at least one of {', '.join(NAMES)}")
    for kind in kinds:
        if kind not in NAMES:
            raise ValueError(f"there is no feature {kind!r} to align with; the features are {', '.join(NAMES)}")


def span(kind: str) -> range:
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
