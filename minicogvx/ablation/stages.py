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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.data import Dataset

from minicogvx.ablation.compare import seeded_task, trained_model
from minicogvx.ablation.stage_clips import StageClips
from minicogvx.ablation.stage_judge import Judge
from minicogvx.ablation.studies import StagesStudy, size_of
from minicogvx.ablation.transformers import study_training
from minicogvx.compat import choose_dtype
from minicogvx.data.clips.clips import Clips, Selected
from minicogvx.engine.optim import warmup_cosine
from minicogvx.pipeline import Pipeline
from minicogvx.presets import ScheduleConfig, TextConfig, TransformerConfig, preset
from minicogvx.text import TextEncoder
from minicogvx.training.alignment import feature_variance
from minicogvx.training.batches import Pass, Steps
from minicogvx.training.loop import fit
from minicogvx.training.run import Keep, Run
from minicogvx.training.stages import Stage
from minicogvx.training.transformer import TransformerTask
from minicogvx.training.validation import held_back_loss
from minicogvx.transformer.model import ExpertTransformer

_TICKS, _WARMUP = 10_000, 200  # time steps of a run's schedule; warm-up is the first fiftieth
_ENDLESS = 10**9  # steps


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


def train(bench: Bench, name: str, seed: int) -> tuple["TimedTask", StagesCurve]:
    """Trains one variant from scratch, through its stages."""
    config, stages = bench.study.variants[name]
    task = new_task(bench, config, stages, seed, alignment=1.0)
    curve = StagesCurve(name, seed, sum(p.numel() for p in task.model.parameters()),
                        sharp_share=1 - bench.clips.flawed.float().mean().item())
    sets = [bench.clips.train[size_of(stage)] for stage in stages]
    spend(bench, task, curve, sets, [label(stage) for stage in stages], 60 * bench.study.minutes, seed)
    return task, curve


def refine(bench: Bench, before: "TimedTask", curve: StagesCurve, kind: str) -> tuple["TimedTask", StagesCurve]:
    """Continues from a run's averages at the full size, on "the best fifth" of its clips or on "all clips".

    The authors published neither the learning rate of their last stage nor how it starts. Ours: a new optimizer and a
    new average, `refine_rate` times the learning rate with its own warm-up and cosine, no alignment.
    """
    study, clips = bench.study, bench.clips
    stage = replace(study.variants[curve.name][1][-1], steps=1, learning_rate=study.refine_rate)
    chosen = clips.best() if kind == "the best fifth" else torch.arange(len(clips.flawed))
    task = new_task(bench, before.model.config, (stage,), curve.seed)
    task.begin_with(before)
    again = StagesCurve(f"{curve.name}, then {kind}", curve.seed, curve.parameters,
                        sharp_share=1 - clips.flawed[chosen].float().mean().item())
    some = Selected(clips.train[size_of(stage)], chosen.tolist())
    spend(bench, task, again, [some], [f"{label(stage)}, {kind}"], 60 * study.best_fifth, curve.seed + 500_000)
    return task, again


def label(stage: Stage) -> str:
    """A stage in a few words."""
    return f"{stage.height}x{stage.width}, {stage.num_frames} frames"


def new_task(bench: Bench, config: TransformerConfig, stages: Sequence[Stage], seed: int,
             alignment: float = 0.0) -> "TimedTask":
    """A shorter average than the shipped model's, because runs are shorter."""
    training = study_training(*stages, ema_decay=0.995, alignment_weight=alignment)
    device = bench.pipe.vae.decoder.conv_out.conv.weight.device
    variance = feature_variance(bench.clips.train[bench.study.full], training.alignment_kinds)
    return seeded_task(config, training, bench.text, bench.schedule, device,
                       choose_dtype(device, bench.dtype, training=True), seed, TimedTask, variance)


def spend(bench: Bench, task: "TimedTask", curve: StagesCurve, sets: Sequence[Clips], labels: Sequence[str],
          seconds: float, seed: int) -> None:
    """Trains for `seconds`, which the stages share; the clock runs only during steps.

    Measures at the start, after every `study.every` seconds, and at the end of each stage.
    """
    run = TimedRun(curve.name, seconds, task, bench)
    data = TimedSteps(Steps(sets, task.training, task.model.config, seed=seed), run)
    watcher = StageWatcher(bench, curve, run, data, labels)
    measure(bench, task, curve)
    fit(task, data, run, lambda step: run.stage.learning_rate * warmup_cosine(int(_TICKS * run.progress), _TICKS,
                                                                              _WARMUP), [watcher])


class TimedTask(TransformerTask):
    """A transformer in training that counts the seconds, steps, clips and tokens spent."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seconds, self.steps, self.clips, self.tokens = 0.0, 0, 0, 0
        self.clock: TimedRun | None = None

    def backward(self, batch: Pass, progress: float, last: bool = True) -> dict[str, Tensor]:
        """See `TransformerTask`."""
        self.clips, self.tokens = self.clips + len(batch.examples), self.tokens + batch.tokens
        return super().backward(batch, progress, last)

    def update(self, step: int, rate: float) -> Tensor:
        """See `TransformerTask`. Stops the clock of the run."""
        norm = super().update(step, rate)
        self.steps += 1
        self.clock.stop()
        return norm

    def begin_with(self, other: "TimedTask") -> None:
        """Takes over what `other` has learnt, and what it has spent."""
        learnt = other.result()
        for part in (self.weights.tensors(), self.average):
            for name, tensor in part.items():
                tensor.copy_(learnt[name])
        self.weights.write_back()
        self.seconds, self.steps, self.clips, self.tokens = other.seconds, other.steps, other.clips, other.tokens


class TimedRun(Run):
    """Steps until so many seconds of training are spent; what is measured in between does not count."""

    def __init__(self, name: str, seconds: float, task: TimedTask, bench: Bench):
        super().__init__(name, _ENDLESS, Keep(progress=False))
        self.limit, self.task, self.bench, self.before = seconds, task, bench, task.seconds
        self.shares = list(accumulate(stage.steps for stage in task.training.stages))
        task.clock, self.began, self.told = self, 0.0, 0

    @property
    def progress(self) -> float:
        """The share of the seconds that is spent."""
        return (self.task.seconds - self.before) / self.limit

    @property
    def number(self) -> int:
        """The number of the stage."""
        ends = [end / self.shares[-1] for end in self.shares]
        return next((i for i, end in enumerate(ends) if self.progress < end), len(ends) - 1)

    @property
    def stage(self) -> Stage:
        """The stage at this moment."""
        return self.task.training.stages[self.number]

    def __iter__(self) -> Iterator[int]:
        while self.progress < 1:
            self.started = self.began = self.bench.now()
            yield self.done
            self.done += 1

    def logs(self, step: int) -> bool:
        """Nothing is logged."""
        return False

    def stop(self) -> None:
        """Ends a step: its seconds are spent."""
        self.task.seconds += self.bench.now() - self.began
        spent = int(min(self.task.seconds - self.before, self.limit))
        while self.bench.on_second and self.told < spent:
            self.told += 1
            self.bench.on_second(self.name)


class TimedSteps(Dataset):
    """The next step of whatever stage the clock has come to."""

    def __init__(self, steps: Steps, run: TimedRun):
        self.steps, self.run, self.taken = steps, run, [0] * len(steps.sets)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, step: int) -> list[Pass]:
        number = self.run.number
        self.taken[number] += 1
        return self.steps.passes(number, self.taken[number] - 1, step)


class StageWatcher:
    """A watcher: measures after every `study.every` seconds and at the end of each stage."""

    every = 1

    def __init__(self, bench: Bench, curve: StagesCurve, run: TimedRun, data: TimedSteps, labels: Sequence[str]):
        self.bench, self.curve, self.run, self.labels = bench, curve, run, labels
        self.measured = self.number = 0

    def __call__(self, step: int, task: TimedTask) -> dict[str, float]:
        """Nothing to log."""
        spent, over = self.run.progress * self.run.limit, self.run.progress >= 1
        ended = over or self.run.number != self.number
        if ended or spent // self.bench.study.every > self.measured:
            self.measured = spent // self.bench.study.every
            measure(self.bench, task, self.curve)
        if ended:
            self.curve.stages.append(self.labels[self.number])
            self.curve.ends.append(task.seconds)
            self.number = self.run.number
        return {}


def measure(bench: Bench, task: TimedTask, curve: StagesCurve) -> None:
    """Adds a point to the curve, unless the last one was at the same step."""
    if curve.steps and curve.steps[-1] == task.steps:
        return
    for name in ("seconds", "steps", "clips", "tokens"):
        getattr(curve, name).append(getattr(task, name))
    for name, clips in (("loss", bench.clips.held_back), ("loss_of_sharp", bench.clips.held_back_sharp)):
        getattr(curve, name).append(held_back_loss(task, clips))


def finish(curve: StagesCurve, task: TimedTask, judge: Judge) -> StagesCurve:
    """Adds the model and its scores to the curve."""
    model, text = trained_model(task)
    with task.averaged():
        curve.adherence, curve.measured, curve.sharpness = judge(task.model, task.text)
    curve.references, curve.model, curve.text = judge.references, model, text
    return curve
