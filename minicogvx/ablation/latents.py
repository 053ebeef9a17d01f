"""VAEs judged by what a transformer learns on their latents in equal time.

PSNR says how much of a clip its latents keep, not how quickly a transformer learns them: SSVAE (arXiv 2512.05394) and
EQ-VAE (arXiv 2502.09509) report several times fewer steps on latents that decode no better. So each variant's VAE is
trained from scratch, for the same steps; a transformer and a text encoder are trained on its latents, for the same
seconds; and the oracle reads whether the clips that it makes obey captions of the training split that it has not seen.

Losses of different VAEs cannot be compared: latents that hold more noise have a higher loss at best. `readable` bounds
what can be obeyed: of true clips, the share that the oracle still reads after a round trip.

A seed fixes the weights of a VAE and of its transformer, and all that is drawn; the clips are the same for all seeds.
The clock runs only during training steps of the transformer. As for the shipped models: alignment that decays to 0,
posterior means, a moving average, which is what is measured.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from minicogvx.ablation.compare import seeded_task
from minicogvx.ablation.latents_study import LatentsStudy
from minicogvx.ablation.stage_clips import SCENES_SEED, unseen_scenes
from minicogvx.ablation.timed import TimedRun, TimedSteps
from minicogvx.ablation.vaes import Measures, measured_clips
from minicogvx.compat import choose_dtype
from minicogvx.data.clips.clips import Clips, Selected, stack_latents
from minicogvx.data.clips.world import WorldClips, encode_world
from minicogvx.data.world.scenes import Scene, sample_scenes
from minicogvx.engine.ranks import Ranks
from minicogvx.evaluation.adherence import measure_adherence
from minicogvx.evaluation.reconstruction import measure_reconstruction
from minicogvx.pipeline import Pipeline
from minicogvx.presets import TextConfig, preset
from minicogvx.training.alignment import feature_variance
from minicogvx.training.batches import Steps
from minicogvx.training.checks import check_vae
from minicogvx.training.loop import fit
from minicogvx.training.run import Keep
from minicogvx.training.transformer import TransformerTask
from minicogvx.training.vae import train_vae
from minicogvx.training.validation import held_back_loss
from minicogvx.training.videos import WorldVideos
from minicogvx.vae import CausalVAE
from minicogvx.vae.regularise import local_correlation


@dataclass
class LatentsCurve:
    """One VAE, and what a transformer learnt on its latents."""

    name: str
    seed: int
    parameters: int  # of the VAE
    latent_size: list[int]  # of a clip: channels, frames, height, width
    tokens: int  # of a clip, without its caption
    vae_seconds: float  # of the VAE's training
    psnr: float  # dB; this and LPIPS of 16 clips that training never draws
    lpips: float  # AlexNet, all frames; 0: identical
    kl_per_element: float  # nats per latent number
    correlation: float  # local correlation of the clips' latents, see vae/regularise.py
    readable: float  # share of true clips that the oracle reads correctly after a round trip
    measured: int  # such clips, and captions
    seconds: list[float] = field(default_factory=list)  # of training steps at each measurement; the first is before
    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)  # v-loss on clips held back
    adherence: dict[str, float] = field(default_factory=dict)  # share of the captions obeyed, by property
    vae: CausalVAE | None = field(default=None, repr=False, compare=False)  # if just trained


@dataclass(frozen=True)
class LatentsBench:
    """The inputs that all variants of a comparison share."""

    study: LatentsStudy
    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None  # of all passes in training; None: the fastest of the device
    text: TextConfig = preset("toy").text
    vae: CausalVAE | None = None  # of all variants and seeds; None: each seed's own, trained from scratch
    now: Callable[[], float] = time.perf_counter
    on_second: Callable[[str], None] | None = None  # called with a variant's name after each second of its transformer
    progress: bool = False  # bars of the VAEs' trainings and of encoding


def compare_latents(bench: LatentsBench, names: Sequence[str], seed: int = 0,
                    on_curves: Callable[[list[LatentsCurve]], None] | None = None) -> list[LatentsCurve]:
    """Trains and judges the VAE of each named variant; `on_curves` is called with the curve of each, in a list.

    The number of the transformers' steps depends on the machine. Random state and gradient mode are restored.
    Raises ValueError, before any work, for no names, an unknown one, and what `checks.check_vae` refuses.
    """
    study = bench.study
    if not names:
        raise ValueError(f"names is empty; give at least one of {'; '.join(study.variants)}")
    for name in names:
        if name not in study.variants:
            raise ValueError(f"there is no variant {name!r}; the variants are {'; '.join(study.variants)}")
        check_vae(study.variants[name].vae, study.vae_training(name))
    check_given(bench, names)
    measures, curves = Measures(measured_clips(*study.size), bench.dtype, bench.device), []
    scenes = unseen_scenes(sample_scenes(study.clips, study.clips_seed, "train", two_objects=0.0), study.measured)
    made = None
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for name in names:
            if made != (latents := (study.variants[name].vae, study.vae_training(name))):
                vae, seconds = trained_vae(bench, name, seed)
                clips = encode_world(vae, study.clips, study.clips_seed, study.size[0], two_objects=0.0,
                                     dtype=bench.dtype, progress=bench.progress)
                trips = round_trips(bench, name, seed, vae, seconds, clips, scenes, measures)
                made = latents  # the next variant may have the same
            tokens = study.transformer_of(name).num_patches(tuple(trips.latent_size[1:]))
            curve = replace(trips, name=name, tokens=tokens, seconds=[], steps=[], loss=[])
            curve.adherence = judge(bench, vae, learn(bench, curve, clips), scenes)
            curves.append(curve)
            if on_curves:
                on_curves([curve])
    return curves


def check_given(bench: LatentsBench, names: Sequence[str]) -> None:
    """Raises ValueError if a VAE is given, and these variants have several, or one of another size."""
    if bench.vae is None:
        return
    study, first = bench.study, names[0]
    for name in names:
        if (study.variants[name].vae, study.vae_training(name)) != (study.variants[first].vae,
                                                                    study.vae_training(first)):
            raise ValueError(f"a VAE is given, and the variants {first!r} and {name!r} of {study.name} have different "
                             f"ones; it must serve all that are compared")
    if bench.vae.config != study.variants[first].vae:
        raise ValueError(f"the VAE that is given has other sizes than that of {study.name}")


def trained_vae(bench: LatentsBench, name: str, seed: int) -> tuple[CausalVAE, float]:
    """The VAE of a variant, trained from scratch, and the seconds that took; or the one that is given."""
    if bench.vae is not None:
        return bench.vae, 0.0
    start = time.perf_counter()
    vae = train_vae(bench.study.variants[name].vae, bench.study.vae_training(name), WorldVideos(seed), seed,
                    bench.dtype, Keep(progress=bench.progress), Ranks(device=torch.device(bench.device)))
    return vae, time.perf_counter() - start


def round_trips(bench: LatentsBench, name: str, seed: int, vae: CausalVAE, vae_seconds: float, clips: WorldClips,
                scenes: list[Scene], measures: Measures) -> LatentsCurve:
    """A curve with the measures of the VAE alone: of its latents, of `clips`, and of round trips of `scenes`."""
    found, size = measures.of(vae), vae.config.latent_size(*bench.study.size)
    readable = measure_reconstruction(vae, scenes, bench.study.size[0], progress=bench.progress)
    latents = stack_latents(clips, range(min(len(clips), 64)))
    return LatentsCurve(
        name, seed, parameters=sum(p.numel() for p in vae.parameters()),
        latent_size=[vae.config.latent_channels, *size], tokens=bench.study.transformer_of(name).num_patches(size),
        vae_seconds=vae_seconds, psnr=found["psnr"], lpips=found["lpips"], kl_per_element=found["kl_per_element"],
        correlation=local_correlation(latents).mean().item(), readable=readable.share["all"], measured=len(scenes),
        vae=vae)


def learn(bench: LatentsBench, curve: LatentsCurve, clips: WorldClips) -> TransformerTask:
    """A transformer and its text encoder, trained on these clips for the study's time; adds to `curve`."""
    study, device = bench.study, torch.device(bench.device)
    training = study.training_of(curve.name)
    cut, config = study.clips - study.held_back, study.transformer_of(curve.name)
    train, held_back = Selected(clips, range(cut)), Selected(clips, range(cut, study.clips))
    task = seeded_task(config, training, bench.text, study.schedule, device,
                       choose_dtype(device, bench.dtype, training=True), curve.seed,
                       feature_variance(train, training.alignment_kinds))
    run = TimedRun(curve.name, training.stages, 60 * study.minutes, bench.now, bench.on_second, training.schedule_at)
    watch = Watch(study, curve, run, held_back)
    watch.measure(0, task)
    fit(task, TimedSteps(Steps(train, training, config, seed=curve.seed), run), run, run.rate, [watch])
    return task


class Watch:
    """A watcher: measures every `study.every` seconds of training, and at the end."""

    every = 1

    def __init__(self, study: LatentsStudy, curve: LatentsCurve, run: TimedRun, held_back: Clips):
        self.study, self.curve, self.run, self.held_back, self.times = study, curve, run, held_back, 0

    def __call__(self, step: int, task: TransformerTask) -> dict[str, float]:
        """Nothing to log."""
        times = self.run.used // self.study.every
        if times > self.times or self.run.progress >= 1:
            self.measure(step, task)
        self.times = times
        return {}

    def measure(self, step: int, task: TransformerTask) -> None:
        """Adds a point to the curve."""
        self.curve.seconds.append(self.run.used)
        self.curve.steps.append(step)
        self.curve.loss.append(held_back_loss(task, self.held_back))


def judge(bench: LatentsBench, vae: CausalVAE, task: TransformerTask, scenes: list[Scene]) -> dict[str, float]:
    """The share of the captions of `scenes` that the model obeys, by property."""
    with task.averaged_weights():
        pipe = Pipeline(vae, task.model, bench.study.schedule, task.text, guidance_scale=bench.study.guidance_scale)
        return measure_adherence(pipe, scenes, SCENES_SEED, progress=bench.progress).share


def say(curve: LatentsCurve) -> str:
    """One variant and seed in a sentence."""
    channels, *size = curve.latent_size
    shares = ", ".join(f"{name} {100 * value:.1f}" for name, value in curve.adherence.items() if name != "all")
    return (f"{curve.name}, seed {curve.seed}, latents {'x'.join(map(str, size))} of {channels} channels, "
            f"{curve.tokens} tokens; VAE {curve.vae_seconds:.0f} s, PSNR {curve.psnr:.2f} dB, LPIPS {curve.lpips:.3f}, "
            f"local correlation {curve.correlation:.2f}, {100 * curve.readable:.1f} % readable; transformer "
            f"{curve.seconds[-1]:.0f} s, {curve.steps[-1]:,} steps, loss on validation clips {curve.loss[-1]:.4f}; "
            f"{100 * curve.adherence['all']:.1f} % of {curve.measured} captions obeyed ({shares})")
