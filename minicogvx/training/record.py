"""What a training was begun with: its settings and inputs, recorded, and compared when it is resumed."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from minicogvx.engine.config import ADAPTERS, compare, fields, surroundings
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.run_folder import has_begun
from minicogvx.files import check_writable
from minicogvx.interop import find_folder
from minicogvx.interop.lora import FILE
from minicogvx.training.result import PICTURE

RECORD, LOGS = "recipe.json", ("vae_[0-9]*.jsonl", "transformer.jsonl")


def compare_with_before(job, dtype: torch.dtype, ranks: Ranks) -> Callable[[], None]:
    """A function that records settings and inputs of the run `job`, a `train.Job`.

    Raises ValueError if `job.out` was begun with others, or holds what the run would write over and did not make.
    """
    training, out = job.recipe.transformer, job.out
    check_writable(out, folder=True)
    adapters = Path(training.lora_from or ".")
    files = {ADAPTERS: [adapters / FILE if adapters.is_dir() else adapters] if training.lora_from else []}
    for name, model in {"weights of the model": job.start, "weights of the encoders": job.encoders}.items():
        folder = None if model in (None, "random") else find_folder(model)
        files[name] = sorted((folder / "transformer").glob("*.safetensors")) if folder else []
    _spare_inputs(out, {"--list": job.data and job.data.listing, "--lora-from": next(iter(files[ADAPTERS]), None),
                        **{name: find_folder(model) for name, model in
                           (("--from", job.start), ("--encoders", job.encoders)) if model not in (None, "random")}})
    others = ["minutes.json", "samples"] + [PICTURE] * training.image_to_video
    begun = has_begun(out / RECORD, LOGS, others)
    own = job.recipe.model_sizes
    return compare(out / RECORD, replace(job.recipe, sizes=own), job.seed,
                   {name: _digest(paths) for name, paths in files.items()} | surroundings(ranks, dtype),
                   fields(own, "sizes"), begun)


def _spare_inputs(out: Path, given: Mapping[str, str | Path | None]) -> None:
    """Raises ValueError if the run would write over a file or folder that an option names."""
    written = [out / name for name in (RECORD, "transformer.jsonl", PICTURE, FILE, "pipeline")]
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
