"""The files of a cache of encoded clips, in a folder that only grows.

    cache.json                  how clips are encoded: VAE, text encoder, number format, length, size, rate
    latents-00000.safetensors   for each piece of a video KEY/mean, KEY/std (c t h w) and KEY/first_pixels (3 1 h w)
    text-00000.safetensors      captions, each once, and their features (m n d)
    clips-00000.safetensors     the index: one row a clip, which names its latents, its caption and its film

A KEY is a hash of the video's content and of the piece taken. Nothing is overwritten: each run adds files, among them
one of the index. A new clip gets a row with a new number; for a clip that has changed, by another caption say, the new
row has the number of the one that it replaces. The index holds columns of numbers, not JSON, and no captions: 200,000
clips are opened in a moment.

The format is ours; the authors' fine-tuning code also caches latents and text features.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minicogvx.interop.safetensors_files import read_json, read_tensors

CACHE = "cache.json"
GONE = -1  # in the column `latents`: the clip is no longer used
COLUMNS = {  # of the index: their types, and the length of a row
    "clip": (torch.int64, ()),  # the number under which this row replaces earlier ones
    "piece": (torch.int64, ()),  # the KEY of the latents
    "film": (torch.int64, ()),  # hash of the film's content
    "path": (torch.int64, ()),  # and of its path
    "latents": (torch.int32, ()),  # number of a file
    "size": (torch.int32, (3,)),  # frames, height, width of the latents
    "caption": (torch.int32, (2,)),  # number of a text file, and a row in it
    "second": (torch.float64, ()),  # at which the piece begins in the film
}
_HINT = "run `minicogvx data encode` again"
_FACTS = ("vae", "text", "scaling_factor", "dtype", "settings")
_OLD = "plan.json"  # of earlier versions


def file_name(kind: str, number: int) -> str:
    """Of a file of latents, text or clips."""
    return f"{kind}-{number:05d}.safetensors"


def files_of(folder: Path, kind: str) -> dict[int, Path]:
    """All files of one kind by number, ascending."""
    found = {int(match[1]): path for path in folder.glob(f"{kind}-*.safetensors")
             if (match := re.fullmatch(kind + r"-(\d+)", path.stem))}
    return dict(sorted(found.items()))


def opened(path: Path) -> safe_open:
    """The file, mapped, not read. Raises ValueError if it is missing or truncated."""
    try:
        return safe_open(path, "pt")  # rejects a file shorter than its header says
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is missing or damaged; {_HINT}") from error


# ---- how clips are encoded


def is_cache(folder: str | Path) -> bool:
    """Whether `folder` is a cache, finished or not. One of an earlier version counts, and is refused when opened."""
    folder = Path(folder)
    return _has(folder / CACHE, *_FACTS) or _has(folder / _OLD, "vae", "settings")


def read_facts(folder: Path) -> dict:
    """The content of cache.json. Raises ValueError for a cache of an earlier version, or a file of something else.

    Raises FileNotFoundError if the folder has neither.
    """
    if (folder / CACHE).exists():
        if not _has(folder / CACHE, *_FACTS):
            raise ValueError(f"{folder / CACHE} is not of a cache of clips; name a new folder")
        return read_json(folder / CACHE)
    if is_cache(folder):
        raise ValueError(f"{folder} holds clips that an earlier version encoded; encode the films again, into a new "
                         f"folder")
    raise FileNotFoundError(f"{folder} holds no encoded clips; make them with `minicogvx data encode`, on a disk that "
                            f"all ranks share")


def check_facts(folder: Path, facts: Mapping) -> None:
    """Raises ValueError, one sentence, for the first of `facts` that differs from how `folder` was encoded.

    `facts`: all of cache.json, or those of a model (`model_facts`). Raises what `read_facts` raises.
    """
    before = read_facts(folder)
    for name, value in facts.get("settings", {}).items():
        if before["settings"].get(name) != value:
            raise ValueError(f"{name} is {value}; the clips in {folder} were encoded with "
                             f"{before['settings'].get(name)}: name a new folder")
    if facts.get("text") and not before["text"]:
        raise ValueError(f"the clips in {folder} have no text features, and this text encoder is not trained; encode "
                         f"the films again, into a new folder")
    for name, what in (("vae", "VAE"), ("text", "text encoder"), ("scaling_factor", "scaling_factor"),
                       ("dtype", "dtype")):
        if name in facts and facts[name] != before.get(name):
            values = f" ({facts[name]}, not {before.get(name)})" if name in ("scaling_factor", "dtype") else ""
            raise ValueError(f"the {what} is not the one with which the clips in {folder} were encoded{values}; encode "
                             f"them again, into a new folder")


def holds_clips(folder: str | Path) -> bool:
    """Whether `folder` holds at least one encoded clip. Until then its cache.json may still be replaced."""
    return any(name.endswith("/mean") for path in files_of(Path(folder), "latents").values()
               for name in names_and_notes(path)[0])


def _has(path: Path, *names: str) -> bool:
    """Whether `path` is a JSON object with these fields."""
    try:
        return read_json(path).keys() >= set(names)
    except (ValueError, OSError):
        return False


# ---- the index


def read_index(folder: Path) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """The columns of the index, one row for each number of a clip, and the place of the empty caption.

    A column `row` is added: file of the index and row in it, where the name of the film is. Rows that are GONE remain.
    """
    files = {number: _read_columns(path) for number, path in files_of(folder, "clips").items()}
    total = max((int(rows["clip"].max()) + 1 for rows in files.values() if len(rows["clip"])), default=0)
    index = {name: torch.zeros(total, *row, dtype=dtype) for name, (dtype, row) in COLUMNS.items()}
    index["latents"].fill_(GONE)
    index["row"] = torch.zeros(total, 2, dtype=torch.int32)
    for number, rows in files.items():
        clip = rows["clip"]
        for name in COLUMNS:
            index[name][clip] = rows[name]
        index["row"][clip] = torch.stack([torch.full_like(clip, number), torch.arange(len(clip))], 1).int()
    empty = tuple(files[max(files)]["empty"].tolist()) if files else (GONE, GONE)
    return index, empty


def _read_columns(path: Path) -> dict[str, Tensor]:
    try:
        columns = read_tensors(path)
    except ValueError:
        columns = {}
    if not columns.keys() >= {"empty", *COLUMNS}:
        raise ValueError(f"{path} is damaged or not of a cache; move it away, and {_HINT}")
    return columns


def names_and_notes(path: Path) -> tuple[set[str], dict[str, str]]:
    """The names of the tensors in a file, and its notes; nothing if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError):
        return set(), {}


# ---- texts in tensors


def pack_words(texts: Sequence[str]) -> dict[str, Tensor]:
    """The `words` of all texts, UTF-8, and the place at which each `ends`."""
    coded = [text.encode("utf-8", "surrogateescape") for text in texts]  # names of files can be any bytes
    words = torch.frombuffer(bytearray(b"".join(coded) or b" "), dtype=torch.uint8)
    ends = torch.tensor([len(each) for each in coded], dtype=torch.int64).cumsum(0)
    return {"words": words, "ends": ends}


def unpack_words(file: safe_open, row: int) -> str:
    """One of the texts in a file; nothing else of it is read."""
    ends = file.get_slice("ends")
    start, end = (int(ends[row - 1:row][0]) if row else 0), int(ends[row:row + 1][0])
    words = file.get_slice("words")[start:end].numpy().tobytes() if end > start else b""
    return words.decode("utf-8", "surrogateescape")
