"""Films cut into single shots, and what can be measured of each: motion, blackness, sharpness.

CogVideoX trains on about 35 million single-shot clips of about 6 seconds (paper, section 3.4). Six classifiers, trained
on 20,000 labelled videos, removed the kinds Editing, Lack of Motion Connectivity, Low Quality, Lecture, Text Dominated
and Noisy Screenshots; optical-flow and aesthetic scores had thresholds that were adjusted during training. The
classifiers and most thresholds were never published. What is here are plain measures in their place, of our choice:
hard cuts for editing, optical flow for static films, blackness and sharpness for low quality. Lectures, text and
screenshots are not recognised, nor are dissolves.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import count, islice, takewhile

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from minicogvx.data.optical_flow import motion_strength, optical_flow
from minicogvx.data.video_files import read_image, stream_frames
from minicogvx.data.video_folder import VideoClip

Scorer = Callable[[Float[Tensor, "h w 3"]], float]  # a picture in 0..1 -> its aesthetic score

_SIDE = 256  # pixels of the shorter side that sharpness is measured at
_FLOW_SIDE = 48  # ... and motion: flow costs time for each pixel, and only its mean is wanted
_BINS = 8  # of each colour in a histogram
_BATCH = 16  # frames at a time, whatever the film's length
_DARK = 0.08  # brightness below which a pixel is black: codecs and cameras do not keep 0
_BLACK_FRAME = 0.98  # share of black pixels
_NEIGHBOURS = 4  # frame pairs on either side that say how much change is usual


@dataclass(frozen=True)
class CurationThresholds:
    """What a shot must have to be kept. Only `min_aesthetic` was published (Table 6); the others are ours."""

    fps: float = 8.0  # frames a second that are looked at; a cut is found to within one of them
    # The next and `cut_ratio` are about what PySceneDetect's adaptive detector takes (15 of 255, and 3).
    cut_content: float = 0.06  # a cut changes the colour channels by at least this on average, of 0..1 ...
    cut_histogram: float = 0.5  # ... and either this share of the colour histogram
    cut_ratio: float = 3.0  # ... or is this many times what changes between the frames around it
    min_seconds: float = 1.0
    max_black: float = 0.2  # share of black frames
    # Frozen films have 0; the slowest of 14 clips of the shapes world had 0.006, three seconds of a real film 0.06.
    min_motion: float = 0.005  # shorter sides that a pixel moves in a second, on average over the frame
    # The same film has 0.13; blurred by 1, 2 and 4 of its 180 pixels 0.037, 0.018 and 0.013.
    min_sharpness: float = 0.05  # of the brightness' contrast, what changes from one pixel to the next
    min_aesthetic: float = 4.5

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            if not 0 <= value < float("inf") or (each.name == "fps" and not 0 < value <= 240):
                right = "above 0, at most 240" if each.name == "fps" else "0 or more"
                raise ValueError(f"{each.name} is {value}; it must be a number {right}")


@dataclass(frozen=True)
class Shot:
    """A piece of a film without cuts, or a picture. `scores` is None where something was not measured."""

    clip: VideoClip
    scores: dict[str, float | None]
    reasons: tuple[str, ...] = ()  # why it is dropped; empty: kept


@dataclass
class Track:
    """What was measured of each frame (n) and each pair of neighbours (n - 1) of a film."""

    seconds: list[float] = field(default_factory=list)
    black: list[float] = field(default_factory=list)  # share of black pixels
    sharpness: list[float] = field(default_factory=list)
    histogram: list[float] = field(default_factory=list)  # changes, from frame i to i + 1
    content: list[float] = field(default_factory=list)
    motion: list[float] = field(default_factory=list)  # shorter sides a second


# ---- measures


def brightness(frames: UInt8[Tensor, "t h w 3"]) -> Float[Tensor, "t h w"]:
    """Luma in 0..1 (BT.601)."""
    return frames.float() @ torch.tensor([0.299, 0.587, 0.114]) / 255


def sharpness(grey: Float[Tensor, "t h w"]) -> Float[Tensor, " t"]:
    """Root mean square of the Laplacian over the standard deviation of the brightness: low for blur, 0 for one colour.

    The contrast cancels, the size does not: compare frames of one size.
    """
    x = grey[:, 1:-1, 1:-1]
    laplacian = (grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]) / 4 - x
    deviation = x.flatten(1).std(1)
    return torch.where(deviation > 1e-3, laplacian.square().mean((1, 2)).sqrt() / deviation.clamp(min=1e-3), 0.0)


def histogram_change(frames: UInt8[Tensor, "t h w 3"]) -> Float[Tensor, " t-1"]:
    """Share of the pixels, 0..1, that fall into other bins of an 8 x 8 x 8 colour histogram from frame to frame."""
    code = (frames.int() * _BINS // 256) @ torch.tensor([_BINS**2, _BINS, 1], dtype=torch.int32)
    rows = torch.stack([torch.bincount(row.flatten(), minlength=_BINS**3) for row in code]).float()
    return (rows[1:] - rows[:-1]).abs().sum(1) / (2 * code[0].numel())


def content_change(frames: UInt8[Tensor, "t h w 3"]) -> Float[Tensor, " t-1"]:
    """Mean absolute change of the colour channels, 0..1, from frame to frame."""
    return (frames[1:].float() - frames[:-1].float()).abs().mean((1, 2, 3)) / 255


def motion(grey: Float[Tensor, "t h w"], fps: float) -> Float[Tensor, " t-1"]:
    """Shorter sides of the frame that a pixel moves in a second, on average, by optical flow on small copies."""
    scale = min(1.0, _FLOW_SIDE / min(grey.shape[1:]))
    size = [round(side * scale) for side in grey.shape[1:]]
    small = F.interpolate(grey[:, None], size=size, mode="area")[:, 0]
    if min(size) < 7:
        return torch.zeros(len(small) - 1)
    return motion_strength(optical_flow(small[:-1], small[1:])) * fps


def measure(clip: VideoClip, fps: float) -> Track:
    """Every measure of every frame of `clip` that `fps` frames per second show, at constant memory."""
    track, before = Track(), None
    times = takewhile(lambda second: second < clip.end - 5e-4, (clip.start + k / fps for k in count()))
    for batch in _batches(stream_frames(clip.path, times, _SIDE), _BATCH):
        frames = torch.stack(batch)
        joined = frames if before is None else torch.cat([before, frames])
        both, before = brightness(joined), frames[-1:]
        grey = both[-len(frames):]
        track.seconds += [clip.start + (len(track.seconds) + k) / fps for k in range(len(frames))]
        track.black += (grey < _DARK).float().mean((1, 2)).tolist()
        track.sharpness += sharpness(grey).tolist()
        if len(joined) > 1:
            track.histogram += histogram_change(joined).tolist()
            track.content += content_change(joined).tolist()
            track.motion += motion(both, fps).tolist()
    return track


def _batches(items: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


# ---- decisions


def find_cuts(track: Track, thresholds: CurationThresholds) -> list[int]:
    """Numbers of the frames that begin a new shot: see `CurationThresholds`.

    Of pairs of frames side by side that all look like cuts, the one whose colours change most is taken: beside a cut, a
    quick motion that begins with it may look like one, too.
    """
    cuts, last, content = [], -2, torch.tensor(track.content)  # last: the pair that was taken for a cut before
    for i, (change, colours) in enumerate(zip(track.content, track.histogram)):
        inside = 2 <= i < len(content) - 2  # at an end there is too little to compare with
        around = torch.cat([content[max(0, i - _NEIGHBOURS):i], content[i + 1:i + 1 + _NEIGHBOURS]])
        usual = float(around.quantile(0.5)) if len(around) else change
        if change >= thresholds.cut_content and (colours >= thresholds.cut_histogram
                                                 or inside and change >= thresholds.cut_ratio * usual):
            if last == i - 1:
                cuts[-1] = max(cuts[-1], i + 1, key=lambda frame: track.histogram[frame - 1])
            else:
                cuts.append(i + 1)
            last = i
    return cuts


def find_shots(clip: VideoClip, thresholds: CurationThresholds = CurationThresholds(),
               scorer: Scorer | None = None) -> list[Shot]:
    """The shots of `clip`, measured and judged. A picture is one shot; its motion is not measured.

    Raises ValueError where the file cannot be read to its end.
    """
    if clip.is_image:
        return [_judge_image(clip, thresholds, scorer)]
    track = measure(clip, thresholds.fps)
    if len(track.seconds) < 2:
        raise ValueError(f"has {len(track.seconds)} frames that can be decoded; at least 2 are needed")
    if track.seconds[-1] < clip.end - 1.5 / thresholds.fps - 0.1:
        raise ValueError(f"cannot be decoded beyond second {track.seconds[-1]:.2f} of {clip.end:.2f}")
    edges, shots = [0, *find_cuts(track, thresholds), len(track.seconds)], []
    for first, last in zip(edges, edges[1:]):
        # The cut lies somewhere before frame `last`; a millisecond keeps frame `last - 1` itself inside.
        end = clip.end if last == len(track.seconds) else track.seconds[last - 1] + 1e-3
        piece = replace(clip, start=track.seconds[first], end=end)
        shots.append(_judge(piece, _scores(track, first, last, piece, scorer), thresholds))
    return shots


def middle_frame(clip: VideoClip, short_side: int = _SIDE) -> UInt8[Tensor, "h w 3"]:
    """What is on screen in the middle of `clip`, shrunk to `short_side`. Raises ValueError where there is nothing."""
    if clip.is_image:
        scale = min(1.0, short_side / min(clip.height, clip.width))
        picture = read_image(clip.path, max(1, round(clip.height * scale)), max(1, round(clip.width * scale)))
        return (picture * 255).round().to(torch.uint8)
    for frame in stream_frames(clip.path, [clip.start + clip.seconds / 2], short_side):
        return frame.contiguous()
    raise ValueError(f"{clip.name} has no frame at second {clip.start + clip.seconds / 2:.2f}")


def _scores(track: Track, first: int, last: int, piece: VideoClip, scorer: Scorer | None) -> dict[str, float | None]:
    pairs = track.motion[first:last - 1]
    black = [share >= _BLACK_FRAME for share in track.black[first:last]]
    return {"motion": sum(pairs) / len(pairs) if pairs else 0.0, "black": sum(black) / len(black),
            "sharpness": float(torch.tensor(track.sharpness[first:last]).quantile(0.5)),
            "aesthetic": scorer(middle_frame(piece).float() / 255) if scorer else None}


def _judge_image(clip: VideoClip, thresholds: CurationThresholds, scorer: Scorer | None) -> Shot:
    picture = middle_frame(clip)
    grey = brightness(rearrange(picture, "h w c -> 1 h w c"))
    black = float((grey < _DARK).float().mean() >= _BLACK_FRAME)
    scores = {"motion": None, "black": black, "sharpness": float(sharpness(grey)),
              "aesthetic": scorer(picture.float() / 255) if scorer else None}
    return _judge(clip, scores, thresholds)


def _judge(clip: VideoClip, scores: dict[str, float | None], thresholds: CurationThresholds) -> Shot:
    reasons = [] if clip.is_image or clip.seconds >= thresholds.min_seconds - 1e-3 else ["short"]
    reasons += ["black"] if scores["black"] > thresholds.max_black else []
    for name, reason in (("motion", "static"), ("sharpness", "blurred"), ("aesthetic", "plain")):
        value = scores[name]
        reasons += [reason] if value is not None and value < getattr(thresholds, f"min_{name}") else []
    rounded = {name: None if value is None else round(float(value), 4) for name, value in scores.items()}
    return Shot(clip, rounded, tuple(reasons))
