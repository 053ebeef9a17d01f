"""Schedules at equal tokens in the nano world: clips only, or thumbnails or still pictures first (paper 3.2, Table 5).

Seconds depend on the machine, and on who else uses it. So a budget is counted in tokens: each step has as many clips as
fit into a fixed number of tokens, their captions included. A step then costs nearly the same in every stage, only
attention is a little cheaper among short clips; `flops` of a curve says by how much.

Thumbnails are the same scenes drawn at half the size and encoded again; a picture is the first latent frame of a clip,
which a causal VAE makes of its first frame, but for the statistics of its group norms. As in ablation/nano.py, a
teacher helps whose voice falls to 0, and objects count more; one warm-up and one cosine go over all stages. Positions
of small grids are spread over those of the full one.
"""

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minicogvx.ablation import nano
from minicogvx.ablation.compare import OnStep
from minicogvx.ablation.nano_study import nano_sampled
from minicogvx.ablation.schedules_study import KINDS_OF_CLIPS, SchedulesStudy, ends_of
from minicogvx.compat import products_in
from minicogvx.data.clips.clips import stack_latents
from minicogvx.data.clips.world import encode_world
from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.features import scene_features
from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.diffusion.timesteps import stratified_timesteps
from minicogvx.engine.optim import warmup_cosine
from minicogvx.evaluation.adherence import judge
from minicogvx.pipeline import Pipeline
from minicogvx.presets import TransformerConfig
from minicogvx.training.alignment import Alignment
from minicogvx.training.foreground import cell_weights
from minicogvx.transformer.model import ExpertTransformer, flops

_CAPTIONS_SEED = 8_000_009  # of the noise of the clips that are asked for; the same for all runs


@dataclass
class SchedulesCurve:
    """What one schedule led to. All is measured on clips of the full size that are held back."""

    name: str
    seed: int
    parameters: int
    stages: list[str] = field(default_factory=list)  # the kind of clips of each
    ends: list[int] = field(default_factory=list)  # steps done at the end of each
    clips: list[int] = field(default_factory=list)  # seen in each, with repetitions
    tokens: int = 0  # of all of them, captions included
    flops: float = 0.0  # of all steps, in matrix products: three times the forward pass
    steps: list[int] = field(default_factory=list)  # done at each measurement; 0 is before training
    loss: list[float] = field(default_factory=list)
    gain: dict[str, list[float]] = field(default_factory=dict)  # of each kind of word: see nano.word_gains
    obeyed: dict[str, float] = field(default_factory=dict)  # share of the captions, by property; "all" of them
    asked: int = 0  # captions
    seconds: float = 0.0  # of training steps


def at_full_size(curve: SchedulesCurve, measure: str) -> list[float]:
    """The loss at each measurement, or the gain of a kind of word; raises ValueError for another measure."""
    if measure != "loss" and measure not in curve.gain:
        raise ValueError(f"measure is {measure!r}; it must be 'loss' or one of {', '.join(curve.gain)}")
    return curve.loss if measure == "loss" else curve.gain[measure]


@dataclass(frozen=True)
class ScheduleClips:
    """The nano world at every size: of each kind of clips, latents and what covers their cells."""

    world: nano.NanoWorld
    latents: dict[str, Float[Tensor, "m c _t _h _w"]]
    covered: dict[str, Float[Tensor, "m _t _h _w k"]]


def schedule_clips(pipe: Pipeline, progress: bool = True) -> ScheduleClips:
    """The clips of the nano world, and the same scenes as thumbnails and as still pictures; encodes the thumbnails."""
    world, (frames, side) = nano.nano_world(pipe.text), KINDS_OF_CLIPS["thumbnails"]
    small = encode_world(pipe.vae, num_frames=frames, scenes=world.scenes, side=side, dtype=torch.float32,
                         progress=progress)
    cells = side // pipe.vae.config.spatial_compression_ratio
    return ScheduleClips(
        world,
        {"thumbnails": stack_latents(small, range(len(small))), "pictures": world.latents[:, :, :1],
         "clips": world.latents},
        {"thumbnails": scene_features(world.scenes, frames, cells), "pictures": world.covered[:, :1],
         "clips": world.covered})


def compare_schedules(study: SchedulesStudy, pipe: Pipeline, clips: ScheduleClips, steps: int, seed: int = 0,
                      names: tuple[str, ...] | None = None, dtype: torch.dtype = torch.float32,
                      on_step: OnStep | None = None) -> dict[str, SchedulesCurve]:
    """Trains a fresh transformer by each schedule, or by those in `names`, and measures it at the full size.

    All begin with the same weights for a seed. `dtype`: of all passes. The network computes where the pipeline does.
    Random state and gradient mode are restored. Raises ValueError for fewer than one step, or a stage without one.
    """
    curves = {}
    for name, schedule in study.variants.items():
        if names is None or name in names:
            ends = ends_of(schedule, steps)
            if min(end - begin for begin, end in zip([0, *ends], ends)) < 1:
                raise ValueError(f"steps is {steps}; {name!r} then has a stage without a step")
            curves[name] = _train(study, pipe, clips, SchedulesCurve(name, seed, 0, ends=ends), dtype, on_step)
    return curves


def _train(study: SchedulesStudy, pipe: Pipeline, clips: ScheduleClips, curve: SchedulesCurve, dtype: torch.dtype,
           on_step: OnStep | None) -> SchedulesCurve:
    steps, device = curve.ends[-1], next(pipe.vae.parameters()).device
    model = nano.new_nano(curve.seed, replace(nano.NANO_TRANSFORMER, position_scaling="interpolate"))
    teacher, model = nano.new_teacher(model, clips.world).to(device), model.to(device)
    optimizer, noises = nano.new_optimizer(model, teacher), NoiseSchedule(pipe.schedule_config)
    curve.parameters, curve.gain = sum(p.numel() for p in model.parameters()), {kind: [] for kind in nano.KINDS}
    _measure(curve, 0, model, clips.world, noises)
    for step, batch in enumerate(_batches(curve, study, clips, model.config, noises.num_train_timesteps)):
        start = time.perf_counter()
        _loss(model, teacher, nano.VOICE * (1 - step / steps), noises, dtype, *(x.to(device) for x in batch)).backward()
        optimizer.step(warmup_cosine(step, steps, nano.WARMUP))
        curve.seconds += time.perf_counter() - start
        if (step + 1) % study.every == 0 or step + 1 == steps:
            _measure(curve, step + 1, model, clips.world, noises)
        if on_step:
            on_step(curve.name, step + 1)
    if study.asked:
        curve.obeyed, curve.asked = _obeyed(pipe, model, clips.world, study.asked), study.asked
    return curve


def _batches(curve: SchedulesCurve, study: SchedulesStudy, clips: ScheduleClips, config: TransformerConfig,
             timesteps: int) -> Iterator[tuple[Tensor, ...]]:
    """Of each step: latents, what covers them, the features of their captions, timesteps, noise.

    Adds to the curve what each stage spends.
    """
    count = nano.CLIPS - nano.HELD
    for place, ((kind, _), begin, end) in enumerate(zip(study.variants[curve.name], [0, *curve.ends], curve.ends)):
        size = tuple(clips.latents[kind].shape[2:])
        each = nano.MAX_TOKENS + config.num_patches(size)
        batch = min(count, max(1, study.tokens // each))
        curve.stages.append(kind)
        curve.clips.append((end - begin) * batch)
        curve.tokens += (end - begin) * batch * each
        curve.flops += 3.0 * (end - begin) * flops(config, size, nano.MAX_TOKENS, batch)
        for chosen, drawn in nano.nano_batches(count, end - begin, batch, 1000 * curve.seed + place):
            without = torch.rand(batch, generator=drawn) < nano.DROPPED
            text = torch.where(without[:, None, None], clips.world.empty, clips.world.features[chosen])
            t = stratified_timesteps(batch, timesteps, drawn)
            x0 = clips.latents[kind][chosen]
            yield x0, clips.covered[kind][chosen], text, t, torch.randn(x0.shape, generator=drawn)


def _loss(model: ExpertTransformer, teacher: Alignment, voice: float, noises: NoiseSchedule, dtype: torch.dtype,
          x0: Float[Tensor, "b c t h w"], covered: Float[Tensor, "b t h w k"], text: Float[Tensor, "b n d"],
          timesteps: Int[Tensor, "b"], noise: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
    weight = cell_weights(covered, noises.alphas_cumprod, timesteps, nano.OBJECTS)
    with torch.enable_grad():
        with products_in(dtype, x0.device):
            answer = model(noises.add_noise(x0, noise, timesteps), timesteps, text)
            told = voice * teacher(covered)
        return diffusion_loss(answer.float(), x0, noise, timesteps, noises, weight).mean() + told


def _measure(curve: SchedulesCurve, done: int, model: ExpertTransformer, world: nano.NanoWorld,
             noises: NoiseSchedule) -> None:
    losses = nano.nano_losses(model, world, noises)
    curve.steps.append(done)
    curve.loss.append(losses["own"])
    for kind, gain in nano.word_gains(losses).items():
        curve.gain[kind].append(gain)


@torch.no_grad()
def _obeyed(pipe: Pipeline, model: ExpertTransformer, world: nano.NanoWorld, asked: int) -> Mapping[str, float]:
    """The share of captions of scenes that were held back which the model obeys, by property, in 0..1."""
    scenes, right = world.scenes[-asked:], {}
    for first in range(0, asked, 16):
        some = scenes[first:first + 16]
        said = [evaluation_caption(scene, random.Random(first + i)) for i, scene in enumerate(some)]
        made = pipe.decode(nano_sampled(pipe, model, said, _CAPTIONS_SEED + first))
        for clip, scene in zip(made, some):
            for name, ok in judge(clip, scene)[0].items():
                right[name] = right.get(name, 0) + ok
    return {name: count / len(scenes) for name, count in right.items()}
