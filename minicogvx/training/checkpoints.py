"""All that a run needs to go on as if it had never stopped, in safetensors files that a crash cannot spoil.

A run keeps the newest few. Each is written beside its place and renamed, and carries a checksum: the newest one that is
whole is where the run goes on.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from minicogvx.interop.safetensors_files import read_tensors, write_tensors
from minicogvx.training.optim import MuonAdamW

Optimizers = Mapping[str, MuonAdamW]


@runtime_checkable
class Files(Protocol):
    """What a run needs of its checkpoints."""

    folder: Path
    of_every_rank: ClassVar[bool]  # whether all ranks call `save`, or one for all

    def save(self, step: int, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> Path:
        """Writes the state after `step` steps."""

    def load(self, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> tuple[int, list[str]]:
        """Restores the newest whole one."""


class Damaged(ValueError):
    """A checkpoint that is cut short, or whose numbers are not those that were written."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run: `folder/NAME_00000500.safetensors` after 500 steps."""

    folder: Path
    name: str
    keep: int = 2  # the newest; a second one survives where the newest turns out damaged
    of_every_rank: ClassVar[bool] = False  # one rank writes for all

    def files(self) -> list[Path]:
        """Those that are there, the newest first."""
        return sorted(self.folder.glob(f"{self.name}_*.safetensors"), reverse=True)

    def save(self, step: int, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> Path:
        """Writes the state after `step` steps, then removes all files but the newest `keep` up to that step.

        What is there of later steps was found damaged: the run began before it. Raises OSError where there is no room;
        what was there before is there still.
        """
        path = self.folder / f"{self.name}_{step:08d}.safetensors"
        try:
            save_checkpoint(path, step, modules, optimizers)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(f"{path} could not be written: {error}") from error
        kept = [file for file in self.files() if file <= path][:self.keep]
        for old in set(self.files()) - set(kept):
            old.unlink(missing_ok=True)
        return path

    def load(self, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> tuple[int, list[str]]:
        """Restores the newest whole one; returns the steps done and a sentence for each damaged file passed over.

        0 steps, and nothing changed, where there is none. Raises ValueError, and changes nothing, where a whole file
        belongs to a model of another size.
        """
        passed_over = []
        for path in self.files():
            try:
                return load_checkpoint(path, modules, optimizers), passed_over
            except Damaged as error:
                passed_over.append(f"{error}; going on from an earlier one")
        return 0, passed_over


def save_checkpoint(path: Path, step: int, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> None:
    """Writes weights, moving averages and optimizer state after `step` steps; beside the old file, then renamed."""
    tensors = {"step": torch.tensor(step)} | dict(_kept(modules)) | {
        f"{name}/{key}": value for name, optimizer in optimizers.items()
        for key, value in optimizer.state_tensors().items()}
    write_tensors(path, tensors | {"checksum": torch.tensor(checksum(tensors))})


@torch.no_grad()
def load_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> int:
    """Restores what `save_checkpoint` wrote and returns the steps done.

    Raises Damaged for a file that is not whole, ValueError for one of another model; nothing is changed then.
    """
    try:
        tensors = read_tensors(path)
    except ValueError as error:
        raise Damaged(str(error)) from error
    stored = tensors.pop("checksum", torch.tensor(-1))
    if int(stored) != checksum(tensors):
        raise Damaged(f"{path} is damaged: its checksum does not fit its numbers")
    for name, p in _kept(modules):
        if name not in tensors or tensors[name].shape != p.shape:
            found = tuple(tensors[name].shape) if name in tensors else "missing"
            raise ValueError(f"{name} in {path} is {found}; this run needs {tuple(p.shape)}: "
                             f"move the file away to start anew")
    for name, p in _kept(modules):
        p.copy_(tensors[name])
    for name, optimizer in optimizers.items():
        optimizer.load_state_tensors({key.removeprefix(f"{name}/"): value for key, value in tensors.items()
                                      if key.startswith(f"{name}/")})
    return int(tensors["step"])


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of all names and bytes, in the order of the names."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), value)
    return value


def _kept(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and buffers where a module has some that last, such as the vectors of a spectral norm."""
    for module_name, module in modules.items():
        for name, p in module.named_parameters():  # each shared weight once
            yield f"{module_name}/{name}", p
        lasting = module.state_dict()
        for name, buffer in module.named_buffers():
            if name in lasting:
                yield f"{module_name}/{name}", buffer
