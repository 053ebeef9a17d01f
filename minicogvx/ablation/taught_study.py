"""Makes what notebook 17 shows of longer trainings: data/toy-taught and data/results/oracle-teacher.json.

    python -m minicogvx.ablation.taught_study trajectories  # of the toy, in runs/trajectories.safetensors
    python -m minicogvx.ablation.taught_study student     # from these, guided steps distilled into 2
    python -m minicogvx.ablation.taught_study reward      # the toy in 2 steps, taught by marks
    python -m minicogvx.ablation.taught_study judge       # all of them on captions that no training saw

Each adds to the record and keeps what the others wrote.
"""

import argparse
import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from minicogvx.ablation.rounding import short_numbers
from minicogvx.ablation.taught import FILE, FOLDER, MADE, judged_clips, taught_pipe, taught_record, variety_of
from minicogvx.compat import choose_dtype
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.files import written_whole
from minicogvx.interop.safetensors_files import read_tensors
from minicogvx.pipeline import Pipeline
from minicogvx.training.distillation import distil, teacher_trajectories
from minicogvx.training.lora import lora_tensors, write_lora
from minicogvx.training.policy import PolicyTraining, adapted_copy, learn_from_reward
from minicogvx.training.reward import REWARDS
from minicogvx.training.start import with_transformer

STEPS, KEPT, RANK, ALPHA = 2, 4, 16, 32.0  # steps of whoever is taught; moments of the teacher that are kept
RECORDED, UPDATES, RATE, ITERATIONS = 160, 200, 1e-3, 6
CLIPS = 96
JUDGED = ("toy, 25 guided steps", "toy, 25 steps", "toy, 4 guided steps", "toy, 4 steps", "toy, 2 guided steps",
          "toy, 2 steps", *MADE)
RUNS = {"gradient": ("gradient", "share"), "rewarded": ("contrast", "share")}  # way, reward
REWARD_RATE = {"gradient": 5e-4, "contrast": 1e-3}
HELD_OUT_SEED = 1_700_017
AT_ONCE = 16  # trajectories between two writings
EVERY = 10  # losses that are averaged into one


def quick_products(precise: bool = False) -> AbstractContextManager:
    """While open, matrix products in 16 bits where this processor is fast in them; never if `precise`.

    A policy gradient needs it precise: the chance of a clip is a sum over 5,120 numbers. Without the cache, or the
    weights as they were at the first pass would serve until it is closed, however far training has moved them.
    """
    dtype = choose_dtype("cpu", training=True)
    return nullcontext() if precise or dtype == torch.float32 else torch.autocast("cpu", dtype, cache_enabled=False)


def record_trajectories(pipe: Pipeline, count: int, path: Path) -> None:
    """Records `count` trajectories of the teacher, in 16 bits: latents, features of captions, seconds.

    Written after every few, and resumed where it was stopped.
    """
    kept = read_tensors(path) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    while (done := kept["states"].shape[1] if kept else 0) < count:
        started = time.perf_counter()
        with quick_products():
            states, text = teacher_trajectories(pipe, AT_ONCE, kept=KEPT, seed=done)
        seconds = torch.tensor(time.perf_counter() - started)
        new = {"states": states.half(), "text": text.half(), "seconds": seconds}
        kept = {"states": torch.cat([kept["states"], new["states"]], dim=1).contiguous(),
                "text": torch.cat([kept["text"], new["text"]]), "seconds": kept["seconds"] + seconds} if kept else new
        with written_whole(path) as part:
            save_file({name: each.contiguous() for name, each in kept.items()}, part)
        print(f"{kept['states'].shape[1]} trajectories after {float(kept['seconds']):.0f} s", flush=True)


def make_student(pipe: Pipeline, path: Path, updates: int, rate: float, folder: Path = FOLDER) -> dict:
    """Trains the student's adapters on every second moment of recorded trajectories; writes them, returns a record."""
    kept, started = read_tensors(path), time.perf_counter()
    model = adapted_copy(pipe.transformer, PolicyTraining(1, rank=RANK, alpha=ALPHA))
    states, text = kept["states"][::KEPT // STEPS].float(), kept["text"].float()
    with quick_products():
        losses = distil(model, (states, text), pipe.schedule, updates, rate,
                        on_update=lambda i, loss: print(i, f"{loss:.4f}", flush=True) if i % 20 == 0 else None)
    write_adapters(model, folder / "student.safetensors")
    means = [sum(losses[i:i + EVERY]) / len(losses[i:i + EVERY]) for i in range(0, len(losses), EVERY)]
    return {"trajectories": kept["states"].shape[1], "updates": updates, "learning_rate": rate, "losses": means,
            "seconds": [float(kept["seconds"]), time.perf_counter() - started]}


def run_reward(pipe: Pipeline, name: str, training: PolicyTraining, reward: str, seed: int,
               folder: Path | None = None) -> dict:
    """One training by a reward; with a `folder`, its adapters are written there under `name`."""
    model = adapted_copy(pipe.transformer, training)
    with quick_products(precise=training.way == "gradient"):
        records = learn_from_reward(pipe, model, training, REWARDS[reward], seed,
                                    lambda one: print(seed, {k: round(v, 3) for k, v in one.items()}, flush=True))
    if folder is not None:
        write_adapters(model, folder / f"{name}.safetensors")
    trained = with_transformer(pipe, model)
    scenes = sample_scenes(CLIPS, HELD_OUT_SEED, "held_out", 0.0)
    return {"name": name, "reward": reward, "seed": seed, "training": asdict(training),
            "records": {key: [one[key] for one in records] for key in records[0]},
            "judged": judged_clips(trained, scenes, training.num_inference_steps, 1.0),
            "variety": variety_of(trained, training.num_inference_steps, 1.0)}


def write_adapters(model, path: Path) -> None:
    """In 16 bits, with rank and alpha in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lora(path, {name: tensor.half().cpu() for name, tensor in lora_tensors(model).items()}, RANK, ALPHA)


def add(part: str, content, path: Path = FILE) -> None:
    """Puts one part into the record; runs are added to those of other names and seeds."""
    record = taught_record(path) if path.exists() else {}
    if part == "runs":
        others = [run for run in record.get("runs", []) if (run["name"], run["seed"]) != (content["name"],
                                                                                        content["seed"])]
        content = sorted([*others, short_numbers(content)], key=lambda run: (run["name"], run["seed"]))
    if part == "judged":
        merged = record.get("judged", {}) | content
        content = {name: merged[name] for name in sorted(merged, key=[*JUDGED, *merged].index)}
    command = "python -m minicogvx.ablation.taught_study trajectories|student|reward|judge"
    record |= {"command": command, part: short_numbers(content),
               "torch": torch.__version__, "threads": torch.get_num_threads()}
    with written_whole(path) as file:
        file.write_text(json.dumps(record) + "\n", encoding="utf-8")


def judge_model(toy: Pipeline, name: str, clips: int) -> dict:
    """One model on held-out captions; all models get the same captions and noise."""
    steps, scale, pipe = STEPS, 1.0, toy
    if name in MADE:
        pipe = taught_pipe(toy, name)
    else:
        steps, scale = int(name.split()[1]), toy.guidance_scale if "guided" in name else 1.0
    scenes = sample_scenes(clips, HELD_OUT_SEED, "held_out", 0.0)
    return judged_clips(pipe, scenes, steps, scale) | {"variety": variety_of(pipe, steps, scale)}


def main(argv: list[str] | None = None) -> int:
    """Runs one part of the study and adds it to the record."""
    parser = argparse.ArgumentParser(prog="python -m minicogvx.ablation.taught_study",
                                     description="Make what notebook 17 shows of longer trainings.")
    parser.add_argument("what", choices=("trajectories", "student", "reward", "judge"))
    parser.add_argument("--count", type=int, default=RECORDED, help="trajectories to record")
    parser.add_argument("--trajectories", type=Path, default=Path("runs/trajectories.safetensors"),
                        help="where they lie")
    parser.add_argument("--updates", type=int, default=UPDATES, help="steps of the student's optimizer")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS), help="which trainings by reward")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of a training by reward")
    parser.add_argument("--models", nargs="+", default=list(JUDGED), choices=list(JUDGED), help="to be judged")
    parser.add_argument("--clips", type=int, default=CLIPS, help="by which each model is judged")
    options = parser.parse_args(argv)
    toy = Pipeline.load("toy", "cpu", torch.float32)
    toy.vae.to(choose_dtype("cpu", training=True))  # decoding takes most of the time
    if options.what == "trajectories":
        record_trajectories(toy, options.count, options.trajectories)
    if options.what == "student":
        add("student", make_student(toy, options.trajectories, options.updates, RATE))
    for name in options.models if options.what == "judge" else ():
        add("judged", {name: judge_model(toy, name, options.clips)})
        print(name, taught_record()["judged"][name], flush=True)
    for name in options.runs if options.what == "reward" else ():
        way, reward = RUNS[name]
        for seed in options.seeds:
            kept = FOLDER if seed == options.seeds[0] and name in MADE else None
            training = PolicyTraining(options.iterations, way, num_inference_steps=STEPS,
                                      learning_rate=REWARD_RATE[way])
            add("runs", run_reward(toy, name, training, reward, seed, kept))
    return 0


if __name__ == "__main__":
    sys.exit(main())
