"""What the VAE is trained on: batches of videos, drawn or read from films; the same on any number of ranks."""

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from minicogvx.data.clips.order import Order, number_of
from minicogvx.data.films.folder import VideoClip, failed, read_clip
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import crowded_scenes
from minicogvx.engine.ranks import Ranks
from minicogvx.presets import VAEConfig
from minicogvx.training.settings import WORLD_FPS, VAEStage, VAETraining

MEASURED = 16  # videos held back, at most


@dataclass(frozen=True)
class VideoPass:
    """The videos of one forward pass."""

    video: Float[Tensor, "b c t h w"]  # in -1..1
    seeds: list[int]  # one a video, of its latent's noise
    step: int  # of the whole training
    share: float  # of the videos of this rank in the step
    seed: int  # of the frames that LPIPS compares
    transform_seed: int = 0  # of the transform of equivariance, the same for all videos of the step

    @property
    def tokens(self) -> int:
        """None: a VAE has no tokens, so none are counted."""
        return 0


@runtime_checkable
class Videos(Protocol):
    """Where the videos of a training come from."""

    def batch(self, stage: VAEStage, size: tuple[int, int, int], within: int, step: int,
              own: slice) -> Float[Tensor, "b c t h w"]:
        """The videos `own` of the joint batch of a step, in -1..1.

        Args:
            size: frames, height and width in pixels.
            within: the step's number in its stage; `step`: in the whole training.
        """

    def held_back(self, stage: VAEStage, size: tuple[int, int, int]) -> Iterator[Float[Tensor, "c t h w"]]:
        """A few videos that `batch` never gives, always the same, one at a time. Raises ValueError if there is none."""


@dataclass(frozen=True)
class WorldVideos:
    """Clips of the shapes world, new ones in every step."""

    seed: int = 0

    def batch(self, stage: VAEStage, size: tuple[int, int, int], within: int, step: int,
              own: slice) -> Float[Tensor, "b c t h w"]:
        """Raises ValueError for a rate that the world does not have."""
        seed = self.seed * 10_000_000 + 1 + step
        rate = random.Random(seed).choice(stage.frame_rates)
        if rate % WORLD_FPS:
            raise ValueError(f"frame_rates is {stage.frame_rates}; of the shapes world they must be multiples of "
                             f"{WORLD_FPS}")
        return world_batch(stage.batch_size, seed, *size, rate, own, stage.crowd)

    def held_back(self, stage: VAEStage, size: tuple[int, int, int]) -> Iterator[Float[Tensor, "c t h w"]]:
        """At the first of the stage's rates."""
        yield from world_batch(MEASURED, 0, *size, stage.frame_rates[0])  # `batch` has other seeds, from 1 on


def world_batch(size: int, seed: int, num_frames: int, height: int, width: int, frame_rate: int = WORLD_FPS,
                own: slice = slice(None), crowd: int = 1) -> Float[Tensor, "b c t h w"]:
    """A batch of training clips of the shapes world as a VAE sees them, in -1..1; `own`: the clips that are wanted.

    `crowd`: each has the objects of so many scenes. At twice the frame rate the same number of frames shows the first
    half of the motion, in steps half as long.
    """
    times, scenes = frame_rate // WORLD_FPS, crowded_scenes(size, seed, crowd)[own]
    clips = render_batch(scenes, times * (num_frames - 1) + 1, height, width)[:, :num_frames]
    return clips.permute(0, 4, 1, 2, 3) * 2 - 1


class FilmVideos:
    """Pieces of films, from a random moment of each; every film once an epoch (paper 2.1)."""

    def __init__(self, clips: Sequence[VideoClip], seed: int = 0, measured: Sequence[VideoClip] = ()):
        """`measured`: other films, held back for measuring."""
        self.clips, self.seed, self.measured = list(clips), seed, list(measured)
        self._usable: dict[tuple[int, int], list[VideoClip]] = {}
        self._passed_over: set[str] = set()

    def batch(self, stage: VAEStage, size: tuple[int, int, int], within: int, step: int,
              own: slice) -> Float[Tensor, "b c t h w"]:
        """Raises ValueError if no film lasts long enough, or can be read."""
        usable = self.usable(size[0], max(stage.frame_rates))
        places = range(within * stage.batch_size, (within + 1) * stage.batch_size)[own]
        films = Order(len(usable), number_of("films", self.seed, step - within)).take(places.start, len(places))
        videos = []
        for place, film in zip(places, films):
            following = (usable[(film + i) % len(usable)] for i in range(len(usable)))
            videos.append(self._piece(following, stage, size, number_of("piece", self.seed, step, place)))
        return torch.stack(videos).permute(0, 4, 1, 2, 3) * 2 - 1

    def _piece(self, films: Iterable[VideoClip], stage: VAEStage, size: tuple[int, int, int],
               seed: int) -> Float[Tensor, "t h w 3"]:
        """A piece of the first of the films that can be read; the others are named once."""
        frames, height, width = size
        for clip in films:
            chance = random.Random(seed)
            rate = chance.choice([rate for rate in stage.frame_rates if clip.frames_at(rate) >= frames])
            start = chance.randint(0, clip.frames_at(rate) - frames) / rate
            try:
                return read_clip(clip, start, frames, rate, height, width)
            except (ValueError, OSError) as error:
                problem = failed(clip, error)
            if clip.name not in self._passed_over:
                self._passed_over.add(clip.name)
                tqdm.write(f"{problem}; the next film is taken", file=sys.stdout)  # above the progress bar
        raise ValueError(f"no film can be read; {problem}")

    def held_back(self, stage: VAEStage, size: tuple[int, int, int]) -> Iterator[Float[Tensor, "c t h w"]]:
        """The beginnings of films, at the first of the stage's rates."""
        frames, height, width = size
        rate = stage.frame_rates[0]
        long = [clip for clip in self.measured if clip.frames_at(rate) >= frames][:MEASURED]
        if not long:
            raise ValueError(f"none of {len(self.measured)} films that are held back has {frames} frames at {rate} "
                             f"frames per second; set held_back to a larger share, or vae.validate_every to 0")
        for clip in long:
            yield read_clip(clip, 0.0, frames, rate, height, width).permute(3, 0, 1, 2) * 2 - 1

    def usable(self, frames: int, rate: int) -> list[VideoClip]:
        """The films that last long enough. Raises ValueError if none does."""
        if (frames, rate) not in self._usable:
            self._usable[frames, rate] = [clip for clip in self.clips if clip.frames_at(rate) >= frames]
        if not self._usable[frames, rate]:
            raise ValueError(f"none of {len(self.clips)} films has {frames} frames at {rate} frames per second")
        return self._usable[frames, rate]


class VideoSteps(Dataset):
    """`steps[k]` is step k of a stage: the forward passes of this rank, a list of `VideoPass`."""

    def __init__(self, videos: Videos, training: VAETraining, number: int, config: VAEConfig,
                 ranks: Ranks = Ranks(), seed: int = 0):
        """`number`: of the stage."""
        self.videos, self.training, self.number, self.ranks, self.seed = videos, training, number, ranks, seed
        self.stage = training.stages[number]
        self.before = sum(stage.steps for stage in training.stages[:number])
        self.size = stage_size(self.stage, config)

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, within: int) -> list[VideoPass]:
        step, stage = self.before + within, self.stage
        own = self.ranks.part(stage.batch_size)
        video = self.videos.batch(stage, self.size, within, step, own)
        seeds = [number_of("latent", self.seed, step, place) for place in range(stage.batch_size)[own]]
        pieces = video.tensor_split(min(self.training.accumulate, len(video)))
        passes, first = [], 0
        for number, piece in enumerate(pieces):
            passes.append(VideoPass(piece, seeds[first:first + len(piece)], step, len(piece) / len(video),
                                    number_of("frames", self.seed, step, number),
                                    number_of("transform", self.seed, step)))
            first += len(piece)
        return passes


def stage_size(stage: VAEStage, config: VAEConfig) -> tuple[int, int, int]:
    """Frames, height and width in pixels of the videos of a stage; by default 17 frames of the VAE's own size."""
    return stage.size((17, config.sample_height, config.sample_width))
