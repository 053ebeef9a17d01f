"""The encoded clips for a fine-tuning run: encoded now, resumed, or those of `minicogvx data cache`."""

from pathlib import Path

import torch

import minicogvx
from minicogvx.data.clips.encode import PLAN, CachedClips, CacheSettings, cache_clips, holds_clips, is_cache, open_cache
from minicogvx.data.films.folder import VideoClip
from minicogvx.engine.ranks import Ranks, barrier
from minicogvx.interop.safetensors_files import read_json
from minicogvx.pipeline import Pipeline


def encoded_clips(pipe: Pipeline, model_name: str, clips: list[VideoClip], folder: Path, settings: CacheSettings,
                  ranks: Ranks) -> CachedClips:
    """`clips` in the cache `folder`: the first rank encodes what is missing, while the others wait.

    Raises what `cache_clips` raises.
    """
    if ranks.first:
        encoder = _as_begun(pipe, model_name, folder)
        for part in (encoder.vae, encoder.text):
            part.to(ranks.device)
        cache_clips(clips, folder, encoder.vae, encoder.text, settings, next(encoder.vae.parameters()).dtype)
    barrier(ranks)
    return CachedClips(folder)


def clips_encoded_before(pipe: Pipeline, model_name: str, folder: Path) -> CachedClips:
    """The clips that `minicogvx data cache` encoded. Raises what `open_cache` raises."""
    encoder = _as_begun(pipe, model_name, folder)
    return open_cache(folder, encoder.vae, encoder.text)


def _as_begun(pipe: Pipeline, model_name: str, folder: Path) -> Pipeline:
    """`pipe`, or the same model in the dtype that the cache in `folder` was begun with.

    A resumed run may train in another dtype; clips that are encoded already are kept.
    """
    in_use = is_cache(folder) and holds_clips(folder)
    begun = getattr(torch, str(read_json(folder / PLAN).get("dtype")), None) if in_use else None
    if not isinstance(begun, torch.dtype) or begun == next(pipe.vae.parameters()).dtype:
        return pipe
    return minicogvx.load(model_name, "cpu", begun)
