"""The frames of a video as a player shows them: the right stream, time, orientation, aspect ratio and colours.

FFmpeg returns frames as they are stored; how to show them is metadata of the container or the codec.
"""

import errno
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain, islice
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

from minicogvx.data.films.file_ends import is_whole
from minicogvx.data.films.frame_order import PEEKED, Timed, are_of_decoding, in_order
from minicogvx.data.films.pictures import Moment, UnusableFile, check_at_hand, check_size, shrunk_size

BROKEN = "is not a video, or it is cut off; give a whole mp4 or gif file"

_SEEK_FROM = 5.0  # seconds: from here on, seek to a key frame instead of decoding from the first frame
_NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image | Disposition.dependent
_DEFAULT = 5_000_000  # pixels: what the flag "default" is worth in FFmpeg's own choice of a stream
_BACK = 0.1  # seconds that a time stamp may go back before it counts as a restart: some cameras' clocks jitter
_LEAP, _LONGEST_STILL = 10.0, 3600.0  # seconds between two frames: in broadcasts, in other videos
_SUMMED = ("mov", "avi", "gif", "mxf")  # here a time stamp is a sum of lengths, and cannot restart
_HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)  # PQ, and HLG as phones record it
_UNKNOWN_MATRIX = 2  # of FFmpeg's colour spaces
_TRANSPARENT = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave transparency out


class Clock:
    """Turns time stamps into seconds. Stamps may be missing, restart or leap, for example in concatenated videos.

    `step`: seconds between two frames. `zero`: the stamp at which the video begins.
    """

    def __init__(self, container: InputContainer, step: float, zero: float = 0.0):
        self._leap = _LEAP if container.format.flags & Flags.ts_discont.value else _LONGEST_STILL
        self._step, self._zero, self._shift, self._last = step, zero, 0.0, None

    def second(self, stamp: float | None, may_restart: bool = True) -> float:
        """The time of the next frame or packet in seconds; stamps can restart or leap there only if `may_restart`."""
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
        """Whether stamps have restarted or leapt so far."""
        return self._shift != 0


@contextmanager
def opened_film(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container at `path`, and its video stream. Raises UnusableFile, also for errors within the block.

    Of several streams it is FFmpeg's choice, the largest, but never a cover, a preview or a part of another one.
    Raises OSError if the disk fails.
    """
    try:
        # FFmpeg takes anything before a colon for a protocol. Titles can be in any encoding.
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            stream = _film_stream(container, path)
            check_size(path, stream.height, stream.width)
            yield container, stream
    except (av.FFmpegError, EOFError) as error:
        if getattr(error, "errno", None) != errno.EIO or not _can_be_read(path):  # FFmpeg: EIO for short files, too
            check_at_hand(path, error)
        raise UnusableFile(path, BROKEN) from error


def _can_be_read(path: Path) -> bool:
    """Whether every byte of the file can be read."""
    try:
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass
    except OSError:
        return False
    return True


def film_moments(path: Path, container: InputContainer, stream: VideoStream, begin: float) -> Iterator[Moment]:
    """Every frame from the first on or, if `begin` is late, from the key frame before that second.

    Raises UnusableFile at the first damaged one. Damaged frames at the very start, of a video cut out of another
    without its key frame, are skipped.
    """
    frames = _timed_frames(container, stream, path)
    first = next(frames, None)
    if first is None:
        return
    zero, frames = first[1] or 0.0, chain([first], frames)
    if begin > _SEEK_FROM and first[1] is not None and _can_be_sought(container, path):
        frames = _sought(container, stream, path, zero, begin)
    aspect, usual = pixel_aspect(stream), usual_step(stream)
    clock, scaler = Clock(container, usual, zero), VideoReformatter()
    for frame, stamp in frames:
        second = clock.second(stamp)
        length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else usual
        yield Moment(second, length, partial(_upright, frame, aspect, path, scaler))


def usual_step(stream: VideoStream) -> float:
    """Mean seconds between frames; 0 if unknown."""
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def pixel_aspect(stream: VideoStream) -> float:
    """Width over height of a pixel, which is not square in some videos."""
    return float(stream.sample_aspect_ratio or 1)


def upright_size(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
    """(height, width) of a decoded frame when shown upright."""
    height, width = frame.height, max(1, round(frame.width * aspect))
    return (width, height) if _turns(frame)[0] else (height, width)


def quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns, 0 to 3, that make the stored frame upright, up to mirroring."""
    swapped, rows, columns = _turns(frame)
    return (1 if rows else 3) if swapped else (2 if rows and columns else 0)


def is_clean(frame: av.VideoFrame) -> bool:
    """Whether the frame was decoded without errors: decoders conceal them, and set a flag."""
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
    # The header of a file truncated early can hold a stream without a type.
    other = any(each.type in ("audio", "subtitle") for each in container.streams) and not films
    raise UnusableFile(path, "has no video stream; give a file with pictures in it" if other else BROKEN)


def _timed_frames(container: InputContainer, stream: VideoStream, path: Path) -> Iterator[Timed]:
    packets = container.demux(stream)
    peeked = list(islice(packets, PEEKED)) if stream.codec_context.has_b_frames else []
    timed = ((frame, frame.time) for frame in _clean_frames(chain(peeked, packets), stream, path))
    return in_order(timed) if peeked and are_of_decoding(peeked) else timed


def _clean_frames(packets: Iterable[av.Packet], stream: VideoStream, path: Path) -> Iterator[av.VideoFrame]:
    decoder, begun = stream.codec_context, False
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in _TRANSPARENT:
        decoder = av.CodecContext.create(_TRANSPARENT[decoder.name], "r")
    for packet in packets:
        for frame in decoder.decode(packet):
            if is_clean(frame):
                begun = True
                yield frame
            elif begun:
                raise UnusableFile(path, f"is damaged at time stamp {frame.time or 0:.2f} s; give a whole video")


def _sought(container: InputContainer, stream: VideoStream, path: Path, zero: float,
            begin: float) -> Iterator[Timed]:
    for second in (zero + begin, zero):  # if the index is wrong, from the beginning
        container.seek(int(second / stream.time_base), stream=stream)
        frames = _timed_frames(container, stream, path)
        first = next(frames, None)
        if first is not None and first[1] is not None and first[1] - zero <= begin:
            return chain([first], frames)
    return iter(())


def _can_be_sought(container: InputContainer, path: Path) -> bool:
    if container.format.name.split(",")[0] in _SUMMED:
        return True
    about = path.stat()
    return _stamps_run_on(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=256)
def _stamps_run_on(path: Path, size: int, modified: int) -> bool:
    """Whether time stamps are unique. Reads the whole file once and decodes nothing."""
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
    check_size(path, height, width)  # for every frame: sizes can change within a video
    swapped, rows, columns = _turns(frame)
    pixels = torch.from_numpy(_rgb(frame, *shrunk_size(height, width, short_side), scaler))
    pixels = pixels.transpose(0, 1) if swapped else pixels
    flipped = [axis for axis, flip in enumerate((rows, columns)) if flip]
    return pixels.flip(flipped) if flipped else pixels


def _turns(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How to make a stored frame upright: whether to transpose it, then to reverse its rows, and its columns.

    Phones record sideways or mirrored and store a matrix. Other angles are rounded to quarter turns.
    """
    a, b, c, d = _display_matrix(frame)
    if abs(b) > abs(a):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The image of a step to the right, as (right, down), and that of a step down."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV has no name for some other side data of this frame
        quarters = round(frame.rotation / 90) % 4
        return ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[quarters]
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    return a, b, c, d


def _rgb(frame: av.VideoFrame, height: int, width: int, scaler: VideoReformatter) -> np.ndarray:
    """(height, width, 3) bytes; transparency on white, and one field of interlaced frames.

    `scaler`: one for the whole video, because its colour tables are slow to set up.
    """
    options = {}
    if frame.colorspace == _UNKNOWN_MATRIX and (frame.width >= 1280 or frame.height > 576):
        options["src_colorspace"] = "ITU709"  # the default of players for videos of this size
    if frame.color_trc in _HDR:  # HDR: reference white becomes white
        options |= {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}
    if frame.interlaced_frame and frame.height > 1:
        # Interlaced: two moments in alternating lines. A single field keeps moving edges intact.
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
