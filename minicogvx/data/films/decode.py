"""Pictures and videos in, of any kind: frames at the moments, and at the size, that are asked for.

Videos are `t h w 3`, float in 0..1. Every error is one sentence that names the file.
"""

from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from minicogvx.data.films.frames import film_moments, opened_film
from minicogvx.data.films.pictures import (
    IMAGES,
    Moment,
    UnusableFile,
    animation_moments,
    existing_file,
    opened_picture,
    to_tensor,
    upright_picture,
)
from minicogvx.media import check_fps


def read_image(path: str | Path, height: int, width: int) -> Float[Tensor, "h w 3"]:
    """The picture at `path` in 0..1: shorter side resized (antialiased), centre cropped to `height` x `width` pixels.

    Raises FileNotFoundError if it is missing, UnusableFile if it is empty or no picture.
    """
    path = existing_file(path)
    with opened_picture(path) as image:
        picture = upright_picture(image, path)
    return resize_and_crop(to_tensor(picture)[None], height, width)[0]


def read_video(path: str | Path, num_frames: int, height: int, width: int, fps: int | float,
               start: float = 0.0) -> Float[Tensor, "t h w 3"]:
    """`num_frames` frames of the video at `path`, in 0..1, as `fps` frames per second show them from second `start` on.

    Resampled in time: frame k is the one on screen at second start + k / fps. Resized and cropped as in `read_image`.
    Raises FileNotFoundError if it is missing, UnusableFile if it is empty, broken, too short or has no video stream.
    """
    path = existing_file(path)
    check_fps(fps)
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; it must be at least 1")
    if not 0 <= start < float("inf"):
        raise ValueError(f"start is {start}; it must be a second of the video, 0 or more")
    frames, seconds = _decode(path, [start + k / fps for k in range(num_frames)], height, width)
    if len(frames) < num_frames:
        needed = start + num_frames / fps
        raise UnusableFile(path, f"lasts {seconds:.2f} s; {num_frames} frames at {fps:g} fps need {needed:.2f} s")
    return torch.cat(frames)


def stream_frames(path: str | Path, times: Iterable[float],
                  short_side: int | None = None) -> Generator[UInt8[Tensor, "h w 3"], None, float]:
    """The upright picture on screen at each of `times` (seconds from the video's first frame, ascending).

    One decoded picture is in memory at a time, so the video may have any length. Only time stamps count, so variable
    rates work. `short_side` shrinks larger pictures to that many pixels. The generator's return value is the video's
    length in seconds or, if `times` end first, the second that was reached.
    Raises FileNotFoundError if it is missing, UnusableFile if it is empty, broken or has no video stream.
    """
    path, times = existing_file(path), iter(times)
    begin = next(times, None)
    if begin is None:
        return 0.0
    times = chain([begin], times)
    if path.suffix.lower() in IMAGES:
        return (yield from _on_screen(animation_moments(path), times, short_side))
    with opened_film(path) as (container, stream):
        return (yield from _on_screen(film_moments(path, container, stream, begin), times, short_side))


def resize_and_crop(frames: UInt8[Tensor, "t h w 3"], height: int, width: int) -> Float[Tensor, "t h2 w2 3"]:
    """Resize bytes to just cover `height` x `width`, crop the centre, and return 0..1."""
    if height < 1 or width < 1:
        raise ValueError(f"height x width is {height}x{width}; both must be at least 1")
    t, h, w, _ = frames.shape
    scale = max(height / h, width / w)
    size = (max(height, round(h * scale)), max(width, round(w * scale)))
    video = rearrange(frames.float() / 255, "t h w c -> t c h w")
    if size != (h, w):
        video = F.interpolate(video, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return rearrange(video[:, :, top:top + height, left:left + width], "t c h w -> t h w c").contiguous()


def _decode(path: Path, times: list[float], height: int, width: int) -> tuple[list[Tensor], float]:
    shown, frames = stream_frames(path, times), []
    while True:
        try:
            frames.append(resize_and_crop(next(shown)[None], height, width))
        except StopIteration as end:
            return frames, end.value


def _on_screen(moments: Iterator[Moment], times: Iterator[float],
               short_side: int | None) -> Generator[Tensor, None, float]:
    # A frame is on screen until the next begins, so it is yielded once the next is known.
    shown, pixels, end, wanted = None, None, 0.0, next(times)
    for moment in chain(moments, [None]):
        if moment is not None:
            end = moment.second
        elif shown is not None:
            end = shown.second + shown.length
        # Half a millisecond of tolerance, because containers round time stamps.
        while shown is not None and wanted < end - 5e-4:
            pixels = shown.pixels(short_side) if pixels is None else pixels
            yield pixels
            wanted = next(times, None)
            if wanted is None:
                return end
        shown, pixels = moment, None
    return end
