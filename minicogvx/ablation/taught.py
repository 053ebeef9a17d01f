"""What the oracle taught the toy: adapters that are shipped, the record of how they were made, and how to judge them.

    pipe = taught_pipe(pipe, "student")    # the toy with the adapters of data/toy-taught/student.safetensors
    record = taught_record()               # data/results/oracle-teacher.json; `taught_study.py` makes both
"""

import copy
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import Scene, sample_scenes
from minicogvx.evaluation.adherence import clip_seed
from minicogvx.interop import DATA
from minicogvx.interop.lora import merge_lora
from minicogvx.pipeline import Pipeline
from minicogvx.training.reward import PROPERTIES, layout_spread

FOLDER, FILE = DATA / "toy-taught", DATA / "results" / "oracle-teacher.json"
MADE = ("student", "rewarded")  # each from the toy


def taught_pipe(pipe: Pipeline, name: str, folder: Path = FOLDER) -> Pipeline:
    """A copy of the toy with adapters merged into its weights; everything else is shared.

    Raises ValueError, with the names, for another name, and what `merge_lora` raises for a file that does not fit.
    """
    if name not in MADE:
        raise ValueError(f"there is no model {name!r}; the taught ones are {', '.join(MADE)}")
    other = copy.copy(pipe)
    other.transformer = copy.deepcopy(pipe.transformer)
    merge_lora(other.transformer, folder / f"{name}.safetensors")
    return other


def taught_record(path: Path = FILE) -> dict:
    """The stored record. Raises FileNotFoundError, with the command that makes it, where it is missing."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; `python -m minicogvx.ablation.taught_study` makes it")
    return json.loads(path.read_text(encoding="utf-8"))


def judged_clips(pipe: Pipeline, scenes: Sequence[Scene], steps: int, guidance_scale: float, seed: int = 0,
                 batch: int = 16) -> dict:
    """One clip for each scene: which are right, by property and in all, as strings of 0 and 1; seconds a clip, without
    the reading. Models that get the same seed get the same noise and captions, so they can be compared in pairs."""
    words, right, seconds = random.Random(seed), {name: "" for name in (*PROPERTIES, "all")}, 0.0
    for first in range(0, len(scenes), batch):
        some = scenes[first:first + batch]
        asked = [evaluation_caption(scene, words) for scene in some]
        started = time.perf_counter()
        clips = pipe.decode(pipe.sample(asked, num_inference_steps=steps, guidance_scale=guidance_scale,
                                        seed=[clip_seed(seed, first + i) for i in range(len(some))]))
        seconds += time.perf_counter() - started
        for clip, scene in zip(clips, some):
            for name, ok in matches(read(clip), scene).items():
                right[name] += str(int(ok))
    return {"steps": steps, "guidance_scale": guidance_scale, "right": right,
            "seconds_per_clip": round(seconds / len(scenes), 4)}


def variety_of(pipe: Pipeline, steps: int, guidance_scale: float, captions: int = 4, members: int = 8,
               seed: int = 0) -> list[float]:
    """For each of some captions of the training split, the spread of the layouts of its clips (`layout_spread`)."""
    found, words = [], random.Random(seed)
    for i, scene in enumerate(sample_scenes(captions, 70 + seed, two_objects=0.0)):
        asked = [evaluation_caption(scene, words)] * members
        clips = made_clips(pipe, asked, steps, guidance_scale, seed + 100 * i)
        found.append(round(layout_spread(clips), 4))
    return found


def made_clips(pipe: Pipeline, asked: Sequence[str], steps: int, guidance_scale: float,
               seed: int = 0) -> Float[Tensor, "b t h w 3"]:
    """A clip for each caption; its noise depends on `seed` and its place alone."""
    return pipe.decode(pipe.sample(list(asked), num_inference_steps=steps, guidance_scale=guidance_scale,
                                   seed=[clip_seed(seed, i) for i in range(len(asked))]))


def share_of_ones(right: str) -> float:
    """The share of ones in a string of 0 and 1."""
    return right.count("1") / len(right)
