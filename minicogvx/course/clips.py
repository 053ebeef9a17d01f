"""Clips in notebooks: one that plays, several side by side, and rows of their frames. Frames are counted from 0."""

import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minicogvx.course import output
from minicogvx.course.show import new_figure, show_figure
from minicogvx.media import write_mp4

MAX_CLIP_BYTES = 200_000  # of an embedded mp4: notebooks should be small
MAX_IN_A_ROW = 4  # clips side by side
GAP, LABEL_SIZE, LINE = 12, 15, 20  # pixels between clips; of the labels above them, and of their lines


def show_clip(video: Float[Tensor, "t h w 3"], alt: str, fps: int | float = 8, num_frames: int = 6) -> None:
    """Plays `video` (0..1) in the notebook, with a strip of `num_frames` of its frames and `alt` under it.

    The mp4 is embedded: at most 200 KB, halved in size until it fits. Raises ValueError for a bad shape or no `alt`.
    """
    check_clip(video, alt)
    data, height, width = _small_mp4(enlarged(video, 64), fps)
    times = max(1, -(-192 // min(height, width)))  # enlarged by the browser, as notebooks should be small
    output.display_mp4(data, times * height, times * width, alt)
    output.display_png(output.png_of_picture(strip_of(video, num_frames)),
                       f"{alt.strip()} ({frames_said(len(video), num_frames)})")


def compare_clips(clips: Mapping[str, Float[Tensor, "_ _ _ 3"]], alt: str, fps: int | float = 8,
                  num_frames: int = 6) -> None:
    """Plays clips (0..1) side by side, with gaps and a label above each, and shows rows of their frames below.

    A shorter clip waits at its last frame for the others. At most four stand in a row. Raises ValueError for a bad
    shape, no `alt`, or no clips.
    """
    if not clips:
        raise ValueError("there are no clips; give at least one with its label")
    for video in clips.values():
        check_clip(video, alt)
    output.display_mp4(*_labelled_mp4(clips, fps), alt)
    show_rows(dict(clips), alt, num_frames)


def show_rows(rows: dict[str, Float[Tensor, "_ _ _ 3"]], alt: str, num_frames: int = 6) -> None:
    """One labelled row of frames for each video, to compare them, with frame numbers above.

    Raises ValueError for a bad shape, no `alt`, or no rows.
    """
    if not rows:
        raise ValueError("there are no rows; give at least one video with its label")
    for video in rows.values():
        check_clip(video, alt)
    columns = min(num_frames, max(map(len, rows.values())))
    shape = next(iter(rows.values())).shape
    figure, axes = new_figure(len(rows), columns, 1.15 * columns + 1.6, (1.2 * shape[1] / shape[2]) * len(rows) + 0.25)
    for row, (label, video) in zip(axes, rows.items()):
        for axis in row:
            axis.set_axis_off()
        for axis, place in zip(row, _places(len(video), columns)):
            axis.imshow(video[place].detach().float().cpu().clamp(0, 1).numpy(), interpolation="nearest")
            axis.set_title(f"frame {place}", fontsize=8, pad=2, color="#444444")
        row[0].text(-0.08, 0.5, textwrap.fill(label, 20), transform=row[0].transAxes, ha="right", va="center")
    show_figure(figure, alt)


# ---- also for widgets


def check_clip(video: Tensor, alt: str) -> None:
    """Raises ValueError unless `video` is t h w 3 and `alt` says something."""
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(f"the video has shape {tuple(video.shape)}; it must be t h w 3 with at least one frame")
    if not alt.strip():
        raise ValueError("alt is empty; say in a sentence what the video shows")


def frames_said(length: int, num_frames: int = 6) -> str:
    """Which frames a strip shows of a clip of `length` frames, in words."""
    places = _places(length, num_frames)
    if len(places) == 1:
        return "frame 0"
    if len(places) == length:
        return f"frames 0 to {length - 1}"
    return f"frames {', '.join(map(str, places[:-1]))} and {places[-1]} of {length}"


def strip_of(video: Float[Tensor, "t h w 3"], num_frames: int = 6, gap: int = 4) -> Float[Tensor, "h2 w2 3"]:
    """Evenly spaced frames side by side, first and last among them, with white gaps."""
    frames = enlarged(video[_places(len(video), num_frames)].detach().float().cpu(), 96)
    return rearrange(F.pad(frames, (0, 0, 0, gap), value=1.0), "t h w c -> h (t w) c")[:, :-gap]


def enlarged(video: Float[Tensor, "t h w 3"], min_side: int) -> Float[Tensor, "t h2 w2 3"]:
    """Larger by the smallest whole factor that makes the shorter side at least `min_side` pixels."""
    factor = max(1, -(-min_side // min(video.shape[1:3])))
    return video.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


# ---- helpers


def _places(length: int, count: int) -> list[int]:
    return torch.linspace(0, length - 1, min(count, length)).round().long().tolist()


def _small_mp4(video: Tensor, fps: int | float) -> tuple[bytes, int, int]:
    while True:
        data = _mp4(video, fps)
        if len(data) <= MAX_CLIP_BYTES or min(video.shape[1:3]) < 32:
            return data, video.shape[1], video.shape[2]
        video = video[:, ::2, ::2]


def _mp4(video: Tensor, fps: int | float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_mp4(Path(folder) / "clip.mp4", video, fps).read_bytes()


def _labelled_mp4(clips: Mapping[str, Tensor], fps: int | float) -> tuple[bytes, int, int]:
    """One mp4 of all clips, in rows, and its height and width; with smaller pictures until it fits."""
    length, columns = max(map(len, clips.values())), -(-len(clips) // -(-len(clips) // MAX_IN_A_ROW))
    for side in (192, 128, 96, 64):
        panels = [_panel(label, video, side, length) for label, video in clips.items()]
        height, width = (max(panel.shape[axis] for panel in panels) for axis in (1, 2))
        panels = [F.pad(panel, (0, 0, 0, width - panel.shape[2], height - panel.shape[1], 0), value=1.0)
                  for panel in panels]  # labels end where the pictures begin
        panels += [torch.ones_like(panels[0])] * (-len(panels) % columns)
        sheet = rearrange(torch.stack(panels), "(rows columns) t h w c -> t (rows h) (columns w) c", columns=columns)
        data = _mp4(sheet, fps)
        if len(data) <= MAX_CLIP_BYTES:
            break
    return data, sheet.shape[1], sheet.shape[2]


def _panel(label: str, video: Tensor, side: int, length: int) -> Float[Tensor, "t h w 3"]:
    """`video`, made as long as `length`, about `side` pixels large, with its label above and a gap right and below."""
    video = video.detach().float().cpu().clamp(0, 1)
    video = torch.cat([video, video[-1:].expand(length - len(video), -1, -1, -1)])
    smaller = min(video.shape[1:3]) // side
    if smaller > 1:
        video = rearrange(F.avg_pool2d(rearrange(video, "t h w c -> t c h w"), smaller), "t c h w -> t h w c")
    video = F.pad(enlarged(video, side), (0, 0, 0, GAP, 0, GAP), value=1.0)
    heading = _heading(label, video.shape[2])
    return torch.cat([heading.expand(length, -1, -1, -1), video], dim=1)


def _heading(label: str, width: int) -> Float[Tensor, "h w 3"]:
    """`label` in black on white, in as many lines as it needs at `width` pixels."""
    font, lines = ImageFont.load_default(LABEL_SIZE), [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width - GAP else [*lines, word]
    lines = [line for line in lines if line] or [""]
    picture = Image.new("RGB", (width, LINE * len(lines)), "white")
    for place, line in enumerate(lines):
        ImageDraw.Draw(picture).text((0, LINE * place), line, fill="black", font=font)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3) / 255
