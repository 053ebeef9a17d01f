"""Encoded clips of films, read one at a time from the files of a cache (cache_files.py describes them)."""

import random
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from minicogvx.data.clips.cache_files import GONE, check_facts, file_name, opened, read_facts, read_index, unpack_words
from minicogvx.data.clips.fingerprints import model_facts

OPEN_FILES = 256  # at a time, by each process: every one is a memory map, of which a system allows some thousands


class CachedClips:
    """The clips of a cache: a `Clips` (clips.py). Opening reads only numbers; a file is mapped when it is first needed.

    `pieces`: keys of those to use; None: all. Can be pickled, for the workers of a DataLoader.
    Raises FileNotFoundError for a folder without a cache, ValueError for one that has no clips yet, or is damaged.
    """

    def __init__(self, folder: str | Path, pieces: Int[Tensor, " k"] | None = None):
        self.folder = Path(folder)
        facts = read_facts(self.folder)
        self.scaling_factor: float = facts["scaling_factor"]
        self.fps: int | float = facts["settings"]["fps"]
        self.has_first_frames: bool = facts["settings"]["first_frame"]
        self.has_text = bool(facts["text"])
        index, self._empty = read_index(self.folder)
        used = index["latents"] != GONE
        if pieces is not None:
            used &= torch.isin(index["piece"], pieces)
        self._index = {name: index[name][used] for name in ("piece", "film", "latents", "caption", "row")}
        self.sizes: Int[Tensor, "n 3"] = index["size"][used]  # frames, height, width of the latents
        if not len(self):
            raise ValueError(f"the cache in {self.folder} has no clips yet; run `minicogvx data encode` on it again")
        self._open = self._opener()

    def __len__(self) -> int:
        return len(self.sizes)

    def latent_size(self, i: int) -> tuple[int, int, int]:
        """Frames, height and width of the latents of clip `i`. Opens no file."""
        frames, height, width = self.sizes[i].tolist()
        return frames, height, width

    def latents(self, i: int, generator: torch.Generator | None = None) -> Float[Tensor, "c t h w"]:
        """Scaled latents, float32, drawn from the posterior (paper 2.1); without a generator its mean."""
        latents = self._piece(i, "mean").float()
        if generator is not None:
            latents = latents + self._piece(i, "std").float() * torch.randn(latents.shape, generator=generator)
        return latents * self.scaling_factor

    def first_pixels(self, i: int) -> Float[Tensor, "3 1 h w"]:
        """The first frame in -1..1: noise augmentation is added to pixels, before the VAE (paper, Appendix D)."""
        if not self.has_first_frames:
            raise ValueError(f"the cache in {self.folder} has no first frames; make one with `--first-frame`")
        return self._piece(i, "first_pixels") / 127.5 - 1

    def caption(self, i: int, words: random.Random | None = None, style: str | None = None) -> str:
        """The caption. Each film has one, whatever `words` and `style`."""
        number, row = self._index["caption"][i].tolist()
        return unpack_words(self._open(file_name("text", number)), row)

    def text(self, i: int) -> Float[Tensor, "n d"]:
        """Features of the caption, float32."""
        return self._features(*self._index["caption"][i].tolist())

    def empty_text(self) -> Float[Tensor, "n d"]:
        """Features of the empty caption, for text dropout."""
        return self._features(*self._empty)

    def film(self, i: int) -> int:
        """A hash of the content of the clip's film: equal for its pieces and copies. Opens no file."""
        return int(self._index["film"][i])

    def name(self, i: int) -> str:
        """The film of the clip: its path inside the folder that was encoded."""
        number, row = self._index["row"][i].tolist()
        return unpack_words(self._open(file_name("clips", number)), row)

    def _piece(self, i: int, part: str) -> Tensor:
        return self._read("latents", int(self._index["latents"][i]), f"{int(self._index['piece'][i]):x}/{part}")[:]

    def _features(self, number: int, row: int) -> Float[Tensor, "n d"]:
        if not self.has_text:
            raise ValueError(f"the cache in {self.folder} was made without a text encoder; use its captions")
        return self._read("text", number, "features")[row:row + 1][0].float()

    def _read(self, kind: str, number: int, name: str):
        """A tensor of which the part that is indexed will be read."""
        file = file_name(kind, number)
        try:
            return self._open(file).get_slice(name)
        except SafetensorError as error:
            raise ValueError(f"{self.folder / file} lacks {name}; run `minicogvx data encode` again") from error

    def _opener(self):
        folder = self.folder

        @lru_cache(OPEN_FILES)
        def open_file(name: str):
            return opened(folder / name)

        return open_file

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open = self._opener()


def check_models(folder: str | Path, vae, text) -> None:
    """Raises ValueError, one sentence, unless the clips in `folder` are those of this model.

    What must agree: the VAE, its scaling factor, and the frozen text encoder `text`; None if the run trains its own,
    from captions. Raises FileNotFoundError for a folder without a cache.
    """
    facts = model_facts(vae, text)
    check_facts(Path(folder), facts if text is not None else {name: facts[name] for name in ("vae", "scaling_factor")})
