"""Exercise 16.5 of notebook 16: blocks from a checkpoint of the authors' program, under the names of diffusers."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong

START = "model.diffusion_model."
SIMPLE = {  # their name of a part -> diffusers'
    "transformer.layers.{}.input_layernorm": "norm1.norm",
    "transformer.layers.{}.post_attention_layernorm": "norm2.norm",
    "transformer.layers.{}.attention.dense": "attn1.to_out.0",
    "transformer.layers.{}.mlp.dense_h_to_4h": "ff.net.0.proj",
    "transformer.layers.{}.mlp.dense_4h_to_h": "ff.net.2",
    "mixins.adaln_layer.query_layernorm_list.{}": "attn1.norm_q",
    "mixins.adaln_layer.key_layernorm_list.{}": "attn1.norm_k",
}
QKV, TWELVE = "transformer.layers.{}.attention.query_key_value", "mixins.adaln_layer.adaLN_modulations.{}.1"
PIECES = {"norm1.linear": (0, 1, 2, 6, 7, 8), "norm2.linear": (3, 4, 5, 9, 10, 11)}  # of the twelve


def as_sat(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of blocks (`transformer_blocks.0.attn1.to_q.weight` and so on) as the authors' checkpoints name them."""
    found, theirs = {}, {ours: name for name, ours in SIMPLE.items()}
    layers = sorted({name.split(".")[1] for name in tensors if name.startswith("transformer_blocks.")})
    for layer in layers:
        for end in ("weight", "bias"):
            def part(name: str, layer=layer, end=end) -> Tensor:
                return tensors[f"transformer_blocks.{layer}.{name}.{end}"]

            for ours, name in theirs.items():
                found[f"{START}{name.format(layer)}.{end}"] = part(ours)
            found[f"{START}{QKV.format(layer)}.{end}"] = torch.cat([part(f"attn1.to_{name}") for name in "qkv"])
            twelve: list[Any] = [None] * 12
            for norm, places in PIECES.items():
                for place, piece in zip(places, part(norm).chunk(6)):
                    twelve[place] = piece
            found[f"{START}{TWELVE.format(layer)}.{end}"] = torch.cat(twelve)
    return found


def renamed_from_sat(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Blocks of an authors' checkpoint by diffusers' names: q, k, v cut apart, and the twelve modulations dealt out.

    After `convert_cogvideox_to_diffusers.py` of diffusers.
    """
    found = {}
    for name, tensor in tensors.items():
        stem, _, end = name.removeprefix(START).rpartition(".")
        layer = re.search(r"\.(\d+)(\.|$)", stem)[1]
        stem, block = re.sub(r"\.\d+(?=\.|$)", ".{}", stem, count=1), f"transformer_blocks.{layer}"
        if stem == QKV:
            for which, piece in zip("qkv", tensor.chunk(3)):
                found[f"{block}.attn1.to_{which}.{end}"] = piece
        elif stem == TWELVE:
            pieces = tensor.chunk(12)
            for norm, places in PIECES.items():
                found[f"{block}.{norm}.{end}"] = torch.cat([pieces[place] for place in places])
        else:
            found[f"{block}.{SIMPLE[stem]}.{end}"] = tensor
    return found


def example_blocks(layers: tuple[int, ...] = (3, 12), width: int = 8, time: int = 5) -> dict[str, Tensor]:
    """Random tensors of a few blocks, by diffusers' names."""
    shapes = {"ff.net.0.proj.weight": (4 * width, width), "ff.net.0.proj.bias": (4 * width,),
              "ff.net.2.weight": (width, 4 * width), "ff.net.2.bias": (width,)}
    for norm in ("norm1", "norm2"):
        shapes |= {f"{norm}.linear.weight": (6 * width, time), f"{norm}.linear.bias": (6 * width,),
                   f"{norm}.norm.weight": (width,), f"{norm}.norm.bias": (width,)}
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= {f"attn1.{name}.weight": (width, width), f"attn1.{name}.bias": (width,)}
    for name in ("norm_q", "norm_k"):
        shapes |= {f"attn1.{name}.weight": (4,), f"attn1.{name}.bias": (4,)}
    return {f"transformer_blocks.{layer}.{name}": torch.randn(shape) for layer in layers for name, shape in
            shapes.items()}


def check_from_sat(from_sat) -> None:
    """Every tensor once, under the right name, cut in the right places, and with its own numbers."""
    wanted = example_blocks()
    given = as_sat(wanted)
    kept = {name: tensor.clone() for name, tensor in given.items()}
    got = from_sat(given)
    if not isinstance(got, Mapping):
        raise Wrong(f"from_sat(tensors) is a {type(got).__name__}; it must be a dict from names to tensors.")
    changed = [name for name in kept if name not in given or not torch.equal(kept[name], given[name])]
    if changed:
        raise Wrong(f"The dict that was given has changed, at {changed[0]}. Write a new one.")
    _check_names(got, wanted)
    for name, tensor in wanted.items():
        _check_tensor(name, got[name], tensor, got)


def _check_names(got: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> None:
    extra, missing = [name for name in got if name not in wanted], [name for name in wanted if name not in got]
    if any(str(name).startswith("model.") for name in extra):
        raise Wrong(f"There is a name {extra[0]!r}; strip {START!r} from the front.")
    if any("query_key_value" in str(name) for name in extra):
        raise Wrong("query_key_value is still one tensor; cut it into three equal blocks of rows: to_q, to_k, to_v.")
    if missing and all(".12." in name for name in missing):
        raise Wrong(f"Layer 12 is missing, as in {missing[0]}: the number of a layer may have two digits.")
    if missing:
        raise Wrong(f"{len(missing)} of {len(wanted)} tensors are missing, among them {missing[0]}"
                    + (f"; there is {extra[0]!r} instead." if extra else "."))
    if extra:
        raise Wrong(f"There is a name {extra[0]!r}, which diffusers does not have.")


def _check_tensor(name: str, got: Any, tensor: Tensor, everything: Mapping[str, Any]) -> None:
    if not isinstance(got, Tensor) or got.shape != tensor.shape:
        shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise Wrong(f"{name} has shape {shape}; it must be {tuple(tensor.shape)}.")
    if got.dtype != tensor.dtype:
        raise Wrong(f"{name} is {got.dtype}; it must stay {tensor.dtype}.")
    if torch.equal(got, tensor):
        return
    block, _, short = name.partition(".norm")
    if short.startswith(("1.linear", "2.linear")):
        one, other = (tensor.chunk(6), got.chunk(6))
        same = [i for i in range(6) if torch.equal(one[i], other[i])]
        raise Wrong(f"{name}: of its six pieces, those at {same} are right. The twelve are shift, scale and gate of "
                    f"video before attention, of video before the feed-forward, then both for text; norm1 has all "
                    f"before attention: video first, then text.")
    if "attn1.to_" in name:
        end = name.rpartition(".")[2]
        near = [which for which in "qkv" if torch.equal(got, _of(name, which, everything, end))]
        raise Wrong(f"{name} has other numbers. Queries are the first third of the rows, then keys, then values, each "
                    f"in one block, and never every third row.{' Two of them are equal.' if len(near) > 1 else ''}")
    raise Wrong(f"{name} has the right shape and the numbers of another tensor.")


def _of(name: str, which: str, everything: Mapping[str, Any], end: str) -> Any:
    tensor = everything[f"{name.partition('.attn1')[0]}.attn1.to_{which}.{end}"]
    return tensor if isinstance(tensor, Tensor) else torch.empty(0)
