"""Trains the expert transformer and its text encoder on cached latents (paper 2.2, 3): v-prediction, stratified timesteps."""

import copy
import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.data.captions import caption, vocabulary
from minicogvx.data.shapes import SHAPES, Scene
from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.diffusion.timesteps import stratified_timesteps
from minicogvx.presets import Preset
from minicogvx.text import TextEncoder
from minicogvx.training.latents import LatentSet
from minicogvx.training.optim import MuonAdamW, warmup_cosine
from minicogvx.transformer.model import ExpertTransformer


@dataclass(frozen=True)
class TransformerStage:
    """One stage of diffusion training."""

    steps: int
    batch_size: int = 64
    muon_lr: float = 0.01
    adamw_lr: float = 1e-3
    warmup: int = 50
    text_dropout: float = 0.1  # share of captions replaced by the empty one, for classifier-free guidance
    ema_decay: float = 0.998


def train_transformer(preset: Preset, latents: LatentSet, stage: TransformerStage, seed: int = 0,
                      dtype: torch.dtype = torch.bfloat16, log: Path | None = None,
                      progress: bool = True) -> tuple[ExpertTransformer, TextEncoder]:
    """A transformer and a text encoder trained together from nothing; returns their moving averages.

    The forward and backward pass run in `dtype` on a copy of the weights; the weights themselves stay float32.
    """
    torch.manual_seed(seed)
    master = ExpertTransformer(preset.transformer)
    text = TextEncoder.from_config(preset.text, vocabulary(), preset.transformer.max_text_seq_length)
    working = copy.deepcopy(master).to(dtype)
    schedule = NoiseSchedule(preset.schedule)
    ema = [copy.deepcopy(net).requires_grad_(False) for net in (master, text.encoder)]
    optimizer = MuonAdamW([*master.named_parameters(prefix="transformer"), *text.encoder.named_parameters(prefix="text")],
                          stage.muon_lr, stage.adamw_lr, muon_on=_is_block_matrix)
    generator, words = torch.Generator().manual_seed(seed + 1), random.Random(seed + 2)
    text.encoder.train()
    bar = tqdm(range(stage.steps), desc="transformer", disable=not progress, mininterval=5)
    for step in bar:
        start = time.perf_counter()
        index = torch.randint(len(latents.scenes), (stage.batch_size,), generator=generator)
        captions = [caption(latents.scenes[i], words) if words.random() >= stage.text_dropout else "" for i in index]
        x0 = latents.draw(index, generator)
        noise = torch.randn(x0.shape, generator=generator)
        t = stratified_timesteps(stage.batch_size, preset.schedule.num_train_timesteps, generator)
        prediction = working(schedule.add_noise(x0, noise, t).to(dtype), t, text.encode(captions).to(dtype))
        loss = diffusion_loss(prediction, x0, noise, t, schedule).mean()
        loss.backward()
        with torch.no_grad():
            for p, low in zip(master.parameters(), working.parameters()):
                p.grad, low.grad = low.grad.float(), None
            norm = optimizer.step(warmup_cosine(step, stage.steps, stage.warmup))
            torch._foreach_copy_(list(working.parameters()), list(master.parameters()))
            decay = min(stage.ema_decay, (1 + step) / (10 + step))
            for average, net in zip(ema, (master, text.encoder)):
                torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
        if log and (step % 20 == 0 or step == stage.steps - 1):
            row = {"step": step, "loss": loss.item(), "grad_norm": norm.item(), "seconds": time.perf_counter() - start}
            if step % 200 == 0:
                row["swap_gain"] = swap_gain(working, text, latents, schedule, dtype)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            bar.set_postfix(loss=f"{row['loss']:.3f}")
    return ema[0].eval(), TextEncoder(text.tokenizer, ema[1].eval(), text.max_length)


@torch.no_grad()
def swap_gain(model: ExpertTransformer, text: TextEncoder, latents: LatentSet, schedule: NoiseSchedule,
              dtype: torch.dtype, clips: int = 64) -> float:
    """How much the loss rises when each caption names the wrong shape: near 0 the model has not learnt the word.

    It shows a shape that does not obey long before samples do.
    """
    clips, generator = min(clips, len(latents.scenes)), torch.Generator().manual_seed(0)
    x0 = latents.draw(torch.arange(clips), generator)
    noise = torch.randn(x0.shape, generator=generator)
    t = stratified_timesteps(clips, len(schedule.alphas_cumprod), generator)
    x_t = schedule.add_noise(x0, noise, t).to(dtype)

    def loss(scenes: list[Scene]) -> Float[Tensor, ""]:
        words = random.Random(0)  # the same phrasing for both
        features = text.encode([caption(scene, words, "short") for scene in scenes]).to(dtype)
        return diffusion_loss(model(x_t, t, features), x0, noise, t, schedule).mean()

    scenes = latents.scenes[:clips]
    return (loss([_other_shapes(scene) for scene in scenes]) - loss(scenes)).item()


def _other_shapes(scene: Scene) -> Scene:
    return replace(scene, objects=tuple(
        replace(thing, shape=SHAPES[(SHAPES.index(thing.shape) + 1 + i) % len(SHAPES)])
        for i, thing in enumerate(scene.objects)))


def _is_block_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and name.startswith("transformer.transformer_blocks") and ".norm" not in name
