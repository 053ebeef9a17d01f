"""Trains transformers that differ in their config on identical batches (paper 4.1, figures 8 and 10)."""

import copy
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minicogvx.compat import choose_dtype
from minicogvx.data.clips.world import LatentSet
from minicogvx.data.world.captions import caption, vocabulary
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.engine.optim import warmup_cosine
from minicogvx.presets import ScheduleConfig, TextConfig, TransformerConfig, preset
from minicogvx.text import TextEncoder
from minicogvx.training.transformer import (
    TransformerStage,
    TransformerTraining,
    diffusion_step_loss,
    draw_batch,
    initialise,
    update_master,
)
from minicogvx.transformer.model import ExpertTransformer

HELD_BACK = 64  # clips at the end of a set, on which no variant is trained
# Learning rates and the share of empty captions of the shipped model; the stage is not used.
_RECIPE = TransformerTraining((TransformerStage(1),))


@dataclass
class Curve:
    """The loss curve of one variant. `model` and `text` are None unless it was trained in this process."""

    name: str
    seed: int
    parameters: int  # of the transformer, without the text encoder
    steps: list[int]  # optimizer steps done at each measurement; 0 is before training
    loss: list[float]  # mean v-prediction loss on the validation clips
    seconds: float  # of training, measurements included
    model: ExpertTransformer | None = field(default=None, repr=False, compare=False)
    text: TextEncoder | None = field(default=None, repr=False, compare=False)


def compare_transformers(variants: Mapping[str, TransformerConfig], latents: LatentSet, steps: int, seed: int = 0,
                         batch_size: int = 32, every: int = 25, dtype: torch.dtype | None = None,
                         text: TextConfig = preset("toy").text, schedule: ScheduleConfig = ScheduleConfig(),
                         device: torch.device | str = "cpu",
                         on_step: Callable[[str, int], None] | None = None) -> dict[str, Curve]:
    """Trains each variant from scratch; measures the validation loss at the start, every `every` steps and at the end.

    Every variant sees the same clips, captions, noise and timesteps, and its text encoder starts from the same weights.
    The last 64 clips of `latents` are for validation; their noise and stratified timesteps are always the same, for any
    seed. The text encoder is trained as well; no alignment head, no moving average. Weights are float32, passes run in
    `dtype`. Deterministic for a seed and a number of threads; the global random state and the gradient mode are
    restored. `on_step(name, done)` is called after each step.

    Raises ValueError for no variants, a count below 1, or a set without clips to train on.
    """
    check_run(variants, steps, batch_size, every)
    clips = len(latents.scenes)
    if clips <= HELD_BACK:
        raise ValueError(f"latents hold {clips} clips; {HELD_BACK} are held back, so there must be more")
    held_from = clips - HELD_BACK
    shared = _Shared(latents.part(0, held_from), latents.part(held_from, clips), NoiseSchedule(schedule),
                     text, choose_dtype(device, dtype, training=True), torch.device(device))
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        return {name: _train(name, config, shared, steps, seed, batch_size, every, on_step)
                for name, config in variants.items()}


def held_back_loss(model: ExpertTransformer, text: TextEncoder, held_back: LatentSet, schedule: NoiseSchedule,
                   dtype: torch.dtype | None = None) -> float:
    """Mean v-prediction loss on all clips of `held_back`, with fixed phrasings, noise and timesteps."""
    words, generator = random.Random(0), torch.Generator().manual_seed(0)
    dtype = dtype or model.proj_out.weight.dtype
    with torch.no_grad():
        x0 = held_back.draw(torch.arange(len(held_back.scenes)), generator)
        features = text.encode([caption(scene, words) for scene in held_back.scenes]).to(dtype)
        return diffusion_step_loss(model, schedule, x0, features, generator).item()


def check_run(variants: Mapping, steps: int, batch_size: int, every: int) -> None:
    """Raises ValueError, in one sentence, for settings that cannot be compared."""
    if not variants:
        raise ValueError("variants is empty; give at least one, such as {'rope': config}")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("every", every)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")


def is_measured(done: int, steps: int, every: int) -> bool:
    """Whether to measure after `done` of `steps` steps."""
    return done % every == 0 or done == steps


@dataclass(frozen=True)
class _Shared:
    """The inputs that all variants of a comparison share."""

    train: LatentSet
    held_back: LatentSet
    schedule: NoiseSchedule
    text: TextConfig
    dtype: torch.dtype
    device: torch.device

    def batch_loss(self, model: ExpertTransformer, text: TextEncoder, batch_size: int, seed: int) -> Tensor:
        """The loss on the batch of `seed`, which is the same for every model."""
        generator = torch.Generator().manual_seed(seed)
        x0, captions, _ = draw_batch(self.train, batch_size, _RECIPE.text_dropout, generator)
        return diffusion_step_loss(model, self.schedule, x0, text.encode(captions).to(self.dtype), generator)


def _train(name: str, config: TransformerConfig, shared: _Shared, steps: int, seed: int, batch_size: int, every: int,
           on_step: Callable[[str, int], None] | None) -> Curve:
    start = time.perf_counter()
    # Seeded twice: the text encoder's weights must not depend on how many numbers the model draws.
    torch.manual_seed(seed)
    text = TextEncoder.from_config(shared.text, vocabulary(), config.max_text_seq_length)
    text.encoder.to(shared.device).train()
    torch.manual_seed(seed)
    master = ExpertTransformer(config)
    initialise(master)
    master.to(shared.device)
    working = copy.deepcopy(master).to(shared.dtype)
    parameters = [*master.named_parameters(prefix="transformer"), *text.encoder.named_parameters(prefix="text")]
    optimizer = _RECIPE.new_optimizer(parameters)
    warmup = max(1, min(_RECIPE.warmup, steps // 5))
    curve = Curve(name, seed, sum(p.numel() for p in master.parameters()), [], [], 0.0)
    for done in range(steps + 1):
        if is_measured(done, steps, every):
            curve.steps.append(done)
            curve.loss.append(held_back_loss(working, text, shared.held_back, shared.schedule, shared.dtype))
        if done == steps:
            break
        shared.batch_loss(working, text, batch_size, seed * 10_000_000 + done).backward()
        update_master(master, working, optimizer, warmup_cosine(done, steps, warmup))
        if on_step:
            on_step(name, done + 1)
    text.encoder.eval()
    curve.seconds, curve.model, curve.text = time.perf_counter() - start, master.eval(), text
    return curve
