"""What a file of films or pictures holds, found out without decoding all of it."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import av
from PIL import Image, ImageOps, UnidentifiedImageError

_UNEVEN = 0.2  # frame intervals this share away from the median make a rate variable
_MISSING = 0.5  # seconds, and a tenth of the length: a container without frame count may promise this much too much

_BROKEN = "is not a video, or it is cut off; give a whole mp4 or gif file"


@dataclass(frozen=True)
class FilmFacts:
    """Sizes are of the upright picture, in pixels."""

    frames: int
    fps: float
    height: int
    width: int
    rotation: int
    variable_rate: bool
    seconds: float


def probe_image(path: Path) -> FilmFacts:
    """Decodes the picture at `path` whole. Raises ValueError if it is none, or cut off."""
    try:
        with Image.open(path) as file:
            file.load()
            width, height = ImageOps.exif_transpose(file).size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError("is not a picture, or it is cut off; give a whole PNG, JPEG or WebP file") from error
    return FilmFacts(1, 0.0, height, width, 0, False, 0.0)


def probe_film(path: Path) -> FilmFacts:
    """Counts the packets of the film at `path` and decodes its first frame.

    Of a long film only the time stamps are kept. Raises ValueError if it is broken, has no video
    stream, or holds less than its own header promises.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                # The header of a file that was cut off early can hold a stream of no kind.
                sound = any(stream.type in ("audio", "subtitle") for stream in container.streams)
                raise ValueError("has no video stream; give a file with pictures in it" if sound else _BROKEN)
            stream = container.streams.video[0]
            first, stamps, count, last_second = _walk(container, stream)
            if first is None or not stamps:
                raise ValueError("has no frame that can be decoded; give a whole mp4 or gif file")
            promised = stream.frames
            lasts = (container.duration or 0) / av.time_base
            begins = (container.start_time or 0) / av.time_base
            if promised and count < promised:
                raise ValueError(f"is cut off: {count} of {promised} frames are there")
            if not promised and lasts - (last_second - begins) > max(_MISSING, 0.1 * lasts):
                raise ValueError(f"is cut off: it ends after {last_second - begins:.2f} of {lasts:.2f} s")
            return _facts(stream, first, stamps)
    except (av.FFmpegError, EOFError) as error:
        raise ValueError(_BROKEN) from error


def _walk(container, stream) -> tuple[av.VideoFrame | None, list[int], int, float]:
    """The first frame, the time stamps that are shown, the number of whole packets, the last second of any stream."""
    first, stamps, count, last_second = None, [], 0, 0.0
    for packet in container.demux():
        if packet.stream.index == stream.index:
            if first is None:
                first = next(iter(packet.decode()), None)
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is None or packet.size == 0 or packet.is_corrupt:  # the last packet of all is empty
                continue
            count += 1
            if not packet.is_discard:  # cut away by an edit list
                stamps.append(stamp)
        if packet.pts is not None and packet.time_base:
            last_second = max(last_second, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return first, stamps, count, last_second


def _facts(stream, first: av.VideoFrame, stamps: list[int]) -> FilmFacts:
    stamps = sorted(stamps)
    gaps = [float((b - a) * stream.time_base) for a, b in zip(stamps, stamps[1:])]
    usual = median(gaps) if gaps else 0.0
    tolerance = _UNEVEN * usual + float(stream.time_base)  # some containers count milliseconds
    covered = float((stamps[-1] - stamps[0]) * stream.time_base)
    rate = len(gaps) / covered if covered else float(stream.average_rate or 0)
    # The last frame stays as long as the mean one: what `read_video` takes.
    last = float(1 / stream.average_rate) if stream.average_rate else usual
    quarter = round(first.rotation / 90) % 4
    height, width = first.height, round(first.width * float(stream.sample_aspect_ratio or 1))
    return FilmFacts(len(stamps), rate, *((width, height) if quarter % 2 else (height, width)), 90 * quarter,
                     any(abs(gap - usual) > tolerance for gap in gaps), covered + last)
