"""Stages of growing size against the full size throughout, for equal time; then the best fifth (paper 3.2, Table 5).

All variants are trained for the same number of *seconds*, because stages are meant to save time. So the results depend
on the machine: on how much cheaper small clips are than large ones, and on how many steps fit into the time. The points
of a curve therefore also hold steps, clips and tokens. The clock runs only during training steps, not while measuring
or encoding.

Each run has one warm-up and one cosine over all its seconds, across stages; explicit uniform timesteps; a trained text
encoder; the alignment loss of the shipped models, decaying to 0. The moving averages of the weights are measured, which
lag by a few hundred steps, so a curve bends shortly after the start of a stage.
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
from minicogvx.data.clips.world import LatentSet
from minicogvx.data.world.captions import vocabulary
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.engine.optim import average, warmup_cosine
from minicogvx.pipeline import Pipeline
from minicogvx.presets import ScheduleConfig, TextConfig, TransformerConfig, preset
from minicogvx.text import TextEncoder
from minicogvx.training.alignment import Alignment
from minicogvx.training.transformer import (
    TransformerStage,
    TransformerTraining,
    draw_batch,
    draw_noise,
    initialise,
    update_master,
    v_loss,
)
from minicogvx.transformer.model import ExpertTransformer

# A shorter average than the shipped model's, because runs are shorter; the stage in it is not used.
RECIPE = TransformerTraining((TransformerStage(1),), ema_decay=0.995)
_TICKS, _WARMUP = 10_000, 200  # time steps of a run's schedule; warm-up is the first fiftieth


@dataclass
class StagesCurve:
    """The measurements of one run, and its final model's scores. Times are seconds of training steps."""

    name: str
    seed: int
    parameters: int  # of the transformer, without the text encoder
    stages: list[str] = field(default_factory=list)  # in order, such as "64x64, 17 frames"
    ends: list[float] = field(default_factory=list)  # when each stage ended
    seconds: list[float] = field(default_factory=list)  # at each measurement; the first is before training
    steps: list[int] = field(default_factory=list)
    clips: list[int] = field(default_factory=list)  # seen so far, with repetitions
    tokens: list[int] = field(default_factory=list)  # of those clips, text included
    loss: list[float] = field(default_factory=list)  # v-loss on validation clips, blurred as often
    loss_of_sharp: list[float] = field(default_factory=list)  # on the same clips in focus
    sharp_share: float = 0.0  # share of clips in focus, among those of the last stage
    adherence: dict[str, float] = field(default_factory=dict)  # share of the captions obeyed, by property
    measured: int = 0  # captions of the training split, none of which belongs to a training clip
    sharpness: float = 0.0  # steepness of generated clips relative to true sharp clips of the same captions
    references: dict[str, dict[str, float]] = field(default_factory=dict)  # the same measures of true clips; see Judge
    model: ExpertTransformer | None = field(default=None, repr=False, compare=False)  # if just trained
    text: TextEncoder | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Bench:
    """The inputs that all variants of a comparison share."""

    study: StagesStudy
    clips: StageClips
    pipe: Pipeline  # its VAE made the latents and decodes; its guidance scale is used for sampling
    text: TextConfig = preset("toy").text
    schedule: ScheduleConfig = ScheduleConfig()
    dtype: torch.dtype | None = None  # of all passes; None: the fastest of the pipeline's device
    now: Callable[[], float] = time.perf_counter
    on_second: Callable[[str], None] | None = None  # called with a variant's name after each second of training


def compare_stages(bench: Bench, names: Sequence[str], seed: int = 0,
                   on_curves: Callable[[list[StagesCurve]], None] | None = None) -> list[StagesCurve]:
    """Trains each named variant from scratch for the study's minutes; then refines `refined` on the best fifth.

    Every variant starts from the same weights of the text encoder and of the transformer, and step k of each draws
    from the same seed. The refined variant continues twice from its averages, for `best_fifth` minutes each: on the
    fifth that `StageClips.best` picks, and on all clips, to separate the selection from the longer training.
    `on_curves` is called with the complete curves of each variant. The number of steps depends on the machine, so a
    run is reproducible only with a simulated clock `now`. Random state and gradient mode are restored.

    Raises ValueError for no names, an unknown name, or a transformer for another size than the full one.
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
    """Trains one variant from scratch, through its stages."""
    config, stages = bench.study.variants[name]
    learner = Learner(config, bench, seed)
    curve = StagesCurve(name, seed, sum(p.numel() for p in learner.master.parameters()),
                        sharp_share=1 - bench.clips.flawed.float().mean().item())
    spend(bench, learner, curve, [(stage, bench.clips.train[stage.size], str(stage)) for stage in stages],
          60 * bench.study.minutes, seed * 10_000_000, RECIPE.alignment_weight)
    return learner, curve


def refine(bench: Bench, learner: "Learner", before: StagesCurve, kind: str) -> tuple["Learner", StagesCurve]:
    """Continues from a run's averages at the full size, on "the best fifth" of its clips or on "all clips".

    The authors published neither the learning rate of their last stage nor how it starts. Ours: a new optimizer and a
    new average, `refine_rate` times the learning rate with its own warm-up and cosine, no alignment.
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
    # Far from the run's own seeds; the same noise for both kinds.
    spend(bench, on, curve, [(stage, pick(clips.train[last.size], chosen), f"{stage}, {kind}")],
          60 * study.best_fifth, before.seed * 10_000_000 + 5_000_000, 0.0, study.refine_rate)
    return on, curve


def spend(bench: Bench, learner: "Learner", curve: StagesCurve, plan: Sequence[tuple[TimedStage, LatentSet, str]],
          seconds: float, seed: int, alignment_weight: float, rate: float = 1.0) -> None:
    """Trains for `seconds`, which the stages of `plan` share; the clock runs only during steps.

    Measures at the start, after every `study.every` seconds, and at the end of each stage.
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
    """Adds a point to the curve, unless the last one was at the same step."""
    if curve.steps and curve.steps[-1] == learner.steps:
        return
    model, text = learner.short_average()
    for name in ("seconds", "steps", "clips", "tokens"):
        getattr(curve, name).append(getattr(learner, name))
    for name, latents in (("loss", bench.clips.held_back), ("loss_of_sharp", bench.clips.held_back_sharp)):
        getattr(curve, name).append(held_back_loss(model, text, latents, learner.schedule, learner.dtype))


def finish(curve: StagesCurve, learner: "Learner", judge: Judge) -> StagesCurve:
    """Adds the model and its scores to the curve."""
    model, text = learner.short_average()
    text.encoder.eval()
    curve.adherence, curve.measured, curve.sharpness = judge(model, text)
    curve.references, curve.model, curve.text = judge.references, learner.averages[0].eval(), text
    return curve


class Learner:
    """A transformer and a text encoder in training, their averages, and the seconds, clips and tokens spent."""

    def __init__(self, config: TransformerConfig, bench: Bench, seed: int):
        # Seeded twice: the text encoder's weights must not depend on how many numbers the model draws.
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
        self.averaged = 0  # number of steps in the averages
        self.seconds, self.steps, self.clips, self.tokens = 0.0, 0, 0, 0

    def begin_with(self, transformer: ExpertTransformer, text_encoder: torch.nn.Module) -> None:
        """Copies these weights, before the first step."""
        for net in (self.master, self.working, self.averages[0]):
            net.load_state_dict(transformer.state_dict())
        for net in (self.text.encoder, self.averages[1]):
            net.load_state_dict(text_encoder.state_dict())

    def step(self, latents: LatentSet, batch_size: int, seed: int, factor: float, alignment_weight: float) -> Tensor:
        """One update on the batch of `seed`; returns the v-loss."""
        generator = torch.Generator().manual_seed(seed)
        x0, captions, features = draw_batch(latents, batch_size, RECIPE.text_dropout, generator)
        noise, t = draw_noise(x0, self.schedule, generator)
        loss = v_loss(self.working, self.schedule, x0, noise, t, self.text.encode(captions).to(self.dtype))
        (loss + alignment_weight * self.alignment(features.to(loss.device)) if alignment_weight else loss).backward()
        update_master(self.master, self.working, self.optimizer, factor)
        for kept, network in zip(self.averages, (self.master, self.text.encoder)):
            average(kept.parameters(), network.parameters(),
                    min(RECIPE.ema_decay, (1 + self.averaged) / (10 + self.averaged)))
        self.averaged += 1
        self.steps += 1
        self.clips += len(x0)
        self.tokens += len(x0) * (self.text.max_length + _video_tokens(self.working, x0))
        return loss.detach()

    def short_average(self) -> tuple[ExpertTransformer, TextEncoder]:
        """The averages, the transformer in the dtype of passes."""
        text = TextEncoder(self.text.tokenizer, self.averages[1], self.text.max_length)
        return copy.deepcopy(self.averages[0]).to(self.dtype).eval(), text


def _video_tokens(model: ExpertTransformer, x0: Tensor) -> int:
    t, h, w = model.grid(x0)
    return t * h * w
