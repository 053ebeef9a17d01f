"""A folder of videos and pictures with captions: its clips, its problems, and the frames of any clip.

A caption is `name.txt` beside the file, or a line of a list such as `metadata.jsonl` (listing.py has the kinds),
which takes precedence. A line may also have `start` and `end` in seconds: then the clip is that piece of the file, and
a file may have several lines. Bad files are reported by name, and the others are used.
"""

import math
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.data.films.buckets import Size, aspect_buckets, choose_bucket
from minicogvx.data.films.decode import read_image, read_video
from minicogvx.data.films.folder_walk import walk_folder
from minicogvx.data.films.list_kinds import belongs_to_pair
from minicogvx.data.films.listing import CAPTION_FIELDS, METADATA, Line, Problem, one_line, read_list, same_name
from minicogvx.data.films.pictures import existing_file
from minicogvx.data.films.probe import FILMS, IMAGES, probe
from minicogvx.files import check_folder
from minicogvx.room import is_out_of_memory
from minicogvx.visible import many

_ROUNDING = 5e-4  # seconds: containers round their time stamps


@dataclass(frozen=True)
class VideoClip:
    """A video, a piece of one, or a picture, which is a video of one frame."""

    path: Path
    name: str  # the path inside its folder, with slashes
    caption: str
    frames: int  # of the whole file
    fps: float  # the mean, if the rate is variable; 0 for a picture
    height: int  # pixels, upright
    width: int
    rotation: int = 0  # degrees counter-clockwise that make the stored frames upright
    variable_rate: bool = False
    start: float = 0.0  # seconds
    end: float = 0.0  # seconds, exclusive; 0 for a picture
    film_seconds: float = 0.0  # of the whole file
    line: Line | None = field(default=None, compare=False, repr=False)  # of the list that names it, if any

    @property
    def is_image(self) -> bool:
        """Whether this is a picture; an animated one is a video."""
        return self.fps == 0

    @property
    def seconds(self) -> float:
        """The length of the clip."""
        return self.end - self.start

    def frames_at(self, fps: int | float) -> int:
        """The number of frames at `fps` frames per second; 1 for a picture."""
        return 1 if self.is_image else max(0, math.ceil((self.seconds - _ROUNDING) * fps))


@dataclass(frozen=True)
class VideoFolder:
    """The content of a folder, in the order of names."""

    folder: Path
    clips: list[VideoClip]
    problems: list[Problem]
    passed_over: dict[str, int] = field(default_factory=dict)  # numbers of other files, by ending

    def passed_over_sentence(self) -> str:
        """`passed_over` in words, such as "passed over: 2 .md, 1 hidden"; empty if there is nothing."""
        others = ", ".join(f"{number} {ending}" for ending, number in self.passed_over.items())
        return f"passed over: {others}" if others else ""

    def need_clips(self) -> None:
        """Raises ValueError, with the first problem, if there is no usable clip."""
        if not self.clips:
            why = [str(self.problems[0])] if self.problems else []
            why += [self.passed_over_sentence()] if self.passed_over else []
            raise ValueError("; ".join([f"{self.folder} holds no clip that can be used", *why]))


def scan_folder(folder: str | Path, min_seconds: int | float = 1.0, listing: str | Path | None = None,
                need_captions: bool = True, progress: bool = False) -> VideoFolder:
    """Every clip of `folder` and its subfolders, linked ones too. Opens each file and counts its packets.

    Args:
        min_seconds: shorter videos are too short to train on.
        listing: use only what this file lists (JSON lines or a table, such as the kept.jsonl of `curate`), by names
            inside `folder`; None: every video and picture, with the fields of the lists in the folders.
        need_captions: report files without a caption instead of using them with an empty one.

    Raises FileNotFoundError if folder or listing is missing, ValueError for a negative `min_seconds`, and for a
    `listing` that is not UTF-8.
    """
    folder = Path(folder)
    check_folder(folder, listing)
    if not min_seconds >= 0:
        raise ValueError(f"min_seconds is {min_seconds}; it must be 0 or more")
    walked = walk_folder(folder, FILMS + IMAGES)
    if listing is None:
        lines, problems = _listed(folder, walked.lists)
        by_file = dict.fromkeys(walked.files, [None]) | _by_file(lines, walked.files)
        problems, passed_over = walked.problems + problems, dict(sorted(walked.passed_over.items()))
    else:
        lines, problems = read_list(Path(listing), folder)
        by_file, passed_over = _by_file(lines, walked.files), {}
    clips = []
    for name in tqdm(sorted(by_file), desc="scanning", disable=not progress):
        try:
            whole = _whole_clip(folder, name)
        except (ValueError, OSError) as error:
            problems.append(Problem(name, str(error).removeprefix(str(folder / name)).strip()))
            continue
        found, wrong = _pieces(whole, by_file[name], min_seconds, need_captions)
        clips += found
        problems += wrong
    return VideoFolder(folder, clips, problems, passed_over)


def read_clip(clip: VideoClip, start_seconds: float, num_frames: int, fps: int | float, height: int,
              width: int) -> Float[Tensor, "t h w 3"]:
    """`num_frames` frames of `clip` from second `start_seconds` on, 0..1, at `fps` and `height` x `width` pixels.

    Frame k is the one on screen k / fps later, resized to fit the shorter side and centre cropped. Raises ValueError if
    the clip is too short, or for more than one frame of a picture.
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
    """The size of about `height` x `width` pixels in area that keeps most of the clip: see buckets.py."""
    return choose_bucket(clip.height, clip.width, aspect_buckets(height, width, step))


def clip_line(clip: VideoClip) -> dict[str, Any]:
    """The line that lists `clip`; without start and end if it is the whole file.

    For a clip that comes from a list, start, end and all other fields are those of its line.
    """
    whole = clip.start == 0 and abs(clip.end - clip.film_seconds) < 1e-3
    piece = {} if whole else {"start": round(clip.start, 3), "end": round(clip.end, 3)}
    start, end = _seconds(clip.line, clip.film_seconds)
    if clip.line and (clip.start, clip.end) == (start, min(end, clip.film_seconds)):
        piece = {name: clip.line.fields[name] for name in ("start", "end") if clip.line.fields.get(name) is not None}
    return {"file_name": clip.name} | piece | {"text": clip.caption} | (clip.line.other_fields if clip.line else {})


def failed(clip: VideoClip, error: Exception) -> Problem:
    """`error` as a one-line problem of `clip`. Re-raises `error` if memory ran out."""
    if is_out_of_memory(error):
        raise error
    reason = " ".join(str(error).removeprefix(str(clip.path)).split())[:300]
    return Problem(clip.name, reason if isinstance(error, (ValueError, OSError)) else f"failed: {reason}")


def _seconds(line: Line | None, film_seconds: float) -> tuple[float, float]:
    """Start and end of the line; the whole video by default."""
    return (line.start if line else 0.0, film_seconds if line is None or line.end is None else line.end)


def how_many(clips: Sequence[VideoClip]) -> str:
    """How many there are, such as "9 films and 1 picture", or "12 pieces of 9 films"."""
    videos = [clip.name for clip in clips if not clip.is_image]
    films, pictures = many(len(set(videos)), "film"), len(clips) - len(videos)
    pieces = f"{len(videos)} pieces of {films}" if len(set(videos)) < len(videos) else films
    return " and ".join([pieces] * bool(videos or not pictures) + [many(pictures, "picture")] * bool(pictures))


# ---- listings


def _listed(folder: Path, lists: Sequence[str]) -> tuple[list[Line], list[Problem]]:
    """The lines of all lists. If several lists caption a piece, the first wins."""
    known: dict[tuple, list[Line]] = {}
    problems = []
    for name in lists:
        try:
            lines, wrong = read_list(folder / name, folder, posixpath.dirname(name))
        except (ValueError, OSError) as error:
            problems.append(Problem(name, str(error).removeprefix(str(folder / name)).strip()))
            continue
        problems += wrong
        own: dict[tuple, list[Line]] = {}
        for line in lines:
            own.setdefault(line.piece, []).append(line)
        for piece, group in own.items():
            first = known.setdefault(piece, group)
            if not any(line.text for line in first):
                first[0] = replace(first[0], text=group[0].text)
    return [line for group in known.values() for line in group], problems


def _by_file(lines: Sequence[Line], files: Sequence[str]) -> dict[str, list[Line]]:
    """The lines on each file, by the actual name of the file, which a line may write in another way."""
    there, alike = set(files), {same_name(name): name for name in files}
    found: dict[str, list[Line]] = {}
    for line in lines:
        name = line.name if line.name in there else alike.get(same_name(line.name), line.name)
        found.setdefault(name, []).append(line)
    return found


# ---- files


def _whole_clip(folder: Path, name: str) -> VideoClip:
    path = existing_file(folder / name)
    if path.suffix.lower() not in FILMS + IMAGES:
        raise ValueError(f"has the ending {path.suffix!r}; it must be one of {', '.join(FILMS + IMAGES)}")
    facts = probe(path)
    return VideoClip(path, name, "", facts.frames, facts.fps, facts.height, facts.width, facts.rotation,
                     facts.variable_rate, end=facts.seconds, film_seconds=facts.seconds)


def _sidecar(path: Path) -> str:
    for ending in (".txt", ".TXT", ".Txt"):
        beside = path.with_suffix(ending)
        try:
            if beside.is_file() and not belongs_to_pair(beside):
                return one_line(beside.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"has a caption, {beside.name}, that is not UTF-8 text") from error
        except OSError as error:
            raise ValueError(f"has a caption, {beside.name}, that cannot be read: {error.strerror}") from error
    return ""


def _pieces(whole: VideoClip, lines: Sequence[Line | None], min_seconds: int | float,
            need_captions: bool) -> tuple[list[VideoClip], list[Problem]]:
    clips, problems = [], []
    for line in lines:
        try:
            clips.append(_piece(whole, line, min_seconds, need_captions))
        except ValueError as error:
            problems.append(Problem(whole.name, str(error)))
    return clips, problems


def _piece(whole: VideoClip, line: Line | None, min_seconds: int | float, need_captions: bool) -> VideoClip:
    """The piece of the file that the line names, with its caption. Raises ValueError if it cannot be used."""
    clip = replace(whole, caption=line.text if line and line.text else _sidecar(whole.path), line=line)
    if not clip.is_image:
        start, end = _seconds(line, whole.end)
        if end > whole.end + 0.05 or start >= end:
            raise ValueError(f"is listed from second {start:g} to {end:g}; it lasts {whole.end:.2f} s")
        clip = replace(clip, start=start, end=min(end, whole.end))
        if clip.frames < 2:
            raise ValueError("has 1 frame; a video must have at least 2, and a picture must be a picture file, such "
                             "as PNG")
        if clip.seconds < min_seconds - _ROUNDING:
            raise ValueError(f"is too short: {clip.frames} frames, {clip.seconds:.2f} s; "
                             f"it must last {min_seconds:g} s")
    if need_captions and not clip.caption:
        others = ", ".join(line.other_fields)[:80] if line else ""
        seen = f"; its line has {others}, and none of {', '.join(CAPTION_FIELDS)}" if others else ""
        raise ValueError(f"has no caption; put one into {whole.path.with_suffix('.txt').name} or {METADATA}{seen}")
    return clip
