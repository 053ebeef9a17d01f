"""Latents and text features of real clips, encoded once and kept in files: training then decodes no video.

    plan.json              settings, and fingerprints of the models
    clips-00000.safetensors   for each piece of a video `KEY/mean`, `KEY/std` (c t h w, 16 bits) and `KEY/first_pixels`
    text-00000.safetensors    for each caption its features under its own key (n d, 16 bits)
    index.json             written last: all clips, and the files that hold them

A key is a hash of the video's content and of the piece taken. So an interrupted run resumes with what is missing, and
after videos or captions are added or changed, only those are encoded. Entries that no clip uses any more are kept.
The format is ours; the authors' fine-tuning code also caches latents and text features.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from minicogvx.compat import choose_dtype
from minicogvx.data.clips.cache import CachedClips
from minicogvx.data.clips.plan import (
    CacheItem,
    CacheSettings,
    changes,
    check_plan,
    digest,
    keyed,
    latent_shape,
    make_plan,
    plan_items,
    read_plan,
    read_rows,
    shard,
    text_mark,
    vae_mark,
)
from minicogvx.data.clips.world import STORED
from minicogvx.data.films.folder import Problem, VideoClip, read_clip
from minicogvx.files import check_writable, locked, remove_parts
from minicogvx.interop.safetensors_files import read_json, write_json, write_tensors
from minicogvx.vae import CausalVAE

__all__ = ["CacheSettings", "CachedClips", "cache_clips", "holds_clips", "is_cache", "open_cache"]

PLAN, INDEX = "plan.json", "index.json"
Shapes = dict[str, tuple[int, ...]]  # by the name of a tensor, or its end


def cache_clips(clips: Sequence[VideoClip], out: str | Path, vae: CausalVAE, text, settings: CacheSettings,
                dtype: torch.dtype | None = None, batch_size: int = 4, progress: bool = True) -> CachedClips:
    """Encode into the folder `out` those of `clips` that it lacks. Warns if `out` held other clips.

    Args:
        text: the TextEncoder of the model; None if it is trained as well, from the captions.
        dtype: in which the VAE computes; the files hold float16.
        batch_size: clips of one size that are encoded together.

    Clips that are too short, whose caption is too long or that cannot be read are left out: see `CachedClips.problems`.
    Raises ValueError if no clip is left, if `out` holds other files or clips encoded with other models or settings,
    and if another run is writing to it.
    """
    out = Path(out)
    settings.check(vae.config)
    usable, problems = _captions_fit(clips, text)
    items, short = plan_items(usable, settings, vae.config)
    pieces, unread = keyed(items)
    problems += short + unread
    if not pieces:
        raise ValueError(f"none of {len(clips)} clips can be encoded{f'; {problems[0]}' if problems else ''}")
    dtype = choose_dtype(next(vae.parameters()).device, dtype)
    plan = make_plan(settings, vae, text, dtype)
    with locked(out):
        before = _begin(out, plan)
        films = _Shards(out, "clips", digest(plan))
        lost = _write_clips(dict(pieces), films, vae, settings, dtype, batch_size, progress)
        problems += [Problem(item.clip.name, lost[key]) for key, item in pieces if key in lost]
        rows = [item.row() | {"shard": films.places[key], "key": key} for key, item in pieces if key not in lost]
        if not rows:
            raise ValueError(f"none of {len(pieces)} pieces can be read; {problems[-1]}")
        captions = list(dict.fromkeys(["", *(row["text"] for row in rows)]))
        places = _write_text(captions, _Shards(out, "text", digest(plan)), text, settings.shard_bytes, progress)
        _write_index(out, before, rows, {
            "scaling_factor": vae.config.scaling_factor, "fps": settings.fps, "first_frame": settings.first_frame,
            "captions": captions, "text_shards": list(places.values()), "text_keys": list(places),
            "problems": [[problem.name, problem.reason] for problem in problems]})
    return CachedClips(out)


def is_cache(folder: str | Path) -> bool:
    """Whether `cache_clips` has written `folder`, at least in part."""
    try:
        read_plan(Path(folder) / PLAN)
    except (ValueError, OSError):
        return False
    return True


def holds_clips(folder: str | Path) -> bool:
    """Whether `folder` holds at least one encoded clip. Until then its plan may still be replaced."""
    return any(name.endswith("/mean") for path in Path(folder).glob("clips-*.safetensors")
               for name in _shapes_in(path)[0])


def open_cache(folder: str | Path, vae: CausalVAE, text) -> CachedClips:
    """The clips in `folder`. Raises ValueError if another VAE or text encoder encoded them."""
    clips, plan = CachedClips(folder), read_json(Path(folder) / PLAN)
    for part, what, mark in (("vae", "VAE", vae_mark(vae)), ("text", "text encoder", text_mark(text))):
        if plan.get(part) != mark:
            raise ValueError(f"the cache in {folder} was made with another {what}; run `minicogvx data cache` with "
                             f"this model")
    return clips


def _begin(out: Path, plan: dict) -> list[dict]:
    """Makes `out`, which is locked, the cache of `plan`. Returns the rows of its index so far.

    Raises ValueError if it holds clips of another plan, or other files under the names of the cache.
    """
    remove_parts(out)
    for name in (PLAN, INDEX):
        check_writable(out / name)
    for path in (*out.glob("clips-*.safetensors"), *out.glob("text-*.safetensors")):
        shapes, notes = _shapes_in(path)
        if "plan" not in notes and (shapes or not (out / PLAN).exists()):  # without shapes it is damaged
            raise ValueError(f"{path} is not of a cache, and would be written over; name a new folder")
    before = read_rows(out / INDEX, is_cache(out))
    if not (out / PLAN).exists() or read_plan(out / PLAN) and not holds_clips(out):
        write_json(out / PLAN, plan)
    check_plan(out / PLAN, plan)
    return before


def _write_index(out: Path, before: list[dict], rows: list[dict], rest: dict) -> None:
    told = changes(before, rows) if before else ""
    if told:
        warnings.warn(f"{out} held {len(before)} clips and now has {len(rows)}: {told}", stacklevel=3)
    write_json(out / INDEX, rest | {"items": rows})


def _captions_fit(clips: Sequence[VideoClip], text) -> tuple[list[VideoClip], list[Problem]]:
    if text is None:
        return list(clips), []
    usable, problems = [], []
    for clip in clips:
        try:
            text.tokens([clip.caption])
            usable.append(clip)
        except ValueError as error:
            problems.append(Problem(clip.name, str(error)))
    return usable, problems


# ---- files


class _Shards:
    """The intact files of one kind that belong to this plan, and the file of each key."""

    def __init__(self, folder: Path, stem: str, mark: str):
        self.folder, self.stem, self._mark = folder, stem, mark
        self.places: dict[str, str] = {}
        self.lost: dict[str, str] = {}  # why a piece could not be encoded
        self._shapes: dict[str, Shapes] = {}
        self._used: set[str] = set()
        for path in sorted(folder.glob(f"{stem}-*.safetensors")):
            self._read(path)

    def _read(self, path: Path) -> None:
        """Adds a file; one that is truncated, or of another plan, counts as missing and will be overwritten."""
        shapes, notes = _shapes_in(path)
        if notes.get("plan") != self._mark:
            return
        self._used.add(path.name)
        self.lost |= json.loads(notes.get("lost", "{}"))
        for name, shape in shapes.items():
            key, _, part = name.partition("/")
            self._shapes.setdefault(key, {})[part] = shape
            self.places[key] = path.name

    def lacks(self, key: str, shapes: Shapes) -> bool:
        """Whether `key` has neither tensors nor a note that it is lost."""
        return key not in self.lost and self._shapes.get(key) != shapes

    def write(self, tensors: dict[str, Tensor], keys: Sequence[str], lost: dict[str, str]) -> None:
        """A new file with these tensors, and `lost` in its header."""
        numbers = (name for i in range(len(self._used) + 1)
                   if (name := f"{self.stem}-{i:05d}.safetensors") not in self._used)
        name = next(numbers)
        write_tensors(self.folder / name, tensors, {"plan": self._mark, "lost": json.dumps(lost)})
        self._used.add(name)
        self.lost |= lost
        self.places |= {key: name for key in keys}


def _shapes_in(path: Path) -> tuple[Shapes, dict[str, str]]:
    """The shapes of the tensors in a file, by name, and its notes; nothing if it is damaged."""
    try:
        with safe_open(path, "pt") as file:  # rejects a file shorter than its header says
            notes = file.metadata() or {}
            json.loads(notes.get("lost", "{}"))
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, notes
    except (SafetensorError, OSError, ValueError):
        return {}, {}


# ---- clips


def _write_clips(items: dict[str, CacheItem], shards: _Shards, vae: CausalVAE, settings: CacheSettings,
                 dtype: torch.dtype, batch_size: int, progress: bool) -> dict[str, str]:
    """Encodes the items that no file has. Returns the reasons for missing pieces, by key."""
    shapes = {key: _shapes(item, vae, settings) for key, item in items.items()}
    missing = [key for key in items if shards.lacks(key, shapes[key])]
    sizes = [sum(torch.Size(shape).numel() * (1 if "pixels" in name else 2) for name, shape in shapes[key].items())
             for key in missing]
    unreadable: dict[str, str] = {}  # in this run only: a disk that is offline now may be back in the next
    with tqdm(total=len(items), initial=len(items) - len(missing), desc="encoding clips", disable=not progress) as bar:
        for group in shard(sizes, settings.shard_bytes):
            tensors, lost = {}, {}
            for batch in _batches([missing[i] for i in group], items, batch_size):
                _encode({key: items[key] for key in batch}, vae, settings, dtype, tensors, lost, unreadable)
                bar.update(len(batch))
            done = [missing[i] for i in group if missing[i] not in lost and missing[i] not in unreadable]
            if done or lost:
                shards.write(tensors, done, lost)
    return {key: reason for key, reason in (shards.lost | unreadable).items() if key in items}


def _shapes(item: CacheItem, vae: CausalVAE, settings: CacheSettings) -> Shapes:
    c, t, h, w = latent_shape(item, vae.config)
    shapes: Shapes = {"mean": (c, t, h, w), "std": (c, t, h, w)}
    if settings.first_frame:
        shapes["first_pixels"] = 3, 1, item.height, item.width
    return shapes


def _batches(keys: Sequence[str], items: dict[str, CacheItem], batch_size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for key in keys:
        if batch and (len(batch) == batch_size or items[key].bucket != items[batch[0]].bucket):
            yield batch
            batch = []
        batch.append(key)
    yield batch


@torch.no_grad()
def _encode(batch: dict[str, CacheItem], vae: CausalVAE, settings: CacheSettings, dtype: torch.dtype,
            tensors: dict[str, Tensor], lost: dict[str, str], unreadable: dict[str, str]) -> None:
    """Adds the posteriors of the items to `tensors`, or the reason why there is none to `lost` or `unreadable`."""
    videos = {}
    for key, item in batch.items():
        try:
            frames = read_clip(item.clip, item.start, item.frames, settings.fps, item.height, item.width)
            videos[key] = frames.permute(3, 0, 1, 2) * 2 - 1
        except (ValueError, OSError) as error:
            reasons = unreadable if isinstance(error, OSError) else lost
            reasons[key] = str(error).removeprefix(str(item.clip.path)).strip()
    if not videos:
        return
    video = torch.stack(list(videos.values())).to(next(vae.parameters()).device, dtype)
    posterior = vae.encode(video)
    for row, (key, pixels) in enumerate(videos.items()):
        stored = {f"{key}/{name}": values[row].to(STORED).clone()
                  for name, values in (("mean", posterior.mean), ("std", posterior.std))}
        if not all(torch.isfinite(values).all() for values in stored.values()):
            lost[key] = f"has latents that are NaN or infinite as {str(STORED).removeprefix('torch.')}"
            continue
        tensors |= stored
        if settings.first_frame:
            tensors[f"{key}/first_pixels"] = ((pixels[:, :1] + 1) * 127.5).round().to(torch.uint8)


# ---- text


@torch.no_grad()
def _write_text(captions: list[str], shards: _Shards, text, shard_bytes: int, progress: bool) -> dict[str, str]:
    """The file of each caption, by its key, in the captions' order; encodes those that no file has."""
    if text is None:
        return {}
    shape = (text.max_length, text.encoder.config.d_model)
    keys = {caption: digest({"caption": caption}) for caption in captions}
    missing = [caption for caption in captions if shards.lacks(keys[caption], {"": shape})]
    groups = shard([shape[0] * shape[1] * 2] * len(missing), shard_bytes)
    for group in tqdm(groups, desc="encoding captions", disable=not progress):
        features = {keys[missing[i]]: text.encode([missing[i]])[0].to(STORED).clone() for i in group}
        shards.write(features, list(features), {})
    return {key: shards.places[key] for key in keys.values()}
