"""Starts the main of a test module on several processes, by torchrun, as a user starts training."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from minicogvx.engine import muon


def start_ranks(module: str, folder: Path, count: int) -> str:
    """Runs `python -m module folder` on `count` processes, which must succeed; returns their stderr."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
                           "-m", module, str(folder)], capture_output=True, text=True, timeout=300,
                          cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The whole state dict on the CPU, gathered tensor by tensor; all ranks call it."""
    return {name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().clone()
            for name, tensor in model.state_dict().items()}


@contextmanager
def exact_muon() -> Iterator[None]:
    """Muon iterates in float32 on every processor, so that runs which should agree can be held to a tight bound.

    In bfloat16 the rounding error of a gradient turns bits of its update: two runs that are right are then as far
    apart as two of which one is wrong by little.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(muon, "_iterates_in", lambda device_type: torch.float32)
        yield
