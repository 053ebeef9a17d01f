"""A training run: its steps, its checkpoints and its figures.

It starts after the newest intact checkpoint, writes checkpoints and figures as it goes, and stops if the gradients are
no longer finite. Ctrl-C stops it at the end of a step, with a checkpoint.
"""

import json
import math
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from minicogvx.engine.checkpoints import Checkpoints
from minicogvx.engine.limits import check_limits
from minicogvx.engine.ranks import Ranks, any_rank
from minicogvx.engine.run_folder import forget_rows
from minicogvx.engine.sharding import mean_over_ranks
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
    on_checkpoint: Callable[[int], None] | None = None  # with its step, on every rank, when it begins to be written

    def __post_init__(self):
        check_limits(self, {"checkpoint_every checkpoints log_every": "1 or more"})
        if self.tensorboard and find_spec("tensorboard") is None:
            raise ValueError("tensorboard is not installed; pip install tensorboard, or leave it out")


class Run:
    """The steps of one training. `done`: how many were taken."""

    def __init__(self, name: str, total: int, keep: Keep = Keep(), ranks: Ranks = Ranks()):
        self.name, self.total, self.keep, self.ranks = name, total, keep, ranks
        self.done = self.before = self.bad = 0  # before: how many of the steps an earlier run took
        self.waited = 0.0  # seconds, for the data of the current step
        if keep.folder and ranks.first:
            keep.folder.mkdir(parents=True, exist_ok=True)
        self.files = keep.folder and Checkpoints(keep.folder / "checkpoints", name, ranks, keep.checkpoints)
        self.state, self.log = {}, _Log(self)
        self.recent = deque(maxlen=keep.log_every)  # what the bar averages: first figures of the latest steps

    @property
    def progress(self) -> float:
        """The share of the training that is done, 0..1."""
        return self.done / self.total

    def resume(self, state: Mapping[str, Tensor], restored: Callable[[], None] = lambda: None) -> int:
        """Restores the newest intact checkpoint, if there is one, and returns the steps done.

        All ranks resume from what rank 0 found. Raises ValueError for a checkpoint of another model, for one of more
        steps than requested, and for a NAME.jsonl that is no log.
        """
        self.state = state
        if not self.files:
            return 0
        if self.ranks.first:
            remove_parts(self.files.folder)
        self.done, passed_over = self.files.load(state)
        for sentence in passed_over:
            self.say(sentence)
        if self.done > self.total:
            raise ValueError(f"{self.files.folder} holds {self.name} after {self.done} steps; ask for at least as "
                             f"many, not {self.total}, or name another folder")
        self.before = self.done
        if self.done:
            restored()
        if 0 < self.done < self.total:
            self.say(f"resuming at step {self.done} of {self.total}")
        if self.ranks.first:
            forget_rows(self.keep.folder / f"{self.name}.jsonl", self.done)
            if self.keep.on_resume:
                self.keep.on_resume()
        return self.done

    def __iter__(self) -> Iterator[int]:
        """The remaining steps, counted from 0. Raises KeyboardInterrupt between two steps after Ctrl-C or SIGTERM."""
        with self._written(), tqdm(total=self.total, initial=self.done, desc=self.name, mininterval=5,
                                   disable=not (self.keep.progress and self.ranks.first)) as self.bar, _Stop(
                                       self) as stop:
            for step in range(self.done, self.total):
                self.started = time.perf_counter()
                yield step
                self.done = step + 1
                self.bar.update()
                stopped = stop.asked()
                if stopped or self.done % self.keep.checkpoint_every == 0 or self.done == self.total:
                    self._save()
                if stopped:
                    self._settle()
                    if not self.ranks.first:
                        raise SystemExit(130)  # rank 0 prints the message
                    raise KeyboardInterrupt(f"stopped after step {self.done}; run the same command again to resume")
        self._settle(last=True)
        self.log.close()

    def logs(self, step: int) -> bool:
        """Whether the figures of this step are logged."""
        return step % self.keep.log_every == 0 or step == self.total - 1

    def end_step(self, grad_norm: Tensor) -> None:
        """Takes the time of the current step, so without what is measured after it.

        Raises FloatingPointError once `BAD_STEPS` in a row had no finite gradient.
        """
        self.grad_norm = float(grad_norm)  # waits for the device
        self.seconds = time.perf_counter() - self.started
        self._watch(self.done, self.grad_norm)

    def record(self, figures: Sequence[Mapping[str, Tensor]], passes: Sequence[Any] = (),
               measured: Mapping[str, float] = {}) -> None:
        """Logs the figures of the current step to NAME.jsonl and TensorBoard, every `log_every` steps.

        The bar shows the mean of the first figure (the loss; for a VAE the PSNR) over the latest `log_every` steps, on
        this rank alone. `end_step` has waited for the device, so to read it in every step costs nothing.

        Args:
            figures: of each pass, its share of a mean.
            passes: their tokens are counted.
            measured: figures of watchers, which few steps have; such steps are always logged.
        """
        if self.keep.progress and self.ranks.first and figures:
            first = next(iter(figures[0]))
            self.recent.append(sum(float(one[first]) for one in figures))
            self.bar.set_postfix({f"mean {first}": f"{sum(self.recent) / len(self.recent):.3f}"}, refresh=False)
        if not (measured or self.logs(self.done)):
            return
        names = dict.fromkeys(name for one in figures for name in one)
        row = {name: float(sum(one[name] for one in figures if name in one)) for name in names}
        row = mean_over_ranks(row, self.ranks) | dict(measured) | {"grad_norm": self.grad_norm}
        if not self.ranks.first:
            return
        row |= {"seconds": self.seconds, "waiting": self.waited / self.seconds}  # waiting for data: a share of the time
        if tokens := sum(getattr(one, "tokens", 0) for one in passes):
            row["tokens_per_second"] = tokens * self.ranks.teams / self.seconds
        if room := sum(getattr(one, "room", 0) for one in passes):
            row["fill"] = tokens / room  # of the packs
        self.log.write(self.done, row)

    def say(self, sentence: str) -> None:
        """Prints a line above the bar, on the first rank."""
        if self.ranks.first:
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
        """Begins to write a checkpoint; after bad steps none, as it would displace one from before them."""
        self._settle()
        if self.files and not self.bad:
            self.files.save(self.done, self.state)
            if self.keep.on_checkpoint:
                self.keep.on_checkpoint(self.done)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """However the steps end, the checkpoint that is being written is written to its end."""
        try:
            yield
        finally:
            if self.files:
                self.files.wait()

    def _settle(self, last: bool = False) -> None:
        """Waits for the checkpoint that is being written. One that fails ends the run only if it is the `last`."""
        try:
            if self.files:
                self.files.settle()
        except OSError as error:
            if last:
                raise
            self.say(f"{error}; the checkpoint before it is kept")


class _Log:
    """The figures of a run, a line a step: NAME.jsonl, and TensorBoard if asked for."""

    def __init__(self, run: Run):
        self.run, self.keep, self.board = run, run.keep, None
        self.writes = True  # false once the disk was full: that costs figures, not the run

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Appends a line. Without a folder, does nothing."""
        if not self.keep.folder:
            return
        line = json.dumps({"step": step} | {name: _json(value) for name, value in row.items()}) + "\n"
        try:
            with (self.keep.folder / f"{self.run.name}.jsonl").open("a") as file:
                file.write(line)
            if self.keep.tensorboard:
                self._to_tensorboard(step, row)
        except OSError as error:
            if self.writes:
                self.run.say(f"figures are missing from step {step} on: {error}, in {self.keep.folder}; training "
                             f"continues")
            self.writes = False

    def _to_tensorboard(self, step: int, row: Mapping[str, float]) -> None:
        if self.board is None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.keep.folder / "tensorboard" / self.run.name), purge_step=step)
        for name, value in row.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """After the last line."""
        if self.board:
            self.board.close()


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
        self.run.say("stopping at the end of this step; Ctrl-C again stops at once")


def _json(value: float) -> float | str:
    """`value` for JSON, which has no NaN."""
    return value if math.isfinite(value) else str(value)
