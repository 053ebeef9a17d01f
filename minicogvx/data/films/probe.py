"""Facts about a video or picture file, without decoding all of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import av
from av.container import InputContainer

from minicogvx.data.films.file_ends import is_whole
from minicogvx.data.films.frames import (
    BROKEN,
    Clock,
    is_clean,
    opened_film,
    pixel_aspect,
    quarter_turns,
    upright_size,
    usual_step,
)
from minicogvx.data.films.pictures import (
    IMAGES,
    UnusableFile,
    animation_moments,
    moves,
    opened_picture,
    upright_picture,
)

# Endings of common video files that FFmpeg reads.
FILMS = (".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpe", ".m2v", ".vob",
         ".ts", ".mts", ".m2ts", ".m2t", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".ogm", ".mxf", ".dv",
         ".gif")

_UNEVEN = 0.2  # a rate is variable if frame intervals deviate from the median by this share
_FROM_ZERO = ("matroska", "nut", "asf", "flv")  # here a duration can count from second 0, not from the first frame
_MISSING = 0.5  # seconds, and a tenth of the length: containers without a frame count may overstate it by this


@dataclass(frozen=True)
class FilmFacts:
    """Sizes are of the upright picture, in pixels. A picture has one frame, 0 seconds and a rate of 0."""

    frames: int
    fps: float
    height: int
    width: int
    rotation: int
    variable_rate: bool
    seconds: float


def probe(path: Path) -> FilmFacts:
    """Facts about the video (`probe_film`) or picture at `path`; pictures are decoded completely.

    An animated PNG, WebP or AVIF is a video, and a GIF of one frame a picture. Raises UnusableFile.
    """
    if path.suffix.lower() in IMAGES:
        return _probe_animation(path) if moves(path) else _probe_image(path)
    facts = probe_film(path)
    return _probe_image(path) if path.suffix.lower() == ".gif" and facts.frames == 1 else facts


def probe_film(path: Path) -> FilmFacts:
    """Counts the packets of the video at `path` and decodes its first frame.

    Only time stamps are kept in memory. Raises UnusableFile if it is broken, has no video stream, or holds less than
    its header says.
    """
    with opened_film(path) as (container, stream):
        first, seconds, last, count, last_second = _walk(container, stream)
        whole = is_whole(path, container.format.name)
        if first is None or not seconds:
            nothing = "has no frame that can be decoded; give a whole mp4 or gif file"
            raise UnusableFile(path, nothing if whole else BROKEN)
        # Other formats count the frames that exist, or, like avi, every repetition of a frame.
        promised = stream.frames if container.format.name.startswith("mov") else 0
        begins, ends = _promised_time(container)
        if promised and count < promised:
            raise UnusableFile(path, f"is cut off: {count} of {promised} frames are there")
        if not promised and ends - last_second > max(_MISSING, 0.1 * (ends - begins)):
            raise UnusableFile(path, f"is cut off: it ends after {last_second - begins:.2f} of {ends - begins:.2f} s")
        if not promised and not whole:  # missing bytes after the last frame do not matter
            raise UnusableFile(path, f"is cut off: its {path.stat().st_size:,} bytes end in the middle")
        size = upright_size(first, pixel_aspect(stream))
        return _facts(seconds, last, size, 90 * quarter_turns(first), float(stream.time_base))


def _promised_time(container: InputContainer) -> tuple[float, float]:
    """The seconds at which the video begins and ends by its header, as time stamps."""
    begins, lasts = ((time or 0) / av.time_base for time in (container.start_time, container.duration))
    from_zero = container.format.name.split(",")[0] in _FROM_ZERO and lasts > begins
    return begins, lasts if from_zero else begins + lasts


def _probe_image(path: Path) -> FilmFacts:
    with opened_picture(path) as image:
        width, height = upright_picture(image, path).size
    return FilmFacts(1, 0.0, height, width, 0, False, 0.0)


def _probe_animation(path: Path) -> FilmFacts:
    seconds, last, size = [], 0.0, (0, 0)
    for moment in animation_moments(path):
        seconds.append(moment.second)
        last, size = moment.length, tuple(moment.pixels(None).shape[:2])
    return _facts(seconds, last, size, 0, 1e-3)


def _walk(container, stream) -> tuple[av.VideoFrame | None, list[float], float, int, float]:
    """The first intact frame, the seconds at which frames are shown from there on, the duration of the last one, the
    number of complete packets, and the last time stamp of any stream."""
    first, shown, count, last_second = None, [], 0, 0.0
    usual = usual_step(stream)
    clock = Clock(container, usual)
    for packet in container.demux():
        if packet.stream.index == stream.index:
            if first is None:
                first = next(filter(is_clean, packet.decode()), None)
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is None or packet.size == 0:  # the flush packet at the end
                continue
            count += not packet.is_corrupt
            # In decoding order stamps go back and forth, but that of a key frame exceeds all before it.
            second = clock.second(float(stamp * stream.time_base), packet.is_keyframe)
            if not packet.is_discard:  # removed by an edit list
                shown.append((second, float((packet.duration or 0) * stream.time_base) or usual))
        if packet.pts is not None and packet.time_base:
            last_second = max(last_second, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    begin = first.time if first is not None and first.time is not None else min(shown)[0] if shown else 0.0
    shown = sorted(each for each in shown if each[0] >= begin - 1e-6)
    return first, [second for second, _ in shown], shown[-1][1] if shown else 0.0, count, last_second


def _facts(seconds: Sequence[float], last: float, size: tuple[int, int], rotation: int, unit: float) -> FilmFacts:
    """`seconds`: when the frames begin, ascending; the last one lasts `last`. Stamps are multiples of `unit`."""
    gaps = [b - a for a, b in zip(seconds, seconds[1:])]
    usual = median(gaps) if gaps else 0.0
    tolerance = _UNEVEN * usual + unit  # some containers store milliseconds
    covered = seconds[-1] - seconds[0]
    rate = len(gaps) / covered if covered else 1 / (last or 1.0)
    return FilmFacts(len(seconds), rate, *size, rotation, any(abs(gap - usual) > tolerance for gap in gaps),
                     covered + last)
