"""Does the model obey its captions? The oracle reads what a clip shows, and the share that is right is the score."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.data.captions import evaluation_caption
from minicogvx.data.oracle import matches, read
from minicogvx.data.shapes import Scene, render_batch
from minicogvx.data.styles import SURVIVES, Style, as_seen, shows
from minicogvx.pipeline import Pipeline

_SUMS = ("kept", "all")  # of single properties
Made = tuple[Scene, str, Float[Tensor, "t h w 3"]]


@dataclass(frozen=True)
class Adherence:
    """Share of clips, 0..1, in which the oracle found each property as the caption says, and in "all" everything."""

    share: dict[str, float]
    clips: int
    seconds_per_clip: float
    failures: list[dict]  # caption, what was wrong and what was read, one each

    def __str__(self) -> str:
        return (f"{100 * self.share['all']:.1f} % of {self.clips} clips right in everything ({say_parts(self.share)}); "
                f"{self.seconds_per_clip:.2f} s a clip")


def say_parts(share: dict[str, float]) -> str:
    """The share of each single property."""
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in share.items() if name not in _SUMS)


def generate(pipe: Pipeline, scenes: list[Scene], seed: int = 0, num_inference_steps: int = 25,
             guidance_scale: float | None = None, batch_size: int = 16, progress: bool = True,
             from_picture: bool = False) -> Iterator[Made]:
    """Each scene, its caption, and the clip that the model makes of it; the same seed, the same captions and clips.

    A clip's noise depends on `seed` and its place among the scenes, so the batch size changes no more than roundings.
    `from_picture`: the model is also given the scene's true first frame. Raises ValueError where there are no scenes.
    """
    check_scenes(scenes)
    words = random.Random(seed)
    for i in tqdm(range(0, len(scenes), batch_size), desc="generating", disable=not progress, mininterval=5):
        batch = scenes[i:i + batch_size]
        captions = [evaluation_caption(scene, words) for scene in batch]
        pictures = render_batch(batch, pipe.num_frames, pipe.height, pipe.width)[:, 0] if from_picture else None
        seeds = [clip_seed(seed, i + place) for place in range(len(batch))]
        latents = pipe.sample(captions, image=pictures, seed=seeds, num_inference_steps=num_inference_steps,
                              guidance_scale=guidance_scale)
        yield from zip(batch, captions, pipe.decode(latents))


def check_scenes(scenes: list[Scene]) -> None:
    """Raises ValueError where there are none: no share of no clips is right."""
    if not scenes:
        raise ValueError("scenes is empty; it must have one scene at least")


def clip_seed(seed: int, clip: int) -> int:
    """The seed of one clip of a measurement: no two measurements of up to a million clips share one but by chance."""
    return (seed * 1_000_003 + clip) % 2**63


def clip_generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """Generators, on the CPU, of `count` clips of a measurement from clip `first` on."""
    return [torch.Generator().manual_seed(clip_seed(seed, clip)) for clip in range(first, first + count)]


def judge(clip: Float[Tensor, "t h w 3"], scene: Scene, look: Style | None = None) -> tuple[dict[str, bool], str]:
    """What is right of a clip by property, "all" among them, and what the oracle read.

    With a look: "style" (has it the look?), what a look leaves readable (data/styles.py), "kept" (all of this), and
    "all". A clip without the look is read as it is, so that a model that was never taught it can be compared.
    """
    if look is None:
        seen = read(clip)
        return matches(seen, scene), str(seen)
    there = shows(clip, look)
    seen = read(as_seen(clip, look) if there else clip)
    found = {name: ok for name, ok in matches(seen, scene).items() if name in SURVIVES}
    kept = all(found.values())
    return {"style": there} | found | {"kept": kept, "all": there and kept}, str(seen)


class Tally:
    """Counts what is right, and keeps what is not."""

    def __init__(self):
        self.right: dict[str, int] = {}
        self.failures: list[dict] = []
        self.clips = 0
        self.start = time.perf_counter()

    def add(self, caption: str, verdict: dict[str, bool], told: str) -> None:
        """One clip: `verdict` by property, "all" among them; `told` is what was read instead."""
        self.clips += 1
        for name, ok in verdict.items():
            self.right[name] = self.right.get(name, 0) + bool(ok)
        if not verdict["all"]:
            wrong = [name for name, ok in verdict.items() if not ok and name not in _SUMS]
            self.failures.append({"caption": caption, "wrong": wrong, "read": told})

    @property
    def share(self) -> dict[str, float]:
        """Share of the clips that are right in each property."""
        return {name: count / self.clips for name, count in self.right.items()}

    @property
    def seconds_per_clip(self) -> float:
        """Mean time since this object was made."""
        return (time.perf_counter() - self.start) / self.clips


def measure_adherence(pipe: Pipeline, scenes: list[Scene], seed: int = 0, num_inference_steps: int = 25,
                      guidance_scale: float | None = None, batch_size: int = 16, progress: bool = True) -> Adherence:
    """Generates one clip for each scene's caption and lets the oracle compare clip and scene."""
    tally = Tally()
    for scene, caption, clip in generate(pipe, scenes, seed, num_inference_steps, guidance_scale, batch_size, progress):
        tally.add(caption, *judge(clip, scene))
    return Adherence(tally.share, tally.clips, tally.seconds_per_clip, tally.failures)
