"""Clips in notebooks: one that plays, several side by side, and rows of their frames. Frames are counted from 0."""

import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.course import output
from minicogvx.course.show import new_figure, show_figure
from minicogvx.media import enlarge_frames, write_mp4
from minicogvx.visible import listed

MAX_CLIP_BYTES = 200_000  # of an embedded mp4: notebooks should be small
GOOD_CLIP_BYTES = 36_000  # what needs more, films and noise, is compressed harder
RATE_FACTORS = (12, 17, 22)  # of x264: the first is hardly to be told from the original even when enlarged
MAX_IN_A_ROW = 4  # clips side by side
GAP = 4  # pixels between clips, before the browser enlarges them


def show_clip(video: Float[Tensor, "t h w 3"], alt: str, fps: int | float = 8, num_frames: int = 6) -> None:
    """Plays `video` (0..1) in the notebook, with a strip of `num_frames` of its frames and `alt` under it.

    The mp4 is embedded: at most 200 KB, halved in size until it fits. Raises ValueError for a bad shape or no `alt`.
    """
    check_clip(video, alt)
    data, height, width = _small_mp4(enlarge_frames(video, 64), fps)
    times = max(1, -(-192 // min(height, width)))  # enlarged by the browser, as notebooks should be small
    output.display_mp4(data, times * height, times * width, alt)
    output.display_png(output.png_of_picture(strip_of(video, num_frames)),
                       f"{alt.strip()} ({frames_said(len(video), num_frames)})")


def compare_clips(clips: Mapping[str, Float[Tensor, "_ _ _ 3"]], alt: str, fps: int | float = 8,
                  num_frames: int = 6, counted: str = "frame") -> None:
    """Plays clips (0..1) side by side, with gaps and a label above each, and shows rows of their frames below.

    A shorter clip waits at its last frame for the others. At most four stand in a row, which is one mp4 of at most
    200 KB. counted: as in `show_rows`. Raises ValueError for a bad shape, no `alt`, or no clips.
    """
    _check_named(clips, "clips", alt)
    labels, videos = list(clips), _alike(list(clips.values()))
    times = max(1, -(-192 // min(min(video.shape[1:3]) for video in videos)))
    in_a_row = -(-len(labels) // -(-len(labels) // MAX_IN_A_ROW))
    for first in range(0, len(labels), in_a_row):
        row = slice(first, first + in_a_row)
        sheet, widths = _sheet(videos[row])
        data, height, width = _small_mp4(sheet, fps)
        grown = times * sheet.shape[1] // height  # where the mp4 had to be made smaller
        output.display_mp4(data, grown * height, grown * width, alt,
                           list(zip(labels[row], (share / sum(widths) for share in widths))))
    show_rows(dict(clips), alt, num_frames, counted)


def show_rows(rows: dict[str, Float[Tensor, "_ _ _ 3"]], alt: str, num_frames: int = 6, counted: str = "frame") -> None:
    """One labelled row of frames for each video, to compare them, with frame numbers above.

    counted: what the pictures are called, "step" for instance where they are no frames of a clip. Raises ValueError for
    a bad shape, no `alt`, or no rows.
    """
    _check_named(rows, "rows", alt)
    columns = min(num_frames, max(map(len, rows.values())))
    shape = next(iter(rows.values())).shape
    height = (1.2 * shape[1] / shape[2] + 0.2) * len(rows)  # 0.2 inches for a title
    figure, axes = new_figure(len(rows), columns, 1.15 * columns + 1.6, height + 0.1)
    for row, (label, video) in zip(axes, rows.items()):
        for axis in row:
            axis.set_axis_off()
        for axis, place in zip(row, frame_places(len(video), columns)):
            axis.imshow(video[place].detach().float().cpu().clamp(0, 1).numpy(), interpolation="nearest")
            axis.set_title(f"{counted} {place}", fontsize=8, pad=2, color="#444444")
        row[0].text(-0.08, 0.5, textwrap.fill(label, 20), transform=row[0].transAxes, ha="right", va="center")
    show_figure(figure, alt)


# ---- also for widgets


def check_clip(video: Any, alt: str) -> None:
    """Raises ValueError unless `video` is a tensor t h w 3 and `alt` says something."""
    if not isinstance(video, Tensor):
        raise ValueError(f"the video is a {type(video).__name__}; it must be a tensor t h w 3, 0..1 (torch.as_tensor "
                         f"makes one of an array, torch.stack of a list of frames)")
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(f"the video has shape {tuple(video.shape)}; it must be t h w 3 with at least one frame")
    if not alt.strip():
        raise ValueError("alt is empty; say in a sentence what the video shows")


def frame_places(length: int, count: int) -> list[int]:
    """At most `count` frames of a clip of `length` frames, evenly spaced, first and last among them."""
    return torch.linspace(0, length - 1, min(count, length)).round().long().tolist()


def frames_said(length: int, num_frames: int = 6) -> str:
    """Which frames a strip shows of a clip of `length` frames, in words."""
    places = frame_places(length, num_frames)
    if len(places) == 1:
        return "frame 0"
    if len(places) == length:
        return f"frames 0 to {length - 1}"
    if len(places) == 2:
        return f"first and last of {length} frames"
    return f"frames {listed([str(place) for place in places])} of {length}"


def strip_of(video: Float[Tensor, "t h w 3"], num_frames: int = 6, gap: int = 4) -> Float[Tensor, "h2 w2 3"]:
    """Evenly spaced frames side by side, first and last among them, with white gaps."""
    frames = enlarge_frames(video[frame_places(len(video), num_frames)].detach().float().cpu(), 96)
    return rearrange(F.pad(frames, (0, 0, 0, gap), value=1.0), "t h w c -> h (t w) c")[:, :-gap]


# ---- helpers


def _check_named(videos: Any, what: str, alt: str) -> None:
    if not isinstance(videos, Mapping):
        raise ValueError(f"the {what} are a {type(videos).__name__}; give a dict of each video by its label")
    if not videos:
        raise ValueError(f"there are no {what}; give at least one video with its label")
    for video in videos.values():
        check_clip(video, alt)


def _small_mp4(video: Tensor, fps: int | float) -> tuple[bytes, int, int]:
    """An mp4 of at most MAX_CLIP_BYTES, its height and its width."""
    while True:
        for crf in RATE_FACTORS:
            data = _mp4(video, fps, crf)
            if len(data) <= GOOD_CLIP_BYTES:
                break
        if len(data) <= MAX_CLIP_BYTES or min(video.shape[1:3]) < 32:
            return data, video.shape[1], video.shape[2]
        video = video[:, ::2, ::2]


def _mp4(video: Tensor, fps: int | float, crf: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_mp4(Path(folder) / "clip.mp4", video, fps, crf=crf).read_bytes()


def _sheet(videos: list[Tensor]) -> tuple[Float[Tensor, "t h w 3"], list[int]]:
    """Clips of one length side by side, lower edges in a line, with white gaps; and the widths with the gaps."""
    height, last = max(video.shape[1] for video in videos), len(videos) - 1
    panels = [F.pad(video, (0, 0, 0, 0 if i == last else GAP, height - video.shape[1], 0), value=1.0)
              for i, video in enumerate(videos)]
    return torch.cat(panels, dim=2), [panel.shape[2] for panel in panels]


def _alike(videos: list[Tensor]) -> list[Float[Tensor, "t h w 3"]]:
    """Clips on the CPU, all as long as the longest, by their last frames, and about as large as the largest.

    What is larger than 320 pixels is made smaller, to at least 160.
    """
    length = max(map(len, videos))
    videos = [video.detach().float().cpu().clamp(0, 1) for video in videos]
    videos = [torch.cat([video, video[-1:].expand(length - len(video), -1, -1, -1)]) for video in videos]
    for i, video in enumerate(videos):
        smaller = min(video.shape[1:3]) // 160
        if smaller > 1:
            shrunk = F.avg_pool2d(rearrange(video, "t h w c -> t c h w"), smaller)
            videos[i] = rearrange(shrunk, "t c h w -> t h w c")
    side = max(64, *(min(video.shape[1:3]) for video in videos))
    return [enlarge_frames(video, side) for video in videos]
