"""Text to video, image to video and video to video, one sampling loop for all three (paper 2 and appendix D).

    pipe = minicogvx.load("toy")
    video = pipe("a red circle moves right")                       # t h w 3, in 0..1
    video = pipe("a red circle moves right", image=picture)        # begins with this picture
    video = pipe("a red circle moves right", video=film, strength=0.8)
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.diffusion.guidance import guidance_scales, guide
from minicogvx.diffusion.samplers import SAMPLERS, Generators, check_finite, draw_noise, randn
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.diffusion.timesteps import start_index
from minicogvx.presets import ScheduleConfig, video_size
from minicogvx.ranges import check_number
from minicogvx.request import Request, Tile, check_tile_kind, takes_image_channels
from minicogvx.room import refuse_giants
from minicogvx.text import TextEncoder
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE
from minicogvx.vae.tiling import check_tile, tiled_decode, tiled_encode

OFS = 2.0  # the constant that 1.5-5b-i2v was trained with
Video = Float[Tensor, "t h w 3"]


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
        check_number("fps", fps)
        check_number("guidance_scale", guidance_scale, whole=False)
        self.vae, self.transformer, self.text = vae, transformer, text
        self.schedule_config, self.schedule = schedule, NoiseSchedule(schedule)
        self.fps, self.unconditional, self.guidance_scale = int(fps), unconditional, float(guidance_scale)

    @property
    def num_frames(self) -> int:
        """Frames of a clip by default."""
        return self.size()[0]

    @property
    def height(self) -> int:
        """Height by default, in pixels."""
        return self.size()[1]

    @property
    def width(self) -> int:
        """Width by default, in pixels."""
        return self.size()[2]

    def size(self, num_frames: int | None = None, height: int | None = None,
             width: int | None = None) -> tuple[int, int, int]:
        """Frames, height and width in pixels of a video; what is None is the model's own."""
        return video_size(self.vae.config, self.transformer.config, num_frames, height, width)

    @property
    def takes_image_channels(self) -> bool:
        """Was the transformer trained to see an image latent beside the noisy one?"""
        return takes_image_channels(self.vae.config, self.transformer.config)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._turns_on or self.transformer.proj_out.weight.device

    def to(self, *target) -> "Pipeline":
        """Moves all networks to a device or a dtype. A device ends what `offload` began."""
        if any(isinstance(part, (str, torch.device)) for part in target):
            self._turns_on = None
        for part in (self.vae, self.transformer, self.text):
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
                 seed: int = 0, on_step: Callable[[int, int], None] | None = None, tile: Tile | None = None,
                 sampler: str | None = None) -> Float[Tensor, "_ h w 3"]:
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

        Raises:
            ValueError: before any work, with one sentence that names what does not fit; later where a network's output
                is not finite.
        """
        latents = self.sample([prompt], image=_batch_of_one(image), video=_batch_of_one(video), strength=strength,
                              negative_prompt=negative_prompt, num_frames=num_frames, height=height, width=width,
                              num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
                              dynamic_guidance=dynamic_guidance, seed=seed, on_step=on_step, tile=tile, sampler=sampler)
        return self.decode(latents, tile)[0]

    @torch.no_grad()
    def sample(self, prompts: list[str], image: Float[Tensor, "_ h w 3"] | None = None,
               video: Float[Tensor, "_ t h w 3"] | None = None, strength: float = 0.8, negative_prompt: str = "",
               num_frames: int | None = None, height: int | None = None, width: int | None = None,
               num_inference_steps: int = 50, guidance_scale: float | None = None,
               dynamic_guidance: str | None = None, seed: int | Sequence[int] = 0,
               on_step: Callable[[int, int], None] | None = None,
               latents: Float[Tensor, "b c _ lh lw"] | None = None, tile: Tile | None = None,
               sampler: str | None = None) -> Float[Tensor, "b c _ lh lw"]:
        """Scaled latents of one video a prompt, all in one batch; the arguments of `__call__`, with a batch in front.

        They lie where the pipeline computes. One image or video serves all prompts. `seed`: one for the batch, or one
        for each prompt, whose video is then the same in any batch. `latents`: starting noise, where it is not to be
        drawn from `seed`. Where patches span two latent frames and the video's count is odd, one frame more is denoised
        in front (published) and dropped at the end.
        """
        request = Request(self.vae.config, self.transformer.config, prompts, negative_prompt, image, video, latents,
                          *self.size(num_frames, height, width), num_inference_steps, strength,
                          self.guidance_scale if guidance_scale is None else guidance_scale, dynamic_guidance,
                          self.schedule_config.sampler if sampler is None else sampler, seed,
                          self.tile if tile is None else tile)
        self._check(request)
        steps, generator = SAMPLERS[request.sampler](self.schedule, num_inference_steps), request.generator()
        text = self._text_features(request)                                        # 2b n d_text: without, with caption
        first = self._latents_of(image, request, generator, still=True)            # b c 1 h w, or None
        film = self._latents_of(video, request, generator)                         # b c t h w, or None
        if latents is None:
            latents = draw_noise(request.shape, generator, self._dtype)            # b c t h w
        with self._at_work(self.transformer):
            latents = self._denoise(request, steps, latents.to(self.device, self._dtype), text, first, film, generator,
                                    on_step)
        return check_finite(latents[:, :, request.front:], "the clean latent")

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
        with self._at_work(self.vae):
            weight = next(self.vae.parameters())
            latents = (latents.to(weight.device) / self.vae.config.scaling_factor).to(weight.dtype)
            video = tiled_decode(self.vae, latents, _size_of(tile)) if tile else self.vae.decode(latents)
            video = check_finite(video.cpu().float(), "the VAE's video")  # before the clamp, which would hide infinity
            return rearrange(video / 2 + 0.5, "b c t h w -> b t h w c").clamp(0, 1)

    # ---- before the loop

    def _check(self, request: Request) -> None:
        """Raises ValueError for what cannot be made, of any model, of this one, or on this machine."""
        request.check(self.text)
        if request.tile:
            check_tile(self.vae, _size_of(request.tile))
        size = len(request.prompts), request.num_frames, request.height, request.width
        refuse_giants(request.vae, request.transformer, size, self.device, self._dtype, bool(request.tile))

    def _text_features(self, request):
        prompts = list(request.prompts)
        for word in sorted({word for prompt in prompts for word in self.text.unknown_words(prompt)}):
            warnings.warn(f"this model has never seen the word {word!r}; it will not know what to show", stacklevel=3)
        with self._at_work(self.text):
            features = self.text.encode([request.negative_prompt] * len(prompts) + prompts)
        if self.unconditional == "zeros" and not request.negative_prompt:
            features[:len(prompts)] = 0
        return check_finite(features, "the text encoder's output").to(self.device, self._dtype)

    def _latents_of(self, pixels, request, generator, still=False):
        """Latents of the given picture or film for each prompt; the first of a film also fills what lies in front."""
        if pixels is None:
            return None
        latents = self._encode(pixels[:, None] if still else pixels, generator, request.tile, still)
        latents = latents.expand(len(request.prompts), -1, -1, -1, -1)
        return latents if still else torch.cat([latents[:, :, :1]] * request.front + [latents], dim=2)

    def _encode(self, video, generator: Generators, tile=False, still=False):
        """Scaled latents of pixels `b t h w 3`, sampled from the posterior; of one video, one for each generator."""
        config = self.vae.config
        with self._at_work(self.vae):
            weight = next(self.vae.parameters())
            video = (rearrange(video, "b t h w c -> b c t h w") * 2 - 1).to(weight.device, weight.dtype)
            posterior = tiled_encode(self.vae, video, _size_of(tile)) if tile else self.vae.encode(video)
        mean = posterior.mean
        count = len(generator) if isinstance(generator, list) else len(mean)
        latents = mean + posterior.std * randn((count, *mean.shape[1:]), generator, mean.dtype, mean.device)
        check_finite(latents, "what the VAE makes of the given pixels")
        inverted = still and config.invert_scale_latents and self.takes_image_channels
        latents = latents / config.scaling_factor if inverted else latents * config.scaling_factor
        return latents.to(self.device, self._dtype)

    # ---- the loop

    def _denoise(self, request, sampler, noise, text, first, film, generator, on_step):
        """From noise, or from a noised film at the step where its strength begins, to clean latents."""
        timesteps, x0 = sampler.timesteps.tolist(), None
        n = len(timesteps)
        start = 0 if film is None else start_index(request.strength, n)
        scales = guidance_scales(request.guidance_scale, sampler.timesteps[start:], request.dynamic_guidance)
        beside, known = (first, None) if self.takes_image_channels else (None, first)  # seen, or put back at each step
        latents = noise
        if film is not None:
            latents = film if start == n else self.schedule.add_noise(film, noise, timesteps[start])
        for i in range(start, n):
            if known is not None:
                as_noisy = self.schedule.add_noise(known, noise[:, :, :1], timesteps[i])
                latents = self._put_back(latents, as_noisy, request.front)
            output = self._predict(latents, timesteps[i], text, beside, scales[i - start])
            latents, x0 = sampler.step(output, i, latents, x0, generator)
            if on_step:
                on_step(i - start + 1, n - start)
        return latents if known is None else self._put_back(latents, known, request.front)

    def _predict(self, latents, t, text, beside, scale):
        """The guided model output: unconditional first, both in one batch."""
        if beside is not None:  # the picture in frame 0, zeros after it
            latents = torch.cat([latents, F.pad(beside, (0, 0, 0, 0, 0, latents.shape[2] - 1))], dim=1)
        if scale == 1:
            text = text[len(latents):]
        else:
            latents = torch.cat([latents, latents])
        t = torch.full((len(latents),), t, device=latents.device)
        ofs = torch.full_like(t, OFS, dtype=latents.dtype) if self.transformer.config.ofs_embed_dim else None
        output = self.transformer(latents, t, text, ofs).float()
        return output if scale == 1 else guide(*output.chunk(2), scale)

    def _put_back(self, latents, known, front):
        """The known first latent, in its place and in that of the frame that only fills a temporal patch."""
        frames = 1 + front
        return torch.cat([known.to(latents.dtype).expand(-1, -1, frames, -1, -1), latents[:, :, frames:]], dim=2)

    # ---- where the networks are

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
    def _dtype(self) -> torch.dtype:
        return self.transformer.proj_out.weight.dtype


def _batch_of_one(pixels):
    return pixels[None] if isinstance(pixels, Tensor) else pixels  # whatever else it is, it will be refused by name


def _size_of(tile: Tile) -> tuple[int, int] | None:
    return None if tile is True else tile
