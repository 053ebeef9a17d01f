"""Films as training data: scanned on one rank, read by the VAE's trainer, encoded once for the transformer's."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import minicogvx
from minicogvx.data.clips.cache import CachedClips, check_models
from minicogvx.data.clips.cache_files import holds_clips, is_cache, read_facts
from minicogvx.data.clips.clips import Clips, Selected
from minicogvx.data.clips.encode import encode_clips
from minicogvx.data.clips.order import number_of
from minicogvx.data.clips.plan import CacheSettings
from minicogvx.data.films.curate import best_share
from minicogvx.data.films.folder import VideoClip, scan_folder
from minicogvx.engine.ranks import Ranks, by_first
from minicogvx.pipeline import Pipeline
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.videos import FilmVideos


@dataclass(frozen=True)
class FilmData:
    """A folder of films with captions, or of clips that `minicogvx data encode` made of them."""

    folder: Path
    listing: str | None = None  # only the clips of this list
    fps: int | None = None  # at which films are read; None: the model's own
    films: tuple[VideoClip, ...] = ()  # those that can be used
    problems: tuple[str, ...] = ()  # a line about each other one

    @property
    def encoded(self) -> bool:
        """Whether the folder holds encoded clips, not films."""
        return is_cache(self.folder)

    def scanned(self, training: TransformerTraining, ranks: Ranks) -> "FilmData":
        """The same with its films, which rank 0 looks at.

        Raises ValueError if none can be used, and for options about films with clips that are encoded already.
        """
        if self.encoded:
            self._check_encoded(training)
            return self
        films, problems = by_first(lambda: _scan(self, training), ranks)
        return replace(self, films=films, problems=problems)

    def _check_encoded(self, training: TransformerTraining) -> None:
        """Raises ValueError for what asks for other clips than those that are encoded already."""
        for option, value in {"--list": self.listing, "--fps": self.fps}.items():
            if value is not None:
                raise ValueError(f"{option} is {value}; it says how films are read, and {self.folder} holds clips "
                                 f"that are encoded already, so leave it out")
        encoded = read_facts(self.folder)["settings"]
        for i, stage in enumerate(training.stages):
            for name in ("num_frames", "height", "width"):
                if getattr(stage, name) not in (None, encoded[name]):
                    raise ValueError(f"{name} of stage {i} is {getattr(stage, name)}, and the clips in {self.folder} "
                                     f"were encoded with {encoded[name]}; name the films instead, or leave it out")
            if stage.best < 1:
                raise ValueError(f"best of stage {i} is {stage.best}, and clips in {self.folder} are encoded already; "
                                 f"name the films instead, or set it to 1")

    def rate(self, own: int) -> int:
        """Frames per second of the clips, a whole number as a model's folder stores it; `own`: of the model itself."""
        if self.encoded:
            return max(1, round(read_facts(self.folder)["settings"]["fps"]))
        return own if self.fps is None else self.fps

    def words(self) -> tuple[str, ...]:
        """Every word of the captions, for a text encoder that begins with random weights."""
        return tuple(sorted({word for clip in self.films
                             for word in re.sub(r"[^\w\s]", " ", clip.caption.lower()).split()}))

    def videos(self, seed: int) -> FilmVideos:
        """What the VAE is trained on."""
        return FilmVideos(self.films, seed)

    def clips(self, job, parts: Pipeline, ranks: Ranks) -> tuple[list[Clips], Clips | None]:
        """The clips of each stage of `job`, a `train.Job`, and those held back."""
        training, own = job.recipe.transformer, parts.video_size
        frozen = None if job.model is None else parts.text
        for part in (parts.vae, *([frozen] if frozen else [])):
            part.to(ranks.device)
        stages = training.stages
        if self.encoded:
            by_first(lambda: check_models(self.folder, parts.vae, frozen), ranks)
            sets = [CachedClips(self.folder)] * len(stages)
        else:
            sizes = [(stage.num_frames or own.num_frames, stage.height or own.height, stage.width or own.width)
                     for stage in stages]
            made = {key: self._encode(job, parts, frozen, *key, len(set(sizes)) > 1, ranks)
                    for key in dict.fromkeys(zip(sizes, (stage.best for stage in stages)))}
            sets = [made[size, stage.best] for size, stage in zip(sizes, stages)]
        if not training.validate_every:
            return sets, None
        back = [held_back(clips, job.recipe.held_back) for clips in sets]
        return [Selected(clips, [i for i in range(len(clips)) if i not in without])
                for clips, without in zip(sets, back)], Selected(sets[-1], sorted(back[-1]))

    def _encode(self, job, parts: Pipeline, text, size: tuple[int, int, int], best: float, several: bool,
                ranks: Ranks) -> Clips:
        """The films, or the best share of them, encoded at a size. `several`: there are other sizes, too."""
        training, config = job.recipe.transformer, parts.transformer.config
        any_size = "learned" not in config.position
        settings = CacheSettings(*size, self.rate(parts.fps), any_size, any_size,
                                 first_frame=training.image_to_video)
        folder = job.out / ("cache_{}x{}x{}".format(*size) if several else "cache")
        dtype, vae = by_first(lambda: _dtype_of(folder), ranks) or job.dtype, parts.vae
        if job.model is not None and dtype != job.dtype:  # resumed in another dtype: clips that are there are kept
            again = minicogvx.load(job.model, ranks.device, dtype)
            vae, text = again.vae, again.text
        clips, problems = encode_clips(best_share(self.films, best), folder, vae, text, settings, dtype,
                                       progress=job.keep.progress, ranks=ranks)
        for problem in problems if ranks.first else ():
            print(f"left out {problem.name}: {problem.reason}")
        return clips


def _dtype_of(folder: Path) -> torch.dtype | None:
    """The dtype in which the clips in a cache were encoded; None if there are none yet."""
    return getattr(torch, read_facts(folder)["dtype"]) if is_cache(folder) and holds_clips(folder) else None


def held_back(clips: CachedClips, share: float) -> set[int]:
    """The numbers of the clips for measuring: all pieces of a film, or none; at least one clip."""
    drawn = {i: number_of("held back", clips.film(i)) for i in range(len(clips))}
    return {i for i, number in drawn.items() if number < share * 2**32} or {min(drawn, key=drawn.get)}


def _scan(data: FilmData, training: TransformerTraining) -> tuple[tuple[VideoClip, ...], tuple[str, ...]]:
    """The usable films, and a line about each other one."""
    found = scan_folder(data.folder, listing=data.listing)
    problems = [f"left out {problem.name}: {problem.reason}" for problem in found.problems]
    found.need_clips()
    kept = [clip for clip in found.clips if not (clip.is_image and training.image_to_video)]
    problems += [f"left out {clip.name}: a picture, and this model is trained only on videos"
                 for clip in found.clips if clip.is_image and training.image_to_video]
    if found.passed_over:
        problems.append(found.passed_over_sentence())
    if not kept:
        raise ValueError(f"{data.folder} holds only pictures, and this model is trained only on videos")
    return tuple(kept), tuple(problems)
