"""A folder of films and pictures with captions: what is in it, what is wrong with it, and any piece of it as frames.

A caption is `name.txt` beside the file, or a line of `metadata.jsonl` with `file_name` and `text`, which comes first
where both are there. A line may also have `start` and `end` in seconds: then the clip is that piece of the file, and a
file may have several lines. A bad file is reported by name, and the others are used.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.data.buckets import Size, aspect_buckets, choose_bucket
from minicogvx.data.video_files import existing_file, read_image, read_video
from minicogvx.data.video_probe import probe_film, probe_image

FILMS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".gif")
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"
_ROUNDING = 5e-4  # seconds: containers round their time stamps


@dataclass(frozen=True)
class VideoClip:
    """A film, a piece of one, or a picture, which is a film of one frame."""

    path: Path
    name: str  # the path inside its folder, with slashes
    caption: str
    frames: int  # of the whole file
    fps: float  # of a variable rate: the mean
    height: int  # pixels, upright
    width: int
    rotation: int = 0  # degrees counter-clockwise that turn the stored pictures upright
    variable_rate: bool = False
    start: float = 0.0  # seconds
    end: float = 0.0  # seconds, not included; of a picture 0
    film_seconds: float = 0.0  # of the whole file

    @property
    def is_image(self) -> bool:
        """Whether this is a picture."""
        return self.path.suffix.lower() in IMAGES

    @property
    def seconds(self) -> float:
        """How long the clip is."""
        return self.end - self.start

    def frames_at(self, fps: int | float) -> int:
        """How many frames the clip has at `fps` frames per second; a picture has one."""
        return 1 if self.is_image else max(0, math.ceil((self.seconds - _ROUNDING) * fps))


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class VideoFolder:
    """What a folder holds, in the order of names."""

    folder: Path
    clips: list[VideoClip]
    problems: list[Problem]


@dataclass(frozen=True)
class _Line:
    """One line of a listing; None where it says nothing."""

    text: str | None = None
    start: float = 0.0
    end: float | None = None


def scan_folder(folder: str | Path, min_seconds: int | float = 1.0, listing: str | Path | None = None,
                need_captions: bool = True, progress: bool = False) -> VideoFolder:
    """Every clip of `folder` and its subfolders, each file opened and its packets counted.

    Args:
        min_seconds: shorter films are too short to train on.
        listing: only what this file lists (lines as in metadata.jsonl, such as the kept.jsonl of `curate`); None takes
            every film and picture, with what metadata.jsonl says of them.
        need_captions: report files without a caption instead of using them with an empty one.

    Raises FileNotFoundError where folder or listing is missing, ValueError for a negative `min_seconds`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not min_seconds >= 0:
        raise ValueError(f"min_seconds is {min_seconds}; it must be 0 or more")
    lines, problems = _listed(folder, folder / METADATA if listing is None else Path(listing), listing is not None)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in FILMS + IMAGES
             and path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)}
    clips = []
    for name in tqdm(sorted(lines.keys() if listing else found | lines.keys()), desc="scanning", disable=not progress):
        try:
            whole = _whole_clip(folder, name)
        except (ValueError, OSError) as error:
            problems.append(Problem(name, str(error).removeprefix(str(folder / name)).strip()))
            continue
        for line in lines.get(name, [_Line()]):
            try:
                clips.append(_piece(whole, line, min_seconds, need_captions))
            except ValueError as error:
                problems.append(Problem(name, str(error)))
    return VideoFolder(folder, clips, problems)


def read_clip(clip: VideoClip, start_seconds: float, num_frames: int, fps: int | float, height: int,
              width: int) -> Float[Tensor, "t h w 3"]:
    """`num_frames` frames of `clip` from its second `start_seconds` on, 0..1, at `fps` and `height` x `width` pixels.

    Frame k is what is on screen k / fps later; the aspect ratio is kept, the shorter side fitted, the middle cropped.
    Raises ValueError where the clip is too short, or for a picture of which more than one frame is asked.
    """
    if clip.is_image:
        if num_frames != 1:
            raise ValueError(f"num_frames is {num_frames}; {clip.name} is a picture, of which there is 1 frame")
        return read_image(clip.path, height, width)[None]
    if num_frames > 0 and fps > 0 and not 0 <= start_seconds + (num_frames - 1) / fps < clip.seconds - _ROUNDING:
        raise ValueError(f"{clip.name} lasts {clip.seconds:.2f} s; {num_frames} frames at {fps:g} fps from second "
                         f"{start_seconds:g} on need {start_seconds + num_frames / fps:.2f} s")
    return read_video(clip.path, num_frames, height, width, fps, clip.start + start_seconds)


def clip_bucket(clip: VideoClip, height: int, width: int, step: int = 16) -> Size:
    """The size of about `height` x `width` pixels in area that keeps most of the clip: see data/buckets.py."""
    return choose_bucket(clip.height, clip.width, aspect_buckets(height, width, step))


def write_lines(path: str | Path, rows: list[dict]) -> Path:
    """Write one JSON object a line, beside its place and then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    beside.replace(path)
    return path


def clip_line(clip: VideoClip) -> dict:
    """The line that lists `clip`; without start and end where it is the whole file."""
    whole = clip.start == 0 and abs(clip.end - clip.film_seconds) < 1e-3
    piece = {} if whole else {"start": round(clip.start, 3), "end": round(clip.end, 3)}
    return {"file_name": clip.name} | piece | {"text": clip.caption}


# ---- listings


def _listed(folder: Path, listing: Path, required: bool) -> tuple[dict[str, list[_Line]], list[Problem]]:
    if not listing.is_file():
        if required:
            raise FileNotFoundError(f"there is no file {listing}; it must list clips, one JSON object a line")
        return {}, []
    lines: dict[str, list[_Line]] = {}
    problems = []
    for where, text in _numbered(listing):
        try:
            name, line = _read_line(text)
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"names {name!r}, which lies outside the folder")
            lines.setdefault(Path(name).as_posix(), []).append(line)
        except ValueError as error:
            problems.append(Problem(where, str(error)))
    return lines, problems


def _numbered(listing: Path) -> Iterator[tuple[str, str]]:
    # Bytes that are no text become marks, so one bad line does not lose the others.
    with listing.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{listing.name}, line {number}", line


def _read_line(text: str) -> tuple[str, _Line]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError("is no JSON; each line must be one JSON object") from error
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"]:
        raise ValueError("has no file_name; each line must have one")
    words, start, end = row.get("text"), row.get("start", 0.0), row.get("end")
    if words is not None and not isinstance(words, str):
        raise ValueError(f"has text={words!r}; it must be a caption in quotation marks")
    if type(start) not in (int, float) or type(end) not in (int, float, type(None)) or not 0 <= start < math.inf:
        raise ValueError(f"has start={start!r} and end={end!r}; they must be seconds, 0 or more")
    return row["file_name"], _Line(words, float(start), None if end is None else float(end))


# ---- files


def _whole_clip(folder: Path, name: str) -> VideoClip:
    path = existing_file(folder / name)
    if path.suffix.lower() not in FILMS + IMAGES:
        raise ValueError(f"has the ending {path.suffix!r}; it must be one of {', '.join(FILMS + IMAGES)}")
    facts = probe_image(path) if path.suffix.lower() in IMAGES else probe_film(path)
    return VideoClip(path, name, _sidecar(path), facts.frames, facts.fps, facts.height, facts.width, facts.rotation,
                     facts.variable_rate, end=facts.seconds, film_seconds=facts.seconds)


def _sidecar(path: Path) -> str:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return ""
    try:
        return " ".join(beside.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"has a caption, {beside.name}, that is not UTF-8 text") from error


def _piece(whole: VideoClip, line: _Line, min_seconds: int | float, need_captions: bool) -> VideoClip:
    """The part of the file that the line names, with its caption. Raises ValueError where it cannot be used."""
    clip = replace(whole, caption=" ".join((line.text or "").split()) or whole.caption)
    if not clip.is_image:
        end = whole.end if line.end is None else line.end
        if end > whole.end + 0.05 or line.start >= end:
            raise ValueError(f"is listed from second {line.start:g} to {end:g}; it lasts {whole.end:.2f} s")
        clip = replace(clip, start=line.start, end=min(end, whole.end))
        if clip.frames < 2 or clip.seconds < min_seconds - _ROUNDING:
            raise ValueError(f"is too short: {clip.frames} frames, {clip.seconds:.2f} s; "
                             f"it must last {min_seconds:g} s")
    if need_captions and not clip.caption:
        raise ValueError(f"has no caption; put one into {whole.path.with_suffix('.txt').name} or {METADATA}")
    return clip
