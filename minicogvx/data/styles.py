"""Looks that the shipped model has never seen: the shapes world as old photographs, for a small LoRA to learn.

A photograph in one ink has two colours: all figures are light, all grounds dark, and what lies between is their edge.
What a caption says of colours is lost. Shape, motion and count survive, and the oracle reads them once `as_seen` has
made white on black of the tones. Both grounds lie between two backgrounds of the world, because the shipped VAE can
show no other kind: of bright grounds, in the world's own eight colours, it gave back 3 to 14 dB.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.data.shapes import BACKGROUNDS, COLOURS, Scene, render_batch

PLAIN = "plain"  # the world's own colours
SURVIVES = ("shape", "motion", "count")  # what the oracle still reads in a photograph
# Distances of colours, where black to white is 1 per channel; see `shows`.
GROUND, FIGURE = 0.13, 0.25
_DIFFERENT = 0.2  # from the ground: a pixel of the figure


@dataclass(frozen=True)
class Style:
    """RGB in 0..1 of every ground and of every figure."""

    name: str
    ground: tuple[float, float, float]
    figure: tuple[float, float, float]


STYLES = {style.name: style for style in (
    Style("sepia", (0.21, 0.13, 0.07), (0.98, 0.86, 0.60)),
    Style("cyanotype", (0.05, 0.065, 0.235), (0.66, 0.94, 0.97)),
)}


def style(name: str) -> Style | None:
    """The style called `name`; None for "plain". Raises ValueError, with the names there are, for any other."""
    if name == PLAIN:
        return None
    if name not in STYLES:
        raise ValueError(f"style is {name!r}; it must be one of {', '.join((PLAIN, *STYLES))}")
    return STYLES[name]


def render_styled(scenes: list[Scene], look: Style | None, num_frames: int, height: int,
                  width: int) -> Float[Tensor, "b t h w 3"]:
    """Draw scenes in a style, float32 in 0..1; without one as `render_batch` does."""
    if look is None:
        return render_batch(scenes, num_frames, height, width)
    # Two objects never touch, so white on black is the share of each pixel that some object covers.
    bare = [replace(scene, background="black", objects=tuple(replace(thing, colour="white") for thing in scene.objects))
            for scene in scenes]
    black, white = BACKGROUNDS["black"][0], COLOURS["white"][0]
    covered = (render_batch(bare, num_frames, height, width)[..., :1] - black) / (white - black)
    ground, figure = torch.tensor(look.ground), torch.tensor(look.figure)
    return ground + covered.clamp(0, 1) * (figure - ground)


def colours_of(video: Float[Tensor, "t h w 3"]) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"] | None]:
    """The ground's colour, which is the median of the frames' rims, and the figure's: the mean of the fifth of its
    pixels that differ most from the ground, so that edges do not count. None where nothing differs."""
    pixels = video.detach().float().cpu()
    rim = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    ground = torch.cat([edge.flatten(0, 1) for edge in rim]).median(0).values
    difference = (pixels - ground).norm(dim=-1)
    if not (difference > _DIFFERENT).any():
        return ground, None
    least = difference[difference > _DIFFERENT].quantile(0.8)
    return ground, pixels[difference >= least].mean(0)


def shows(video: Float[Tensor, "t h w 3"], look: Style) -> bool:
    """Whether a clip has the look: ground and figure within the distances `GROUND` and `FIGURE` of the style's colours.

    Both distances were set on true clips alone: of 300 plain ones no ground came nearer than 0.199 and no figure nearer
    than 0.323; of 48 in each style, after the shipped VAE's round trip (27 dB), none was further than 0.086 and 0.178.
    """
    ground, figure = colours_of(video)
    return (figure is not None and float((ground - torch.tensor(look.ground)).norm()) < GROUND
            and float((figure - torch.tensor(look.figure)).norm()) < FIGURE)


def as_seen(video: Float[Tensor, "t h w 3"], look: Style) -> Float[Tensor, "t h w 3"]:
    """White figures on black instead of tones, for the oracle: 0 where a pixel has the colour of the ground."""
    ground, _ = colours_of(video)
    line = torch.tensor(look.figure) - ground
    tones = (video.detach().float().cpu() - ground) @ line / (line @ line)
    return tones.clamp(0, 1)[..., None].expand_as(video).contiguous()
