"""What a captioning run has done so far, noted beside its list as it goes, by one run at a time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from minicogvx.data.listing import read_rows
from minicogvx.files import locked, naming


class Notes:
    """Captions by clip. A key is made of what JSON holds as it is: text, numbers, None."""

    def __init__(self, path: Path, file: IO[str], by: str, done: dict[tuple, str]):
        self._path, self._file, self._by, self.done = path, file, by, done

    def add(self, key: tuple, text: str) -> None:
        """Notes a caption at once, so that a run that is cut off has it."""
        self.done[key] = text
        with naming(self._path):
            # In ASCII, so that names of any bytes can be written.
            self._file.write(json.dumps({"clip": key, "text": text, "by": self._by}) + "\n")
            self._file.flush()


@contextmanager
def notes_beside(out: Path, by: str) -> Iterator[Notes]:
    """The notes on captions for the list `out`; where the block ends well, the list has them and they are removed.

    `by`: who captions and how; what others noted is not taken. Raises ValueError where another run is
    at it, and OSError where they cannot be written.
    """
    place = out.with_name(f".{out.name}.notes")
    with locked(place, "name another list with --out"):
        path = place / "captions.jsonl"
        done = {tuple(row["clip"]): row["text"] for row in (read_rows(path) if path.exists() else ())
                if row.get("by") == by and isinstance(row.get("clip"), list) and isinstance(row.get("text"), str)}
        with naming(path):
            file = path.open("a", encoding="utf-8")
        with file:
            file.write("\n")  # what a killed run left half-written must not spoil the next line
            yield Notes(path, file, by, done)
        path.unlink()
    if place.is_dir() and not any(place.iterdir()):  # a run that was resumed did not make it, so it is still there
        place.rmdir()
