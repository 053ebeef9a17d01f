"""Every stage once on the meta device, where shapes are worked out and nothing is computed.

A size that does not fit is so refused at once, and not after the stages before it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from minicogvx.presets import Preset, VAEConfig
from minicogvx.training.distributed import Ranks
from minicogvx.training.transformer import TransformerStage
from minicogvx.training.vae import VAEStage, check_stages
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE


@torch.no_grad()
def check_vae(config: VAEConfig, stages: Sequence[VAEStage], here: Ranks = Ranks()) -> None:
    """Raises ValueError, with the stage's number, for what `train_vae` could not do."""
    check_stages(config, stages, here)
    with torch.device("meta"):
        vae = CausalVAE(config)
    for i, stage in enumerate(stages):
        with _named(f"vae.{i}"):
            video = torch.empty(1, config.in_channels, stage.num_frames, stage.height, stage.width, device="meta")
            vae(video, None, stage.chunk_frames)


@torch.no_grad()
def check_transformer(sizes: Preset, stages: Sequence[TransformerStage], here: Ranks = Ranks()) -> None:
    """Raises ValueError, with the stage's number, for what `train_transformer` could not do."""
    with torch.device("meta"):
        vae, model = CausalVAE(sizes.vae), ExpertTransformer(sizes.transformer)
        text = torch.empty(1, sizes.transformer.max_text_seq_length, sizes.text.d_model)
    for i, stage in enumerate(stages):
        with _named(f"transformer.stages.{i}"):
            here.part(stage.batch_size)
            frames, side = stage.num_frames or sizes.num_frames, stage.side or sizes.height
            video = torch.empty(1, sizes.vae.in_channels, frames, side, side, device="meta")
            latents = vae.encode(video).mean[:, :, :stage.latent_frames]
            model(latents.to(text.dtype), torch.zeros(1, dtype=torch.long, device="meta"), text)


@contextmanager
def _named(stage: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{stage} cannot be trained: {error}") from error
