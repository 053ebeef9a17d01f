"""The studies of this repository: which variants, how long. `minicogvx ablate NAME` runs one.

Transformers are of width 128 with 4 blocks, on latents of the shipped toy VAE (16 channels, 5 x 8 x 8). VAEs are of the
micro preset's widths, on clips of 9 frames of 32x32 pixels. All are trained on the shapes world. The numbers of steps
are such that one seed of a study takes about four minutes on two processor cores.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from minicogvx.presets import TransformerConfig, VAEConfig, preset
from minicogvx.vae.losses import VAELossConfig


@dataclass(frozen=True)
class TransformerStudy:
    """Transformers on the same latents."""

    name: str
    question: str
    variants: dict[str, TransformerConfig]
    steps: int = 600
    batch_size: int = 32
    every: int = 25
    clips: ClassVar[int] = 1024  # encoded once; the last 64 are held back
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


# ---- transformers (paper 4.1)

# 2 heads of 64: 3D RoPE needs heads of a multiple of 16.
TRANSFORMER = replace(preset("toy").transformer, num_attention_heads=2, num_layers=4)

_POSITION = TransformerStudy("position", "how does a token know where it is? (paper figure 10a)", {
    "rope": TRANSFORMER,
    # The published scale 1.875 is left from training at a smaller size first, which there is none of here.
    "sincos": replace(TRANSFORMER, position="sincos", spatial_interpolation_scale=1.0),
    "learned": replace(TRANSFORMER, position="learned"),
    "none": replace(TRANSFORMER, position="none"),
}, steps=450)

# Equal parameters. What "shared" saves in its modulations goes to a wider time embedding (120 for 64). "separate"
# (MMDiT) has every weight twice and is narrower in return (2 heads of 48 for 2 of 64), with as many blocks.
_MODULATION = TransformerStudy("modulation", "one modulation for text and video, one for each, or all weights apart? "
                                             "(paper figures 8a and 10c)", {
    "expert": TRANSFORMER,
    "shared": replace(TRANSFORMER, modulation="shared", time_embed_dim=120),
    "separate": replace(TRANSFORMER, modulation="separate", attention_head_dim=48),
})

# Equal parameters. A factorised block holds two attentions, so there are 3 blocks of it for 4 full ones.
_ATTENTION = TransformerStudy("attention", "does every token see every token, or its own frame and then its own place? "
                                           "(paper figures 8b and 10b)", {
    "full": TRANSFORMER,
    "factorised": replace(TRANSFORMER, attention="factorised", num_layers=3, time_embed_dim=68),
})

# ---- VAEs (paper 2.1, Table 1)

VAE = preset("micro").vae
_L1 = VAELossConfig(lpips_weight=0.0, kl_weight=0.0, gan_weight=0.0)
_L2 = replace(_L1, l2_weight=10.0)
_LPIPS = replace(_L2, lpips_weight=0.1, lpips_net="alex", lpips_frames=2)
_WEAK_KL = replace(_LPIPS, kl_weight=0.01)
PIXELS = replace(_L2, kl_weight=0.1)  # what the shipped VAE was mostly trained with

_LOSSES = VAEStudy("vae-losses", "what does each part of the loss do to the reconstruction? (paper 2.1)", {
    "L1": (VAE, _L1),
    "+L2": (VAE, _L2),
    "+LPIPS": (VAE, _LPIPS),
    "+KL weak": (VAE, _WEAK_KL),
    "+KL strong": (VAE, replace(_LPIPS, kl_weight=3.0)),
    # The published run starts its GAN after a few thousand steps; ours has to start early.
    "+GAN": (VAE, replace(_WEAK_KL, gan_weight=0.3, gan_start=100)),
}, steps=250)

_KL = VAEStudy("vae-kl", "how strongly may the latent be pulled towards a standard normal?", {
    f"{weight:g}": (VAE, replace(_L2, kl_weight=weight)) for weight in (0.0, 0.01, 0.1, 1.0, 10.0)
}, steps=300)


def _compression(stages: int, temporal: int, channels: int) -> tuple[VAEConfig, VAELossConfig]:
    config = replace(VAE, block_out_channels=(16, 32, 64, 64, 64)[:stages],  # 2x in space between stages
                     temporal_compression_ratio=temporal, latent_channels=channels)
    return config, PIXELS


_COMPRESSION = VAEStudy("vae-compression", "how much may be thrown away, and do more channels help? (paper Table 1)", {
    f"{2**(stages - 1)}x{2**(stages - 1)}x{temporal}, {channels} channels": _compression(stages, temporal, channels)
    # the paper's own rows: its baseline without compression in time (there a 2D VAE), then A to E
    for stages, temporal, channels in ((4, 1, 4), (4, 4, 8), (4, 4, 16), (4, 4, 32), (4, 8, 32), (5, 8, 128))
}, steps=200)

STUDIES = {study.name: study for study in (_LOSSES, _KL, _COMPRESSION, _POSITION, _MODULATION, _ATTENTION)}
