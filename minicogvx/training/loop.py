"""The training loop, the only one: of the transformer, of the VAE, and of the studies' variants.

    fit(task, data, Run("transformer", len(data), keep, ranks), rate)

The task (`TransformerTask`, `VAETask`) computes. `data[step]` is what it computes with: the forward passes of a step, a
list, with everything that is random in them. The run (run.py) keeps checkpoints and figures, and resumes.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minicogvx.training.run import Run


@runtime_checkable
class Task(Protocol):
    """What a step computes."""

    def backward(self, batch: Any, progress: float, last: bool = True) -> dict[str, Tensor]:
        """One forward and backward pass: adds its gradients, and returns its share of the figures, by name.

        `progress`: the share of the training that is done, 0..1. `last`: whether it is the last pass of the step.
        """

    def update(self, step: int, rate: float) -> Tensor:
        """Updates the weights, at `rate` times the learning rate; returns the norm of the gradient."""

    def state(self) -> dict[str, Tensor]:
        """The complete state, by name: the tensors themselves, so that loading can write into them."""

    def restored(self) -> None:
        """Called after they were written into."""


@runtime_checkable
class Watcher(Protocol):
    """Measures a task now and then, on all ranks: the loss on clips held back, say, or samples."""

    every: int  # steps

    def __call__(self, step: int, task: Task) -> Mapping[str, float]:
        """The figures, by name, after `step` steps."""


def fit(task: Task, data: Dataset, run: Run, rate: Callable[[int], float], watchers: Sequence[Watcher] = (),
        workers: int = 0) -> None:
    """Trains `task` on `data` to the end of `run`.

    Args:
        rate: the learning rate of each step, as a factor.
        workers: processes that read data ahead; 0: data are read between the steps.
    """
    run.resume(task.state(), task.restored)
    with closing(read_ahead(data, run, workers)) as steps:
        for step, passes in steps:
            figures = [task.backward(batch, run.progress, batch is passes[-1]) for batch in passes]
            run.end_step(task.update(step, rate(step)))
            measured = {}
            for watcher in watchers:
                if (step + 1) % watcher.every == 0:
                    measured |= watcher(step + 1, task)
            run.record(figures, passes, measured)


def read_ahead(data: Dataset, run: Run, workers: int = 0) -> Iterator[tuple[int, Any]]:
    """The remaining steps of `run`, and their data; with workers read ahead of time, in other processes."""
    ahead = iter(DataLoader(data, batch_size=None, sampler=range(run.done, run.total), num_workers=workers,
                            collate_fn=_as_it_is, worker_init_fn=_ignore_signals,
                            prefetch_factor=2 if workers else None,
                            generator=torch.Generator()))  # without one, its seed is drawn from the one that trains
    try:
        for step in run:
            before = time.perf_counter()
            passes = next(ahead)
            run.waited = time.perf_counter() - before
            yield step, passes
    finally:
        if workers:
            ahead._shutdown_workers()  # at once: an error would keep them, and they ignore signals


def _ignore_signals(worker: int) -> None:
    """Ctrl-C reaches all processes of a run. Which step is the last, its own process decides, and ends these then."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(passes: Any) -> Any:
    return passes
