"""Text to video, image to video and video to video, one sampling loop for all three (paper 2 and appendix D).

    pipe = minicogvx.load("toy")
    video = pipe("a red circle moves right")                       # t h w 3, in 0..1
    video = pipe("a red circle moves right", image=picture)        # begins with this picture
    video = pipe("a red circle moves right", video=film, strength=0.8)
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.diffusion.guidance import dynamic_guidance_scale, guide
from minicogvx.diffusion.samplers import DDIMSampler, DPMSampler, draw_noise
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.diffusion.timesteps import start_index
from minicogvx.presets import ScheduleConfig
from minicogvx.room import refuse_giants
from minicogvx.text import TextEncoder
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE
from minicogvx.vae.tiling import tiled_decode, tiled_encode

OFS = 2.0  # the constant that 1.5-5b-i2v was trained with
Video = Float[Tensor, "t h w 3"]
Tile = bool | tuple[int, int]  # False: the VAE sees whole frames; True: tiles of half its sample size; or their pixels


class Pipeline:
    """A VAE, a transformer, a noise schedule and a text encoder that belong together.

    `unconditional` says what "no caption" is: "empty" encodes the empty caption, as diffusers does; "zeros" is a zero
    tensor, as in the authors' own program. A negative prompt takes its place in either case. `guidance_scale` is what
    this model samples with unless told otherwise; 6 is the published one.

    Two ways to need less memory: `pipe.tile = True` sends frames through the VAE tile by tile (vae/tiling.py), and
    `pipe.offload("cuda")` keeps only the network at work on the GPU. Whatever is given may lie on any device.
    """

    tile: Tile = False  # of every call that does not say otherwise
    _turns_on: torch.device | None = None  # where the networks take turns; None: they stay where they are

    def __init__(self, vae: CausalVAE, transformer: ExpertTransformer, schedule: ScheduleConfig, text: TextEncoder,
                 fps: int = 8, unconditional: Literal["empty", "zeros"] = "empty", guidance_scale: float = 6.0):
        if unconditional not in ("empty", "zeros"):
            raise ValueError(f"unconditional is {unconditional!r}; it must be 'empty' or 'zeros'")
        self.vae, self.transformer, self.text = vae, transformer, text
        self.schedule_config, self.schedule = schedule, NoiseSchedule(schedule)
        self.fps, self.unconditional, self.guidance_scale = fps, unconditional, guidance_scale

    @property
    def num_frames(self) -> int:
        """Frames of a clip by default."""
        return self.transformer.config.sample_frames

    @property
    def height(self) -> int:
        """Height by default, in pixels."""
        return self.transformer.config.sample_height * self.vae.config.spatial_compression_ratio

    @property
    def width(self) -> int:
        """Width by default, in pixels."""
        return self.transformer.config.sample_width * self.vae.config.spatial_compression_ratio

    @property
    def takes_image_channels(self) -> bool:
        """Was the transformer trained to see an image latent beside the noisy one?"""
        return self.transformer.config.in_channels == 2 * self.vae.config.latent_channels

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._turns_on or self.transformer.proj_out.weight.device

    def to(self, *target) -> "Pipeline":
        """Moves all networks to a device or a dtype. A device ends what `offload` began."""
        if any(isinstance(part, (str, torch.device)) for part in target):
            self._turns_on = None
        for part in self._parts:
            part.to(*target)
        return self

    def offload(self, device: str | torch.device) -> "Pipeline":
        """From now on text encoder, transformer and VAE take turns on `device`, and wait in the CPU's memory.

        The numbers stay the same. Each turn costs the time to move the weights there and back: seconds for the 5B.
        """
        self.to("cpu")
        self._turns_on = torch.device(device)
        return self

    def __call__(self, prompt: str, image: Float[Tensor, "h w 3"] | None = None, video: Video | None = None,
                 strength: float = 0.8, negative_prompt: str = "", num_frames: int | None = None,
                 height: int | None = None, width: int | None = None, num_inference_steps: int = 50,
                 guidance_scale: float | None = None, dynamic_guidance: str | None = None,
                 seed: int = 0, on_step: Callable[[int, int], None] | None = None, tile: Tile | None = None) -> Video:
        """A video of `prompt`, `t h w 3` in 0..1, float32 on the CPU. The same seed gives the same video.

        Args:
            image: first frame, in 0..1. A model with image channels sees its latent; for any other model the latent of
                the first frame is put back at every step at the right noise level.
            video: a clip to change, in 0..1; noised to `strength` (0 keeps it, 1 forgets it) and denoised from there.
            guidance_scale: 1 is no guidance, None the model's own. `dynamic_guidance`: None, "published" or "meant".
            on_step: called with (steps done, steps in all).
            tile: None is the pipeline's own; see `Tile`.

        Raises:
            ValueError: before any work, with one sentence that names what does not fit.
        """
        latents = self.sample([prompt], image=None if image is None else image[None],
                              video=None if video is None else video[None], strength=strength,
                              negative_prompt=negative_prompt, num_frames=num_frames, height=height, width=width,
                              num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
                              dynamic_guidance=dynamic_guidance, seed=seed, on_step=on_step, tile=tile)
        return self.decode(latents, tile)[0]

    @torch.no_grad()
    def sample(self, prompts: list[str], image: Float[Tensor, "b h w 3"] | None = None,
               video: Float[Tensor, "b t h w 3"] | None = None, strength: float = 0.8, negative_prompt: str = "",
               num_frames: int | None = None, height: int | None = None, width: int | None = None,
               num_inference_steps: int = 50, guidance_scale: float | None = None,
               dynamic_guidance: str | None = None, seed: int = 0,
               on_step: Callable[[int, int], None] | None = None,
               latents: Float[Tensor, "b c lt lh lw"] | None = None,
               tile: Tile | None = None) -> Float[Tensor, "b c _ lh lw"]:
        """Scaled latents of one video a prompt, all in one batch; the arguments of `__call__`, with a batch in front.

        They lie where the pipeline computes. `latents`: starting noise, where it is not to be drawn from `seed`. Where
        patches span two latent frames and the video's count is odd, one frame more is denoised in front (published) and
        dropped at the end.
        """
        tile = self.tile if tile is None else tile
        shape, front = self._latent_shape(prompts, image, video, num_frames, height, width, tile)
        generator = torch.Generator().manual_seed(seed)
        kind = {"ddim": DDIMSampler, "dpm": DPMSampler}[self.schedule_config.sampler]
        sampler = kind(self.schedule, num_inference_steps)
        start = start_index(strength, num_inference_steps) if video is not None else 0
        guidance_scale = self.guidance_scale if guidance_scale is None else guidance_scale
        scales = [dynamic_guidance_scale(guidance_scale, i, int(t), num_inference_steps, dynamic_guidance)
                  for i, t in enumerate(sampler.timesteps)]
        text = self._text_features(prompts, negative_prompt)                       # 2b n d_text: without, with caption
        known = None if image is None else self._encode(image[:, None], generator, tile, still=True)
        film = None if video is None else self._with_front(self._encode(video, generator, tile), front)
        if latents is None:
            latents = draw_noise(shape, generator, self._dtype, self.device)       # b c t h w
        noise = latents.to(self.device, self._dtype)
        with self._at_work(self.transformer):
            latents = self._denoise(noise, sampler, start, text, known, film, scales, front, generator, on_step)
        return latents[:, :, front:]

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c lt lh lw"],
               tile: Tile | None = None) -> Float[Tensor, "b t h w 3"]:
        """Pixels in 0..1 of scaled latents, float32 on the CPU, where they can be shown and written."""
        tile = self.tile if tile is None else tile
        with self._at_work(self.vae):
            weight = next(self.vae.parameters())
            latents = (latents.to(weight.device) / self.vae.config.scaling_factor).to(weight.dtype)
            video = tiled_decode(self.vae, latents, _size_of(tile)) if tile else self.vae.decode(latents)
            return rearrange(video.cpu().float() / 2 + 0.5, "b c t h w -> b t h w c").clamp(0, 1)

    # ---- what the loop is made of

    def _denoise(self, noise, sampler, start, text, known, film, scales, front, generator, on_step):
        """The loop: from noise, or from a noised film at step `start`, to clean latents."""
        latents, x0, steps = noise, None, len(sampler.timesteps)
        if film is not None:
            latents = film if start == steps else self._noised(film, noise, sampler.timesteps[start])
        for i in range(start, steps):
            t = sampler.timesteps[i]
            if known is not None and not self.takes_image_channels:
                latents = self._put_back(latents, self._noised(known, noise[:, :, :1], t), front)
            output = self._predict(latents, t, text, known, scales[i])
            latents, x0 = sampler.step(output, i, latents, x0, generator)
            if on_step:
                on_step(i - start + 1, steps - start)
        if known is not None and not self.takes_image_channels:
            latents = self._put_back(latents, known, front)
        return latents

    def _predict(self, latents, t, text, known, scale):
        """The guided model output: unconditional first, both in one batch."""
        if known is not None and self.takes_image_channels:
            beside = torch.zeros_like(latents)
            beside[:, :, :1] = known
            latents = torch.cat([latents, beside], dim=1)
        batch = len(latents)
        if scale == 1:
            text = text[batch:]
        else:
            latents = torch.cat([latents, latents])
        t = t.to(latents.device).expand(len(latents))
        ofs = torch.full_like(t, OFS, dtype=latents.dtype) if self.transformer.config.ofs_embed_dim else None
        output = self.transformer(latents, t, text, ofs).float()
        return output if scale == 1 else guide(*output.chunk(2), scale)

    def _text_features(self, prompts, negative_prompt):
        for word in sorted({word for prompt in prompts for word in self.text.unknown_words(prompt)}):
            warnings.warn(f"this model has never seen the word {word!r}; it will not know what to show", stacklevel=3)
        with self._at_work(self.text):
            features = self.text.encode([negative_prompt] * len(prompts) + prompts)
        if self.unconditional == "zeros" and not negative_prompt:
            features[:len(prompts)] = 0
        return features.to(self.device, self._dtype)

    def _encode(self, video, generator, tile=False, still=False):
        """Scaled latents of pixels `b t h w 3`, sampled from the posterior."""
        config = self.vae.config
        with self._at_work(self.vae):
            weight = next(self.vae.parameters())
            video = (rearrange(video, "b t h w c -> b c t h w") * 2 - 1).to(weight.device, weight.dtype)
            posterior = tiled_encode(self.vae, video, _size_of(tile)) if tile else self.vae.encode(video)
        latents = posterior.sample(generator).to(self.device)
        inverted = still and config.invert_scale_latents
        return (latents / config.scaling_factor if inverted else latents * config.scaling_factor).to(self._dtype)

    @contextmanager
    def _at_work(self, part) -> Iterator[None]:
        """While open, `part` is where the networks take turns; alone, as the one before has left it."""
        if self._turns_on is not None:
            part.to(self._turns_on)
        try:
            yield
        finally:
            if self._turns_on is not None:
                part.to("cpu")

    @property
    def _parts(self):
        return self.vae, self.transformer, self.text

    def _noised(self, latents, noise, t):
        return self.schedule.add_noise(latents, noise, int(t))

    def _put_back(self, latents, known, front):
        """The known first latent, in its place and in that of the frame that only fills a temporal patch."""
        frames = 1 + front
        return torch.cat([known.to(latents.dtype).expand(-1, -1, frames, -1, -1), latents[:, :, frames:]], dim=2)

    def _with_front(self, film, front):
        return torch.cat([film[:, :, :1].expand(-1, -1, front, -1, -1), film], dim=2)

    def _latent_shape(self, prompts, image, video, num_frames, height, width, tile):
        """(b, c, t, h, w) of the latents and how many of the t lie in front of the video; checks every input."""
        for prompt in prompts:
            if not prompt.strip():
                raise ValueError('the prompt is empty; say what to show, such as "a red circle moves right"')
        self.text.tokens(prompts)  # raises for an overlong caption
        if image is not None and video is not None:
            raise ValueError("both an image and a video are given; pass one of them")
        if self.takes_image_channels and image is None:
            raise ValueError("this model makes videos from an image; pass one as image=")
        time, space = self.vae.config.temporal_compression_ratio, self.vae.config.spatial_compression_ratio
        frames, height, width = num_frames or self.num_frames, height or self.height, width or self.width
        if frames % time != 1 % time:
            low = max((frames - 1) // time * time + 1, 1)
            raise ValueError(f"num_frames is {frames}; it must be {time}k + 1, such as {low} or {low + time}")
        unit = space * self.transformer.config.patch_size
        for name, size in (("height", height), ("width", width)):
            if size % unit:
                raise ValueError(f"{name} is {size}; it must be a multiple of {unit}")
        refuse_giants(self.vae.config, self.transformer.config, (len(prompts), frames, height, width), self.device,
                      self._dtype, bool(tile))
        for name, given, want in (("image", image, (height, width)), ("video", video, (frames, height, width))):
            if given is not None and tuple(given.shape[1:-1]) != want:
                raise ValueError(f"the {name} is {'x'.join(map(str, given.shape[1:-1]))}; it must be "
                                 f"{'x'.join(map(str, want))}")
            if given is not None and not (torch.isfinite(given).all() and given.min() >= 0 and given.max() <= 1):
                raise ValueError(f"the {name} holds values outside 0..1 or NaN; divide 8-bit pixels by 255")
        latent_frames = (frames - 1) // time + 1
        front = -latent_frames % (self.transformer.config.patch_size_t or 1)
        channels = self.vae.config.latent_channels
        return (len(prompts), channels, front + latent_frames, height // space, width // space), front

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.proj_out.weight.dtype


def _size_of(tile: Tile) -> tuple[int, int] | None:
    return None if tile is True else tile


def load(name_or_folder: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
         offload: bool = False) -> Pipeline:
    """The shipped model ("toy") or any diffusers pipeline folder, ready to sample; see `interop.load`."""
    from minicogvx.interop import load as load_folder

    return load_folder(name_or_folder, device, dtype, offload)
