"""Small videos for the tests, written by PyAV: whole ones and broken ones; pictures, captions and lists of them."""

import io
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from minicogvx.data.films.decode import read_video, stream_frames
from minicogvx.data.films.folder import scan_folder
from minicogvx.data.films.probe import FilmFacts, probe
from minicogvx.media import write_mp4


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


def coded(path: Path, video: torch.Tensor, codec: str = "libx264", pix_fmt: str = "yuv420p", fps: int = 8,
          prepare=lambda stream: None, container: dict | None = None, **options: str) -> Path:
    """Writes `video` (t h w 3 or 4, 0..1) by any codec into any container; `prepare` may set up the stream further."""
    with av.open(str(path), "w", **container or {}) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt, stream.options = *video.shape[1:3], pix_fmt, options
        prepare(stream)
        for pixels in (video * 255).round().to(torch.uint8).contiguous().numpy():
            frame = av.VideoFrame.from_ndarray(pixels, "rgba" if pixels.shape[2] == 4 else "rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def with_cover(path: Path) -> Path:
    """Puts a cover into an mp4 where music players look for it, in front of the video: FFmpeg's stream 0."""
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), "red").save(buffer, "JPEG")
    cover = _box(b"data", (13).to_bytes(4) + bytes(4) + buffer.getvalue())
    head = _box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    extra = _box(b"udta", _box(b"meta", bytes(4) + head + _box(b"ilst", _box(b"covr", cover))))
    data = path.read_bytes()
    at = data.find(b"moov") - 4
    end = at + int.from_bytes(data[at:at + 4])
    first = at + 8 + int.from_bytes(data[at + 8:at + 12])  # behind the box that comes first
    moov = bytearray(_box(b"moov", data[at + 8:first] + extra + data[first:end].replace(b"udta", b"free")))
    table = moov.find(b"stco") + 8  # places in the file, of what moves back now
    for place in range(table + 4, table + 4 + 4 * int.from_bytes(moov[table:table + 4]), 4):
        moov[place:place + 4] = (int.from_bytes(moov[place:place + 4]) + len(extra)).to_bytes(4)
    path.write_bytes(data[:at] + moov + data[end:])
    return path


def _box(kind: bytes, body: bytes) -> bytes:
    return (len(body) + 8).to_bytes(4) + kind + body


def call(path: Path, sizes: list[tuple[int, int]], each: int = 16, fps: int = 8) -> Path:
    """A webm of a window over a still picture, `each` frames at every one of `sizes` (height, width) in turn."""
    wide = texture(256, 512)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libvpx", rate=fps)
        (stream.height, stream.width), stream.pix_fmt = sizes[0], "yuv420p"
        stream.options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}
        encoder = stream
        for part, (h, w) in enumerate(sizes):
            if part:
                encoder = av.CodecContext.create("libvpx", "w")
                encoder.height, encoder.width, encoder.pix_fmt, encoder.options = h, w, "yuv420p", stream.options
                encoder.time_base, encoder.framerate = Fraction(1, fps), fps
            for k in range(each):
                frame = av.VideoFrame.from_ndarray((wide[k:k + h, k:k + w] * 255).byte().numpy(), format="rgb24")
                frame.pts, frame.time_base = part * each + k, Fraction(1, fps)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    file.mux(packet)
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


def mp4(path: Path, video: torch.Tensor, fps: int = 8) -> Path:
    """As `minicogvx generate` writes it."""
    return write_mp4(path, video, fps)


def levels(path: Path, frames: int, fps: float = 8, start: float = 0.0) -> torch.Tensor:
    """The brightness of each frame that is read, which tells where in a `ramp` it stands."""
    return read_video(path, frames, 16, 16, fps, start).mean((1, 2, 3))


def agrees(path: Path, frames: int, seconds: float) -> FilmFacts:
    """What the probe promises is what can be read, and no more."""
    facts = probe(path)
    assert (facts.frames, facts.seconds) == (frames, pytest.approx(seconds, abs=2e-3)), facts
    shown = list(stream_frames(path, (k / 8 for k in range(1000)), 8))
    assert len(shown) == pytest.approx(seconds * 8, abs=0.1), len(shown)
    return facts


# ---- pictures, captions and lists


def pictures(folder: Path, *names: str | bytes) -> Path:
    """Small red pictures; returns `folder`."""
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), "red").save(path)
    return folder


def caption(path: Path, text: str = "a film") -> Path:
    """Puts `text` into the .txt file beside `path`."""
    path.with_suffix(".txt").write_text(text)
    return path


def written(folder: Path, name: str, content: str | bytes) -> Path:
    """A file with this content, byte for byte."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def row(**fields) -> str:
    """A line of a list."""
    return json.dumps({"file_name": "a.png", "text": "words"} | fields)


def captions(folder: Path, **options) -> tuple[dict[str, str], list[str]]:
    """The caption of each clip that a scan finds, and the problems."""
    found = scan_folder(folder, 0.0, **options)
    return {clip.name: clip.caption for clip in found.clips}, [str(problem) for problem in found.problems]
