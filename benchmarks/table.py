"""The results as an aligned table, as GitHub markdown, or as JSON."""

import os
import platform
import statistics
from dataclasses import dataclass
from importlib import metadata

import torch

from benchmarks.cases import NAMES, Case
from benchmarks.measure import Timing
from minicogvx.speedrun.machine import processor


@dataclass(frozen=True)
class Row:
    """The result of one case. `timing` is None if the two programs disagree: then nothing was timed."""

    case: Case
    difference: float
    flops: tuple[int, int]  # of one run, ours and theirs
    timing: Timing | None = None
    memory: tuple[int | None, int | None] = (None, None)

    @property
    def verdict(self) -> str:
        if self.timing is None:
            return f"DISAGREE: differs by {self.difference:.1e}, allowed is {self.case.tolerance:.0e}"
        low, high = self.timing.spread
        if low <= 1 <= high or abs(self.timing.ratio - 1) < 0.02:
            return "no difference"
        return "faster" if self.timing.ratio > 1 else "SLOWER than diffusers"

    @property
    def medians(self) -> tuple[float, float]:
        """Seconds, ours and theirs."""
        return statistics.median(self.timing.ours), statistics.median(self.timing.theirs)

    @property
    def memory_ratio(self) -> float | None:
        """Ours divided by theirs: below 1 is less."""
        ours, theirs = self.memory
        return ours / theirs if ours is not None and theirs else None


MAIN = ("part", "operation", "numbers", "minicogvx ms", "diffusers ms", "times faster", "quartiles", "verdict",
        "memory MB", "diffusers MB", "memory ratio", "outputs differ by")


def main_cells(row: Row) -> tuple[str, ...]:
    """One line of the main table."""
    case, ours, theirs = row.case, *row.memory
    names = (case.part, case.operation, NAMES[case.dtype])
    if row.timing is None:
        return *names, *4 * ("-",), row.verdict, *3 * ("-",), f"{row.difference:.0e}"
    low, high = row.timing.spread
    return (*names, *(f"{1e3 * seconds:.1f}" for seconds in row.medians), f"{row.timing.ratio:.2f}",
            f"{low:.2f}-{high:.2f}", row.verdict,
            *("-" if size is None else f"{size / 1e6:.0f}" for size in (ours, theirs)),
            "-" if row.memory_ratio is None else f"{row.memory_ratio:.2f}", f"{row.difference:.0e}")


SHARE = ("training step of", "numbers", "GFLOP", "GFLOP/s", "share of ceiling", "diffusers GFLOP", "diffusers GFLOP/s",
         "diffusers share")


def share_cells(row: Row, ceilings: dict[torch.dtype, float]) -> tuple[str, ...]:
    """One line of the table of training steps' share of the peak rate."""
    label = row.case.part + row.case.operation.removeprefix("training step")
    cells = [label, NAMES[row.case.dtype]]
    for flops, seconds in zip(row.flops, row.medians):
        rate = flops / seconds
        cells += [f"{flops / 1e9:.1f}", f"{rate / 1e9:.0f}", f"{100 * rate / ceilings[row.case.dtype]:.0f} %"]
    return tuple(cells)


def is_training(row: Row) -> bool:
    """Whether `row` timed a training step."""
    return row.case.operation.startswith("training step") and row.timing is not None


def render(header: tuple[str, ...], lines: list[tuple[str, ...]], markdown: bool) -> str:
    """A table with names aligned to the left and numbers to the right."""
    widths = [max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]
    left = [not any(line[i][:1].isdigit() for line in lines) for i in range(len(header))]
    rows = [[cell.ljust(w) if is_left else cell.rjust(w) for cell, w, is_left in zip(line, widths, left)]
            for line in (header, *lines)]
    if not markdown:
        return "\n".join("  ".join(row).rstrip() for row in rows)
    rule = ["-" * w if is_left else "-" * (w - 1) + ":" for w, is_left in zip(widths, left)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def report(rows: list[Row], ceilings: dict[torch.dtype, float], markdown: bool) -> str:
    """Machine, main table, shares of the peak rate, and the cases that were slower or disagreed."""
    parts = [", ".join(f"{name} {value}" for name, value in {**machine(), **versions()}.items()),
             render(MAIN, [main_cells(row) for row in rows], markdown)]
    training = [share_cells(row, ceilings) for row in rows if is_training(row)]
    if training:
        best = ", ".join(f"{NAMES[dtype]} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in ceilings.items())
        parts += [f"Ceiling, the best matrix product (2048 x 2048): {best}.", render(SHARE, training, markdown)]
    bad = [f"{row.case.part}, {row.case.operation}, {NAMES[row.case.dtype]}: {row.verdict}" for row in rows
           if row.verdict not in ("faster", "no difference")]
    parts.append("\n".join(["Worse than diffusers, or not comparable:", *(f"- {line}" for line in bad)]) if bad else
                 "No case is slower than diffusers.")
    return "\n\n".join(parts)


def as_json(rows: list[Row], ceilings: dict[torch.dtype, float]) -> dict:
    """All measurements, without a date."""
    return {"machine": machine(), "versions": versions(),
            "ceiling_flops_per_second": {NAMES[dtype]: rate for dtype, rate in ceilings.items()},
            "cases": [_row_as_json(row) for row in rows]}


def _row_as_json(row: Row) -> dict:
    case = row.case
    values = {"part": case.part, "operation": case.operation, "numbers": NAMES[case.dtype], "verdict": row.verdict,
              "difference": row.difference if row.difference < float("inf") else None, "tolerance": case.tolerance,
              "flops": dict(zip(("minicogvx", "diffusers"), row.flops))}
    if row.timing is not None:
        values |= {"seconds": {"minicogvx": row.timing.ours, "diffusers": row.timing.theirs},
                   "times_faster": row.timing.ratio, "times_faster_quartiles": row.timing.spread,
                   "peak_memory_bytes": dict(zip(("minicogvx", "diffusers"), row.memory)),
                   "memory_ratio": row.memory_ratio}
    return values


def machine() -> dict[str, str | int]:
    """The CPU, the cores that this process may use, and its threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": processor(), "cores": cores, "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    """Versions of Python and of the relevant packages."""
    packages = ("torch", "diffusers", "minicogvx")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
