"""One entry to the board: each seed is trained from nothing and judged, and the row is written after either."""

from dataclasses import fields, replace
from pathlib import Path

import torch

import minicogvx
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.engine.config import from_table
from minicogvx.evaluation.adherence import measure_adherence
from minicogvx.evaluation.command import HELD_OUT_SEED, STEPS
from minicogvx.evaluation.intervals import wilson
from minicogvx.interop.safetensors_files import read_json
from minicogvx.presets import preset
from minicogvx.speedrun.board import Minutes, Row, Score, SeedRun, read_row, write_row
from minicogvx.speedrun.machine import ceiling, commit
from minicogvx.training.checks import check_job
from minicogvx.training.recipes import Recipe
from minicogvx.training.run import Keep
from minicogvx.training.train import Job, train

ROW = "row.json"
JUDGE_SEED = 1000  # of `minicogvx evaluate`; no training draws these scenes, and recipes are tuned on other seeds
_MAY_CHANGE = {"recipe", "idea", "runs"}  # fields of a row, when it is resumed


def check_recipe(recipe: Recipe, size: str) -> None:
    """Raises ValueError for a recipe that the rules do not allow at this size."""
    if recipe.vae is None:
        raise ValueError("the recipe has no [vae]; a speedrun begins from nothing, so it must train one")
    if recipe.transformer.image_to_video:
        raise ValueError("image_to_video is True; a speedrun is judged by captions alone, so it must be False")
    own, asked = recipe.model_sizes.video_size, preset(size).video_size
    if own != asked:
        raise ValueError(f"the recipe makes clips of {own.num_frames} frames of {own.height}x{own.width}; for --size "
                         f"{size} they must have {asked.num_frames} of {asked.height}x{asked.width}")


class Entry:
    """A recipe in a folder: `row.json`, and the trainings in `seed_0`, `seed_1`, and so on."""

    def __init__(self, out: Path, begun: Row, recipe: Recipe, dtype: torch.dtype, seeds: int):
        """Checks everything before any work.

        Raises ValueError for what cannot be trained, and if `out` holds another row or a training of somebody else.
        """
        self.out, self.recipe, self.dtype = out, recipe, dtype
        self.row = self._resumed(begun) if (out / ROW).exists() else begun
        check_job(self._job(0))
        for seed in range(seeds):
            run, folder, now = self._run(seed), self._job(seed).out, commit()
            if run is None and folder.exists():
                raise ValueError(f"{folder} is there, and {out / ROW} says nothing of it; name another folder with "
                                 f"--out")
            if run is not None and run.minutes is None and run.commit != now:
                raise ValueError(f"{folder} was begun by the code of commit {run.commit}, and this is {now}; check "
                                 f"that one out, or name another folder with --out")

    def _resumed(self, begun: Row) -> Row:
        """The row in the folder. Raises ValueError if it was begun with something else."""
        row = read_row(self.out / ROW)
        for name in (field.name for field in fields(Row) if field.name not in _MAY_CHANGE):
            before, now = getattr(row, name), getattr(begun, name)
            if before != now:
                raise ValueError(f"{self.out / ROW} was begun with {name}={before!r}, not {now!r}; name another folder "
                                 f"with --out")
        return replace(row, recipe=begun.recipe, idea=begun.idea or row.idea)

    def train(self, seed: int) -> None:
        """Trains one seed, or the rest of it; only that is timed."""
        job, run = self._job(seed), self._run(seed)
        if run is None:
            run = self._keep(SeedRun(seed, commit(), (self._tflops(),)))
        if run.minutes is None:
            if not (job.out / "pipeline").exists():
                train(job)
            minutes = from_table(Minutes, read_json(job.out / "minutes.json"))
            self._keep(replace(run, minutes=minutes, tflops=(*run.tflops, self._tflops())))

    def judge(self, seed: int, split: str, clips: int) -> None:
        """Measures the share of obeyed captions, as `minicogvx evaluate --split SPLIT --seed 1000` does.

        `split`: "train", whose combinations of shape, colour and motion the training had, in other clips; or
        "held_out". A score of as many clips is not measured again.
        """
        run, field = self._run(seed), {"train": "obeyed", "held_out": "held_out"}[split]
        score = getattr(run, field)
        if score is not None and score.clips >= clips:
            return
        pipe = minicogvx.load(self._job(seed).out / "pipeline", "cpu", self.dtype)
        scenes = sample_scenes(clips, HELD_OUT_SEED + JUDGE_SEED, split, 0.0)
        found = measure_adherence(pipe, scenes, JUDGE_SEED, STEPS)
        print(f"seed {seed}, {split}: {found}", flush=True)
        self._keep(replace(run, **{field: Score(found.share["all"], *wilson(found.share["all"], clips), clips)}))

    def _job(self, seed: int) -> Job:
        return Job(self.recipe, self.out / f"seed_{seed}", seed=seed, dtype=self.dtype, keep=Keep(log_every=100))

    def _run(self, seed: int) -> SeedRun | None:
        return next((run for run in self.row.runs if run.seed == seed), None)

    def _keep(self, run: SeedRun) -> SeedRun:
        others = [one for one in self.row.runs if one.seed != run.seed]
        self.row = replace(self.row, runs=tuple(sorted([*others, run], key=lambda one: one.seed)))
        write_row(self.out / ROW, self.row)
        return run

    def _tflops(self) -> float:
        return round(ceiling(self.dtype) / 1e12, 4)
