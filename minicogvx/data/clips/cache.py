"""Reads what encode.py wrote. Files are memory-mapped: a clip takes memory only while it is used."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minicogvx.data.films.folder import Problem
from minicogvx.interop.safetensors_files import read_json

Bucket = tuple[int, int, int]  # frames, height, width in pixels
Index = Sequence[int] | Tensor
_FIELDS = ("items", "text_shards", "captions", "scaling_factor", "fps", "first_frame", "problems")  # of the index


class CachedClips:
    """Encoded clips by number. `sample`: draw latents from the posterior, as published; False: take its mean.

    Raises FileNotFoundError for a folder without a cache, ValueError for one that is not finished.
    """

    def __init__(self, folder: str | Path, sample: bool = True):
        self.folder, self.sample = Path(folder), sample
        if not (self.folder / "index.json").is_file():
            if (self.folder / "plan.json").is_file():
                raise ValueError(f"the cache in {self.folder} is not finished; run `minicogvx data cache` on it again")
            raise FileNotFoundError(f"{self.folder} holds no cache; make one with `minicogvx data cache`")
        index = read_json(self.folder / "index.json")
        lacking = [name for name in _FIELDS if name not in index]
        if lacking:
            raise ValueError(f"{self.folder / 'index.json'} has no {lacking[0]}; run `minicogvx data cache` again")
        self._items, self._text_shards = index["items"], index["text_shards"]
        self._text_keys = index.get("text_keys", [str(i) for i in range(len(self._text_shards))])
        self._caption_number = {caption: i for i, caption in enumerate(index["captions"])}
        self.captions: list[str] = [item["text"] for item in self._items]
        self.scaling_factor: float = index["scaling_factor"]
        self.fps: int | float = index["fps"]
        self.has_first_frames: bool = index["first_frame"]
        self.has_text = bool(self._text_shards)
        self.problems = [Problem(name, reason) for name, reason in index["problems"]]
        self._files: dict[str, safe_open] = {}

    def __len__(self) -> int:
        return len(self._items)

    def bucket(self, i: int) -> Bucket:
        """Frames, height and width in pixels of clip `i`."""
        item = self._items[i]
        return item["frames"], item["height"], item["width"]

    def latent_size(self, i: int) -> tuple[int, int, int]:
        """Frames, height and width of the latents of clip `i`."""
        item = self._items[i]
        return tuple(self._slice(item["shard"], f"{item['key']}/mean").get_shape()[1:])

    def buckets(self) -> dict[Bucket, Tensor]:
        """The numbers of the clips of each size: a batch is drawn from one of them."""
        found: dict[Bucket, list[int]] = {}
        for i in range(len(self)):
            found.setdefault(self.bucket(i), []).append(i)
        return {bucket: torch.tensor(numbers) for bucket, numbers in sorted(found.items())}

    def draw(self, index: Index, generator: torch.Generator | None = None) -> Float[Tensor, "b c t h w"]:
        """Scaled latents of the clips at `index`, float32. Raises ValueError if their sizes differ."""
        latents = self._stack(index, "mean")
        if self.sample:
            latents = latents + self._stack(index, "std") * torch.randn(latents.shape, generator=generator)
        return latents * self.scaling_factor

    def first_pixels(self, index: Index) -> Float[Tensor, "b 3 1 h w"]:
        """The first frames in -1..1: noise augmentation is added to pixels, before the VAE (paper, Appendix D)."""
        if not self.has_first_frames:
            raise ValueError(f"the cache in {self.folder} has no first frames; make one with `--first-frame`")
        return self._stack(index, "first_pixels") / 127.5 - 1

    def text(self, index: Index) -> Float[Tensor, "b n d"]:
        """Features of the captions of the clips at `index`, float32."""
        return self._features([self._caption_number[self.captions[int(i)]] for i in index])

    def empty_text(self) -> Float[Tensor, "1 n d"]:
        """Features of the empty caption, for text dropout."""
        return self._features([0])

    def _stack(self, index: Index, name: str) -> Tensor:
        numbers = [int(i) for i in index]
        sizes = sorted({self.bucket(i) for i in numbers})
        if len(sizes) != 1:
            raise ValueError(f"the requested clips have {len(sizes)} sizes; take them from one of buckets()")
        return torch.stack([self._read(self._items[i]["shard"], f"{self._items[i]['key']}/{name}") for i in numbers])

    def _features(self, numbers: list[int]) -> Tensor:
        if not self.has_text:
            raise ValueError(f"the cache in {self.folder} was made without a text encoder; use its captions")
        return torch.stack([self._read(self._text_shards[i], self._text_keys[i]) for i in numbers])

    def _read(self, file: str, name: str) -> Tensor:
        return self._slice(file, name)[:].float()

    def _slice(self, file: str, name: str):
        try:
            if file not in self._files:
                self._files[file] = safe_open(self.folder / file, "pt")
            return self._files[file].get_slice(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.folder / file} is missing or damaged; run `minicogvx data cache` again") from error
