"""Several ranks from one cell of a notebook: real processes that talk to each other, on any machine."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minicogvx
from minicogvx.course.source_text import program_of
from minicogvx.engine.rank_process import PROGRAM, read_outcome

_GLOO = {"linux": "lo", "darwin": "lo0"}  # the loopback device: no name of this machine need be known


def on_ranks(work: Callable[..., Any] | str, count: int = 2, /, timeout: int | float = 120.0, **given: Any) -> list:
    """Starts `count` processes that are each other's ranks, and returns what each of them gives, by rank.

    `work` is a function: each process calls `work(ranks, **given)`, where `ranks` is its `engine.ranks.Ranks`. It is
    sent as text, together with what it uses of the notebook (see `program_of`). Or `work` is the text of a program,
    which has `ranks` and calls its answer `result`. Answers are numbers, text, tensors (they come back as lists), and
    lists and dicts of them. What the ranks print follows, rank after rank. They compute on the CPU, with one thread.

    If one of them stops, the others are ended. Raises RuntimeError, in one sentence, for the first that stopped, or if
    they have not ended after `timeout` seconds; ValueError for what cannot be sent. No process outlives the call, nor
    the notebook's kernel.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be 1 or more")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / PROGRAM).write_text(_program(work, given), encoding="utf-8")
        processes = []
        try:
            for rank in range(count):
                processes.append(_start(folder, rank, count, timeout))
            problem = _wait(processes, folder, timeout)
        finally:
            for process in processes:
                process.kill()
                process.wait()
                process.stdin.close()
            _say(folder, count)
        if problem:
            raise RuntimeError(problem)
        return [read_outcome(folder, rank)["result"] for rank in range(count)]


def _program(work: Callable[..., Any] | str, given: dict[str, Any]) -> str:
    values = ", ".join(f"{name}={value!r}" for name, value in given.items())
    if isinstance(work, str):
        return "".join(f"{name} = {value!r}\n" for name, value in given.items()) + work
    return f"{program_of(work)}\n\nresult = {work.__name__}(ranks{', ' if values else ''}{values})\n"


def _start(folder: Path, rank: int, count: int, timeout: int | float) -> subprocess.Popen:
    found = [str(Path(minicogvx.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": os.pathsep.join(found)}
    if sys.platform in _GLOO:
        environment.setdefault("GLOO_SOCKET_IFNAME", _GLOO[sys.platform])
    with (folder / f"rank_{rank}.txt").open("wb") as output:
        return subprocess.Popen([sys.executable, "-m", "minicogvx.engine.rank_process", str(folder), str(timeout)],
                                env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)


def _wait(processes: list[subprocess.Popen], folder: Path, timeout: int | float) -> str | None:
    """Waits for all processes, or for the first that stops; what is to be said of it."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        ended = [process.poll() for process in processes]
        stopped = {rank: status for rank, status in enumerate(ended) if status}
        if stopped:
            outcomes = {rank: read_outcome(folder, rank) or {} for rank in stopped}
            first = min(stopped, key=lambda rank: outcomes[rank].get("time", 0.0))  # one that was killed wrote nothing
            return f"rank {first} {_how(stopped[first], outcomes[first])}"
        if all(status == 0 for status in ended):
            return None
        time.sleep(0.02)
    running = [str(rank) for rank, process in enumerate(processes) if process.poll() is None]
    return f"rank {' and rank '.join(running)} had not ended after {timeout:g} seconds"


def _how(status: int, outcome: dict[str, Any]) -> str:
    if "error" in outcome:
        return f"stopped with {outcome['error']}"
    if status < 0:
        names = {each.value: f", {each.name}" for each in signal.Signals}  # not every number has one
        return f"was killed by signal {-status}{names.get(-status, '')}"
    return f"ended with status {status} before it was done"


def _say(folder: Path, count: int) -> None:
    for rank in range(count):
        path = folder / f"rank_{rank}.txt"
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            print(f"rank {rank} | {line}")
