"""Trains VAEs that differ in config, loss or stages on identical clips (paper 2.1 and Table 1)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.ablation.compare import Measuring, OnStep, check_run
from minicogvx.compat import choose_dtype
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.engine.optim import warmup_cosine
from minicogvx.engine.ranks import Ranks
from minicogvx.evaluation.reconstruction import flicker
from minicogvx.interop.lpips_weights import load_lpips
from minicogvx.presets import VAEConfig
from minicogvx.training.loop import fit
from minicogvx.training.run import Keep, Run
from minicogvx.training.settings import VAEStage, VAETraining
from minicogvx.training.stages import Stage
from minicogvx.training.vae import VAETask, small_branches
from minicogvx.training.videos import VideoSteps, WorldVideos
from minicogvx.vae import CausalVAE
from minicogvx.vae.losses import VAELossConfig
from minicogvx.vae.perceptual import PerceptualDistance

MEASURED, MEASURED_SEED = 16, 5_000_000  # clips; the seeds of training are far from this one


@dataclass
class VAECurve:
    """Measurements of one VAE on the 16 clips over training. `vae` is set only if it was just trained."""

    name: str
    seed: int
    parameters: int
    steps: list[int]  # optimizer steps done at each measurement; 0 is before training
    psnr: list[float]  # dB, averaged over clips
    lpips: list[float]  # AlexNet, all frames; 0: identical
    flicker: list[float]  # mean absolute difference of neighbouring frames, in 8-bit grey levels (paper Table 1)
    sharpness: list[float]  # mean absolute spatial gradient relative to the true clips; noise raises it
    kl_per_element: list[float]  # nats per latent number
    flicker_of_true: float  # of the true clips
    seconds: float  # of training, measurements included
    vae: CausalVAE | None = field(default=None, repr=False, compare=False)


def compare_vaes(variants: Mapping[str, tuple[VAEConfig, VAELossConfig]], steps: int, seed: int = 0,
                 batch_size: int = 4, num_frames: int = 9, height: int = 32, width: int = 32, every: int = 25,
                 dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
                 on_step: OnStep | None = None) -> dict[str, VAECurve]:
    """Trains each variant from scratch; measures at the start, every `every` steps and at the end.

    Every variant sees the same clips in the same order. Measured are `measured_clips`, which training never
    draws, from a sampled latent with fixed noise. If a loss has a GAN, a small 3D discriminator is trained as well.
    Deterministic for a seed and a number of threads; the global random state and the gradient mode are restored.
    `on_step(name, done)` is called after each step.

    Raises ValueError for no variants, a count below 1 or a size that does not fit a config; see `load_lpips` for LPIPS.
    """
    check_run(variants, steps, batch_size, every)
    measures = {"": Measures(measured_clips(num_frames, height, width), dtype, device)}
    curves = {}
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for name, (config, loss) in variants.items():
            stages = [VAEStage(steps, batch_size, num_frames, height, width, loss=loss)]
            curves |= _train(name, config, stages, measures, seed, every, on_step)
    return curves


def compare_vae_stages(config: VAEConfig, loss: VAELossConfig, variants: Mapping[str, Sequence[VAEStage]],
                       judged: Mapping[str, tuple[int, int]], steps: int, seed: int = 0, every: int = 25,
                       side: int = 32, dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
                       on_step: OnStep | None = None) -> dict[str, VAECurve]:
    """Trains one VAE from scratch by each plan of stages, under one learning-rate schedule; else as `compare_vaes`.

    `judged`: maps a suffix of the variant's name to the frames and side of the clips to measure: {"": (33, 32),
    ", short clips": (9, 32)} gives two curves for each variant.
    """
    check_run(variants, steps, 1, every)
    measures = {behind: Measures(measured_clips(frames, size, size), dtype, device)
                for behind, (frames, size) in judged.items()}
    curves = {}
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for name, stages in variants.items():
            bounds = shared_out(steps, stages)
            stages = [replace(stage, steps=end - first, height=side, width=side, loss=loss)
                      for stage, first, end in zip(stages, bounds, bounds[1:]) if end > first]
            curves |= _train(name, config, stages, measures, seed, every, on_step)
    return curves


def shared_out(steps: int, stages: Sequence[Stage]) -> list[int]:
    """Where stages begin and end if a run of `steps` steps is shared out in proportion to their own."""
    ends = list(accumulate((stage.steps for stage in stages), initial=0))
    return [round(steps * end / ends[-1]) for end in ends]


def measured_clips(num_frames: int = 9, height: int = 32, width: int = 32) -> Float[Tensor, "b t h w 3"]:
    """The 16 clips, in 0..1, to measure every VAE on: of the training split, but not drawn in training."""
    return render_batch(sample_scenes(MEASURED, MEASURED_SEED, "train"), num_frames, height, width)


def spatial_gradient(video: Float[Tensor, "*b t h w 3"]) -> float:
    """Mean absolute difference of neighbouring pixels along height plus that along width."""
    down = (video[..., 1:, :, :] - video[..., :-1, :, :]).abs().mean()
    right = (video[..., 1:, :] - video[..., :-1, :]).abs().mean()
    return (down + right).item()


def round_trip(vae: CausalVAE, clips: Float[Tensor, "b t h w 3"], dtype: torch.dtype | None = None,
               seed: int = 0) -> tuple[Float[Tensor, "b t h w 3"], float]:
    """Clips in 0..1 through encoder, sampled posterior and decoder; also the KL in nats per latent number."""
    device = next(vae.parameters()).device
    dtype = choose_dtype(device, dtype)
    video = (rearrange(clips, "b t h w c -> b c t h w") * 2 - 1).to(device, dtype)
    with torch.no_grad():
        posterior = vae.encode(video)
        back = vae.decode(posterior.sample(torch.Generator().manual_seed(seed)).to(dtype)).float().cpu()
        kl = posterior.kl().mean().item() / posterior.mean[0].numel()
    return (rearrange(back, "b c t h w -> b t h w c") / 2 + 0.5).clamp(0, 1), kl


class Measures:
    """The same measures of every VAE, on the same clips."""

    def __init__(self, clips: Float[Tensor, "b t h w 3"], dtype: torch.dtype | None = None,
                 device: torch.device | str = "cpu"):
        self.clips, self.device, self.perceptual = clips, torch.device(device), PerceptualDistance(load_lpips("alex"))
        self.dtype = choose_dtype(self.device, dtype)
        self.flicker_of_true = sum(map(flicker, clips)) / len(clips)

    def of(self, vae: CausalVAE) -> dict[str, float]:
        """The values of one point of a `VAECurve`, by the names of its fields."""
        again, kl = round_trip(vae, self.clips, self.dtype)
        mse = (again - self.clips).square().flatten(1).mean(1)
        with torch.no_grad():
            lpips = self.perceptual(*(rearrange(x, "b t h w c -> b c t h w") * 2 - 1 for x in (self.clips, again)))
        return {"psnr": (-10 * mse.log10()).mean().item(), "lpips": lpips.item(),
                "flicker": sum(map(flicker, again)) / len(again),
                "sharpness": spatial_gradient(again) / spatial_gradient(self.clips), "kl_per_element": kl}


def _train(name: str, config: VAEConfig, stages: Sequence[VAEStage], measures: Mapping[str, Measures], seed: int,
           every: int, on_step: OnStep | None) -> dict[str, VAECurve]:
    """Trains one VAE through `stages`; a curve for each of `measures`, whose key is added to its name."""
    start, steps, one = time.perf_counter(), sum(stage.steps for stage in stages), next(iter(measures.values()))
    torch.manual_seed(seed)
    vae, training = CausalVAE(config), VAETraining(tuple(stages), optimizer="muon")
    small_branches(vae)
    task = VAETask(vae.to(one.device), training, Ranks(device=one.device), one.dtype)
    parameters = sum(p.numel() for p in vae.parameters())
    curves = {behind: VAECurve(name + behind, seed, parameters, [], [], [], [], [], [], measure.flicker_of_true, 0.0)
              for behind, measure in measures.items()}

    def measure(done: int) -> None:
        for behind, curve in curves.items():
            curve.steps.append(done)
            for field_name, value in measures[behind].of(vae).items():
                getattr(curve, field_name).append(value)

    measure(0)
    warmup, before = max(1, min(training.warmup, steps // 5)), 0
    for number, stage in enumerate(stages):
        task.begin(number)
        fit(task, VideoSteps(WorldVideos(seed), training, number, config, seed=seed),
            Run(name, stage.steps, Keep(progress=False)),
            lambda step: warmup_cosine(before + step, steps, warmup),
            [Measuring(name, steps, every, measure, on_step, before)])
        before += stage.steps
    task.finish()
    for curve in curves.values():
        curve.seconds, curve.vae = time.perf_counter() - start, vae.eval()
    return {curve.name: curve for curve in curves.values()}
