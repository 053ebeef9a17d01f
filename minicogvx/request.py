"""What a pipeline is asked for: each input checked, and held against the others, before any work begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from minicogvx.diffusion.samplers import SAMPLERS, Generators
from minicogvx.diffusion.timesteps import start_index
from minicogvx.presets import TransformerConfig, VAEConfig
from minicogvx.ranges import check_number, shown
from minicogvx.text import TextEncoder
from minicogvx.transformer.embeddings import sample_latent_size

Tile = bool | tuple[int, int]  # False: the VAE sees whole frames; True: tiles of half its sample size; or their pixels
_MOST = 2**63 - 1  # the largest size of a tensor, and the largest seed
_AXES = {"image": "height x width x 3", "video": "frames x height x width x 3"}


@dataclass(frozen=True)
class Request:
    """The arguments of `Pipeline.sample` for a model of these sizes; where one was not given, the model's own."""

    vae: VAEConfig
    transformer: TransformerConfig
    prompts: list[str]
    negative_prompt: str
    image: Tensor | None    # b h w 3, or 1 h w 3 for all prompts
    video: Tensor | None    # b t h w 3, or 1 t h w 3
    latents: Tensor | None  # b c lt lh lw
    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    strength: float
    guidance_scale: float
    dynamic_guidance: str | None
    sampler: str
    seed: int | Sequence[int]
    tile: Tile

    @property
    def shape(self) -> tuple[int, ...]:
        """b, c, t, h, w of the latents; the first `front` of the t frames only fill a patch."""
        return (len(self.prompts), self.vae.latent_channels,
                *latent_size(self.vae, self.transformer, self.num_frames, self.height, self.width))

    @property
    def front(self) -> int:
        """Latent frames in front of the video, which only fill a patch that spans several."""
        return self.shape[2] - (self.num_frames - 1) // self.vae.temporal_compression_ratio - 1

    def check(self, text: TextEncoder) -> None:
        """Raises ValueError, in one sentence, for the first input that is wrong or does not fit the others."""
        self._check_prompts(text)
        if self.image is not None and self.video is not None:
            raise ValueError("both an image and a video are given; pass one of them")
        if takes_image_channels(self.vae, self.transformer) and self.image is None:
            raise ValueError("this model makes videos from an image; pass one as image=")
        self._check_numbers()
        self._check_choices()
        check_size(self.vae, self.transformer, self.num_frames, self.height, self.width)
        self._check_pixels("image", self.image, (self.height, self.width))
        self._check_pixels("video", self.video, (self.num_frames, self.height, self.width))
        self._check_latents()

    def generator(self) -> Generators:
        """On the CPU, where all noise is drawn: one for the batch, or of several seeds one for each video."""
        if isinstance(self.seed, Integral):
            return torch.Generator().manual_seed(int(self.seed))
        return [torch.Generator().manual_seed(int(seed)) for seed in self.seed]

    def _prompts(self) -> str:
        return f"{len(self.prompts)} prompt{'s' * (len(self.prompts) > 1)}"

    def _check_prompts(self, text: TextEncoder) -> None:
        if not isinstance(self.prompts, (list, tuple)) or not self.prompts:
            raise ValueError(f"prompts is {shown(self.prompts)}; it must be a list of captions, one at least")
        for words in (*self.prompts, self.negative_prompt):
            if not isinstance(words, str):
                raise ValueError(f"a prompt is {shown(words)}; it must be text")
            if any("\ud800" <= letter <= "\udfff" for letter in words):  # what Python makes of bytes it cannot read
                raise ValueError(f"the prompt {shown(words)} is not UTF-8; write its letters in that encoding")
        if not all(prompt.strip() for prompt in self.prompts):
            raise ValueError('the prompt is empty; say what to show, such as "a red circle moves right"')
        text.tokens([*self.prompts, self.negative_prompt])  # raises for an overlong caption

    def _check_numbers(self) -> None:
        for name in ("num_frames", "height", "width"):
            _check_whole(name, getattr(self, name))
        _check_whole("num_inference_steps", self.num_inference_steps, 1)
        check_number("guidance_scale", self.guidance_scale, whole=False)
        if not isinstance(self.strength, Real) or isinstance(self.strength, bool):
            raise ValueError(f"strength is {shown(self.strength)}; it must be a number from 0 to 1")
        start_index(self.strength, self.num_inference_steps)  # raises for one outside
        several = isinstance(self.seed, Sequence) and not isinstance(self.seed, (str, bytes))
        if several and len(self.seed) != len(self.prompts):
            raise ValueError(f"seed has {len(self.seed)} numbers for {self._prompts()}; it must be one for all of "
                             f"them, or one for each")
        for seed in self.seed if several else (self.seed,):
            _check_whole("seed", seed, 0)

    def _check_choices(self) -> None:
        if self.sampler not in tuple(SAMPLERS):
            raise ValueError(f"sampler is {shown(self.sampler)}; it must be {' or '.join(map(repr, SAMPLERS))}")
        if self.dynamic_guidance not in (None, "published", "meant"):
            raise ValueError(f"dynamic_guidance is {shown(self.dynamic_guidance)}; it must be None, 'published' or "
                             f"'meant'")
        check_tile_kind(self.tile)

    def _check_pixels(self, name: str, given: Tensor | None, size: tuple[int, ...]) -> None:
        if given is None:
            return
        if not isinstance(given, Tensor) or not given.is_floating_point():
            kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"the {name} is {kind}; it must be a tensor of floating point numbers in 0..1: divide "
                             f"8-bit pixels by 255")
        wanted, found = "x".join(map(str, size)), "x".join(map(str, given.shape[1:]))
        if given.ndim != len(size) + 2 or given.shape[-1] != 3:
            raise ValueError(f"the {name} is {found}; it must be {_AXES[name]}, here {wanted}x3")
        if given.shape[1:-1] != size:
            raise ValueError(f"the {name} is {found.rpartition('x')[0]}; it must be {wanted}")
        if len(given) not in (1, len(self.prompts)):
            raise ValueError(f"{len(given)} {name}s are given for {self._prompts()}; give one for all of them, or one "
                             f"for each")
        if not (torch.isfinite(given).all() and given.min() >= 0 and given.max() <= 1):
            raise ValueError(f"the {name} holds values outside 0..1 or NaN; divide 8-bit pixels by 255")

    def _check_latents(self) -> None:
        if self.latents is None:
            return
        if not isinstance(self.latents, Tensor) or not self.latents.is_floating_point():
            raise ValueError(f"latents is {shown(self.latents)}; it must be a tensor of floating point numbers")
        if tuple(self.latents.shape) != self.shape:
            raise ValueError(f"latents has the shape {tuple(self.latents.shape)}; for {self.num_frames} frames of "
                             f"{self.height}x{self.width} and {self._prompts()} it must be {self.shape}")
        if not torch.isfinite(self.latents).all():
            raise ValueError("latents holds NaN or infinity; noise must be finite")


def check_tile_kind(tile: Tile) -> None:
    """Raises ValueError for what is neither True nor False nor a height and a width."""
    pair = isinstance(tile, (tuple, list)) and len(tile) == 2 and all(map(_is_whole, tile))
    if not (isinstance(tile, bool) or pair):
        raise ValueError(f"tile is {shown(tile)}; it must be True, False, or height and width in pixels")


def takes_image_channels(vae: VAEConfig, transformer: TransformerConfig) -> bool:
    """Was the transformer trained to see an image latent beside the noisy one?"""
    return transformer.in_channels == 2 * vae.latent_channels


def latent_size(vae: VAEConfig, transformer: TransformerConfig, num_frames: int, height: int,
                width: int) -> tuple[int, int, int]:
    """Frames, height and width of the latents that are denoised; the frames are rounded up to whole patches."""
    frames, space = (num_frames - 1) // vae.temporal_compression_ratio + 1, vae.spatial_compression_ratio
    return frames + -frames % (transformer.patch_size_t or 1), height // space, width // space


def check_size(vae: VAEConfig, transformer: TransformerConfig, num_frames: int, height: int, width: int) -> None:
    """Raises ValueError, before any network is there, for a video that a model of these sizes cannot make."""
    time, space = vae.temporal_compression_ratio, vae.spatial_compression_ratio
    unit = space * transformer.patch_size
    if num_frames < 1 or num_frames % time != 1 % time:
        low = max((num_frames - 1) // time * time + 1, 1)
        raise ValueError(f"num_frames is {num_frames}; it must be {time}k + 1, such as {low} or {low + time}")
    for name, value in (("height", height), ("width", width)):
        if value < 1 or value % unit:
            raise ValueError(f"{name} is {value}; it must be a multiple of {unit}, at least {unit}")
    only = sample_latent_size(transformer)
    if "learned" in transformer.position and latent_size(vae, transformer, num_frames, height, width) != only:
        raise ValueError(f"{num_frames} frames of {height}x{width} are asked for; this model has learned its positions, "
                         f"and makes {transformer.sample_frames} frames of {only[1] * space}x{only[2] * space} alone")


def _check_whole(name: str, value, least: int | None = None) -> None:
    if not _is_whole(value) or abs(value) > _MOST or least is not None and value < least:
        more = "" if least is None else f"{least} or more and "
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number, {more}below 2^63")


def _is_whole(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
