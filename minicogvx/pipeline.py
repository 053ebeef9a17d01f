"""Text to video, image to video and video to video, one sampling loop for all three (paper 2 and appendix D).

    pipe = minicogvx.load("toy")
    video = pipe("a red circle moves right")                       # t h w 3, in 0..1
    video = pipe("a red circle moves right", image=picture)        # begins with this picture
    video = pipe("a red circle moves right", prefix=frames)        # begins with these frames, 5 or 9 of them, say
    video = pipe("a red circle moves right", video=before, strength=0.8)

The loop itself is `sample_loop` in `diffusion/sampling.py`.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.advice import Advice
from minicogvx.compat import choose_device, choose_dtype
from minicogvx.diffusion.conditioning import FirstFramesPutBack, ImageChannels, NoisedVideo, TextOnly
from minicogvx.diffusion.guidance import guidance_scales
from minicogvx.diffusion.samplers import SAMPLERS, DDIMSampler, DPMSampler, Generators, check_finite, draw_noise
from minicogvx.diffusion.sampling import sample_loop
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.interop import find_folder
from minicogvx.interop.diffusers_folder import Parts, read_folder, write_folder
from minicogvx.interop.folder_configs import read_configs
from minicogvx.interop.lora import Adapter, read_adapters, use_adapters
from minicogvx.interop.safetensors_files import MAX_SHARD_BYTES
from minicogvx.pixels import Tile, check_tile_kind, decode_pixels, encode_pixels
from minicogvx.presets import ScheduleConfig, VideoSize, video_size
from minicogvx.ranges import check_number
from minicogvx.request import STRENGTH, Request, check_request
from minicogvx.text import TextEncoder
from minicogvx.transformer.caching import check_cache, with_cache
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE

Video = Float[Tensor, "t h w 3"]


class Pipeline:
    """A VAE, a transformer, a noise schedule and a text encoder that belong together.

    `unconditional` says what "no caption" is: "empty" encodes the empty caption, as diffusers does; "zeros" is a zero
    tensor, as in the authors' own program. A negative prompt takes its place in either case. `guidance_scale` is what
    this model samples with unless told otherwise; 6 is the published one.

    Two ways to need less memory: `pipe.tile = True` sends frames through the VAE tile by tile (vae/tiling.py), and
    `pipe.offload("cuda")` keeps only the network at work on the GPU. Whatever is given may lie on any device.
    One way to need less time: `pipe.cache = 0.1` skips blocks where they change little (transformer/caching.py).
    """

    tile: Tile = False  # tile and cache are those of every call that does not say otherwise
    cache: float = 0.0
    _turns_on: torch.device | None = None  # where the networks take turns; None: they stay where they are

    def __init__(self, vae: CausalVAE, transformer: ExpertTransformer, schedule: ScheduleConfig, text: TextEncoder,
                 fps: int = 8, unconditional: Literal["empty", "zeros"] = "empty", guidance_scale: float = 6.0):
        if unconditional not in ("empty", "zeros"):
            raise ValueError(f"unconditional is {unconditional!r}; it must be 'empty' or 'zeros'")
        check_number("fps", fps)
        check_number("guidance_scale", guidance_scale, whole=False)
        self.vae, self.transformer, self.text = vae, transformer, text
        self.schedule_config, self.schedule = schedule, NoiseSchedule(schedule)
        self.fps, self.unconditional, self.guidance_scale = int(fps), unconditional, float(guidance_scale)

    @classmethod
    def load(cls, name_or_folder: str | Path, device: torch.device | str | None = None,
             dtype: torch.dtype | str | None = None, offload: bool = False,
             lora: str | Path | None = None) -> "Pipeline":
        """Open a shipped model by name, such as "toy", or any diffusers CogVideoX folder.

        Args:
            device: None is MINICOGVX_DEVICE, else the fastest here (`compat.choose_device`).
            dtype: number format of the weights; None is MINICOGVX_DTYPE, else the fastest of the device.
            offload: the networks wait in the memory of the CPU and take turns on the device (`Pipeline.offload`).
            lora: a LoRA file of this model or its folder, such as "runs/mine"; the transformer then computes with its
                adapters (`interop.lora.use_lora`).

        Raises ValueError for a name that is neither, a device that is not here and a format that it cannot compute in,
        FileNotFoundError or ValueError for a folder that does not fit and, before weights are read, for a LoRA that is
        not there or does not fit.
        """
        folder = find_folder(name_or_folder)
        device = choose_device(None if device is None else str(device))
        dtype, adapters = choose_dtype(device, dtype), _adapters_for(folder, lora)
        pipe = cls(*read_folder(folder, "cpu" if offload else device, dtype))
        use_adapters(pipe.transformer, adapters)
        return pipe.offload(device) if offload else pipe

    def save(self, folder: str | Path, dtype: torch.dtype | None = None, overwrite: bool = False,
             allow_departures: bool = False, max_shard_bytes: int = MAX_SHARD_BYTES) -> Path:
        """Write a folder that diffusers opens; arguments and errors are those of `diffusers_folder.write_folder`."""
        parts = Parts(self.vae, self.transformer, self.schedule_config, self.text, self.fps, self.unconditional,
                      self.guidance_scale)
        return write_folder(parts, folder, dtype, overwrite, allow_departures, max_shard_bytes)

    @property
    def video_size(self) -> VideoSize:
        """Frames, height and width in pixels of a video by default."""
        return video_size(self.vae.config, self.transformer.config)

    @property
    def image_to_video(self) -> bool:
        """Whether the transformer sees an image's latent beside the noisy ones, and so needs an image."""
        return self.transformer.config.image_to_video

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._turns_on or self.transformer.proj_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format that the latents have."""
        return self.transformer.proj_out.weight.dtype

    def to(self, *target) -> "Pipeline":
        """Moves all networks to a device or a dtype. A device ends what `offload` began."""
        if any(isinstance(part, (str, torch.device)) for part in target):
            self._turns_on = None
        for network in (self.vae, self.transformer, self.text):
            network.to(*target)
        return self

    def offload(self, device: str | torch.device) -> "Pipeline":
        """From now on text encoder, transformer and VAE take turns on `device`, and wait in the CPU's memory.

        The numbers stay the same. Each turn costs the time to move the weights there and back: seconds for the 5B.
        """
        self.to("cpu")
        self._turns_on = torch.device(device)
        return self

    def __call__(self, prompt: str, image: Float[Tensor, "h w 3"] | None = None, video: Video | None = None,
                 strength: float = STRENGTH, negative_prompt: str = "", num_frames: int | None = None,
                 height: int | None = None, width: int | None = None, num_inference_steps: int = 50,
                 guidance_scale: float | None = None, dynamic_guidance: str | None = None,
                 seed: int = 0, on_step: Callable[[int, int], None] | None = None, tile: Tile | None = None,
                 sampler: str | None = None, cache: float | None = None,
                 prefix: Float[Tensor, "_ h w 3"] | None = None) -> Float[Tensor, "_ h w 3"]:
        """A video of `prompt`, `t h w 3` in 0..1, float32 on the CPU. The same seed gives the same video.

        Args:
            image: first frame, in 0..1. A model with image channels sees its latent; for any other model the latent of
                the first frame is put back at every step at the right noise level.
            video: a clip to change, in 0..1; noised to `strength` (0 keeps it, 1 forgets it) and denoised from there.
            guidance_scale: 1 is no guidance, 0 ignores the caption, None: the model's own.
            dynamic_guidance: None, "published" or "meant"; in video to video it counts the steps that are taken.
            on_step: called with (steps done, steps in all).
            tile: None is the pipeline's own; see `Tile`.
            sampler: "ddim" or "dpm"; None is the model's own.
            cache: by how much, relative to its size, the first block's work may change between steps for the others to
                be skipped (`transformer/caching.py`); 0 skips none, None is the pipeline's own.

        Raises:
            ValueError: before any work, with one sentence that names what does not fit; later where a network's output
                is not finite.
        """
        latents = self.sample([prompt], image=_batch_of_one(image), video=_batch_of_one(video), strength=strength,
                              negative_prompt=negative_prompt, num_frames=num_frames, height=height, width=width,
                              num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
                              dynamic_guidance=dynamic_guidance, seed=seed, on_step=on_step, tile=tile, sampler=sampler,
                              cache=cache, prefix=_batch_of_one(prefix))
        return self.decode(latents, tile)[0]

    @torch.no_grad()
    def sample(self, prompts: list[str], image: Float[Tensor, "_ h w 3"] | None = None,
               video: Float[Tensor, "_ t h w 3"] | None = None, strength: float = STRENGTH, negative_prompt: str = "",
               num_frames: int | None = None, height: int | None = None, width: int | None = None,
               num_inference_steps: int = 50, guidance_scale: float | None = None,
               dynamic_guidance: str | None = None, seed: int | Sequence[int] = 0,
               on_step: Callable[[int, int], None] | None = None,
               latents: Float[Tensor, "b c _ lh lw"] | None = None, tile: Tile | None = None,
               sampler: str | None = None, cache: float | None = None,
               prefix: Float[Tensor, "_ t2 h w 3"] | None = None) -> Float[Tensor, "b c _ lh lw"]:
        """Scaled latents of one video a prompt, all in one batch; the arguments of `__call__`, with a batch in front.

        They lie where the pipeline computes. One image or video serves all prompts. `seed`: one for the batch, or one
        for each prompt, whose video is then the same in any batch. `latents`: starting noise, where it is not to be
        drawn from `seed`. Where patches span two latent frames and the video's count is odd, one frame more is denoised
        in front (published) and dropped at the end.
        """
        request = Request(self.vae.config, self.transformer.config, prompts, negative_prompt, image, video, prefix,
                          latents, video_size(self.vae.config, self.transformer.config, num_frames, height, width),
                          num_inference_steps, strength,
                          self.guidance_scale if guidance_scale is None else guidance_scale, dynamic_guidance,
                          self.schedule_config.sampler if sampler is None else sampler, seed,
                          self.tile if tile is None else tile)
        check_request(request, self.text, self.device, self.dtype)
        cache = self.cache if cache is None else cache
        check_cache(cache, self.transformer)
        steps, generator = SAMPLERS[request.sampler](self.schedule, num_inference_steps), request.generator()
        text = self._text_features(request)                                   # 2b n d_text: without, with caption
        condition = self._condition(request, steps, generator)
        scales = guidance_scales(request.guidance_scale, steps.timesteps[condition.start:], dynamic_guidance)
        with _at_work(self.transformer, self._turns_on):
            network = with_cache(self.transformer, cache, len(prompts)) if cache else self.transformer
            latents = sample_loop(network, steps, text, condition, scales, generator, on_step)       # b c t h w
        return check_finite(latents[:, :, request.pad_frames:], "the clean latent")

    def extend(self, film: Float[Tensor, "_ h w 3"], prompt: str, overlap: int = 9, num_inference_steps: int = 50,
               guidance_scale: float | None = None, seed: int = 0) -> Float[Tensor, "_ h w 3"]:
        """`film`, t h w 3 in 0..1, continued by one video of the model's own length: its last `overlap` frames are the
        prefix of that video, whose other frames are appended. Call it again for a longer one.

        Raises ValueError for an overlap that is no prefix (4k + 1 frames), or longer than the film.
        """
        if not 1 <= overlap <= len(film):
            raise ValueError(f"overlap is {overlap}; it must be from 1 to {len(film)}, the frames of the film")
        new = self(prompt, prefix=film[-overlap:], num_inference_steps=num_inference_steps,
                   guidance_scale=guidance_scale, seed=seed)
        return torch.cat([film.float().cpu(), new[overlap:]])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c lt lh lw"],
               tile: Tile | None = None) -> Float[Tensor, "b t h w 3"]:
        """Pixels in 0..1 of scaled latents, float32 on the CPU, where they can be shown and written.

        Raises ValueError for latents that are no `b c lt lh lw` of this VAE, for a tile that cannot be, and for NaN or
        infinity, in or out.
        """
        if latents.ndim != 5:
            raise ValueError(f"the latents have the shape {tuple(latents.shape)}; it must be b c t h w")
        tile = self.tile if tile is None else tile
        check_tile_kind(tile)
        with _at_work(self.vae, self._turns_on):
            return decode_pixels(self.vae, latents, tile)

    def _text_features(self, request: Request) -> Float[Tensor, "b2 n d"]:
        """Features of the negative prompt, once for each caption, then of the captions."""
        prompts = list(request.prompts)
        if unknown := sorted({word for prompt in prompts for word in self.text.unknown_words(prompt)}):
            warnings.warn(f"this model has never seen {', '.join(map(repr, unknown))}; it will not know what to show",
                          Advice, stacklevel=3)
        with _at_work(self.text, self._turns_on):
            features = self.text.encode([request.negative_prompt] * len(prompts) + prompts)
        if self.unconditional == "zeros" and not request.negative_prompt:
            features[:len(prompts)] = 0
        return check_finite(features, "the text encoder's output").to(self.device, self.dtype)

    def _condition(self, request: Request, sampler: DDIMSampler | DPMSampler, generator: Generators) -> TextOnly:
        """What the request gives besides captions. The posterior's noise is drawn first, then that of the video."""
        image = None if request.image is None else request.image[:, None]
        pixels = next((given for given in (image, request.video, request.prefix) if given is not None), None)
        given = None if pixels is None else self._encode(pixels, request, generator)   # b c t h w; t is 1 for an image
        noise = draw_noise(request.shape, generator, self.dtype) if request.latents is None else request.latents
        noise = noise.to(self.device, self.dtype)
        if given is None:
            return TextOnly(noise)
        if request.video is not None:
            video = torch.cat([given[:, :, :1]] * request.pad_frames + [given], dim=2)
            return NoisedVideo(noise, video, sampler, request.strength)
        if self.image_to_video:
            return ImageChannels(noise, given)
        return FirstFramesPutBack(noise, given, self.schedule, request.pad_frames)

    def _encode(self, video: Float[Tensor, "_ t h w 3"], request: Request,
                generator: Generators) -> Float[Tensor, "b c lt lh lw"]:
        """Scaled latents of the given pixels for each prompt."""
        inverted = self.vae.config.invert_scale_latents and self.image_to_video
        with _at_work(self.vae, self._turns_on):
            latents = encode_pixels(self.vae, video, generator, request.tile, inverted)
        return latents.to(self.device, self.dtype).expand(len(request.prompts), -1, -1, -1, -1)


def _adapters_for(folder: Path, lora: str | Path | None) -> dict[str, Adapter]:
    """The adapters in a file, for the transformer in a folder, whose weights are not read for that."""
    if lora is None:
        return {}
    with torch.device("meta"):
        shape = ExpertTransformer(read_configs(folder).transformer)
    return read_adapters(shape, lora)


@contextmanager
def _at_work(network, device: torch.device | None) -> Iterator[None]:
    """While open, `network` is on `device`, and afterwards on the CPU again; with None it stays where it is."""
    if device is not None:
        network.to(device)
    try:
        yield
    finally:
        if device is not None:
            network.to("cpu")


def _batch_of_one(pixels):
    return pixels[None] if isinstance(pixels, Tensor) else pixels  # whatever else it is, it will be refused by name
