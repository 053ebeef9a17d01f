"""Does the model obey its captions? The score is the share of clips in which the oracle reads what was asked for."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import Scene
from minicogvx.data.world.styles import SURVIVES, Style, as_seen, shows
from minicogvx.evaluation.intervals import say_interval
from minicogvx.pipeline import Pipeline

_SUMS = ("kept", "all")  # conjunctions of properties
Made = tuple[Scene, str, Float[Tensor, "t h w 3"]]


@dataclass(frozen=True)
class Adherence:
    """Share of clips, 0..1, in which the oracle found each property as in the caption; "all": all of them."""

    share: dict[str, float]
    clips: int
    seconds_per_clip: float
    failures: list[dict]  # of each: caption, wrong properties, and what was read

    def __str__(self) -> str:
        share = self.share["all"]
        return (f"{100 * share:.1f} % of {self.clips} clips fully correct, {say_interval(share, self.clips)} "
                f"({say_parts(self.share)}); {self.seconds_per_clip:.2f} s a clip")


def say_parts(share: dict[str, float]) -> str:
    """The share of each single property."""
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in share.items() if name not in _SUMS)


def generate(pipe: Pipeline, scenes: list[Scene], seed: int = 0, num_inference_steps: int = 25,
             guidance_scale: float | None = None, batch_size: int = 16, progress: bool = True,
             from_picture: bool = False) -> Iterator[Made]:
    """Each scene, its caption, and the clip that the model generates; determined by `seed`.

    A clip's noise depends on `seed` and its index, so the batch size changes only rounding errors.
    `from_picture`: the model also gets the scene's true first frame. Raises ValueError if there are no scenes.
    """
    check_scenes(scenes)
    words = random.Random(seed)
    for i in tqdm(range(0, len(scenes), batch_size), desc="generating", disable=not progress, mininterval=5):
        batch = scenes[i:i + batch_size]
        captions = [evaluation_caption(scene, words) for scene in batch]
        pictures = render_batch(batch, *pipe.video_size)[:, 0] if from_picture else None
        seeds = [clip_seed(seed, i + place) for place in range(len(batch))]
        latents = pipe.sample(captions, image=pictures, seed=seeds, num_inference_steps=num_inference_steps,
                              guidance_scale=guidance_scale)
        yield from zip(batch, captions, pipe.decode(latents))


def check_scenes(scenes: list[Scene]) -> None:
    """Raises ValueError if there are no scenes."""
    if not scenes:
        raise ValueError("scenes is empty; it must have one scene at least")


def clip_seed(seed: int, clip: int) -> int:
    """The seed of one clip of a measurement; measurements with different seeds share none, except by chance."""
    return (seed * 1_000_003 + clip) % 2**63


def clip_generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """CPU generators for `count` clips of a measurement, from clip `first` on."""
    return [torch.Generator().manual_seed(clip_seed(seed, clip)) for clip in range(first, first + count)]


def judge(clip: Float[Tensor, "t h w 3"], scene: Scene, style: Style | None = None) -> tuple[dict[str, bool], str]:
    """Whether each property of a clip, and "all" of them, is right, and what the oracle read.

    With a style, the keys are: "style" (is it present), the properties still readable under it, "kept"
    (all of those), and "all" (style and kept). A clip without the style is read as usual, so that a model that was not
    fine-tuned can be compared.
    """
    if style is None:
        seen = read(clip)
        return matches(seen, scene), str(seen)
    there = shows(clip, style)
    seen = read(as_seen(clip, style) if there else clip)
    found = {name: ok for name, ok in matches(seen, scene).items() if name in SURVIVES}
    kept = all(found.values())
    return {"style": there} | found | {"kept": kept, "all": there and kept}, str(seen)


class Counts:
    """Counts right clips, and collects the failures."""

    def __init__(self):
        self.right: dict[str, int] = {}
        self.failures: list[dict] = []
        self.clips = 0
        self.start = time.perf_counter()

    def add(self, caption: str, verdict: dict[str, bool], reading: str) -> None:
        """Adds a clip. `verdict`: by property, "all" included; `reading`: what was read."""
        self.clips += 1
        for name, ok in verdict.items():
            self.right[name] = self.right.get(name, 0) + bool(ok)
        if not verdict["all"]:
            wrong = [name for name, ok in verdict.items() if not ok and name not in _SUMS]
            self.failures.append({"caption": caption, "wrong": wrong, "read": reading})

    @property
    def share(self) -> dict[str, float]:
        """Share of right clips for each property."""
        return {name: count / self.clips for name, count in self.right.items()}

    @property
    def seconds_per_clip(self) -> float:
        """Mean time per clip since this object was created."""
        return (time.perf_counter() - self.start) / self.clips


def measure_adherence(pipe: Pipeline, scenes: list[Scene], seed: int = 0, num_inference_steps: int = 25,
                      guidance_scale: float | None = None, batch_size: int = 16, progress: bool = True) -> Adherence:
    """Generates one clip for each scene's caption and lets the oracle compare clip and scene."""
    counts = Counts()
    for scene, caption, clip in generate(pipe, scenes, seed, num_inference_steps, guidance_scale, batch_size, progress):
        counts.add(caption, *judge(clip, scene))
    return Adherence(counts.share, counts.clips, counts.seconds_per_clip, counts.failures)
