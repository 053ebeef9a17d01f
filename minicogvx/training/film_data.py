"""Films as training data: scanned on one rank, read by the VAE's trainer, encoded once for the transformer's."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import minicogvx
from minicogvx.data.clips.cache import CachedClips, check_models
from minicogvx.data.clips.cache_files import holds_clips, is_cache, read_facts
from minicogvx.data.clips.clips import Clips, Selected, pixel_sizes, sizes_sentence
from minicogvx.data.clips.encode import encode_clips
from minicogvx.data.clips.order import number_of
from minicogvx.data.clips.plan import CacheSettings
from minicogvx.data.films.curate import best_share
from minicogvx.data.films.folder import VideoClip, scan_folder
from minicogvx.engine.ranks import Ranks, by_first
from minicogvx.interop.safetensors_files import read_json, write_json
from minicogvx.pipeline import Pipeline
from minicogvx.presets import VAEConfig, video_size
from minicogvx.text import TextEncoder, unknown_sentence, word_tokenizer
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.videos import FilmVideos, stage_size

WORDS = "words.json"


@dataclass(frozen=True)
class FilmData:
    """A folder of films with captions, or of clips that `minicogvx data encode` made of them."""

    folder: Path
    listing: str | None = None  # only the clips of this list
    fps: int | None = None  # at which films are read; None: the model's own
    films: tuple[VideoClip, ...] = ()  # those that can be used
    held_back: frozenset[str] = frozenset()  # names of those that are only measured on
    problems: tuple[str, ...] = ()  # a line about each film that cannot be used

    @property
    def encoded(self) -> bool:
        """Whether the folder holds encoded clips, not films."""
        return is_cache(self.folder)

    def scanned(self, job, ranks: Ranks) -> "FilmData":
        """The same with the films of `job`, a `train.Job`, which rank 0 looks at.

        Raises ValueError for what would fail late: if none can be used, or none by a stage; if too few would be held
        back; and for options about films with clips that are encoded already.
        """
        if self.encoded:
            self._check_encoded(job.recipe.transformer)
            return self
        return by_first(lambda: _scan(self, job, ranks), ranks)

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

    def captions(self) -> Iterator[tuple[str, str]]:
        """Name and caption of each clip."""
        if not self.encoded:
            return ((clip.name, clip.caption) for clip in self.films)
        clips = CachedClips(self.folder)
        return ((clips.name(i), clips.caption(i)) for i in range(len(clips)))

    def tell_words(self, text: TextEncoder, ranks: Ranks) -> None:
        """Prints the words of the captions that the model does not know."""
        unknown = unknown_sentence(text, self.captions()) if ranks.first else ""
        if unknown:
            print(unknown, flush=True)

    def tell_sizes(self, sets: Sequence[Clips], held_back: Clips | None, vae: VAEConfig, ranks: Ranks) -> None:
        """Prints how many clips are trained on, and their sizes; `sets`: of the stages."""
        if not ranks.first:
            return
        what = "clip" if self.encoded or self.listing else "film"
        back = f"; {len(held_back)} more held back for validation" if held_back is not None else ""
        for sentence in dict.fromkeys(sizes_sentence(pixel_sizes(clips, vae), what) for clips in sets):
            print(sentence + back, flush=True)

    def words(self, file: Path, ranks: Ranks) -> tuple[str, ...]:
        """Every word of the captions, for a text encoder that begins with random weights.

        Rank 0 writes them to `file` once. In a resumed run they are those of the file: new ones would shift the others.
        """
        def read() -> tuple[str, ...]:
            if not file.exists():
                plain = word_tokenizer(()).backend_tokenizer.normalizer.normalize_str
                words = {word for clip in self.films for word in plain(clip.caption).split()}
                write_json(file, {"words": sorted(words)})
            return tuple(read_json(file)["words"])

        return by_first(read, ranks)

    def videos(self, seed: int) -> FilmVideos:
        """What the VAE is trained on, and measured on."""
        trained, measured = self._divided()
        return FilmVideos(trained, seed, measured)

    def _divided(self) -> tuple[list[VideoClip], list[VideoClip]]:
        """The films to train on, and those held back."""
        return ([clip for clip in self.films if clip.name not in self.held_back],
                [clip for clip in self.films if clip.name in self.held_back])

    def clips(self, job, parts: Pipeline, ranks: Ranks) -> tuple[list[Clips], Clips | None]:
        """The clips of each stage of `job`, a `train.Job`, and those held back."""
        training, own = job.recipe.transformer, parts.video_size
        frozen = None if job.model is None else parts.text
        for part in (parts.vae, *([frozen] if frozen else [])):
            part.to(ranks.device)
        stages = training.stages
        if self.encoded:
            by_first(lambda: check_models(self.folder, parts.vae, frozen), ranks)
            train, back = _divided(CachedClips(self.folder), job, ranks)
            return [train] * len(stages), back
        sizes = [stage.size(own) for stage in stages]

        def encoded(films: Sequence[VideoClip], size: tuple[int, int, int]) -> Clips:
            return self._encode(job, parts, frozen, films, size, len(set(sizes)) > 1, ranks)

        train, back = self._divided()
        measured = encoded(back, sizes[-1]) if back and training.validate_every else None
        sets = {(size, best): encoded(best_share(train, best), size)
                for size, best in dict.fromkeys(zip(sizes, (stage.best for stage in stages)))}
        return [sets[size, stage.best] for size, stage in zip(sizes, stages)], measured

    def _encode(self, job, parts: Pipeline, text, films: Sequence[VideoClip], size: tuple[int, int, int],
                several: bool, ranks: Ranks) -> Clips:
        """The films encoded at a size. `several`: there are other sizes, too."""
        training, config = job.recipe.transformer, parts.transformer.config
        any_size = "learned" not in config.position
        settings = CacheSettings(*size, self.rate(parts.fps), any_size, any_size,
                                 first_frame=training.image_to_video)
        folder = job.out / ("cache_{}x{}x{}".format(*size) if several else "cache")
        dtype, vae = by_first(lambda: _dtype_of(folder), ranks) or job.dtype, parts.vae
        if job.model is not None and dtype != job.dtype:  # resumed in another dtype: clips that are there are kept
            again = minicogvx.load(job.model, ranks.device, dtype)
            vae, text = again.vae, again.text
        clips, problems = encode_clips(films, folder, vae, text, settings, dtype,
                                       progress=job.keep.progress, ranks=ranks)
        for problem in problems if ranks.first else ():
            print(f"left out {problem.name}: {problem.reason}")
        return clips


def _dtype_of(folder: Path) -> torch.dtype | None:
    """The dtype in which the clips in a cache were encoded; None if there are none yet."""
    return getattr(torch, read_facts(folder)["dtype"]) if is_cache(folder) and holds_clips(folder) else None


def choose_held_back(films: Iterable[str | int], share: float, ranks: Ranks) -> frozenset[str | int]:
    """The films, by name or by a hash, that are held back: each is or is not, whatever others there are; at least one.

    Raises ValueError if that is fewer than ranks, or leaves none to train on.
    """
    drawn = {film: number_of("held back", film) for film in films}
    back = {film for film, number in drawn.items() if number < share * 2**32} or {*sorted(drawn, key=drawn.get)[:1]}
    if not ranks.world_size <= len(back) < len(drawn):
        raise ValueError(f"held_back is {share}, by which {len(back)} of {len(drawn)} films are held back; it must be "
                         f"at least one for each of {ranks.world_size} ranks, and leave one to train on")
    return frozenset(back)


def _divided(clips: CachedClips, job, ranks: Ranks) -> tuple[Clips, Clips | None]:
    """Encoded clips to train on, and those held back: all pieces of a film, or none."""
    training = job.recipe.transformer
    if not training.validate_every:
        return clips, None
    films = {i: clips.film(i) for i in range(len(clips))
             if not training.image_to_video or clips.latent_size(i)[0] > 1}
    chosen = choose_held_back(films.values(), job.recipe.held_back, ranks)
    back = [i for i, film in films.items() if film in chosen]
    return Selected(clips, [i for i, film in films.items() if film not in chosen]), Selected(clips, back)


def _scan(data: FilmData, job, ranks: Ranks) -> FilmData:
    """With the usable films, and a line about each other one."""
    found, recipe, sizes = scan_folder(data.folder, 0.0, data.listing), job.recipe, job.configs
    found.need_clips()
    tokens = word_tokenizer(())
    judged = [(clip, _unusable(clip, job, tokens)) for clip in found.clips]
    films = [clip for clip, reason in judged if not reason]
    problems = [f"left out {problem.name}: {problem.reason}" for problem in found.problems]
    problems += [f"left out {clip.name}: {reason}" for clip, reason in judged if reason]
    if not films:
        raise ValueError(f"{data.folder} holds no clip that this run can train on; {problems[-1]}")
    if found.passed_over:
        problems.append(found.passed_over_sentence())
    if job.model is None and not (job.out / "vae.safetensors").exists():
        for stage in recipe.vae.stages:
            FilmVideos(films).usable(stage_size(stage, sizes.vae)[0], max(stage.frame_rates))
    back: frozenset[str] = frozenset()
    if job.holds_films_back:  # films that fill the clips of the last stage, if there are some
        own = video_size(sizes.vae, sizes.transformer, recipe.transformer.stages[-1].num_frames)
        long = {clip.name for clip in films if clip.frames_at(data.rate(sizes.fps)) >= own.num_frames}
        back = choose_held_back(long if len(long) > 1 else {clip.name for clip in films}, recipe.held_back, ranks)
    for stage in recipe.transformer.stages:
        best_share([clip for clip in films if clip.name not in back], stage.best)
    return replace(data, films=tuple(films), held_back=back, problems=tuple(problems))


def _unusable(clip: VideoClip, job, tokenizer) -> str:
    """Why this run cannot train on the clip; empty if it can. A frozen text encoder is asked when clips are encoded."""
    room = job.recipe.model_sizes.transformer.max_text_seq_length
    if clip.is_image and job.recipe.transformer.image_to_video:
        return "a picture, and this model is trained only on videos"
    if job.model is None and (tokens := len(tokenizer(clip.caption).input_ids)) > room:
        return f"its caption has {tokens} tokens; at most {room} fit"
    return ""
