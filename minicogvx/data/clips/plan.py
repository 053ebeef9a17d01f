"""Which pieces of which films are encoded, at which length and size: decided before anything is encoded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minicogvx.data.clips.fingerprints import file_fingerprint, number
from minicogvx.data.films.folder import Problem, VideoClip, clip_bucket
from minicogvx.engine.ranks import Ranks, on_each
from minicogvx.presets import VAEConfig
from minicogvx.ranges import RANGES, valid_frames


@dataclass(frozen=True)
class CacheSettings:
    """Length, size and rate of the clips in a cache."""

    num_frames: int  # at most; 4k + 1
    height: int  # pixels; of all clips, or the area of the buckets
    width: int
    fps: int | float
    bucketed: bool = True  # each clip at the size, of equal area, that keeps most of it; False: all at height x width
    mixed_lengths: bool = True  # as published (section 3.1); False: videos shorter than num_frames are left out
    # At most this many pieces of one clip, evenly spread, never overlapping. By default the first alone: a caption
    # describes the whole clip, and may not fit each piece of a long one. `data curate` cuts films into shots instead.
    windows: int = 1
    first_frame: bool = False  # also the pixels of the first frame, for image to video

    def __post_init__(self):
        for name, like in (("num_frames", "sample_frames"), ("height", "sample_height"), ("width", "sample_width")):
            least, most = RANGES[like]
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from {least} to {most}")
        if self.windows < 1:
            raise ValueError(f"windows is {self.windows}; it must be 1 or more")
        if not 0 < self.fps <= 240:
            raise ValueError(f"fps is {self.fps}; it must be above 0 and at most 240")

    def check(self, vae: VAEConfig) -> None:
        """Raises ValueError for a length or size that this VAE cannot encode."""
        step, pixels = frame_step(vae), size_step(vae)
        if (self.num_frames - 1) % step:
            raise ValueError(f"num_frames is {self.num_frames}; it must be {valid_frames(self.num_frames, step)}")
        if not self.bucketed and (self.height % pixels or self.width % pixels):
            raise ValueError(f"the size is {self.height}x{self.width}; both sides must be multiples of {pixels}")

    def lengths(self, vae: VAEConfig) -> tuple[int, ...]:
        """The lengths of videos, ascending; each piece gets the longest that fits. Pictures have one frame."""
        return clip_lengths(self.num_frames, frame_step(vae)) if self.mixed_lengths else (self.num_frames,)


@dataclass(frozen=True)
class CacheItem:
    """One piece of a clip: where it starts, its length and its size."""

    clip: VideoClip
    start: float  # seconds from the clip's own start
    frames: int
    height: int  # pixels
    width: int

    @property
    def bucket(self) -> tuple[int, int, int]:
        """Frames, height, width in pixels, which must agree within a batch."""
        return self.frames, self.height, self.width

    @property
    def second(self) -> float:
        """Where it starts in the file."""
        return round(self.clip.start + self.start, 4)


@dataclass(frozen=True)
class Piece:
    """An item with hashes of it (key), of the film's content and of its path."""

    item: CacheItem
    key: int
    film: int
    path: int


def frame_step(vae: VAEConfig) -> int:
    """The VAE preserves lengths of k times this many frames, plus one."""
    return vae.temporal_compression_ratio * (2 if vae.first_frame == "parity" else 1)


def size_step(vae: VAEConfig) -> int:
    """Pixels of one patch of 2 x 2 latents."""
    return 2 * vae.spatial_compression_ratio


def clip_lengths(num_frames: int, step: int) -> tuple[int, ...]:
    """At most four lengths, evenly spread up to `num_frames`, each a multiple of `step` plus one.

    For 49 frames and steps of 4: 13, 25, 37, 49. The clips of a batch have one length and one size. With few lengths
    there are many clips of each, so that batches differ; the end of a film that is cut off is short.
    """
    steps = (num_frames - 1) // step
    return tuple(sorted({steps * quarter // 4 * step + 1 for quarter in (1, 2, 3, 4)} - ({1} if steps else set())))


def plan_items(clips: Sequence[VideoClip], settings: CacheSettings,
               vae: VAEConfig) -> tuple[list[CacheItem], list[Problem]]:
    """The pieces to encode, those of one bucket side by side, and the clips that are too short."""
    items, problems, lengths = [], [], settings.lengths(vae)
    for clip in clips:
        there = clip.frames_at(settings.fps)
        frames = 1 if clip.is_image else max((length for length in lengths if length <= there), default=0)
        if not frames:
            problems.append(Problem(clip.name, f"has {there} frames at {settings.fps:g} fps; it must have at least "
                                               f"{lengths[0]}"))
            continue
        size = clip_bucket(clip, settings.height, settings.width, size_step(vae)) if settings.bucketed else (
            settings.height, settings.width)
        slack = there - frames
        count = min(settings.windows, 1 + slack // frames)
        starts = [slack * i / (count - 1) if count > 1 else 0 for i in range(count)]
        items += [CacheItem(clip, int(start) / settings.fps, frames, *size) for start in starts]
    return sorted(items, key=lambda item: (item.bucket, item.clip.name, item.second)), problems


def keyed(items: Sequence[CacheItem], ranks: Ranks = Ranks()) -> tuple[list[Piece], list[Problem]]:
    """The items with their hashes. Each rank reads the ends of its share of the films.

    Films that are missing or unreadable become problems.
    """
    names = {item.clip.path: item.clip.name for item in items}

    def read_own() -> list[tuple[Path, str, str]]:
        return [_fingerprint(path) for path in list(names)[ranks.rank::ranks.world_size]]

    found = [each for part in on_each(read_own, ranks) for each in part]
    films = {path: number(film=mark) for path, mark, problem in found if not problem}
    pieces = [Piece(item, number(film=films[item.clip.path], second=item.second, size=item.bucket),
                    films[item.clip.path], number(path=os.path.abspath(item.clip.path)))
              for item in items if item.clip.path in films]
    return pieces, [Problem(names[path], problem) for path, _, problem in found if problem]


def _fingerprint(path: Path) -> tuple[Path, str, str]:
    """The path, the film's fingerprint and, if there is none, why."""
    try:
        return path, file_fingerprint(path), ""
    except OSError as error:
        return path, "", f"cannot be read: {error.strerror}"


def in_shards(sizes: Sequence[int], limit: int, ranks: int = 1) -> list[list[int]]:
    """The numbers of the items in each file: consecutive items, of about `limit` bytes in all, or fewer.

    Items have `sizes` in bytes. The files are about equally large, and as many for each of the `ranks`.
    """
    total, before = sum(sizes), 0
    files = ranks * max(1, -(-total // (limit * ranks)))
    found: dict[int, list[int]] = {}
    for i, size in enumerate(sizes):
        found.setdefault(before * files // total, []).append(i)
        before += size
    return list(found.values())
