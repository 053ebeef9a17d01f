"""What a video is made from besides its caption: nothing, a first frame, or another video (paper appendix D).

Each task says where the loop of `diffusion/sampling.py` begins, what changes before a step, what the network sees, and
what is done at the end. All latents are scaled, `b c t h w`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minicogvx.diffusion.samplers import DDIMSampler, DPMSampler
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.diffusion.timesteps import start_index


@dataclass(frozen=True)
class TextOnly:
    """Text to video: pure noise, and nothing but the caption. Each of the other tasks changes one thing of it."""

    noise: Float[Tensor, "b c t h w"]

    @property
    def start(self) -> int:
        """Index of the first step that is taken."""
        return 0

    def first(self) -> Float[Tensor, "b c t h w"]:
        """The latents that the first step begins with."""
        return self.noise

    def before(self, latents: Float[Tensor, "b c t h w"], t: int) -> Float[Tensor, "b c t h w"]:
        """The latents at timestep `t`, with whatever is known of them put in."""
        return latents

    def network_input(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c_in t h w"]:
        """The noisy latents, and what the network sees beside them."""
        return latents

    def last(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The clean latents, with whatever is known of them put in."""
        return latents


@dataclass(frozen=True)
class ImageChannels(TextOnly):
    """Image to video, with a network that was trained so: on channels of its own it sees the first frame's latent, then
    zeros."""

    image: Float[Tensor, "b c 1 h w"]

    def network_input(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c_in t h w"]:
        """Twice the channels: first the noisy latents, then the image's."""
        later_frames = latents.shape[2] - 1
        return torch.cat([latents, F.pad(self.image, (0, 0, 0, 0, 0, later_frames))], dim=1)


@dataclass(frozen=True)
class FirstFramePutBack(TextOnly):
    """Image to video, with any other network: the first frame is known, so it is put back before each step, as noisy as
    the step expects it."""

    image: Float[Tensor, "b c 1 h w"]
    schedule: NoiseSchedule
    pad_frames: int = 0  # in front of the first frame, which only fill a patch

    def before(self, latents: Float[Tensor, "b c t h w"], t: int) -> Float[Tensor, "b c t h w"]:
        """The image at the noise level of `t`, then the other frames."""
        return self._put_back(latents, self.schedule.add_noise(self.image, self.noise[:, :, :1], t))

    def last(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The image without noise, then the other frames."""
        return self._put_back(latents, self.image)

    def _put_back(self, latents: Tensor, image: Tensor) -> Tensor:
        frames = 1 + self.pad_frames
        return torch.cat([image.to(latents.dtype).expand(-1, -1, frames, -1, -1), latents[:, :, frames:]], dim=2)


@dataclass(frozen=True)
class NoisedVideo(TextOnly):
    """Video to video: begins with a video, noised to `strength`: 0 keeps it, 1 forgets it."""

    video: Float[Tensor, "b c t h w"]
    sampler: DDIMSampler | DPMSampler
    strength: float

    @property
    def start(self) -> int:
        """The weaker, the later."""
        return start_index(self.strength, len(self.sampler.timesteps))

    def first(self) -> Float[Tensor, "b c t h w"]:
        """The noised video, or the video itself where no step is left."""
        if self.start == len(self.sampler.timesteps):
            return self.video
        return self.sampler.schedule.add_noise(self.video, self.noise, int(self.sampler.timesteps[self.start]))
