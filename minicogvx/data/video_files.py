"""Videos and images on disk: mp4, gif and frame strips out; any picture or video in.

Videos are `t h w 3`, float in 0..1. Every file is written to a temporary one and renamed, so that none is left
incomplete. Every error is one sentence that names the file.
"""

from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from minicogvx.data.film_frames import film_moments, opened_film
from minicogvx.data.pictures import (
    IMAGES,
    Moment,
    UnusableFile,
    animation_moments,
    existing_file,
    opened_picture,
    to_tensor,
    upright_picture,
)
from minicogvx.files import written_whole

__all__ = ["MAKER", "UnusableFile", "existing_file", "made_here", "output_file", "read_image", "read_video",
           "resize_and_crop", "stream_frames", "write_gif", "write_mp4", "write_strip"]

MAKER = "minicogvx"  # the comment in pictures, and in videos that are asked to have it; see `made_here`
_BT601 = 6  # FFmpeg's number of the matrix of its conversion from RGB


def write_mp4(path: str | Path, video: Float[Tensor, "t h w 3"], fps: int | float, comment: str = "") -> Path:
    """Write `video` (0..1) as H.264 in yuv420p, which every browser plays, at `fps` frames per second.

    yuv420p stores colour for squares of 2x2 pixels, so an odd height or width gets its last row or column twice.
    `comment` is noted in the file. Returns the path. Raises ValueError for a bad shape, NaN, fps or file name.
    """
    path, frames = output_file(path, (".mp4",)), _to_bytes(video)
    _check_fps(fps)
    height, width = frames.shape[1:3]
    frames = torch.cat([frames, frames[:, -1:]], dim=1) if height % 2 else frames
    frames = torch.cat([frames, frames[:, :, -1:]], dim=2) if width % 2 else frames

    with (written_whole(path) as part,
          av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container):
        container.metadata.update({"comment": comment} if comment else {})
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = _BT601  # players assume another one for large videos without this tag
        stream.options = {"crf": "12", "preset": "medium"}
        for frame in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_gif(path: str | Path, video: Float[Tensor, "t h w 3"], fps: int | float, min_side: int = 192) -> Path:
    """Write `video` (0..1) as a gif that loops forever, at `fps` frames per second.

    Enlarged by the smallest whole factor that makes the shorter side at least `min_side` pixels, as 64x64 would be
    tiny. Returns the path. Raises ValueError for a bad shape, NaN, fps or file name.
    """
    path, frames = output_file(path, (".gif",)), _enlarge(_to_bytes(video), min_side)
    _check_fps(fps)
    # One palette for the whole clip: palettes of single frames would flicker.
    every = rearrange(frames[:: max(1, len(frames) // 8)], "t h w c -> (t h) w c")
    palette = Image.fromarray(every.numpy()).quantize(256, dither=Image.Dither.NONE)
    pages = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames.numpy()]
    with written_whole(path) as part:
        # Gif durations are in hundredths of a second, and browsers slow down frames below two of them.
        pages[0].save(part, format="GIF", save_all=True, append_images=pages[1:], loop=0,
                      duration=max(20, round(1000 / fps)), disposal=1, optimize=False, comment=MAKER)
    return path


def write_strip(path: str | Path, video: Float[Tensor, "t h w 3"], num_frames: int = 6, min_side: int = 128,
                gap: int = 4) -> Path:
    """Write `num_frames` evenly spaced frames of `video` (0..1), first and last among them, side by side as PNG.

    Fewer if the video is shorter. Enlarged as in `write_gif`; `gap` white pixels between frames. Returns the path.
    """
    path = output_file(path, (".png",))
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; a strip needs at least 1")
    frames = _to_bytes(video)
    chosen = torch.linspace(0, len(frames) - 1, min(num_frames, len(frames))).round().long()
    frames = F.pad(_enlarge(frames[chosen], min_side), (0, 0, 0, gap), value=255)
    strip = rearrange(frames, "t h w c -> h (t w) c")[:, : -gap or None]
    notes = PngInfo()
    notes.add_text("Comment", MAKER)
    with written_whole(path) as part:
        Image.fromarray(strip.numpy()).save(part, format="PNG", pnginfo=notes)
    return path


def made_here(path: str | Path) -> bool:
    """Whether minicogvx wrote the file at `path`, by the comment in it."""
    try:
        if Path(path).suffix.lower() == ".mp4":
            with av.open(str(path)) as container:
                return container.metadata.get("comment") == MAKER
        with opened_picture(Path(path)) as image:
            comments = image.info.get("Comment"), image.info.get("comment")  # of PNG, of GIF
            return MAKER in comments or MAKER.encode() in comments
    except (UnusableFile, OSError, av.FFmpegError):
        return False


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
    _check_fps(fps)
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


def output_file(path: str | Path, suffixes: tuple[str, ...]) -> Path:
    """`path`, if its name ends in one of `suffixes` and it is not a folder. Raises ValueError."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"the file to write is {str(path)!r}; its name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file to write")
    return path


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


def _to_bytes(video: Tensor) -> UInt8[Tensor, "t h w 3"]:
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(f"the video has shape {tuple(video.shape)}; it must be t h w 3 with at least one frame")
    if not torch.isfinite(video).all():
        raise ValueError("the video has NaN or infinite pixels; they must be numbers in 0..1")
    return (video.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).contiguous()


def _check_fps(fps: int | float) -> None:
    if not 0 < fps <= 240:
        raise ValueError(f"fps is {fps}; it must be above 0 and at most 240")


def _enlarge(frames: Tensor, min_side: int) -> Tensor:
    factor = max(1, -(-min_side // min(frames.shape[1:3])))
    return frames.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
