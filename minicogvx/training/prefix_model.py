"""The shipped model that continues a film: the toy, with image channels that hold its first frames.

    python -m minicogvx.training.prefix_model          # trains it and writes data/toy-prefix/difference.safetensors
    pipe = minicogvx.load("toy-prefix")                 # the toy, and this difference
    minicogvx generate "a red circle moves up" --model toy-prefix --prefix outputs/circle.mp4

Image to video as published (paper, appendix D) shows the network one frame. Here it is one latent frame, two or three,
of five: 1, 5 or 9 frames of 17. Only the attention of the blocks, the patches and the last layer learn; all else stays
the toy's, so that the file is small.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minicogvx.compat import choose_device, choose_dtype
from minicogvx.data.clips.world import encode_world
from minicogvx.engine.ranks import Ranks
from minicogvx.interop import DATA
from minicogvx.interop.difference import add_difference, write_difference
from minicogvx.pipeline import Pipeline
from minicogvx.training.batches import Pass, Steps
from minicogvx.training.image_condition import widen_for_image
from minicogvx.training.loop import fit
from minicogvx.training.run import Keep, Run
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.stages import Stage
from minicogvx.training.start import with_transformer
from minicogvx.training.transformer import TransformerTask
from minicogvx.transformer.model import ExpertTransformer

FILE = DATA / "toy-prefix" / "difference.safetensors"
CLIPS, BATCH, STEPS = 768, 16, 1000
KNOWN = (1, 1, 2, 3)  # latent frames that are shown; each batch draws one of these
LEARNS = ("patch_embed.proj.", ".attn1.", "norm_out.", "proj_out.")


def load_prefix_model(device: torch.device | str | None = None, dtype: torch.dtype | None = None,
                      path: str | Path = FILE) -> Pipeline:
    """The toy with image channels, which continues the frames of `image=` or `prefix=`; arguments: `Pipeline.load`'s.

    Raises FileNotFoundError or ValueError for a file that is not there or does not fit.
    """
    device = choose_device(None if device is None else str(device))
    toy = Pipeline.load("toy", "cpu", torch.float32)
    wide = widen_for_image(toy.transformer).eval().requires_grad_(False)
    add_difference(wide, path)
    return with_transformer(toy, wide).to(device, choose_dtype(device, dtype))


class PrefixTask(TransformerTask):
    """Image to video, whose image channels hold the first one, two or three latent frames of a clip."""

    def pictures(self, batch: Pass, frames: int) -> Float[Tensor, "b c t h w"]:
        """The image channels: the noised picture's latent, the clip's own first latents with noise, or zeros."""
        drawn = random.Random(f"prefix {[example.timestep for example in batch.examples]}")  # the same after resuming
        known = drawn.choice(KNOWN)
        if known == 1 or not batch.shows_pictures:
            return super().pictures(batch, frames)
        latents = batch.stack("latents", self.ranks.device)[:, :, :known]
        log_sigma = self.training.image.log_sigma_mean + self.training.image.log_sigma_std * drawn.gauss(0, 1)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(drawn.getrandbits(32)))
        noised = latents + torch.tensor(log_sigma).exp() * noise.to(latents)
        return F.pad(noised, (0, 0, 0, 0, 0, frames - known))


class Writing:
    """A watcher: writes the averaged weights every so often, so that a run that is cut short leaves a file."""

    def __init__(self, path: Path, old: dict[str, Tensor], every: int, started: float):
        self.path, self.old, self.every, self.started = path, old, every, started

    def __call__(self, step: int, task: PrefixTask) -> dict[str, float]:
        """Nothing to log."""
        learnt = {name.removeprefix("transformer."): tensor for name, tensor in task.result().items()}
        said = {"command": "python -m minicogvx.training.prefix_model", "steps": step,
                "seconds": round(time.perf_counter() - self.started)}
        write_difference(self.path, self.old, self.old | learnt, {"made": json.dumps(said)})
        print(f"step {step}: {self.path.stat().st_size:,} bytes after {said['seconds']} s", flush=True)
        return {}


def train_prefix_model(path: Path, clips: int = CLIPS, steps: int = STEPS, seed: int = 0,
                       keep: Keep = Keep(progress=False)) -> Path:
    """Trains on drawn clips of the training split, with Muon, and writes the difference from the toy to `path`."""
    started, training = time.perf_counter(), prefix_training(steps)
    device = torch.device(choose_device(None))
    dtype = choose_dtype(device, training=True)
    toy = Pipeline.load("toy", str(device), torch.float32)
    task = PrefixTask(learning_model(toy.transformer), toy.text, toy.schedule_config, training,
                      Ranks(device=device), dtype, vae=toy.vae.to(dtype))
    old = {name: tensor.clone() for name, tensor in widen_for_image(toy.transformer).state_dict().items()}
    world = encode_world(toy.vae, clips, seed, toy.video_size.num_frames, two_objects=0.0, dtype=dtype)
    print(f"{clips} clips encoded after {time.perf_counter() - started:.0f} s", flush=True)
    data = Steps(world, training, task.model.config, seed=seed)
    with torch.enable_grad():
        fit(task, data, Run("prefix", steps, keep), lambda step: training.schedule_at(step, steps, training.warmup),
            [Writing(path, old, min(200, steps), started)])
    return path


def prefix_training(steps: int) -> TransformerTraining:
    """As the example of image to video in docs/results.md; but one caption in five is dropped: frames say most."""
    return TransformerTraining((Stage(steps, BATCH),), learning_rate=2e-3, optimizer="muon", warmup=min(50, steps),
                               ema_decay=0.99, text_dropout=0.2, timesteps="stratified", image_to_video=True)


def learning_model(toy: ExpertTransformer) -> ExpertTransformer:
    """A copy with image channels, of which only what `LEARNS` names is trained."""
    model = widen_for_image(toy)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in LEARNS))
    return model


def main(argv: list[str] | None = None) -> None:
    """Trains the shipped model; about a quarter of an hour on one core."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args(argv)
    train_prefix_model(arguments.out, arguments.clips, arguments.steps, keep=Keep(progress=True))


if __name__ == "__main__":
    main()
