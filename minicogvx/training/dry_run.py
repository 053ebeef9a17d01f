"""Runs every stage once on the meta device, which works out shapes and computes nothing.

So a size that does not fit is rejected at once, not after the stages before it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from minicogvx.engine.ranks import Ranks
from minicogvx.pipeline import Pipeline
from minicogvx.presets import Preset, VAEConfig
from minicogvx.training.transformer import Networks, TransformerTraining
from minicogvx.training.vae import VAEStage, check_stages
from minicogvx.vae import CausalVAE


@torch.no_grad()
def check_vae(config: VAEConfig, stages: Sequence[VAEStage], here: Ranks = Ranks()) -> None:
    """Raises ValueError, with the stage's number, for stages that `train_vae` cannot run."""
    check_stages(config, stages, here)
    with torch.device("meta"):
        vae = CausalVAE(config)
    for i, stage in enumerate(stages):
        with _named(f"vae.{i}"):
            video = torch.empty(1, config.in_channels, stage.num_frames, stage.height, stage.width, device="meta")
            vae(video, None, stage.chunk_frames)


@torch.no_grad()
def check_transformer(sizes: Preset, training: TransformerTraining, here: Ranks = Ranks()) -> None:
    """Raises ValueError, with the stage's number, for stages that `train_transformer` cannot run."""
    with torch.device("meta"), _named("transformer"):
        vae = CausalVAE(sizes.vae)
        nets = Networks(sizes, replace(training, compile=False), torch.float32, torch.device("meta"))
        text = nets.text.encode([""])
    with _named("transformer"):
        Pipeline(vae, nets.working, sizes.schedule, nets.text)  # checks that sampling can use the schedule
    largest = max(stage.batch_size for stage in training.stages)
    if training.accumulate > largest:
        raise ValueError(f"transformer.accumulate is {training.accumulate}; it must be from 1 to {largest}, the "
                         f"largest batch_size of its stages")
    for i, stage in enumerate(training.stages):
        with _named(f"transformer.stages.{i}"):
            here.part(stage.batch_size)
            frames, side = stage.num_frames or sizes.video_size.num_frames, stage.side or sizes.video_size.height
            video = torch.empty(1, sizes.vae.in_channels, frames, side, side, device="meta")
            latents = vae.encode(video).mean[:, :, :stage.latent_frames]
            nets.working(latents.to(text.dtype), torch.zeros(1, dtype=torch.long, device="meta"), text)


@contextmanager
def _named(stage: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, ArithmeticError, TypeError) as error:
        raise ValueError(f"{stage} cannot be trained: {error}") from error
