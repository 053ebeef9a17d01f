"""The contents of a cache of encoded clips: decided and fingerprinted before anything is encoded."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from minicogvx.data.films.folder import Problem, VideoClip, clip_bucket
from minicogvx.interop.safetensors_files import read_json
from minicogvx.presets import VAEConfig
from minicogvx.ranges import RANGES, valid_frames

_PEEK = 2**20  # bytes read at both ends of a file to recognise it
# What `changes` reads of a row of an index.
_ROW = {"file_name": str, "start": (int, float), "frames": int, "height": int, "width": int, "key": str, "text": str}


@dataclass(frozen=True)
class CacheSettings:
    """Size, length and rate of the clips in a cache. `shard_bytes` bounds one file (a single clip is never split)."""

    num_frames: int  # at most; 4k + 1
    height: int  # pixels; of all clips, or the area of the buckets
    width: int
    fps: int | float
    bucketed: bool = True  # each clip at the size, of equal area, that keeps most of it; False: all at height x width
    mixed_lengths: bool = True  # as published (section 3.1); False: videos shorter than num_frames are left out
    windows: int = 1  # at most this many pieces of one clip, evenly spread, never overlapping
    first_frame: bool = False  # also the pixels of the first frame, for image to video
    shard_bytes: int = 256 * 2**20

    def __post_init__(self):
        for name, like in (("num_frames", "sample_frames"), ("height", "sample_height"), ("width", "sample_width")):
            least, most = RANGES[like]
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from {least} to {most}")
        for name in ("windows", "shard_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not 0 < self.fps <= 240:
            raise ValueError(f"fps is {self.fps}; it must be above 0 and at most 240")

    def check(self, vae: VAEConfig) -> None:
        """Raises ValueError for a length or size that this VAE cannot encode."""
        step, pixels = frame_step(vae), size_step(vae)
        if (self.num_frames - 1) % step:
            raise ValueError(f"num_frames is {self.num_frames}; it must be {valid_frames(self.num_frames, step)}")
        if not self.bucketed and (self.height % pixels or self.width % pixels):
            raise ValueError(f"the size is {self.height}x{self.width}; both sides must be multiples of {pixels}")


@dataclass(frozen=True)
class CacheItem:
    """One piece of a clip: where it starts, its length and its size."""

    clip: VideoClip
    start: float  # seconds from the clip's own start
    frames: int
    height: int
    width: int

    @property
    def bucket(self) -> tuple[int, int, int]:
        """Frames, height, width in pixels, which must agree within a batch."""
        return self.frames, self.height, self.width

    def row(self) -> dict:
        """The item in the plan and in the index."""
        return {"file_name": self.clip.name, "start": round(self.clip.start + self.start, 4), "frames": self.frames,
                "height": self.height, "width": self.width, "text": self.clip.caption}


def frame_step(vae: VAEConfig) -> int:
    """The VAE preserves lengths of k times this many frames, plus one."""
    return vae.temporal_compression_ratio * (2 if vae.first_frame == "parity" else 1)


def size_step(vae: VAEConfig) -> int:
    """Pixels of one patch of 2 x 2 latents."""
    return 2 * vae.spatial_compression_ratio


def plan_items(clips: Sequence[VideoClip], settings: CacheSettings,
               vae: VAEConfig) -> tuple[list[CacheItem], list[Problem]]:
    """The pieces to encode, those of one bucket side by side, and the clips that are too short."""
    items, problems = [], []
    for clip in clips:
        there = clip.frames_at(settings.fps)
        frames = min(settings.num_frames, (there - 1) // frame_step(vae) * frame_step(vae) + 1)
        if not clip.is_image and frames < (min(settings.num_frames, frame_step(vae) + 1) if settings.mixed_lengths
                                           else settings.num_frames):
            problems.append(Problem(clip.name, f"has {there} frames at {settings.fps:g} fps; too few to encode"))
            continue
        size = clip_bucket(clip, settings.height, settings.width, size_step(vae)) if settings.bucketed else (
            settings.height, settings.width)
        slack = there - frames
        count = min(settings.windows, 1 + slack // frames)
        starts = [slack * i / (count - 1) if count > 1 else 0 for i in range(count)]
        items += [CacheItem(clip, int(start) / settings.fps, frames, *size) for start in starts]
    return sorted(items, key=lambda item: (item.bucket, item.clip.name, item.clip.start + item.start)), problems


def latent_shape(item: CacheItem, vae: VAEConfig) -> tuple[int, int, int, int]:
    """`c t h w` of the item's latents."""
    return vae.latent_channels, *vae.latent_size(item.frames, item.height, item.width)


def shard(sizes: Sequence[int], limit: int) -> list[range]:
    """Cuts a sequence of items of these `sizes` into ranges whose total is within `limit`, or that hold one item."""
    groups, start, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            groups.append(range(start, i))
            start, total = i, 0
        total += size
    return [*groups, range(start, len(sizes))] if sizes else []


# ---- fingerprints


def module_fingerprint(module: nn.Module, dtype: torch.dtype | None = None) -> str:
    """A short hash of all weights; with `dtype`, of the weights rounded to it."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value if dtype is None else value.to(dtype)
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()[:16]


def _bytes(value: Tensor) -> memoryview:
    return memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def file_fingerprint(path: Path) -> str:
    """A short hash of a file's length and its first and last mebibyte: equal for a copy, not for an edited video."""
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_PEEK))
        file.seek(max(0, path.stat().st_size - _PEEK))
        digest.update(file.read(_PEEK))
    return digest.hexdigest()[:16]


def make_plan(settings: CacheSettings, vae: nn.Module, text, dtype: torch.dtype) -> dict:
    """Everything that determines how (not which) clips and captions are encoded, as JSON."""
    return {"vae": vae_mark(vae), "text": text_mark(text), "settings": asdict(settings),
            "dtype": str(dtype).removeprefix("torch.")}


def vae_mark(vae: nn.Module) -> str:
    """Identifies a VAE, whether its weights are held in float32 or bfloat16."""
    return f"{module_fingerprint(vae, torch.bfloat16)} {vae.config}"


def text_mark(text) -> str:
    """Identifies a text encoder; empty if there is none."""
    return "" if text is None else (
        f"{module_fingerprint(text.encoder, torch.bfloat16)} {text.max_length} {digest(text.tokenizer.get_vocab())}")


def read_plan(path: Path) -> dict:
    """The plan of a cache. Raises FileNotFoundError, or ValueError for a file that is something else."""
    plan = read_json(path)
    if not isinstance(plan.get("vae"), str) or not isinstance(plan.get("settings"), dict):
        raise ValueError(f"{path} is not the plan of a cache, with vae and settings; name a new folder")
    return plan


def check_plan(path: Path, plan: dict) -> None:
    """Raises ValueError, one sentence that names what differs, if the plan at `path` is another than `plan`."""
    old, out = read_plan(path), path.parent
    for name, value in plan["settings"].items():
        before = old["settings"].get(name)
        if before != value:
            raise ValueError(f"{name} is {value}; {out} was begun with {before}: name a new folder")
    for part, what in (("vae", "VAE"), ("text", "text encoder"), ("dtype", "number format")):
        if old.get(part) != plan[part]:
            raise ValueError(f"the {what} is another than the one {out} was begun with; name a new folder")


def read_rows(path: Path, ours: bool) -> list[dict]:
    """The rows of the index at `path`; none if there is no file.

    Raises ValueError for any other file: it must not be overwritten. If the plan beside it is `ours`, it can only be a
    damaged index, and counts as empty.
    """
    if not path.exists():
        return []
    try:
        rows = read_json(path).get("items")
    except (ValueError, OSError):
        rows = None
    if isinstance(rows, list) and all(map(_is_row, rows)):
        return rows
    if not ours:
        raise ValueError(f"{path} is not the index of a cache; name a new folder")
    return []


def _is_row(row: object) -> bool:
    """Whether a row of an index has the fields that `changes` compares."""
    return isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in _ROW.items())


def keyed(items: Sequence[CacheItem]) -> tuple[list[tuple[str, CacheItem]], list[Problem]]:
    """Each item with a key that depends on the video's content and the piece taken, and not on its path.

    Videos that are missing or unreadable become problems.
    """
    films, problems = {}, {}
    for clip in (item.clip for item in items):
        if clip.path not in films and clip.path not in problems:
            try:
                films[clip.path] = file_fingerprint(clip.path)
            except OSError as error:
                problems[clip.path] = Problem(clip.name, f"cannot be read: {error.strerror}")
    return [(digest({"film": films[item.clip.path], "from": round(item.clip.start + item.start, 4),
                     "size": list(item.bucket)}), item)
            for item in items if item.clip.path in films], list(problems.values())


def changes(before: Sequence[dict], now: Sequence[dict]) -> str:
    """The differences between two versions of an index, in a few words; empty if there are none."""
    old, new = _by_piece(before), _by_piece(now)
    both = [piece for piece in new if piece in old]
    told = {"new": [piece for piece in new if piece not in old], "gone": [piece for piece in old if piece not in new],
            "with another video": [piece for piece in both if set(old[piece]["key"]) != set(new[piece]["key"])],
            "with another caption": [piece for piece in both if old[piece]["text"] != new[piece]["text"]]}
    return ", ".join(f"{len(pieces)} {what} ({', '.join(dict.fromkeys(name for name, *_ in pieces[:3]))}"
                     f"{', ...' if len(pieces) > 3 else ''})" for what, pieces in told.items() if pieces)


def _by_piece(rows: Sequence[dict]) -> dict[tuple, dict[str, list]]:
    """For each piece of a video its key and its captions (several are possible)."""
    found: dict[tuple, dict[str, list]] = {}
    for row in rows:
        piece = tuple(row[name] for name in ("file_name", "start", "frames", "height", "width"))
        for name, values in found.setdefault(piece, {"key": [], "text": []}).items():
            values.append(row[name])
    return found


def digest(values: dict) -> str:
    """A short hash of a JSON value, independent of the order of keys. Every shard holds that of the plan."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
