"""Measuring two programs: first agreement, then time in alternating runs, then memory in fresh processes."""

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

_CPU_ATTENTION = {  # the counter has only the GPU's kernels
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
}


@dataclass(frozen=True)
class Timing:
    """Seconds of each run; runs i of both programs were consecutive."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        """How many times faster ours is, by the medians."""
        return statistics.median(self.theirs) / statistics.median(self.ours)

    @property
    def spread(self) -> tuple[float, float]:
        """Quartiles of the ratio over consecutive runs."""
        low, _, high = statistics.quantiles([b / a for a, b in zip(self.ours, self.theirs)], n=4, method="inclusive")
        return low, high


def alternate(ours: Callable[[], object], theirs: Callable[[], object], seconds: float, at_least: int = 3,
              at_most: int = 21) -> Timing:
    """Times both in turn, A B A B, so that other load affects both equally; about `seconds` in total."""
    gc.collect()
    gc.disable()  # no garbage collection during a run
    try:
        timing, start = Timing([], []), time.perf_counter()
        while len(timing.ours) < at_least or (time.perf_counter() - start < seconds and len(timing.ours) < at_most):
            for run, times in ((ours, timing.ours), (theirs, timing.theirs)):
                begin = time.perf_counter()
                run()
                times.append(time.perf_counter() - begin)
    finally:
        gc.enable()
    return timing


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest ||a - b|| / ||b|| of two lists of tensors; infinite where shapes differ or a value is not finite."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            return float("inf")
        worst = max(worst, ((a.double() - b.double()).norm() / b.double().norm()).item())
    return worst


def count_flops(run: Callable[[], object]) -> tuple[object, int]:
    """The result of `run`, and its floating-point operations in convolutions, matrix products and attention."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        result = run()
    return result, counter.get_total_flops()


# ---- memory


def peak_memory(case, who: str) -> int | None:
    """Bytes that one run of `case` adds to the loaded model, in a process of its own; None if unknown here."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("forkserver")  # imports only once; children are forked from it
    context.set_forkserver_preload(["benchmarks.sides"])
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(case, who, torch.get_num_threads(), send))
    child.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise RuntimeError(f"measuring the memory of {who} in {case.part} failed; the reason is above") from None
    finally:
        child.join()


M_MMAP_THRESHOLD = -3  # of malloc.h


def _child(case, who: str, threads: int, send) -> None:
    torch.set_num_threads(threads)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)  # freed blocks are returned at once: memory held is memory used
    side = case.side(who)
    for _ in range(2):  # loads kernels; in training it also creates the optimizer's state
        side.run(side.inputs(small=True))
    inputs = side.inputs()
    gc.collect()
    send.send(peak_of(lambda: side.run(inputs)))


def peak_of(run: Callable[[], object]) -> int:
    """Peak bytes of resident memory that `run` adds. Linux only."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark
    run()
    return max(_status("VmHWM") - before, 0)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
