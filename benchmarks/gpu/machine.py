"""The device of the checks, and how runs are timed on it."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from benchmarks.gpu.rows import LEFT_OUT, Row, attempt
from benchmarks.measure import count_flops
from minicogvx.compat import choose_dtype

FORMATS = ("float32", "bfloat16")  # for parity checks


@dataclass(frozen=True)
class Machine:
    """A device, the dtype of measurements, and the best rates of matrix products, in operations per second."""

    device: torch.device
    dtype: torch.dtype
    rates: dict[str, float] = field(default_factory=dict)  # by name of the dtype

    @property
    def numbers(self) -> str:
        """The name of `dtype`."""
        return str(self.dtype).removeprefix("torch.")

    def format(self, name: str) -> torch.dtype:
        """The dtype called `name`. Raises ValueError, in one sentence, if the device cannot compute in it."""
        return choose_dtype(self.device, name)

    def share(self, flops: int, seconds: float) -> float | None:
        """The share of the best rate in `dtype`; None if that was not measured."""
        rate = self.rates.get(self.numbers)
        return flops / seconds / rate if rate else None

    def wait(self) -> None:
        """Waits until the device is idle."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()

    def timed(self, run: Callable[[], object]) -> tuple[object, float, int | None]:
        """The result of `run`, its seconds, and on CUDA the peak of allocated bytes."""
        on_cuda = self.device.type == "cuda"
        self.wait()
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        result = run()
        self.wait()
        seconds = time.perf_counter() - start
        return result, seconds, torch.cuda.max_memory_allocated(self.device) if on_cuda else None


def in_each_format(check: str, machine: Machine, run: Callable[[str], Iterator[Row]]) -> Iterator[Row]:
    """The rows of `run` for each of FORMATS by its name: one may fail or not fit where the other passes."""
    for numbers in FORMATS:
        try:
            machine.format(numbers)
        except ValueError as error:
            yield Row(check, numbers=numbers, result=LEFT_OUT, reason=str(error))
        else:
            yield from attempt(check, numbers, lambda: run(numbers))


@dataclass(frozen=True)
class Speed:
    """The speed of one program."""

    result: object
    seconds: float
    memory: int | None
    flops: int


def speeds(machine: Machine, runs: list[Callable[[], object]], rounds: int) -> list[Speed]:
    """Runs each program once, to warm up and to count operations, then in turn, A B A B; medians of `rounds`."""
    warm = [count_flops(run) for run in runs]
    taken = [[machine.timed(run)[1:] for run in runs] for _ in range(rounds)]
    found = []
    for (result, flops), rounds_of_one in zip(warm, zip(*taken)):
        seconds, memory = zip(*rounds_of_one)
        found.append(Speed(result, statistics.median(seconds), memory[-1], flops))
    return found


def matrix_product_rate(machine: Machine, name: str, size: int, runs: int = 8) -> float:
    """The best rate of a `size` x `size` matrix product in the dtype `name`, in operations per second."""
    a, b = (torch.randn(size, size, device=machine.device).to(machine.format(name)) for _ in range(2))
    out = torch.mm(a, b)
    return 2 * size**3 / min(machine.timed(lambda: torch.mm(a, b, out=out))[1] for _ in range(runs))
