"""Videos out: mp4, gif and frame strips. data/films/decode.py reads videos.

Videos are `t h w 3`, float in 0..1. Every file is written to a temporary one and renamed, so that none is left
incomplete. Every error is one sentence that names the file.
"""

from fractions import Fraction
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from minicogvx.files import written_whole

__all__ = ["MAKER", "check_fps", "enlarge_frames", "made_here", "output_file", "write_gif", "write_mp4", "write_strip"]

MAKER = "minicogvx"  # the comment in pictures, and in videos that are asked to have it; see `made_here`
_BT601 = 6  # FFmpeg's number of the matrix of its conversion from RGB


def write_mp4(path: str | Path, video: Float[Tensor, "t h w 3"], fps: int | float, comment: str = "",
              crf: int = 12) -> Path:
    """Write `video` (0..1) as H.264 in yuv420p, which every browser plays, at `fps` frames per second.

    yuv420p stores colour for squares of 2x2 pixels, so an odd height or width gets its last row or column twice.
    `comment` is noted in the file. crf: x264's rate factor, larger for a smaller file; up to about 18 few people see
    a difference. Returns the path. Raises ValueError for a bad shape, NaN, fps or file name.
    """
    path, frames = output_file(path, (".mp4",)), _to_bytes(video)
    check_fps(fps)
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
        stream.options = {"crf": str(crf), "preset": "medium"}
        for frame in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_gif(path: str | Path, video: Float[Tensor, "t h w 3"], fps: int | float, min_side: int = 192) -> Path:
    """Write `video` (0..1) as a gif that loops forever, at `fps` frames per second.

    Enlarged by the smallest whole factor that makes the shorter side at least `min_side` pixels, as 64x64 would be
    tiny. Returns the path. Raises ValueError for a bad shape, NaN, fps or file name.
    """
    path, frames = output_file(path, (".gif",)), enlarge_frames(_to_bytes(video), min_side)
    check_fps(fps)
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
    frames = F.pad(enlarge_frames(frames[chosen], min_side), (0, 0, 0, gap), value=255)
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
        with Image.open(path) as image:
            comments = image.info.get("Comment"), image.info.get("comment")  # of PNG, of GIF
            return MAKER in comments or MAKER.encode() in comments
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, av.FFmpegError):
        return False


def output_file(path: str | Path, suffixes: tuple[str, ...]) -> Path:
    """`path`, if its name ends in one of `suffixes` and it is not a folder. Raises ValueError."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"the file to write is {str(path)!r}; its name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file to write")
    return path


def _to_bytes(video: Tensor) -> UInt8[Tensor, "t h w 3"]:
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(f"the video has shape {tuple(video.shape)}; it must be t h w 3 with at least one frame")
    if not torch.isfinite(video).all():
        raise ValueError("the video has NaN or infinite pixels; they must be numbers in 0..1")
    return (video.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).contiguous()


def check_fps(fps: int | float) -> None:
    """Raises ValueError for a rate that no file holds."""
    if not 0 < fps <= 240:
        raise ValueError(f"fps is {fps}; it must be above 0 and at most 240")


def enlarge_frames(frames: Shaped[Tensor, "t h w 3"], min_side: int) -> Shaped[Tensor, "t h2 w2 3"]:
    """Larger by the smallest whole factor that makes the shorter side at least `min_side` pixels."""
    factor = max(1, -(-min_side // min(frames.shape[1:3])))
    return frames.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
