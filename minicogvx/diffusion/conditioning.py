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
    zeros. A network that was trained with several first frames sees those, then zeros."""

    given: Float[Tensor, "b c k h w"]

    def network_input(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c_in t h w"]:
        """Twice the channels: first the noisy latents, then those that are given."""
        later_frames = latents.shape[2] - self.given.shape[2]
        return torch.cat([latents, F.pad(self.given, (0, 0, 0, 0, 0, later_frames))], dim=1)


@dataclass(frozen=True)
class FirstFramesPutBack(TextOnly):
    """With any other network: the first frames are known, so they are put back before each step, as noisy as the step
    expects them. The network itself cannot tell them from its own."""

    given: Float[Tensor, "b c k h w"]
    schedule: NoiseSchedule
    pad_frames: int = 0  # copies of the first in front of it, which only fill a patch

    def before(self, latents: Float[Tensor, "b c t h w"], t: int) -> Float[Tensor, "b c t h w"]:
        """The given frames at the noise level of `t`, always with the noise of the start, then the other frames."""
        known = self._known(latents)
        return self._put_back(latents, self.schedule.add_noise(known, self.noise[:, :, :known.shape[2]], t))

    def last(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The given frames without noise, then the other frames."""
        return self._put_back(latents, self._known(latents))

    def _known(self, latents: Tensor) -> Float[Tensor, "b c k2 h w"]:
        return torch.cat([self.given[:, :, :1]] * self.pad_frames + [self.given], dim=2).to(latents.dtype)

    @staticmethod
    def _put_back(latents: Tensor, known: Tensor) -> Tensor:
        return torch.cat([known, latents[:, :, known.shape[2]:]], dim=2)


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
