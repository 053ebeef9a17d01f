"""Pipeline folders of diffusers: open one, write one.

    model_index.json   scheduler/   text_encoder/   tokenizer/   transformer/   vae/   minicogvx.json

The last is ours, and diffusers passes over it: frames per second, what the model takes for "no caption", its guidance
scale, and the config fields that the other files have no place for. Where it is missing, the published behaviour holds.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from minicogvx.interop.configs import (
    DIFFUSERS_VERSION, SCHEDULERS, departures, from_diffusers, own_fields, to_diffusers, with_own_fields,
)
from minicogvx.interop.safetensors_files import (
    MAX_SHARD_BYTES, load_into, read_json, read_sharded, write_json, write_sharded,
)
from minicogvx.presets import ScheduleConfig, TransformerConfig, VAEConfig
from minicogvx.room import is_out_of_memory
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae.autoencoder import CausalVAE

INDEX, OWN = "model_index.json", "minicogvx.json"
PARTS = {"scheduler": (ScheduleConfig, "scheduler_config.json"), "transformer": (TransformerConfig, "config.json"),
         "vae": (VAEConfig, "config.json")}
_PIPELINES = ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXVideoToVideoPipeline")
_CLASSES = {"scheduler": tuple(SCHEDULERS), "text_encoder": ("T5EncoderModel",),
            "tokenizer": ("T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
            "transformer": ("CogVideoXTransformer3DModel", "ExpertTransformer"),
            "vae": ("AutoencoderKLCogVideoX", "CausalVAE")}


# ---- in


def load_pipeline(folder: str | Path, device: torch.device | str | None = None,
                  dtype: torch.dtype | None = None) -> "minicogvx.pipeline.Pipeline":  # noqa: F821
    """The pipeline in a diffusers folder: text to video or image to video, 1.0 or 1.5, whole or in shards.

    `device` None is the CPU; `dtype` None keeps the number format of the files. Everything that can be checked
    without the weights is checked first. Raises FileNotFoundError or ValueError, one sentence that names the file.
    """
    from minicogvx.pipeline import Pipeline  # it stands above this module

    folder = Path(folder)
    configs, own = read_configs(folder)
    text = _load_text(folder, configs["transformer"], dtype)
    vae = _load_module(CausalVAE, configs["vae"], folder / "vae", dtype)
    transformer = _load_module(ExpertTransformer, configs["transformer"], folder / "transformer", dtype)
    for module in (vae, transformer, text.encoder):
        module.to(device or "cpu")
    return Pipeline(vae, transformer, configs["scheduler"], text, own["fps"], own["unconditional"],
                    float(own["guidance_scale"]))


def read_configs(folder: str | Path) -> tuple[dict, dict]:
    """(the configs of scheduler, transformer and vae by these names, the values of minicogvx.json)."""
    folder = Path(folder)
    index = _read_index(folder)
    configs = {name: from_diffusers(kind, read_json(folder / name / file), str(folder / name / file))
               for name, (kind, file) in PARTS.items()}
    configs["scheduler"] = replace(configs["scheduler"], sampler=SCHEDULERS[index["scheduler"][1]])  # the index decides
    own = {"fps": 16 if configs["transformer"].patch_size_t else 8, "unconditional": "empty",
           "guidance_scale": 6.0}
    path = folder / OWN
    if path.is_file():
        own |= read_json(path)
        for name in PARTS:
            fields = own.pop(name, {})
            if not isinstance(fields, dict):
                raise ValueError(f"{path} has {name}={fields!r}; it must be an object of config fields")
            configs[name] = with_own_fields(configs[name], fields, str(path))
        _check_own(own, path)
    return configs, own


def _read_index(folder: Path) -> dict:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; it must be a diffusers pipeline folder")
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder} has no {INDEX}; it must be a diffusers pipeline folder")
    index = read_json(folder / INDEX)
    if index.get("_class_name") not in _PIPELINES:
        raise ValueError(f"{folder / INDEX} is of a {index.get('_class_name')!r}; "
                         f"it must be of a {' or '.join(_PIPELINES)}")
    for part, classes in _CLASSES.items():
        entry = index.get(part)
        name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if name not in classes:
            raise ValueError(f"{folder / INDEX} has {part}={name!r}; it must be {' or '.join(classes)}")
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder} has no folder {part}; its {INDEX} promises one")
        if name in ("ExpertTransformer", "CausalVAE") and not (folder / OWN).is_file():
            raise FileNotFoundError(f"{folder} has no {OWN}, which says how its {part} departs from the published one")
    return index


def _check_own(own: dict, path: Path) -> None:
    for name in own:
        if name not in ("fps", "unconditional", "guidance_scale"):
            raise ValueError(f"{path} sets {name!r}; it may set fps, unconditional, guidance_scale, {', '.join(PARTS)}")
    if type(own["fps"]) is not int or own["fps"] < 1:
        raise ValueError(f"{path} has fps={own['fps']!r}; it must be a whole number above 0")
    if own["unconditional"] not in ("empty", "zeros"):
        raise ValueError(f"{path} has unconditional={own['unconditional']!r}; it must be 'empty' or 'zeros'")
    scale = own["guidance_scale"]
    if type(scale) not in (int, float) or not 0 <= scale < float("inf"):
        raise ValueError(f"{path} has guidance_scale={scale!r}; it must be a number, 0 or more")


def _load_module(make: Callable[..., nn.Module], config: VAEConfig | TransformerConfig, folder: Path,
                 dtype: torch.dtype | None) -> nn.Module:
    """Built without memory on the meta device; the tensors of the files then become its weights."""
    with torch.device("meta"):
        module = make(config)
    tensors = read_sharded(folder)
    load_into(module, tensors, folder)
    return module.to(dtype or _common_dtype(tensors)).eval()


def _load_text(folder: Path, config: TransformerConfig, dtype: torch.dtype | None):
    from minicogvx.text.encoder import TextEncoder  # imports transformers, which takes seconds

    width = read_json(folder / "text_encoder" / "config.json").get("d_model")
    if width != config.text_embed_dim:
        raise ValueError(f"{folder / 'text_encoder'} has d_model={width!r}; the transformer takes text features of "
                         f"width {config.text_embed_dim}")
    tensors = read_sharded(folder / "text_encoder", "model")
    try:
        text = TextEncoder.from_folder(folder, config.max_text_seq_length, dtype or _common_dtype(tensors))
    except Exception as error:  # whatever transformers raises: dozens of kinds, over many lines
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the tokenizer or text_encoder in {folder} does not open: {reason}") from error
    for name, _ in text.encoder.named_parameters():
        if name not in tensors and name not in ("shared.weight", "encoder.embed_tokens.weight"):
            raise ValueError(f"{folder / 'text_encoder'} lacks the tensor {name}, which its T5EncoderModel needs")
    return text


def _common_dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, {tensor.dtype for tensor in tensors.values()})


# ---- out


def export(pipe: "minicogvx.pipeline.Pipeline", folder: str | Path, dtype: torch.dtype | None = None,  # noqa: F821
           overwrite: bool = False, allow_departures: bool = False, max_shard_bytes: int = MAX_SHARD_BYTES) -> Path:
    """Write `pipe` as a folder that `from_pretrained` of diffusers opens, all of it or nothing.

    Args:
        dtype: number format of the weights in the files; None keeps what they have.
        overwrite: replace a folder that is there and not empty.
        allow_departures: also write a model that diffusers cannot compute; only minicogvx then opens the folder.
        max_shard_bytes: weights above this size are cut into several files.

    Raises:
        ValueError: a folder in the way, a departure, or a weight that is not finite; nothing is left behind.
    """
    folder = Path(folder).absolute()
    _tidy(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (overwrite and folder.is_dir()):
        raise ValueError(f"{folder} is there already and is not an empty folder; name a new one or pass overwrite=True")
    found = _departures(pipe)
    if found and not allow_departures:
        raise ValueError(f"diffusers cannot compute {', '.join(found)}; export a model without it, or pass "
                         f"allow_departures=True for a folder that minicogvx alone opens")
    part = _beside(folder, "part")
    try:
        part.mkdir(parents=True)
        _write_parts(pipe, part, dtype, max_shard_bytes)
        _move(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _departures(pipe) -> list[str]:
    found = departures(pipe.vae.config) + departures(pipe.transformer.config) + departures(pipe.schedule_config)
    return found + (["unconditional='zeros'"] if pipe.unconditional == "zeros" else [])


def _write_parts(pipe, folder: Path, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    own = {"fps": pipe.fps, "unconditional": pipe.unconditional, "guidance_scale": pipe.guidance_scale}
    for name, config in (("scheduler", pipe.schedule_config), ("transformer", pipe.transformer.config),
                         ("vae", pipe.vae.config)):
        write_json(folder / name / PARTS[name][1], to_diffusers(config))
        if own_fields(config):
            own[name] = own_fields(config)
    write_json(folder / OWN, own)
    write_sharded(folder / "transformer", pipe.transformer.state_dict(), dtype=dtype, max_shard_bytes=max_shard_bytes)
    write_sharded(folder / "vae", pipe.vae.state_dict(), dtype=dtype, max_shard_bytes=max_shard_bytes)
    pipe.text.save(folder)
    if dtype:
        _cast_text(folder / "text_encoder", dtype, max_shard_bytes)
    write_json(folder / INDEX, _index(pipe))


def _cast_text(folder: Path, dtype: torch.dtype, max_shard_bytes: int) -> None:
    """Rewrites what `TextEncoder.save` wrote, in another number format."""
    tensors = read_sharded(folder, "model")
    for file in folder.glob("model*.safetensors*"):
        file.unlink()  # mapped tensors outlive their file's name
    write_sharded(folder, tensors, "model", dtype, max_shard_bytes)
    write_json(folder / "config.json", read_json(folder / "config.json") | {"dtype": str(dtype).removeprefix("torch.")})


def _index(pipe) -> dict:
    """model_index.json. A part that departs has our class there, so that diffusers refuses it aloud."""
    vae, transformer = pipe.vae.config, pipe.transformer.config
    to_video = "CogVideoXImageToVideoPipeline" if transformer.in_channels > vae.latent_channels else "CogVideoXPipeline"
    their_transformer, their_vae = ["diffusers", "CogVideoXTransformer3DModel"], ["diffusers", "AutoencoderKLCogVideoX"]
    return {"_class_name": to_video, "_diffusers_version": DIFFUSERS_VERSION,
            "scheduler": ["diffusers", to_diffusers(pipe.schedule_config)["_class_name"]],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "PreTrainedTokenizerFast" if pipe.text.whole_words else "T5Tokenizer"],
            "transformer": ["minicogvx", "ExpertTransformer"] if departures(transformer) else their_transformer,
            "vae": ["minicogvx", "CausalVAE"] if departures(vae) else their_vae}


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def _tidy(folder: Path) -> None:
    """Clears what an export left that was killed; if that was between its two renames, the old folder comes back."""
    if _beside(folder, "old").exists() and not folder.exists():
        os.replace(_beside(folder, "old"), folder)
    for kind in ("part", "old"):
        shutil.rmtree(_beside(folder, kind), ignore_errors=True)


def _move(part: Path, folder: Path) -> None:
    """Puts the finished folder in its place. An old one steps aside first and comes back if that fails."""
    old = _beside(folder, "old")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(part, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
