"""Films to encoded clips in a cache, on all ranks: training then decodes no video. cache_files.py describes the files.

Each rank encodes its share of what the folder lacks, file by file. A run that was killed is resumed by the same call,
on any number of ranks; new films and changed captions add files. No film is read twice, and no caption encoded twice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minicogvx.compat import choose_dtype
from minicogvx.data.clips.cache import CachedClips
from minicogvx.data.clips.cache_files import check_facts, pack_words
from minicogvx.data.clips.contents import Contents, caption_key, write_index
from minicogvx.data.clips.fingerprints import model_facts
from minicogvx.data.clips.plan import CacheItem, CacheSettings, Piece, in_shards, keyed, plan_items
from minicogvx.data.clips.world import STORED
from minicogvx.data.films.folder import Problem, VideoClip, read_clip
from minicogvx.engine.ranks import Ranks, by_first, on_each
from minicogvx.engine.run_folder import only_run
from minicogvx.vae import CausalVAE

SHARD_BYTES = 256 * 2**20  # of a file; each is kept or lost as a whole when a run is killed


@dataclass(frozen=True)
class _Encoder:
    """What encodes clips, and how."""

    vae: CausalVAE
    text: object  # a TextEncoder, or None
    settings: CacheSettings
    dtype: torch.dtype
    batch_size: int
    progress: bool

    def facts(self) -> dict:
        """Everything that determines how (not which) clips and captions are encoded, as JSON."""
        config, settings = self.vae.config, asdict(self.settings) | {"fps": float(self.settings.fps)}  # 8 is 8.0
        return model_facts(self.vae, self.text) | {
            "settings": settings, "dtype": str(self.dtype).removeprefix("torch."),
            "compression": [config.temporal_compression_ratio, config.spatial_compression_ratio]}


def encode_clips(films: Sequence[VideoClip], out: str | Path, vae: CausalVAE, text, settings: CacheSettings,
                 dtype: torch.dtype | None = None, batch_size: int = 4, shard_bytes: int = SHARD_BYTES,
                 progress: bool = True, ranks: Ranks = Ranks()) -> tuple[CachedClips, list[Problem]]:
    """Adds to the cache `out` what it lacks of `films`. All ranks call it, with the same arguments.

    Args:
        text: the frozen TextEncoder; None if it is trained as well, from the captions.
        dtype: in which the VAE computes; the files hold float16.
        batch_size: clips of one size that are encoded together.
        shard_bytes: about the size of a file. Ranks wait for each other after each one.

    Returns the clips of these films, and the films that are left out: too short, with a caption that is too long, or
    unreadable. Raises ValueError, on every rank, if no clip is left, if `out` holds other files or clips encoded with
    other models or settings, and if another run is writing to it.
    """
    out = Path(out)
    items, problems = _plan(films, vae, text, settings)
    dtype = choose_dtype(next(vae.parameters()).device, dtype)
    encoder = _Encoder(vae, text, settings, dtype, batch_size, progress and ranks.first)
    contents = Contents(out, by_first(encoder.facts, ranks))
    with only_run(out, ranks):
        by_first(contents.begin, ranks)
        on_each(lambda: check_facts(out, contents.facts), ranks)  # every rank sees the folder
        pieces, unread = keyed(items, ranks)
        failed = _add_latents(contents, pieces, encoder, shard_bytes, ranks)
        problems += unread + failed
        if len(failed) == len(pieces):
            raise ValueError(f"none of {len(items)} pieces can be encoded; {problems[-1]}")
        _add_captions(contents, pieces, encoder, shard_bytes, ranks)
        keys = by_first(lambda: write_index(contents, pieces), ranks)
    return CachedClips(out, torch.tensor(keys, dtype=torch.int64)), problems


def _plan(films: Sequence[VideoClip], vae: CausalVAE, text, settings: CacheSettings) -> tuple[list[CacheItem],
                                                                                            list[Problem]]:
    """The pieces of the films, and the films that are too short, or whose caption is too long."""
    settings.check(vae.config)
    fitting, problems = [], []
    for film in films:
        try:
            if text is not None:
                text.tokens([film.caption])
            fitting.append(film)
        except ValueError as error:
            problems.append(Problem(film.name, str(error)))
    items, short = plan_items(fitting, settings, vae.config)
    problems += short
    if not items:
        raise ValueError(f"none of {len(films)} clips can be encoded{f'; {problems[0]}' if problems else ''}")
    return items, problems


def _in_turns(files: Sequence[tuple[int, list]], write: Callable[[int, list, tqdm], object], what: str, progress: bool,
              ranks: Ranks) -> list:
    """What `write(number, items, bar)` gives for each file: the first for rank 0, the second for rank 1, and so on.

    All ranks wait after each turn, so that an error on one ends the run on all of them, and soon.
    """
    written, total = [], sum(len(items) for _, items in files[ranks.rank::ranks.world_size])
    with tqdm(total=total, desc=what, disable=not progress) as bar:
        for start in range(0, len(files), ranks.world_size):
            own = files[start + ranks.rank:start + ranks.rank + 1]
            written += [each for part in on_each(lambda: [write(*file, bar) for file in own], ranks) for each in part]
    return written


# ---- clips


def _add_latents(contents: Contents, pieces: Sequence[Piece], encoder: _Encoder, shard_bytes: int,
                 ranks: Ranks) -> list[Problem]:
    """Encodes the pieces that no file has. Returns those that cannot be encoded, and why."""
    items = {piece.key: piece.item for piece in pieces}

    def missing() -> list[tuple[int, list[int]]]:
        keys = [key for key in items if key not in contents.latents and key not in contents.lost]
        groups = in_shards([_bytes(items[key], encoder) for key in keys], shard_bytes, ranks.world_size)
        return [(number, [keys[i] for i in group])
                for number, group in enumerate(groups, contents.next_number("latents"))]

    def write(number: int, keys: list[int], bar: tqdm) -> tuple[str, dict[int, str]]:
        tensors, lost, unreadable = {}, {}, {}
        for batch in _batches(keys, items, encoder.batch_size):
            _encode({key: items[key] for key in batch}, encoder, tensors, lost, unreadable)
            bar.update(len(batch))
        return contents.write("latents", number, tensors, lost) if tensors or lost else "", unreadable

    def read_written() -> dict[int, str]:
        contents.read([name for name, _ in written if name])
        return {key: contents.lost[key] for key in items if key in contents.lost}

    written = _in_turns(by_first(missing, ranks), write, "encoding clips", encoder.progress, ranks)
    reasons = by_first(read_written, ranks)
    for _, unreadable in written:
        reasons |= unreadable
    return [Problem(piece.item.clip.name, reasons[piece.key]) for piece in pieces if piece.key in reasons]


def _bytes(item: CacheItem, encoder: _Encoder) -> int:
    """Of the item in a file."""
    config = encoder.vae.config
    latents = torch.Size(config.latent_size(*item.bucket)).numel() * config.latent_channels
    pixels = 3 * item.height * item.width if encoder.settings.first_frame else 0
    return 2 * latents * STORED.itemsize + pixels


def _batches(keys: Sequence[int], items: dict[int, CacheItem], batch_size: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for key in keys:
        if batch and (len(batch) == batch_size or items[key].bucket != items[batch[0]].bucket):
            yield batch
            batch = []
        batch.append(key)
    yield batch


@torch.no_grad()
def _encode(batch: dict[int, CacheItem], encoder: _Encoder, tensors: dict[str, Tensor], lost: dict[int, str],
            unreadable: dict[int, str]) -> None:
    """Adds the posteriors of the items to `tensors`, or the reason why there is none to `lost` or `unreadable`.

    What is lost is not tried again; a disk that cannot be read now may be back in the next run.
    """
    videos = {}
    for key, item in batch.items():
        try:
            frames = read_clip(item.clip, item.start, item.frames, encoder.settings.fps, item.height, item.width)
            videos[key] = frames.permute(3, 0, 1, 2) * 2 - 1
        except (ValueError, OSError) as error:
            reasons = unreadable if isinstance(error, OSError) else lost
            reasons[key] = str(error).removeprefix(str(item.clip.path)).strip()
    if not videos:
        return
    device = next(encoder.vae.parameters()).device
    posterior = encoder.vae.encode(torch.stack(list(videos.values())).to(device, encoder.dtype))
    for row, (key, pixels) in enumerate(videos.items()):
        stored = {f"{key:x}/{name}": values[row].to(STORED).clone()
                  for name, values in (("mean", posterior.mean), ("std", posterior.std))}
        if not all(torch.isfinite(values).all() for values in stored.values()):
            lost[key] = f"has latents that are NaN or infinite as {str(STORED).removeprefix('torch.')}"
            continue
        tensors |= stored
        if encoder.settings.first_frame:
            tensors[f"{key:x}/first_pixels"] = ((pixels[:, :1] + 1) * 127.5).round().to(torch.uint8)


# ---- text


def _add_captions(contents: Contents, pieces: Sequence[Piece], encoder: _Encoder, shard_bytes: int,
                  ranks: Ranks) -> None:
    """Writes the captions that no file has, with their features if there is a text encoder; the empty one first."""
    text = encoder.text
    size = 0 if text is None else text.max_length * text.encoder.config.d_model * STORED.itemsize

    def missing() -> list[tuple[int, list[str]]]:
        wanted = dict.fromkeys(["", *(piece.item.clip.caption for piece in pieces if piece.key in contents.latents)])
        captions = [caption for caption in wanted if caption_key(caption) not in contents.captions]
        groups = in_shards([size + len(caption) + 16 for caption in captions], shard_bytes, ranks.world_size)
        return [(number, [captions[i] for i in group])
                for number, group in enumerate(groups, contents.next_number("text"))]

    @torch.no_grad()
    def write(number: int, captions: list[str], bar: tqdm) -> str:
        tensors, features = {"keys": torch.tensor([caption_key(each) for each in captions])}, []
        for caption in captions if text is not None else ():
            features.append(text.encode([caption]).to(STORED).cpu())
            bar.update()
        if text is not None:
            tensors["features"] = torch.cat(features)
        return contents.write("text", number, tensors | pack_words(captions))

    written = _in_turns(by_first(missing, ranks), write, "encoding captions", encoder.progress, ranks)
    by_first(lambda: contents.read(written), ranks)
