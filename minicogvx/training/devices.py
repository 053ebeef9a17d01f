"""What devices can do: a small table from data sheets, and a measurement of the one at hand."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minicogvx.compat import choose_dtype


@dataclass(frozen=True)
class Device:
    """Peaks of one device; nothing reaches them. `memory` 0 and `watts` 0: not known."""

    name: str
    flops: float  # floating-point operations a second in dense 16-bit matrix products
    bandwidth: float  # bytes a second between the chip and its memory
    memory: int = 0  # bytes
    watts: int = 0
    source: str = ""


def _of_data_sheet(name: str, teraflops: float, gigabytes: int, memory: int, watts: int, source: str) -> Device:
    return Device(name, 1e12 * teraflops, 1e9 * gigabytes, memory * 2**30, watts, source)


# Dense bfloat16 with float32 sums (data sheets print twice as much, "with sparsity"), GB/s, GB, watts.
DEVICES = {device.name: device for device in (
    _of_data_sheet("RTX 3090", 71.0, 936, 24, 350, "NVIDIA, Ampere GA102 GPU architecture, appendix A"),
    _of_data_sheet("L4", 121.0, 300, 24, 72, "NVIDIA, L4 data sheet"),
    _of_data_sheet("RTX 4090", 165.2, 1008, 24, 450, "NVIDIA, Ada GPU architecture, appendix A"),
    _of_data_sheet("A100", 312.0, 2039, 80, 400, "NVIDIA, A100 data sheet, SXM, 80 GB"),
    _of_data_sheet("H800", 989.4, 3350, 80, 700, "NVIDIA, H100 data sheet, SXM; the H800 differs in links and float64"),
    _of_data_sheet("H200", 989.4, 4800, 141, 700, "NVIDIA, H200 data sheet, SXM"),
)}


def say_seconds(seconds: float) -> str:
    """Two digits, in a suitable unit: "0.84 s", "75 s", "14 min", "5.2 h"."""
    if seconds < 100:
        value, unit = seconds, "s"
    else:
        value, unit = (seconds / 60, "min") if seconds < 6000 else (seconds / 3600, "h")
    digits = max(0, 1 - math.floor(math.log10(max(value, 0.1))))
    return f"{value:.{digits}f} {unit}"


def measure_device(device: torch.device | str = "cpu", dtype: torch.dtype | None = None, side: int = 2048,
                   copied: int = 2**27) -> Device:
    """What the device at hand reaches in about two seconds on a processor: the best of a few runs of each kind.

    A product of two `side` x `side` matrices in `dtype` (None: that of `choose_dtype`), and a copy of `copied` bytes,
    which reads and writes them.
    """
    device = torch.device(device)
    dtype = choose_dtype(device, dtype)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = _fastest(lambda: left @ right, device)
    copy = _fastest(lambda: target.copy_(source), device)
    return Device("this machine", 2 * side**3 / product, 2 * copied / copy, source="measured")


def _fastest(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    best = math.inf
    for i in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.get_device_module(device.type).synchronize()
        best = min(best, time.perf_counter() - start) if i else best  # the first run loads kernels
    return best
