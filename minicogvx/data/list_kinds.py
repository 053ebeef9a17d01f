"""The kinds of lists besides JSON lines: a table, and two files of lines. Each becomes rows of one shape.

A row is its number and its fields, as the JSON object of a line would have them; None for a blank one, and a ValueError
in the place of one that cannot be read.
"""

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TABLE, TABLE_ENDINGS = "metadata.csv", (".csv", ".tsv")
# As finetrainers and the scripts of diffusers name the two halves.
NAME_FILES = ("videos.txt", "video.txt", "images.txt", "image.txt")
CAPTION_FILES = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_bytes(path: Path) -> bytes:
    """The content of a list. Raises ValueError for UTF-16, which some editors and shells write."""
    data = path.read_bytes()
    if data.startswith(_UTF16):
        raise ValueError(f"{path} is UTF-16 text; save it as UTF-8")
    return data


def table_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a table whose first line names the columns; commas, semicolons or tabs part the cells."""
    text = read_bytes(path).decode("utf-8-sig", "surrogateescape")
    head = text.split("\n", 1)[0]
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), restval="",
                           skipinitialspace=True)
    try:
        table.fieldnames = [name.strip() for name in table.fieldnames or ()]
        if "file_name" not in table.fieldnames:
            yield 1, ValueError("has no column file_name; the first line must name the columns, such as file_name,text")
            return
        for row in table:
            row.pop(None, None)  # cells beyond the last column
            yield table.line_num, row | {name: _number(row[name]) for name in ("start", "end") if name in row}
    except csv.Error as error:
        yield table.line_num, ValueError(f"cannot be read as a table: {error}; no line after it was read")


def _number(cell: str) -> float | str | None:
    if not cell.strip():
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def pair_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file with names and of the captions beside it. Raises FileNotFoundError where there are none."""
    beside = pair_of(path)
    if beside is None:
        raise FileNotFoundError(f"there is no {CAPTION_FILES[0]} beside {path}; it must hold the captions, one a line")
    names, captions = _text_lines(path), _text_lines(beside)
    for longer, other in ((names, captions), (captions, names)):
        while len(longer) > len(other) and not longer[-1]:
            longer.pop()  # blank lines at the end
    if len(names) != len(captions):
        yield 0, ValueError(f"has {len(names)} lines, and {beside.name} has {len(captions)}; line k of it must be the "
                            f"caption of file k")
        return
    for number, (name, caption) in enumerate(zip(names, captions), 1):
        yield number, {"file_name": name, "text": caption} if name else None


def pair_of(path: Path) -> Path | None:
    """The file with the captions beside one with names, if there is one."""
    return next((beside for name in CAPTION_FILES if (beside := path.with_name(name)).is_file()), None)


def _text_lines(path: Path) -> list[str]:
    text = read_bytes(path).decode("utf-8-sig", "surrogateescape")
    return [line.strip() for line in text.removesuffix("\n").split("\n")]
