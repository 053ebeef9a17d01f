"""Trains the 3D causal VAE in stages, as published: short low-resolution clips first, then the full size (paper 2.1).

The published run's loss weights, learning rate and optimizer were never released. Ours were chosen on two CPU cores.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.data.shapes import render_batch, sample_scenes
from minicogvx.presets import VAEConfig
from minicogvx.training.checkpoints import load_checkpoint, save_checkpoint
from minicogvx.training.optim import MuonAdamW, warmup_cosine
from minicogvx.vae import CausalVAE
from minicogvx.vae.losses import VAELoss, VAELossConfig

CHECKPOINT_EVERY = 200  # steps


@dataclass(frozen=True)
class VAEStage:
    """One stage of training: what it sees, how long, and what it is judged by."""

    steps: int
    batch_size: int
    num_frames: int
    height: int
    width: int
    loss: VAELossConfig
    muon_lr: float = 0.02
    adamw_lr: float = 1e-3
    warmup: int = 20
    chunk_frames: int | None = 8
    decoder_only: bool = False  # the encoder stays as it is: latents that a diffusion model has seen keep their meaning


def initialise(vae: CausalVAE) -> None:
    """Start values that save about a minute: residual branches small, the latent's modulation near "times one"."""
    for name, parameter in vae.named_parameters():
        if name.endswith("conv2.conv.weight") or name.endswith("conv_y.conv.weight"):
            parameter.data.mul_(0.2)
        elif name.endswith("conv_y.conv.bias"):
            parameter.data.fill_(1.0)
    logvar_bias = vae.encoder.conv_out.conv.bias.data[vae.config.latent_channels:]
    logvar_bias.fill_(-4.0)


def world_batch(size: int, seed: int, num_frames: int, height: int, width: int) -> Float[Tensor, "b 3 t h w"]:
    """A batch of training clips of the shapes world as the model sees them: `b c t h w` in -1..1."""
    clips = render_batch(sample_scenes(size, seed, "train"), num_frames, height, width)
    return clips.permute(0, 4, 1, 2, 3) * 2 - 1


def psnr(video: Tensor, reconstruction: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in -1..1."""
    mse = (video.float() - reconstruction.float().clamp(-1, 1)).square().mean()
    return (10 * torch.log10(4 / mse)).item()


def train_vae(config: VAEConfig, stages: tuple[VAEStage, ...], seed: int = 0, dtype: torch.dtype = torch.bfloat16,
              log: Path | None = None, progress: bool = True, checkpoints: Path | None = None) -> CausalVAE:
    """A VAE trained from nothing on the shapes world. Weights stay float32; activations are `dtype`.

    After a stage that trains the encoder at the VAE's own size, each latent channel is brought to unit variance
    (`normalise_latents`). Deterministic for a seed and a number of threads. With a folder of `checkpoints` a run that
    was cut off goes on where it was.
    """
    torch.manual_seed(seed)
    vae = CausalVAE(config)
    initialise(vae)
    first_seed = seed * 10_000_000 + 1
    for i, stage in enumerate(stages):
        train_stage(vae, stage, first_seed, dtype, log, progress, checkpoints and checkpoints / f"vae_{i}.safetensors")
        if not stage.decoder_only and stage.height == config.sample_height:
            normalise_latents(vae, seed)
        first_seed += stage.steps
    return vae


def train_stage(vae: CausalVAE, stage: VAEStage, first_seed: int, dtype: torch.dtype = torch.bfloat16,
                log: Path | None = None, progress: bool = True, checkpoint: Path | None = None) -> None:
    """One stage, in place; step i draws its clips and noise from seed `first_seed + i`.

    The losses of every tenth step go by name to the JSONL file `log`.
    """
    part = vae.decoder if stage.decoder_only else vae
    vae.encoder.requires_grad_(not stage.decoder_only)
    optimizer = MuonAdamW(part.named_parameters(), stage.muon_lr, stage.adamw_lr)
    objective = VAELoss(stage.loss)
    name = f"{stage.height}x{stage.width}x{stage.num_frames}"
    done = load_checkpoint(checkpoint, {"vae": vae}, optimizer) if checkpoint else 0
    bar = tqdm(range(done, stage.steps), desc=f"VAE {name}", initial=done, total=stage.steps, disable=not progress,
               mininterval=5)
    for step in bar:
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(first_seed + step)
        video = world_batch(stage.batch_size, first_seed + step, stage.num_frames, stage.height, stage.width)
        reconstruction, posterior = vae(video.to(dtype), generator, stage.chunk_frames)
        losses = objective.autoencoder(video, reconstruction.float(), posterior.mean, posterior.logvar, step,
                                       generator=generator)
        losses["total"].backward()
        norm = optimizer.step(warmup_cosine(step, stage.steps, stage.warmup))
        if step % 10 == 0 or step == stage.steps - 1:
            row = {"stage": name, "step": step, "psnr": psnr(video, reconstruction.detach()), "grad_norm": norm.item(),
                   "seconds": time.perf_counter() - start, **{key: value.item() for key, value in losses.items()}}
            bar.set_postfix(psnr=f"{row['psnr']:.1f}")
            if log:
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        if checkpoint and ((step + 1) % CHECKPOINT_EVERY == 0 or step == stage.steps - 1):
            save_checkpoint(checkpoint, step + 1, {"vae": vae}, optimizer)
    vae.encoder.requires_grad_(True)


@torch.no_grad()
def normalise_latents(vae: CausalVAE, seed: int, clips: int = 64) -> None:
    """Folds a scale for each latent channel into the weights, so that every channel has unit variance.

    The file format holds one scaling factor for all channels; the diffusion model learns faster if they are alike.
    The encoder's last layer divides by the deviation, the layers that read the latent multiply: same reconstruction.
    """
    config, c = vae.config, vae.config.latent_channels
    frames = 4 * config.temporal_compression_ratio + 1
    video = world_batch(clips, seed + 987_654_321, frames, config.sample_height, config.sample_width)
    deviation = vae.encode(video).mean.transpose(0, 1).flatten(1).std(1)
    out = vae.encoder.conv_out.conv
    out.weight[:c] /= deviation[:, None, None, None, None]
    out.bias[:c] /= deviation
    out.bias[c:] -= 2 * deviation.log()
    for name, parameter in vae.decoder.named_parameters():
        if name == "conv_in.conv.weight" or name.endswith(("conv_y.conv.weight", "conv_b.conv.weight")):
            parameter *= deviation[None, :, None, None, None]
