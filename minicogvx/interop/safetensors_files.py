"""Weights in files: safetensors only, whole or in shards, checked by name and shape before anything is copied.

A pickle can run code when it is opened, so none is opened here.
"""

import json
import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minicogvx.files import written_whole
from minicogvx.ranges import shown

MAX_SHARD_BYTES = 5 * 10**9
_INDEX = ".safetensors.index.json"


# ---- reading


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file, by name, on the CPU.

    The file is mapped, not read: a tensor costs memory only once somebody looks at it.
    Raises FileNotFoundError where there is none, ValueError where it is empty, truncated or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; it must be a safetensors file with weights")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{path} {_what_it_is(path)}") from error


def read_sharded(folder: str | Path, stem: str = "diffusion_pytorch_model") -> dict[str, Tensor]:
    """The tensors of `stem.safetensors`, or of all the shards that `stem.safetensors.index.json` names.

    Where neither is there, those of the one variant in the folder, such as `stem.fp16.safetensors`.
    """
    first = _first_file(Path(folder), stem)
    return _read_shards(first) if first.suffix == ".json" else read_tensors(first)


def _first_file(folder: Path, stem: str) -> Path:
    """The index of the shards or the one file; a variant's only where there is no plain one, as in diffusers."""
    index, whole = folder / (stem + _INDEX), folder / f"{stem}.safetensors"
    for plain in (index, whole):
        if plain.is_file():
            return plain
    pattern = re.compile(re.escape(stem) + r"\.(?:safetensors\.index\.(\w+)\.json|(\w+)\.safetensors)")
    found = {path: match[1] or match[2] for path in sorted(folder.glob("*")) if (match := pattern.fullmatch(path.name))}
    if len(set(found.values())) > 1:
        raise ValueError(f"{folder} holds its weights as the variants {' and '.join(sorted(set(found.values())))}; it "
                         f"must hold one of them, or {whole.name}")
    if found:
        return max(found, key=lambda path: path.suffix == ".json")  # shards before a single file, as for plain ones
    pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
    if pickles:
        raise FileNotFoundError(f"{folder} holds its weights as a pickle, {pickles[0]}, which could run code and is "
                                f"never opened; it must hold {whole.name}")
    raise FileNotFoundError(f"{folder} holds no weights; it must hold {whole.name} or {index.name}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index} has no weight_map; it must say in which file each tensor is")
    tensors = {}
    for file in sorted({str(file) for file in names.values()}):
        if Path(file).name != file or len(file.encode(errors="replace")) > 255:
            raise ValueError(f"{index} names the file {shown(file)}; it must be one beside it")
        tensors |= read_tensors(index.parent / file)
    lost = [name for name in names if name not in tensors]
    if lost:
        raise ValueError(f"{index.parent} lacks the tensor {lost[0]}, which its index puts into {names[lost[0]]}; "
                         f"copy or download the folder again")
    return tensors


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], origin: str | Path) -> None:
    """Give `module` these weights, all of them, once every name and shape is known to fit.

    A module on the meta device takes the tensors themselves, in their number format; any other gets a copy.
    Raises ValueError with one sentence that names `origin` and the first tensor that does not fit.
    """
    wanted = module.state_dict()
    kind = type(module).__name__
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise ValueError(f"{origin} lacks the tensor {missing[0]}{_and_more(missing)}, which this {kind} needs; "
                         f"its config.json and its weights must belong together")
    unexpected = [name for name in tensors if name not in wanted]
    if unexpected:
        raise ValueError(f"{origin} has a tensor {unexpected[0]}{_and_more(unexpected)}, which this {kind} does not "
                         f"know; its config.json and its weights must belong together")
    for name, like in wanted.items():
        tensor = tensors[name]
        if tensor.shape != like.shape:
            raise ValueError(f"{name} in {origin} has the shape {tuple(tensor.shape)}; "
                             f"this {kind} needs {tuple(like.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} in {origin} holds {str(tensor.dtype).removeprefix('torch.')}; weights must be "
                             f"floating-point numbers")
    on_meta = any(tensor.is_meta for tensor in wanted.values())
    module.load_state_dict(dict(tensors), strict=True, assign=on_meta)


def common_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The narrowest number format to compute in that holds them all; for those of 8 bits this is bfloat16."""
    formats = {torch.bfloat16 if tensor.dtype.itemsize == 1 else tensor.dtype for tensor in tensors.values()}
    return reduce(torch.promote_types, formats)


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _what_it_is(path: Path) -> str:
    """The rest of a sentence about a file that is not a whole safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if size == 0:
        return "is empty; it must be a safetensors file with weights"
    if head.startswith(b"version https://git-lfs"):
        return "is only a pointer of git-lfs; run `git lfs pull` to fetch the weights"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "is a pickle, which could run code and is never opened; it must be a safetensors file"
    if head[8:9] == b"{":
        return f"is a safetensors file cut short or damaged, of {size} bytes; copy or download it again"
    return "is no safetensors file; it must start with the length of a JSON header"


# ---- writing


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write one safetensors file beside its place and move it there: nobody ever sees half of it.

    Raises ValueError for a weight that is NaN or infinite, before anything is written, and OSError, which names the
    file, where it cannot be written.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity as {str(tensor.dtype).removeprefix('torch.')}; weights "
                             f"must be finite, so {path} was not written")
    with written_whole(path) as part:
        try:
            save_file(tensors, part, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(f"{path} cannot be written: {error}") from error
    return path


def write_sharded(folder: str | Path, tensors: Mapping[str, Tensor], stem: str = "diffusion_pytorch_model",
                  dtype: torch.dtype | None = None, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """One file, or several of at most `max_shard_bytes` and an index, named as diffusers names them.

    `dtype` is the number format in the file; None keeps each tensor's own. A single tensor is never split.
    """
    folder, shards, room = Path(folder), [[]], max_shard_bytes
    for name, tensor in tensors.items():
        size = tensor.numel() * (dtype or tensor.dtype).itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
    files = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [f"{stem}.safetensors"]
    for file, names in zip(files, shards):
        write_tensors(folder / file, {name: tensors[name].to(dtype or tensors[name].dtype) for name in names})
    if len(shards) > 1:
        total = sum(tensor.numel() * (dtype or tensor.dtype).itemsize for tensor in tensors.values())
        places = {name: file for file, names in zip(files, shards) for name in names}
        write_json(folder / (stem + _INDEX), {"metadata": {"total_size": total}, "weight_map": places})


# ---- JSON beside them


def read_json(path: str | Path) -> dict:
    """A JSON object. Raises FileNotFoundError or ValueError with one sentence that names the file."""
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"there is no file {path}: it is a link that leads nowhere; copy or download it again")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; a diffusers folder must have it")
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not JSON, not even text, or nested thousands deep
        raise ValueError(f"{path} is no JSON; copy or download it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; it must hold a JSON object")
    return values


def write_json(path: str | Path, values: dict) -> Path:
    """Write a JSON object beside its place and move it there."""
    with written_whole(path) as part:
        part.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return Path(path)
