"""One checkpoint: a folder of safetensors files, to which each of the given ranks writes its shards.

`torch.distributed.checkpoint` writes and reads them, in the format of Hugging Face. Its default format is not used: its
`.metadata` is a pickle, which can run code when it is opened. `checkpoint.json`, written last, lists every tensor and
the size and checksum of every file. The folder gets its name only when it is complete, so that a crash or a full disk
leaves other checkpoints intact.
"""

import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from minicogvx.engine.ranks import Ranks, from_first
from minicogvx.interop.safetensors_files import read_json, write_json

FILE_BYTES = 2**30  # of a file, roughly: each is assembled in memory before it is written
_INDEX = "checkpoint.json"


class Damaged(ValueError):
    """A checkpoint that is incomplete, or whose content is not what was written."""


def write_folder(path: Path, tensors: Mapping[str, Tensor], record: Mapping, ranks: Ranks) -> None:
    """Writes `tensors` (on the CPU, contiguous, whole or DTensors) and `record` (JSON). All of `ranks` call it.

    Whole tensors must be the same on all ranks; one rank writes each of them. An existing `path` is replaced once
    everything is written. Raises OSError, on every rank, if one could not write, and leaves nothing behind then.
    """
    part, failed = path.with_name(f".{path.name}.part"), f"{path} could not be written"
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}

    def prepare():
        if ranks.first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

    def write():
        writer = dcp.HuggingFaceStorageWriter(str(part), _file_numbers(tensors), save_distributed=True)
        writer.per_thread_copy_ahead = 0  # nothing is on a GPU; copying ahead would open a context on GPU 0
        dcp.save(dict(tensors), storage_writer=writer, **_process_group(ranks))
        own = part.glob(f"shard-{ranks.rank + 1:05d}-*.safetensors")
        return {file.name: [file.stat().st_size, _checksum(file)] for file in own}

    def finish():
        if ranks.first:
            if lost := [name for name in files if not (part / name).exists()]:
                raise OSError(f"{lost[0]} was written elsewhere; ranks that hold shards must share the folder")
            write_json(part / _INDEX, {"files": files, "tensors": shapes, **record})
            shutil.rmtree(path, ignore_errors=True)
            os.replace(part, path)

    try:
        _together(prepare, failed, ranks)
        files = _together(write, failed, ranks)
        _together(finish, failed, ranks)
    except OSError:
        if ranks.first:
            shutil.rmtree(part, ignore_errors=True)
        raise


def read_folder(path: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> dict:
    """Fills `tensors` in place and returns the record. All of `ranks` call it; each reads its own slices.

    Names, shapes and the checksum of every file are verified before anything is changed. Raises Damaged if the
    checkpoint is not intact, ValueError if it holds other tensors, and OSError if it cannot be read: on every rank.
    """
    index, tensors = _index(path, ranks), at_least_1d(tensors)
    wanted, found = {name: list(tensor.shape) for name, tensor in tensors.items()}, index.pop("tensors")
    for name in (*wanted, *found):
        if wanted.get(name) != found.get(name):
            raise ValueError(f"{name} in {path} is {_shape(found.get(name))}; this run needs "
                             f"{_shape(wanted.get(name))}: move the folder away to start again")
    files = index.pop("files")
    mine = sorted(files)[ranks.rank::ranks.world_size]
    problem = next(filter(None, (_problem(path / name, *files[name]) for name in mine)), None)
    problem = next(filter(None, gather(problem, ranks)), None)
    if problem:
        raise Damaged(problem)

    def read():
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(path)), **_process_group(ranks))

    _together(read, f"{path} could not be read", ranks)
    return index


def at_least_1d(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same memory; scalars have one axis: the format reads slices, which a scalar does not have."""
    return {name: tensor.detach().view(1) if tensor.ndim == 0 else tensor.detach() for name, tensor in tensors.items()}


def gather(own: Any, ranks: Ranks) -> list:
    """`own` of each rank, on every rank."""
    parts = [own] * ranks.world_size
    if ranks.world_size > 1:
        dist.all_gather_object(parts, own, group=ranks.group)
    return parts


def _together(action: Callable, failed: str, ranks: Ranks) -> dict:
    """Runs `action` on every rank and merges what it returns. An error on one is raised on all; none waits forever."""
    own, problem = None, None
    try:
        own = action()
    except dcp.CheckpointException as error:
        problem = next(iter(error.failures.values()))[0]
    except Exception as error:  # whatever it is: the other ranks must hear of it
        problem = error
    parts = gather((own or {}, None if problem is None else " ".join(str(problem).split())), ranks)
    problems = [text for _, text in parts if text is not None]
    if problems:
        raise OSError(f"{failed}: {problems[0]}") from problem
    return {key: value for part, _ in parts for key, value in part.items()}


def _process_group(ranks: Ranks) -> dict:
    """How `torch.distributed.checkpoint` is told which ranks take part; that one works alone is worth no warning."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    return {"no_dist": True} if ranks.world_size == 1 else {"process_group": ranks.group}


def _file_numbers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """For each tensor, in which of a rank's files it is, from 1 on."""
    ends = accumulate(tensor.nbytes for tensor in tensors.values())
    return {name: 1 + end // FILE_BYTES for name, end in zip(tensors, ends)}


def _index(path: Path, ranks: Ranks) -> dict:
    """The index, read by the first rank."""
    found = {}
    if ranks.first:
        try:
            found = read_json(path / _INDEX)
        except (OSError, ValueError):
            pass
    found = from_first(found, ranks)
    if not {"tensors", "files", "step"} <= found.keys():
        raise Damaged(f"{path / _INDEX} is missing or damaged")
    return found


def _shape(shape: list[int] | None) -> str:
    return "missing" if shape is None else str(tuple(shape))


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while piece := file.read(2**24):
            total = zlib.crc32(piece, total)
    return total


def _problem(path: Path, size: int, checksum: int) -> str | None:
    """What is wrong with a file, in one sentence; an error of reading as well, as the other ranks must hear of it."""
    try:
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} is cut short: it has {path.stat().st_size} bytes of {size}"
        if _checksum(path) != checksum:
            return f"{path} is damaged: its checksum is not the one that was written"
    except OSError as error:
        return f"{path} cannot be read: {error}"
    return None
