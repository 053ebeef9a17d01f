"""What a training was begun with: its settings and inputs, recorded, and compared when it is resumed."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from minicogvx.data.films.folder import VideoClip
from minicogvx.engine.config import ADAPTERS, compare, fields, surroundings
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.run_folder import has_begun
from minicogvx.files import check_writable
from minicogvx.interop import find_folder
from minicogvx.interop.lora import FILE
from minicogvx.interop.safetensors_files import read_json
from minicogvx.training.film_data import WORDS
from minicogvx.training.result import PICTURE
from minicogvx.visible import many

RECORD, LOGS = "recipe.json", ("vae_[0-9]*.jsonl", "transformer.jsonl")
FILMS = "films.json"


def compare_with_before(job, dtype: torch.dtype, ranks: Ranks) -> Callable[[], None]:
    """A function that records settings and inputs of the run `job`, a `train.Job`.

    Raises ValueError if `job.out` was begun with others, or holds what the run would write over and did not make.
    """
    training, out = job.recipe.transformer, job.out
    check_writable(out, folder=True)
    adapters = Path(training.lora_from or ".")
    files = {ADAPTERS: [adapters / FILE if adapters.is_dir() else adapters] if training.lora_from else []}
    for name, model, used in (("weights of the model", job.start, ("transformer",)),
                              ("weights of the encoders", job.encoders, ("vae", "text_encoder"))):
        parts = () if model in (None, "random") else [find_folder(model) / part for part in used]
        files[name] = [file for part in parts for file in sorted(part.glob("*.safetensors"))]
    _spare_inputs(out, {"--list": job.data and job.data.listing, "--lora-from": next(iter(files[ADAPTERS]), None),
                        **{name: find_folder(model) for name, model in
                           (("--from", job.start), ("--encoders", job.encoders)) if model not in (None, "random")}})
    others = ["minutes.json", "samples", WORDS, FILMS] + [PICTURE] * training.image_to_video
    begun = has_begun(out / RECORD, LOGS, others)
    own, films = job.recipe.model_sizes, job.data
    data = {"data": str(films.folder.resolve()) if films else "world",
            "list": str(Path(films.listing).resolve()) if films and films.listing else None,
            "films held back": job.holds_films_back}
    return compare(out / RECORD, replace(job.recipe, sizes=own), job.seed,
                   data | {name: _digest(paths) for name, paths in files.items()} | surroundings(ranks, dtype),
                   fields(own, "sizes"), begun)


def _spare_inputs(out: Path, given: Mapping[str, str | Path | None]) -> None:
    """Raises ValueError if the run would write over a file or folder that an option names."""
    written = [out / name for name in (RECORD, "transformer.jsonl", PICTURE, FILE, "pipeline")]
    for option, source in given.items():
        for path in written if source else ():
            if path.exists() and path.samefile(source):
                raise ValueError(f"{path} is to be written, and it is what {option} names; name another folder with "
                                 f"--out")


def film_facts(films: Sequence[VideoClip]) -> dict[str, list]:
    """Bytes and caption of each film, or piece of one: the content of `FILMS`."""
    return {f"{clip.name} {clip.start:.3f} {clip.end:.3f}": [clip.path.stat().st_size, clip.caption] for clip in films}


def changed_films(path: Path, now: Mapping[str, list]) -> str:
    """Such as "2 new, 1 removed, 1 caption changed"; empty if nothing has, or there is no record at `path`."""
    before = read_json(path) if path.exists() else {}
    if not before:
        return ""
    both = now.keys() & before.keys()
    replaced, captions = ([key for key in both if now[key][i] != before[key][i]] for i in (0, 1))
    told = [f"{len(keys)} {what}" for what, keys in {"new": now.keys() - before.keys(), "replaced": replaced,
                                                     "removed": before.keys() - now.keys()}.items() if keys]
    return ", ".join(told + [f"{many(len(captions), 'caption')} changed"] * bool(captions))


def _digest(paths: list[Path]) -> str:
    """A short hash of the files' content, which does not depend on the dtype they are loaded in."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
