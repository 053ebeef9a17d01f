"""Lists of a curation written once more: what others wrote into the last ones stays with its piece."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minicogvx.data.listing import CAPTION_FIELDS, Line, Listing, same_name, write_lines
from minicogvx.data.shots import Shot


def lines_before(path: Path) -> list[Line]:
    """The lines of the list at `path`, none where there is no file. Raises ValueError for one with unreadable lines."""
    before = Listing(path, path.parent)
    if before.problems:
        raise ValueError(f"{path} cannot be taken over: {before.problems[0]}; mend the line, or name another folder")
    return before.lines


def write_over(path: Path, rows: Sequence[dict[str, Any]], shots: Sequence[Shot]) -> Path:
    """Writes `rows` as the list `path`. A piece that was listed there keeps its caption and its unknown fields.

    Raises ValueError, and writes nothing, where that would lose a caption: one of a piece that is not among `rows`,
    and that neither a row nor one of `shots`, which will be found again, has for the same file.
    """
    before: dict[tuple, list[Line]] = {}
    for line in lines_before(path):
        before.setdefault((same_name(line.name), round(line.start, 3), line.end), []).append(line)
    written = [_with_old(row, before) for row in rows]
    known = {(same_name(row["file_name"]), row["text"]) for row in written}
    known |= {(same_name(shot.clip.name), shot.clip.caption) for shot in shots}
    lost = [line for lines in before.values() for line in lines
            if line.text and (same_name(line.name), line.text) not in known]
    if lost:
        raise ValueError(f"{path} has {len(lost)} captions of pieces that are no longer kept, such as {lost[0].name} "
                         f"from second {lost[0].start:g}; name another folder, or move that file away")
    return write_lines(path, written)


def _with_old(row: dict[str, Any], before: dict[tuple, list[Line]]) -> dict[str, Any]:
    """`row` with what the old line on the same piece says beside the scores; that line is then used up."""
    end = row.get("end")
    same = before.get((same_name(row["file_name"]), round(float(row.get("start") or 0.0), 3), end), [])
    if not same:
        return row
    line = same.pop(0)
    others = {name: value for name, value in line.other_fields.items() if name not in (*CAPTION_FIELDS, *row)}
    return row | {"text": line.text or row["text"]} | others
