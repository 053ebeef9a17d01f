"""A trained model as its difference from another one, for files far smaller than the model.

Each tensor that differs is stored as `new - old`. Of matrices and kernels the difference is rounded to 8 bits, row by
row: whole numbers from -127 to 127, and one scale for each row of the first axis. Vectors are stored in float16.

    NAME          int8, or float16 for a vector
    NAME.scale    float16, one for each row
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from minicogvx.interop.safetensors_files import read_tensors, write_tensors

LARGEST = 127  # of a stored whole number
SCALE = ".scale"


def write_difference(path: str | Path, old: Mapping[str, Tensor], new: Mapping[str, Tensor],
                     metadata: Mapping[str, str] | None = None) -> Path:
    """Writes what takes the tensors `old` to `new`, which has the same names and shapes; equal ones are left out.

    Raises ValueError where names or shapes differ, or nothing does.
    """
    if {name: tensor.shape for name, tensor in old.items()} != {name: tensor.shape for name, tensor in new.items()}:
        raise ValueError("the two models have tensors of other names or shapes; they must have the same")
    tensors: dict[str, Tensor] = {}
    for name, tensor in new.items():
        step = (tensor.float() - old[name].float()).cpu()
        if not step.any():
            continue
        if step.ndim < 2:
            tensors[name] = step.half()
        else:
            tensors[name], tensors[name + SCALE] = rounded_rows(step)
    if not tensors:
        raise ValueError("the two models are equal; there is no difference to write")
    return write_tensors(path, tensors, metadata)


def rounded_rows(step: Float[Tensor, "n *rest"]) -> tuple[Int8[Tensor, "n *rest"], Float[Tensor, "n"]]:
    """Whole numbers of 8 bits and one scale (float16) for each row; a row of zeros has the scale 0."""
    scale = (step.flatten(1).abs().amax(dim=1) / LARGEST).half()
    steps = step.flatten(1) / scale.float().clamp(min=1e-12)[:, None]
    return steps.round().clamp(-LARGEST, LARGEST).to(torch.int8).view(step.shape), scale


@torch.no_grad()
def add_difference(model: nn.Module, path: str | Path) -> list[str]:
    """Adds a stored difference to the weights, in place, and returns the names of the tensors that it changed.

    Raises FileNotFoundError, or ValueError for a file that does not fit the model; then nothing has changed.
    """
    tensors, weights, steps = read_tensors(path), model.state_dict(), {}
    for name, stored in tensors.items():
        if name.endswith(SCALE):
            continue
        if name not in weights or weights[name].shape != stored.shape:
            raise ValueError(f"{path} changes {name} of shape {tuple(stored.shape)}, which this model does not have")
        steps[name] = stored.float()
        if stored.dtype == torch.int8:
            if name + SCALE not in tensors or len(tensors[name + SCALE]) != len(stored):
                raise ValueError(f"{path} has no scale for each row of {name}")
            steps[name] = stored.float() * tensors[name + SCALE].float().view(-1, *[1] * (stored.ndim - 1))
    for name, step in steps.items():
        weights[name].copy_(weights[name].float() + step.to(weights[name].device))
    return list(steps)
