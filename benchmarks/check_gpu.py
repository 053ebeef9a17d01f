"""Checks for a GPU: parity with diffusers, packing, FSDP, torch.compile and speed, in 8 minutes.

    python -m benchmarks.check_gpu [--only WORDS] [--minutes 8] [--json FILE] [--markdown] [--device cpu --tiny]

Random weights at the published sizes; nothing is downloaded. What does not fit on the GPU is reported as a row.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import table
from benchmarks.gpu import compiling, packing, parity, rows, sharding, speed
from benchmarks.gpu.machine import FORMATS, Machine, matrix_product_rate
from benchmarks.gpu.rows import Row
from benchmarks.gpu.sizes import PUBLISHED, TINY, Sizes
from minicogvx.compat import choose_device, choose_dtype

Check = Callable[[Machine, Sizes], Iterator[Row]]

# The least important, and compiling, whose time is unpredictable, come last, in case time runs out.
CHECKS: dict[str, Check] = {
    "parity 2b": parity.transformer("2b"), "parity 5b": parity.transformer("5b"), "parity vae": parity.vae,
    "packed": packing.packed, "fsdp": sharding.fsdp, "speed 5b": speed.transformer, "speed vae": speed.vae,
    "large decode": speed.large_decode, "compile transformer": compiling.transformer, "compile vae": compiling.vae,
}


class OutOfTime(BaseException):
    """The time is up. Not an Exception, which libraries with fallbacks would catch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks, prints, writes. Returns 1 if two programs disagree, a parity check fails, or nothing could be checked."""
    options = _parse(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    checks = {name: check for name, check in CHECKS.items() if all(word in name for word in options.only.split())}
    try:
        if not checks:
            raise ValueError(f"no check has {options.only!r} in its name; the checks are {', '.join(CHECKS)}")
        device = _device(options)
        machine = Machine(device, choose_dtype(device, options.dtype, training=True))
        options.json.parent.mkdir(parents=True, exist_ok=True)
        with _exact_float32():
            found, machine = run(machine, TINY if options.tiny else PUBLISHED, checks, deadline, options.json)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(report(found, machine, options.markdown))
    print(f"\nevery figure: {options.json}")
    return int(any(is_bad(row) for row in found))


def run(machine: Machine, sizes: Sizes, checks: dict[str, Check], deadline: float,
        path: Path) -> tuple[list[Row], Machine]:
    """The rows of all checks, and the machine with its rates; the file at `path` is rewritten after each check."""
    machine, found, start = _with_rates(machine, sizes), [], time.monotonic()
    for name, check in checks.items():
        print(f"[{time.monotonic() - start:.0f} s] {name}", file=sys.stderr)
        found += run_check(name, check, machine, sizes, deadline)
        write(path, found, machine)
    return found, machine


def run_check(name: str, check: Check, machine: Machine, sizes: Sizes, deadline: float) -> list[Row]:
    """The rows of one check; at the deadline (of `time.monotonic`) it is stopped, and a row reports it."""
    found: list[Row] = []
    if time.monotonic() >= deadline:
        return [Row(name, result=rows.LEFT_OUT, reason="the time was up before it began; raise --minutes")]
    try:
        with _alarm(deadline):
            for row in rows.attempt(name, "", lambda: check(machine, sizes)):
                found.append(row)
    except OutOfTime:
        found.append(Row(name, result=rows.LEFT_OUT, reason="cut off when the time was up; raise --minutes"))
    rows.give_back_memory()
    return found


def is_bad(row: Row) -> bool:
    """Whether this row makes the command fail."""
    return row.result == rows.DISAGREES or row.result == rows.FAILED and row.check.startswith("parity")


def report(found: list[Row], machine: Machine, markdown: bool) -> str:
    """The machine, the table, and a list of rows that need attention."""
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in machine.rates.items())
    parts = [", ".join(f"{name} {value}" for name, value in _about(machine).items()),
             f"Peak, the best large matrix product: {rates}.",
             table.render(rows.COLUMNS, [rows.cells(row) for row in found], markdown)]
    odd = [f"- {row.check}, {row.part or 'as a whole'}, {row.numbers or 'any format'}: {row.result}"
           for row in found if row.result not in (rows.AGREES, rows.MEASURED)]
    return "\n\n".join([*parts, "\n".join(["To look at:", *odd]) if odd else "Every check ran, and all agree."])


def write(path: Path, found: list[Row], machine: Machine) -> None:
    """Writes everything as JSON, by way of a temporary file, so that a killed run leaves no incomplete one."""
    values = {"machine": _about(machine), "versions": table.versions(),
              "matrix_product_flops_per_second": machine.rates, "rows": [rows.as_json(row) for row in found]}
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
    os.replace(beside, path)


def _about(machine: Machine) -> dict[str, str | int | float]:
    if machine.device.type != "cuda":
        return {**table.machine(), "device": machine.device.type}
    found = torch.cuda.get_device_properties(machine.device)
    return {"device": found.name, "memory GB": round(found.total_memory / 1e9, 1),
            "compute capability": f"{found.major}.{found.minor}", "CUDA": torch.version.cuda or "none"}


def _with_rates(machine: Machine, sizes: Sizes) -> Machine:
    rates = {}
    for name in FORMATS:
        with contextlib.suppress(ValueError):  # a dtype that this device lacks; the checks report it
            rates[name] = matrix_product_rate(machine, name, sizes.matrix)
    return Machine(machine.device, machine.dtype, rates)


@contextlib.contextmanager
def _exact_float32() -> Iterator[None]:
    """Disables TF32, cuDNN's default for convolutions, which keeps 10 bits of a float32."""
    settings = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = False
        yield
    finally:
        for setting, value in zip(settings, before):
            setting.allow_tf32 = value


@contextlib.contextmanager
def _alarm(deadline: float) -> Iterator[None]:
    """Raises OutOfTime at the deadline, between two Python instructions; only in the main thread, not on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number, frame) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    seconds = min(max(deadline - time.monotonic(), 1e-3), 1e6)  # limits of the timer
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)  # repeated, in case one is lost
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _device(options: argparse.Namespace) -> torch.device:
    """The requested device, else the GPU. Raises ValueError, in one sentence, for an unsuitable one."""
    device = torch.device(choose_device(options.device))
    if device.type == "cpu" and options.device is None:
        raise ValueError("these checks are for a GPU, and PyTorch finds none here; `--device cpu --tiny` tries the "
                         "checks themselves on the processor")
    if device.type == "cpu" and not options.tiny:
        raise ValueError("device is 'cpu', on which the published sizes take hours; add --tiny, or name a GPU")
    return device


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORDS",
                        help='only checks with all these words, such as "parity"')
    parser.add_argument("--minutes", type=float, default=8.0,
                        help="after which the current check is stopped and the rest left out (default 8)")
    parser.add_argument("--json", type=Path, default=Path("outputs/check_gpu.json"), metavar="FILE",
                        help="where every figure goes (default outputs/check_gpu.json)")
    parser.add_argument("--markdown", action="store_true", help="print the table as GitHub markdown")
    parser.add_argument("--device", help="where to compute (default: MINICOGVX_DEVICE, else the GPU)")
    parser.add_argument("--dtype", help="dtype of speed and torch.compile (default: MINICOGVX_DTYPE, else the "
                                        "fastest of the device); parity is checked in float32 and bfloat16")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to test the checks themselves in a minute")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes is {options.minutes:g}; it must be above 0")
    return options


if __name__ == "__main__":
    sys.exit(main())
