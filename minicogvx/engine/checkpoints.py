"""The complete state of a run, in safetensors files that a crash cannot corrupt: a resumed run loses nothing.

A run keeps the newest few. Each is written to a temporary file and renamed, and holds a checksum; a run resumes from
the newest intact one.
"""

import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from minicogvx.engine.optim import MuonAdamW
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharded_checkpoints import Damaged, load_sharded, optimizer_tensors
from minicogvx.interop.safetensors_files import read_tensors, write_tensors

Optimizers = Mapping[str, MuonAdamW]
UNREADABLE = Damaged, FileNotFoundError, KeyError  # in these cases an earlier checkpoint is tried


@runtime_checkable
class Files(Protocol):
    """The interface between a run and its checkpoints."""

    folder: Path
    of_every_rank: ClassVar[bool]  # whether all ranks call `save`, or only one

    def save(self, step: int, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> Path:
        """Writes the state after `step` steps."""

    def load(self, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> tuple[int, list[str]]:
        """Restores the newest intact one."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run: `folder/NAME_00000500.safetensors` after 500 steps."""

    folder: Path
    name: str
    keep: int = 2  # the newest; the second is for the case that the newest is damaged
    of_every_rank: ClassVar[bool] = False  # one rank writes for all

    def files(self) -> list[Path]:
        """The existing ones, newest first."""
        return checkpoint_files(self.folder, self.name)

    def save(self, step: int, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> Path:
        """Writes the state after `step` steps, then removes all files but the newest `keep` up to that step.

        Files of later steps are kept: they were found damaged when the run resumed. Raises OSError if the disk is full;
        the existing files are not touched then.
        """
        path = self.folder / f"{self.name}_{step:08d}.safetensors"
        save_checkpoint(path, step, modules, optimizers)
        keep_newest(self.files(), path, self.keep)
        return path

    def load(self, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> tuple[int, list[str]]:
        """Restores the newest intact one; returns the steps done and a sentence for each damaged file skipped.

        Without any, 0 steps, and nothing is changed. Raises ValueError, and changes nothing, if an intact file belongs
        to a model of another size.
        """
        passed_over = []
        tidy(self.folder, self.name)
        for path in self.files():
            try:
                return load_checkpoint(path, modules, optimizers), passed_over
            except UNREADABLE as error:
                passed_over.append(passed_over_sentence(path, error))
        return 0, passed_over


def checkpoint_files(folder: Path, name: str) -> list[Path]:
    """The checkpoints of the run `name`, newest first: files, and folders if its weights were sharded."""
    step = "[0-9]" * 8
    return sorted([*folder.glob(f"{name}_{step}.safetensors"), *folder.glob(f"{name}_{step}")], reverse=True)


def keep_newest(files: list[Path], newest: Path, keep: int) -> None:
    """Removes all of `files` but `newest` and the `keep` - 1 before it."""
    kept = [file for file in files if file.stem <= newest.stem][:keep]
    for old in set(files) - set(kept):
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)


def passed_over_sentence(path: Path, error: Exception) -> str:
    """The reason why a run does not resume from `path`."""
    reason = f"{path} has no {error.args[0]!r}" if isinstance(error, KeyError) else error
    return f"{reason}; resuming from an earlier one"


def tidy(folder: Path, name: str) -> None:
    """Cleans up after a run that was killed while saving shards; a folder that it had moved aside is restored."""
    for old in folder.glob(f".{name}_*.old"):
        if not (place := old.with_name(old.name.removeprefix(".").removesuffix(".old"))).exists():
            os.replace(old, place)
    for left in (*folder.glob(f".{name}_*.old"), *folder.glob(f".{name}_*.part")):
        shutil.rmtree(left, ignore_errors=True)


def save_checkpoint(path: Path, step: int, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> None:
    """Writes weights, moving averages and optimizer state after `step` steps, to a temporary file that is renamed."""
    tensors = {"step": torch.tensor(step)} | state_tensors(modules, optimizers)
    write_tensors(path, tensors | {"checksum": torch.tensor(checksum(tensors))})


@torch.no_grad()
def load_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> int:
    """Restores a file of `save_checkpoint`, or a folder of `save_sharded`, and returns the steps done.

    The run's weights may be whole or sharded. Raises Damaged for a checkpoint that is not intact and ValueError for one
    of another model; nothing is changed then.
    """
    wanted = state_tensors(modules, optimizers)
    if path.is_dir():
        return int(load_sharded(path, wanted, Ranks())["step"])
    tensors = read_checkpoint(path)
    for name, tensor in wanted.items():
        # Files of earlier versions lack the optimizer state of weights that had not been updated yet.
        if name not in tensors and name.partition("/")[0] in optimizers:
            continue
        if name not in tensors or tensors[name].shape != tensor.shape:
            found = tuple(tensors[name].shape) if name in tensors else "missing"
            raise ValueError(f"{name} in {path} is {found}; this run needs {tuple(tensor.shape)}: "
                             f"move the file away to start again")
    for name in wanted.keys() & tensors.keys():
        copy_into(wanted[name], tensors[name])
    return int(tensors["step"])


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """What `save_checkpoint` wrote, by name. Raises Damaged for a file that is not intact."""
    try:
        tensors = read_tensors(path)
    except (ValueError, FileNotFoundError) as error:
        raise Damaged(str(error)) from error
    stored = tensors.pop("checksum", torch.tensor(-1))
    if int(stored) != checksum(tensors):
        raise Damaged(f"{path} is damaged: its checksum does not match its content")
    if "step" not in tensors:
        raise Damaged(f"{path} is damaged: it does not say after how many steps it was written")
    return tensors


def copy_into(tensor: Tensor, whole: Tensor) -> None:
    """Copies `whole` into `tensor`; if that is a DTensor, only this rank's shard."""
    if isinstance(tensor, DTensor):
        mesh = tensor.device_mesh
        part = distribute_tensor(whole.to(mesh.device_type), mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(part.to_local())
    else:
        tensor.copy_(whole)


def state_tensors(modules: Mapping[str, nn.Module], optimizers: Optimizers) -> dict[str, Tensor]:
    """The complete state of a run, by name: the tensors themselves, not copies, so that loading can write into them."""
    tensors = dict(_kept(modules))
    for name, optimizer in optimizers.items():
        for half, one, parameters in optimizer.halves():
            numbered = [(str(i), p) for i, p in enumerate(parameters)]
            tensors |= {f"{name}/{half}.{key.replace('/', '.')}": value
                        for key, value in optimizer_tensors(one, numbered).items()}
    return tensors


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of all names and bytes, in the order of the names."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), value)
    return value


def _kept(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers, such as the vectors of a spectral norm."""
    for module_name, module in modules.items():
        for name, p in module.named_parameters():  # each shared weight once
            yield f"{module_name}/{name}", p
        lasting = module.state_dict()
        for name, buffer in module.named_buffers():
            if name in lasting:
                yield f"{module_name}/{name}", buffer
