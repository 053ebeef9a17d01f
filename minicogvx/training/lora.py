"""Low-rank adapters (LoRA, arXiv 2106.09685) on the transformer's attention, by `peft`, in diffusers' file format.

A frozen weight W becomes W + (alpha / r) B A with B: d x r, A: r x d. B starts at zero, so training starts from the
unchanged model. The published fine-tuning code adapts queries, keys, values and output projection.
"""

import json
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from minicogvx.interop.lora import FILE, METADATA, PREFIX, STEP, Adapter, merge_lora, read_adapters, use_lora
from minicogvx.interop.safetensors_files import write_tensors
from minicogvx.presets import TransformerConfig
from minicogvx.transformer.model import ExpertTransformer

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
__all__ = ["FILE", "TARGETS", "add_lora", "check_lora", "continue_lora", "lora_tensors", "merge_lora", "read_lora",
           "trained_alpha", "use_lora", "write_lora"]


def check_lora(config: TransformerConfig, rank: int, alpha: float) -> None:
    """Raises ValueError for a rank below 1 or above the width, an alpha that is not above 0, and without `peft`."""
    if not 1 <= rank <= config.width:
        raise ValueError(f"the rank of LoRA is {rank}; it must be from 1 to {config.width}, the model's width")
    if not alpha > 0:
        raise ValueError(f"the alpha of LoRA is {alpha}; it must be above 0")
    if find_spec("peft") is None:
        raise ValueError("LoRA needs the peft package; install it with `pip install peft`")


def add_lora(model: ExpertTransformer, rank: int, alpha: float) -> None:
    """Adds adapters to every attention, in float32 or the model's dtype, and freezes all other weights, in place.

    Raises what `check_lora` raises.
    """
    check_lora(model.config, rank, alpha)
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS)), model)


def read_lora(model: ExpertTransformer, path: str | Path) -> tuple[dict[str, Adapter], int, float]:
    """The adapters in a file, by the layers of `model` (which may be on the meta device), their rank and their alpha.

    Raises FileNotFoundError, and ValueError for a file that does not fit the model, or whose adapters differ from those
    of `add_lora`: one rank and scale, without biases, on all `TARGETS`.
    """
    adapters = read_adapters(model, path)
    kinds = {(len(adapter.a), adapter.scale, adapter.bias is None) for adapter in adapters.values()}
    places = {name for name, _ in model.named_modules() if name.endswith(tuple(f".{end}" for end in TARGETS))}
    if len(kinds) > 1 or not all(without for _, _, without in kinds) or adapters.keys() != places:
        raise ValueError(f"{path} cannot be trained further: it must have adapters of one rank and alpha, without "
                         f"biases, on {', '.join(TARGETS)} of every block")
    (rank, scale, _), = kinds
    return adapters, rank, scale * rank


@torch.no_grad()
def continue_lora(model: ExpertTransformer, path: str | Path, rank: int, alpha: float | None = None) -> None:
    """As `add_lora`, but the adapters start as those in a file. `alpha`: None takes the file's own.

    Raises what `read_lora` raises, and ValueError if the file has another rank or alpha.
    """
    adapters, own_rank, own_alpha = read_lora(model, path)
    alpha = own_alpha if alpha is None else alpha
    if own_rank != rank or not math.isclose(own_alpha, alpha):
        raise ValueError(f"lora_rank is {rank} and lora_alpha {alpha}; the adapters in {path} have {own_rank} and "
                         f"{own_alpha}")
    add_lora(model, rank, alpha)
    for name, adapter in adapters.items():
        layer = model.get_submodule(name)
        layer.lora_A["default"].weight.copy_(adapter.a)
        layer.lora_B["default"].weight.copy_(adapter.b)


def trained_alpha(model: ExpertTransformer) -> float:
    """The alpha of the adapters in `model`, which is the same for all."""
    return next(module.lora_alpha["default"] for module in model.modules() if hasattr(module, "lora_alpha"))


def lora_tensors(model: ExpertTransformer, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapters, by their names in the file: `transformer.transformer_blocks.0.attn1.to_q.lora_A.weight` and so on.

    `weights`: the model's state dict, if it was gathered from several ranks.
    """
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, None if weights is None else dict(weights))
    return {PREFIX + name: tensor.detach() for name, tensor in tensors.items()}


def write_lora(path: str | Path, tensors: dict[str, Tensor], rank: int, alpha: float, step: int | None = None) -> Path:
    """Writes adapters, with rank and alpha in the header, as diffusers expects; `path`: folder or file.

    `step`: after how many steps of training, which the header then says as well.
    """
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path / FILE
    # Without "alpha" in the header diffusers takes alpha = rank.
    settings = {PREFIX + "r": rank, PREFIX + "lora_alpha": alpha, PREFIX + "target_modules": sorted(TARGETS)}
    notes = {METADATA: json.dumps(settings, indent=2, sort_keys=True)}
    return write_tensors(path, tensors, notes if step is None else notes | {STEP: str(step)})
