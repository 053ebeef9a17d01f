"""The encoded clips of a training run: encoded now, on all ranks, or by `minicogvx data encode` before."""

from pathlib import Path

import torch

import minicogvx
from minicogvx.data.clips.cache import CachedClips, check_models
from minicogvx.data.clips.cache_files import holds_clips, is_cache, read_facts
from minicogvx.data.clips.encode import encode_clips
from minicogvx.data.clips.plan import CacheSettings
from minicogvx.data.films.folder import Problem, VideoClip
from minicogvx.engine.ranks import Ranks, by_first
from minicogvx.pipeline import Pipeline


def encoded_clips(pipe: Pipeline, model_name: str, films: list[VideoClip], folder: Path, settings: CacheSettings,
                  ranks: Ranks) -> tuple[CachedClips, list[Problem]]:
    """`films` in the cache `folder`, and those that are left out: each rank encodes its share of what is missing.

    Raises what `encode_clips` raises.
    """
    encoder = _as_begun(pipe, model_name, folder, ranks)
    for part in (encoder.vae, encoder.text):
        part.to(ranks.device)
    dtype = next(encoder.vae.parameters()).dtype
    return encode_clips(films, folder, encoder.vae, encoder.text, settings, dtype, ranks=ranks)


def clips_encoded_before(pipe: Pipeline, folder: Path, ranks: Ranks, trains_text: bool = False) -> CachedClips:
    """The clips that `minicogvx data encode` made. `trains_text`: the run needs captions only, no features.

    Raises what `check_models` and `CachedClips` raise, on every rank.
    """
    by_first(lambda: check_models(folder, pipe.vae, None if trains_text else pipe.text), ranks)
    return CachedClips(folder)


def _as_begun(pipe: Pipeline, model_name: str, folder: Path, ranks: Ranks) -> Pipeline:
    """`pipe`, or the same model in the dtype that the cache in `folder` was begun with.

    A resumed run may train in another dtype; clips that are encoded already are kept.
    """
    begun = by_first(lambda: read_facts(folder)["dtype"] if is_cache(folder) and holds_clips(folder) else None, ranks)
    if begun is None or getattr(torch, begun) == next(pipe.vae.parameters()).dtype:
        return pipe
    return minicogvx.load(model_name, "cpu", getattr(torch, begun))
