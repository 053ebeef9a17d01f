"""Styles that the shipped model has never seen: the shapes world as old photographs, for a small LoRA to learn.

A photograph in one ink has two colours: light figures on dark ground, and blends at the edges. The colours of a caption
are lost. Shape, motion and count survive, and the oracle reads them once `as_seen` has turned the tones into white on
black. Both grounds lie between two backgrounds of the world, because the shipped VAE can reproduce no others: bright
grounds, in the world's own eight colours, came back at 3 to 14 dB.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import BACKGROUNDS, COLOURS, Scene

PLAIN = "plain"  # the world's own colours
SURVIVES = ("shape", "motion", "count")  # properties that the oracle still reads in a photograph
# Distances of colours, where black to white is 1 per channel; see `shows`.
GROUND, FIGURE = 0.13, 0.25
_DIFFERENT = 0.2  # distance from the ground that makes a pixel part of the figure


@dataclass(frozen=True)
class Style:
    """RGB in 0..1 of ground and figures."""

    name: str
    ground: tuple[float, float, float]
    figure: tuple[float, float, float]


STYLES = {style.name: style for style in (
    Style("sepia", (0.21, 0.13, 0.07), (0.98, 0.86, 0.60)),
    Style("cyanotype", (0.05, 0.065, 0.235), (0.66, 0.94, 0.97)),
)}


def style(name: str) -> Style | None:
    """The style called `name`; None for "plain". Raises ValueError, with the known names, for any other."""
    if name == PLAIN:
        return None
    if name not in STYLES:
        raise ValueError(f"style is {name!r}; it must be one of {', '.join((PLAIN, *STYLES))}")
    return STYLES[name]


def render_styled(scenes: list[Scene], style: Style | None, num_frames: int, height: int,
                  width: int) -> Float[Tensor, "b t h w 3"]:
    """Draw scenes in a style, float32 in 0..1; None: as `render_batch`."""
    if style is None:
        return render_batch(scenes, num_frames, height, width)
    # Objects never touch, so white on black is the covered share of each pixel.
    bare = [replace(scene, background="black", objects=tuple(replace(thing, colour="white") for thing in scene.objects))
            for scene in scenes]
    black, white = BACKGROUNDS["black"][0], COLOURS["white"][0]
    covered = (render_batch(bare, num_frames, height, width)[..., :1] - black) / (white - black)
    ground, figure = torch.tensor(style.ground), torch.tensor(style.figure)
    return ground + covered.clamp(0, 1) * (figure - ground)


def colours_of(video: Float[Tensor, "t h w 3"]) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"] | None]:
    """The colour of the ground, the median of the frames' borders, and of the figure, the mean of the fifth of its
    pixels that differ most from the ground, which leaves out edges. None if nothing differs."""
    pixels = video.detach().float().cpu()
    rim = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    ground = torch.cat([edge.flatten(0, 1) for edge in rim]).median(0).values
    difference = (pixels - ground).norm(dim=-1)
    if not (difference > _DIFFERENT).any():
        return ground, None
    least = difference[difference > _DIFFERENT].quantile(0.8)
    return ground, pixels[difference >= least].mean(0)


def shows(video: Float[Tensor, "t h w 3"], style: Style) -> bool:
    """Whether a clip has the style: ground and figure within `GROUND` and `FIGURE` of the style's colours.

    Both distances were set on true clips only: of 300 plain ones no ground was nearer than 0.199 and no figure nearer
    than 0.323; of 48 in each style, after the shipped VAE's round trip (27 dB), none was farther than 0.086 and 0.178.
    """
    ground, figure = colours_of(video)
    return (figure is not None and float((ground - torch.tensor(style.ground)).norm()) < GROUND
            and float((figure - torch.tensor(style.figure)).norm()) < FIGURE)


def as_seen(video: Float[Tensor, "t h w 3"], style: Style) -> Float[Tensor, "t h w 3"]:
    """White figures on black instead of tones, for the oracle: 0 where a pixel has the colour of the ground."""
    ground, _ = colours_of(video)
    line = torch.tensor(style.figure) - ground
    tones = (video.detach().float().cpu() - ground) @ line / (line @ line)
    return tones.clamp(0, 1)[..., None].expand_as(video).contiguous()
