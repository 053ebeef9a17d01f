"""The captions that an unfinished run has written so far, in a hidden folder beside its list."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from minicogvx.data.films.listing import read_rows
from minicogvx.files import locked, naming


class Notes:
    """Captions by clip. A key consists of JSON values: text, numbers, None."""

    def __init__(self, path: Path, file: IO[str], by: str, done: dict[tuple, str]):
        self._path, self._file, self._by, self.done = path, file, by, done

    def add(self, key: tuple, text: str) -> None:
        """Writes a caption to disk at once, so that an interrupted run keeps it."""
        self.done[key] = text
        with naming(self._path):
            # ASCII, so that file names with arbitrary bytes can be written.
            self._file.write(json.dumps({"clip": key, "text": text, "by": self._by}) + "\n")
            self._file.flush()


@contextmanager
def notes_beside(out: Path, by: str) -> Iterator[Notes]:
    """The notes on captions for the list `out`; they are removed when the block ends without an error.

    `by`: names the captioner and its settings; notes of others are not used. Raises ValueError if another run is
    writing, and OSError if they cannot be written.
    """
    place = out.with_name(f".{out.name}.notes")
    with locked(place, "name another list with --out"):
        path = place / "captions.jsonl"
        done = {tuple(row["clip"]): row["text"] for row in (read_rows(path) if path.exists() else ())
                if row.get("by") == by and isinstance(row.get("clip"), list) and isinstance(row.get("text"), str)}
        with naming(path):
            file = path.open("a", encoding="utf-8")
        with file:
            file.write("\n")  # ends a line that a killed run left incomplete
            yield Notes(path, file, by, done)
        path.unlink()
    if place.is_dir() and not any(place.iterdir()):  # left by the run that made it, if this one was resumed
        place.rmdir()
