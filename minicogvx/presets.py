"""Every size of the model as one frozen dataclass: from `micro`, trained in minutes, to the published 5B.

Field names are those of the `diffusers` config files wherever both have the field. Fields below a
"departures" comment are ours: each defaults to the published behaviour and exists for an ablation.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class VAEConfig:
    """3D causal VAE (paper 2.1). The defaults are the published one: 215,583,907 parameters."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)  # one entry a stage; 2x in space between stages
    layers_per_block: int = 3  # residual blocks a stage in the encoder; the decoder has one more
    temporal_compression_ratio: int = 4  # 2x in time in each of the first log2(ratio) down-samplings
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    scaling_factor: float = 1.15258426
    invert_scale_latents: bool = False  # 1.5-5b-i2v divides its image latents by the scale instead
    sample_height: int = 480  # pixels
    sample_width: int = 720
    # departures
    time_padding: Literal["first", "zeros"] = "first"  # what a causal convolution sees before frame 0
    norm_over: Literal["chunk", "frame"] = "chunk"  # whose statistics a group norm uses; "frame" never leaks the future
    first_frame: Literal["start", "parity"] = "start"  # "parity": the published rule, which turns 5 frames into 8

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent along height and along width."""
        return 2 ** (len(self.block_out_channels) - 1)

    def __post_init__(self):
        stages, ratio = len(self.block_out_channels), self.temporal_compression_ratio
        if ratio not in (1, 2, 4, 8) or 2 ** (stages - 1) < ratio:
            raise ValueError(f"temporal_compression_ratio is {ratio}; with {stages} stages it must be a power of two "
                             f"up to {2 ** (stages - 1)}")
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(f"block_out_channels has {width}, which norm_num_groups={self.norm_num_groups} "
                                 f"does not divide")
        _one_of("time_padding", self.time_padding, ("first", "zeros"))
        _one_of("norm_over", self.norm_over, ("chunk", "frame"))
        _one_of("first_frame", self.first_frame, ("start", "parity"))


@dataclass(frozen=True)
class TransformerConfig:
    """Expert transformer (paper 2.2). The defaults are CogVideoX-5B: 5,570,283,072 parameters."""

    num_attention_heads: int = 48
    attention_head_dim: int = 64
    num_layers: int = 42
    in_channels: int = 16  # 32 where an image latent is concatenated on channels
    out_channels: int = 16
    patch_size: int = 2
    patch_size_t: int | None = None  # None: patches of one frame (Conv2d); 2: the 1.5 models (Linear)
    text_embed_dim: int = 4096
    max_text_seq_length: int = 226
    time_embed_dim: int = 512
    ofs_embed_dim: int | None = None  # 512 in 1.5-5b-i2v
    sample_height: int = 60  # latents
    sample_width: int = 90
    sample_frames: int = 49  # pixel frames
    temporal_compression_ratio: int = 4
    spatial_interpolation_scale: float = 1.875  # of the sincos table: 480 / 256
    temporal_interpolation_scale: float = 1.0
    norm_eps: float = 1e-5
    position: Literal["rope", "sincos", "learned", "rope+learned", "none"] = "rope"
    position_scaling: Literal["interpolate", "extrapolate"] = "interpolate"  # of RoPE away from the base grid
    # departures
    modulation: Literal["expert", "shared", "separate"] = "expert"  # "separate": MMDiT, own weights for text
    attention: Literal["full", "factorised"] = "full"  # "factorised": 2D + 1D

    @property
    def width(self) -> int:
        """Model width d = heads x head dimension."""
        return self.num_attention_heads * self.attention_head_dim

    def __post_init__(self):
        _one_of("position", self.position, ("rope", "sincos", "learned", "rope+learned", "none"))
        _one_of("position_scaling", self.position_scaling, ("interpolate", "extrapolate"))
        _one_of("modulation", self.modulation, ("expert", "shared", "separate"))
        _one_of("attention", self.attention, ("full", "factorised"))
        if "rope" in self.position and self.attention_head_dim % 16:
            raise ValueError(f"attention_head_dim is {self.attention_head_dim}; 3D RoPE splits it 2:3:3 over time, "
                             f"height and width, so it must be a multiple of 16")
        if self.position == "sincos" and self.width % 16:
            raise ValueError(f"width is {self.width}; the 3D sincos table needs a multiple of 16")


@dataclass(frozen=True)
class ScheduleConfig:
    """Noise schedule (paper 2.2 and 3). Zero terminal SNR and v-prediction are always on unless a field says not."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    snr_shift_scale: float = 1.0  # 3.0 in the 2B
    sampler: Literal["ddim", "dpm"] = "ddim"  # the published demos: DDIM for 2B, DPM for 5B
    # departures
    rescale_betas_zero_snr: bool = True
    prediction_type: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"

    def __post_init__(self):
        _one_of("sampler", self.sampler, ("ddim", "dpm"))
        _one_of("prediction_type", self.prediction_type, ("v_prediction", "epsilon", "sample"))
        if self.snr_shift_scale <= 0:
            raise ValueError(f"snr_shift_scale is {self.snr_shift_scale}; it must be above 0")


@dataclass(frozen=True)
class TextConfig:
    """T5 encoder. The defaults are T5 v1.1 XXL, which the published models use."""

    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    vocab_size: int = 32128
    feed_forward_proj: str = "gated-gelu"


@dataclass(frozen=True)
class Preset:
    """One whole model: the sizes of its parts and the video that it makes by default."""

    name: str
    vae: VAEConfig
    transformer: TransformerConfig
    schedule: ScheduleConfig
    text: TextConfig
    fps: int = 8
    image_to_video: bool = False

    @property
    def num_frames(self) -> int:
        """Frames of a default clip."""
        return self.transformer.sample_frames

    @property
    def height(self) -> int:
        """Height of a default clip in pixels."""
        return self.vae.sample_height

    @property
    def width(self) -> int:
        """Width of a default clip in pixels."""
        return self.vae.sample_width


def _one_of(name: str, value, valid: tuple) -> None:
    if value not in valid:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, valid))}")


_VAE_5B = VAEConfig(scaling_factor=0.7)
_MODEL_15 = TransformerConfig(patch_size_t=2, sample_height=300, sample_width=300, sample_frames=81,
                              position_scaling="extrapolate")
_VAE_15 = replace(_VAE_5B, sample_height=768, sample_width=1360)


def _small_transformer(vae: VAEConfig, frames: int, text: TextConfig, **fields) -> TransformerConfig:
    factor = vae.spatial_compression_ratio
    return TransformerConfig(
        in_channels=vae.latent_channels, out_channels=vae.latent_channels, text_embed_dim=text.d_model,
        sample_height=vae.sample_height // factor, sample_width=vae.sample_width // factor, sample_frames=frames,
        position_scaling="extrapolate", **fields)


_TEXT_TOY = TextConfig(d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, vocab_size=128)
_VAE_MICRO = VAEConfig(latent_channels=8, block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8,
                       scaling_factor=1.0, sample_height=32, sample_width=32)
_VAE_TOY = VAEConfig(latent_channels=16, block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=8,
                     scaling_factor=1.0, sample_height=64, sample_width=64)
_VAE_SMALL = VAEConfig(latent_channels=16, block_out_channels=(64, 128, 128, 256), layers_per_block=2,
                       norm_num_groups=16, scaling_factor=1.0, sample_height=128, sample_width=128)

PRESETS = {preset.name: preset for preset in (
    Preset("micro", _VAE_MICRO,
           _small_transformer(_VAE_MICRO, 9, _TEXT_TOY, num_attention_heads=4, attention_head_dim=48, num_layers=6,
                              max_text_seq_length=20, time_embed_dim=64),
           ScheduleConfig(), _TEXT_TOY),
    Preset("toy", _VAE_TOY,
           _small_transformer(_VAE_TOY, 17, _TEXT_TOY, num_attention_heads=4, attention_head_dim=64, num_layers=6,
                              max_text_seq_length=32, time_embed_dim=64),
           ScheduleConfig(), _TEXT_TOY),
    Preset("small", _VAE_SMALL,
           _small_transformer(_VAE_SMALL, 49, replace(_TEXT_TOY, d_model=256, d_ff=512, num_layers=4),
                              num_attention_heads=8, attention_head_dim=64, num_layers=12,
                              max_text_seq_length=64, time_embed_dim=256),
           ScheduleConfig(), replace(_TEXT_TOY, d_model=256, d_ff=512, num_layers=4)),
    Preset("2b", VAEConfig(), TransformerConfig(num_attention_heads=30, num_layers=30, position="sincos"),
           ScheduleConfig(snr_shift_scale=3.0), TextConfig()),
    Preset("5b", _VAE_5B, TransformerConfig(), ScheduleConfig(sampler="dpm"), TextConfig()),
    Preset("5b-i2v", _VAE_5B, TransformerConfig(in_channels=32, position="rope+learned"),
           ScheduleConfig(sampler="dpm"), TextConfig(), image_to_video=True),
    Preset("1.5-5b", _VAE_15, _MODEL_15, ScheduleConfig(sampler="dpm"), TextConfig(), fps=16),
    Preset("1.5-5b-i2v", replace(_VAE_15, invert_scale_latents=True),
           replace(_MODEL_15, in_channels=32, ofs_embed_dim=512),
           ScheduleConfig(sampler="dpm"), TextConfig(), fps=16, image_to_video=True),
)}


def preset(name: str) -> Preset:
    """The preset called `name`. Raises ValueError, with the names there are, if there is none."""
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]
