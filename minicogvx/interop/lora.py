"""LoRA files as diffusers writes them: read in full or refused, then added to a transformer's weights or kept beside.

An adapter changes what a linear layer computes from W x to (W + s B A) x with A: r x d and B: d x r. The scale s comes
from the header of the file, which is a `LoraConfig` of peft: alpha / r, or alpha / sqrt(r) with `use_rslora`.
"""

import json
import math
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from minicogvx.advice import Advice
from minicogvx.interop.safetensors_files import read_tensors
from minicogvx.ranges import shown

FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
PREFIX, METADATA = "transformer.", "lora_adapter_metadata"
STEP = "minicogvx_step"  # in the header: after how many steps of training; diffusers ignores it

_OBEYED = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_bias", "target_modules"}
_WITHOUT_EFFECT = {  # once the adapter is trained
    "lora_dropout", "inference_mode", "peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping",
    "peft_version", "megatron_core", "runtime_config", "qalora_group_size", "ensure_weight_tying"}
_ALLOWED = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}  # others change the weights below
_EMPTY = (None, False, {}, [], "")  # every other field says so that it is not in use
_TENSOR = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias)")


@dataclass(frozen=True)
class Adapter:
    """What is added to one layer: `scale * b @ a` to its weight and `scale * bias` to its bias. All float32."""

    a: Tensor  # r, then the weight's dimensions after the first
    b: Tensor  # the weight's first dimension, then r
    bias: Tensor | None
    scale: float

    def steps(self) -> dict[str, Tensor]:
        """What is added to each parameter of the layer, by its name."""
        weight = self.scale * (self.b.flatten(1) @ self.a.flatten(1))
        steps = {"weight": weight.unflatten(1, self.a.shape[1:])}
        return steps if self.bias is None else steps | {"bias": self.scale * self.bias}


def read_adapters(model: nn.Module, path: str | Path) -> dict[str, Adapter]:
    """The adapters in a file, or in a folder with `FILE`, by the name of the layer of `model` that each adapts.

    Raises FileNotFoundError or ValueError, one sentence, for a file that does not fit the model and for a header with
    an option that is not known here.
    """
    path = Path(os.path.expanduser(path))
    path = path / FILE if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; it must be a LoRA file or its folder")
    tensors = read_tensors(path)
    settings = _settings(path)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if not match or match["part"] == "lora_B.bias" and not settings.get("lora_bias"):
            raise ValueError(f"{path} has a tensor {name}; a LoRA file of this family has only "
                             f"{PREFIX}....lora_A.weight and lora_B.weight")
        if not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{name} in {path} must hold finite floating-point numbers")
        parts.setdefault(match["module"], {})[match["part"]] = tensor.float()
    if not parts:
        raise ValueError(f"{path} holds no adapter")
    try:
        return {module: _adapter(model, module, found, settings) for module, found in parts.items()}
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def trained_steps(path: str | Path) -> str:
    """The number of steps of training that the header of a LoRA file gives; empty if it gives none."""
    path = Path(path)
    with safe_open(path / FILE if path.is_dir() else path, "pt") as file:
        return (file.metadata() or {}).get(STEP, "")


def _settings(path: Path) -> dict:
    """The `LoraConfig` in the header; empty where there is none."""
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(METADATA, "{}")
    try:
        values = json.loads(text)
        settings = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} has a {METADATA} in its header that is no JSON object") from error
    other = next((name for name in values if not name.startswith(PREFIX)), None)
    if other is not None:
        raise ValueError(f"{path} has a field {shown(other)} in the {METADATA} of its header; every field must begin "
                         f"with {PREFIX!r}")
    for name, value in settings.items():
        known = name in _OBEYED | _WITHOUT_EFFECT or value in _ALLOWED.get(name, _EMPTY)
        if not known:
            raise ValueError(f"{path} was made with {name}={shown(value)}, which is not supported here; it must be "
                             f"{' or '.join(map(repr, _ALLOWED[name])) if name in _ALLOWED else 'left out'}")
    for name, kind in (("rank_pattern", dict), ("alpha_pattern", dict), ("use_rslora", bool), ("lora_bias", bool)):
        if not isinstance(settings.get(name) or kind(), kind):
            raise ValueError(f"{path} has {name}={shown(settings[name])} in its header; it must be a {kind.__name__}")
    return settings


def _adapter(model: nn.Module, module: str, found: dict[str, Tensor], settings: dict) -> Adapter:
    """One adapter. Its ValueErrors go on after the path of the file."""
    parameters = dict(model.named_parameters())
    weight = parameters.get(f"{module}.weight")
    if weight is None:
        raise ValueError(f"adapts {module}.weight, which this model does not have")
    a, b, bias = found.get("lora_A.weight"), found.get("lora_B.weight"), found.get("lora_B.bias")
    if (weight.ndim < 2 or a is None or b is None or a.ndim != weight.ndim or b.ndim != weight.ndim or not len(a)
            or b.shape[1] != len(a) or (len(b), *a.shape[1:]) != weight.shape or b[0, 0].numel() != 1):
        raise ValueError(f"has an adapter of {module}.weight that does not fit its shape {tuple(weight.shape)}")
    if bias is not None and (parameters.get(f"{module}.bias") is None or bias.shape != b.shape[:1]):
        raise ValueError(f"has a bias for {module} that does not fit")
    if not _is_target(module, settings.get("target_modules")):
        raise ValueError(f"adapts {module}, which target_modules in its header leaves out")
    rank = len(a)
    if settings:  # peft's own defaults are 8 and 8; without a header alpha is the rank
        said = _by_pattern(module, settings.get("rank_pattern"), settings.get("r", 8))
        alpha = _by_pattern(module, settings.get("alpha_pattern"), settings.get("lora_alpha", 8))
    else:
        said, alpha = rank, rank
    if said != rank:
        raise ValueError(f"says rank {shown(said)} for {module}, whose adapter has rank {rank}")
    if type(alpha) not in (int, float) or not abs(alpha) < 1e30:
        raise ValueError(f"says alpha {shown(alpha)} for {module}; it must be a finite number")
    return Adapter(a, b, bias, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _is_target(module: str, targets) -> bool:
    """As peft decides it: a list holds ends of names, a string is a pattern of whole names. None: every module."""
    if targets is None or targets == "all-linear":
        return True
    if isinstance(targets, str):
        return _matches(targets, module)
    return isinstance(targets, list) and any(module == end or module.endswith(f".{end}") for end in targets)


def _by_pattern(module: str, patterns: dict | None, default):
    """The value of the first pattern that ends the module's name, as peft decides it."""
    return next((value for pattern, value in (patterns or {}).items() if _matches(rf"(.*\.)?({pattern})", module)),
                default)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"has a pattern {shown(pattern)} in its header, which is no regular expression") from error


# ---- in use


@torch.no_grad()
def merge_lora(model: nn.Module, path: str | Path, scale: float = 1.0) -> None:
    """Adds `scale` times the adapters of a file to the weights, in place; the model then samples as fast as before.

    Sums are rounded to the weights' number format: 16 bits lose steps that are small beside a weight. A warning says
    how much; `use_lora` keeps all of it. Raises what `read_adapters` raises, and then nothing has changed.
    """
    _merge(model, read_adapters(model, path), scale)


def _merge(model: nn.Module, adapters: dict[str, Adapter], scale: float) -> None:
    """Adds the adapters to the weights, and warns of what rounding takes away."""
    parameters, lost, whole = dict(model.named_parameters()), 0.0, 0.0
    for module, adapter in adapters.items():
        for name, step in adapter.steps().items():
            parameter = parameters[f"{module}.{name}"]
            step = scale * step.to(parameter.device)
            total = parameter.float() + step
            parameter.copy_(total)
            lost += float((step * (total - parameter.float())).sum())  # of the step, along its own direction
            whole += float(step.square().sum())
    if abs(lost) > 0.01 * whole:
        warnings.warn(f"the weights are {str(parameter.dtype).removeprefix('torch.')}, which rounds small steps away: "
                      f"{1 - lost / whole:.0%} of this adapter is in them; float32 keeps all of it, and so does "
                      f"use_lora in linear layers",
                      Advice, stacklevel=4)  # where merge_lora (past its no_grad), use_lora or Pipeline.load is called


def use_lora(model: nn.Module, path: str | Path, scale: float = 1.0) -> None:
    """Lets the model compute with `scale` times the adapters of a file, whatever its number format.

    float32 weights take them in, as in `merge_lora`. 16-bit linear layers stay as they are, and the adapters are kept
    beside them (`AdaptedLinear`): a little slower, and right for adapters however weak. Other 16-bit layers, such as a
    convolution, take theirs in, and a warning says what rounding loses. Raises what `read_adapters` raises.
    """
    use_adapters(model, read_adapters(model, path), scale)


def use_adapters(model: nn.Module, adapters: dict[str, Adapter], scale: float = 1.0) -> None:
    """As `use_lora`, with adapters that `read_adapters` has read for this model, or for its shape alone."""
    merged = {}
    for module, adapter in adapters.items():
        layer = model.get_submodule(module)
        if layer.weight.dtype == torch.float32 or not isinstance(layer, nn.Linear):
            merged[module] = adapter
            continue
        if not isinstance(layer, AdaptedLinear):
            layer = AdaptedLinear(layer)
            model.set_submodule(module, layer)
        layer.add(adapter, scale)
    with torch.no_grad():
        _merge(model, merged, scale)


def has_adapters(model: nn.Module) -> bool:
    """Whether there are adapters beside the weights, those of `use_lora` or peft's own."""
    return any("lora_" in name for name, _ in (*model.named_parameters(), *model.named_buffers()))


class AdaptedLinear(nn.Linear):
    """W x + B A x with W as it was, in 16 bits, and the adapters beside it.

    [W B] [x; A x] is one product, whose sums are float32 and are rounded once. A step too small for the number format
    of W, or of the result, thus still counts: it moves the average of what is rounded.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        shape = {"dtype": torch.float32, "device": layer.weight.device}
        # Buffers move with the layer; these are in no state dict.
        self.register_buffer("lora_a", torch.empty(0, layer.in_features, **shape), persistent=False)
        self.register_buffer("lora_b", torch.empty(layer.out_features, 0, **shape), persistent=False)
        self.register_buffer("lora_bias", torch.zeros(layer.out_features, **shape), persistent=False)
        self.train(layer.training)

    def add(self, adapter: Adapter, scale: float) -> None:
        """One adapter more: its rows and columns stand beside those of the ones before."""
        scale = scale * adapter.scale
        self.lora_a = torch.cat([self.lora_a, adapter.a.to(self.lora_a)])
        self.lora_b = torch.cat([self.lora_b, scale * adapter.b.to(self.lora_b)], dim=1)
        if adapter.bias is not None:
            self.lora_bias = self.lora_bias + scale * adapter.bias.to(self.lora_bias)

    def forward(self, x: Float[Tensor, "*b d_in"]) -> Float[Tensor, "*b d_out"]:
        """`x` in any number format that W has."""
        a, b, bias = (tensor.to(x.dtype) for tensor in (self.lora_a, self.lora_b, self.lora_bias))
        bias = bias if self.bias is None else self.bias + bias
        return F.linear(torch.cat([x, F.linear(x, a)], dim=-1), torch.cat([self.weight, b], dim=1), bias)
