"""Exercises of notebook 01, video as tensors: frames in time, 4k + 1 of them, frames in space, buckets, an oracle."""

import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_equal, expect_raises, expect_shape
from minicogvx.data.films.buckets import aspect_buckets, choose_bucket, kept_share
from minicogvx.data.world.scenes import DIRECTIONS, displacement

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
    late = [7.3 + time for time in (0.0, 0.05, 0.31, 0.36, 0.62, 0.9)]  # a telephone: frames when it had time
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


# ---- 1.2 longest_clip


def frames_that_fit(seconds: float, fps: int | float, max_frames: int = 49, ratio: int = 4) -> int:
    """The largest ratio * k + 1 frames, at most `max_frames`, that a film of that many seconds shows at `fps`."""
    shown = min(math.ceil(seconds * fps), max_frames)  # moments 0, 1 / fps, ... before the end
    if shown < 1:
        raise ValueError(f"{seconds:g} s at {fps:g} fps and at most {max_frames} frames leave none; one is the least")
    return shown - (shown - 1) % ratio


def check_longest_clip(longest_clip) -> None:
    """The form 4k + 1, the cap, a film just long enough, a single frame, nothing at all."""
    for arguments, named in (((3.0, 8), {}), ((2.2, 8), {}), ((0.1, 8), {}), ((60.0, 8), {}), ((6.1, 8), {}),
                             ((10.0, 16), {"max_frames": 161}), ((60.0, 8), {"max_frames": 40}),
                             ((3.0, 8), {"ratio": 8}), ((2.0, 8), {"ratio": 2})):
        what = f"longest_clip({', '.join([*map(str, arguments), *(f'{k}={v}' for k, v in named.items())])})"
        got, wanted = longest_clip(*arguments, **named), frames_that_fit(*arguments, **named)
        ratio, most = named.get("ratio", 4), named.get("max_frames", 49)
        if isinstance(got, int) and got != wanted:
            if (got - 1) % ratio:
                raise Wrong(f"{what} is {got}, which is not {ratio}k + 1; it must be {wanted}.")
            if got > most:
                raise Wrong(f"{what} is {got}; at most {most} are allowed, so it must be {wanted}.")
            if got > wanted:
                raise Wrong(f"{what} is {got}; the last of them would be shown at second {(got - 1) / arguments[1]:g} "
                            f"of {arguments[0]:g}. It must be {wanted}.")
        expect_equal(what, got, wanted)
    expect_raises("longest_clip(0.0, 8)", ValueError, lambda: longest_clip(0.0, 8))


# ---- 1.3 fit_frames


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


# ---- 1.4 pick_bucket


def check_pick_bucket(pick_bucket) -> None:
    """Keeps as much of the frame as any bucket could, for films that lie, stand, and are square."""
    for base in ((480, 720), (768, 1360)):
        buckets = aspect_buckets(*base)
        for height, width in ((1080, 1920), (1920, 1080), (480, 640), (640, 480), (700, 700), (720, 1550), (900, 380),
                              (1000, 1150)):
            what = f"pick_bucket({height}, {width}, buckets)"
            got, wanted = pick_bucket(height, width, buckets), choose_bucket(height, width, buckets)
            if got is None:
                raise Wrong(f"{what} is None; does your function end in return?")
            if got not in buckets:
                raise Wrong(f"{what} is {got!r}; it must be one of the buckets, such as {buckets[0]!r}.")
            mine, best = kept_share(height, width, got), kept_share(height, width, wanted)
            if mine < best - 1e-9:
                raise Wrong(f"{what} is {got}, which keeps {100 * mine:.0f} % of the frame; {wanted} keeps "
                            f"{100 * best:.0f} %. Sizes are (height, width).")


# ---- 1.5 read_direction

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
    u, generator = np.linspace(0, 1, 17), np.random.default_rng(0)
    for motion in (*DIRECTIONS, "stays still", "bounces", "moves in a circle"):
        for speed in (0.3, 0.45):
            x, y = (0.5 + way + generator.normal(0, 0.002, 17) for way in displacement(motion, u, speed))
            got = read_direction(x.tolist(), y.tolist())
            wanted = motion if motion in (*DIRECTIONS, "stays still") else None
            if got == wanted:
                continue
            path = (f"A path from ({x[0]:.2f}, {y[0]:.2f}) to ({x[-1]:.2f}, {y[-1]:.2f}), at most "
                    f"{np.hypot(x - x[0], y - y[0]).max():.2f} from its start,")
            raise Wrong(f'{path} "{motion}"; you read {got!r}.' if wanted else
                        f"{path} {motion}, so it is no direction and not still; you read {got!r}, it must be None.")


EXERCISES = (
    Exercise(
        "1.1", "resample", difficulty=2, minutes=15, reference=indices_on_screen, check=check_resample,
        hints=(
            "Do not count in steps of the film. Ask for each moment k / fps: which one is on screen then?",
            "It is the last one that appeared before the moment or at it. The film begins at times[0], which need not "
            "be 0, and there are moments as long as times[0] + k / fps < end.",
            "For one moment: max(i for i, time in enumerate(times) if time <= moment), or "
            "bisect_right(times, moment) - 1.",
        ),
    ),
    Exercise(
        "1.2", "longest_clip", difficulty=1, minutes=10, reference=frames_that_fit, check=check_longest_clip,
        hints=(
            "First: how many moments 0, 1 / fps, 2 / fps, ... lie before the film's end?",
            "math.ceil(seconds * fps) of them, and no more than max_frames. Then go down to the next ratio * k + 1.",
            "n - (n - 1) % ratio is the largest ratio * k + 1 not above n. Raise ValueError where n is below 1.",
        ),
    ),
    Exercise(
        "1.3", "fit_frames", difficulty=2, minutes=20, reference=nearest_and_centred, check=check_fit_frames,
        hints=(
            "Begin with the scale: with which single factor does the picture just cover height x width in both "
            "directions?",
            "scale = max(height / h, width / w). Pixel i of the new picture lies (i + 0.5 - height / 2) / scale film "
            "pixels from the film's middle, h / 2.",
            "rows = ((torch.arange(height) + 0.5 - height / 2) / scale + h / 2).long(), columns alike, and then "
            "frames[:, rows][:, :, columns].",
        ),
    ),
    Exercise(
        "1.4", "pick_bucket", difficulty=1, minutes=10, reference=choose_bucket, check=check_pick_bucket,
        hints=(
            "Size does not matter here, only shape: the film is resized first. Compare width / height of both.",
            "Of a film twice as wide as the bucket allows, half is lost; of one half as wide, half, too. So compare "
            "aspect ratios by their quotient, not by their difference.",
            "With a = width / height of both, min(a_film, a_bucket) / max(a_film, a_bucket) is the share that is kept; "
            "max(buckets, key=...) takes the best.",
        ),
    ),
    Exercise(
        "1.5", "read_direction", difficulty=2, minutes=20, reference=direction_of_path, check=check_read_direction,
        hints=(
            "The last centre minus the first gives a direction. When is it not to be trusted? What do a bounce and a "
            "circle have in common?",
            "reach = the largest distance from the first centre. Below 0.02 frame sizes: still. If the last centre is "
            "much nearer to the first than reach, the path has turned back: None.",
            "Of the eight DIRECTIONS take the one with the largest (dx * a + dy * b) / hypot(a, b), where (a, b) is "
            "its vector. y points down, in the centres and in DIRECTIONS alike.",
        ),
    ),
)
