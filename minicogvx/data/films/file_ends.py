"""Detects truncated videos by the length that their format records, where FFmpeg does not check it.

An interrupted copy or download would otherwise pass as a shorter video, whose caption describes what is missing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # the object that holds the file's size
_ASF_LIVE = 1  # flag: written live, size unknown
_BEGINNING, _TAIL = 1 << 16, 1 << 17  # bytes searched at the start and at the end


def is_whole(path: Path, formats: str) -> bool:
    """Whether the video at `path` is as long as its own format says.

    `formats` is FFmpeg's name of the format, such as "matroska,webm". True if this cannot be told: for formats without
    a length, videos written live, and broadcasts, which end anywhere.
    """
    asked = _WHOLE.get(formats.split(",")[0])
    if asked is None:
        return True
    with path.open("rb") as file:
        return asked(file, path.stat().st_size)


def _gif(file: BinaryIO, size: int) -> bool:
    """A chain of blocks, of which the last is marked."""
    head = file.read(13)
    if len(head) < 13:
        return False
    _skip_colours(file, head[10])
    while mark := file.read(1):
        if mark == b";":
            return True
        if mark == b"!":
            file.seek(1, 1)
        elif mark == b",":
            _skip_colours(file, (file.read(9) or b"\0")[-1])
            file.seek(1, 1)
        elif mark == b"\0":
            continue
        else:
            return False
        while length := ord(file.read(1) or b"\0"):
            file.seek(length, 1)
    return False


def _skip_colours(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 * 2 << (flags & 7), 1)


def _matroska(file: BinaryIO, size: int) -> bool:
    """A header, and a segment with its length, unless it was written live."""
    file.seek(4)
    file.seek(_vint(file) or 0, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return True
    length = _vint(file)
    return length is None or file.tell() + length <= size


def _vint(file: BinaryIO) -> int | None:
    """A number whose length in bytes is the leading zeros of its first byte, plus one; None: all ones, unknown."""
    first = ord(file.read(1) or b"\0")
    more = 8 - first.bit_length()
    value = int.from_bytes(bytes([first & (0x7F >> more) if first else 0]) + file.read(more))
    return None if value == (1 << 7 * (more + 1)) - 1 else value


def _ogg(file: BinaryIO, size: int) -> bool:
    """Pages, of which the last must be complete. Some programs do not mark it as the last."""
    file.seek(max(0, size - _TAIL))
    data = file.read()
    at = data.rfind(b"OggS")
    if at < 0 or at + 27 > len(data):
        return False
    segments = data[at + 27:at + 27 + data[at + 26]]
    return at + 27 + data[at + 26] + sum(segments) <= len(data)


def _flash(file: BinaryIO, size: int) -> bool:
    """Tags, each followed by its own length."""
    file.seek(size - 4)
    length = int.from_bytes(file.read(4))
    if not 11 <= length <= size - 4:
        return False
    file.seek(size - 4 - length)
    head = file.read(4)
    return head[0] & 0x1F in (8, 9, 18) and int.from_bytes(head[1:]) + 11 == length


def _windows_media(file: BinaryIO, size: int) -> bool:
    """An object in the header holds the size of the file."""
    data = file.read(_BEGINNING)
    at = data.find(_ASF_FILE)
    if at < 0 or int.from_bytes(data[at + 88:at + 92], "little") & _ASF_LIVE:
        return True
    return int.from_bytes(data[at + 40:at + 48], "little") <= size


def _riff(file: BinaryIO, size: int) -> bool:
    """Chunks, each with its length; the first holds the whole video, or as much as old programs can read."""
    length = int.from_bytes(file.read(8)[4:], "little")
    return 8 + length <= size


def _boxes(file: BinaryIO, size: int) -> bool:
    """A chain of boxes, each of which begins with its length; 0 means to the end."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4])
        length = int.from_bytes(head[8:]) if length == 1 else length
        if length == 0:
            return True
        if length < 8:
            return True  # not a box: something appended to the video
        at += length
    return at <= size


_WHOLE: dict[str, Callable[[BinaryIO, int], bool]] = {
    "gif": _gif, "matroska": _matroska, "ogg": _ogg, "flv": _flash, "asf": _windows_media,
    "avi": _riff, "mov": _boxes}
