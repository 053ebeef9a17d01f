"""Messages about lack of memory: before work that cannot fit, and after PyTorch ran out of memory.

A lower bound for a video follows from its size (`minicogvx memory` counts everything). Whether it really fits is known
only from PyTorch's error, which every kind of device words differently.
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from minicogvx.presets import TransformerConfig, VAEConfig
from minicogvx.visible import listed

_GIB = 2**30
# Messages of plain RuntimeErrors: of the CPU's allocator, MPS, sizes beyond 64 bits, libraries.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "invalid buffer size",
          "storage size calculation overflowed", "alloc_failed")

_SIZE = (("", "fewer frames (--num-frames)"), ("", "a smaller --height and --width"))
_CHECKPOINTING = "gradient_checkpointing=True"
_ADVICE = {  # command -> (text in the command line if it is already in use, advice)
    "generate": (*_SIZE, ("--tile", "--tile"), ("--offload", "--offload")),
    "evaluate": (("", "a smaller --batch-size"), ("--tile", "--tile"), ("--offload", "--offload")),
    "train": (("accumulate=", "--set transformer.accumulate=2"),
              (_CHECKPOINTING, f"--set transformer.{_CHECKPOINTING}"),
              ("", "a smaller batch_size of the stage (--set)")),
    "finetune": (("", "a smaller --batch-size"), (_CHECKPOINTING, f"--set {_CHECKPOINTING}"), *_SIZE,
                 ("--lora", "--lora 64")),
    "data encode": (("", "a smaller --batch-size"), *_SIZE),
    "data": (("", "a smaller model"),),
    "memory": (("", "a smaller --batch"),),
}


def least_memory(vae: VAEConfig, transformer: TransformerConfig, size: tuple[int, int, int, int], itemsize: int,
                 tiled: bool = False) -> int:
    """Bytes below which a pipeline cannot make `size` = (videos, frames, height, width), however it is computed.

    The largest of three that do not exist at the same time: all pixels twice (pieces and whole), the sequence of tokens
    with queries, keys and values, and unless `tiled` input and output of the last convolutions for 9 frames.
    """
    videos, frames, height, width = size
    pixels = frames * height * width
    patch = vae.temporal_compression_ratio * vae.spatial_compression_ratio**2 * math.prod(transformer.patch)
    tokens = pixels // patch
    of_vae = 0 if tiled else min(frames, 9) * height * width * 2 * vae.block_out_channels[0]
    return videos * itemsize * max(2 * 3 * pixels, 4 * transformer.width * tokens, of_vae)


def all_memory(device: str | torch.device) -> int | None:
    """Total bytes of `device`, free or not; None if unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    container = Path("/sys/fs/cgroup/memory.max")
    limit = container.read_text().strip() if container.is_file() else ""
    return min(machine, int(limit)) if limit.isdigit() else machine


def refuse_giants(vae: VAEConfig, transformer: TransformerConfig, size: tuple[int, int, int, int],
                  device: str | torch.device, dtype: torch.dtype, tiled: bool = False) -> None:
    """Raises ValueError for (videos, frames, height, width) that cannot fit into the memory of `device`."""
    least, there = least_memory(vae, transformer, size, dtype.itemsize, tiled), all_memory(device)
    if there is None or least <= there:
        return
    videos, frames, height, width = size
    tiles_help = not tiled and least_memory(vae, transformer, size, dtype.itemsize, tiled=True) <= there
    raise ValueError(f"{f'{videos} x ' if videos > 1 else ''}{frames} frames of {height}x{width} take more than "
                     f"{least // _GIB:,} GiB, and '{device}' has {there // _GIB:,} GiB in all; ask for fewer "
                     f"frames or a smaller height and width{', or let the VAE work in tiles' if tiles_help else ''}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an out-of-memory error of any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def out_of_memory_sentence(error: BaseException, argv: Sequence[str]) -> str:
    """One sentence: what did not fit, and what would help, except what the command line `argv` already uses."""
    on_gpu = isinstance(error, torch.OutOfMemoryError) or any(kind in str(error).lower() for kind in ("mps", "cuda"))
    command = next((words for words in (" ".join(argv[:2]), *argv[:1]) if words in _ADVICE), "")
    given = " ".join(argv)
    helps = [advice for mark, advice in _ADVICE.get(command, ()) if not mark or mark not in given]
    if not on_gpu:
        helps = [advice for advice in helps if advice != "--offload"]  # it has no effect on the CPU
    helps.append("--device cpu" if on_gpu else "closing other programs")
    return (f"there is not enough memory {'on the GPU' if on_gpu else 'on this machine'}{_asked_for(error)}; what "
            f"helps: {listed(helps, 'or')}")


def _asked_for(error: BaseException) -> str:
    """The size of the failed allocation, in brackets, if PyTorch states it."""
    found = re.search(r"tried to allocate ([\d.,]+) (bytes|\wi?B)", str(error), re.IGNORECASE)
    if not found:
        return ""
    number, unit = found.groups()
    amount = f"{int(number) / _GIB:,.1f} GiB" if unit == "bytes" else f"{number} {unit}"
    return f" ({amount} more were needed)"
