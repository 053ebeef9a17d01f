"""Writes a folder of videos of the shapes world, as mp4 files with captions, in the layout of your own data.

    shape-00000.mp4   and so on, H.264
    shape-00000.txt   its caption, short or dense
    films.json        the settings, so that the same command, run again, resumes

With it, fine-tuning and all steps before it can be tried and measured without real videos.
"""

import random
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from minicogvx.data.world.captions import caption
from minicogvx.data.world.scenes import Scene, sample_scenes
from minicogvx.data.world.styles import PLAIN, render_styled, style
from minicogvx.files import locked, written_whole
from minicogvx.interop.safetensors_files import read_json, write_json
from minicogvx.media import write_mp4

FPS = 8  # of the shipped model
ORIGIN = "films.json"
_AT_ONCE = 32  # scenes drawn together


@dataclass(frozen=True)
class ShapeFilms:
    """The settings, which determine frames and captions; scenes are of the training split."""

    clips: int
    style: str = PLAIN
    seed: int = 0
    side: int = 128  # pixels, height and width; see `write_shape_films`
    frames: int = 17
    two_objects: float = 0.0  # share of videos with two objects

    def __post_init__(self):
        if self.clips < 1:
            raise ValueError(f"clips is {self.clips}; it must be 1 or more")
        style(self.style)
        if self.side < 16 or self.side % 2:
            raise ValueError(f"side is {self.side}; it must be an even number, 16 or more")
        if self.frames <= FPS:
            raise ValueError(f"frames is {self.frames}; it must be {FPS + 1} or more: training leaves out videos "
                             f"shorter than a second")
        if not 0 <= self.two_objects <= 1:
            raise ValueError(f"two-objects is {self.two_objects}; it must be from 0 to 1")


def write_shape_films(folder: str | Path, films: ShapeFilms, progress: bool = True) -> int:
    """Writes the videos that `folder` lacks and returns their number.

    H.264 stores one colour per 2x2 pixels. So the default is twice the shipped model's side: read at 64x64, videos of
    128 have 41.7 dB against the scenes drawn at 64, videos of 64 only 34.9 (40 videos; the worst 38.6 and 28.8). Raises
    ValueError for a folder that is in use, holds anything else, or has videos made with other settings.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a new or empty folder")
    with locked(folder):
        _check_folder(folder, films)
        write_json(folder / ORIGIN, asdict(films))
        return _write_missing(folder, films, progress)


def _write_missing(folder: Path, films: ShapeFilms, progress: bool) -> int:
    scenes = sample_scenes(films.clips, films.seed, "train", films.two_objects)
    words = random.Random(f"films {films.seed}")
    captions = [caption(scene, words) for scene in scenes]
    names = [f"shape-{i:05d}" for i in range(films.clips)]
    # A video is renamed into place after its caption is written: if it exists, so does the caption.
    missing = [i for i in range(films.clips) if not (folder / f"{names[i]}.mp4").exists()]
    with tqdm(total=len(missing), desc="films", disable=not progress, mininterval=2) as bar:
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start:start + _AT_ONCE]
            for i, video in zip(some, _draw([scenes[i] for i in some], films)):
                words = folder / f"{names[i]}.txt"
                if not words.exists():  # it may have been changed since
                    with written_whole(words) as part:
                        part.write_text(captions[i] + "\n", encoding="utf-8")
                write_mp4(folder / f"{names[i]}.mp4", video, FPS)
                bar.update()
    return len(missing)


def _draw(scenes: list[Scene], films: ShapeFilms):
    return render_styled(scenes, style(films.style), films.frames, films.side, films.side)


def _check_folder(folder: Path, films: ShapeFilms) -> None:
    if all(path.name == ".lock" for path in folder.iterdir()):
        return
    if not (folder / ORIGIN).is_file():
        raise ValueError(f"{folder} holds other files; name a new or empty folder")
    before = read_json(folder / ORIGIN)
    for name, value in asdict(films).items():
        if before.get(name) != value:
            raise ValueError(f"{folder} was begun with {name.replace('_', '-')}={before.get(name)!r}, not {value!r}; "
                             f"name a new or empty folder")
