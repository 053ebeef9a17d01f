"""What a cache holds, and the rows that one run adds to its index."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from minicogvx.data.clips.cache_files import (
    CACHE,
    COLUMNS,
    GONE,
    check_facts,
    file_name,
    files_of,
    holds_clips,
    names_and_notes,
    pack_words,
    read_facts,
    read_index,
)
from minicogvx.data.clips.fingerprints import digest, number
from minicogvx.data.clips.plan import Piece
from minicogvx.files import check_writable, remove_parts
from minicogvx.interop.safetensors_files import read_tensors, write_json, write_tensors

# In place of a clip that is no longer used.
_NO_ROW = {"piece": 0, "film": 0, "path": 0, "latents": GONE, "size": (0, 0, 0), "caption": (0, 0), "second": 0.0,
           "name": ""}


class Contents:
    """The intact files of a cache that were encoded as `facts` say.

    Rank 0 reads them and decides what is missing; the other ranks only write files.
    """

    def __init__(self, out: Path, facts: Mapping):
        self.out, self.facts, self.mark = out, facts, digest(dict(facts))
        self.latents: dict[int, int] = {}  # the file of each piece, by its key
        self.lost: dict[int, str] = {}  # pieces that cannot be encoded, and why
        self.captions: dict[int, tuple[int, int]] = {}  # file and row of each caption, by its hash

    def begin(self) -> None:
        """Reads what is there; writes cache.json if the folder is new, or has no clip yet.

        Raises ValueError if the folder is a cache of other models or settings, or has files of something else, and
        OSError if it cannot be written.
        """
        check_writable(self.out / CACHE)
        with suppress(FileNotFoundError):  # in a new folder
            read_facts(self.out)
        read_index(self.out)
        remove_parts(self.out)
        if not (self.out / CACHE).exists() or not holds_clips(self.out):
            write_json(self.out / CACHE, dict(self.facts))
        check_facts(self.out, self.facts)
        self.read([path.name for kind in ("latents", "text") for path in files_of(self.out, kind).values()])

    def read(self, names: Sequence[str]) -> None:
        """Adds what these files hold. One that is damaged, or encoded otherwise, counts as missing."""
        for name in names:
            tensors, notes = names_and_notes(self.out / name)
            kind, _, file = name.removesuffix(".safetensors").partition("-")
            if notes.get("cache") != self.mark:
                continue
            if kind == "latents":
                self.latents |= {int(each.partition("/")[0], 16): int(file) for each in tensors}
                self.lost |= {int(key, 16): reason for key, reason in json.loads(notes["lost"]).items()}
            else:
                keys = read_tensors(self.out / name)["keys"].tolist()
                self.captions |= {key: (int(file), row) for row, key in enumerate(keys)}

    def next_number(self, kind: str) -> int:
        """The number of the next file of a kind; none is used twice, not even that of a damaged file."""
        return max(files_of(self.out, kind), default=-1) + 1

    def write(self, kind: str, file: int, tensors: Mapping[str, Tensor], lost: Mapping[int, str] | None = None) -> str:
        """Writes a file, marked as one of this cache. Returns its name."""
        notes = {"cache": self.mark, "lost": json.dumps({f"{key:x}": reason for key, reason in (lost or {}).items()})}
        return write_tensors(self.out / file_name(kind, file), tensors, notes).name


# ---- the index


def write_index(contents: Contents, pieces: Sequence[Piece]) -> list[int]:
    """Adds a file with the rows that differ from the index, if any. Returns the keys of the pieces that are there.

    The captions of a piece are those of the last run that had it. If a path now leads to another film, the clips of the
    former one are GONE; those of films that this run does not have remain.
    """
    index, empty = read_index(contents.out)
    rows: dict[int, list[dict]] = {}
    for piece in pieces:
        if piece.key in contents.latents:
            rows.setdefault(piece.key, []).append(_row(contents, piece))
    changed = _changes(index, rows) + _former_films(index, pieces)
    place = contents.captions[caption_key("")]
    if changed or place != empty:
        columns = {name: torch.tensor([row[name] for row in changed], dtype=dtype).reshape(-1, *shape)
                   for name, (dtype, shape) in COLUMNS.items()}
        names = pack_words([row["name"] for row in changed])
        contents.write("clips", contents.next_number("clips"), columns | names | {"empty": torch.tensor(place)})
    return sorted(rows)


def _row(contents: Contents, piece: Piece) -> dict:
    item, (time, space) = piece.item, contents.facts["compression"]
    return {"piece": piece.key, "film": piece.film, "path": piece.path, "latents": contents.latents[piece.key],
            "size": ((item.frames - 1) // time + 1, item.height // space, item.width // space),
            "caption": contents.captions[caption_key(item.clip.caption)], "second": item.second,
            "name": item.clip.name}


def _changes(index: dict[str, Tensor], rows: dict[int, list[dict]]) -> list[dict]:
    """The rows of this run that the index lacks, each with the number of the clip that it replaces or adds."""
    changed, added = [], len(index["latents"])
    known = _numbers_by(index, "piece", rows)
    for key, wanted in rows.items():
        for row, clip in zip_longest(wanted, known.get(key, ())):
            if clip is None:
                changed.append(row | {"clip": added})
                added += 1
            elif row is None:
                changed.append(_NO_ROW | {"clip": clip})
            elif any(_value(index[name][clip]) != row[name] for name in ("latents", "caption", "path")):
                changed.append(row | {"clip": clip})
    return changed


def _former_films(index: dict[str, Tensor], pieces: Sequence[Piece]) -> list[dict]:
    """Rows that take out the clips of films whose path now leads to another film."""
    now: dict[int, set[int]] = {}
    for piece in pieces:
        now.setdefault(piece.path, set()).add(piece.film)
    own = {piece.key for piece in pieces}
    return [_NO_ROW | {"clip": clip} for path, clips in _numbers_by(index, "path", now).items() for clip in clips
            if int(index["film"][clip]) not in now[path] and int(index["piece"][clip]) not in own]


def _numbers_by(index: dict[str, Tensor], column: str, wanted: Mapping[int, object]) -> dict[int, list[int]]:
    """The numbers of the used clips that have one of the `wanted` values in a column."""
    there = torch.isin(index[column], torch.tensor(list(wanted), dtype=torch.int64)) & (index["latents"] != GONE)
    found: dict[int, list[int]] = {}
    for clip in there.nonzero()[:, 0].tolist():
        found.setdefault(int(index[column][clip]), []).append(clip)
    return found


def _value(cell: Tensor) -> int | tuple:
    return tuple(cell.tolist()) if cell.ndim else cell.item()


def caption_key(caption: str) -> int:
    """A hash of a caption."""
    return number(caption=caption)
