"""The studies of this repository: their variants and lengths. `minicogvx ablate NAME` runs one.

Transformers are of width 128 with 4 blocks, on latents of the shipped toy VAE (16 channels, 5 x 8 x 8). VAEs are of the
micro preset's widths, on clips of 9 frames of 32x32 pixels (33 and 9 in vae-stages). All are trained on the shapes
world, except in twins, whose world takes about a minute per seed, and schedules, in the nano world. One seed of another
study takes four to six minutes on two CPU cores. Only the studies of stages, of latents and of minutes count seconds,
not steps; stages takes about half an hour per seed, latents as much for each VAE, which has the toy's size, and
latents-micro about half of that. A variant of minutes-micro takes 11 minutes per seed, after ten for the VAE that all
share, unless --vae names one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from minicogvx.ablation.latents_study import Latents, LatentsStudy
from minicogvx.ablation.questions import QUESTIONS
from minicogvx.ablation.schedules_study import SCHEDULES
from minicogvx.ablation.timesteps import UNIFORM_SAMPLING
from minicogvx.ablation.twins_study import TWINS
from minicogvx.presets import ScheduleConfig, TransformerConfig, VAEConfig, preset
from minicogvx.training.settings import VAEStage, VAETraining
from minicogvx.training.stages import Stage
from minicogvx.vae.losses import VAELossConfig


@dataclass(frozen=True)
class TransformerStudy:
    """Transformers on the same latents; at the end each is asked to obey captions that it has not seen."""

    name: str
    question: str
    variants: dict[str, TransformerConfig]
    steps: int = 600
    batch_size: int = 32
    every: int = 25
    captions: int = 96  # 0: none are asked
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of a variant, if its training differs
    clips: int = 1024  # encoded once; the last 64 are for validation
    settings: str | None = None  # of a study of one's own
    clips_seed: ClassVar[int] = 2


@dataclass(frozen=True)
class VAEStudy:
    """VAEs, each with its loss, on the same clips."""

    name: str
    question: str
    variants: dict[str, tuple[VAEConfig, VAELossConfig]]
    steps: int = 400
    batch_size: int = 4
    every: int = 25
    num_frames: ClassVar[int] = 9
    height: ClassVar[int] = 32
    width: ClassVar[int] = 32


@dataclass(frozen=True)
class VAEStagesStudy:
    """One VAE, trained on short clips, on long ones, or on short and then long ones; measured on both, and on larger
    frames. The stages of a variant share its steps in proportion to their own."""

    name: str
    question: str
    variants: dict[str, tuple[VAEStage, ...]]
    config: VAEConfig
    loss: VAELossConfig
    steps: int = 600
    every: int = 50
    judged: ClassVar[dict[str, tuple[int, int]]] = {"": (33, 32), ", short clips": (9, 32), ", twice the size": (9, 64)}


@dataclass(frozen=True)
class StagesStudy:
    """Transformers trained for equal time on clips whose size grows, or does not; see ablation/stages.py.

    The stages of a variant share its time in proportion to their steps. Raises ValueError for last stages of different
    sizes, or an unknown `refined` variant.
    """

    name: str
    question: str
    variants: dict[str, tuple[TransformerConfig, tuple[Stage, ...]]]
    refined: str  # the variant that is refined on the best fifth
    minutes: float = 6.0  # of training steps, for each variant
    best_fifth: float = 1.0  # more minutes on the best fifth, and as many on all clips for comparison; 0: none
    every: float = 10.0  # seconds of training between measurements of the loss
    clips: int = 4224  # of one object; the last `held_back` are for validation
    held_back: int = 128
    clips_seed: int = 3
    measured: int = 200  # clips generated at the end of each run
    flawed: float = 0.8  # share of the clips that are out of focus
    blur: float = 2.0 / 64  # standard deviation of the Gaussian, in frame sides; see stage_clips.py
    refine_rate: float = 0.2  # learning rate of the best fifth's minutes, as a share of the run's own

    def __post_init__(self):
        for name in ("minutes", "every", "blur", "measured", "held_back"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.best_fifth < math.inf:
            raise ValueError(f"best_fifth is {self.best_fifth}; it must be 0 or more minutes")
        if not 0 < self.flawed < 1:
            raise ValueError(f"flawed is {self.flawed}; it must be between 0 and 1")
        if self.clips < 2 * self.held_back:
            raise ValueError(f"clips is {self.clips}; {self.held_back} are held back, so it must be at least "
                             f"{2 * self.held_back}")
        if self.refined not in self.variants:
            raise ValueError(f"refined is {self.refined!r}; it must be one of {', '.join(self.variants)}")
        for name, (_, stages) in self.variants.items():
            if not stages:
                raise ValueError(f"variants has {name!r} without a stage; give at least one")
        if len({size_of(stages[-1]) for _, stages in self.variants.values()}) != 1:
            raise ValueError("the last stages of variants differ in size; all are judged at one size, so they must end "
                             "at it")

    @property
    def full(self) -> tuple[int, int]:
        """Frames and side of the last stage, at which every variant is measured."""
        return size_of(self.variants[self.refined][1][-1])

    def sizes(self, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
        """Every size of these variants, including the full one."""
        return tuple(dict.fromkeys(size_of(stage) for name in names for stage in self.variants[name][1]))


def size_of(stage: Stage) -> tuple[int, int]:
    """Frames, and height and width in pixels, of the clips of a stage."""
    return stage.num_frames, stage.height


def _stage(steps: int, num_frames: int, side: int, batch_size: int) -> Stage:
    return Stage(steps, batch_size, num_frames, side, side)


# ---- transformers (paper 4.1)

# 2 heads of 64: 3D RoPE needs heads of a multiple of 16.
TRANSFORMER = replace(preset("toy").transformer, num_attention_heads=2, num_layers=4)

_POSITION = TransformerStudy("position", QUESTIONS["position"], {
    "rope": TRANSFORMER,
    # The published scale of 1.875 results from training at a smaller size first, which is not done here.
    "sincos": replace(TRANSFORMER, position="sincos", spatial_interpolation_scale=1.0),
    "learned": replace(TRANSFORMER, position="learned"),
    "none": replace(TRANSFORMER, position="none"),
}, steps=450)

# Equal parameters. "shared" saves modulations and gets a wider time embedding (120 instead of 64). "separate" (MMDiT)
# has every weight twice and is narrower (2 heads of 48 instead of 64), with the same number of blocks.
_MODULATION = TransformerStudy("modulation", QUESTIONS["modulation"], {
    "expert": TRANSFORMER,
    "shared": replace(TRANSFORMER, modulation="shared", time_embed_dim=120),
    "separate": replace(TRANSFORMER, modulation="separate", attention_head_dim=48),
})

# Equal parameters. A factorised block has two attentions, so there are 3 of them for 4 full ones.
_ATTENTION = TransformerStudy("attention", QUESTIONS["attention"], {
    "full": TRANSFORMER,
    "factorised": replace(TRANSFORMER, attention="factorised", num_layers=3, time_embed_dim=68),
})

# ---- stages of growing size (paper 3.2, Table 5)

# As in Table 5, resolution grows before length, and batches shrink: a step always has about 3000 tokens. Small stages
# cost more than their share of tokens, because every step also updates all weights.
_GROWING = (_stage(20, 9, 32, 64), _stage(30, 9, 64, 32), _stage(50, 17, 64, 32))
STAGES = StagesStudy("stages", QUESTIONS["stages"], {
    "full size": (TRANSFORMER, (_stage(100, 17, 64, 32),)),
    # Extrapolated: 2 x 2 patches have positions 0 and 1, later the first of 4.
    "progressive": (replace(TRANSFORMER, position_scaling="extrapolate"), _GROWING),
    # Interpolated: 2 x 2 patches have positions 0 and 2, spread over those of 4.
    "progressive, interpolated": (replace(TRANSFORMER, position_scaling="interpolate"), _GROWING),
}, refined="progressive")

# ---- VAEs (paper 2.1, Table 1)

VAE = preset("micro").vae
_L1 = VAELossConfig(lpips_weight=0.0, kl_weight=0.0, gan_weight=0.0)
_L2 = replace(_L1, l2_weight=10.0)
_LPIPS = replace(_L2, lpips_weight=0.1, lpips_net="alex", lpips_frames=2)
_WEAK_KL = replace(_LPIPS, kl_weight=0.01)
PIXELS = replace(_L2, kl_weight=0.1)  # the loss of most of the shipped VAE's training

_LOSSES = VAEStudy("vae-losses", QUESTIONS["vae-losses"], {
    "L1": (VAE, _L1),
    "+L2": (VAE, _L2),
    "+LPIPS": (VAE, _LPIPS),
    "+KL weak": (VAE, _WEAK_KL),
    "+KL strong": (VAE, replace(_LPIPS, kl_weight=3.0)),
    # The published run starts its GAN after a few thousand steps; ours has to start early.
    "+GAN": (VAE, replace(_WEAK_KL, gan_weight=0.3, gan_start=100)),
}, steps=250)

_KL = VAEStudy("vae-kl", QUESTIONS["vae-kl"], {
    f"{weight:g}": (VAE, replace(_L2, kl_weight=weight)) for weight in (0.0, 0.01, 0.1, 1.0, 10.0)
}, steps=300)


def _compression(stages: int, temporal: int, channels: int) -> tuple[VAEConfig, VAELossConfig]:
    config = replace(VAE, block_out_channels=(16, 32, 64, 64, 64)[:stages],  # 2x in space between stages
                     temporal_compression_ratio=temporal, latent_channels=channels)
    return config, PIXELS


_COMPRESSION = VAEStudy("vae-compression", QUESTIONS["vae-compression"], {
    f"{2**(stages - 1)}x{2**(stages - 1)}x{temporal}, {channels} channels": _compression(stages, temporal, channels)
    # the rows of the paper: its baseline without compression in time (there a 2D VAE), then A to E
    for stages, temporal, channels in ((4, 1, 4), (4, 4, 8), (4, 4, 16), (4, 4, 32), (4, 8, 32), (5, 8, 128))
}, steps=200)

# Lengths and frame rates as published, scaled down: there 17 frames at 8 or 16 fps, then 161. A step of either length
# has about the same number of frames.
_SHORT, _LONG = VAEStage(100, 4, 9, frame_rates=(8, 16)), VAEStage(100, 1, 33)
_VAE_STAGES = VAEStagesStudy("vae-stages", QUESTIONS["vae-stages"], {
    "short": (_SHORT,),
    "short, then long": (replace(_SHORT, steps=75), replace(_LONG, steps=25)),
    "long": (_LONG,),
}, VAE, PIXELS)

# ---- latents: regularisers of the VAE (vae/regularise.py), and larger compression, which the paper leaves for later

_MASKED, _CORRELATED, _EQUIVARIANT = {"masked_latents": 0.3}, {"correlation_weight": 0.002}, {"equivariance": 0.5}


def _regularised(vae: VAEConfig) -> dict[str, Latents]:
    return {name: Latents(vae, loss) for name, loss in {
        "plain": {}, "masked": _MASKED, "correlation": _CORRELATED, "equivariance": _EQUIVARIANT,
        "masked, correlation": _MASKED | _CORRELATED,  # both of SSVAE
        "masked, equivariance": _MASKED | _EQUIVARIANT}.items()}


_PERCEPTUAL = replace(PIXELS, lpips_weight=0.1, lpips_net="alex")
_FIRST_PICTURES = (Stage(20, 64, images=1.0), Stage(80, 32))  # of the transformers

# The VAE is micro's; its stages are those that micro had before it had crowds.
_LATENTS_MICRO = LatentsStudy("latents-micro", QUESTIONS["latents-micro"], _regularised(VAE) | {
    "crowds": Latents(VAE, crowd=8), "half the learning rate": Latents(VAE, learning_rate=5e-4),
    "crowds, half the learning rate": Latents(VAE, crowd=8, learning_rate=5e-4),
    "weaker KL": Latents(VAE, {"kl_weight": 0.03}), "whitened": Latents(VAE, whiten=True),
}, VAETraining(
    (VAEStage(2400, 4, 9, loss=PIXELS), VAEStage(400, 4, 9, learning_rate_factor=0.5, loss=_PERCEPTUAL)),
    optimizer="muon", small_branches=True), replace(TRANSFORMER, sample_frames=9), _FIRST_PICTURES)

# The VAE and its stages are the toy's. Larger compression has 3 latent frames instead of 5, or 4x4 cells instead of
# 8x8: patches of one cell then give as many tokens as patches of 2x2 do otherwise.
_TOY = preset("toy").vae
_SMALLER = replace(_TOY, block_out_channels=(16, 32, 64, 64, 64), latent_channels=48)
_RESIDUAL = replace(_SMALLER, resampling="residual")
_LATENTS = LatentsStudy("latents", QUESTIONS["latents"], _regularised(_TOY) | {
    "8x8x8": Latents(replace(_TOY, temporal_compression_ratio=8, latent_channels=32)),
    "16x16x4": Latents(_SMALLER, patch_size=1),
    "16x16x4, residual": Latents(_RESIDUAL, patch_size=1),
    "16x16x4, residual, a quarter of the tokens": Latents(_RESIDUAL),
    "16x16x4, residual, masked": Latents(_RESIDUAL, _MASKED, patch_size=1),
}, VAETraining(
    (VAEStage(700, 8, 9, 32, 32, loss=PIXELS), VAEStage(700, 4, 9, loss=PIXELS),
     VAEStage(500, 4, 17, learning_rate_factor=0.5, loss=_PERCEPTUAL)),
    optimizer="muon", small_branches=True), TRANSFORMER, _FIRST_PICTURES)

# ---- minutes: what makes a transformer learn its captions sooner, on the same latents. It is trained as micro is.

_PICTURES, _CLIPS = Stage(20, 64, images=1.0, text_slots=16), Stage(70, 32, text_slots=16)
_WHOLE = Stage(10, 32)  # with all slots of text
_STAGES = _PICTURES, _CLIPS, _WHOLE


def _minutes(transformer: Mapping[str, Any] = {}, patch_size: int = 2, **training) -> Latents:
    return Latents(VAE, crowd=8, whiten=True, patch_size=patch_size, transformer=transformer, training=training)


_MINUTES = LatentsStudy("minutes-micro", QUESTIONS["minutes-micro"], {
    "micro": _minutes(),
    "aligned: blocks 1, 2, 3": _minutes(alignment_blocks=(1, 2, 3)),
    "alignment kept": _minutes(alignment_schedule="constant"),
    "alignment stopped at half": _minutes(alignment_schedule="constant", alignment_end=0.5),
    "no alignment": _minutes(alignment_weight=0.0, foreground_weight=0.0),
    "value residual": _minutes({"value_residual": True}),
    "neighbouring words": _minutes(text_bias_slope=2.0),
    "half of the tokens routed": _minutes(stages=(_PICTURES, replace(_CLIPS, routed=0.5), _WHOLE)),
    "20 slots of text": _minutes(stages=tuple(replace(stage, text_slots=None) for stage in _STAGES)),
    "stable, then decay": _minutes(schedule="wsd"),
    "batches of 16": _minutes(stages=tuple(replace(stage, batch_size=stage.batch_size // 2) for stage in _STAGES)),
    "batches of 64": _minutes(stages=tuple(replace(stage, batch_size=2 * stage.batch_size) for stage in _STAGES)),
    "half the learning rate": _minutes(learning_rate=7.5e-4),
    "twice the learning rate": _minutes(learning_rate=3e-3),
    "objects count no more": _minutes(foreground_weight=0.0),
    "no pictures": _minutes(stages=(_CLIPS, _WHOLE)),
    "samples of the posterior": _minutes(posterior="sample"),
    "4 blocks": _minutes({"num_layers": 4}),
    "patches of one cell": _minutes(patch_size=1),
}, VAETraining(
    (VAEStage(1250, 4, 9, loss=replace(PIXELS, kl_weight=0.03)),
     VAEStage(300, 4, 9, learning_rate_factor=0.5, loss=replace(_PERCEPTUAL, kl_weight=0.03))),
    learning_rate=5e-4, optimizer="muon", small_branches=True), preset("micro").transformer,
    _STAGES, {"learning_rate": 1.5e-3, "ema_decay": 0.995, "alignment_weight": 1.5,
    "alignment_kinds": ("shape", "motion", "colour"), "foreground_weight": 4.0, "caption_style": "short"},
    clips=8192 + 128, schedule=ScheduleConfig(sampler="dpm"))

STUDIES = {study.name: study for study in (
    _LOSSES, _KL, _COMPRESSION, _VAE_STAGES, _LATENTS, _LATENTS_MICRO, _MINUTES, _POSITION, _MODULATION, _ATTENTION,
    TWINS, UNIFORM_SAMPLING, SCHEDULES, STAGES)}
