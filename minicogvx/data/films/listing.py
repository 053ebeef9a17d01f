"""Lists of videos with their captions, read and written in one place for scan, caption, curate, cache and training.

    metadata.jsonl            one JSON object per line, the only kind that is written
    metadata.csv              the same fields as columns; the first line names them
    videos.txt, prompts.txt   line k of the first names the video, line k of the second is its caption

A line names a file by `file_name`, relative to the list's folder; its caption is `text`, `caption` or `prompt`, and a
piece of the file has `start` and `end` in seconds. All other fields of a line are kept.
"""

import codecs
import json
import os
import posixpath
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicogvx.data.films.list_kinds import NAME_FILES, TABLE_ENDINGS, pair_rows, read_bytes, table_rows
from minicogvx.files import check_writable, written_whole

CAPTION_FIELDS = ("text", "caption", "prompt")  # the first that is not blank
METADATA = "metadata.jsonl"
_WRITTEN = (".jsonl", ".ndjson", ".json")  # endings of lists that are written
_NO_TEXT = ("Cc", "Cf", "Zs", "Zl", "Zp")  # categories of Unicode
_GAP = re.compile(r"[\s,:]*")  # between the fields of an object, and between name and value
_DECODE = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class Problem:
    """A file or a line that cannot be used, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Line:
    """A valid line."""

    number: int  # counted from 1
    name: str  # path inside the folder of videos, with slashes
    text: str  # on one line; empty where there is none
    start: float  # seconds
    end: float | None  # None: to the end of the video
    fields: dict[str, Any]  # of the line, unchanged
    caption_field: str | None  # the field of the caption, if there is one

    @property
    def piece(self) -> tuple[str, float, float | None]:
        """File, start and end; several lines may caption the same piece."""
        return same_name(self.name), self.start, self.end

    @property
    def other_fields(self) -> dict[str, Any]:
        """The fields other than the file, the piece and its caption."""
        own = ("file_name", "start", "end", "text", self.caption_field)
        return {name: value for name, value in self.fields.items()
                if name not in own and (value or name not in CAPTION_FIELDS)}


def read_list(path: Path, folder: Path, inside: str = "") -> tuple[list[Line], list[Problem]]:
    """The lines of a list of any kind, and the lines that cannot be used. For a pair, `path` is the file of names.

    Args:
        folder: of the videos. Names are relative to it, or to its subfolder `inside`.

    Raises ValueError for a file in UTF-16 or of one long JSON value, OSError for one that cannot be read.
    """
    if path.name in NAME_FILES:
        rows = pair_rows(path)
    elif path.suffix.lower() in TABLE_ENDINGS:
        rows = table_rows(path)
    else:
        rows = enumerate(_json_lines(path), 1)
    return _usable(rows, posixpath.join(inside, path.name), folder, inside)


class Listing:
    """A file with one JSON object per line. Unchanged lines keep every byte, even unreadable ones.

    Raises ValueError for any other file, so that it is not overwritten.
    """

    def __init__(self, path: str | Path, folder: Path):
        self.path = Path(path)
        self._raw = _json_lines(self.path) if self.path.exists() else []
        self.lines, self.problems = _usable(enumerate(self._raw, 1), self.path.name, folder, "")
        if not self.lines and self.problems and not any(_names_file(raw) for raw in self._raw):
            raise ValueError(f"{self.path} holds something other than a list of clips; name another file to write")

    def set_caption(self, line: Line, text: str) -> None:
        """Sets the caption of a line of this list; its other fields keep every byte."""
        if text == line.text:
            return
        field = line.caption_field or next((name for name in CAPTION_FIELDS if name in line.fields), "text")
        raw = self._raw[line.number - 1]
        self._raw[line.number - 1] = _with_field(raw.decode("utf-8", "surrogateescape"), field, text)

    def append(self, fields: dict[str, Any]) -> None:
        """Adds a line at the end."""
        self._raw.append(_dump(fields))

    def write(self) -> None:
        """Rewrites the file, by way of a temporary one. Raises OSError."""
        with written_whole(self.path) as part:
            part.write_bytes(b"".join(raw + b"\n" for raw in self._raw))


def writable_list(path: str | Path) -> Path:
    """`path`, if a list of JSON lines can be written there. To be called at the start of a command.

    Raises ValueError for another ending, or a file that holds something else; OSError if it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITTEN:
        raise ValueError(f"the list to write is {str(path)!r}; its name must end in {', '.join(_WRITTEN)}")
    check_writable(path)
    Listing(path, path.parent)
    return path


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every JSON object of a file of JSON lines; other lines, such as a truncated last one, are skipped."""
    for raw in read_bytes(path).split(b"\n"):
        if _is_object(raw):
            yield _parse(raw)


def write_lines(path: str | Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write one JSON object per line, by way of a temporary file. Raises OSError."""
    path = Path(path)
    with written_whole(path) as part:
        part.write_bytes(b"".join(_dump(row) + b"\n" for row in rows))
    return path


def is_finite(value: Any) -> bool:
    """Whether `value` is a number that a float can hold: not NaN, not True, not an int of 400 digits."""
    return type(value) in (int, float) and -sys.float_info.max <= value <= sys.float_info.max


def same_name(name: str) -> str:
    """Normalises a name: systems compose accents differently, and Windows uses backslashes."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def one_line(caption: str) -> str:
    """`caption` on one line; empty if it holds nothing but spaces and characters that control or format text."""
    text = " ".join(caption.split())
    return text if any(unicodedata.category(letter) not in _NO_TEXT for letter in text) else ""


# ---- lines


def _usable(rows: Iterator[tuple[int, Any]], label: str, folder: Path,
            inside: str) -> tuple[list[Line], list[Problem]]:
    lines, problems = [], []
    for number, row in rows:
        try:
            fields = _parse(row) if isinstance(row, bytes) else row
            if isinstance(fields, ValueError):
                raise fields
            if fields is not None:
                lines.append(_line(number, fields, folder, inside))
        except ValueError as error:
            problems.append(Problem(f"{label}, line {number}" if number else label, str(error)))
    return lines, problems


def _json_lines(path: Path) -> list[bytes]:
    """The lines, without an empty last one. Raises ValueError if the whole file is one value, such as an array."""
    data = read_bytes(path)
    lines = data.split(b"\n")
    if not lines[-1].strip():
        lines.pop()
    try:
        json.loads(data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):  # as expected: the first JSON value ends with its line
        return lines
    filled = sum(bool(line.strip()) for line in lines)
    if filled > 1:
        raise ValueError(f"{path} is one JSON value over {filled} lines; each line must be one JSON object")
    return lines


def _parse(raw: bytes) -> dict[str, Any] | None:
    """The object in a line; None for a blank one. Raises ValueError."""
    # A byte order mark can also be inside, if files were concatenated; bytes that are not text are kept.
    text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    if not text.strip():
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("is not JSON; each line must be one JSON object") from error
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object; each line must be one, with a file_name")
    return row


def _names_file(raw: bytes) -> bool:
    return _is_object(raw) and "file_name" in (_parse(raw) or {})


def _is_object(raw: bytes) -> bool:
    try:
        return _parse(raw) is not None
    except ValueError:
        return False


# ---- fields


def _line(number: int, fields: dict[str, Any], folder: Path, inside: str) -> Line:
    name = fields.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError("has no file_name; each line must have one")
    field = _caption_field(fields)
    text = one_line(fields[field]) if field else ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a {field} that is not UTF-8 text") from error
    return Line(number, _inside(name, folder, inside), text, _seconds(fields, "start") or 0.0, _seconds(fields, "end"),
                fields, field)


def _caption_field(fields: dict[str, Any]) -> str | None:
    """The field that holds the caption. Raises ValueError for one that is not text."""
    for name in CAPTION_FIELDS:
        words = fields.get(name)
        if words is not None and not isinstance(words, str):
            raise ValueError(f"has {name}={_short(words)}; it must be a caption in quotation marks")
        if words and one_line(words):
            return name
    return None


def _seconds(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if not is_finite(value) or value < 0:
        raise ValueError(f"has {name}={_short(value)}; it must be seconds, 0 or more")
    return float(value)


def _inside(name: str, folder: Path, inside: str) -> str:
    """`name` relative to `folder`, normalised. Links are not resolved, except for the folder itself, which a list may
    name by either path."""
    plain = name.replace("\\", "/") if os.sep == "\\" else name
    if os.path.isabs(plain):
        seen = [os.path.relpath(plain, root).replace(os.sep, "/")
                for root in (os.path.abspath(folder), os.path.realpath(folder))]
        plain = next((name for name in seen if not name.startswith("../")), seen[0])
    else:
        plain = posixpath.normpath(posixpath.join(inside, plain))
    if plain == ".." or plain.startswith(("../", "/")) or os.path.splitdrive(plain)[0]:
        raise ValueError(f"names {_short(name)}, which lies outside the folder")
    return plain


def _short(value: Any) -> str:
    return f"{value!r:.80}"


def _with_field(text: str, field: str, value: str) -> bytes:
    """The object in a line with a new value for one field, every other byte unchanged (parsing could alter numbers)."""
    at, found = text.index("{") + 1, None
    while text[at := _GAP.match(text, at).end()] != "}":
        name, at = _DECODE(text, at)
        begin = _GAP.match(text, at).end()
        _, at = _DECODE(text, begin)
        found = (begin, at) if name == field else found  # the last one wins
    new = json.dumps(value, ensure_ascii=False)
    if found is None:
        end = len(text[:at].rstrip(" \t"))
        found, new = (end, end), f', {json.dumps(field)}: {new}'
    return (text[:found[0]] + new + text[found[1]:]).encode("utf-8", "surrogateescape")


def _dump(fields: dict[str, Any]) -> bytes:
    # A lone surrogate stands for a byte of a name that is not text: \udcXX is valid JSON and is read back unchanged.
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace")
