"""The pictures of a film as a player shows them: the right stream, second, way up, shape and colours.

FFmpeg hands out pictures as they are stored. How they are meant stands beside them, in the container or the codec.
"""

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8
from torch import Tensor

from minicogvx.data.file_ends import is_whole
from minicogvx.data.pictures import Moment, UnusableFile, check_at_hand, check_size, shrunk_size

BROKEN = "is not a video, or it is cut off; give a whole mp4 or gif file"

_SEEK_FROM = 5.0  # seconds: what begins later is sought by key frame instead of decoded from the first frame on
_NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image | Disposition.dependent
_DEFAULT = 5_000_000  # pixels: so much does the mark "default" count in FFmpeg's own choice of a stream
_BACK = 0.1  # seconds that a time stamp may go back before it counts as a restart: some cameras' clocks tremble
_LEAP, _LONGEST_STILL = 10.0, 3600.0  # seconds between two frames: in broadcasts, in other films
_SUMMED = ("mov", "avi", "gif", "mxf")  # here a time stamp is a sum of lengths, and cannot restart
_HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)  # PQ, and HLG as telephones record it
_UNKNOWN_MATRIX = 2  # of FFmpeg's colour spaces
_TRANSPARENT = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave transparency out


class Clock:
    """Turns time stamps into seconds of the film: they may be missing, restart or leap, as where films were joined.

    `step` seconds lie between two frames. `zero` is the stamp at which the film begins.
    """

    def __init__(self, container: InputContainer, step: float, zero: float = 0.0):
        self._leap = _LEAP if container.format.flags & Flags.ts_discont.value else _LONGEST_STILL
        self._step, self._zero, self._shift, self._last = step, zero, 0.0, None

    def second(self, stamp: float | None, may_restart: bool = True) -> float:
        """The second of the next frame or packet; time can restart or leap there only if `may_restart`."""
        last = self._last
        if stamp is None:
            second = 0.0 if last is None else last + self._step
        else:
            second = stamp - self._zero + self._shift
            if may_restart and last is not None and not last - _BACK <= second <= last + self._leap:
                self._shift += last + self._step - second
                second = last + self._step
        self._last = second if last is None else max(last, second)
        return second

    @property
    def restarted(self) -> bool:
        """Whether stamps restarted or leapt so far."""
        return self._shift != 0


@contextmanager
def opened_film(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container at `path`, and the stream that is the film. Raises UnusableFile, also for what fails in the block.

    Of several streams it is FFmpeg's choice, the largest, and never a cover, a preview or a part of another one.
    Raises OSError where the disk fails.
    """
    try:
        # FFmpeg takes what stands before a colon for a protocol. Titles of films are in any encoding.
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            stream = _film_stream(container, path)
            check_size(path, stream.height, stream.width)
            yield container, stream
    except (av.FFmpegError, EOFError) as error:
        if getattr(error, "errno", None) != errno.EIO or not _can_be_read(path):  # FFmpeg says EIO of short files, too
            check_at_hand(path, error)
        raise UnusableFile(path, BROKEN) from error


def _can_be_read(path: Path) -> bool:
    """Whether the disk gives every byte of the file."""
    try:
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass
    except OSError:
        return False
    return True


def film_moments(path: Path, container: InputContainer, stream: VideoStream, begin: float) -> Iterator[Moment]:
    """Every frame from the first on or, where `begin` is far, from the key frame before that second.

    Raises UnusableFile at the first damaged one; those that a film begins with in the middle of a scene are left out.
    """
    frames = _clean_frames(container, stream, path)
    first = next(frames, None)
    if first is None:
        return
    zero, frames = first.time or 0.0, chain([first], frames)
    if begin > _SEEK_FROM and first.time is not None and _can_be_sought(container, path):
        frames = _sought(container, stream, path, zero, begin)
    aspect, usual = pixel_aspect(stream), usual_step(stream)
    clock, scaler = Clock(container, usual, zero), VideoReformatter()
    for frame in frames:
        second = clock.second(frame.time)
        length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else usual
        yield Moment(second, length, partial(_upright, frame, aspect, path, scaler))


def usual_step(stream: VideoStream) -> float:
    """Seconds from frame to frame on average; 0 where it is not known."""
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def pixel_aspect(stream: VideoStream) -> float:
    """Width of a pixel over its height: those of some films are not square."""
    return float(stream.sample_aspect_ratio or 1)


def upright_size(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
    """(height, width) of a decoded frame as it is shown."""
    height, width = frame.height, max(1, round(frame.width * aspect))
    return (width, height) if _turns(frame)[0] else (height, width)


def quarter_turns(frame: av.VideoFrame) -> int:
    """How many quarters, counter-clockwise, turn the stored picture upright, a mirror apart: 0 to 3."""
    swapped, rows, columns = _turns(frame)
    return (1 if rows else 3) if swapped else (2 if rows and columns else 0)


def is_clean(frame: av.VideoFrame) -> bool:
    """Whether nothing was missing for this frame: decoders fill in what they lack, and say so."""
    return not frame.is_corrupt


# ---- streams and time


def _film_stream(container: InputContainer, path: Path) -> VideoStream:
    films = [each for each in container.streams.video if not each.disposition & _NO_FILM]
    known = [each for each in films if each.codec_context is not None]
    if known:
        return max(known, key=lambda each: (each.frames != 1, each.width * each.height
                                            + _DEFAULT * bool(each.disposition & Disposition.default)))
    if films and is_whole(path, container.format.name):
        raise UnusableFile(path, "is of a kind that FFmpeg cannot decode here; convert it to H.264 in an mp4 file")
    # The header of a file that was cut off early can hold a stream of no kind.
    other = any(each.type in ("audio", "subtitle") for each in container.streams) and not films
    raise UnusableFile(path, "has no video stream; give a file with pictures in it" if other else BROKEN)


def _clean_frames(container: InputContainer, stream: VideoStream, path: Path) -> Iterator[av.VideoFrame]:
    decoder, begun = stream.codec_context, False
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in _TRANSPARENT:
        decoder = av.CodecContext.create(_TRANSPARENT[decoder.name], "r")
    for packet in container.demux(stream):
        for frame in decoder.decode(packet):
            if is_clean(frame):
                begun = True
                yield frame
            elif begun:
                raise UnusableFile(path, f"is damaged at time stamp {frame.time or 0:.2f} s; give a whole film")


def _sought(container: InputContainer, stream: VideoStream, path: Path, zero: float,
            begin: float) -> Iterator[av.VideoFrame]:
    for second in (zero + begin, zero):  # an index can be wrong: then from the beginning
        container.seek(int(second / stream.time_base), stream=stream)
        frames = _clean_frames(container, stream, path)
        frame = next(frames, None)
        if frame is not None and frame.time is not None and frame.time - zero <= begin:
            return chain([frame], frames)
    return iter(())


def _can_be_sought(container: InputContainer, path: Path) -> bool:
    if container.format.name.split(",")[0] in _SUMMED:
        return True
    about = path.stat()
    return _stamps_run_on(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=256)
def _stamps_run_on(path: Path, size: int, modified: int) -> bool:
    """Whether a time stamp stands for one moment only. Reads the whole file once and decodes nothing."""
    with opened_film(path) as (container, stream):
        clock = Clock(container, usual_step(stream))
        for packet in container.demux(stream):
            if packet.pts is not None:
                clock.second(float(packet.pts * stream.time_base), packet.is_keyframe)
        return not clock.restarted


# ---- pixels


def _upright(frame: av.VideoFrame, aspect: float, path: Path, scaler: VideoReformatter,
             short_side: int | None) -> UInt8[Tensor, "h w 3"]:
    height, width = frame.height, max(1, round(frame.width * aspect))
    check_size(path, height, width)  # of this frame: sizes can change inside a film
    swapped, rows, columns = _turns(frame)
    pixels = torch.from_numpy(_rgb(frame, *shrunk_size(height, width, short_side), scaler))
    pixels = pixels.transpose(0, 1) if swapped else pixels
    flipped = [axis for axis, flip in enumerate((rows, columns)) if flip]
    return pixels.flip(flipped) if flipped else pixels


def _turns(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """What makes a stored picture upright: rows and columns swapped, then the order of rows, of columns turned round.

    Telephones film sideways, or as in a mirror, and note it as a matrix. Other angles count as the nearest quarter.
    """
    a, b, c, d = _display_matrix(frame)
    if abs(b) > abs(a):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Where a step to the right goes, (right, down), and where a step down goes."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV knows no name for something else that is noted beside this frame
        quarters = round(frame.rotation / 90) % 4
        return ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[quarters]
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    return a, b, c, d


def _rgb(frame: av.VideoFrame, height: int, width: int, scaler: VideoReformatter) -> np.ndarray:
    """(height, width, 3) bytes; transparency on white, and of interlaced frames one field.

    `scaler`: one for the whole film, as its tables for other colours take long to set up.
    """
    options = {}
    if frame.colorspace == _UNKNOWN_MATRIX and (frame.width >= 1280 or frame.height > 576):
        options["src_colorspace"] = "ITU709"  # what players take where a film of this size does not say
    if frame.color_trc in _HDR:  # brighter and more colourful than screens are: reference white becomes white
        options |= {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}
    if frame.interlaced_frame and frame.height > 1:
        # Two moments are woven into each other, line by line. One of them keeps edges that move whole.
        field = np.ascontiguousarray(_opaque(frame, scaler, options)[::2])
        frame, options = av.VideoFrame.from_ndarray(field, format="rgb24"), {}
    if (height, width) != (frame.height, frame.width):
        options |= {"width": width, "height": height, "interpolation": "AREA"}
    return _opaque(frame, scaler, options)


def _opaque(frame: av.VideoFrame, scaler: VideoReformatter, options: dict[str, Any]) -> np.ndarray:
    if not (frame.format.has_palette or any(part.is_alpha for part in frame.format.components)):
        return scaler.reformat(frame, format="rgb24", **options).to_ndarray()
    pixels = scaler.reformat(frame, format="rgba", **options).to_ndarray()
    alpha = pixels[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return np.ascontiguousarray(pixels[..., :3])
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
