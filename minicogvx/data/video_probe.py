"""What a file of films or pictures holds, found out without decoding all of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import av

from minicogvx.data.file_ends import is_whole
from minicogvx.data.film_frames import (
    BROKEN, Clock, is_clean, opened_film, pixel_aspect, quarter_turns, upright_size, usual_step,
)
from minicogvx.data.pictures import IMAGES, UnusableFile, animation_moments, moves, opened_picture, upright_picture

# Endings of what FFmpeg reads and people keep films in.
FILMS = (".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpe", ".m2v", ".vob",
         ".ts", ".mts", ".m2ts", ".m2t", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".ogm", ".mxf", ".dv",
         ".gif")

_UNEVEN = 0.2  # frame intervals this share away from the median make a rate variable
_MISSING = 0.5  # seconds, and a tenth of the length: a container without frame count may promise this much too much


@dataclass(frozen=True)
class FilmFacts:
    """Sizes are of the upright picture, in pixels. A picture is one frame that lasts 0 seconds at a rate of 0."""

    frames: int
    fps: float
    height: int
    width: int
    rotation: int
    variable_rate: bool
    seconds: float


def probe(path: Path) -> FilmFacts:
    """What is in the film or picture at `path`: see `probe_film`; pictures are decoded whole.

    An animated PNG, WebP or AVIF is a film, and a GIF of one frame a picture. Raises UnusableFile.
    """
    if path.suffix.lower() in IMAGES:
        return _probe_animation(path) if moves(path) else _probe_image(path)
    facts = probe_film(path)
    return _probe_image(path) if path.suffix.lower() == ".gif" and facts.frames == 1 else facts


def probe_film(path: Path) -> FilmFacts:
    """Counts the packets of the film at `path` and decodes its first frame.

    Of a long film only the time stamps are kept. Raises UnusableFile if it is broken, has no video stream, or holds
    less than its own header promises.
    """
    with opened_film(path) as (container, stream):
        first, seconds, last, count, last_second = _walk(container, stream)
        whole = is_whole(path, container.format.name)
        if first is None or not seconds:
            nothing = "has no frame that can be decoded; give a whole mp4 or gif file"
            raise UnusableFile(path, nothing if whole else BROKEN)
        # Other formats count what is there, or, as avi, every moment at which the picture stays as it is.
        promised = stream.frames if container.format.name.startswith("mov") else 0
        lasts = (container.duration or 0) / av.time_base
        begins = (container.start_time or 0) / av.time_base
        if promised and count < promised:
            raise UnusableFile(path, f"is cut off: {count} of {promised} frames are there")
        if not promised and lasts - (last_second - begins) > max(_MISSING, 0.1 * lasts):
            raise UnusableFile(path, f"is cut off: it ends after {last_second - begins:.2f} of {lasts:.2f} s")
        if not promised and not whole:  # where all frames are there, bytes that are missing behind them are no harm
            raise UnusableFile(path, f"is cut off: its {path.stat().st_size:,} bytes end in the middle")
        size = upright_size(first, pixel_aspect(stream))
        return _facts(seconds, last, size, 90 * quarter_turns(first), float(stream.time_base))


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
    """The first clean frame, the seconds at which frames are shown from there on, how long the last one stays, the
    number of whole packets, and the last time stamp of any stream."""
    first, shown, count, last_second = None, [], 0, 0.0
    usual = usual_step(stream)
    clock = Clock(container, usual)
    for packet in container.demux():
        if packet.stream.index == stream.index:
            if first is None:
                first = next(filter(is_clean, packet.decode()), None)
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is None or packet.size == 0:  # as the last packet of all
                continue
            count += not packet.is_corrupt
            # In the order of decoding time stamps go back and forth, but that of a key frame is above all before it.
            second = clock.second(float(stamp * stream.time_base), packet.is_keyframe)
            if not packet.is_discard:  # cut away by an edit list
                shown.append((second, float((packet.duration or 0) * stream.time_base) or usual))
        if packet.pts is not None and packet.time_base:
            last_second = max(last_second, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    begin = first.time if first is not None and first.time is not None else min(shown)[0] if shown else 0.0
    shown = sorted(each for each in shown if each[0] >= begin - 1e-6)
    return first, [second for second, _ in shown], shown[-1][1] if shown else 0.0, count, last_second


def _facts(seconds: Sequence[float], last: float, size: tuple[int, int], rotation: int, unit: float) -> FilmFacts:
    """`seconds` at which the frames begin, ascending; the last one stays for `last`. Stamps are multiples of `unit`."""
    gaps = [b - a for a, b in zip(seconds, seconds[1:])]
    usual = median(gaps) if gaps else 0.0
    tolerance = _UNEVEN * usual + unit  # some containers count milliseconds
    covered = seconds[-1] - seconds[0]
    rate = len(gaps) / covered if covered else 1 / (last or 1.0)
    return FilmFacts(len(seconds), rate, *size, rotation, any(abs(gap - usual) > tolerance for gap in gaps),
                     covered + last)
