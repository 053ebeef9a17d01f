"""Stages of growing size against the full size at once, for the same time; then the best fifth (paper 3.2, Table 5).

All variants are trained for equally many *seconds*, because that is what stages save. So the results depend on the
machine: how much cheaper a small clip is than a large one, and how many steps fit into the time. The points of a curve
therefore also hold steps, clips and tokens, which do not depend on it. Only training steps count; measurements and
encoding do not.

One run: one warm-up and one cosine over all its seconds, whatever its stages; explicit uniform timesteps; the text
encoder is trained along; the alignment of the shipped models, falling to 0. Measured are the moving averages of the
weights, which trail the weights by a few hundred steps, so a curve bends a little after a stage has begun.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minicogvx.ablation.stage_clips import StageClips, pick
from minicogvx.ablation.stage_judge import Judge
from minicogvx.ablation.studies import StagesStudy, TimedStage
from minicogvx.ablation.transformers import held_back_loss
from minicogvx.compat import choose_dtype
from minicogvx.data.captions import vocabulary
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.pipeline import Pipeline
from minicogvx.presets import ScheduleConfig, TextConfig, TransformerConfig, preset
from minicogvx.text import TextEncoder
from minicogvx.training.alignment import Alignment
from minicogvx.training.latents import LatentSet
from minicogvx.training.optim import average, warmup_cosine
from minicogvx.training.transformer import (
    TransformerStage, TransformerTraining, draw_batch, draw_noise, initialise, update_master, v_loss)
from minicogvx.transformer.model import ExpertTransformer

# A shorter average than the shipped model's, since runs are shorter; its stage is not used.
RECIPE = TransformerTraining((TransformerStage(1),), ema_decay=0.995)
_TICKS, _WARMUP = 10_000, 200  # a run in parts of its time; warm-up is its first fiftieth


@dataclass
class StagesCurve:
    """How one run went, point by point, and what its model made at the end. Times are seconds of training proper."""

    name: str
    seed: int
    parameters: int  # of the transformer, without the text encoder
    stages: list[str] = field(default_factory=list)  # in order, such as "64x64, 17 frames"
    ends: list[float] = field(default_factory=list)  # when each stage ended
    seconds: list[float] = field(default_factory=list)  # at each measurement; the first is before training
    steps: list[int] = field(default_factory=list)
    clips: list[int] = field(default_factory=list)  # seen so far, repetitions counted
    tokens: list[int] = field(default_factory=list)  # of those clips, text included
    loss: list[float] = field(default_factory=list)  # v-loss on clips held back, at the full size, blurred as often
    loss_of_sharp: list[float] = field(default_factory=list)  # on the same clips in focus
    sharp_share: float = 0.0  # of the clips that the last stage drew from: how many are in focus
    adherence: dict[str, float] = field(default_factory=dict)  # share of the captions obeyed, by property
    measured: int = 0  # captions, of the training split; none belongs to a clip that was trained on
    sharpness: float = 0.0  # steepness of the generated clips over that of true sharp clips of these captions
    references: dict[str, dict[str, float]] = field(default_factory=dict)  # the same of true clips; see Judge
    model: ExpertTransformer | None = field(default=None, repr=False, compare=False)  # the averages, where just trained
    text: TextEncoder | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Bench:
    """What all variants of one comparison have in common."""

    study: StagesStudy
    clips: StageClips
    pipe: Pipeline  # its VAE, which made the latents, decodes; its guidance scale is sampled with
    text: TextConfig = preset("toy").text
    schedule: ScheduleConfig = ScheduleConfig()
    dtype: torch.dtype | None = None  # of passes; None: the fastest of the pipeline's device
    now: Callable[[], float] = time.perf_counter
    on_second: Callable[[str], None] | None = None  # called with a variant's name for each second of training


def compare_stages(bench: Bench, names: Sequence[str], seed: int = 0,
                   on_curves: Callable[[list[StagesCurve]], None] | None = None) -> list[StagesCurve]:
    """Trains each named variant from nothing for the study's minutes; after `refined` the best fifth, too.

    Every variant starts from the same weights of the text encoder and of the transformer, and step k of each draws
    from the same seed. The refined variant goes on twice from its averages, for `best_fifth` minutes each: on the fifth
    that `StageClips.best` picks, and on all clips, so that the picking is told apart from the longer training.
    `on_curves` is called with the curves of each variant when they are whole. The number of steps depends on the
    machine, so only a `now` that counts makes a run repeatable. Random state and gradient mode stay as they were.

    Raises ValueError for no names, one that the study does not have, or a transformer for another size than the full.
    """
    study = bench.study
    for name in names:
        if name not in study.variants:
            raise ValueError(f"there is no variant {name!r}; the variants are {'; '.join(study.variants)}")
    if not names:
        raise ValueError(f"names is empty; give at least one of {'; '.join(study.variants)}")
    curves = []
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        judge = Judge(study, bench.clips.train[study.full].scenes, bench.pipe, bench.schedule)
        for name in names:
            learner, curve = train(bench, name, seed)
            made = [finish(curve, learner, judge)]
            if name == study.refined and study.best_fifth:
                for kind in ("all clips", "the best fifth"):
                    after, refined = refine(bench, learner, curve, kind)
                    made.append(finish(refined, after, judge))
            curves += made
            if on_curves:
                on_curves(made)
    return curves


def train(bench: Bench, name: str, seed: int) -> tuple["Learner", StagesCurve]:
    """One variant from nothing, through its stages."""
    config, stages = bench.study.variants[name]
    learner = Learner(config, bench, seed)
    curve = StagesCurve(name, seed, sum(p.numel() for p in learner.master.parameters()),
                        sharp_share=1 - bench.clips.flawed.float().mean().item())
    spend(bench, learner, curve, [(stage, bench.clips.train[stage.size], str(stage)) for stage in stages],
          60 * bench.study.minutes, seed * 10_000_000, RECIPE.alignment_weight)
    return learner, curve


def refine(bench: Bench, learner: "Learner", before: StagesCurve, kind: str) -> tuple["Learner", StagesCurve]:
    """Goes on from a run's averages at the full size, on "the best fifth" of its clips or on "all clips".

    The authors published neither the learning rate of their last stage nor how it begins. Ours: a new optimizer and a
    new average, `refine_rate` times the learning rate with warm-up and cosine of its own, no alignment.
    """
    study, clips = bench.study, bench.clips
    last = study.variants[before.name][1][-1]
    chosen = clips.best() if kind == "the best fifth" else torch.arange(len(clips.flawed))
    on = Learner(learner.master.config, bench, before.seed)
    on.begin_with(*learner.averages)
    on.seconds, on.steps, on.clips, on.tokens = learner.seconds, learner.steps, learner.clips, learner.tokens
    curve = StagesCurve(f"{before.name}, then {kind}", before.seed, before.parameters,
                        sharp_share=1 - clips.flawed[chosen].float().mean().item())
    stage = TimedStage(1.0, *last.size, last.batch_size)
    # Far from the run's own seeds; the same draws of noise for both kinds.
    spend(bench, on, curve, [(stage, pick(clips.train[last.size], chosen), f"{stage}, {kind}")],
          60 * study.best_fifth, before.seed * 10_000_000 + 5_000_000, 0.0, study.refine_rate)
    return on, curve


def spend(bench: Bench, learner: "Learner", curve: StagesCurve, plan: Sequence[tuple[TimedStage, LatentSet, str]],
          seconds: float, seed: int, alignment_weight: float, rate: float = 1.0) -> None:
    """Trains for `seconds`, which the stages of `plan` share; the clock runs only while a step does.

    Measures before, after every `study.every` seconds, and where a stage ends.
    """
    start, taken, end, measured, told = learner.seconds, 0, 0.0, 0, 0
    measure(bench, learner, curve)
    for stage, latents, label in plan:
        end += stage.share * seconds
        while (used := learner.seconds - start) < end:
            if used // bench.study.every > measured:
                measured = used // bench.study.every
                measure(bench, learner, curve)
            share = used / seconds
            factor = rate * warmup_cosine(int(_TICKS * share), _TICKS, _WARMUP)
            began = bench.now()
            learner.step(latents, stage.batch_size, seed + taken, factor, alignment_weight * (1 - share))
            learner.seconds += bench.now() - began
            taken += 1
            while bench.on_second and told < min(int(learner.seconds - start), int(seconds)):
                told += 1
                bench.on_second(curve.name)
        measure(bench, learner, curve)
        curve.stages.append(label)
        curve.ends.append(learner.seconds)


def measure(bench: Bench, learner: "Learner", curve: StagesCurve) -> None:
    """Adds a point to the curve, unless the last one was of this very step."""
    if curve.steps and curve.steps[-1] == learner.steps:
        return
    model, text = learner.short_average()
    for name in ("seconds", "steps", "clips", "tokens"):
        getattr(curve, name).append(getattr(learner, name))
    for name, latents in (("loss", bench.clips.held_back), ("loss_of_sharp", bench.clips.held_back_sharp)):
        getattr(curve, name).append(held_back_loss(model, text, latents, learner.schedule, learner.dtype))


def finish(curve: StagesCurve, learner: "Learner", judge: Judge) -> StagesCurve:
    """The curve with what the model makes of captions, and the model itself."""
    model, text = learner.short_average()
    text.encoder.eval()
    curve.adherence, curve.measured, curve.sharpness = judge(model, text)
    curve.references, curve.model, curve.text = judge.references, learner.averages[0].eval(), text
    return curve


class Learner:
    """A transformer and a text encoder under training, their averages, and what has been spent on them."""

    def __init__(self, config: TransformerConfig, bench: Bench, seed: int):
        # Seeded twice: how many numbers a model draws for its weights must not change the text encoder's.
        torch.manual_seed(seed)
        self.text = TextEncoder.from_config(bench.text, vocabulary(), config.max_text_seq_length)
        self.text.encoder.train()
        torch.manual_seed(seed)
        self.master = ExpertTransformer(config)
        initialise(self.master)
        device = bench.pipe.vae.decoder.conv_out.conv.weight.device
        self.schedule, self.dtype = NoiseSchedule(bench.schedule), choose_dtype(device, bench.dtype, training=True)
        self.master.to(device), self.text.encoder.to(device)
        self.working = copy.deepcopy(self.master).to(self.dtype)
        self.alignment = Alignment(self.working, RECIPE.alignment_kinds).to(device)
        self.optimizer = RECIPE.new_optimizer([
            *self.alignment.named_parameters(prefix="alignment"), *self.master.named_parameters(prefix="transformer"),
            *self.text.encoder.named_parameters(prefix="text")])
        self.averages = [copy.deepcopy(net).requires_grad_(False) for net in (self.master, self.text.encoder)]
        self.averaged = 0  # steps that are in the averages
        self.seconds, self.steps, self.clips, self.tokens = 0.0, 0, 0, 0

    def begin_with(self, transformer: ExpertTransformer, text_encoder: torch.nn.Module) -> None:
        """Takes these weights for its own, before its first step."""
        for net in (self.master, self.working, self.averages[0]):
            net.load_state_dict(transformer.state_dict())
        for net in (self.text.encoder, self.averages[1]):
            net.load_state_dict(text_encoder.state_dict())

    def step(self, latents: LatentSet, batch_size: int, seed: int, factor: float, alignment_weight: float) -> Tensor:
        """One update on the batch that belongs to `seed`; the v-loss."""
        generator = torch.Generator().manual_seed(seed)
        x0, captions, features = draw_batch(latents, batch_size, RECIPE.text_dropout, generator)
        noise, t = draw_noise(x0, self.schedule, generator)
        loss = v_loss(self.working, self.schedule, x0, noise, t, self.text.encode(captions).to(self.dtype))
        (loss + alignment_weight * self.alignment(features.to(loss.device)) if alignment_weight else loss).backward()
        update_master(self.master, self.working, self.optimizer, factor)
        average(self.averages, (self.master, self.text.encoder),
                min(RECIPE.ema_decay, (1 + self.averaged) / (10 + self.averaged)))
        self.averaged += 1
        self.steps += 1
        self.clips += len(x0)
        self.tokens += len(x0) * (self.text.max_length + _video_tokens(self.working, x0))
        return loss.detach()

    def short_average(self) -> tuple[ExpertTransformer, TextEncoder]:
        """The averages, the transformer in the number format that passes run in."""
        text = TextEncoder(self.text.tokenizer, self.averages[1], self.text.max_length)
        return copy.deepcopy(self.averages[0]).to(self.dtype).eval(), text


def _video_tokens(model: ExpertTransformer, x0: Tensor) -> int:
    t, h, w = model.grid(x0)
    return t * h * w
