"""Does the model obey its captions? The oracle reads what a clip shows, and the share that is right is the score."""

import argparse
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from minicogvx.data.captions import evaluation_caption
from minicogvx.data.oracle import matches, read
from minicogvx.data.shapes import Scene, sample_scenes
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
                      guidance_scale: float = 6.0, batch_size: int = 16, progress: bool = True) -> Adherence:
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


def main(argv: list[str] | None = None) -> int:
    """`minicogvx evaluate`: prints the score of a model on captions of one split."""
    parser = argparse.ArgumentParser(prog="minicogvx evaluate", description="How often a model obeys its captions.")
    parser.add_argument("--model", default="toy", metavar="toy|FOLDER")
    parser.add_argument("--captions", type=int, default=500, metavar="N")
    parser.add_argument("--split", choices=("held_out", "train"), default="held_out",
                        help="held_out: combinations that training never showed")
    parser.add_argument("--two-objects", type=float, default=0.0, metavar="SHARE", help="of scenes with two objects")
    parser.add_argument("--steps", type=int, default=25, metavar="N")
    parser.add_argument("--guidance-scale", type=float, default=6.0, metavar="W")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--out", metavar="FILE.json", help="where to write the figures and the failures")
    arguments = parser.parse_args(argv)
    if arguments.captions < 1:
        raise ValueError(f"captions is {arguments.captions}; it must be 1 or more")
    import minicogvx

    pipe = minicogvx.load(arguments.model)
    scenes = sample_scenes(arguments.captions, 1_000_003 + arguments.seed, arguments.split, arguments.two_objects)
    result = measure_adherence(pipe, scenes, arguments.seed, arguments.steps, arguments.guidance_scale)
    print(f"{arguments.model}, {arguments.split}: {result}")
    if arguments.out:
        beside = Path(arguments.out + ".part")
        beside.write_text(json.dumps(result.__dict__, indent=1))
        os.replace(beside, arguments.out)
    return 0
