"""Rewrites the lists of a curation, keeping captions and fields that others added to them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minicogvx.data.films.listing import CAPTION_FIELDS, Line, Listing, same_name, write_lines
from minicogvx.data.films.shots import Shot


def lines_before(path: Path) -> list[Line]:
    """The lines of the list at `path`; none if there is no file. Raises ValueError if a line is unreadable."""
    before = Listing(path, path.parent)
    if before.problems:
        raise ValueError(f"{path} cannot be taken over: {before.problems[0]}; fix the line, or name another folder")
    return before.lines


def write_over(path: Path, rows: Sequence[dict[str, Any]], shots: Sequence[Shot]) -> Path:
    """Writes `rows` as the list `path`. A piece that was listed there keeps its caption and its unknown fields.

    Raises ValueError, and writes nothing, if that would lose a caption or an unknown field: one of a piece that is not
    among `rows`, if no row of the same file has it, nor any of `shots`, which the next curation would find again.
    """
    before: dict[tuple, list[Line]] = {}
    for line in lines_before(path):
        before.setdefault((same_name(line.name), round(line.start, 3), line.end), []).append(line)
    written = [_with_old(row, before) for row in rows]
    known = set().union(*(_entries(row["file_name"], row["text"], row) for row in written),
                        *(_entries(shot.clip.name, shot.clip.caption, shot.clip.line and shot.clip.line.other_fields)
                          for shot in shots))
    lost = [line for lines in before.values() for line in lines
            if _entries(line.name, line.text, line.other_fields) - known]
    if lost:
        raise ValueError(f"{path} has captions or fields of {len(lost)} pieces that are no longer kept, such as "
                         f"{lost[0].name} from second {lost[0].start:g}; name another folder, or move that file away")
    return write_lines(path, written)


def _entries(name: str, text: str, fields: Mapping[str, Any] | None) -> set[tuple[str, str, str]]:
    """What people may have written about a file: its caption, and every field but the scores, which are measured."""
    values = dict(fields or {}) | {"text": text}
    return {(same_name(name), field, json.dumps(value, sort_keys=True)) for field, value in values.items()
            if field != "scores" and (value or field != "text")}


def _with_old(row: dict[str, Any], before: dict[tuple, list[Line]]) -> dict[str, Any]:
    """`row` with the fields, except scores, of the old line on the same piece; that line is removed from `before`."""
    end = row.get("end")
    same = before.get((same_name(row["file_name"]), round(float(row.get("start") or 0.0), 3), end), [])
    if not same:
        return row
    line = same.pop(0)
    others = {name: value for name, value in line.other_fields.items() if name not in (*CAPTION_FIELDS, *row)}
    return row | {"text": line.text or row["text"]} | others
