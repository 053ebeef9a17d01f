"""Every size of the model as one frozen dataclass: from `micro`, trained in minutes, to the published 5B.

Field names are those of the `diffusers` config files wherever both have the field. Fields below a
"departures" comment are ours: each defaults to the published behaviour. Most exist for an ablation; two are better
where the published one fails, and `micro`, `toy` and `small` set them: `first_frame` and `position_scaling`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

from minicogvx.ranges import check_fields, valid_frames
from minicogvx.suggest import did_you_mean


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
    first_frame: Literal["parity", "start"] = "parity"  # published: 5 frames come back as 8; "start": as 5
    resampling: Literal["plain", "residual"] = "plain"  # "residual": re-shaping shortcuts (DC-AE)

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent along height and along width."""
        return 2 ** (len(self.block_out_channels) - 1)

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames, height and width of the latents of a video: the first frame has one latent frame to itself."""
        space = self.spatial_compression_ratio
        return (frames - 1) // self.temporal_compression_ratio + 1, height // space, width // space

    def check_video(self, shape: Sequence[int], whole: bool = True) -> None:
        """Raises ValueError unless this VAE encodes videos of this shape, `b c t h w` in pixels.

        `whole` False: a piece of a video, whose number of frames follows from the pieces around it.
        """
        _check_five_axes("the video has", shape)
        _, channels, frames, height, width = shape
        step, space = self.temporal_compression_ratio, self.spatial_compression_ratio
        if channels != self.in_channels:
            raise ValueError(f"the video has {channels} channels; this VAE takes {self.in_channels}")
        if height % space or width % space:
            raise ValueError(f"the video is {height}x{width}; height and width must be multiples of {space}")
        if whole and (frames < 1 or self.first_frame == "start" and (frames - 1) % step):
            rule = "at least 1" if self.first_frame == "parity" else valid_frames(frames, step)
            raise ValueError(f"the video has {frames} frames; it must have {rule}")

    def check_latents(self, shape: Sequence[int]) -> None:
        """Raises ValueError unless this VAE decodes latents of this shape, `b c t h w`."""
        _check_five_axes("the latents have", shape)
        if shape[1] != self.latent_channels:
            raise ValueError(f"the latents have {shape[1]} channels; this VAE takes {self.latent_channels}")
        if not shape[2]:
            raise ValueError("the latents have 0 frames; there must be at least 1")

    def __post_init__(self):
        check_fields(self)
        stages, ratio = len(self.block_out_channels), self.temporal_compression_ratio
        if not 1 <= stages <= 8:
            raise ValueError(f"block_out_channels has {stages} entries; it must have from 1 to 8, one a stage")
        if ratio not in (1, 2, 4, 8) or 2 ** (stages - 1) < ratio:
            raise ValueError(f"temporal_compression_ratio is {ratio}; with {stages} stages it must be a power of two "
                             f"up to {2 ** (stages - 1)}")
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(f"block_out_channels has {width}, which norm_num_groups={self.norm_num_groups} "
                                 f"does not divide")
        for one, other in pairwise(self.block_out_channels) if self.resampling == "residual" else ():
            if 4 * one % other or 4 * other % one:
                raise ValueError(f"block_out_channels has {one} beside {other}; with resampling='residual' each must "
                                 f"divide four times the other")


def _check_five_axes(they_have: str, shape: Sequence[int]) -> None:
    if len(shape) != 5 or 0 in (shape[0], *shape[3:]):
        raise ValueError(f"{they_have} the shape {tuple(shape)}; it must be (b, c, t, h, w), each at least 1")


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
    value_residual: bool = False  # values of the first block are mixed into those of the others, by a learnt share

    @property
    def width(self) -> int:
        """Model width d = heads x head dimension."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def image_to_video(self) -> bool:
        """Whether the latent of a first frame is concatenated to the noisy ones, on channels."""
        return self.in_channels == 2 * self.out_channels

    @property
    def patch(self) -> tuple[int, int, int]:
        """Frames, height and width of a patch, in latents."""
        return self.patch_size_t or 1, self.patch_size, self.patch_size

    def whole_patches(self, latent_frames: int) -> int:
        """That many latent frames, rounded up to whole patches: copies of the first fill up the front."""
        return latent_frames + -latent_frames % self.patch[0]

    def num_patches(self, latent_size: tuple[int, int, int]) -> int:
        """Video tokens of latents of (frames, height, width), where frames are rounded up to whole patches."""
        frames, height, width = latent_size
        return self.whole_patches(frames) // self.patch[0] * (height // self.patch[1]) * (width // self.patch[2])

    @property
    def sample_latent_size(self) -> tuple[int, int, int]:
        """Frames, height and width of the latents that the position tables are made for."""
        frames = (self.sample_frames - 1) // self.temporal_compression_ratio + 1
        return self.whole_patches(frames), self.sample_height, self.sample_width

    def __post_init__(self):
        check_fields(self)
        if "rope" in self.position and self.attention_head_dim % 16:
            raise ValueError(f"attention_head_dim is {self.attention_head_dim}; 3D RoPE splits it 2:3:3 over time, "
                             f"height and width, so it must be a multiple of 16")
        if self.position == "sincos" and self.width % 16:
            raise ValueError(f"width is {self.width}; the 3D sincos table needs a multiple of 16")
        if self.width % 2:
            raise ValueError(f"width is {self.width}; the timestep's sines and cosines need an even number")
        if self.value_residual and (self.attention != "full" or self.modulation == "separate"):
            raise ValueError(f"value_residual is True with attention={self.attention!r} and modulation="
                             f"{self.modulation!r}; it goes with 'full', and 'expert' or 'shared'")
        if self.ofs_embed_dim not in (None, self.time_embed_dim) or self.ofs_embed_dim and self.ofs_embed_dim % 2:
            raise ValueError(f"ofs_embed_dim is {self.ofs_embed_dim}; it is added to the time embedding, so it must be "
                             f"{self.time_embed_dim}, and even")
        for name in ("sample_height", "sample_width"):
            size, learned = getattr(self, name), "learned" in self.position
            if size < self.patch_size or learned and size % self.patch_size:
                raise ValueError(f"{name} is {size}; it must be {'a multiple of' if learned else 'at least'} "
                                 f"patch_size={self.patch_size}")


@dataclass(frozen=True)
class ScheduleConfig:
    """Noise schedule (paper 2.2 and 3). Zero terminal SNR and v-prediction by default."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    snr_shift_scale: float = 1.0  # 3.0 in the 2B
    sampler: Literal["ddim", "dpm"] = "ddim"  # the published demos: DDIM for 2B, DPM for 5B
    timestep_spacing: Literal["trailing", "leading", "linspace"] = "trailing"  # of the steps that sampling visits
    # departures
    rescale_betas_zero_snr: bool = True
    prediction_type: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"

    def __post_init__(self):
        check_fields(self)
        if not self.beta_start < self.beta_end:
            raise ValueError(f"beta_start is {self.beta_start} and beta_end {self.beta_end}; they must satisfy "
                             f"0 < beta_start < beta_end < 1")
        if self.prediction_type == "epsilon" and self.rescale_betas_zero_snr:
            raise ValueError("prediction_type is 'epsilon' with rescale_betas_zero_snr=True; the last timestep holds "
                             "no signal to recover x0 from, so set rescale_betas_zero_snr=False or predict v")


@dataclass(frozen=True)
class TextConfig:
    """T5 encoder. The defaults are T5 v1.1 XXL, which the published models use."""

    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    vocab_size: int = 32128
    feed_forward_proj: Literal["gated-gelu", "gated-silu", "gated-relu", "gelu", "silu", "relu"] = "gated-gelu"

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class Preset:
    """One whole model: the sizes of its parts and the video that it makes by default."""

    name: str
    vae: VAEConfig
    transformer: TransformerConfig
    schedule: ScheduleConfig
    text: TextConfig
    fps: int = 8

    def __post_init__(self):
        check_fields(self)
        if self.name in PUBLISHED and self.vae.resampling != "plain":
            raise ValueError(f"vae.resampling is {self.vae.resampling!r}; in the published model {self.name!r} it must "
                             f"be 'plain', so give this one another name")

    @property
    def video_size(self) -> "VideoSize":
        """Frames, height and width in pixels of a default video."""
        return video_size(self.vae, self.transformer)


class VideoSize(NamedTuple):
    """The size of a video in pixels."""

    num_frames: int
    height: int
    width: int


def video_size(vae: VAEConfig, transformer: TransformerConfig, num_frames: int | None = None, height: int | None = None,
               width: int | None = None) -> VideoSize:
    """The size of a video that this model makes; what is None is the model's own.

    That is the VAE's sample size. The transformer's is the grid of its position tables, which in the 1.5 models, with
    300 x 300 latents, is no video's; but where the table is learned, it fits no other size.
    """
    own = vae.sample_height, vae.sample_width
    if "learned" in transformer.position:
        own = (vae.spatial_compression_ratio * side for side in (transformer.sample_height, transformer.sample_width))
    own = transformer.sample_frames, *own
    return VideoSize(*(mine if given is None else given for given, mine in zip((num_frames, height, width), own)))


PUBLISHED = ("2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v")
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
                       scaling_factor=1.0, sample_height=32, sample_width=32, first_frame="start")
_VAE_TOY = VAEConfig(latent_channels=16, block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=8,
                     scaling_factor=1.0, sample_height=64, sample_width=64, first_frame="start")
_VAE_SMALL = VAEConfig(latent_channels=16, block_out_channels=(64, 128, 128, 256), layers_per_block=2,
                       norm_num_groups=16, scaling_factor=1.0, sample_height=128, sample_width=128, first_frame="start")

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
           ScheduleConfig(sampler="dpm"), TextConfig()),
    Preset("1.5-5b", _VAE_15, _MODEL_15, ScheduleConfig(sampler="dpm"), TextConfig(), fps=16),
    Preset("1.5-5b-i2v", replace(_VAE_15, invert_scale_latents=True),
           replace(_MODEL_15, in_channels=32, ofs_embed_dim=512),
           ScheduleConfig(sampler="dpm"), TextConfig(), fps=16),
)}


def preset(name: str) -> Preset:
    """The preset called `name`. Raises ValueError, with the names there are, if there is none."""
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}"
                         f"{did_you_mean(name, PRESETS)}")
    return PRESETS[name]
