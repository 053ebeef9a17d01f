"""A training run: an iterator over its steps that writes checkpoints and logs.

    run = Run("transformer", steps, keep)
    run.resume(modules, optimizers)
    for step in run:
        ...
        run.record(grad_norm, loss=loss)

It starts after the newest intact checkpoint, writes checkpoints and figures as it goes, and stops if the gradients are
no longer finite. Ctrl-C stops it at the end of a step, with a checkpoint.
"""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn
from tqdm import tqdm

from minicogvx.engine.checkpoints import Checkpoints, Files, Optimizers, state_tensors
from minicogvx.engine.limits import check_limits
from minicogvx.engine.ranks import any_rank, share_from_first
from minicogvx.engine.run_folder import forget_rows
from minicogvx.files import remove_parts
from minicogvx.visible import visible

BAD_STEPS = 20  # in a row; fewer are skipped


@dataclass(frozen=True)
class Keep:
    """What a run writes to disk, and how often. None of it affects the result."""

    folder: Path | None = None  # None: nothing is written
    checkpoint_every: int = 500  # steps
    checkpoints: int = 2  # the newest are kept
    log_every: int = 20
    tensorboard: bool = False  # in addition to NAME.jsonl
    progress: bool = True
    on_resume: Callable[[], None] | None = None  # called on rank 0 before the first step, if `resume` succeeded

    def __post_init__(self):
        check_limits(self, {"checkpoint_every checkpoints log_every": "1 or more"})
        if self.tensorboard and find_spec("tensorboard") is None:
            raise ValueError("tensorboard is not installed; pip install tensorboard, or leave it out")


class Run:
    """See the top of this file. `done`: the number of steps taken."""

    def __init__(self, name: str, total: int, keep: Keep = Keep(), leader: bool = True,
                 files: Files | None = None):
        """`leader`: true on one rank only, which writes figures and shows the progress bar.

        `files`: replaces the ordinary checkpoints in `keep.folder`; see engine/sharded_run.py.
        """
        self.name, self.total, self.keep, self.leader = name, total, keep, leader
        self.done = self.bad = 0
        self.writes = True  # figures; false once the disk was full
        if keep.folder and leader:
            keep.folder.mkdir(parents=True, exist_ok=True)
        self.files = files or keep.folder and Checkpoints(keep.folder / "checkpoints", name, keep.checkpoints)
        self.modules, self.optimizers, self.board = {}, {}, None

    def resume(self, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> int:
        """Restores the newest intact checkpoint, if there is one, and returns the steps done.

        Later checkpoints hold the same modules and optimizers. All ranks resume from what rank 0 found. Raises
        ValueError for a checkpoint of another model, for one of more steps than requested, and for a NAME.jsonl that
        is no log.
        """
        self.modules, self.optimizers = modules, optimizers
        if not self.files:
            return 0
        if self.leader:
            remove_parts(self.files.folder)
        if self.leader or self.files.of_every_rank:
            self.done, passed_over = self.files.load(modules, optimizers)
            for sentence in passed_over:
                self.say(sentence)
        if not self.files.of_every_rank:
            self.done = share_from_first(self.done, lambda: state_tensors(modules, optimizers).values())
        if self.done > self.total:
            raise ValueError(f"{self.files.folder} holds {self.name} after {self.done} steps; ask for at least as "
                             f"many, not {self.total}, or name another folder")
        if self.leader:
            forget_rows(self.keep.folder / f"{self.name}.jsonl", self.done)
            if self.keep.on_resume:
                self.keep.on_resume()
        return self.done

    def __iter__(self) -> Iterator[int]:
        """The remaining steps, counted from 0. Raises KeyboardInterrupt between two steps after Ctrl-C or SIGTERM."""
        with tqdm(total=self.total, initial=self.done, desc=self.name, mininterval=5,
                  disable=not (self.keep.progress and self.leader)) as self.bar, _Stop(self) as stop:
            for step in range(self.done, self.total):
                self.started = time.perf_counter()
                yield step
                self.done = step + 1
                self.bar.update()
                stopped = stop.asked()
                if stopped or self.done % self.keep.checkpoint_every == 0 or self.done == self.total:
                    self._save()
                if stopped:
                    if not self.leader:
                        raise SystemExit(130)  # rank 0 prints the message
                    raise KeyboardInterrupt(f"stopped after step {self.done}; run the same command again to resume")
        if self.board:
            self.board.close()

    def logs(self, step: int) -> bool:
        """Whether the figures of this step are logged."""
        return step % self.keep.log_every == 0 or step == self.total - 1

    def record(self, grad_norm: Tensor, rare: Mapping[str, float] = {}, **values: Tensor | float) -> None:
        """Logs the figures of the current step to NAME.jsonl, TensorBoard and the bar, every `log_every` steps.

        `rare`: figures that few steps have; such steps are always logged.
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
        """Prints a line above the bar; if one rank keeps the files for all, only on that one."""
        if self.leader or self.files and self.files.of_every_rank:
            tqdm.write(visible(f"{self.name}: {sentence}"), file=sys.stderr)

    def _watch(self, step: int, norm: float) -> None:
        """Counts consecutive steps whose gradient is not finite (they changed nothing); too many end the run."""
        self.bad = 0 if math.isfinite(norm) else self.bad + 1
        if self.bad == 1:
            self.say(f"the gradient of step {step} is not finite; the weights stay as they were")
        if self.bad == BAD_STEPS:
            where = f"; the checkpoints in {self.files.folder} are from before" if self.files else ""
            raise FloatingPointError(f"the gradients of the {BAD_STEPS} steps up to {step} are not finite: lower the "
                                     f"learning rate{where}")

    def _save(self) -> None:
        if not self.files or not (self.leader or self.files.of_every_rank) or self.bad:
            return  # after bad steps: it would displace a checkpoint from before them
        try:
            self.files.save(self.done, self.modules, self.optimizers)
        except OSError as error:
            if self.done == self.total:
                raise
            self.say(f"no checkpoint at step {self.done}: {error}; the one before is kept")

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        line = json.dumps({"step": step} | {name: _json(value) for name, value in row.items()}) + "\n"
        try:
            with (self.keep.folder / f"{self.name}.jsonl").open("a") as file:
                file.write(line)
            if self.keep.tensorboard:
                self._to_tensorboard(step, row)
        except OSError as error:  # a full disk costs figures, not the run
            if self.writes:
                self.say(f"figures are missing from step {step} on: {error}, in {self.keep.folder}; training continues")
            self.writes = False

    def _to_tensorboard(self, step: int, row: Mapping[str, float]) -> None:
        if self.board is None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.keep.folder / "tensorboard" / self.name), purge_step=step)
        for name, value in row.items():
            self.board.add_scalar(name, value, step)


class _Stop:
    """Ctrl-C or SIGTERM, with which schedulers stop a job, during a run with checkpoints: takes effect at the end of
    the step. A second one stops at once."""

    def __init__(self, run: Run):
        self.run, self.noted, self.before = run, False, {}

    def __enter__(self) -> "_Stop":
        if self.run.files and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                if before != signal.SIG_IGN:  # as for Ctrl-C, by the shell of a background job
                    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                    self.before[number] = usual if before is None else before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, before in self.before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, before)

    def asked(self) -> bool:
        """Whether any rank got a signal; the same on all ranks, which stop after the same step."""
        return bool(self.run.files) and any_rank(self.noted)

    def _note(self, *_) -> None:
        self.noted = True
        for number, before in self.before.items():
            signal.signal(number, before)
        if self.run.leader:
            self.run.say("stopping at the end of this step; Ctrl-C again stops at once")


def _json(value: float) -> float | str:
    """`value` for JSON, which has no NaN."""
    return value if math.isfinite(value) else str(value)
