"""Does the model obey its captions? The oracle reads what a clip shows, and the share that is right is the score."""

import random
import time
from dataclasses import dataclass

from tqdm import tqdm

from minicogvx.data.captions import evaluation_caption
from minicogvx.data.oracle import matches, read
from minicogvx.data.shapes import Scene
from minicogvx.pipeline import Pipeline


@dataclass(frozen=True)
class Adherence:
    """Share of clips, 0..1, in which the oracle found each property as the caption says, and in "all" everything."""

    share: dict[str, float]
    clips: int
    seconds_per_clip: float
    failures: list[dict]  # caption, what was wrong and what was read, one each

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.share.items() if name != "all")
        return f"{100 * self.share['all']:.1f} % of {self.clips} clips right in everything ({parts}); {self.seconds_per_clip:.2f} s a clip"


def measure_adherence(pipe: Pipeline, scenes: list[Scene], seed: int = 0, num_inference_steps: int = 25,
                      guidance_scale: float | None = None, batch_size: int = 16, progress: bool = True) -> Adherence:
    """Generates one clip for each scene's caption and lets the oracle compare clip and scene."""
    words, right, failures = random.Random(seed), {}, []
    start = time.perf_counter()
    for i in tqdm(range(0, len(scenes), batch_size), desc="generating", disable=not progress, mininterval=5):
        batch = scenes[i:i + batch_size]
        captions = [evaluation_caption(scene, words) for scene in batch]
        latents = pipe.sample(captions, seed=seed + i, num_inference_steps=num_inference_steps,
                              guidance_scale=guidance_scale)
        for scene, text, clip in zip(batch, captions, pipe.decode(latents)):
            seen = read(clip)
            verdict = matches(seen, scene)
            for name, ok in verdict.items():
                right[name] = right.get(name, 0) + bool(ok)
            if not verdict["all"]:
                failures.append({"caption": text, "wrong": [k for k, ok in verdict.items() if not ok and k != "all"],
                                 "read": str(seen)})
    seconds = (time.perf_counter() - start) / len(scenes)
    return Adherence({name: count / len(scenes) for name, count in right.items()}, len(scenes), seconds, failures)
