"""How long the main jobs take on this machine, extrapolated from a few steps of each.

These steps write nothing. The estimates hold for an otherwise idle machine.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from minicogvx.compat import choose_dtype
from minicogvx.data.clips.world import WorldClips, encode_world
from minicogvx.data.world.captions import vocabulary
from minicogvx.engine.ranks import Ranks
from minicogvx.interop.lpips_weights import lpips_source
from minicogvx.presets import Preset
from minicogvx.training.batches import Steps
from minicogvx.training.devices import say_seconds
from minicogvx.training.local_text import random_text
from minicogvx.training.loop import Task
from minicogvx.training.recipes import Recipe, load_recipe
from minicogvx.training.start import random_transformer
from minicogvx.training.transformer import TransformerTask
from minicogvx.training.vae import VAETask
from minicogvx.training.videos import VideoSteps, WorldVideos
from minicogvx.vae import CausalVAE

# One training step of micro's transformer, all notebooks once and the whole test suite, in seconds on our CPU (AMD EPYC
# with avx512_bf16, two cores; the suite by its parts). Other machines are scaled by their own step.
REFERENCE_STEP, REFERENCE_JOBS = 0.25, {"all notebooks": 12.5 * 60, "make test": 48 * 60.0}


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds of a job, or of a part of it, and how they were estimated."""

    job: str
    seconds: float
    how: str = ""
    part: str = ""

    def __str__(self) -> str:
        about = f"{self.part}: " * bool(self.part) + f"about {say_seconds(self.seconds)}"
        return about + f" ({self.how})" * bool(self.how)


def estimates(device: torch.device = torch.device("cpu")) -> Iterator[Estimate]:
    """An estimate for each main job and for each part of a training, which comes first, as soon as it is known.

    Takes about half a minute on two idle cores.
    """
    yield clip_seconds(device)
    for name in ("micro", "toy"):
        recipe = load_recipe(name)
        parts = {}
        for part, seconds in training_seconds(recipe, device):
            parts[part] = seconds
            yield Estimate(f"train {name}", seconds, part=part)
        yield Estimate(f"train {name}", sum(parts.values()), " + ".join(parts))
        if name == "micro":
            slower = parts["transformer"] / recipe.transformer.steps / REFERENCE_STEP
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


def training_seconds(recipe: Recipe, device: torch.device) -> Iterator[tuple[str, float]]:
    """Seconds of the VAE's stages, of encoding the clips once, and of the transformer's stages, as each is known."""
    sizes, dtype, here = recipe.model_sizes, choose_dtype(device, training=True), Ranks(device=device)
    torch.manual_seed(0)
    vae = CausalVAE(sizes.vae).to(device)
    yield "VAE", _vae_seconds(vae, recipe, dtype, here)
    count = 16
    yield "encoding", recipe.clips / count * _seconds(lambda: _encode(vae, sizes, count, dtype), device)
    yield "transformer", _transformer_seconds(recipe, sizes, _encode(vae, sizes, 4 * count, dtype), dtype, here)


def _encode(vae: CausalVAE, sizes: Preset, count: int, dtype: torch.dtype) -> WorldClips:
    return encode_world(vae, count, 1, sizes.video_size.num_frames, 0.0, dtype, progress=False)


def _vae_seconds(vae: CausalVAE, recipe: Recipe, dtype: torch.dtype, here: Ranks) -> float:
    """Seconds of all stages, without a GAN, and without LPIPS if its network is not installed."""
    known = {net: lpips_source(net) is not None for net in ("alex", "vgg")}
    stages = tuple(replace(stage, loss=replace(
        stage.loss, gan_weight=0.0, lpips_weight=stage.loss.lpips_weight * known[stage.loss.lpips_net]))
        for stage in recipe.vae.stages)
    training, total = replace(recipe.vae, stages=stages), 0.0
    task = VAETask(vae, training, here, dtype)
    for number, stage in enumerate(stages):
        task.begin(number)
        data = VideoSteps(WorldVideos(), training, number, vae.config)
        total += stage.steps * _seconds(lambda: _step(task, data[0]), here.device)
    return total


def _transformer_seconds(recipe: Recipe, sizes: Preset, clips: WorldClips, dtype: torch.dtype, here: Ranks) -> float:
    """Seconds of all stages; each is timed on clips of the preset's own size."""
    training = recipe.transformer
    text = random_text(sizes.text, vocabulary(), sizes.transformer.max_text_seq_length, training)
    task = TransformerTask(random_transformer(sizes.transformer, training), text, sizes.schedule, training, here, dtype,
                           trains_text=True)
    data, total, first = Steps(clips, training, sizes.transformer), 0.0, 0
    for stage in training.stages:
        total += stage.steps * _seconds(lambda: _step(task, data[first]), here.device)
        first += stage.steps
    return total


def _step(task: Task, passes: list) -> None:
    for batch in passes:
        task.backward(batch, 0.0, batch is passes[-1])
    task.update(0, 1e-6)


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
