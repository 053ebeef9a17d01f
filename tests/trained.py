"""Small trainings for the tests of the trainers: a recipe, clips of films and of the world, tasks, the command line."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import Dataset

from minicogvx import cli
from minicogvx.data.clips.cache import CachedClips
from minicogvx.data.clips.encode import encode_clips
from minicogvx.data.clips.plan import CacheSettings
from minicogvx.data.clips.world import WorldClips, encode_world
from minicogvx.data.films.folder import scan_folder
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.engine.config import to_toml
from minicogvx.media import write_mp4
from minicogvx.training.recipes import Recipe
from minicogvx.training.settings import TransformerTraining, VAEStage, VAETraining
from minicogvx.training.stages import Stage
from minicogvx.training.start import prepared_transformer
from minicogvx.training.transformer import TransformerTask
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae.losses import VAELossConfig
from tests.tiny import TINY, tiny_pipe, tiny_text, tiny_transformer, tiny_vae

LOSS = VAELossConfig(l2_weight=10.0, lpips_weight=0.0, kl_weight=0.1, gan_weight=0.0)
GAN = replace(LOSS, gan_weight=0.3, gan_start=2)
RECIPE = Recipe(
    "micro", clips=24, held_back=0.2, sizes=TINY,
    vae=VAETraining((VAEStage(3, 4, num_frames=5, loss=LOSS),
                     VAEStage(4, 2, num_frames=9, learning_rate_factor=0.5, loss=GAN)), optimizer="muon", small_branches=True),
    transformer=TransformerTraining(
        (Stage(3, 8, images=1.0), Stage(5, 4)), learning_rate=3e-3, optimizer="muon", warmup=2, ema_decay=0.9,
        timesteps="stratified", open_gates=True, alignment_weight=1.0))
FOR_FILMS = replace(RECIPE, transformer=replace(RECIPE.transformer, alignment_weight=0.0))


def recipe_file(folder: Path, recipe: Recipe = RECIPE, name: str = "mine") -> str:
    """The recipe as a file, for `minicogvx train`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(to_toml(recipe))
    return str(folder / f"{name}.toml")


def train(*words: str | Path, status: int = 0) -> None:
    """`minicogvx train` on one thread, with a checkpoint every other step; `status`: how it must end."""
    assert cli.main(["train", *map(str, words), "--threads", "1", "--checkpoint-every", "2", "--log-every", "1",
                     "--dtype", "float32"]) == status


def films_of_mixed_lengths(folder: Path, count: int = 12, frames: tuple[int, ...] = (9, 13, 17)) -> Path:
    """Films of the shapes world and their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(sample_scenes(count, 0, "train", 0.0)):
        write_mp4(folder / f"{i:02d}.mp4", render(scene, frames[i % len(frames)], 32, 32), 8)
        (folder / f"{i:02d}.txt").write_text(f"a {scene.objects[0].colour} {scene.objects[0].shape} number {i}")
    return folder


def world_clips(count: int = 8, **options) -> WorldClips:
    """Clips of the shapes world, encoded by the tiny VAE."""
    return encode_world(tiny_vae(), count, 0, 9, dtype=torch.float32, progress=False, **options)


def encode_films(films: Path, out: Path, **settings) -> CachedClips:
    """The films, encoded by the tiny model into `out`; `settings` replace those of the cache."""
    pipe = tiny_pipe()
    settings = CacheSettings(**{"num_frames": 9, "height": 32, "width": 32, "fps": 8, "first_frame": True} | settings)
    return encode_clips(scan_folder(films).clips, out, pipe.vae, pipe.text, settings, torch.float32, progress=False)[0]


def further(training: TransformerTraining, model: ExpertTransformer | None = None, **options) -> TransformerTask:
    """The tiny transformer, or `model`, trained further: with its text encoder frozen."""
    model = prepared_transformer(tiny_transformer() if model is None else model, training)
    return TransformerTask(model, tiny_text(), TINY.schedule, training, vae=tiny_vae(), **options)


def take_steps(task: TransformerTask, data: Dataset, steps: Iterable[int] = range(3)) -> list[tuple[float, float]]:
    """The loss and the norm of the gradient of each step, at the full learning rate."""
    rows = []
    for step in steps:
        passes = data[step]
        figures = [task.backward(one, 0.0, one is passes[-1]) for one in passes]
        rows.append((sum(one["loss"].item() for one in figures), task.update(step, 1.0).item()))
    return rows
