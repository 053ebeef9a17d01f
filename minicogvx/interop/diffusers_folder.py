"""Pipeline folders of diffusers, read to the parts of a model and written from them. `folder_configs.py` says what lies
in one."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from minicogvx.advice import Advice
from minicogvx.files import locked
from minicogvx.interop.configs import DIFFUSERS_VERSION, departures, own_fields, to_diffusers, unsupported
from minicogvx.interop.difference import add_difference
from minicogvx.interop.folder_configs import (
    CONFIG_FILES,
    DIFFERENCE,
    INDEX,
    OWN,
    VERSION,
    Base,
    base_of,
    read_config,
    read_configs,
    read_own,
)
from minicogvx.interop.lora import has_adapters
from minicogvx.interop.safetensors_files import (
    MAX_SHARD_BYTES,
    common_dtype,
    load_into,
    read_json,
    read_sharded,
    write_json,
    write_sharded,
)
from minicogvx.interop.text_folder import read_text, write_text
from minicogvx.presets import ScheduleConfig, TransformerConfig, VAEConfig, video_size
from minicogvx.ranges import shown
from minicogvx.text import TextEncoder
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.transformer.widen import widen_for_image
from minicogvx.vae.autoencoder import CausalVAE


class Parts(NamedTuple):
    """A whole model, as a folder holds it and a pipeline is made of it."""

    vae: CausalVAE
    transformer: ExpertTransformer
    schedule: ScheduleConfig
    text: TextEncoder
    fps: int
    unconditional: str
    guidance_scale: float


def read_folder(folder: str | Path, device: torch.device | str | None = None,
                dtype: torch.dtype | None = None) -> Parts:
    """The model in a diffusers folder: text to video or image to video, 1.0 or 1.5, whole or in shards; or in a folder
    that holds its difference from another one (difference.py).

    `device` None is the CPU; `dtype` None keeps the number format of the files. Everything that can be checked
    without the weights is checked first. Raises FileNotFoundError or ValueError, one sentence that names the file.
    """
    folder = Path(folder)
    configs, base = read_configs(folder), base_of(folder)
    if base is not None:
        parts = read_folder(base.folder, device, dtype)
        return parts._replace(transformer=_read_difference(folder, base, parts.transformer.proj_out.weight))
    text = _read_text(folder, configs.transformer, dtype).to(device or "cpu")
    vae = _read_module(CausalVAE, configs.vae, folder / "vae", device, dtype)
    transformer = _read_module(ExpertTransformer, configs.transformer, folder / "transformer", device, dtype)
    return Parts(vae, transformer, configs.schedule, text, configs.fps, configs.unconditional, configs.guidance_scale)


def _read_difference(folder: Path, base: Base, like: torch.Tensor) -> ExpertTransformer:
    """The transformer of a folder that holds a difference, on the device of `like` and in its number format."""
    transformer = load_transformer(base.folder, "cpu", torch.float32)
    if base.image_channels:
        transformer = widen_for_image(transformer)
    add_difference(transformer, folder / DIFFERENCE.replace(".json", ".safetensors"))
    return transformer.to(like.device, like.dtype).eval()


def load_vae(folder: str | Path, device: torch.device | str | None = None,
             dtype: torch.dtype | None = None) -> CausalVAE:
    """The VAE alone: of a pipeline folder, or in a folder of its own with config.json and weights.

    Arguments and errors are those of `read_folder`.
    """
    return _load_alone(CausalVAE, "vae", Path(folder), device, dtype)


def load_transformer(folder: str | Path, device: torch.device | str | None = None,
                     dtype: torch.dtype | None = None) -> ExpertTransformer:
    """The transformer alone, as `load_vae`."""
    return _load_alone(ExpertTransformer, "transformer", Path(folder), device, dtype)


def _load_alone(make: Callable[..., nn.Module], name: str, folder: Path, device, dtype) -> nn.Module:
    place = Path(os.path.abspath(folder / name if (folder / INDEX).is_file() else folder))  # "." has a parent, too
    if not (place / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has neither {INDEX} nor config.json; it must be a diffusers pipeline folder "
                                f"or the folder of one {name}")
    index = place.parent / INDEX
    own = read_own(place.parent, read_json(index), (name,)) if index.is_file() else {}
    return _read_module(make, read_config(name, place, own), place, device, dtype)


def _read_module(make: Callable[..., nn.Module], config: VAEConfig | TransformerConfig, folder: Path,
                 device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Module:
    """Built without memory on the meta device; the tensors of the files then become its weights."""
    with torch.device("meta"):
        module = make(config)
    tensors = read_sharded(folder)
    load_into(module, tensors, folder)
    return module.to(device or "cpu", dtype or common_dtype(tensors)).eval()


def _read_text(folder: Path, config: TransformerConfig, dtype: torch.dtype | None) -> TextEncoder:
    width = read_json(folder / "text_encoder" / "config.json").get("d_model")
    if width != config.text_embed_dim:
        raise ValueError(f"{folder / 'text_encoder'} has d_model={shown(width)}; the transformer takes text features "
                         f"of width {config.text_embed_dim}")
    return read_text(folder, config.max_text_seq_length, dtype)


# ---- out


def write_folder(parts: Parts, folder: str | Path, dtype: torch.dtype | None = None, overwrite: bool = False,
                 allow_departures: bool = False, max_shard_bytes: int = MAX_SHARD_BYTES) -> Path:
    """Write a model as a folder that `from_pretrained` of diffusers opens, all of it or nothing.

    Args:
        dtype: number format of the weights in the files; None keeps what they have.
        overwrite: replace a folder that is there and not empty.
        allow_departures: also write a model that diffusers cannot compute; only minicogvx then opens the folder.
        max_shard_bytes: weights above this size are cut into several files.

    Where diffusers makes the same video only if it is told something, a warning says what (`same_in_diffusers`).

    Raises:
        ValueError: a folder in the way, a departure, or a weight that is not finite; nothing is left behind.
    """
    asked, folder = Path(folder).absolute(), Path(os.path.realpath(folder))  # a link stays a link
    fill = folder.is_dir() and is_free(folder)
    if has_adapters(parts.transformer):
        raise ValueError("the transformer has LoRA adapters beside its weights, which have no place in this folder; "
                         "load it in float32, where merge_lora keeps all of them")
    found = _unsupported(parts)
    if found and not allow_departures:
        raise ValueError(f"diffusers cannot compute {', '.join(found)}; export a model without it, or pass "
                         f"allow_departures=True for a folder that minicogvx alone opens")
    with _workplace(folder, fill) as new, _naming(asked, new):
        if not is_free(folder) and not (overwrite and folder.is_dir()):
            raise ValueError(f"{asked} is there already and is not an empty folder; name a new one (in Python, "
                             f"overwrite=True replaces it)")
        _write_parts(parts, new, dtype, max_shard_bytes)
        (_fill if fill else _replace)(folder, new)
    advice = same_in_diffusers(parts.vae.config, parts.transformer.config, parts.guidance_scale)
    if advice and not found:
        warnings.warn(advice, Advice, stacklevel=3)  # where Pipeline.save is called
    return asked


def same_in_diffusers(vae: VAEConfig, transformer: TransformerConfig, guidance_scale: float) -> str:
    """What a call in diffusers must say to make the same video as here, in one sentence; empty where it is nothing."""
    space, time = vae.spatial_compression_ratio, vae.temporal_compression_ratio
    grid = transformer.sample_height * space, transformer.sample_width * space  # diffusers' own default size
    frames, *size = video_size(vae, transformer)
    names = " ".join(departures(vae) + departures(transformer))
    size = grid if "position_scaling" in names else tuple(size)
    options, reasons = {}, []
    if transformer.max_text_seq_length != 226:
        options["max_sequence_length"] = transformer.max_text_seq_length
    if guidance_scale != 6:
        options["guidance_scale"] = guidance_scale
    if "position_scaling" in names or size != grid:
        options |= {"height": size[0], "width": size[1]}
    if "position_scaling" in names:
        reasons.append("scales positions at other sizes")
    if transformer.image_to_video and frames != 49:  # its default for every such model
        options["num_frames"] = frames
    if "first_frame" in names:
        options["num_frames"] = f"{2 * time}k + 1"
        reasons.append("has another rule for the first frame at other counts")
    if not options:
        return ""
    call = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"diffusers makes the same video when called with {call}" + f"; it {' and '.join(reasons)}" * bool(reasons)


def _unsupported(parts: Parts) -> list[str]:
    found = unsupported(parts.vae.config) + unsupported(parts.transformer.config) + unsupported(parts.schedule)
    return found + (["unconditional='zeros'"] if parts.unconditional == "zeros" else [])


def _write_parts(parts: Parts, folder: Path, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    own = {"version": VERSION, "fps": parts.fps, "unconditional": parts.unconditional,
           "guidance_scale": parts.guidance_scale}
    for name, config in (("scheduler", parts.schedule), ("transformer", parts.transformer.config),
                         ("vae", parts.vae.config)):
        write_json(folder / name / CONFIG_FILES[name][1], to_diffusers(config))
        if own_fields(config):
            own[name] = own_fields(config)
    write_json(folder / OWN, own)
    write_sharded(folder / "transformer", parts.transformer.state_dict(), dtype=dtype, max_shard_bytes=max_shard_bytes)
    write_sharded(folder / "vae", parts.vae.state_dict(), dtype=dtype, max_shard_bytes=max_shard_bytes)
    write_text(parts.text, folder, dtype, max_shard_bytes)
    write_json(folder / INDEX, _index(parts))


def _index(parts: Parts) -> dict:
    """model_index.json. A part that departs has our class there, so that diffusers refuses it aloud."""
    vae, transformer = parts.vae.config, parts.transformer.config
    to_video = "CogVideoXImageToVideoPipeline" if transformer.image_to_video else "CogVideoXPipeline"
    their_transformer, their_vae = ["diffusers", "CogVideoXTransformer3DModel"], ["diffusers", "AutoencoderKLCogVideoX"]
    return {"_class_name": to_video, "_diffusers_version": DIFFUSERS_VERSION,
            "scheduler": ["diffusers", to_diffusers(parts.schedule)["_class_name"]],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "PreTrainedTokenizerFast" if parts.text.whole_words else "T5Tokenizer"],
            "transformer": ["minicogvx", "ExpertTransformer"] if unsupported(transformer) else their_transformer,
            "vae": ["minicogvx", "CausalVAE"] if unsupported(vae) else their_vae}


_NEW, _OLD = "new", "old"  # what an export has in its workplace: the folder it writes, and the one it replaces
_INSIDE = ".export.part"  # the workplace in an empty folder


def is_free(folder: Path) -> bool:
    """Whether a model can be written to `folder` without replacing anything: it is not there, or empty.

    What a killed export left in it does not count.
    """
    return not folder.exists() or folder.is_dir() and all(path.name == _INSIDE for path in folder.iterdir())


def _replace(folder: Path, new: Path) -> None:
    if folder.exists():
        os.replace(folder, new.with_name(_OLD))
    os.replace(new, folder)


def _fill(folder: Path, new: Path) -> None:
    """Moves the files of `new` into the empty `folder`, the index last; none of them if one cannot be moved."""
    names = sorted((path.name for path in new.iterdir()), key=lambda name: (name == INDEX, name))
    try:
        for name in names:
            os.replace(new / name, folder / name)
    except BaseException:
        for name in names:
            if (folder / name).exists() and not (new / name).exists():
                os.replace(folder / name, new / name)
        raise


@contextmanager
def _naming(asked: Path, new: Path) -> Iterator[None]:
    """Has errors name a file below `asked`, not the one in the workplace, which is gone when they are read."""
    try:
        yield
    except OSError as error:
        if str(new) not in str(error):
            raise
        raise OSError(str(error).replace(str(new), str(asked))) from error


@contextmanager
def _workplace(folder: Path, fill: bool) -> Iterator[Path]:
    """Where a new `folder` is written: in a hidden folder, by one process at a time, and gone at the end.

    It is beside `folder`, or with `fill` in it: an empty folder stays the same one, which may be a mounted disk or
    where a shell is. First what a killed export left is cleared.
    """
    home = folder / _INSIDE if fill else folder.with_name(f".{folder.name}.part")
    try:
        with locked(home):
            _clear(home, folder)
            try:
                yield home / _NEW
            finally:
                _clear(home, folder)
    finally:
        with suppress(OSError):  # it is gone, or the next export is in it
            home.rmdir()


def _clear(home: Path, folder: Path) -> None:
    """Empties the workplace. An old folder whose place is still free goes back there: the new one never came."""
    if (home / _OLD).exists() and not folder.exists():
        os.replace(home / _OLD, folder)
    for left in (home / _NEW, home / _OLD):
        shutil.rmtree(left, ignore_errors=True)
