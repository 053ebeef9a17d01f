"""The checkpoints of a run under FSDP2: a folder each, to which every rank writes the part that it holds."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch.distributed as dist
from torch import Tensor, nn

from minicogvx.training.distributed import Ranks
from minicogvx.training.optim import MuonAdamW
from minicogvx.training.sharded_checkpoints import load_sharded, optimizer_tensors, save_sharded


@dataclass(frozen=True)
class ShardedCheckpoints:
    """As `Checkpoints`, for tensors that no rank holds whole: `folder/NAME_00000500/` after 500 steps."""

    folder: Path
    name: str
    ranks: Ranks
    keep: int = 2
    of_every_rank: ClassVar[bool] = True

    def files(self) -> list[Path]:
        """Those that are there, the newest first."""
        return sorted((path for path in self.folder.glob(f"{self.name}_*") if path.is_dir()), reverse=True)

    def save(self, step: int, modules: Mapping[str, nn.Module], optimizers: Mapping[str, MuonAdamW]) -> Path:
        """All ranks call it. Raises OSError, on every rank, where one had no room."""
        path = self.folder / f"{self.name}_{step:08d}"
        save_sharded(path, _tensors(modules, optimizers), self.ranks, {"step": step})
        if self.ranks.first:
            kept = [folder for folder in self.files() if folder <= path][:self.keep]
            for old in set(self.files()) - set(kept):  # of later steps, too: those were passed over
                shutil.rmtree(old, ignore_errors=True)
        return path

    def load(self, modules: Mapping[str, nn.Module], optimizers: Mapping[str, MuonAdamW]) -> tuple[int, list[str]]:
        """All ranks call it: the newest folder that is whole and fits; the steps done, and what was passed over."""
        tensors, passed_over = None, []
        for path in self._the_same_on_all_ranks(self.files()):
            tensors = tensors or _tensors(modules, optimizers)
            try:
                return int(load_sharded(path, tensors, self.ranks)["step"]), passed_over
            except (ValueError, FileNotFoundError) as error:
                passed_over.append(f"{error}; going on from an earlier one")
        return 0, passed_over

    def _the_same_on_all_ranks(self, paths: list[Path]) -> list[Path]:
        if self.ranks.world_size > 1:
            found = [paths]
            dist.broadcast_object_list(found, src=0)
            return found[0]
        return paths


def _tensors(modules: Mapping[str, nn.Module], optimizers: Mapping[str, MuonAdamW]) -> dict[str, Tensor]:
    tensors = {f"{name}/{key}": p for name, module in modules.items() for key, p in module.named_parameters()}
    for name, optimizer in optimizers.items():
        for half, one, parameters in optimizer.halves():
            numbered = [(str(i), p) for i, p in enumerate(parameters)]
            tensors |= {f"{name}/{half}/{key}": value for key, value in optimizer_tensors(one, numbered).items()}
    return tensors
