"""Small films for the tests, written by PyAV: whole ones, and each kind of broken one."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from minicogvx.data import video_files


def film(path: Path, video: torch.Tensor, times: list[float] | None = None, fps: int = 8, rotation: int = 0,
         aspect: Fraction | None = None) -> Path:
    """Writes `video` (t h w 3, 0..1); frame k is shown from second `times[k]` on, or at `fps`."""
    times = times or [k / fps for k in range(len(video))]
    with av.open(str(path), "w", options={"movflags": "+faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "10", "preset": "ultrafast", "g": "8"}
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for second, pixels in zip(times, (video * 255).round().to(torch.uint8).numpy()):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(1000 * second), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sound_only(path: Path) -> Path:
    """One second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def ramp(t: int, h: int = 32, w: int = 48) -> torch.Tensor:
    """Frame k has the brightness 0.1 + 0.8 k / t, so that a program can tell which frame it sees."""
    return (0.1 + 0.8 * torch.arange(t) / t)[:, None, None, None].expand(t, h, w, 3).clone()


def texture(h: int, w: int, seed: int = 0, grain: int = 6) -> torch.Tensor:
    """A smooth random picture h w 3, about 0.1..0.9."""
    noise = torch.rand(1, 3, h // grain + 3, w // grain + 3, generator=torch.Generator().manual_seed(seed))
    picture = torch.nn.functional.interpolate(noise, size=(h, w), mode="bicubic").clamp(0, 1)
    return 0.1 + 0.8 * picture[0].permute(1, 2, 0)


def pan(t: int, h: int = 64, w: int = 96, step: int = 1, seed: int = 0, grain: int = 6) -> torch.Tensor:
    """A window that moves `step` pixels to the right over a texture with every frame."""
    wide = texture(h, w + t * step, seed, grain)
    return torch.stack([wide[:, k * step:k * step + w] for k in range(t)])


def caption(path: Path, text: str = "a film") -> Path:
    """Puts `text` into the .txt file beside `path`."""
    path.with_suffix(".txt").write_text(text)
    return path


def mp4(path: Path, video: torch.Tensor, fps: int = 8) -> Path:
    """As `minicogvx generate` writes it."""
    return video_files.write_mp4(path, video, fps)
