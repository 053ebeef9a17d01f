"""Trains the expert transformer and its text encoder on cached latents (paper 2.2, 3).

v-prediction, explicit uniform timesteps, images before videos.
"""

import copy
import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from minicogvx.data.captions import caption, vocabulary
from minicogvx.data.shapes import SHAPES, Scene
from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.diffusion.timesteps import stratified_timesteps
from minicogvx.presets import Preset
from minicogvx.text import TextEncoder
from minicogvx.training.alignment import Alignment
from minicogvx.training.checkpoints import load_checkpoint, save_checkpoint
from minicogvx.training.latents import LatentSet
from minicogvx.training.optim import MuonAdamW, warmup_cosine
from minicogvx.transformer.attention import Attention
from minicogvx.transformer.expert_norm import ExpertNorm
from minicogvx.transformer.model import ExpertTransformer, FeedForward

CHECKPOINT_EVERY = 500  # steps


@dataclass(frozen=True)
class TransformerStage:
    """One stage of diffusion training: how long, and on how much of each clip."""

    steps: int
    batch_size: int = 32
    latent_frames: int | None = None  # None: whole clips; 1: images, which a causal VAE's first latent frame is


@dataclass(frozen=True)
class TransformerTraining:
    """All stages, under one learning-rate curve. Images first is progressive training in time (paper 3.2)."""

    stages: tuple[TransformerStage, ...]
    muon_lr: float = 0.03
    adamw_lr: float = 3e-3
    warmup: int = 50
    text_dropout: float = 0.1  # share of captions replaced by the empty one, for classifier-free guidance
    caption_style: str | None = None  # "short", "dense", or either: see data/captions.py
    ema_decay: float = 0.998
    alignment_weight: float = 1.0  # falls to 0 towards the end; see training/alignment.py
    alignment_kinds: tuple[str, ...] = ("shape", "motion")

    def plan(self) -> list[TransformerStage]:
        """The stage of every step."""
        return [stage for stage in self.stages for _ in range(stage.steps)]


@torch.no_grad()
def initialise(model: ExpertTransformer) -> None:
    """Start values for training from nothing: every block is the identity, yet its weights learn from the first step.

    The usual zero gates leave the blocks without gradient until the gates have grown. Here the gates start at one and
    the last layer of each branch at zero.
    """
    for part in model.transformer_blocks.modules():
        if isinstance(part, ExpertNorm):
            gates = part.linear.bias.view(-1, 3, model.config.width)[:, 2]  # (shift, scale, gate) of video and of text
            gates.fill_(1.0)
        elif isinstance(part, (Attention, FeedForward)):
            last = part.to_out[0] if isinstance(part, Attention) else part.net[2]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    nn.init.zeros_(model.proj_out.weight)


def train_transformer(preset: Preset, latents: LatentSet, training: TransformerTraining, seed: int = 0,
                      dtype: torch.dtype = torch.bfloat16, log: Path | None = None, progress: bool = True,
                      checkpoint: Path | None = None) -> tuple[ExpertTransformer, TextEncoder]:
    """A transformer and a text encoder trained together from nothing; returns their moving averages.

    The forward and backward pass run in `dtype` on a copy of the weights; the weights themselves stay float32. With
    `checkpoint` the run's whole state goes to that file now and then, and a run that finds the file goes on from there.
    """
    torch.manual_seed(seed)
    master = ExpertTransformer(preset.transformer)
    initialise(master)
    text = TextEncoder.from_config(preset.text, vocabulary(), preset.transformer.max_text_seq_length)
    ema = [copy.deepcopy(net).requires_grad_(False) for net in (master, text.encoder)]
    working = copy.deepcopy(master).to(dtype)
    alignment = Alignment(working, training.alignment_kinds)
    parameters = [*alignment.named_parameters(prefix="alignment"), *master.named_parameters(prefix="transformer"),
                  *text.encoder.named_parameters(prefix="text")]
    optimizer = MuonAdamW(parameters, training.muon_lr, training.adamw_lr, muon_on=is_block_matrix)
    state = {"transformer": master, "text": text.encoder, "ema_transformer": ema[0], "ema_text": ema[1],
             "alignment": alignment}
    done = load_checkpoint(checkpoint, state, optimizer) if checkpoint else 0
    working.load_state_dict(master.state_dict())
    schedule = NoiseSchedule(preset.schedule)
    text.encoder.train()
    plan = training.plan()
    bar = tqdm(range(done, len(plan)), desc="transformer", initial=done, total=len(plan), disable=not progress,
               mininterval=5)
    for step in bar:
        start, generator = time.perf_counter(), torch.Generator().manual_seed(seed * 10_000_000 + step)
        x0, captions, features = draw_batch(latents, plan[step].batch_size, training.text_dropout, generator,
                                            plan[step].latent_frames, training.caption_style)
        loss = diffusion_step_loss(working, schedule, x0, text.encode(captions).to(dtype), generator)
        aligned = alignment(features)
        (loss + training.alignment_weight * (1 - step / len(plan)) * aligned).backward()
        norm = update_master(master, working, optimizer, warmup_cosine(step, len(plan), training.warmup))
        with torch.no_grad():
            decay = min(training.ema_decay, (1 + step) / (10 + step))
            for average, net in zip(ema, (master, text.encoder)):
                torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
        if log and (step % 20 == 0 or step == len(plan) - 1):
            row = {"step": step, "loss": loss.item(), "alignment": aligned.item(), "grad_norm": norm.item(),
                   "seconds": time.perf_counter() - start}
            if step % 200 == 0:
                row["swap_gain"] = swap_gain(working, text, latents, schedule, dtype)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            bar.set_postfix(loss=f"{row['loss']:.3f}")
        if checkpoint and ((step + 1) % CHECKPOINT_EVERY == 0 or step == len(plan) - 1):
            save_checkpoint(checkpoint, step + 1, state, optimizer)
    return ema[0].eval(), TextEncoder(text.tokenizer, ema[1].eval(), text.max_length)


def draw_batch(latents: LatentSet, batch_size: int, text_dropout: float, generator: torch.Generator,
               latent_frames: int | None = None, caption_style: str | None = None) -> tuple[
                   Float[Tensor, "b c t h w"], list[str], Float[Tensor, "b t h w k"]]:
    """Clean latents, captions and features of randomly drawn clips, cut to their first `latent_frames`."""
    index = torch.randint(len(latents.scenes), (batch_size,), generator=generator)
    words = random.Random(generator.initial_seed())
    captions = [caption(latents.scenes[i], words, caption_style) if words.random() >= text_dropout else ""
                for i in index]
    frames = slice(latent_frames)
    return latents.draw(index, generator)[:, :, frames], captions, latents.features[index][:, frames]


def diffusion_step_loss(model: ExpertTransformer, schedule: NoiseSchedule, x0: Float[Tensor, "b c t h w"],
                        text_features: Float[Tensor, "b n d"], generator: torch.Generator) -> Float[Tensor, ""]:
    """Mean loss of a batch; `generator` draws first the noise, then the timesteps, one from each of b equal parts."""
    noise = torch.randn(x0.shape, generator=generator)
    t = stratified_timesteps(len(x0), schedule.num_train_timesteps, generator)
    prediction = model(schedule.add_noise(x0, noise, t).to(text_features.dtype), t, text_features)
    return diffusion_loss(prediction, x0, noise, t, schedule).mean()


@torch.no_grad()
def update_master(master: nn.Module, working: nn.Module, optimizer: MuonAdamW, factor: float) -> Tensor:
    """Hands the gradients of the short copy to the float32 weights, steps and copies them back; the gradient norm."""
    for p, low in zip(master.parameters(), working.parameters()):
        p.grad, low.grad = low.grad.float(), None
    norm = optimizer.step(factor)
    torch._foreach_copy_(list(working.parameters()), list(master.parameters()))
    return norm


@torch.no_grad()
def swap_gain(model: ExpertTransformer, text: TextEncoder, latents: LatentSet, schedule: NoiseSchedule,
              dtype: torch.dtype, clips: int = 192) -> float:
    """How much the loss rises when each caption names the wrong shape: near 0 the model has not learnt the word.

    It shows a shape that does not obey long before samples do.
    """
    clips = min(clips, len(latents.scenes))
    x0 = latents.draw(torch.arange(clips), torch.Generator().manual_seed(0))

    def loss(scenes: list[Scene]) -> Float[Tensor, ""]:
        words = random.Random(0)  # the same phrasing, noise and timesteps for both
        features = text.encode([caption(scene, words, "short") for scene in scenes]).to(dtype)
        return diffusion_step_loss(model, schedule, x0, features, torch.Generator().manual_seed(1))

    scenes = latents.scenes[:clips]
    return (loss([_other_shapes(scene) for scene in scenes]) - loss(scenes)).item()


def _other_shapes(scene: Scene) -> Scene:
    return replace(scene, objects=tuple(
        replace(thing, shape=SHAPES[(SHAPES.index(thing.shape) + 1 + i) % len(SHAPES)])
        for i, thing in enumerate(scene.objects)))


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Which parameters Muon takes: the matrices of the blocks of "transformer", without their modulations."""
    return parameter.ndim == 2 and name.startswith("transformer.transformer_blocks") and ".norm" not in name
