"""Trains transformers that differ in their config on identical batches (paper 4.1, figures 8 and 10)."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from minicogvx.ablation.compare import Measuring, OnStep, check_run, seeded_task, trained_model
from minicogvx.compat import choose_dtype
from minicogvx.data.clips.clips import Clips, Selected
from minicogvx.data.clips.world import WorldClips
from minicogvx.presets import ScheduleConfig, TextConfig, TransformerConfig, preset
from minicogvx.text import TextEncoder
from minicogvx.training.batches import Steps
from minicogvx.training.loop import fit
from minicogvx.training.run import Keep, Run
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.stages import Stage
from minicogvx.training.transformer import TransformerTask
from minicogvx.training.validation import held_back_loss
from minicogvx.transformer.model import ExpertTransformer

HELD_BACK = 64  # clips at the end of a set, on which no variant is trained
Judge = Callable[[ExpertTransformer, TextEncoder], dict[str, float]]  # such as `obeyed.Obeyed`


def study_training(*stages: Stage, **changed) -> TransformerTraining:
    """The optimizer, the learning rates and the share of empty captions of the shipped model, without alignment."""
    usual = {"optimizer": "muon", "learning_rate": 3e-3, "warmup": 50, "weight_decay": 0.0, "timesteps": "stratified",
             "posterior": "mean", "open_gates": True}
    return TransformerTraining(stages, **usual | changed)


@dataclass
class Curve:
    """The loss curve of one variant, and what its model obeys at the end; empty if that was not measured.

    `model` and `text` are None unless it was trained in this process.
    """

    name: str
    seed: int
    parameters: int  # of the transformer, without the text encoder
    steps: list[int]  # optimizer steps done at each measurement; 0 is before training
    loss: list[float]  # mean v-prediction loss on the validation clips
    seconds: float  # of training, measurements of the loss included
    obeyed: dict[str, float] = field(default_factory=dict)  # share of captions, by property; "all" of them
    model: ExpertTransformer | None = field(default=None, repr=False, compare=False)
    text: TextEncoder | None = field(default=None, repr=False, compare=False)


def compare_transformers(variants: Mapping[str, TransformerConfig], latents: WorldClips, steps: int, seed: int = 0,
                         batch_size: int = 32, every: int = 25, dtype: torch.dtype | None = None,
                         text: TextConfig = preset("toy").text, schedule: ScheduleConfig = ScheduleConfig(),
                         device: torch.device | str = "cpu", on_step: OnStep | None = None,
                         judge: Judge | None = None,
                         training: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Curve]:
    """Trains each variant from scratch; measures the validation loss at the start, every `every` steps and at the end.

    Every variant sees the same clips, captions, noise and timesteps, and its text encoder starts from the same weights.
    The last 64 clips of `latents` are for validation; their noise and stratified timesteps are always the same, for any
    seed. The text encoder is trained as well; no alignment head, no moving average. Weights are float32, passes run in
    `dtype`. Deterministic for a seed and a number of threads; the global random state and the gradient mode are
    restored. `on_step(name, done)` is called after each step; `judge(model, text)` after each training, and gives the
    curve's `obeyed`. training: of a variant, fields of `TransformerTraining` that differ from `study_training`.

    Raises ValueError for no variants, a count below 1, or a set without clips to train on.
    """
    check_run(variants, steps, batch_size, every)
    train, held_back = to_train_and_hold_back(latents)
    device, dtype = torch.device(device), choose_dtype(device, dtype, training=True)
    curves = {}
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for name, config in variants.items():
            plan = study_training(Stage(steps, batch_size), **(training or {}).get(name, {}))
            task = seeded_task(config, plan, text, schedule, device, dtype, seed)
            curve = curves[name] = _train(name, task, train, held_back, seed, every, on_step)
            curve.obeyed = judge(curve.model, curve.text) if judge else {}
    return curves


def to_train_and_hold_back(latents: Clips) -> tuple[Selected, Selected]:
    """The clips to train on, and the last 64, for validation. Raises ValueError if none are left to train on."""
    held_from = len(latents) - HELD_BACK
    if held_from < 1:
        raise ValueError(f"latents hold {len(latents)} clips; {HELD_BACK} are held back, so there must be more")
    return Selected(latents, range(held_from)), Selected(latents, range(held_from, len(latents)))


def _train(name: str, task: TransformerTask, train: Clips, held_back: Clips, seed: int, every: int,
           on_step: OnStep | None) -> Curve:
    start, steps = time.perf_counter(), task.training.steps
    curve = Curve(name, seed, sum(p.numel() for p in task.model.parameters()), [], [], 0.0)

    def measure(done: int) -> None:
        curve.steps.append(done)
        curve.loss.append(held_back_loss(task, held_back))

    measure(0)
    warmup = max(1, min(task.training.warmup, steps // 5))
    data, run = Steps(train, task.training, task.model.config, seed=seed), Run(name, steps, Keep(progress=False))
    fit(task, data, run, lambda step: task.training.schedule_at(step, steps, warmup),
        [Measuring(name, steps, every, measure, on_step)])
    curve.model, curve.text = trained_model(task)
    curve.seconds = time.perf_counter() - start
    return curve
