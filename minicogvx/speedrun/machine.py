"""What a run was made on: the processor, its best matrix product, and the commit of the code."""

import platform
import subprocess
import time
from pathlib import Path

import torch


def ceiling(dtype: torch.dtype, size: int = 2048, runs: int = 12) -> float:
    """The best rate of a square matrix product on this machine, in operations per second."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    out, best = torch.mm(a, b), float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of this code, with "-dirty" if files differ from it; None where it is in no git repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: a repository around it is another
        return None
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], cwd=root,
                              capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
