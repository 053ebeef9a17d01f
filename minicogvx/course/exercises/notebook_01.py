"""Exercises of notebook 01, video as tensors: frames in time, frames in space, packs, an oracle, and a forgery."""

import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_shape
from minicogvx.course.exercises.notebook_00 import tokens_in_sequence
from minicogvx.course.exercises.whole_packs import whole_packs
from minicogvx.data.clips.packs import frame_packs
from minicogvx.data.world import oracle
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import DIRECTIONS, Scene, ShapeObject, displacement

# ---- 1.1 resample


def indices_on_screen(times: Sequence[float], end: float, fps: int | float) -> list[int]:
    """Index of the frame on screen at second 0, 1 / fps, 2 / fps, ... of a film whose frame i appears at times[i]."""
    first, found = times[0], []
    while first + len(found) / fps < end:
        found.append(bisect_right(times, first + len(found) / fps) - 1)
    return found


def check_resample(resample) -> None:
    """Fewer frames, more frames, other starts, frames of unequal length."""
    film = [i / 25 for i in range(75)]
    late = [7.3 + time for time in (0.0, 0.05, 0.31, 0.36, 0.62, 0.9)]  # a phone, with frames at uneven intervals
    cases = (("a film of 75 frames at 25 fps", film, 3.0, 8), ("a film of 75 frames at 25 fps", film, 3.0, 60),
             ("frames at the seconds 7.3, 7.35, 7.61, 7.66, 7.92, 8.2, ending at 8.35", late, 8.35, 8),
             ("one frame that stays for a second", [0.0], 1.0, 4))
    for name, times, end, fps in cases:
        what, wanted = f"resample of {name} to {fps} fps", indices_on_screen(times, end, fps)
        got = resample(list(times), end, fps)
        if got is None:
            raise Wrong(f"{what} is None; does your function end in return?")
        got = [int(i) for i in got]
        bad = [i for i in got if not 0 <= i < len(times)]
        if bad:
            raise Wrong(f"{what} has the index {bad[0]}; the film's frames are 0 to {len(times) - 1}.")
        for k, (mine, want) in enumerate(zip(got, wanted)):
            if mine != want:
                late_or_early = "not on screen yet" if mine > want else "no longer on screen"
                raise Wrong(f"{what}: result {k} is frame {mine}, which at second {k / fps:.3f} of the film is "
                            f"{late_or_early}; it must be {want}.")
        if len(got) != len(wanted):
            raise Wrong(f"{what} has {len(got)} frames; it must have {len(wanted)}, one for each moment k / {fps} "
                        f"before the film's end, {end - times[0]:g} s after its start.")


# ---- 1.2 fit_frames


def nearest_and_centred(frames: Shaped[Tensor, "t h w c"], height: int, width: int) -> Shaped[Tensor, "t h2 w2 c"]:
    """The largest centred window of the wanted aspect, and of it the pixel under each new pixel's centre."""
    scale = max(height / frames.shape[1], width / frames.shape[2])
    rows, columns = (((torch.arange(new) + 0.5 - new / 2) / scale + old / 2).floor().long().clamp(0, old - 1)
                     for new, old in ((height, frames.shape[1]), (width, frames.shape[2])))
    return frames[:, rows][:, :, columns]


def check_fit_frames(fit_frames) -> None:
    """Shape; nothing stretched, nothing off centre, nothing thrown away; in height and in width."""
    for (old_h, old_w), (new_h, new_w) in (((180, 320), (60, 60)), ((320, 180), (60, 60)), ((180, 320), (90, 160)),
                                           ((90, 60), (180, 150)), ((101, 203), (48, 64))):
        what = f"fit_frames of {old_h}x{old_w} frames to {new_h}x{new_w}"
        rows, columns = torch.meshgrid(torch.arange(old_h), torch.arange(old_w), indexing="ij")
        frames = torch.stack([rows, columns], dim=-1).float()[None].repeat(2, 1, 1, 1)  # each pixel is its own address
        got = fit_frames(frames, new_h, new_w)
        expect_shape(what, got, (2, new_h, new_w, 2))
        if not (got == got.round()).all():
            raise Wrong(f"{what} makes values that no pixel had, such as {got[got != got.round()][0].item():.3g}; "
                        f"take whole pixels of the film, by index.")
        spans = [(got[0, -1, 0, 0] - got[0, 0, 0, 0]).item(), (got[0, 0, -1, 1] - got[0, 0, 0, 1]).item()]
        steps = [spans[0] / (new_h - 1), spans[1] / (new_w - 1)]
        wanted = 1 / max(new_h / old_h, new_w / old_w)
        if abs(steps[0] - steps[1]) > 2 / min(new_h, new_w):
            raise Wrong(f"{what} stretches the picture: neighbours are {steps[0]:.3g} rows of the film apart "
                        f"and {steps[1]:.3g} columns; both must be {wanted:.3g}.")
        if abs(steps[0] - wanted) > 2 / min(new_h, new_w):
            raise Wrong(f"{what}: neighbours are {steps[0]:.3g} pixels of the film apart; they must be {wanted:.3g}, "
                        f"so that the picture just covers {new_h}x{new_w} and as little as possible is lost.")
        for axis, name, old in ((0, "rows", old_h), (1, "columns", old_w)):
            first, last = got[0, 0, 0, axis].item(), got[0, -1, -1, axis].item()
            if abs(first - (old - 1 - last)) > 1 + wanted / 2:
                raise Wrong(f"{what} begins at {name[:-1]} {first:g} and ends at {name[:-1]} {last:g} of 0 to "
                            f"{old - 1}: that is not the middle.")


# ---- 1.3 pack_clips

CAPACITY, FULL = 20_000, 0.9  # tokens of a sequence; the least share of all packs that must be filled
FRAMES, FRAME_SIZES = (1, 9, 17, 33, 49), ((256, 384), (384, 256), (320, 576), (480, 720))


def clip_sizes(clips: int, seed: int) -> list[tuple[int, int, int]]:
    """Frames, height and width in pixels of so many random clips, as a data set of many sources holds them."""
    chance = random.Random(seed)
    return [(chance.choice(FRAMES), *chance.choice(FRAME_SIZES)) for _ in range(clips)]


def packed_by_best_fit(tokens: Sequence[int], capacity: int) -> list[list[int]]:
    """Clip numbers of each pack, as the package's frame pack fills them where all clips are at hand."""
    return [list(pack.indices) for pack in frame_packs(tokens, capacity, seed=0, look_ahead=max(1, len(tokens)))]


def check_pack_clips(pack_clips) -> None:
    """Every clip whole and in one pack, no pack too full, and few packs; for three collections."""
    for seed in range(3):
        tokens = [tokens_in_sequence(*size, text=226) for size in clip_sizes(150, seed)]
        what = f"pack_clips of {len(tokens)} clips, at most {CAPACITY:,} tokens to a pack,"
        packs = whole_packs(what, lambda given: pack_clips(given, CAPACITY), tokens, CAPACITY)
        share = sum(tokens) / (len(packs) * CAPACITY)
        if share < FULL:
            raise Wrong(f"{what} needs {len(packs)} packs, which are {100 * share:.0f} % full; at least "
                        f"{100 * FULL:.0f} % is possible. Before you close a pack, look for another clip that fits.")


# ---- 1.4 read_direction

STILL, STRAIGHT = 0.02, 0.8  # in frame sizes; least share of the way that leads forward


def direction_of_path(x: Sequence[float], y: Sequence[float]) -> str | None:
    """What a path of centres does: one of the eight directions, "stays still", or None for a path that turns back."""
    path = np.stack([np.asarray(x, float), np.asarray(y, float)], axis=1)
    step = path[-1] - path[0]
    reach = np.hypot(*(path - path[0]).T).max()  # the farthest that it comes from its start
    if reach < STILL:
        return "stays still"
    if np.hypot(*step) < STRAIGHT * reach:
        return None
    return max(DIRECTIONS, key=lambda name: step @ np.asarray(DIRECTIONS[name]) / math.hypot(*DIRECTIONS[name]))


def check_read_direction(read_direction) -> None:
    """Eight directions under small errors of measurement, no motion, and motions that are no direction."""
    generator = np.random.default_rng(0)
    for does, wanted, ways in _paths(np.linspace(0, 1, 17)):
        x, y = (0.5 + way + generator.normal(0, 0.002, 17) for way in ways)
        got = read_direction(x.tolist(), y.tolist())
        if got == wanted:
            continue
        path = (f"A path from ({x[0]:.2f}, {y[0]:.2f}) to ({x[-1]:.2f}, {y[-1]:.2f}), at most "
                f"{np.hypot(x - x[0], y - y[0]).max():.2f} from its start,")
        raise Wrong(f'{path} {does}: it must be "{wanted}"; you read {got!r}.' if wanted else
                    f"{path} {does}, so it is no direction and not still; you read {got!r}, it must be None.")


def _paths(u: np.ndarray) -> Iterator[tuple[str, str | None, tuple[np.ndarray, np.ndarray]]]:
    """What each path does, how it must be read, and its distances from the start at the times u, x and y."""
    for speed in (0.3, 0.45, 0.05):
        for motion in (*DIRECTIONS, "stays still", "bounces", "moves in a circle"):
            yield motion, motion if motion in (*DIRECTIONS, "stays still") else None, displacement(motion, u, speed)
        for share in (0.9, 0.7):  # on either side of STRAIGHT
            x = speed * np.interp(u, (0, 0.6, 1), (0, 1, share))
            yield (f"moves right and then back to {share} of its largest distance", "moves right" if share > STRAIGHT
                   else None, (x, np.zeros(len(u))))


# ---- 1.5 forge

FORGED = (
    Scene((ShapeObject("circle", "red", "moves right", x=0.28, y=0.5, radius=0.2, speed=0.44),), "black"),
    Scene((ShapeObject("star", "green", "moves up", x=0.5, y=0.72, radius=0.2, speed=0.4),), "grey"),
    Scene((ShapeObject("bar", "purple", "stays still", x=0.5, y=0.5, radius=0.22),), "navy"),
)
RESTLESS = 0.04  # mean difference between neighbouring frames, where black to white is 1; true clips stay below 0.01


def flicker_of(clip: Float[Tensor, "t h w 3"]) -> float:
    """Mean absolute difference between neighbouring frames."""
    return (clip[1:] - clip[:-1]).abs().mean().item()


def covered_in_noise(clip: Float[Tensor, "t h w 3"]) -> Float[Tensor, "t h w 3"]:
    """`clip` with new noise in every pixel of every frame, cut off at black and white."""
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    return (clip + 0.08 * noise).clamp(0, 1)


def check_forge(forge) -> None:
    """A clip of the same size, in 0..1, that flickers and that the oracle still finds right; for three clips."""
    for scene in FORGED:
        thing = scene.objects[0]
        what, clip = f"forge of a {thing.colour} {thing.shape} that {thing.motion}", render(scene, 17, 64, 64)
        got = forge(clip.clone())
        expect_shape(what, got, tuple(clip.shape))
        if not got.isfinite().all():
            raise Wrong(f"{what} holds NaN or infinity; nobody could show it.")
        if got.min() < 0 or got.max() > 1:
            raise Wrong(f"{what} has values from {got.min():.2f} to {got.max():.2f}; a video lies in 0..1.")
        missed = [name for name, right in oracle.matches(oracle.read(got), scene).items() if not right]
        if missed:
            raise Wrong(f"{what} does not fool the oracle: it notices the {missed[0]}.")
        if (flickers := flicker_of(got)) < RESTLESS:
            raise Wrong(f"{what}: neighbouring frames differ by {flickers:.3f} on average; it must be {RESTLESS} or "
                        f"more. (In the true clip it is {flicker_of(clip):.3f}.)")


EXERCISES = (
    Exercise(
        "1.1", "resample", difficulty=2, minutes=15, reference=indices_on_screen, check=check_resample,
        hints=(
            "Do not count in steps of the film. Ask for each moment k / fps: which frame is on screen then?",
            "It is the last one that appeared before that moment or at it. The film begins at times[0], which need not "
            "be 0. Go on while times[0] + k / fps < end.",
            "For one moment: max(i for i, time in enumerate(times) if time <= moment), or "
            "bisect_right(times, moment) - 1.",
        ),
    ),
    Exercise(
        "1.2", "fit_frames", difficulty=2, minutes=20, reference=nearest_and_centred, check=check_fit_frames,
        hints=(
            "Begin with the scale: with which single factor does the picture just cover height x width in both "
            "directions?",
            "scale = max(height / h, width / w). Pixel i of the new picture lies (i + 0.5 - height / 2) / scale film "
            "pixels from the film's middle, h / 2.",
            "rows = ((torch.arange(height) + 0.5 - height / 2) / scale + h / 2).long(), columns likewise, and then "
            "frames[:, rows][:, :, columns].",
        ),
    ),
    Exercise(
        "1.3", "pack_clips", difficulty=2, minutes=15, reference=packed_by_best_fit, check=check_pack_clips,
        hints=(
            "Closing a pack as soon as the next clip does not fit leaves it about four fifths full. Which clips could "
            "still go in?",
            "Keep all packs open. Put each clip into the first pack that has room for it, and open a new one only if "
            "none has. Note how many tokens are left in each.",
            "rooms = [] and packs = []. For each i: for k, room in enumerate(rooms): if tokens[i] <= room: add i to "
            "packs[k], lower rooms[k], break; else (of the for) append a new pack and its room.",
        ),
    ),
    Exercise(
        "1.4", "read_direction", difficulty=2, minutes=20, reference=direction_of_path, check=check_read_direction,
        hints=(
            "The last centre minus the first gives a direction. When can you not trust it? What do a bounce and a "
            "circle have in common?",
            "reach = the largest distance from the first centre. Below 0.02 frame sizes: still. If the last centre is "
            "less than 0.8 * reach from the first, the path has turned back: None.",
            "Of the eight DIRECTIONS take the one with the largest (dx * a + dy * b) / hypot(a, b), where (a, b) is "
            "its vector. y points down, in the centres and in DIRECTIONS alike.",
        ),
    ),
    Exercise(
        "1.5", "forge", difficulty=2, minutes=10, reference=covered_in_noise, check=check_forge,
        hints=(
            "The oracle takes medians, means and best fits over many pixels and frames. What averages out?",
            "Shake the picture, blink, or spoil pixels at random: each a little, in every frame. Start small and see "
            "when oracle.matches changes its mind.",
            "clip + 0.08 * torch.randn(clip.shape), clipped to 0..1 with clamp.",
        ),
    ),
)
