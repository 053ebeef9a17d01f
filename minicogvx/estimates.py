"""How long the main jobs take on this machine, extrapolated from a few steps of each.

These steps write nothing. The estimates hold for an otherwise idle machine.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from minicogvx.compat import choose_dtype
from minicogvx.data.clips.world import LatentSet, encode_world
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.interop.lpips_weights import load_perceptual, lpips_source
from minicogvx.presets import preset
from minicogvx.training import transformer as transformer_training
from minicogvx.training import vae as vae_training
from minicogvx.training.recipes import RECIPES, Recipe
from minicogvx.vae import CausalVAE
from minicogvx.vae.losses import VAELoss

# One training step of micro's transformer, all notebooks once and the whole test suite, in seconds on our CPU (AMD EPYC
# with avx512_bf16, two cores). Other machines are scaled by their own step.
REFERENCE_STEP, REFERENCE_JOBS = 0.26, {"all notebooks": 7 * 60.0, "make test": 22 * 60.0}


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds of a job, and how they were estimated."""

    job: str
    seconds: float
    how: str

    def __str__(self) -> str:
        return f"about {say_seconds(self.seconds)} ({self.how})"


def say_seconds(seconds: float) -> str:
    """Two digits, in a suitable unit: "0.84 s", "75 s", "14 min", "5.2 h"."""
    if seconds < 100:
        value, unit = seconds, "s"
    else:
        value, unit = (seconds / 60, "min") if seconds < 6000 else (seconds / 3600, "h")
    digits = max(0, 1 - math.floor(math.log10(max(value, 0.1))))
    return f"{value:.{digits}f} {unit}"


def estimates(device: torch.device = torch.device("cpu")) -> Iterator[Estimate]:
    """An estimate for each main job, as soon as it is known; takes about half a minute on two cores."""
    yield clip_seconds(device)
    for name, recipe in RECIPES.items():
        parts = training_seconds(recipe, device)
        detail = ", ".join(f"{part} {say_seconds(value)}" for part, value in parts.items())
        yield Estimate(f"train {name}", sum(parts.values()), detail)
        if name == "micro":
            slower = parts["transformer"] / sum(s.steps for s in recipe.transformer.stages) / REFERENCE_STEP
    for job, seconds in REFERENCE_JOBS.items():
        yield Estimate(job, seconds * slower, f"a training step takes {slower:.1f} times as long here as where "
                                              f"{say_seconds(seconds)} was measured")


def clip_seconds(device: torch.device, steps: int = 25) -> Estimate:
    """One clip of the shipped toy."""
    import minicogvx

    pipe, few = minicogvx.load("toy", device), 3
    latents = pipe.sample(["a red circle moves right"], num_inference_steps=1)  # creates tables and kernels
    pipe.decode(latents)
    step = _seconds(lambda: pipe.sample(["a red circle moves right"], num_inference_steps=few), device) / few
    decoding = _seconds(lambda: pipe.decode(latents), device)
    return Estimate("one toy clip", steps * step + decoding,
                    f"{steps} steps of {say_seconds(step)}, decoding {say_seconds(decoding)}")


def training_seconds(recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Seconds of the VAE's stages, of encoding the clips once, and of the transformer's stages."""
    sizes, dtype = recipe.sizes or preset(recipe.preset), choose_dtype(device, training=True)
    torch.manual_seed(0)
    vae = CausalVAE(sizes.vae).to(device)
    parts = {"VAE": sum(stage.steps * _vae_step(vae, stage, dtype, device) for stage in recipe.vae)}
    count = 16
    parts["encoding"] = recipe.clips / count * _seconds(lambda: _encode(vae, sizes, count, dtype), device)
    clips = _encode(vae, sizes, 4 * count, dtype)
    parts["transformer"] = _transformer_steps(recipe, sizes, clips, dtype, device)
    return parts


def _encode(vae: CausalVAE, sizes, count: int, dtype: torch.dtype) -> LatentSet:
    return encode_world(vae, count, 1, sizes.video_size.num_frames, 0.0, dtype, progress=False)


def _vae_step(vae: CausalVAE, stage, dtype: torch.dtype, device: torch.device) -> float:
    """One training step, without a GAN, and without LPIPS if its network is not installed."""
    known = lpips_source(stage.loss.lpips_net) is not None
    loss = replace(stage.loss, gan_weight=0.0, lpips_weight=stage.loss.lpips_weight if known else 0.0)
    optimizer = stage.new_optimizer(vae.named_parameters())
    objective = VAELoss(loss, None, load_perceptual(loss), strict=False).to(device)

    def step() -> None:
        video = vae_training.world_batch(stage.batch_size, 1, stage.num_frames, stage.height, stage.width).to(device)
        vae_training.backward(vae, objective, video, 0, 1, dtype, stage.chunk_frames, stage.accumulate)
        optimizer.step(1e-6)

    return _seconds(step, device)


def _transformer_steps(recipe: Recipe, sizes, clips: LatentSet, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of all stages; each is timed on clips of the preset's own size."""
    training, schedule = recipe.transformer, NoiseSchedule(sizes.schedule)
    nets = transformer_training.Networks(sizes, training, dtype, device)
    optimizer, total = training.new_optimizer(nets.named_parameters()), 0.0
    for stage in training.stages:

        def step(stage=stage) -> None:
            batch = transformer_training.draw_step(clips, stage, training, schedule, torch.Generator().manual_seed(0))
            transformer_training.backward(nets, schedule, batch, 1.0)
            transformer_training.update_master(nets.master, nets.working, optimizer, 1e-6)

        total += stage.steps * _seconds(step, device)
    return total


def _seconds(run: Callable[[], object], device: torch.device, repeats: int = 2) -> float:
    """The fastest of `repeats` runs after a warm-up."""
    best = math.inf
    for i in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.get_device_module(device.type).synchronize()
        best = min(best, time.perf_counter() - start) if i else best
    return best
