"""Does image to video get static if the given picture has no noise in training? (paper, appendix D)

    python -m minicogvx.ablation.picture_noise --seeds 0 1     # data/results/picture-noise.json

The shipped model that hears given frames (toy-prefix, trained with the published noise) is fine-tuned on drawn clips of
which it sees the first frame, twice for each seed: with that noise on the picture, and without noise. Everything else
that is drawn is the same. Then both continue the same pictures of shapes that move, and the oracle reads the motion.
Runs that are stored already are not repeated.
"""

import argparse
import copy
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.ablation.rounding import short_numbers
from minicogvx.compat import choose_dtype
from minicogvx.data.clips.clips import Clips, Selected
from minicogvx.data.clips.world import encode_world
from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import DIRECTIONS, Scene, sample_scenes
from minicogvx.engine.ranks import Ranks
from minicogvx.evaluation.adherence import clip_seed
from minicogvx.evaluation.intervals import mean_interval, paired_difference
from minicogvx.evaluation.reconstruction import flicker, psnr
from minicogvx.files import written_whole
from minicogvx.interop import DATA
from minicogvx.pipeline import Pipeline
from minicogvx.training.batches import Steps
from minicogvx.training.loop import fit
from minicogvx.training.run import Keep, Run
from minicogvx.training.settings import ImageCondition, TransformerTraining
from minicogvx.training.stages import Stage
from minicogvx.training.start import with_transformer
from minicogvx.training.transformer import TransformerTask
from minicogvx.training.validation import Validation

RESULTS_FILE = DATA / "results" / "picture-noise.json"
# sigma = exp(N(-3, 0.5^2)) as published; exp(-60) is nothing in any number format.
VARIANTS = {"published": ImageCondition(), "none": ImageCondition(log_sigma_mean=-60.0, log_sigma_std=0.0)}
GRAIN = 0.15  # on a picture in -1..1: stronger than nearly all noise of the training
# How each picture is given: with which grain, and at which guidance; 0 ignores the caption.
ASKED = {"caption": (0.0, 3.0), "caption, grainy picture": (GRAIN, 3.0), "no caption": (0.0, 0.0)}
CLIPS, HELD_BACK, BATCH = 416, 32, 16
PICTURES, SAMPLE_STEPS = 48, 10


def moving_scenes(count: int = PICTURES, seed: int = 404) -> list[Scene]:
    """Scenes of one shape that moves in a straight line."""
    drawn = sample_scenes(4 * count, seed, two_objects=0.0)
    return [scene for scene in drawn if scene.objects[0].motion in DIRECTIONS][:count]


def finetuned(start: Pipeline, clips: Clips, condition: ImageCondition, steps: int, seed: int) -> tuple[Pipeline, dict]:
    """The model `start` after `steps` more steps, and its losses on clips held back, by timestep, pictures clean.

    All weights learn, as in the example of image to video in docs/results.md.
    """
    dtype = choose_dtype("cpu", training=True)
    training = TransformerTraining((Stage(steps, BATCH),), learning_rate=2e-3, optimizer="muon",
                                   warmup=min(30, steps), ema_decay=0.98, timesteps="stratified", image_to_video=True,
                                   image=condition)
    task = TransformerTask(copy.deepcopy(start.transformer), start.text, start.schedule_config, training, Ranks(),
                           dtype, vae=start.vae)
    learnt = Selected(clips, range(len(clips) - HELD_BACK))
    with torch.enable_grad():
        fit(task, Steps(learnt, training, task.model.config, seed=seed),
            Run("picture-noise", steps, Keep(progress=False)),
            lambda step: training.schedule_at(step, steps, training.warmup))
    held_back = Selected(clips, range(len(clips) - HELD_BACK, len(clips)))
    losses = Validation(held_back, 1, most=HELD_BACK)(steps, task)
    model = copy.deepcopy(start.transformer)
    model.load_state_dict({name.removeprefix("transformer."): tensor for name, tensor in task.result().items()})
    return with_transformer(start, model.to(dtype).eval()), losses


@torch.no_grad()
def continued(pipe: Pipeline, scenes: Sequence[Scene], grain: float, guidance_scale: float,
              batch_size: int = 16) -> dict[str, list]:
    """What the oracle reads of clips that begin with each scene's first frame; one entry for each scene.

    "moves": whether the motion is the scene's, 0 or 1. "still": whether the shape stays still. "change": the mean
    change between neighbouring frames, relative to the true clip's. "picture": PSNR of the first frame in dB.
    """
    found: dict[str, list] = {"moves": [], "still": [], "change": [], "picture": []}
    generator = torch.Generator().manual_seed(17)
    for first in range(0, len(scenes), batch_size):
        some = list(scenes[first:first + batch_size])
        true = render_batch(some, *pipe.video_size)
        pictures = true[:, 0] + grain / 2 * torch.randn(true[:, 0].shape, generator=generator)  # -1..1 is 2 wide
        words = [evaluation_caption(scene, random.Random(first + place)) for place, scene in enumerate(some)]
        seeds = [clip_seed(17, first + place) for place in range(len(some))]
        films = pipe.decode(pipe.sample(words, image=pictures.clamp(0, 1), seed=seeds,
                                        num_inference_steps=SAMPLE_STEPS, guidance_scale=guidance_scale))
        for scene, film, wanted in zip(some, films, true):
            _note(found, scene, film, wanted)
    return found


def _note(found: dict[str, list], scene: Scene, film: Float[Tensor, "t h w 3"], true: Float[Tensor, "t h w 3"]) -> None:
    reading = read(film)
    found["moves"].append(int(matches(reading, scene)["motion"]))
    found["still"].append(int([thing.motion for thing in reading.objects] == ["stays still"]))
    found["change"].append(round(flicker(film) / flicker(true), 3))
    found["picture"].append(round(psnr(true[0], film[0]), 2))


# ---- files


def noise_runs(path: Path = RESULTS_FILE, steps: int | None = None) -> list[dict]:
    """The stored runs: of each "name" (of the variant), "seed", "seconds", "losses", and what `continued` found, by the
    names of `ASKED`. `steps`: only if they were of so many."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps": steps, "runs": []}
    return content["runs"] if steps in (None, content["steps"]) else []


def _add(path: Path, run: dict, steps: int) -> None:
    others = [one for one in noise_runs(path, steps) if (one["seed"], one["name"]) != (run["seed"], run["name"])]
    runs = sorted([*others, run], key=lambda one: (one["seed"], list(VARIANTS).index(one["name"])))
    seeds = " ".join(str(seed) for seed in sorted({one["seed"] for one in runs}))
    content = {"command": f"python -m minicogvx.ablation.picture_noise --seeds {seeds} --steps {steps}", "steps": steps,
               "batch": BATCH, "clips": CLIPS - HELD_BACK, "pictures": PICTURES, "torch": torch.__version__,
               "threads": torch.get_num_threads()}
    lines = ",\n  ".join(json.dumps(one) for one in runs)
    head = ",\n ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    with written_whole(path) as part:
        part.write_text("{" + head + ',\n "runs": [\n  ' + lines + "\n ]}\n", encoding="utf-8")


# ---- what they say


def by_seed(runs: Sequence[dict], asked: str, what: str) -> dict[str, list[float]]:
    """For each variant the mean of one finding of `continued`, a value for each seed that both variants have."""
    means = {(run["name"], run["seed"]): statistics.fmean(run["found"][asked][what]) for run in runs}
    seeds = sorted({seed for _, seed in means if all((name, seed) in means for name in VARIANTS)})
    return {name: [means[name, seed] for seed in seeds] for name in VARIANTS}


def noise_difference(runs: Sequence[dict], asked: str, what: str) -> tuple[float, float, float]:
    """By how much the mean is higher without noise than with it, and its 95 % interval, paired by seed.

    Of a single seed the interval is infinite.
    """
    means = by_seed(runs, asked, what)
    return mean_interval([none - published for published, none in zip(means["published"], means["none"])])


def pooled_difference(runs: Sequence[dict], asked: str, what: str) -> tuple[float, float, float]:
    """The same for a share, and the interval that the clips alone give it, all seeds pooled and paired by clip."""
    seeds = {run["seed"] for run in runs if run["name"] == "none"} & {
        run["seed"] for run in runs if run["name"] == "published"}
    flat = {name: [bool(value) for run in runs if run["name"] == name and run["seed"] in seeds
                   for value in run["found"][asked][what]] for name in VARIANTS}
    return paired_difference(flat["none"], flat["published"])


def say_noise(runs: Sequence[dict]) -> str:
    """A table in text: for each way of asking and each finding, both variants' means and the difference."""
    lines = []
    for asked in ASKED:
        for what, factor, unit in (("moves", 100, "%"), ("still", 100, "%"), ("change", 1, ""), ("picture", 1, "dB")):
            means = by_seed(runs, asked, what)
            gap, low, high = noise_difference(runs, asked, what)
            said = [f"{name} {factor * statistics.fmean(values):.1f}" for name, values in means.items()]
            digits = 2 if what == "change" else 1
            lines.append(f"{asked:24s} {what:8s} {', '.join(said)} {unit}; without less with "
                         f"{factor * gap:+.{digits}f}, 95 % interval {factor * low:+.{digits}f} to "
                         f"{factor * high:+.{digits}f} (n = {len(means['none'])} seeds)")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs the study; four runs of 100 steps take about ten minutes on one core."""
    parser = argparse.ArgumentParser(prog="python -m minicogvx.ablation.picture_noise", description=main.__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS_FILE)
    options = parser.parse_args(argv)
    begin, clips = Pipeline.load("toy-prefix", "cpu", torch.float32), None
    dtype, scenes = choose_dtype("cpu", training=True), moving_scenes()
    begin.vae.to(dtype)
    for seed in options.seeds:
        done = {run["name"] for run in noise_runs(options.out, options.steps) if run["seed"] == seed}
        for name, condition in VARIANTS.items():
            if name in done:
                continue
            start = time.perf_counter()
            clips = clips or encode_world(begin.vae, CLIPS, 5, begin.video_size.num_frames, two_objects=0.0,
                                          dtype=dtype, progress=False)
            encoded = time.perf_counter() - start
            pipe, losses = finetuned(begin, clips, condition, options.steps, seed)
            print(f"encoding {encoded:.0f} s, training {time.perf_counter() - start - encoded:.0f} s", flush=True)
            found = {asked: continued(pipe, scenes, *how) for asked, how in ASKED.items()}
            run = {"name": name, "seed": seed, "seconds": round(time.perf_counter() - start),
                   "losses": short_numbers(losses), "found": found}
            _add(options.out, run, options.steps)
            print(seed, name, run["seconds"], "s", run["losses"], flush=True)
            print({asked: {what: round(statistics.fmean(values), 2) for what, values in one.items()}
                   for asked, one in found.items()}, flush=True)
    print(say_noise(noise_runs(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
