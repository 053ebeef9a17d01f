"""Latents and text features of real clips, encoded once and kept in files: training then opens no film.

    plan.json              what is to be encoded, with fingerprints of models and files
    clips-00000.safetensors   for each clip `i/mean` and `i/std` (c t h w, 16 bits), and `i/first_...` where asked for
    text-00000.safetensors    for each caption `i` its features (n d, 16 bits); number 0 is the empty caption
    index.json             written last: where everything is

A run that was cut off goes on at the first file that is missing or not whole. Nothing here was published; the authors'
fine-tuning code caches latents and text features, too.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from minicogvx.compat import choose_dtype
from minicogvx.data.video_folder import Problem, VideoClip, read_clip
from minicogvx.interop.safetensors_files import write_json, write_tensors
from minicogvx.training.cache_plan import (
    CacheItem, CacheSettings, check_plan, digest, latent_shape, make_plan, plan_items, shard,
)
from minicogvx.training.cached_clips import CachedClips
from minicogvx.training.latents import STORED
from minicogvx.vae import CausalVAE

__all__ = ["CacheSettings", "CachedClips", "cache_clips"]

PLAN, INDEX = "plan.json", "index.json"


def cache_clips(clips: Sequence[VideoClip], out: str | Path, vae: CausalVAE, text, settings: CacheSettings,
                dtype: torch.dtype | None = None, batch_size: int = 4, progress: bool = True) -> CachedClips:
    """Encode `clips` into the folder `out`, or what is missing of them there.

    Args:
        text: the TextEncoder of the model; None where it is trained, too, and needs the captions themselves.
        dtype: number format that the VAE computes in; the files hold float16.
        batch_size: clips of one size at a time.

    Clips that are too short, whose caption is too long or that cannot be read are left out: see `CachedClips.problems`.
    Raises ValueError where nothing is left, or where `out` was begun with other models, settings, captions or files.
    """
    out = Path(out)
    settings.check(vae.config)
    usable, problems = _captions_fit(clips, text)
    items, short = plan_items(usable, settings, vae.config)
    problems += short
    if not items:
        raise ValueError(f"none of {len(clips)} clips can be encoded{f'; {problems[0]}' if problems else ''}")
    dtype = choose_dtype(next(vae.parameters()).device, dtype)
    plan = make_plan(items, settings, vae, text, dtype)
    if (out / PLAN).is_file():
        check_plan(out / PLAN, plan)
    else:
        write_json(out / PLAN, plan)
    captions = list(dict.fromkeys(["", *(item.clip.caption for item in items)]))
    places, unreadable = _write_clips(items, out, vae, settings, dtype, batch_size, digest(plan), progress)
    problems += unreadable
    if not places:
        raise ValueError(f"none of {len(items)} pieces can be read; {problems[-1]}")
    rows = [items[i].row() | {"shard": file, "key": str(i)} for i, file in places.items()]
    written = _write_text(captions, out, text, settings.shard_bytes, digest(plan), progress) if text is not None else []
    write_json(out / INDEX, {
        "scaling_factor": vae.config.scaling_factor, "fps": settings.fps, "first_frame": settings.first_frame,
        "items": rows, "captions": captions, "text_shards": written,
        "problems": [[problem.name, problem.reason] for problem in problems]})
    return CachedClips(out)


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


# ---- clips


def _write_clips(items: list[CacheItem], out: Path, vae: CausalVAE, settings: CacheSettings, dtype: torch.dtype,
                 batch_size: int, mark: str, progress: bool) -> tuple[dict[int, str], list[Problem]]:
    """The file of each item that could be read, by its number, and what is wrong with the others."""
    shapes = [_shapes(item, vae, settings) for item in items]
    sizes = [sum(torch.Size(shape).numel() * (1 if "pixels" in name else 2) for name, shape in each.items())
             for each in shapes]
    places, problems = {}, []
    with tqdm(total=len(items), desc="encoding clips", disable=not progress) as bar:
        for number, group in enumerate(shard(sizes, settings.shard_bytes)):
            path = out / f"clips-{number:05d}.safetensors"
            wanted = {f"{i}/{name}": shape for i in group for name, shape in shapes[i].items()}
            lost = _read_whole(path, wanted, mark)
            if lost is None:
                tensors, lost = {}, {}
                for batch in _batches(items, group, batch_size):
                    _encode(batch, items, vae, settings, dtype, tensors, lost)
                    bar.update(len(batch))
                write_tensors(path, tensors, {"plan": mark, "lost": json.dumps(lost)})
            else:
                bar.update(len(group))
            places |= {i: path.name for i in group if str(i) not in lost}
            problems += [Problem(items[int(i)].clip.name, reason) for i, reason in lost.items()]
    return places, problems


def _shapes(item: CacheItem, vae: CausalVAE, settings: CacheSettings) -> dict[str, tuple[int, ...]]:
    c, t, h, w = latent_shape(item, vae.config)
    shapes: dict[str, tuple[int, ...]] = {"mean": (c, t, h, w), "std": (c, t, h, w)}
    if settings.first_frame:
        shapes |= {"first_mean": (c, 1, h, w), "first_std": (c, 1, h, w),
                   "first_pixels": (3, 1, item.height, item.width)}
    return shapes


def _batches(items: list[CacheItem], group: range, batch_size: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in group:
        if batch and (len(batch) == batch_size or items[i].bucket != items[batch[0]].bucket):
            yield batch
            batch = []
        batch.append(i)
    yield batch


@torch.no_grad()
def _encode(batch: list[int], items: list[CacheItem], vae: CausalVAE, settings: CacheSettings, dtype: torch.dtype,
            tensors: dict[str, Tensor], lost: dict[str, str]) -> None:
    """Adds the posteriors of the clips with the numbers in `batch` to `tensors`, or why there is none to `lost`."""
    videos = {}
    for i in batch:
        item = items[i]
        try:
            frames = read_clip(item.clip, item.start, item.frames, settings.fps, item.height, item.width)
            videos[i] = frames.permute(3, 0, 1, 2) * 2 - 1
        except (ValueError, OSError) as error:
            lost[str(i)] = str(error).removeprefix(str(item.clip.path)).strip()
    if not videos:
        return
    video = torch.stack(list(videos.values())).to(next(vae.parameters()).device, dtype)
    parts = {"": vae.encode(video)} | ({"first_": vae.encode(video[:, :, :1])} if settings.first_frame else {})
    for row, i in enumerate(videos):
        for prefix, posterior in parts.items():
            tensors[f"{i}/{prefix}mean"] = posterior.mean[row].to(STORED).clone()
            tensors[f"{i}/{prefix}std"] = posterior.std[row].to(STORED).clone()
        if settings.first_frame:
            tensors[f"{i}/first_pixels"] = ((videos[i][:, :1] + 1) * 127.5).round().to(torch.uint8)


# ---- text


@torch.no_grad()
def _write_text(captions: list[str], out: Path, text, shard_bytes: int, mark: str, progress: bool) -> list[str]:
    """The file of each caption."""
    n, d = text.max_length, text.encoder.config.d_model
    files, groups = [], shard([n * d * 2] * len(captions), shard_bytes)
    for number, group in enumerate(tqdm(groups, desc="encoding captions", disable=not progress)):
        path = out / f"text-{number:05d}.safetensors"
        if _read_whole(path, {str(i): (n, d) for i in group}, mark) is None:
            features = {str(i): text.encode([captions[i]])[0].to(STORED).clone() for i in group}
            write_tensors(path, features, {"plan": mark, "lost": "{}"})
        files += [path.name] * len(group)
    return files


def _read_whole(path: Path, wanted: dict[str, tuple[int, ...]], mark: str) -> dict[str, str] | None:
    """What a finished shard says of the clips it lacks; None where it is missing, cut off, or of another plan."""
    try:
        with safe_open(path, "pt") as file:  # refuses a file that is shorter than its header says
            notes = file.metadata() or {}
            lost = json.loads(notes.get("lost", "{}"))
            there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError, ValueError):
        return None
    kept = {name: tuple(shape) for name, shape in wanted.items() if name.split("/")[0] not in lost}
    return lost if notes.get("plan") == mark and there == kept else None
