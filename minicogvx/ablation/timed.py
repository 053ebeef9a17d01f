"""Training for so many seconds instead of steps, by the same loop: `fit(task, TimedSteps(..), TimedRun(..), ..)`."""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from torch import Tensor
from torch.utils.data import Dataset

from minicogvx.engine.optim import warmup_cosine
from minicogvx.training.batches import Pass, Steps
from minicogvx.training.run import Keep, Run
from minicogvx.training.stages import Stage

_ENDLESS = 10**9  # steps
_TICKS, _WARMUP = 10_000, 200  # time steps of the schedule; warm-up is the first fiftieth


class TimedRun(Run):
    """A run of so many seconds, which its stages share in proportion to their `steps`. It logs and keeps nothing.

    The clock runs from the drawing of a step's data to the end of its update, so not while something is measured.
    """

    def __init__(self, name: str, stages: Sequence[Stage], seconds: float, now: Callable[[], float] = time.perf_counter,
                 on_second: Callable[[str], None] | None = None,
                 schedule: Callable[[int, int, int], float] = warmup_cosine):
        """`now`: the clock. `on_second(name)` is called after each second. `schedule`: see `engine/optim.py`."""
        super().__init__(name, _ENDLESS, Keep(progress=False))
        self.stages, self.limit, self.now, self.on_second = stages, seconds, now, on_second
        self.schedule = schedule
        self.used = 0.0  # seconds
        self.ends = list(accumulate(stage.steps for stage in stages))

    @property
    def progress(self) -> float:
        """The share of the seconds that is used, 0 to 1 or, after a last step that was slow, above."""
        return self.used / self.limit

    @property
    def stage(self) -> int:
        """The number of the stage of the next step; at the end of the run, the number of stages."""
        return bisect_right([end / self.ends[-1] for end in self.ends], self.progress)

    def rate(self, step: int) -> float:
        """The learning rate, as a factor: one warm-up and one schedule over all seconds, times the stage's own."""
        schedule = self.schedule(int(_TICKS * self.progress), _TICKS, _WARMUP)
        return self.stages[self.stage].learning_rate_factor * schedule

    def __iter__(self) -> Iterator[int]:
        """The number of each step, as long as seconds are left. Starts the clock."""
        while self.progress < 1:
            self.started, self.began = time.perf_counter(), self.now()
            yield self.done
            self.done += 1

    def end_step(self, grad_norm: Tensor) -> None:
        """Stops the clock. Raises what `Run.end_step` raises."""
        super().end_step(grad_norm)
        before = int(self.used)
        self.used += self.now() - self.began
        for _ in range(before, int(min(self.used, self.limit))):
            if self.on_second:
                self.on_second(self.name)

    def logs(self, step: int) -> bool:
        """Nothing is logged."""
        return False


class TimedSteps(Dataset):
    """The next step of the stage that the run has come to. Counts clips and tokens."""

    def __init__(self, steps: Steps, run: TimedRun):
        self.steps, self.run, self.taken = steps, run, [0] * len(steps.sets)
        self.clips = self.tokens = 0

    def __getitem__(self, step: int) -> list[Pass]:
        stage = self.run.stage
        passes = self.steps.of_stage(stage, self.taken[stage], step)
        self.taken[stage] += 1
        self.clips += sum(len(one.examples) for one in passes)
        self.tokens += sum(one.tokens for one in passes)
        return passes
