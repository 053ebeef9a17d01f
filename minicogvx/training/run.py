"""One training run as both trainers see it: an iterator over its steps that keeps what must not be lost.

    run = Run("transformer", steps, keep)
    run.resume(modules, optimizers)
    for step in run:
        ...
        run.record(grad_norm, loss=loss)

It begins where the newest whole checkpoint ends, writes checkpoints and figures while the loop turns, and ends a run
whose gradients are no numbers any more. Ctrl-C ends it at the end of a step, with a checkpoint.
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

from minicogvx.files import remove_parts, written_whole
from minicogvx.training.agreement import any_rank, share_from_first
from minicogvx.training.checkpoints import Checkpoints, Files, Optimizers, state_tensors
from minicogvx.training.limits import check_limits

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
    on_resume: Callable[[], None] | None = None  # called on the first rank once a run is accepted, before its steps

    def __post_init__(self):
        check_limits(self, {"checkpoint_every checkpoints log_every": "1 or more"})
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

        What is given here is what later checkpoints hold. All ranks go on from what the first one found. Raises
        ValueError for a checkpoint of another model, and for one of more steps than are asked for.
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
            _forget_rows(self.keep.folder / f"{self.name}.jsonl", self.done)
            if self.keep.on_resume:
                self.keep.on_resume()
        return self.done

    def __iter__(self) -> Iterator[int]:
        """The steps that are left, counted from 0. Raises KeyboardInterrupt between two of them after Ctrl-C."""
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
                        raise SystemExit(130)  # the first rank says it for all
                    raise KeyboardInterrupt(f"stopped after step {self.done}; run the same command again to resume")
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
            self.say(f"no checkpoint at step {self.done}: {error}; the one before stays")

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        line = json.dumps({"step": step} | {name: _json(value) for name, value in row.items()}) + "\n"
        try:
            with (self.keep.folder / f"{self.name}.jsonl").open("a") as file:
                file.write(line)
            if self.keep.tensorboard:
                self._to_tensorboard(step, row)
        except OSError as error:  # a full disk costs figures, not the run
            if self.writes:
                self.say(f"figures are missing from step {step} on: {error}, in {self.keep.folder}; training goes on")
            self.writes = False

    def _to_tensorboard(self, step: int, row: Mapping[str, float]) -> None:
        if self.board is None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.keep.folder / "tensorboard" / self.name), purge_step=step)
        for name, value in row.items():
            self.board.add_scalar(name, value, step)


class _Stop:
    """Ctrl-C during a run that keeps checkpoints: noted, and asked for at the end of the step. A second one ends it."""

    def __init__(self, run: Run):
        self.run, self.noted, self.before = run, False, None

    def __enter__(self) -> "_Stop":
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # by a shell that has put us into the background
        if self.run.files and not ignored and threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._note) or signal.default_int_handler
        return self

    def __exit__(self, *_) -> None:
        if self.before is not None and signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, self.before)

    def asked(self) -> bool:
        """Whether a rank was told to stop; alike on all ranks, which stop after the same step."""
        return bool(self.run.files) and any_rank(self.noted)

    def _note(self, *_) -> None:
        self.noted = True
        signal.signal(signal.SIGINT, self.before)
        if self.run.leader:
            self.run.say("stopping at the end of this step; Ctrl-C again stops at once")


def _json(value: float) -> float | str:
    """JSON has no NaN."""
    return value if math.isfinite(value) else str(value)


def _forget_rows(path: Path, done: int) -> None:
    """Drops the rows of steps that will be taken again, and a last line that a crash has cut."""
    if not path.exists():
        return
    lines, kept = path.read_bytes().splitlines(keepends=True), []
    for line in lines:
        try:
            if json.loads(line)["step"] < done and line.endswith(b"\n"):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    if kept != lines:  # where there is nothing to drop, a full disk is no matter
        with written_whole(path) as part:
            part.write_bytes(b"".join(kept))
