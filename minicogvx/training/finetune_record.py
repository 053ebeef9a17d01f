"""What a fine-tuning run was begun with: its settings and inputs, recorded, and compared when it is resumed."""

import argparse
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from minicogvx.engine.config import ADAPTERS, JOINT, compare, surroundings
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.run_folder import forget_failed_start
from minicogvx.interop import find_folder
from minicogvx.interop.lora import FILE
from minicogvx.training.finetune import FineTuning

_RECORD, _LOG, _PICTURE = "finetuning.json", "finetune.jsonl", "first_frame.png"  # some of the files that a run writes


def compare_with_before(arguments: argparse.Namespace, tuning: FineTuning, out: Path, dtype: torch.dtype,
                        here: Ranks) -> Callable[[], None]:
    """A function that records settings and inputs of the run.

    Raises ValueError if `out` was begun with others, or holds what the run would write over and did not make.
    """
    model, adapters = find_folder(arguments.model), Path(tuning.lora_from or ".")
    files = {"weights of the model": sorted((model / "transformer").glob("*.safetensors")),
             ADAPTERS: [adapters / FILE if adapters.is_dir() else adapters] if tuning.lora_from else []}
    _spare_inputs(out, {"--list": arguments.list, "--model": model, "--lora-from": next(iter(files[ADAPTERS]), None)})
    forget_failed_start(out / _RECORD, [_LOG], [_PICTURE] * tuning.image_to_video)
    also = {name: _digest(paths) for name, paths in files.items()} | surroundings(here, dtype)
    return compare(out / _RECORD, tuning, arguments.seed,
                   also | {JOINT: tuning.batch_size * here.world_size})


def _spare_inputs(out: Path, given: Mapping[str, str | Path | None]) -> None:
    """Raises ValueError if the run would write over a file or folder that an option names."""
    written = [out / name for name in (_RECORD, _LOG, _PICTURE, FILE, "pipeline")]
    for option, source in given.items():
        for path in written if source else ():
            if path.exists() and path.samefile(source):
                raise ValueError(f"{path} is to be written, and it is what {option} names; name another folder with "
                                 f"--out")


def _digest(paths: list[Path]) -> str:
    """A short hash of the files' content, which does not depend on the dtype they are loaded in."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
