"""Lists that are not JSON lines: a table, and a pair of text files. Both are converted to the same rows.

A row is its number and its fields, as in a JSON object; None for a blank one, and a ValueError instead of the fields if
they cannot be read.
"""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

TABLE, TABLE_ENDINGS = "metadata.csv", (".csv", ".tsv")
# The names of finetrainers and of the scripts of diffusers.
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
    """The rows of a table whose first line names the columns, separated by commas, semicolons or tabs."""
    lines = list(io.StringIO(read_bytes(path).decode("utf-8-sig", "surrogateescape"), newline=""))
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    records = _records(lines, delimiter)
    _, head = next(records, (1, []))
    names = [] if isinstance(head, ValueError) else [name.strip() for name in head]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if isinstance(head, ValueError):
        yield 1, head
    elif "file_name" not in names:
        yield 1, ValueError("has no column file_name; the first line must name the columns, such as file_name,text")
    elif twice:
        yield 1, ValueError(f"has {names.count(twice)} columns {twice}; each column must have a name of its own")
    else:
        for number, cells in records:
            yield number, cells if isinstance(cells, ValueError) else _row(names, cells, delimiter)


def _records(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str] | ValueError]]:
    """The number of the first line of each record, and its cells, which quotation marks can spread over lines.

    After a record that cannot be read, reading resumes with the line after its first one.
    """
    at = 0
    while at < len(lines):
        table = csv.reader(map(lines.__getitem__, range(at, len(lines))), delimiter=delimiter, skipinitialspace=True,
                           strict=True)
        begin = at
        try:
            for cells in table:
                if cells:
                    yield begin + 1, cells
                begin = at + table.line_num
            return
        except csv.Error as error:
            yield begin + 1, ValueError(_what_is_wrong(str(error), table.line_num > begin - at + 1))
            at = begin + 1


def _what_is_wrong(error: str, over_lines: bool) -> str:
    if "unexpected end of data" in error or "expected after" in error and over_lines:
        return "has a quotation mark that is not closed; put one at the end of the caption, too"
    if "expected after" in error:
        return 'has text behind a closing quotation mark; write "" for each one inside a caption'
    return f"cannot be read as a table: {error}"


def _row(names: Sequence[str], cells: Sequence[str], delimiter: str) -> dict[str, Any] | ValueError:
    if any(cell.strip() for cell in cells[len(names):]):
        return ValueError(f"has {len(cells)} cells for {len(names)} columns; put a caption with {delimiter!r} in it "
                          f"into quotation marks")
    row = dict(zip_longest(names, cells[:len(names)], fillvalue=""))
    return row | {name: _number(row[name]) for name in ("start", "end") if name in row}


def _number(cell: str) -> float | str | None:
    if not cell.strip():
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def pair_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file of names and the captions beside it. Raises FileNotFoundError if those are missing."""
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
    """The file of captions beside a file of names, if there is one."""
    return next((beside for name in CAPTION_FILES if (beside := path.with_name(name)).is_file()), None)


def belongs_to_pair(path: Path) -> bool:
    """Whether the file is one of a pair of names and captions, and thus not the caption of a video of its name."""
    pairs = {path.with_name(name): pair_of(path.with_name(name)) for name in NAME_FILES
             if path.with_name(name).is_file()}
    return any(beside is not None and path in (names, beside) for names, beside in pairs.items())


def _text_lines(path: Path) -> list[str]:
    text = read_bytes(path).decode("utf-8-sig", "surrogateescape")
    return [line.strip() for line in text.removesuffix("\n").split("\n")]
