"""What a pipeline is asked for: each input checked, and held against the others, before any work begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from minicogvx.diffusion.samplers import SAMPLERS, Generators
from minicogvx.diffusion.timesteps import start_index
from minicogvx.pixels import Tile, check_tile_kind, tile_size
from minicogvx.presets import TransformerConfig, VAEConfig, VideoSize, video_size
from minicogvx.ranges import check_number, shown, valid_frames
from minicogvx.room import refuse_giants
from minicogvx.text import TextEncoder
from minicogvx.vae.tiling import check_tile
from minicogvx.visible import many

_MOST = 2**63 - 1  # the largest size of a tensor, and the largest seed
_AXES = {"image": "height x width x 3"} | dict.fromkeys(("video", "prefix"), "frames x height x width x 3")
STRENGTH = 0.8  # by default, how much a video is changed


@dataclass(frozen=True)
class Request:
    """The arguments of `Pipeline.sample` for a model of these sizes; where one was not given, the model's own."""

    vae: VAEConfig
    transformer: TransformerConfig
    prompts: list[str]
    negative_prompt: str
    image: Tensor | None    # b h w 3, or 1 h w 3 for all prompts
    video: Tensor | None    # b t h w 3, or 1 t h w 3
    prefix: Tensor | None   # b t2 h w 3, or 1 t2 h w 3: the first frames
    latents: Tensor | None  # b c lt lh lw
    size: VideoSize
    num_inference_steps: int
    strength: float
    guidance_scale: float
    dynamic_guidance: str | None
    sampler: str
    seed: int | Sequence[int]
    tile: Tile

    @property
    def shape(self) -> tuple[int, ...]:
        """b, c, t, h, w of the latents; the first `pad_frames` of the t frames only fill a patch."""
        frames, height, width = self.vae.latent_size(*self.size)
        return (len(self.prompts), self.vae.latent_channels, self.transformer.whole_patches(frames), height, width)

    @property
    def pad_frames(self) -> int:
        """Latent frames in front of the video, which only fill a patch that spans several."""
        return self.shape[2] - self.vae.latent_size(*self.size)[0]

    def generator(self) -> Generators:
        """On the CPU, where all noise is drawn: one for the batch, or of several seeds one for each video."""
        if isinstance(self.seed, Integral):
            return torch.Generator().manual_seed(int(self.seed))
        return [torch.Generator().manual_seed(int(seed)) for seed in self.seed]


def check_request(request: Request, text: TextEncoder, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError, in one sentence, for the first input that is wrong or does not fit the others.

    Also for a video that the memory of `device` could never hold.
    """
    _check_prompts(request, text)
    given = [name for name in ("image", "video", "prefix") if getattr(request, name) is not None]
    if len(given) > 1:
        raise ValueError(f"both {_an(given[0])} and {_an(given[1])} are given; pass one of them")
    if request.transformer.image_to_video and not {"image", "prefix"} & set(given):
        raise ValueError("this model makes videos from an image; pass one as image=")
    _check_numbers(request)
    _check_choices(request)
    check_size(request.vae, request.transformer, *request.size)
    _check_pixels(request, "image", request.image, request.size[1:])
    _check_pixels(request, "video", request.video, request.size)
    _check_pixels(request, "prefix", request.prefix, (_prefix_frames(request), *request.size[1:]))
    _check_latents(request)
    if request.tile:
        check_tile(request.vae, tile_size(request.tile))
    refuse_giants(request.vae, request.transformer, (len(request.prompts), *request.size), device, dtype,
                  bool(request.tile))


def _an(name: str) -> str:
    return f"{'an' if name == 'image' else 'a'} {name}"


def _prefix_frames(request: Request) -> int:
    """Frames of the prefix, which must be whole latent frames, and fewer than the video has."""
    if not isinstance(request.prefix, Tensor) or request.prefix.ndim != 5:
        return request.size[0]  # there is none, or it is refused by its axes
    frames = request.prefix.shape[1]
    check_prefix_frames(request.vae, frames, request.size.num_frames)
    return frames


def check_prefix_frames(vae: VAEConfig, frames: int, of: int) -> None:
    """Raises ValueError unless a video of `of` frames can begin with `frames` given ones."""
    time = vae.temporal_compression_ratio
    if frames < 1 or frames % time != 1 % time or frames >= of:
        raise ValueError(f"the prefix has {frames} frames, and the video is to have {of}; it must be "
                         f"{valid_frames(frames, time)}, and fewer than the video's")


def _count_prompts(request: Request) -> str:
    return many(len(request.prompts), "prompt")


def _check_prompts(request: Request, text: TextEncoder) -> None:
    if not isinstance(request.prompts, (list, tuple)) or not request.prompts:
        raise ValueError(f"prompts is {shown(request.prompts)}; it must be a list of captions, one at least")
    for words in (*request.prompts, request.negative_prompt):
        if not isinstance(words, str):
            raise ValueError(f"a prompt is {shown(words)}; it must be text")
        if any("\ud800" <= letter <= "\udfff" for letter in words):  # what Python makes of bytes it cannot read
            raise ValueError(f"the prompt {shown(words)} is not UTF-8; write its letters in that encoding")
    if not all(prompt.strip() for prompt in request.prompts):
        raise ValueError('the prompt is empty; say what to show, such as "a red circle moves right"')
    text.tokens([*request.prompts, request.negative_prompt])  # raises for an overlong caption


def _check_numbers(request: Request) -> None:
    for name in ("num_frames", "height", "width"):
        _check_whole(name, getattr(request.size, name))
    _check_whole("num_inference_steps", request.num_inference_steps, 1)
    check_number("guidance_scale", request.guidance_scale, whole=False)
    if not isinstance(request.strength, Real) or isinstance(request.strength, bool):
        raise ValueError(f"strength is {shown(request.strength)}; it must be a number from 0 to 1")
    start_index(request.strength, request.num_inference_steps)  # raises for one outside
    if request.video is None and request.strength != STRENGTH:
        raise ValueError(f"strength is {request.strength}; it goes with a video, which is not given; leave it out")
    several = isinstance(request.seed, Sequence) and not isinstance(request.seed, (str, bytes))
    if several and len(request.seed) != len(request.prompts):
        raise ValueError(f"seed has {len(request.seed)} numbers for {_count_prompts(request)}; it must be one for all "
                         f"of them, or one for each")
    for seed in request.seed if several else (request.seed,):
        _check_whole("seed", seed, 0)


def _check_choices(request: Request) -> None:
    if request.sampler not in tuple(SAMPLERS):
        raise ValueError(f"sampler is {shown(request.sampler)}; it must be {' or '.join(map(repr, SAMPLERS))}")
    if request.dynamic_guidance not in (None, "published", "meant"):
        raise ValueError(f"dynamic_guidance is {shown(request.dynamic_guidance)}; it must be None, 'published' or "
                         f"'meant'")
    check_tile_kind(request.tile)


def _check_pixels(request: Request, name: str, given: Tensor | None, size: tuple[int, ...]) -> None:
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
    if len(given) not in (1, len(request.prompts)):
        raise ValueError(f"{len(given)} {name}s are given for {_count_prompts(request)}; give one for all of them, or "
                         f"one for each")
    if not (torch.isfinite(given).all() and given.min() >= 0 and given.max() <= 1):
        raise ValueError(f"the {name} holds values outside 0..1 or NaN; divide 8-bit pixels by 255")


def _check_latents(request: Request) -> None:
    if request.latents is None:
        return
    if not isinstance(request.latents, Tensor) or not request.latents.is_floating_point():
        raise ValueError(f"latents is {shown(request.latents)}; it must be a tensor of floating point numbers")
    if tuple(request.latents.shape) != request.shape:
        frames, height, width = request.size
        raise ValueError(f"latents has the shape {tuple(request.latents.shape)}; for {frames} frames of "
                         f"{height}x{width} and {_count_prompts(request)} it must be {request.shape}")
    if not torch.isfinite(request.latents).all():
        raise ValueError("latents holds NaN or infinity; noise must be finite")


def check_size(vae: VAEConfig, transformer: TransformerConfig, num_frames: int, height: int, width: int) -> None:
    """Raises ValueError, before any network is there, for a video that a model of these sizes cannot make."""
    time, space = vae.temporal_compression_ratio, vae.spatial_compression_ratio
    unit = space * transformer.patch_size
    if num_frames < 1 or num_frames % time != 1 % time:
        raise ValueError(f"num_frames is {num_frames}; it must be {valid_frames(num_frames, time)}")
    for name, value in (("height", height), ("width", width)):
        if value < 1 or value % unit:
            raise ValueError(f"{name} is {value}; it must be a multiple of {unit}, at least {unit}")
    frames, *size = vae.latent_size(num_frames, height, width)
    fits = (transformer.whole_patches(frames), *size) == transformer.sample_latent_size
    if "learned" in transformer.position and not fits:
        only = video_size(vae, transformer)
        raise ValueError(f"{num_frames} frames of {height}x{width} are asked for; this model has learned its "
                         f"positions, and makes {only.num_frames} frames of {only.height}x{only.width} alone")


def _check_whole(name: str, value, least: int | None = None) -> None:
    if not _is_whole(value) or abs(value) > _MOST or least is not None and value < least:
        more = "" if least is None else f"{least} or more and "
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number, {more}below 2^63")


def _is_whole(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
