"""Timesteps drawn one by one, or one from each of equal parts (explicit uniform sampling, paper 3.3): what is gained?

Variants differ only in how training draws timesteps. Two things are measured: the loss of every training step, which
is the curve that people look at, and the loss on validation clips at the five timesteps of the paper's Table 9.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from minicogvx.ablation.compare import Measuring, OnStep, check_run, seeded_task
from minicogvx.ablation.questions import QUESTIONS
from minicogvx.ablation.transformers import HELD_BACK, study_training, to_train_and_hold_back
from minicogvx.compat import choose_dtype
from minicogvx.data.clips.clips import Clips
from minicogvx.data.clips.world import WorldClips
from minicogvx.presets import ScheduleConfig, TextConfig, TransformerConfig, preset
from minicogvx.training.batches import Steps
from minicogvx.training.loop import fit
from minicogvx.training.run import Keep, Run
from minicogvx.training.stages import Stage
from minicogvx.training.transformer import TransformerTask
from minicogvx.training.validation import TIMESTEPS, Validation, held_back_loss


@dataclass(frozen=True)
class TimestepsStudy:
    """One transformer, trained with each way to draw timesteps: `variants` are those of `TransformerTraining`."""

    name: str
    question: str
    variants: dict[str, str]
    config: TransformerConfig
    steps: int = 300
    batch_size: int = 8
    every: int = 50
    clips: ClassVar[int] = 384  # encoded once; the last 64 are for validation
    clips_seed: ClassVar[int] = 5


# A small model, of one head and two blocks, for many seeds: the difference may be small, too.
UNIFORM_SAMPLING = TimestepsStudy("uniform-sampling", QUESTIONS["uniform-sampling"], {
    "uniform": "uniform",
    "stratified": "stratified",
}, replace(preset("toy").transformer, num_attention_heads=1, num_layers=2))


@dataclass
class TimestepsCurve:
    """What one way to draw timesteps led to."""

    name: str
    seed: int
    parameters: int  # of the transformer, without the text encoder
    training: list[float]  # mean loss of the batch of every step, at the timesteps that it drew
    steps: list[int]  # done at each measurement of `loss`; 0 is before training
    loss: list[float]  # on the validation clips, at timesteps that are the same for all variants
    at: dict[str, float]  # at the end: the loss on the validation clips, all of them at timestep "100", "300", ..
    seconds: float  # of training, measurements included


def compare_timesteps(variants: Mapping[str, str], config: TransformerConfig, latents: WorldClips, steps: int,
                      seed: int = 0, batch_size: int = 8, every: int = 50, dtype: torch.dtype | None = None,
                      text: TextConfig = preset("toy").text, schedule: ScheduleConfig = ScheduleConfig(),
                      device: torch.device | str = "cpu", on_step: OnStep | None = None) -> dict[str, TimestepsCurve]:
    """Trains one transformer with each way to draw timesteps, as `compare_transformers` trains its variants.

    All begin with the same weights and see the same clips, captions and noise; only the timesteps differ. Those of the
    validation clips are the same for all variants and seeds. Raises ValueError as `compare_transformers` does.
    """
    check_run(variants, steps, batch_size, every)
    train, held_back = to_train_and_hold_back(latents)
    device, dtype = torch.device(device), choose_dtype(device, dtype, training=True)
    curves = {}
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for name, drawn in variants.items():
            training = replace(study_training(Stage(steps, batch_size)), timesteps=drawn)
            task = seeded_task(config, training, text, schedule, device, dtype, seed)
            curves[name] = _train(name, task, train, held_back, seed, every, on_step)
    return curves


def _train(name: str, task: TransformerTask, train: Clips, held_back: Clips, seed: int, every: int,
           on_step: OnStep | None) -> TimestepsCurve:
    start, steps = time.perf_counter(), task.training.steps
    curve = TimestepsCurve(name, seed, sum(p.numel() for p in task.model.parameters()), [], [], [], {}, 0.0)

    def measure(done: int) -> None:
        curve.steps.append(done)
        curve.loss.append(held_back_loss(task, held_back))

    measure(0)
    warmup = max(1, min(task.training.warmup, steps // 5))
    run = NotingRun(name, steps, curve.training)
    fit(task, Steps(train, task.training, task.model.config, seed=seed), run,
        lambda step: task.training.schedule_at(step, steps, warmup), [Measuring(name, steps, every, measure, on_step)])
    found = Validation(held_back, 1, most=HELD_BACK)(steps, task)
    curve.at = {str(t): found[f"loss_{t}"] for t in TIMESTEPS}
    curve.seconds = time.perf_counter() - start
    return curve


class NotingRun(Run):
    """A run that writes nothing and notes the loss of every step."""

    def __init__(self, name: str, total: int, losses: list[float]):
        super().__init__(name, total, Keep(progress=False))
        self.losses = losses

    def record(self, figures: Sequence[Mapping[str, Tensor]], passes: Sequence[Any] = (),
               measured: Mapping[str, float] = {}) -> None:
        """Notes the loss of the batch."""
        self.losses.append(float(sum(one["loss"] for one in figures)))


def roughness(losses: Sequence[float]) -> float:
    """How much a curve jumps: the standard deviation of its noise, estimated from the jumps between neighbours.

    A slow fall of the curve hardly enters. Raises ValueError for fewer than two losses.
    """
    if len(losses) < 2:
        raise ValueError(f"there are {len(losses)} losses; a jump takes at least 2")
    jumps = torch.tensor(losses, dtype=torch.float64).diff()
    return (jumps.square().mean() / 2).sqrt().item()
