"""Trains VAEs that differ in their config or their loss on the very same clips (paper 2.1 and Table 1)."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.ablation.transformers import check_run, is_measured
from minicogvx.data.shapes import render_batch, sample_scenes
from minicogvx.evaluation.reconstruction import flicker
from minicogvx.presets import VAEConfig
from minicogvx.training.optim import warmup_cosine
from minicogvx.training.vae import Critic, VAEStage, backward, initialise, world_batch
from minicogvx.vae import CausalVAE
from minicogvx.vae.losses import PerceptualDistance, VAELoss, VAELossConfig, kl_divergence

MEASURED, MEASURED_SEED = 16, 5_000_000  # clips; training draws from seeds far below and far above


@dataclass
class VAECurve:
    """What one VAE made of the 16 clips while it learnt. `vae` is there only where it was trained just now."""

    name: str
    seed: int
    parameters: int
    steps: list[int]  # optimizer steps done at each measurement; 0 is before training
    psnr: list[float]  # dB, averaged over clips
    lpips: list[float]  # AlexNet, all frames; 0 is equal
    flicker: list[float]  # mean absolute difference of neighbouring frames, in 8-bit grey levels (paper Table 1)
    sharpness: list[float]  # mean absolute spatial gradient over that of the true clips: 1 is as sharp, noise counts
    kl_per_element: list[float]  # nats per latent number
    flicker_of_true: float  # of the true clips
    seconds: float  # of training, measurements included
    vae: CausalVAE | None = field(default=None, repr=False, compare=False)


def compare_vaes(variants: Mapping[str, tuple[VAEConfig, VAELossConfig]], steps: int, seed: int = 0,
                 batch_size: int = 4, num_frames: int = 9, height: int = 32, width: int = 32, every: int = 25,
                 dtype: torch.dtype = torch.bfloat16,
                 on_step: Callable[[str, int], None] | None = None) -> dict[str, VAECurve]:
    """Trains each variant from nothing; measures before, after every `every` steps and at the end.

    Every variant sees the same clips in the same order. The measures are taken on `measured_clips`, which training
    never draws, from a sampled latent whose noise is always the same. Where a loss has a GAN, a small 3D discriminator
    is trained along. Deterministic for a seed and a number of threads; the global random state and the gradient mode
    stay as they were. `on_step(name, done)` is called after each step.

    Raises ValueError for no variants, a count below 1 or a size that does not fit a config; see `load_lpips` for LPIPS.
    """
    check_run(variants, steps, batch_size, every)
    measures = Measures(measured_clips(num_frames, height, width), dtype)
    size = (batch_size, num_frames, height, width)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        return {name: _train(name, *configs, measures, size, steps, seed, every, on_step)
                for name, configs in variants.items()}


def measured_clips(num_frames: int = 9, height: int = 32, width: int = 32) -> Float[Tensor, "b t h w 3"]:
    """The 16 clips that every VAE is measured on, in 0..1: of the training split, from a seed that training never uses."""
    return render_batch(sample_scenes(MEASURED, MEASURED_SEED, "train"), num_frames, height, width)


def spatial_gradient(video: Float[Tensor, "*b t h w 3"]) -> float:
    """Mean absolute difference of neighbouring pixels along height plus that along width."""
    down = (video[..., 1:, :, :] - video[..., :-1, :, :]).abs().mean()
    right = (video[..., 1:, :] - video[..., :-1, :]).abs().mean()
    return (down + right).item()


def round_trip(vae: CausalVAE, clips: Float[Tensor, "b t h w 3"], dtype: torch.dtype = torch.bfloat16,
               seed: int = 0) -> tuple[Float[Tensor, "b t h w 3"], float]:
    """Clips in 0..1 through encoder, sampled posterior and decoder; also the KL in nats per latent number."""
    video = (rearrange(clips, "b t h w c -> b c t h w") * 2 - 1).to(dtype)
    with torch.no_grad():
        posterior = vae.encode(video)
        back = vae.decode(posterior.sample(torch.Generator().manual_seed(seed)).to(dtype)).float()
        kl = kl_divergence(posterior.mean, posterior.logvar).item() / posterior.mean[0].numel()
    return (rearrange(back, "b c t h w -> b t h w c") / 2 + 0.5).clamp(0, 1), kl


class Measures:
    """The same questions to every VAE, about the same clips."""

    def __init__(self, clips: Float[Tensor, "b t h w 3"], dtype: torch.dtype = torch.bfloat16):
        self.clips, self.dtype, self.perceptual = clips, dtype, PerceptualDistance("alex")
        self.flicker_of_true = sum(map(flicker, clips)) / len(clips)

    def of(self, vae: CausalVAE) -> dict[str, float]:
        """The numbers of one point of a `VAECurve`, by the names of its fields."""
        again, kl = round_trip(vae, self.clips, self.dtype)
        mse = (again - self.clips).square().flatten(1).mean(1)
        with torch.no_grad():
            lpips = self.perceptual(*(rearrange(x, "b t h w c -> b c t h w") * 2 - 1 for x in (self.clips, again)))
        return {"psnr": (-10 * mse.log10()).mean().item(), "lpips": lpips.item(),
                "flicker": sum(map(flicker, again)) / len(again),
                "sharpness": spatial_gradient(again) / spatial_gradient(self.clips), "kl_per_element": kl}


def _train(name: str, config: VAEConfig, loss: VAELossConfig, measures: Measures, size: tuple[int, int, int, int],
           steps: int, seed: int, every: int, on_step: Callable[[str, int], None] | None) -> VAECurve:
    start = time.perf_counter()
    torch.manual_seed(seed)
    vae = CausalVAE(config)
    initialise(vae)
    stage = VAEStage(steps, *size, loss)  # its learning rates are those of the shipped VAE
    optimizer, critic = stage.new_optimizer(vae.named_parameters()), Critic(stage)
    objective = VAELoss(loss, critic.network)
    curve = VAECurve(name, seed, sum(p.numel() for p in vae.parameters()), [], [], [], [], [], [],
                     measures.flicker_of_true, 0.0)
    for done in range(steps + 1):
        if is_measured(done, steps, every):
            curve.steps.append(done)
            for measure, value in measures.of(vae).items():
                getattr(curve, measure).append(value)
        if done == steps:
            break
        step_seed = seed * 10_000_000 + 1 + done
        video = world_batch(size[0], step_seed, *size[1:])
        _, reconstruction = backward(vae, objective, video, done, step_seed, measures.dtype)
        critic.step(objective, video, reconstruction, done)
        optimizer.step(warmup_cosine(done, steps, max(1, min(stage.warmup, steps // 5))))
        if on_step:
            on_step(name, done + 1)
    curve.seconds, curve.vae = time.perf_counter() - start, vae.eval()
    return curve
