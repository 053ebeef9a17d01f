"""The state of a sharded run in a folder: each rank writes its shards, and any number of ranks can read them.

Written by `torch.distributed.checkpoint` in safetensors files. Its default format is not used: its `.metadata` is
a pickle, which can run code when it is opened. `checkpoint.json`, written last, lists every tensor and the size and
checksum of every file. The folder gets its name only when it is complete.
"""

import contextlib
import os
import shutil
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minicogvx.engine.ranks import Ranks
from minicogvx.interop.safetensors_files import read_json, write_json

_INDEX = "checkpoint.json"


class Damaged(ValueError):
    """A checkpoint that is truncated, or whose content is not what was written."""


def optimizer_tensors(optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[
        str, Tensor]:
    """The state of AdamW or Muon, by the names of the parameters; it is created if no step has been taken yet.

    These are the optimizer's own tensors: `load_sharded` writes into them.
    """
    slots = ("momentum_buffer",) if isinstance(optimizer, torch.optim.Muon) else ("exp_avg", "exp_avg_sq")
    tensors = {}
    names = {p: name for name, p in named_parameters}
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        state = optimizer.state[p]
        if not state:
            state.update({slot: torch.zeros_like(p, requires_grad=False) for slot in slots})
            if "exp_avg" in slots:
                state["step"] = torch.zeros((), dtype=torch.float32)
        tensors |= {f"{names[p]}/{slot}": value for slot, value in state.items()}
    return tensors


def save_sharded(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks, notes: Mapping | None = None) -> None:
    """Writes `tensors` (weights, averages, optimizer state by name: whole or DTensors) and `notes` (JSON) to `folder`.

    All ranks call it, with the same names. Whole tensors must be equal on all ranks; one rank writes each of them.
    Writes a temporary folder and renames it, replacing an existing one. Raises ValueError for a value that is not
    finite and OSError if a rank could not write, on every rank, and leaves nothing behind.
    """
    folder = Path(folder)
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    _refuse_nan(tensors, folder, ranks)
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}

    def prepare():
        if ranks.first:
            _remove(part)
            part.mkdir(parents=True)

    def write():
        writer = dcp.HuggingFaceStorageWriter(str(part), save_distributed=True)
        with _quiet_alone(ranks) as no_dist:
            dcp.save(_at_least_1d(tensors), storage_writer=writer, no_dist=no_dist)

    def finish():
        """The index last, then the folder's name."""
        if ranks.first:
            write_json(part / _INDEX, {"world_size": ranks.world_size, "files": files, "tensors": shapes,
                                       "notes": dict(notes or {})})
            if folder.exists():
                _remove(old)
                os.replace(folder, old)
            os.replace(part, folder)
            _remove(old)

    try:
        _together(prepare, folder, ranks)
        _together(write, folder, ranks)
        own = {path.name: (path.stat().st_size, _checksum(path)) for path in _own(part, ranks)}
        files = _gather(own, ranks)
        _together(finish, folder, ranks)
    except OSError:
        if ranks.first:
            _remove(part)
        raise


def load_sharded(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> dict:
    """Fills `tensors` in place from a folder that any number of ranks wrote, and returns its notes.

    Every rank reads only its own slices. Names, shapes and the checksum of every file are verified before anything is
    changed. Raises FileNotFoundError if there is no checkpoint, Damaged for one that is not intact and ValueError for
    one of another model: on every rank, in one sentence.
    """
    folder = Path(folder)
    index = _index(folder, ranks)
    shapes = index["tensors"]
    for name, tensor in tensors.items():
        if shapes.get(name) != list(tensor.shape):
            found = tuple(shapes[name]) if name in shapes else "missing"
            raise ValueError(f"{name} in {folder} is {found}; this run needs {tuple(tensor.shape)}: "
                             f"move the folder away to start again")
    mine = sorted(index["files"])[ranks.rank::ranks.world_size]
    wrong = [problem for name in mine if (problem := _problem(folder / name, *index["files"][name]))]
    wrong = [problem for problems in _gather({ranks.rank: wrong}, ranks).values() for problem in problems]
    if wrong:
        raise Damaged(f"{wrong[0]}; take an older checkpoint")
    read_slices(folder, tensors, ranks)
    return index["notes"]


def _index(folder: Path, ranks: Ranks) -> dict:
    """The index, read by rank 0: an error on a single rank would leave the others waiting."""
    found, problem = {}, None
    if ranks.first:
        try:
            found = read_json(folder / _INDEX)
        except (FileNotFoundError, ValueError) as error:
            problem = error
    (found, problem), = _gather({0: (found, problem)} if ranks.first else {}, ranks).values()
    if isinstance(problem, FileNotFoundError):
        raise problem
    if problem or not {"tensors", "files", "notes"} <= found.keys():
        raise Damaged(f"{folder / _INDEX} is damaged") from problem
    return found


@torch.no_grad()
def read_slices(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Fills `tensors` in place from the safetensors files of `folder`; each rank reads its own slices.

    The folder may be an ordinary one, such as `transformer/` of a diffusers pipeline: a published model is then sharded
    without any rank ever holding all of it.
    """
    reader = dcp.HuggingFaceStorageReader(str(folder))
    with _quiet_alone(ranks) as no_dist:
        dcp.load(_at_least_1d({name: tensor.detach() for name, tensor in tensors.items()}), storage_reader=reader,
                 no_dist=no_dist)


@torch.no_grad()
def whole_weights(model: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """The whole state dict on the CPU of rank 0, gathered tensor by tensor; {} on the others. All ranks call it."""
    weights = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if ranks.first:
            weights[name.removeprefix("module.")] = tensor.cpu().clone()
    return weights


@contextlib.contextmanager
def _quiet_alone(ranks):
    """Whether this is a single process; suppresses PyTorch's warning about that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield ranks.world_size == 1


def _at_least_1d(tensors):
    """Scalars as views with one axis: the format reads slices, which a scalar does not have."""
    return {name: tensor.view(1) if tensor.ndim == 0 else tensor for name, tensor in tensors.items()}


def _own(folder, ranks):
    return folder.glob(f"shard-{ranks.rank + 1:05d}-*.safetensors")


def _checksum(path):
    total = 0
    with path.open("rb") as file:
        while piece := file.read(2**24):
            total = zlib.crc32(piece, total)
    return total


def _problem(path, size, checksum):
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != size:
        return f"{path} is cut short: it has {path.stat().st_size} bytes of {size}"
    return None if _checksum(path) == checksum else f"{path} is damaged: its checksum is not the one that was written"


def _refuse_nan(tensors, folder, ranks):
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors.values()]
    bad = [name for name, tensor in zip(tensors, local) if not torch.isfinite(tensor).all()]
    bad = [name for names in _gather({ranks.rank: bad}, ranks).values() for name in names]
    if bad:
        raise ValueError(f"{bad[0]} holds NaN or infinity; weights must be finite, so {folder} was not written")


def _gather(own: dict, ranks: Ranks) -> dict:
    """The dictionaries of all ranks merged, on every rank."""
    if ranks.world_size == 1:
        return own
    parts = [None] * ranks.world_size
    dist.all_gather_object(parts, own)
    return {key: value for part in parts for key, value in part.items()}


def _together(action, folder, ranks):
    """Runs `action` on every rank; an error on one is raised on all, so that none waits for it forever."""
    problem = None
    try:
        action()
    except OSError as error:
        problem = error
    except dcp.CheckpointException as error:
        problem = next(iter(error.failures.values()))[0]
    problems = _gather({ranks.rank: None if problem is None else " ".join(str(problem).split())}, ranks)
    told = [text for text in problems.values() if text is not None]
    if told:
        raise OSError(f"{folder} could not be written: {told[0]}") from problem


def _remove(*folders):
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
