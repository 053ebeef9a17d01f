"""A nano world, in which a small transformer learns its words within a minute on a laptop.

Three shapes, four colours, four motions, two backgrounds: 96 sentences, of which the held-out combinations are never
shown. A clip has 9 frames of 64x64 pixels, 48 video tokens. Its latents are the shipped toy VAE's, encoded once and
stored in 8 bits (`python -m minicogvx.ablation.nano_study clips`); captions go through the toy's text encoder.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minicogvx.ablation.studies import TRANSFORMER
from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.features import scene_features
from minicogvx.data.world.scenes import Scene, sample_scenes
from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.diffusion.timesteps import stratified_timesteps
from minicogvx.engine.optim import MuonAdamW, is_block_matrix, warmup_cosine
from minicogvx.interop import DATA
from minicogvx.interop.safetensors_files import read_tensors
from minicogvx.presets import ScheduleConfig
from minicogvx.text import TextEncoder
from minicogvx.training.alignment import Alignment
from minicogvx.training.foreground import cell_weights
from minicogvx.training.transformer import open_gates
from minicogvx.training.validation import with_other_words
from minicogvx.transformer.model import ExpertTransformer

CHOICES = {"shape": ("circle", "cross", "bar"), "colour": ("red", "yellow", "green", "blue"),
           "motion": ("moves left", "moves right", "moves up", "moves down"), "background": ("black", "grey")}
KINDS = ("background", "colour", "shape", "motion")
CLIPS, HELD, CLIPS_SEED, FRAMES = 384, 48, 9, 9  # clips in all; of them held back, the last
MAX_TOKENS = 20  # of a caption
NANO_TRANSFORMER = replace(TRANSFORMER, sample_frames=FRAMES, max_text_seq_length=MAX_TOKENS)
FOLDER = DATA / "nano"
LEARNING_RATE, MUON_FACTOR, WARMUP, DROPPED, BATCH = 2e-3, 10.0, 20, 0.1, 16
VOICE, OBJECTS = 1.5, 4.0  # weights of the teacher's loss at the beginning, and of cells with an object, besides 1


@dataclass(frozen=True)
class NanoWorld:
    """Latents, and the features of their captions; the last `HELD` clips are for measuring."""

    scenes: list[Scene]
    latents: Float[Tensor, "m c t h w"]  # scaled, float32
    features: Float[Tensor, "m n d"]
    wrong: dict[str, Float[Tensor, "held n d"]]  # of the clips held back: captions with one kind of word exchanged
    empty: Float[Tensor, "1 n d"]
    covered: Float[Tensor, "m t h w k"]  # what covers each latent cell, for the alignment: data/world/features.py


def nano_scenes() -> list[Scene]:
    """The scenes of the stored clips."""
    return sample_scenes(CLIPS, CLIPS_SEED, "train", 0.0, CHOICES)


def nano_latents(path: str | Path = FOLDER / "clips.safetensors") -> Float[Tensor, "m c t h w"]:
    """The stored latents of `nano_scenes`, float32. Raises FileNotFoundError or ValueError as `read_tensors` does."""
    stored = read_tensors(path)
    return stored["latents"].float() * stored["step"].view(-1, 1, 1, 1)


def short_captions(text: TextEncoder) -> TextEncoder:
    """The same encoder, for captions of at most `MAX_TOKENS`."""
    return TextEncoder(text.tokenizer, text.encoder, MAX_TOKENS)


@torch.no_grad()
def nano_world(text: TextEncoder, latents: Float[Tensor, "m c t h w"] | None = None) -> NanoWorld:
    """The nano world, with captions as `text` encodes them; `latents` None: the stored ones."""
    short, scenes = short_captions(text), nano_scenes()

    def features(scenes: list[Scene], first: int = 0) -> Tensor:
        said = [evaluation_caption(scene, random.Random(i)) for i, scene in enumerate(scenes, first)]
        return short.encode(said).cpu()

    held = scenes[-HELD:]
    wrong = {kind: features([with_other_words(scene, kind, CHOICES) for scene in held], CLIPS - HELD)
             for kind in KINDS}
    return NanoWorld(scenes, nano_latents() if latents is None else latents, features(scenes), wrong,
                     short.encode([""]).cpu(), scene_features(scenes, FRAMES, 8))


def nano_results(name: str) -> list[dict]:
    """The stored runs of "words" or "clinic"; nano_study.py says what is in them."""
    path = DATA / "results" / f"nano-{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["runs"]


def nano_samples(name: str) -> dict[str, Float[Tensor, "_b c t h w"]]:
    """The stored samples of the first seed, as latents: of "words" by step, of "clinic" by patient."""
    return {key: latents.float() for key, latents in read_tensors(FOLDER / f"nano-{name}.safetensors").items()}


# ---- measuring


@torch.no_grad()
def nano_losses(model: ExpertTransformer, world: NanoWorld, schedule: NoiseSchedule,
                time_scale: int | float = 1, latent_scale: int | float = 1) -> dict[str, float]:
    """The loss on the clips held back: with their "own" captions, with "none", and with one kind of word exchanged.

    Noise and timesteps are always the same. How much a loss exceeds that of "own" is the gain of the word. The network
    computes where its weights are; all else is on the CPU.
    """
    drawn = torch.Generator().manual_seed(1)
    x0 = latent_scale * world.latents[-HELD:]
    noise = torch.randn(x0.shape, generator=drawn)
    t = stratified_timesteps(HELD, schedule.num_train_timesteps, drawn)
    noisy = schedule.add_noise(x0, noise, t)
    device = next(model.parameters()).device
    given = {"own": world.features[-HELD:], "none": world.empty.expand(HELD, -1, -1)} | world.wrong
    return {name: diffusion_loss(model(noisy.to(device), time_scale * t.to(device), features.to(device)).cpu(), x0,
                                 noise, t, schedule).mean().item() for name, features in given.items()}


def word_gains(losses: dict[str, float]) -> dict[str, float]:
    """Of each kind of word, how much the loss rises when it is exchanged."""
    return {kind: losses[kind] - losses["own"] for kind in KINDS}


# ---- training


@dataclass(frozen=True)
class Patient:
    """A training with one thing that is wrong in it; by default nothing is."""

    name: str = "healthy"
    roll: int = 0  # captions move on by so many places in each batch
    dropped: float = DROPPED  # share of captions replaced by the empty one
    time_scale: int | float = 1  # the network gets t times this
    latent_scale: int | float = 1  # latents are so much too large
    decay: float = 0.0  # of a moving average without a warm-up, whose weights are used; 0: none


PATIENTS = (
    Patient(), Patient("captions of other clips", roll=1), Patient("captions always dropped", dropped=1.0),
    Patient("timestep given as 0 to 1", time_scale=0.001), Patient("latents not scaled", latent_scale=5),
    Patient("average of 0.9999", decay=0.9999),
)


def new_nano(seed: int) -> ExpertTransformer:
    """A fresh network, its gates open; the global random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = ExpertTransformer(NANO_TRANSFORMER)
    open_gates(model)
    return model


def new_teacher(model: ExpertTransformer, world: NanoWorld) -> Alignment:
    """The small network that reads off the middle block which shape, motion and colour cover each latent cell."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Alignment(model, ("shape", "motion", "colour"), world.covered.var().item())


def new_optimizer(model: ExpertTransformer, teacher: Alignment | None = None, rate: int | float = LEARNING_RATE,
                  muon: bool = True) -> MuonAdamW:
    """Muon for the matrices of the blocks, AdamW at `rate` for the rest; or, without Muon, for all."""
    named = [(f"transformer.{name}", p) for name, p in model.named_parameters()]
    named += [] if teacher is None else [(f"teacher.{name}", p) for name, p in teacher.named_parameters()]
    return MuonAdamW(named, MUON_FACTOR * rate, rate, is_block_matrix if muon else lambda name, p: False)


def nano_batches(count: int, steps: int, batch_size: int, seed: int) -> Iterator[tuple[
        Int[Tensor, "b"], torch.Generator]]:
    """Of each step: which of `count` clips, every one once before any comes again, and the generator of its noise."""
    drawn, left = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(left) < batch_size:
            left = torch.cat([left, torch.randperm(count, generator=drawn)])
        yield left[:batch_size], drawn
        left = left[batch_size:]


def train_nano(model: ExpertTransformer, world: NanoWorld, schedule: ScheduleConfig, steps: int, seed: int = 0,
               patient: Patient = Patient(), batch_size: int = BATCH, taught: bool = False) -> Iterator[float]:
    """Trains `model` in place, on the clips that are not held back; yields the loss of each step.

    `taught`: with the help of a teacher (training/alignment.py) whose voice falls to 0, and objects that count more
    (training/foreground.py). Switches gradients on for its own steps. At the end the model has the weights that the
    patient would be used with.
    """
    teacher = new_teacher(model, world) if taught else None
    schedule, optimizer = NoiseSchedule(schedule), new_optimizer(model, teacher)
    average = {name: p.detach().clone() for name, p in model.named_parameters()} if patient.decay else {}
    for step, (chosen, drawn) in enumerate(nano_batches(CLIPS - HELD, steps, batch_size, seed)):
        x0, text = patient.latent_scale * world.latents[chosen], world.features[chosen].roll(patient.roll, dims=0)
        without = torch.rand(len(chosen), generator=drawn) < patient.dropped
        text = torch.where(without[:, None, None], world.empty, text)
        t = stratified_timesteps(len(chosen), schedule.num_train_timesteps, drawn)
        noise = torch.randn(x0.shape, generator=drawn)
        weight = cell_weights(world.covered[chosen], schedule.alphas_cumprod, t, OBJECTS) if taught else None
        with torch.enable_grad():
            answer = model(schedule.add_noise(x0, noise, t), patient.time_scale * t, text)
            loss = diffusion_loss(answer, x0, noise, t, schedule, weight).mean()
            taught_loss = VOICE * (1 - step / steps) * teacher(world.covered[chosen]) if taught else 0.0
            (loss + taught_loss).backward()
        optimizer.step(warmup_cosine(step, steps, WARMUP))
        for name, p in model.named_parameters() if average else ():
            average[name].lerp_(p.detach(), 1 - patient.decay)
        if step == steps - 1 and average:
            model.load_state_dict(average)
        yield loss.item()
