"""One safetensors file holds all that a run needs to go on as if it had never stopped."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from minicogvx.interop.safetensors_files import read_tensors, write_tensors
from minicogvx.training.optim import MuonAdamW


def save_checkpoint(path: Path, step: int, modules: Mapping[str, nn.Module], optimizer: MuonAdamW) -> None:
    """Writes weights, moving averages and optimizer state after `step` steps; beside the old file, then renamed."""
    weights = dict(_parameters(modules))
    state = {f"optimizer/{key}": value for key, value in optimizer.state_tensors().items()}
    write_tensors(path, {"step": torch.tensor(step)} | weights | state)


@torch.no_grad()
def load_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizer: MuonAdamW) -> int:
    """Restores what `save_checkpoint` wrote and returns the steps done; 0, and nothing changed, if there is no file.

    Raises ValueError, and changes nothing, if the file belongs to a model of another size.
    """
    if not path.exists():
        return 0
    tensors = read_tensors(path)
    for name, p in _parameters(modules):
        if name not in tensors or tensors[name].shape != p.shape:
            found = tuple(tensors[name].shape) if name in tensors else "missing"
            raise ValueError(f"{name} in {path} is {found}; this run needs {tuple(p.shape)}: "
                             f"move the file away to start anew")
    for name, p in _parameters(modules):
        p.copy_(tensors[name])
    optimizer.load_state_tensors({key.removeprefix("optimizer/"): value for key, value in tensors.items()
                                  if key.startswith("optimizer/")})
    return int(tensors["step"])


def _parameters(modules):
    for module_name, module in modules.items():
        for name, p in module.named_parameters():  # each shared weight once
            yield f"{module_name}/{name}", p
