"""Stages of growing size against the full size throughout, for equal time; then the best fifth (paper 3.2, Table 5).

All variants are trained for the same number of *seconds*, because stages are meant to save time. So the results depend
on the machine: on how much cheaper small clips are than large ones, and on how many steps fit into the time. The points
of a curve therefore also hold steps, clips and tokens. The clock runs only during training steps, not while measuring
or encoding.

Each run has one warm-up and one cosine over all its seconds, across stages; explicit uniform timesteps; a trained text
encoder; the alignment loss of the shipped models, decaying to 0. The moving averages of the weights are measured, which
lag by a few hundred steps, so a curve bends shortly after the start of a stage.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minicogvx.ablation.compare import seeded_task, trained_model
from minicogvx.ablation.stage_clips import StageClips
from minicogvx.ablation.stage_judge import Judge
from minicogvx.ablation.studies import StagesStudy, size_of
from minicogvx.ablation.timed import TimedRun, TimedSteps
from minicogvx.ablation.transformers import study_training
from minicogvx.compat import choose_dtype
from minicogvx.data.clips.clips import Clips, Selected
from minicogvx.pipeline import Pipeline
from minicogvx.presets import ScheduleConfig, TextConfig, TransformerConfig, preset
from minicogvx.text import TextEncoder
from minicogvx.training.alignment import feature_variance
from minicogvx.training.batches import Steps
from minicogvx.training.loop import fit
from minicogvx.training.stages import Stage
from minicogvx.training.transformer import TransformerTask
from minicogvx.training.validation import held_back_loss
from minicogvx.transformer.model import ExpertTransformer

_SPENT = ("seconds", "steps", "clips", "tokens")


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
        judge = Judge(study, bench.clips.scenes, bench.pipe, bench.schedule)
        for name in names:
            task, curve = train(bench, name, seed)
            made = [finish(curve, task, judge)]
            if name == study.refined and study.best_fifth:
                for kind in ("all clips", "the best fifth"):
                    after, refined = refine(bench, task, curve, kind)
                    made.append(finish(refined, after, judge))
            curves += made
            if on_curves:
                on_curves(made)
    return curves


def train(bench: Bench, name: str, seed: int) -> tuple[TransformerTask, StagesCurve]:
    """Trains one variant from scratch, through its stages."""
    config, stages = bench.study.variants[name]
    task = new_task(bench, config, stages, seed, alignment_weight=1.0)
    curve = StagesCurve(name, seed, sum(p.numel() for p in task.model.parameters()),
                        sharp_share=1 - bench.clips.flawed.float().mean().item())
    plan = [(bench.clips.train[size_of(stage)], label(stage)) for stage in stages]
    spend(bench, task, curve, plan, 60 * bench.study.minutes, seed)
    return task, curve


def refine(bench: Bench, trained: TransformerTask, curve: StagesCurve,
           kind: str) -> tuple[TransformerTask, StagesCurve]:
    """Continues from a run's averages at the full size, on "the best fifth" of its clips or on "all clips".

    The authors published neither the learning rate of their last stage nor how it starts. Ours: a new optimizer and a
    new average, `refine_rate` times the learning rate with its own warm-up and cosine, no alignment.
    """
    study, clips = bench.study, bench.clips
    stage = replace(study.variants[curve.name][1][-1], learning_rate_factor=study.refine_rate)
    chosen = clips.best() if kind == "the best fifth" else torch.arange(len(clips.flawed))
    task = new_task(bench, trained.model.config, (stage,), curve.seed)
    begin_with(task, trained.result())
    refined = StagesCurve(f"{curve.name}, then {kind}", curve.seed, curve.parameters,
                          sharp_share=1 - clips.flawed[chosen].float().mean().item())
    plan = [(Selected(clips.train[size_of(stage)], chosen.tolist()), f"{label(stage)}, {kind}")]
    before = {name: getattr(curve, name)[-1] for name in _SPENT}
    spend(bench, task, refined, plan, 60 * study.best_fifth, curve.seed + 500_000, before)  # same noise for both kinds
    return task, refined


def label(stage: Stage) -> str:
    """A stage in a few words."""
    return f"{stage.height}x{stage.width}, {stage.num_frames} frames"


def new_task(bench: Bench, config: TransformerConfig, stages: Sequence[Stage], seed: int,
             alignment_weight: float = 0.0) -> TransformerTask:
    """A transformer at its start, with a shorter average than the shipped model's, because runs are shorter."""
    training = study_training(*stages, ema_decay=0.995, alignment_weight=alignment_weight)
    device = bench.pipe.vae.decoder.conv_out.conv.weight.device
    variance = feature_variance(bench.clips.train[bench.study.full], training.alignment_kinds)
    return seeded_task(config, training, bench.text, bench.schedule, device,
                       choose_dtype(device, bench.dtype, training=True), seed, variance)


@torch.no_grad()
def begin_with(task: TransformerTask, learnt: Mapping[str, Tensor]) -> None:
    """Gives a task, and its average, the weights that another one learnt."""
    for tensors in (task.weights.tensors(), task.average):
        for name, tensor in tensors.items():
            tensor.copy_(learnt[name])
    task.restored()


def spend(bench: Bench, task: TransformerTask, curve: StagesCurve, plan: Sequence[tuple[Clips, str]], seconds: float,
          seed: int, before: Mapping[str, float] = {}) -> None:
    """Trains for so many seconds, which the stages of the task share.

    `plan`: the clips and the label of each stage. `before`: what was spent on the same weights earlier, by the names
    of `_SPENT`.
    """
    run = TimedRun(curve.name, task.training.stages, seconds, bench.now, bench.on_second, task.training.schedule_at)
    sets, labels = zip(*plan)
    data = TimedSteps(Steps(sets, task.training, task.model.config, seed=seed), run)
    watch = Watch(bench, curve, run, data, labels, before)
    watch.measure(0, task)
    fit(task, data, run, run.rate, [watch])


class Watch:
    """A watcher: measures every `study.every` seconds of training, and at the end of a stage."""

    every = 1

    def __init__(self, bench: Bench, curve: StagesCurve, run: TimedRun, data: TimedSteps, labels: Sequence[str],
                 before: Mapping[str, float]):
        self.bench, self.curve, self.run, self.data = bench, curve, run, data
        self.labels, self.before = labels, before
        self.times = self.stage = 0

    def __call__(self, step: int, task: TransformerTask) -> dict[str, float]:
        """Nothing to log."""
        times, stage = self.run.used // self.bench.study.every, self.run.stage
        if times > self.times or stage > self.stage:
            self.measure(step, task)
        for ended in self.labels[self.stage:stage]:
            self.curve.stages.append(ended)
            self.curve.ends.append(self.curve.seconds[-1])
        self.times, self.stage = times, stage
        return {}

    def measure(self, step: int, task: TransformerTask) -> None:
        """Adds a point to the curve."""
        for name, value in zip(_SPENT, (self.run.used, step, self.data.clips, self.data.tokens)):
            getattr(self.curve, name).append(self.before.get(name, 0) + value)
        self.curve.loss.append(held_back_loss(task, self.bench.clips.held_back))
        self.curve.loss_of_sharp.append(held_back_loss(task, self.bench.clips.held_back_sharp))


def finish(curve: StagesCurve, task: TransformerTask, judge: Judge) -> StagesCurve:
    """Adds the model and its scores to the curve."""
    with task.averaged_weights():
        curve.adherence, curve.measured, curve.sharpness = judge(task.model, task.text)
    curve.references = judge.references
    curve.model, curve.text = trained_model(task)
    return curve
