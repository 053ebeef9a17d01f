"""The checkpoints of a run: its complete state every so many steps, from which it resumes with the same bits."""

import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from minicogvx.engine.checkpoint_files import Damaged, at_least_1d, gather, read_folder, write_folder
from minicogvx.engine.ranks import LONG, Ranks, from_first, on_each


class Checkpoints:
    """`folder/NAME_00000500/` after 500 steps, for any number of ranks. All ranks call every method.

    If all tensors are whole, and so the same on every rank, rank 0 writes and reads alone and broadcasts what it read:
    each machine may have a disk of its own. If some are DTensors, as under FSDP2, every rank writes and reads its own
    shards, in a folder that all ranks share. Either kind can be read as the other, by another number of ranks.
    """

    def __init__(self, folder: Path, name: str, ranks: Ranks = Ranks(), keep: int = 2):
        """`keep`: how many are kept, the newest; the second is for the case that the newest is damaged."""
        self.folder, self.name, self.keep = folder, name, keep
        self.ranks = replace(ranks, context=1, group=None)  # all of them, whatever teams they form
        self.thread, self.writing, self.gloo = ThreadPoolExecutor(1, "checkpoints"), None, None

    def paths(self) -> list[Path]:
        """The existing ones, newest first."""
        named = re.compile(re.escape(self.name) + r"_\d{8}")
        return sorted((path for path in self.folder.glob("*") if named.fullmatch(path.name)), reverse=True)

    @torch.no_grad()
    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Copies `tensors` to the CPU and returns; training may change them while a thread writes the copies.

        Once they are written, all checkpoints are removed but this one and the `keep` - 1 before it. Those of later
        steps go as well: they were found damaged when the run resumed.

        `tensors`: weights, moving averages and optimizer state by name, the same names on every rank.
        Raises ValueError, on every rank, for a number that is not finite; and what `settle` raises.
        """
        self.settle()
        path = self.folder / f"{self.name}_{step:08d}"
        _refuse_nan(tensors, path, self.ranks)
        writers = self._writers(tensors)
        if writers:
            copies = {name: part.to("cpu", copy=True).contiguous() for name, part in at_least_1d(tensors).items()}
            self.writing = self.thread.submit(self._write, path, copies, {"step": step}, writers)

    def settle(self) -> None:
        """Waits until the last checkpoint is written. Call it before the run ends.

        Raises OSError, on every rank, if one could not, such as for a full disk; those before it are intact.
        """
        writing, self.writing = self.writing, None
        on_each(lambda: writing and writing.result(), self.ranks)

    def wait(self) -> None:
        """Waits for this rank's part of the last checkpoint, whatever comes of it: when a run ends by an error."""
        wait([self.writing] if self.writing else [])

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> tuple[int, list[str]]:
        """Fills `tensors` in place from the newest intact checkpoint.

        Returns, on every rank the same, its step, and a sentence for each damaged one that was skipped.
        If none is intact: 0, and `tensors` as they were. Raises ValueError, and changes nothing, if the newest
        intact one holds tensors of other names or shapes.
        """
        self.settle()
        readers = self._writers(tensors)
        found = on_each(lambda: readers and self._newest(tensors, readers), self.ranks)[0]
        if found[0] and not _sharded(tensors) and self.ranks.world_size > 1:
            for tensor in tensors.values():
                dist.broadcast(tensor.detach(), src=0)
        return found

    def _writers(self, tensors: Mapping[str, Tensor]) -> Ranks | None:
        """The ranks that write and read: all of them for shards, otherwise rank 0 alone (None on the others).

        They have a process group of their own, because the thread sends messages during training.
        """
        if not _sharded(tensors):
            return Ranks() if self.ranks.first else None
        if self.gloo is None and self.ranks.world_size > 1:
            self.gloo = dist.new_group(backend="gloo", timeout=LONG)
        return replace(self.ranks, group=self.gloo)

    def _write(self, path: Path, copies: dict[str, Tensor], record: dict, writers: Ranks) -> None:
        write_folder(path, copies, record, writers)
        if writers.first:
            paths = self.paths()
            kept = [other for other in paths if other.name <= path.name][:self.keep]
            for other in set(paths) - set(kept):
                shutil.rmtree(other, ignore_errors=True)

    def _newest(self, tensors: Mapping[str, Tensor], readers: Ranks) -> tuple[int, list[str]]:
        if readers.first:
            for left in self.folder.glob(f".{self.name}_*.part"):  # by a run that was killed while it wrote
                shutil.rmtree(left, ignore_errors=True)
        passed_over = []
        for path in from_first(self.paths(), readers):
            try:
                record = read_folder(path, tensors, readers)
                return record["step"], passed_over
            except Damaged as error:
                passed_over.append(f"{error}; resuming from an earlier one")
        return 0, passed_over


def _sharded(tensors: Mapping[str, Tensor]) -> bool:
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())


def _refuse_nan(tensors: Mapping[str, Tensor], path: Path, ranks: Ranks) -> None:
    """Raises ValueError on every rank if any rank holds a number that is not finite."""
    local = {name: t.to_local() if isinstance(t, DTensor) else t for name, t in tensors.items()}
    bad = next((name for name, tensor in local.items() if not torch.isfinite(tensor).all()), None)
    bad = next((name for name in gather(bad, ranks) if name is not None), None)
    if bad is not None:
        raise ValueError(f"{bad} holds NaN or infinity; weights must be finite, so {path} was not written")
