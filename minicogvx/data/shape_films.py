"""A folder of films as somebody's own clips would look: the shapes world in mp4 files, each with its caption.

    shape-00000.mp4   and so on, H.264
    shape-00000.txt   its caption, short or dense
    films.json        what the folder was made with, so that the same command, run again, resumes

So fine-tuning and everything before it can be tried, and measured, without a film at hand.
"""

import random
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from minicogvx.data.captions import caption
from minicogvx.data.shapes import Scene, sample_scenes
from minicogvx.data.styles import PLAIN, render_styled, style
from minicogvx.data.video_files import write_mp4
from minicogvx.files import naming
from minicogvx.interop.safetensors_files import read_json, write_json

FPS = 8  # of the shipped model
ORIGIN = "films.json"
_AT_ONCE = 32  # scenes drawn together


@dataclass(frozen=True)
class ShapeFilms:
    """Which films. The same numbers give the same frames and captions; scenes are of the training split."""

    clips: int
    style: str = PLAIN
    seed: int = 0
    side: int = 128  # pixels, height and width; see `write_shape_films`
    frames: int = 17
    two_objects: float = 0.0  # share of films with two objects

    def __post_init__(self):
        if self.clips < 1:
            raise ValueError(f"clips is {self.clips}; it must be 1 or more")
        style(self.style)
        if self.side < 16 or self.side % 2:
            raise ValueError(f"side is {self.side}; it must be an even number, 16 or more")
        if self.frames <= FPS:
            raise ValueError(f"frames is {self.frames}; it must be {FPS + 1} or more: training leaves out films "
                             f"shorter than a second")
        if not 0 <= self.two_objects <= 1:
            raise ValueError(f"two-objects is {self.two_objects}; it must be from 0 to 1")


def write_shape_films(folder: str | Path, films: ShapeFilms, progress: bool = True) -> int:
    """Writes the films that `folder` lacks and returns how many those were.

    H.264 keeps the colour of 2x2 pixels, not of each. So the default is twice the shipped model's side: read at 64x64,
    films of 128 are 41.7 dB from the scenes drawn at 64, films of 64 only 34.9 (40 films; the worst 38.6 and 28.8).
    Raises ValueError for a folder that holds anything else, or films made with other numbers.
    """
    folder = Path(folder)
    _check_folder(folder, films)
    write_json(folder / ORIGIN, asdict(films))
    scenes = sample_scenes(films.clips, films.seed, "train", films.two_objects)
    words = random.Random(f"films {films.seed}")
    captions = [caption(scene, words) for scene in scenes]
    names = [f"shape-{i:05d}" for i in range(films.clips)]
    # A film is renamed into its place after its caption is there: where it is, both are.
    missing = [i for i in range(films.clips) if not (folder / f"{names[i]}.mp4").exists()]
    with tqdm(total=len(missing), desc="films", disable=not progress, mininterval=2) as bar:
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start:start + _AT_ONCE]
            for i, video in zip(some, _draw([scenes[i] for i in some], films)):
                words = folder / f"{names[i]}.txt"
                with naming(words):
                    words.write_text(captions[i] + "\n", encoding="utf-8")
                write_mp4(folder / f"{names[i]}.mp4", video, FPS)
                bar.update()
    return len(missing)


def _draw(scenes: list[Scene], films: ShapeFilms):
    return render_styled(scenes, style(films.style), films.frames, films.side, films.side)


def _check_folder(folder: Path, films: ShapeFilms) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a new or empty folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / ORIGIN).is_file():
        raise ValueError(f"{folder} holds other files; name a new or empty folder")
    before = read_json(folder / ORIGIN)
    for name, value in asdict(films).items():
        if before.get(name) != value:
            raise ValueError(f"{folder} was begun with {name.replace('_', '-')}={before.get(name)!r}, not {value!r}; "
                             f"name a new or empty folder")
