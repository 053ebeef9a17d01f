"""Checkpoints of a run under FSDP2: one folder each, to which every rank writes its shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from minicogvx.engine.checkpoints import (
    UNREADABLE,
    Optimizers,
    checkpoint_files,
    keep_newest,
    load_checkpoint,
    passed_over_sentence,
    state_tensors,
    tidy,
)
from minicogvx.engine.ranks import Ranks, from_first
from minicogvx.engine.sharded_checkpoints import load_sharded, save_sharded


@dataclass(frozen=True)
class ShardedCheckpoints:
    """As `Checkpoints`, for tensors that no rank holds whole: `folder/NAME_00000500/` after 500 steps."""

    folder: Path
    name: str
    ranks: Ranks
    keep: int = 2
    of_every_rank: ClassVar[bool] = True

    def files(self) -> list[Path]:
        """The existing ones, newest first."""
        return checkpoint_files(self.folder, self.name)

    def save(self, step: int, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> Path:
        """All ranks call it. Raises OSError, on every rank, if the disk of one is full."""
        path = self.folder / f"{self.name}_{step:08d}"
        save_sharded(path, state_tensors(modules, optimizers), self.ranks, {"step": step})
        if self.ranks.first:
            keep_newest(self.files(), path, self.keep)
        return path

    def load(self, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> tuple[int, list[str]]:
        """All ranks call it. Restores the newest intact one; returns the steps done, and a sentence for each skipped.

        Raises ValueError, and changes nothing, if an intact one belongs to a model of another size.
        """
        passed_over = []
        if self.ranks.first:
            tidy(self.folder, self.name)
        for path in from_first(self.files(), self.ranks):
            try:
                if path.is_dir():
                    return int(load_sharded(path, state_tensors(modules, optimizers), self.ranks)["step"]), passed_over
                return load_checkpoint(path, modules, optimizers), passed_over
            except UNREADABLE as error:
                passed_over.append(passed_over_sentence(path, error))
        return 0, passed_over
