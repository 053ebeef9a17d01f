"""`--device` and `--dtype`, the same in every command that computes: definition and checks.

PyTorch is imported only to check them, so that `--help` answers at once.
"""

import argparse
import os
from dataclasses import replace

from minicogvx import compat
from minicogvx.parsing import SHARE, one_of

DTYPES = ("float32", "bfloat16", "float16")


def add_device_options(parser: argparse.ArgumentParser, default: str = "the fastest here",
                       dtype_default: str = "the fastest of the device", training: bool = False) -> None:
    """Adds both options to `parser`; the two defaults are texts for the help."""
    formats = [name for name in DTYPES if not (training and name == "float16")]
    parser.add_argument("--device", metavar="cpu|cuda|mps",
                        help=f"where to compute (default: MINICOGVX_DEVICE, else {default})")
    parser.add_argument("--dtype", metavar="|".join(formats),
                        help=f"dtype to compute in (default: MINICOGVX_DTYPE, else {dtype_default})")


def chosen(arguments: argparse.Namespace, training: bool = False, device: str | None = None,
           dtype: str | None = None) -> tuple:
    """(name of the device, torch.dtype) that the options choose, else the environment, else `device` and `dtype`.

    None is the fastest here. Call it before any work. Raises ValueError, in one sentence, for a missing device and for
    a dtype in which it cannot compute, or with `training` not train.
    """
    device = compat.choose_device(_first(arguments.device, "MINICOGVX_DEVICE", device))
    return device, compat.choose_dtype(device, _first(arguments.dtype, "MINICOGVX_DTYPE", dtype), training)


def _first(option: str | None, variable: str, default: str | None) -> str | None:
    """The option, or None if the environment decides, or the default."""
    return default if option is None and not os.environ.get(variable) else option


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--tile` and `--offload`, which fit a large model onto a small GPU."""
    parser.add_argument("--tile", action="store_true",
                        help="the VAE works on overlapping tiles of half the model's height and width: much less "
                             "memory, for slightly different pixels")
    parser.add_argument("--offload", action="store_true",
                        help="text encoder, transformer and VAE take turns on the device and wait in CPU memory: "
                             "the same video with less GPU memory")


def check_names(arguments: argparse.Namespace, may_be_preset: bool = False) -> None:
    """Raises ValueError or OSError for models, LoRA files and films that are not here, before PyTorch is imported.

    A model may be "random" where training begins. `may_be_preset`: presets are accepted whose weights are not here, and
    of which settings can be shown.
    """
    from minicogvx.files import check_folder
    from minicogvx.interop import find_folder
    from minicogvx.presets import PRESETS

    given = vars(arguments)
    for name in filter(None, (given.get("model"), given.get("before"), given.get("encoders"))):
        if name != "random" and not (may_be_preset and name in PRESETS):
            find_folder(name)
    for path in (given.get("lora"), given.get("lora_from")):
        if isinstance(path, str) and not os.path.exists(path):
            raise FileNotFoundError(f"there is no file {path}; it must be a LoRA file or its folder")
    films = given.get("data")
    if films and not ("recipe" in given and films == "world") and not given.get("show"):
        check_folder(films, given["list"])


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--sampler` and `--cache`."""
    parser.add_argument("--sampler", type=one_of(("ddim", "dpm")), metavar="ddim|dpm",
                        help="how noise becomes a video: DDIM, or DPM-Solver++ (default: the model's own)")
    parser.add_argument("--cache", type=SHARE, metavar="T",
                        help="skip all blocks but the first in steps in which its work changes by less than this part, "
                             "such as 0.1: faster, for a slightly different video (default: 0, skip none)")


def tell_trained_steps(path: str) -> None:
    """Prints after how many steps of training the adapters in a file were written, if the file says so."""
    from minicogvx.interop.lora import trained_steps

    if steps := trained_steps(path):
        print(f"LoRA of step {steps}: {path}", flush=True)


def load_model(name_or_folder: str, arguments: argparse.Namespace, device: str, dtype, lora: str | None = None):
    """The pipeline, on the device from `chosen`, with `--tile`, `--offload`, `--sampler` and `--cache` applied."""
    import minicogvx

    pipe = minicogvx.load(name_or_folder, device, dtype, offload=arguments.offload, lora=lora)
    pipe.tile, pipe.cache = arguments.tile, arguments.cache or 0.0
    if arguments.sampler:
        pipe.schedule_config = replace(pipe.schedule_config, sampler=arguments.sampler)
    return pipe
