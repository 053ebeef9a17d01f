"""The settings of a study of latents, or of transformers on the same latents, in equal time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minicogvx.ablation.transformers import study_training
from minicogvx.presets import ScheduleConfig, TransformerConfig, VAEConfig
from minicogvx.training.settings import TransformerTraining, VAETraining
from minicogvx.training.stages import Stage


@dataclass(frozen=True)
class Latents:
    """A variant: a VAE, and what differs in its training, its transformer and that transformer's training."""

    vae: VAEConfig
    loss: Mapping[str, float] = field(default_factory=dict)
    crowd: int = 1  # of the VAE's stages before the last, see VAEStage
    learning_rate: float | None = None  # of the VAE; None: the study's
    whiten: bool = False
    patch_size: int = 2
    transformer: Mapping[str, Any] = field(default_factory=dict)  # fields of TransformerConfig
    training: Mapping[str, Any] = field(default_factory=dict)  # fields of TransformerTraining


@dataclass(frozen=True)
class LatentsStudy:
    """VAEs, each trained for the same steps and then judged by a transformer that learns on its latents for the same
    time; see ablation/latents.py. Raises ValueError for settings that cannot be compared."""

    name: str
    question: str
    variants: dict[str, Latents]
    vae: VAETraining
    transformer: TransformerConfig  # of every variant, but for what its latents decide
    stages: tuple[Stage, ...]  # of the transformer; they share its time in proportion to their steps
    training: Mapping[str, Any] = field(default_factory=lambda: {"ema_decay": 0.995, "alignment_weight": 1.0})
    minutes: float = 10.0  # of the transformer's training steps, for each variant
    every: float = 60.0  # seconds of training between measurements of the loss
    clips: int = 4224  # of one object; the last `held_back` are for validation
    held_back: int = 128
    clips_seed: int = 4
    measured: int = 500  # captions, and true clips that go through the VAE
    guidance_scale: float = 3.0
    schedule: ScheduleConfig = ScheduleConfig()

    def __post_init__(self):
        for name in ("minutes", "every", "measured", "held_back"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.clips < 2 * self.held_back:
            raise ValueError(f"clips is {self.clips}; {self.held_back} are held back, so it must be at least "
                             f"{2 * self.held_back}")
        sides = {side for one in self.variants.values() for side in (one.vae.sample_height, one.vae.sample_width)}
        if len(sides) != 1:
            raise ValueError(f"the VAEs of the variants have sides of {', '.join(map(str, sorted(sides)))} pixels; all "
                             f"clips must have one side")

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels of the clips that the transformers see."""
        vae = next(iter(self.variants.values())).vae
        return self.transformer.sample_frames, vae.sample_height, vae.sample_width

    def vae_training(self, name: str) -> VAETraining:
        """The training of the VAE of a variant."""
        variant = self.variants[name]
        stages = [replace(stage, loss=replace(stage.loss, **variant.loss)) for stage in self.vae.stages]
        stages[:-1] = [replace(stage, crowd=variant.crowd) for stage in stages[:-1]]
        return replace(self.vae, stages=tuple(stages), learning_rate=variant.learning_rate or self.vae.learning_rate,
                       whiten=variant.whiten)

    def training_of(self, name: str) -> TransformerTraining:
        """The training of the transformer of a variant."""
        return replace(study_training(*self.stages), **{**self.training, **self.variants[name].training})

    def transformer_of(self, name: str) -> TransformerConfig:
        """The transformer of a variant, for the latents of its VAE."""
        vae, patch_size = self.variants[name].vae, self.variants[name].patch_size
        _, height, width = vae.latent_size(*self.size)
        return replace(self.transformer, in_channels=vae.latent_channels, out_channels=vae.latent_channels,
                       patch_size=patch_size, sample_height=height, sample_width=width,
                       temporal_compression_ratio=vae.temporal_compression_ratio, **self.variants[name].transformer)
