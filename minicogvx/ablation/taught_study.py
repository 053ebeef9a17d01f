"""Makes what notebook 17 shows of longer trainings: data/toy-taught and data/results/oracle-teacher.json.

    python -m minicogvx.ablation.taught_study student     # 25 guided steps distilled into 4
    python -m minicogvx.ablation.taught_study reward      # the student, taught by the oracle's reading, some seeds
    python -m minicogvx.ablation.taught_study judge       # all of them on captions that no training saw

Each adds to the record and keeps what the others wrote.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from minicogvx.ablation.taught import FILE, FOLDER, judged, taught_pipe, taught_record, variety
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.files import written_whole
from minicogvx.pipeline import Pipeline
from minicogvx.training.distillation import distil, teacher_ways
from minicogvx.training.lora import lora_tensors, write_lora
from minicogvx.training.policy import PolicyTraining, learn_from_reward, learner
from minicogvx.training.reward import REWARDS

STEPS, RANK, ALPHA = 4, 16, 32.0
HELD_OUT_SEED = 1_700_017
EVERY = 10  # losses that are averaged into one


def make_student(pipe: Pipeline, ways: int, updates: int, rate: float, folder: Path = FOLDER) -> dict:
    """Records the teacher's ways, trains the student's adapters, writes them, and returns what happened."""
    started = time.perf_counter()
    recorded = teacher_ways(pipe, ways, on_batch=lambda done: print(f"{done} ways recorded", flush=True))
    after = time.perf_counter()
    model = learner(pipe.transformer, PolicyTraining(1, rank=RANK, alpha=ALPHA))
    losses = distil(model, recorded, pipe.schedule, updates, rate,
                    on_update=lambda i, loss: print(i, f"{loss:.4f}", flush=True) if i % 20 == 0 else None)
    write_adapters(model, folder / "student.safetensors")
    means = [sum(losses[i:i + EVERY]) / len(losses[i:i + EVERY]) for i in range(0, len(losses), EVERY)]
    return {"ways": ways, "updates": updates, "learning_rate": rate, "losses": means,
            "seconds": [after - started, time.perf_counter() - after]}


def run_reward(pipe: Pipeline, name: str, training: PolicyTraining, reward: str, seed: int,
               folder: Path | None = None) -> dict:
    """One training by a reward; with a `folder`, its adapters are written there under `name`."""
    model = learner(pipe.transformer, training)
    records = learn_from_reward(pipe, model, training, REWARDS[reward], seed,
                                lambda one: print(seed, {k: round(v, 3) for k, v in one.items()}, flush=True))
    if folder is not None:
        write_adapters(model, folder / f"{name}.safetensors")
    trained = Pipeline(pipe.vae, model, pipe.schedule_config, pipe.text, pipe.fps, pipe.unconditional,
                       pipe.guidance_scale)
    scenes = sample_scenes(96, HELD_OUT_SEED, "held_out", 0.0)
    return {"name": name, "reward": reward, "seed": seed, "training": asdict(training),
            "records": {key: [one[key] for one in records] for key in records[0]},
            "judged": judged(trained, scenes, training.num_inference_steps, 1.0),
            "variety": variety(trained, training.num_inference_steps, 1.0)}


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
        content = sorted([*others, _rounded(content)], key=lambda run: (run["name"], run["seed"]))
    record |= {"command": "python -m minicogvx.ablation.taught_study student|reward|judge", part: _rounded(content),
               "torch": torch.__version__, "threads": torch.get_num_threads()}
    with written_whole(path) as file:
        file.write_text(json.dumps(record) + "\n", encoding="utf-8")


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
