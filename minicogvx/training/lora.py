"""Low-rank adapters (LoRA, arXiv 2106.09685) on the transformer's attention, by `peft`, in diffusers' file format.

A frozen weight W becomes W + (alpha / r) B A with B: d x r, A: r x d. B starts at zero, so training starts from the
model as it is. The published fine-tuning code adapts queries, keys, values and output projection.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from minicogvx.interop.safetensors_files import read_tensors, write_tensors
from minicogvx.presets import TransformerConfig
from minicogvx.transformer.model import ExpertTransformer

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
_PREFIX, _METADATA = "transformer.", "lora_adapter_metadata"


def check_lora(config: TransformerConfig, rank: int, alpha: float) -> None:
    """Raises ValueError for a rank below 1 or above the width, an alpha that is not above 0, and without `peft`."""
    if not 1 <= rank <= config.width:
        raise ValueError(f"the rank of LoRA is {rank}; it must be from 1 to {config.width}, the model's width")
    if not alpha > 0:
        raise ValueError(f"the alpha of LoRA is {alpha}; it must be above 0")
    if find_spec("peft") is None:
        raise ValueError("LoRA needs the peft package; install it with `pip install peft`")


def add_lora(model: ExpertTransformer, rank: int, alpha: float) -> None:
    """Adapters on every attention, in float32 or the model's own format; all other weights are frozen, in place.

    Raises what `check_lora` raises.
    """
    check_lora(model.config, rank, alpha)
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS)), model)


def lora_tensors(model: ExpertTransformer, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapters by their names in the file: `transformer.transformer_blocks.0.attn1.to_q.lora_A.weight` and so on.

    `weights`: the model's state dict, where it has been gathered from many ranks.
    """
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, None if weights is None else dict(weights))
    return {_PREFIX + name: tensor.detach() for name, tensor in tensors.items()}


def write_lora(path: str | Path, tensors: dict[str, Tensor], rank: int, alpha: float) -> Path:
    """Writes adapters, with rank and alpha in the header where diffusers reads them; `path`: folder or file."""
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path / FILE
    # Without "alpha" in the header diffusers takes alpha = rank.
    settings = {_PREFIX + "r": rank, _PREFIX + "lora_alpha": alpha, _PREFIX + "target_modules": sorted(TARGETS)}
    return write_tensors(path, tensors, {_METADATA: json.dumps(settings, indent=2, sort_keys=True)})


@torch.no_grad()
def merge_lora(model: ExpertTransformer, path: str | Path, scale: float = 1.0) -> None:
    """Adds `scale` times the adapters of a file to the weights, in place; the model then samples as fast as before.

    Raises FileNotFoundError or ValueError, and changes nothing, for a file that does not fit the model.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    tensors = read_tensors(path)
    parameters = dict(model.named_parameters())
    steps = {}
    for name in tensors:
        if not name.endswith((".lora_A.weight", ".lora_B.weight")) or not name.startswith(_PREFIX):
            raise ValueError(f"{path} has a tensor {name}; a LoRA file of this family has only "
                             f"{_PREFIX}....lora_A.weight and lora_B.weight")
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix("lora_A.weight")
            weight, a, b = stem.removeprefix(_PREFIX) + "weight", tensors[name], tensors.get(stem + "lora_B.weight")
            if weight not in parameters:
                raise ValueError(f"{path} adapts {weight}, which this model does not have")
            if b is None or (b.shape[0], a.shape[1]) != parameters[weight].shape or a.shape[0] != b.shape[1]:
                raise ValueError(f"the adapter of {weight} in {path} does not fit its shape "
                                 f"{tuple(parameters[weight].shape)}")
            steps[weight] = scale * _alpha(path, len(a)) / len(a) * (b.float() @ a.float())
    if not steps:
        raise ValueError(f"{path} holds no adapter")
    for weight, step in steps.items():
        parameters[weight].copy_(parameters[weight].float() + step.to(parameters[weight].device))


def _alpha(path: Path, rank: int) -> float:
    """From the header; a file without it means alpha = rank, as in diffusers."""
    with safe_open(path, "pt") as file:
        settings = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    return float(settings.get(_PREFIX + "lora_alpha", rank))
