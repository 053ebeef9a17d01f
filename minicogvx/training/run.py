"""One training run as both trainers see it: an iterator over its steps that keeps what must not be lost.

    run = Run("transformer", steps, keep)
    run.resume(modules, optimizers)
    for step in run:
        ...
        run.record(grad_norm, loss=loss)

It begins where the newest whole checkpoint ends, writes checkpoints and figures while the loop turns, and ends a run
whose gradients are no numbers any more.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn
from tqdm import tqdm

from minicogvx.training.checkpoints import Checkpoints, Files, Optimizers

BAD_STEPS = 20  # in a row; one is skipped and forgotten


@dataclass(frozen=True)
class Keep:
    """What a run leaves on disk, and how often. None of it changes what is learnt."""

    folder: Path | None = None  # None: nothing is written
    checkpoint_every: int = 500  # steps
    checkpoints: int = 2  # the newest
    log_every: int = 20
    tensorboard: bool = False  # besides NAME.jsonl
    progress: bool = True

    def __post_init__(self):
        for name in ("checkpoint_every", "checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.tensorboard and find_spec("tensorboard") is None:
            raise ValueError("tensorboard is not installed; pip install tensorboard, or leave it out")


class Run:
    """See the top of this file. `done` counts the steps whose result is in the weights."""

    def __init__(self, name: str, total: int, keep: Keep = Keep(), leader: bool = True,
                 files: Files | None = None):
        """`leader` is false on all ranks but one: they write no figures and show no bar.

        `files`: what keeps checkpoints, if not ordinary ones in `keep.folder`; see training/sharded_run.py.
        """
        self.name, self.total, self.keep, self.leader = name, total, keep, leader
        self.done = self.bad = 0
        self.writes = True  # figures; no longer where there was no room for some
        if keep.folder and leader:
            keep.folder.mkdir(parents=True, exist_ok=True)
        self.files = files or keep.folder and Checkpoints(keep.folder / "checkpoints", name, keep.checkpoints)
        self.modules, self.optimizers, self.board = {}, {}, None

    def resume(self, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> int:
        """Takes back the newest whole checkpoint, if there is one, and returns the steps done.

        What is given here is what later checkpoints hold. Raises ValueError for a checkpoint of another model.
        """
        self.modules, self.optimizers = modules, optimizers
        if self.files:
            self.done, passed_over = self.files.load(modules, optimizers)
            for sentence in passed_over:
                self.say(sentence)
            if self.leader:
                _forget_rows(self.keep.folder / f"{self.name}.jsonl", self.done)
        return self.done

    def __iter__(self) -> Iterator[int]:
        """The steps that are left, counted from 0."""
        with tqdm(total=self.total, initial=self.done, desc=self.name, mininterval=5,
                  disable=not (self.keep.progress and self.leader)) as self.bar:
            for step in range(self.done, self.total):
                self.started = time.perf_counter()
                yield step
                self.done = step + 1
                self.bar.update()
                if self.done % self.keep.checkpoint_every == 0 or self.done == self.total:
                    self._save()
        if self.board:
            self.board.close()

    def logs(self, step: int) -> bool:
        """Whether the figures of this step are written down."""
        return step % self.keep.log_every == 0 or step == self.total - 1

    def record(self, grad_norm: Tensor, rare: Mapping[str, float] = {}, **values: Tensor | float) -> None:
        """The figures of the step under way: to NAME.jsonl, to TensorBoard and to the bar, every `log_every` steps.

        `rare`: figures that not every step has. A step that has some is written down in any case.
        Raises FloatingPointError once `BAD_STEPS` in a row had no finite gradient.
        """
        step = self.done
        self._watch(step, float(grad_norm))
        if not self.leader or not (rare or self.logs(step)):
            return
        row = {name: float(value) for name, value in (values | dict(rare) | {"grad_norm": grad_norm}).items()}
        row["seconds"] = time.perf_counter() - self.started
        first = next(iter(row))
        self.bar.set_postfix({first: f"{row[first]:.3f}"}, refresh=False)
        if self.keep.folder:
            self._write(step, row)

    def say(self, sentence: str) -> None:
        """A line beside the bar. Where one rank keeps the files for all, it also speaks for all."""
        if self.leader or self.files and self.files.of_every_rank:
            tqdm.write(f"{self.name}: {sentence}", file=sys.stderr)

    def _watch(self, step: int, norm: float) -> None:
        """A step whose gradient is not finite leaves the weights alone; too many in a row end the run."""
        self.bad = 0 if math.isfinite(norm) else self.bad + 1
        if self.bad == 1:
            self.say(f"the gradient of step {step} is not finite; the weights stay as they were")
        if self.bad == BAD_STEPS:
            where = f"; the checkpoints in {self.files.folder} are from before" if self.files else ""
            raise FloatingPointError(f"the gradients of the {BAD_STEPS} steps up to {step} are not finite: lower the "
                                     f"learning rate{where}")

    def _save(self) -> None:
        if not self.files or not (self.leader or self.files.of_every_rank) or self.bad:
            return  # bad: a checkpoint from amid trouble would push out one from before
        try:
            self.files.save(self.done, self.modules, self.optimizers)
        except OSError as error:
            if self.done == self.total:
                raise
            self.say(f"no checkpoint at step {self.done}: {error}; training goes on")

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        line = json.dumps({"step": step} | {name: _json(value) for name, value in row.items()}) + "\n"
        try:
            with (self.keep.folder / f"{self.name}.jsonl").open("a") as file:
                file.write(line)
            if self.keep.tensorboard:
                self._to_tensorboard(step, row)
        except OSError as error:  # a full disk costs figures, not the run
            if self.writes:
                self.say(f"figures are missing from step {step} on: {error}; training goes on")
            self.writes = False

    def _to_tensorboard(self, step: int, row: Mapping[str, float]) -> None:
        if self.board is None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.keep.folder / "tensorboard" / self.name), purge_step=step)
        for name, value in row.items():
            self.board.add_scalar(name, value, step)


def _json(value: float) -> float | str:
    """JSON has no NaN."""
    return value if math.isfinite(value) else str(value)


def _forget_rows(path: Path, done: int) -> None:
    """Drops the rows of steps that will be taken again, and a last line that a crash has cut."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] < done:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    beside = path.with_suffix(".part")
    beside.write_text("".join(kept))
    os.replace(beside, path)
