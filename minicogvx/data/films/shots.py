"""Cuts videos into single shots and measures each: motion, blackness, sharpness.

CogVideoX trains on about 35 million single-shot clips of about 6 seconds (paper, section 3.4). Six classifiers, trained
on 20,000 labelled videos, removed the kinds Editing, Lack of Motion Connectivity, Low Quality, Lecture, Text Dominated
and Noisy Screenshots; optical-flow and aesthetic scores had thresholds that were adjusted during training. The
classifiers and most thresholds were never published. Instead, we use simple measures of our own: hard cuts for editing,
optical flow for static videos, blackness and sharpness for low quality. Lectures, text, screenshots and dissolves are
not recognised.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice, takewhile

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from minicogvx.data.films.decode import read_image, resize_and_crop, stream_frames
from minicogvx.data.films.flow import motion_strength, optical_flow
from minicogvx.data.films.folder import VideoClip
from minicogvx.data.films.pictures import UnusableFile
from minicogvx.data.films.thresholds import CurationThresholds

Scorer = Callable[[Float[Tensor, "h w 3"]], float]  # a picture in 0..1 -> its aesthetic score

_SIDE = 256  # pixels of the shorter side at which sharpness is measured
_FLOW_SIDE = 48  # ... and motion: flow is expensive per pixel, and only its mean is needed
_BINS = 8  # per colour channel of a histogram
_BATCH = 16  # frames at a time, whatever the video's length
_DARK = 0.08  # brightness below which a pixel is black: codecs and cameras do not preserve 0
_BLACK_FRAME = 0.98  # share of black pixels
_NEIGHBOURS = 4  # frame pairs on either side that define the usual change


@dataclass(frozen=True)
class Shot:
    """A piece of a video without cuts, or a picture. A score is None if it was not measured."""

    clip: VideoClip
    scores: dict[str, float | None]
    reasons: tuple[str, ...] = ()  # why it is dropped; empty: kept


@dataclass
class Track:
    """The measures of each frame (n) and each pair of neighbours (n - 1) of a video."""

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

    It depends on the size, not on the contrast: compare frames of one size. Frames below 4 pixels have none.
    """
    if min(grey.shape[1:]) < 4:
        return torch.zeros(len(grey))
    x = grey[:, 1:-1, 1:-1]
    laplacian = (grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]) / 4 - x
    deviation = x.flatten(1).std(1)
    return torch.where(deviation > 1e-3, laplacian.square().mean((1, 2)).sqrt() / deviation.clamp(min=1e-3), 0.0)


def histogram_change(frames: UInt8[Tensor, "t h w 3"]) -> Float[Tensor, " t-1"]:
    """Share of the pixels, 0..1, that change bins of an 8 x 8 x 8 colour histogram from frame to frame."""
    code = (frames.int() * _BINS // 256) @ torch.tensor([_BINS**2, _BINS, 1], dtype=torch.int32)
    rows = torch.stack([torch.bincount(row.flatten(), minlength=_BINS**3) for row in code]).float()
    return (rows[1:] - rows[:-1]).abs().sum(1) / (2 * code[0].numel())


def content_change(frames: UInt8[Tensor, "t h w 3"]) -> Float[Tensor, " t-1"]:
    """Mean absolute change of the colour channels, 0..1, from frame to frame."""
    return (frames[1:].float() - frames[:-1].float()).abs().mean((1, 2, 3)) / 255


def motion(grey: Float[Tensor, "t h w"], fps: float) -> Float[Tensor, " t-1"]:
    """Mean motion in shorter sides of the frame per second, by optical flow on small copies."""
    scale = min(1.0, _FLOW_SIDE / min(grey.shape[1:]))
    size = [round(side * scale) for side in grey.shape[1:]]
    small = F.interpolate(grey[:, None], size=size, mode="area")[:, 0]
    if min(size) < 7 or len(small) < 2:
        return torch.zeros(len(small) - 1)
    return motion_strength(optical_flow(small[:-1], small[1:])) * fps


def measure(clip: VideoClip, fps: float) -> Track:
    """All measures of all frames of `clip` at `fps` frames per second, in constant memory."""
    track, before = Track(), None
    times = takewhile(lambda second: second < clip.end - 5e-4, (clip.start + k / fps for k in count()))
    for batch in _batches(_runs(stream_frames(clip.path, times, _SIDE)), _BATCH):
        frames = torch.stack([_fitted(frame, batch[0][0] if before is None else before[0]) for frame, _ in batch])
        stays = [moments for _, moments in batch]
        joined = frames if before is None else torch.cat([before, frames])
        both, before = brightness(joined), frames[-1:]
        grey = both[-len(frames):]
        begin = len(track.seconds)
        track.seconds += [clip.start + (begin + k) / fps for k in range(sum(stays))]
        track.black += _stretched((grey < _DARK).float().mean((1, 2)), stays)
        track.sharpness += _stretched(sharpness(grey), stays)
        track.histogram += _spread(histogram_change(joined), stays)
        track.content += _spread(content_change(joined), stays)
        track.motion += _spread(motion(both, fps), stays)
    return track


def _batches(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _runs(frames: Iterable[Tensor]) -> Iterator[tuple[Tensor, int]]:
    """Each distinct picture, and for how many frames it is on screen: a still of minutes is measured once."""
    shown, moments = None, 0
    for frame in frames:
        if shown is not None and frame is not shown:
            yield shown, moments
            moments = 0
        shown, moments = frame, moments + 1
    if shown is not None:
        yield shown, moments


def _fitted(frame: UInt8[Tensor, "h w 3"], first: UInt8[Tensor, "h2 w2 3"]) -> UInt8[Tensor, "h2 w2 3"]:
    """`frame` at the size of the first one: it changes in video calls and concatenated videos."""
    if frame.shape == first.shape:
        return frame
    return (resize_and_crop(frame[None], *first.shape[:2])[0] * 255).round().to(torch.uint8)


def _stretched(values: Tensor, stays: list[int]) -> list[float]:
    """The value of each picture, repeated for every frame that it is on screen."""
    return [value for value, moments in zip(values.tolist(), stays) for _ in range(moments)]


def _spread(changes: Tensor, stays: list[int]) -> list[float]:
    """The change from the picture before, if there is one, then 0 for every frame that the picture stays."""
    first = [[]] * (len(stays) - len(changes))
    return [value for change, moments in zip(first + [[change] for change in changes.tolist()], stays)
            for value in change + [0.0] * (moments - 1)]


# ---- decisions


def find_cuts(track: Track, thresholds: CurationThresholds) -> list[int]:
    """Indices of the frames that begin a new shot: see `CurationThresholds`.

    Of consecutive pairs of frames that all look like cuts, the one with the largest change of colours is taken: a quick
    motion that begins with a cut may look like another.
    """
    cuts, last, content = [], -2, torch.tensor(track.content)  # last: the pair of the previous cut
    for i, (change, colours) in enumerate(zip(track.content, track.histogram)):
        inside = 2 <= i < len(content) - 2  # at the ends there are too few neighbours
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

    Raises UnusableFile if the file cannot be read to its end.
    """
    if clip.is_image:
        return [_judge_image(clip, thresholds, scorer)]
    track = measure(clip, thresholds.fps)
    if len(track.seconds) < 2:
        raise UnusableFile(clip.path, f"has {len(track.seconds)} frames that can be decoded; at least 2 are needed")
    if track.seconds[-1] < clip.end - 1.5 / thresholds.fps - 0.1:
        raise UnusableFile(clip.path, f"cannot be decoded beyond second {track.seconds[-1]:.2f} of {clip.end:.2f}")
    edges, shots = [0, *find_cuts(track, thresholds), len(track.seconds)], []
    for first, last in zip(edges, edges[1:]):
        # The cut lies somewhere before frame `last`; a millisecond keeps frame `last - 1` itself inside.
        end = clip.end if last == len(track.seconds) else track.seconds[last - 1] + 1e-3
        piece = replace(clip, start=track.seconds[first], end=end)
        shots.append(_judge(piece, _scores(track, first, last, piece, scorer), thresholds))
    return shots


def middle_frame(clip: VideoClip, short_side: int = _SIDE) -> UInt8[Tensor, "h w 3"]:
    """The frame in the middle of `clip`, shrunk to `short_side`. Raises UnusableFile if there is none."""
    if clip.is_image:
        scale = min(1.0, short_side / min(clip.height, clip.width))
        picture = read_image(clip.path, max(1, round(clip.height * scale)), max(1, round(clip.width * scale)))
        return (picture * 255).round().to(torch.uint8)
    for frame in stream_frames(clip.path, [clip.start + clip.seconds / 2], short_side):
        return frame.contiguous()
    raise UnusableFile(clip.path, f"has no frame at second {clip.start + clip.seconds / 2:.2f}")


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
