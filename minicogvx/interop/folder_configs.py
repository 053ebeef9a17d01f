"""What the JSON files of a pipeline folder say, read and checked before any weight is.

    model_index.json   scheduler/   text_encoder/   tokenizer/   transformer/   vae/   minicogvx.json

The last is ours, and diffusers passes over it: its version, frames per second, what the model takes for "no caption",
its guidance scale, and the config fields that the other files have no place for. What it does not say is as published;
but where it has no version, it was written when a VAE kept the first frame by itself unless it said otherwise.

A model that is stored as its difference from another one (difference.py) has two files instead:

    difference.json   difference.safetensors
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from minicogvx.interop.configs import SCHEDULERS, from_diffusers
from minicogvx.interop.safetensors_files import read_json
from minicogvx.presets import ScheduleConfig, TransformerConfig, VAEConfig
from minicogvx.ranges import check_choice, check_number, shown

INDEX, OWN, DIFFERENCE = "model_index.json", "minicogvx.json", "difference.json"
VERSION = 1  # of minicogvx.json
CONFIG_FILES = {"scheduler": (ScheduleConfig, "scheduler_config.json"),
                "transformer": (TransformerConfig, "config.json"), "vae": (VAEConfig, "config.json")}
_PIPELINES = ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXVideoToVideoPipeline")
_CLASSES = {"scheduler": tuple(SCHEDULERS), "text_encoder": ("T5EncoderModel",),
            "tokenizer": ("T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
            "transformer": ("CogVideoXTransformer3DModel", "ExpertTransformer"),
            "vae": ("AutoencoderKLCogVideoX", "CausalVAE")}
_FIELDS = ("version", "fps", "guidance_scale", "unconditional", *CONFIG_FILES)


class FolderConfigs(NamedTuple):
    """All that the JSON files of a pipeline folder say of its model."""

    vae: VAEConfig
    transformer: TransformerConfig
    schedule: ScheduleConfig
    fps: int
    unconditional: str
    guidance_scale: float


class Base(NamedTuple):
    """What difference.json says: the folder of the model that the difference is added to, and whether that model first
    gets the channels of an image, with weights of zero."""

    folder: Path
    image_channels: bool


def base_of(folder: str | Path) -> Base | None:
    """The model from which that in `folder` is a difference; None for an ordinary folder.

    Raises FileNotFoundError or ValueError, one sentence that names the file, where difference.json is wrong.
    """
    path = Path(folder) / DIFFERENCE
    if not path.is_file():
        return None
    said = read_json(path)
    base, channels = said.get("base"), said.get("image_channels")
    if not isinstance(base, str) or not isinstance(channels, bool) or len(said) > 2:
        raise ValueError(f"{path} must have two fields: base, the folder of another model, and image_channels, true or "
                         f"false")
    if not (path.parent / base / INDEX).is_file():
        raise FileNotFoundError(f"{path} names the model {shown(base)} as its base, and there is no "
                                f"{path.parent / base / INDEX}")
    return Base(path.parent / base, channels)


def read_configs(folder: str | Path) -> FolderConfigs:
    """Raises FileNotFoundError or ValueError, one sentence that names the file, for what cannot be."""
    folder = Path(folder)
    base = base_of(folder)
    if base is not None:
        configs = read_configs(base.folder)
        wider = {"in_channels": 2 * configs.transformer.in_channels} if base.image_channels else {}
        return configs._replace(transformer=replace(configs.transformer, **wider))
    index = _read_index(folder)
    own = read_own(folder, index)
    configs = {name: read_config(name, folder / name, own) for name in CONFIG_FILES}
    configs["scheduler"] = replace(configs["scheduler"], sampler=SCHEDULERS[index["scheduler"][1]])  # the index decides
    vae, transformer = configs["vae"], configs["transformer"]
    _check_together(vae, transformer, folder)
    fps = own.get("fps", 16 if transformer.patch_size_t else 8)
    return FolderConfigs(vae, transformer, configs["scheduler"], fps, own.get("unconditional", "empty"),
                         float(own.get("guidance_scale", 6.0)))


def _read_index(folder: Path) -> dict:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; it must be a diffusers pipeline folder")
    if not (folder / INDEX).is_file():
        alone = " (one network alone opens with interop.diffusers_folder.load_vae or load_transformer)"
        raise FileNotFoundError(f"{folder} has no {INDEX}; it must be a diffusers pipeline folder"
                                + alone * (folder / "config.json").is_file())
    index = read_json(folder / INDEX)
    if index.get("_class_name") not in _PIPELINES:
        raise ValueError(f"{folder / INDEX} is of a {shown(index.get('_class_name'))}; "
                         f"it must be of a {' or '.join(_PIPELINES)}")
    for part, classes in _CLASSES.items():
        name = _class_of(index, part)
        if name not in classes:
            raise ValueError(f"{folder / INDEX} has {part}={shown(name)}; it must be {' or '.join(classes)}")
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder} has no folder {part}; its {INDEX} promises one")
    return index


def _class_of(index: dict, part: str):
    """The class that model_index.json names for a part; None where it names none."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def read_own(folder: Path, index: dict, parts: Iterable[str] = CONFIG_FILES) -> dict:
    """What minicogvx.json says, checked; nothing where there is none.

    Raises FileNotFoundError where there is none though the index names our own class for one of the `parts`.
    """
    path = folder / OWN
    if not os.path.lexists(path):  # a link that leads nowhere is there
        for part in parts:
            if _class_of(index, part) in ("ExpertTransformer", "CausalVAE"):
                raise FileNotFoundError(f"{folder} has no {OWN}, which says how its {part} departs from the published "
                                        f"one")
        return {}
    own = read_json(path)
    _check_own(own, path)
    if own.pop("version", None) is None:
        own["vae"] = {"first_frame": "start"} | own.get("vae", {})  # the default of that time
    return own


def _check_own(own: dict, path: Path) -> None:
    """Raises ValueError, which names the file, for a field or a value that minicogvx.json cannot have."""
    for name in own:
        if name not in _FIELDS:
            raise ValueError(f"{path} has a field {shown(name)}; the fields are {', '.join(_FIELDS)}")
    try:
        for name, value in own.items():
            if name == "version" and (type(value) is not int or value != VERSION):
                raise ValueError(f"version is {shown(value)}; it must be {VERSION}, the only one that is known here")
            if name in CONFIG_FILES and not isinstance(value, dict):
                raise ValueError(f"{name} is {shown(value)}; it must be an object of config fields")
            if name in ("fps", "guidance_scale"):
                check_number(name, value, whole=name == "fps")
            if name == "unconditional":
                check_choice(name, value, ("empty", "zeros"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_config(name: str, folder: Path, own: dict) -> VAEConfig | TransformerConfig | ScheduleConfig:
    """The config of one part in its folder, with the fields that minicogvx.json adds to it."""
    kind, file = CONFIG_FILES[name]
    return from_diffusers(kind, read_json(folder / file), str(folder / file), own.get(name), str(folder.parent / OWN))


def _check_together(vae: VAEConfig, transformer: TransformerConfig, folder: Path) -> None:
    """Raises ValueError for a VAE and a transformer that cannot work on the same latents."""
    latents = vae.latent_channels
    for name, valid in (("in_channels", (latents, 2 * latents)), ("out_channels", (latents,)),
                        ("temporal_compression_ratio", (vae.temporal_compression_ratio,))):
        value = getattr(transformer, name)
        if value not in valid:
            raise ValueError(f"{folder / 'transformer'} has {name}={value}; with the VAE beside it, it must be "
                             f"{' or '.join(map(str, valid))}")
