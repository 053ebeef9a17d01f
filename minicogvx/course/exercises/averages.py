"""Exercise 0.3: plain averages as a way to make a clip small, what they keep, and how much of the clip comes back."""

import math

import torch
from einops import reduce, repeat
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import Scene, ShapeObject

FRAMES = SIDES = (1, 2, 4, 8, 16)  # of a group of frames, and of a square in pixels


def numbers_kept(clip: Float[Tensor, "t h w 3"], frames: int, side: int) -> int:
    """How many means there are: one for each square, colour and group of frames; the first frame is a group alone."""
    length, height, width, colours = clip.shape
    return (1 + math.ceil((length - 1) / frames)) * (height // side) * (width // side) * colours


def decibels_of_means(clip: Float[Tensor, "t h w 3"], frames: int, side: int) -> float:
    """Peak signal-to-noise ratio of `clip` (0..1) against itself with every value replaced by the mean of its block."""
    groups = [clip[:1], *clip[1:].split(frames)]
    means = [reduce(group, "t (h p) (w q) c -> h w c", "mean", p=side, q=side) for group in groups]
    copy = torch.cat([repeat(mean, "h w c -> t (h p) (w q) c", t=len(group), p=side, q=side)
                      for mean, group in zip(means, groups)])
    return (10 * torch.log10(1 / (clip - copy).square().mean())).item()  # infinite for an exact copy


def fewest_means(clip: Float[Tensor, "t h w 3"], target: int | float) -> tuple[int, int]:
    """Of FRAMES and SIDES the pair that keeps the fewest numbers of `clip` and still reaches `target` decibels."""
    pairs = [(frames, side) for frames in FRAMES for side in SIDES]
    return min((pair for pair in pairs if decibels_of_means(clip, *pair) >= target),
               key=lambda pair: numbers_kept(clip, *pair))


def blinking_squares(frames: int = 17, side: int = 32) -> Float[Tensor, "t h w 3"]:
    """Squares of 1 and of 2 pixels that blink: cheaper to average over time than over squares, but not over both."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    signs = [1 - 2 * ((rows // size + columns // size) % 2) for size in (1, 2)]
    blink = 1 - 2 * (torch.arange(frames) % 2)
    clip = 0.5 + 0.1 * signs[0] + 0.15 * signs[1] + 0.08 * blink[:, None, None]  # t h w
    return clip[..., None].repeat(1, 1, 1, 3)


def check_cheapest_average(cheapest_average) -> None:
    """The target is reached, and with the fewest numbers: of a clip that moves, one that does not, one that blinks."""
    clips = {f"a star that {motion}": render(Scene((
        ShapeObject("star", "yellow", motion, x=0.3, y=0.5, radius=0.2, speed=0.4),), "navy"), 17, 32, 32)
        for motion in ("moves right", "stays still")} | {"blinking squares": blinking_squares()}
    for name, target in (("a star that moves right", 20), ("a star that moves right", 22),
                         ("a star that stays still", 20), ("blinking squares", 19), ("a star that moves right", 90)):
        what = f"cheapest_average of {name} (17 x 32 x 32), target {target} dB,"
        clip, wanted = clips[name], fewest_means(clips[name], target)
        got = cheapest_average(clip.clone(), target)
        if got is None:
            raise Wrong(f"{what} is None; does your function end in return?")
        if not isinstance(got, (tuple, list)) or len(got) != 2 or got[0] not in FRAMES or got[1] not in SIDES:
            raise Wrong(f"{what} is {got!r}; it must be a pair (frames in a group, side of a square), each 1, 2, 4, 8 "
                        f"or 16.")
        reached = decibels_of_means(clip, *got)
        swapped = " Is your pair the wrong way round? Frames come first." if (got[1], got[0]) == wanted else ""
        if reached < target:
            raise Wrong(f"{what} is {tuple(got)}, which reaches only {reached:.1f} dB.{swapped}")
        if (kept := numbers_kept(clip, *got)) > (fewest := numbers_kept(clip, *wanted)):
            raise Wrong(f"{what} is {tuple(got)}, which keeps {kept:,} numbers; another pair reaches the target with "
                        f"{fewest:,}.{swapped}")
