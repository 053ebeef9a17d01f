"""Trains a model by a recipe: VAE, encoded clips, transformer, result; each part is resumed where it was interrupted.

    recipe.json                what the run was begun with
    vae_0.jsonl, ..., transformer.jsonl   figures
    vae.safetensors            the trained VAE
    films.json                 the films, with their captions
    words.json                 the vocabulary of a text encoder that is trained on films
    cache/                     encoded films
    checkpoints/               of the part that is being trained
    pipeline/, or pytorch_lora_weights.safetensors   the result
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import minicogvx
from minicogvx.compat import choose_dtype
from minicogvx.data.clips.clips import Clips
from minicogvx.data.clips.world import WorldClips, encode_world
from minicogvx.data.world.captions import vocabulary
from minicogvx.engine.ranks import Ranks, by_first, from_first
from minicogvx.engine.run_folder import only_run
from minicogvx.engine.sharding import broadcast_weights
from minicogvx.interop import find_folder
from minicogvx.interop.folder_configs import FolderConfigs, read_configs
from minicogvx.interop.safetensors_files import load_into, read_json, read_tensors, write_json, write_tensors
from minicogvx.pipeline import Pipeline
from minicogvx.presets import Preset
from minicogvx.training.alignment import feature_variance
from minicogvx.training.batches import Steps
from minicogvx.training.film_data import WORDS, FilmData
from minicogvx.training.local_text import random_text
from minicogvx.training.loop import Watcher, fit
from minicogvx.training.recipes import Recipe
from minicogvx.training.record import FILMS, RECORD, changed_films, compare_with_before, film_facts
from minicogvx.training.result import write_adapters, write_result
from minicogvx.training.run import Keep, Run
from minicogvx.training.samples import FilmSamples, WorldSamples
from minicogvx.training.stages import stage_of
from minicogvx.training.start import prepared_transformer, random_transformer, with_transformer
from minicogvx.training.transformer import TransformerTask
from minicogvx.training.vae import train_vae
from minicogvx.training.validation import SwapGain, Validation
from minicogvx.training.videos import WorldVideos
from minicogvx.vae import CausalVAE
from minicogvx.visible import many

VALIDATION_SEED = 7_000_003  # of drawn clips held back
RANDOM = "random"


@dataclass(frozen=True)
class Job:
    """What `minicogvx train` was asked for."""

    recipe: Recipe
    out: Path
    data: FilmData | None = None  # None: the shapes world
    start: str = RANDOM  # the transformer's first weights: random ones, or those of this model
    encoders: str | None = None  # the model whose VAE and text encoder are used; None: those of `start`, or new ones
    seed: int = 0
    dtype: torch.dtype | None = None
    keep: Keep = field(default_factory=Keep)

    @property
    def model(self) -> str | None:
        """The model whose VAE and text encoder are used, frozen; None: they are trained."""
        return self.encoders or (None if self.start == RANDOM else self.start)

    @property
    def holds_films_back(self) -> bool:
        """Whether some films are only measured on, not trained on."""
        training, vae = self.recipe.transformer, self.recipe.vae if self.model is None else None
        return self.data is not None and bool(training.validate_every or vae and vae.validate_every)

    @property
    def configs(self) -> Preset | FolderConfigs:
        """Of the model that is trained further, or else has the encoders; those of the recipe, if all begins anew."""
        if self.model is None:
            return self.recipe.model_sizes
        return read_configs(find_folder(self.model if self.start == RANDOM else self.start))


def train(job: Job, ranks: Ranks = Ranks()) -> str:
    """Trains VAE, then transformer and text encoder, or the transformer of a given model. All ranks call it.

    A second call with the same `job.out` resumes the first. Returns, on the first rank, lines: how many steps are
    done, the path of the result and a command that uses it. Raises, on all ranks, ValueError if `out` was begun with
    other settings (`config.HOW` may change), holds files that are not a run's, or is in use, and OSError if it cannot
    be written. Call `checks.check_job` before it: what does not fit ends this one late.
    """
    dtype = choose_dtype(ranks.device, job.dtype, training=True)
    write_down = []  # on the first rank, which has the record
    with only_run(job.out, ranks):
        by_first(lambda: write_down.append(compare_with_before(job, dtype, ranks)), ranks)
        keep = replace(job.keep, on_resume=write_down[0] if ranks.first else None)
        return _train(replace(job, dtype=dtype, keep=keep), ranks)


def _train(job: Job, ranks: Ranks) -> str:
    films = {}
    if job.data is not None:
        job = replace(job, data=job.data.scanned(job, ranks))
        if ranks.first:
            films = film_facts(job.data.films)
            _tell_films(job, films)
    minutes = Minutes(job.out / "minutes.json", ranks)
    keep = replace(job.keep, folder=job.out, on_checkpoint=_with_checkpoint(job, minutes, films, ranks))
    parts = starting_parts(job, keep, ranks)
    if job.data is not None:
        job.data.tell_words(parts.text, ranks)
    minutes.begin("encoding")
    sets, held_back = clips_of(job, parts, ranks)
    if job.data is not None:
        job.data.tell_sizes(sets, held_back, parts.vae.config, ranks)
    parts.fps = parts.fps if job.data is None else job.data.rate(parts.fps)
    minutes.begin("transformer")
    task = transformer_task(job, parts, sets, ranks)
    data = Steps(sets, task.training, task.model.config, task.ranks, job.seed, task.zero_text,
                 parts.schedule_config.num_train_timesteps)
    keep = replace(keep, on_checkpoint=_with_checkpoint(job, minutes, films, ranks, task))
    run = Run("transformer", len(data), keep, task.ranks)
    try:
        fit(task, data, run, learning_rate(task), watchers(job, task, parts, sets, held_back, ranks),
            task.training.workers)
    except KeyboardInterrupt as stop:
        before = job.out / "pipeline"  # of a run of fewer steps
        if not str(stop) or task.training.lora_rank or not before.exists():
            raise
        raise KeyboardInterrupt(f"{stop}; until it ends, {before} is that of fewer steps") from stop
    minutes.write()
    done = "Already done" if run.before == run.total else "Done"
    return f"{done}: {many(run.total, 'step')}.\n{write_result(job.out, job.start, parts, task, sets[-1], ranks)}"


def _tell_films(job: Job, films: dict[str, list]) -> None:
    """Prints which films are left out, and how the others differ from those of the last checkpoint."""
    for problem in job.data.problems:
        print(problem)
    if changes := changed_films(job.out / FILMS, films):
        print(f"films since the last checkpoint: {changes}")


def _with_checkpoint(job: Job, minutes: "Minutes", films: dict[str, list], ranks: Ranks,
                     task: TransformerTask | None = None) -> Callable[[int], None]:
    """What is written with each checkpoint: minutes, facts of `films`, and what adapters of `task` learnt."""
    def write(step: int) -> None:
        minutes.write()
        if films:
            write_json(job.out / FILMS, films)
        if task is not None and task.training.lora_rank:
            write_adapters(job.out, task, step, ranks)

    return write


def learning_rate(task: TransformerTask) -> Callable[[int], float]:
    """The learning rate of each step, as a factor: one warm-up and one schedule over all stages, times the stage's."""
    training = task.training

    def rate(step: int) -> float:
        stage = training.stages[stage_of(training.stages, step)[0]]
        return stage.learning_rate_factor * training.schedule_at(step, training.steps, training.warmup)

    return rate


def starting_parts(job: Job, keep: Keep, ranks: Ranks) -> Pipeline:
    """VAE and text encoder, trained now or given, and the transformer at its start."""
    training, sizes = job.recipe.transformer, job.recipe.model_sizes
    if job.model is None:
        vae = finished_vae(job, keep, ranks)
        torch.manual_seed(job.seed)
        model = random_transformer(sizes.transformer, training)
        words = vocabulary() if job.data is None else job.data.words(job.out / WORDS, ranks)
        text = random_text(sizes.text, words, sizes.transformer.max_text_seq_length, training)
        return Pipeline(vae, model, sizes.schedule, text, fps=sizes.fps, guidance_scale=job.recipe.guidance_scale)
    place = ranks.device if training.sharding == "replicate" else "cpu"  # FSDP2 moves each rank's shards to its device
    given = minicogvx.load(job.model, place, job.dtype)
    torch.manual_seed(job.seed)
    if job.start == RANDOM:
        return with_transformer(given, random_transformer(sizes.transformer, training))
    own = given if job.start == job.model else minicogvx.load(job.start, place, job.dtype)
    return with_transformer(given, prepared_transformer(own.transformer, training))


def finished_vae(job: Job, keep: Keep, ranks: Ranks) -> CausalVAE:
    """The VAE in `out/vae.safetensors`, or one trained now and written there."""
    file, config = job.out / "vae.safetensors", job.recipe.model_sizes.vae
    if not from_first(file.exists(), ranks):
        videos = WorldVideos(job.seed) if job.data is None else job.data.videos(job.seed)
        vae = train_vae(config, job.recipe.vae, videos, job.seed, job.dtype, keep, ranks)
        if ranks.first:
            write_tensors(file, vae.state_dict())
            for checkpoint in (job.out / "checkpoints").glob("vae_*"):
                shutil.rmtree(checkpoint)
        return vae
    vae = CausalVAE(config)
    if ranks.first:  # the file may be on its disk only
        load_into(vae, read_tensors(file), file)
    broadcast_weights(vae.to(ranks.device), ranks)
    return vae


def clips_of(job: Job, parts: Pipeline, ranks: Ranks) -> tuple[list[Clips], Clips | None]:
    """The clips of each stage, and those held back, at the size of the last."""
    if job.data is not None:
        return job.data.clips(job, parts, ranks)
    recipe, own = job.recipe, parts.video_size
    sizes = [stage.size(own)[:2] for stage in recipe.transformer.stages]
    sets = {size: _world(parts.vae, recipe, recipe.clips, job.seed + 1, size, job, ranks)
            for size in dict.fromkeys(sizes)}
    held_back = None
    if recipe.transformer.validate_every:
        count = max(ranks.world_size, min(64, round(recipe.held_back * recipe.clips)))
        held_back = _world(parts.vae, recipe, count, VALIDATION_SEED, sizes[-1], job, ranks)
    return [sets[size] for size in sizes], held_back


def _world(vae: CausalVAE, recipe: Recipe, count: int, seed: int, size: tuple[int, int], job: Job,
           ranks: Ranks) -> WorldClips:
    return encode_world(vae, num_frames=size[0], dtype=job.dtype, side=size[1], progress=job.keep.progress, here=ranks,
                        scenes=recipe.scenes(count, seed))


def transformer_task(job: Job, parts: Pipeline, sets: Sequence[Clips], ranks: Ranks) -> TransformerTask:
    """The transformer in training. Text encoder and VAE are on the device, or where they are not used on the CPU."""
    training, trains_text = job.recipe.transformer, job.model is None
    training = replace(training, learning_rate=training.rate(from_random=job.start == RANDOM))
    variance = 1.0
    if training.alignment_weight:
        variance = feature_variance(sets[-1], training.alignment_kinds)
    samples = training.sample_every
    parts.vae.to(ranks.device if training.image_to_video or samples else "cpu")
    if not trains_text:
        parts.text.to("cpu" if sets[-1].has_text and not samples else ranks.device)
    return TransformerTask(parts.transformer, parts.text, parts.schedule_config, training, ranks, job.dtype,
                           trains_text, parts.vae, parts.unconditional == "zeros", variance)


def watchers(job: Job, task: TransformerTask, parts: Pipeline, sets: Sequence[Clips], held_back: Clips | None,
             ranks: Ranks) -> list[Watcher]:
    """What is measured during training, beside the loss."""
    training, found = task.training, []
    if held_back is not None:
        found.append(Validation(held_back, training.validate_every, task.ranks))
    if training.sample_every:
        folder = job.out / "samples" if ranks.first else None
        found.append(WorldSamples(parts, folder, training.sample_every) if job.data is None else
                     FilmSamples(parts, sets[-1] if held_back is None else held_back, folder, training.sample_every))
    if job.data is None and job.model is None and not training.image_to_video:
        found.append(SwapGain(job.recipe.scenes(min(192, job.recipe.clips), job.seed + 1), sets[-1],
                              10 * job.keep.log_every))
    return found


class Minutes:
    """Minutes of each part in one JSON file, summed over resumed runs.

    They are written with every checkpoint: a run that is killed has counted the work that the next one does not repeat.
    """

    def __init__(self, path: Path, ranks: Ranks):
        self.path, self.ranks, self.start, self.part = path, ranks, time.perf_counter(), "vae"
        self.parts = read_json(path) if path.exists() else {}

    def begin(self, part: str) -> None:
        """Ends the part before."""
        self.write()
        self.part = part

    def write(self) -> None:
        """Adds the time since the last call."""
        now = time.perf_counter()
        self.parts[self.part], self.start = self.parts.get(self.part, 0) + (now - self.start) / 60, now
        if self.ranks.first and (self.path.parent / RECORD).exists():  # until then the folder is not the run's
            write_json(self.path, {part: round(minutes, 3) for part, minutes in self.parts.items()})
