"""Dense captions: what a text-to-video model learns words from (paper, section 3.4 and Appendix G).

The published way: a short caption of the whole video; a vision-language model (CogVLM) describes one frame every two
seconds; a language model (GPT-4, later LLaMA-2 fine-tuned on 50,000 of its answers) sums them up in at most 100 words.
At last all of it was taught to one model, CogVLM2-Caption. Here any vision-language model and any language model in the
folder layout of transformers take these parts; the published prompt is GPT-4's, and ours is our own.
"""

import json
import os
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.data.captions import evaluation_caption
from minicogvx.data.oracle import read
from minicogvx.data.shapes import Scene, ShapeObject
from minicogvx.data.video_files import stream_frames
from minicogvx.data.video_folder import Problem, VideoClip, clip_line, read_clip, write_lines

MAX_WORDS = 100
EVERY_SECONDS = 2.0
_MODEL_SIDE = 448  # pixels of the shorter side that a model is shown; its own processor resizes further
_ORACLE_FRAMES, _ORACLE_SIDE = 17, 64

FrameCaptioner = Callable[[Float[Tensor, "h w 3"]], str]  # a picture in 0..1 -> what it shows
ClipCaptioner = Callable[[VideoClip], str]

FRAME_PROMPT = "Describe this picture in detail: what is there, what it looks like, where it is, and what it does."
SUMMARY_PROMPT = """Below are descriptions of single frames of one video, {every:g} seconds apart, in order.{short}

{descriptions}

Write one description of the whole video in at most {words} English words. Say who or what is seen and what it looks
like, what happens from the beginning to the end, where it is, and how the camera moves. Speak of the video, not of
frames, and add nothing that the descriptions do not say."""


def caption_frames(frames: Sequence[Float[Tensor, "h w 3"]] | Float[Tensor, "t h w 3"],
                   captioner: FrameCaptioner) -> list[str]:
    """One description of each picture (0..1) on one line. Raises ValueError where there are no pictures."""
    if not len(frames):
        raise ValueError("there are no frames to describe; give at least one")
    return [" ".join(captioner(frame).split()) for frame in frames]


def join_descriptions(descriptions: Sequence[str], max_words: int = MAX_WORDS) -> str:
    """The plain way without a language model: one sentence a description, in order, with what repeats left out.

    "a dog sits", "a dog sits", "a dog runs" -> "A dog sits. Then a dog runs." Nothing is understood: it is a stopgap.
    """
    told: list[str] = []
    for text in descriptions:
        text = " ".join(text.split()).rstrip(".! ")
        if text and text.lower() not in (old.lower() for old in told[-1:]):
            told.append(text)
    sentences = [text[0].upper() + text[1:] if i == 0 else f"Then {text[0].lower()}{text[1:]}"
                 for i, text in enumerate(told)]
    return limit_words(". ".join(sentences) + "." if sentences else "", max_words)


def limit_words(text: str, max_words: int = MAX_WORDS) -> str:
    """`text` on one line, with at most `max_words` words: cut after the last sentence that fits, if any."""
    words = text.split()
    short = " ".join(words[:max_words])
    if len(words) <= max_words:
        return short
    whole = re.match(r"(.*[.!?])\s", short + " ")
    return whole.group(1) if whole else short


# ---- captioners of whole clips


class DenseCaptioner:
    """Clip -> caption: frames of it described one by one, the descriptions summed up.

    `describe` says what is in a picture; `summarise` answers a prompt, None joins the descriptions plainly.
    """

    def __init__(self, describe: FrameCaptioner, summarise: Callable[[str], str] | None = None,
                 every_seconds: float = EVERY_SECONDS):
        if not 0 < every_seconds < float("inf"):
            raise ValueError(f"every_seconds is {every_seconds}; it must be above 0")
        self.describe, self.summarise, self.every_seconds = describe, summarise, every_seconds

    @classmethod
    def from_folder(cls, folder: str | Path, summary_folder: str | Path | None = None,
                    every_seconds: float = EVERY_SECONDS, device: str | None = None,
                    dtype: torch.dtype | None = None) -> "DenseCaptioner":
        """Opens transformers folders: image to text, and, if given, text to text. Raises ValueError or OSError.

        `device` and `dtype`: None is what `compat` chooses.
        """
        from minicogvx.data.caption_models import LanguageModel, VisionLanguageModel

        summarise = LanguageModel(summary_folder, device=device, dtype=dtype) if summary_folder else None
        return cls(VisionLanguageModel(folder, FRAME_PROMPT, device=device, dtype=dtype), summarise, every_seconds)

    def __call__(self, clip: VideoClip) -> str:
        """The caption of `clip`, at most 100 words. What the clip was called before goes into the summary's prompt."""
        descriptions = caption_frames(still_frames(clip, self.every_seconds), self.describe)
        if self.summarise is None:
            return join_descriptions(descriptions)
        return limit_words(self.summarise(self.prompt(descriptions, clip.caption)))

    def prompt(self, descriptions: Sequence[str], short_caption: str = "") -> str:
        """What the language model is asked."""
        numbered = "\n".join(f"{i}. {text}" for i, text in enumerate(descriptions, 1))
        short = f" Somebody called it: {short_caption}" if short_caption else ""
        return SUMMARY_PROMPT.format(every=self.every_seconds, short=short, descriptions=numbered, words=MAX_WORDS)


def still_frames(clip: VideoClip, every_seconds: float = EVERY_SECONDS) -> list[Float[Tensor, "h w 3"]]:
    """One frame of `clip` every `every_seconds` from its first on, in 0..1, the shorter side at most 448 pixels."""
    if clip.is_image:
        return [read_clip(clip, 0.0, 1, 1.0, clip.height, clip.width)[0]]
    times = [clip.start + k * every_seconds for k in range(max(1, clip.frames_at(1 / every_seconds)))]
    return [frame.float() / 255 for frame in stream_frames(clip.path, times, _MODEL_SIDE)]


def caption_shapes(clip: VideoClip, seed: int = 0) -> str:
    """The exact caption of a clip of the shapes world, read from its pixels: shape, colour, motion and background.

    `seed` chooses among the phrasings. Raises ValueError where the clip shows something else or is ambiguous.
    """
    if clip.is_image:
        raise ValueError("is a picture; the motion of a shape cannot be read from it")
    scale = _ORACLE_SIDE / min(clip.height, clip.width)
    # The middles of 17 equal parts of the clip: a motion is read from all of it.
    fps, first = _ORACLE_FRAMES / clip.seconds, clip.seconds / _ORACLE_FRAMES / 2
    frames = read_clip(clip, first, _ORACLE_FRAMES, fps, round(clip.height * scale), round(clip.width * scale))
    seen = read(frames)
    things = [thing for thing in seen.objects if thing.shape and thing.colour and thing.motion]
    if seen.background is None or not things or seen.count != len(things):
        raise ValueError("shows nothing that the shapes world has, or something ambiguous")
    # Where a thing is and how large is not said, so any place will do.
    objects = tuple(ShapeObject(thing.shape, thing.colour, thing.motion, 0.5, 0.5, 0.2) for thing in things)
    return evaluation_caption(Scene(objects, seen.background), random.Random(seed))


# ---- a whole folder


def caption_clips(clips: Sequence[VideoClip], captioner: ClipCaptioner, out: str | Path, overwrite: bool = False,
                  progress: bool = True, by: str = "") -> list[Problem]:
    """Write `out`, lines as in metadata.jsonl, with a caption for each clip; those that have one keep it by default.

    What is done is noted in `out.part` as it goes: a run that was cut off goes on there, if `by`, which says who
    captions and how, is the same. Clips that the captioner
    cannot name are left out and returned with the reason. Where `out` is there already, its lines on other files and
    its other fields, such as scores, stay.
    """
    out, problems = Path(out), []
    part = out.with_name(out.name + ".part")
    done = {key: row["text"] for key, row in _rows(part).items() if row.get("by") == by}
    part.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with part.open("a", encoding="utf-8") as notes:
        for clip in tqdm(clips, desc="captioning", disable=not progress):
            row = clip_line(clip)
            key = _key(row)
            if clip.caption and not overwrite:
                rows.append(row)
                continue
            if key not in done:
                try:
                    done[key] = captioner(clip)
                except ValueError as error:
                    problems.append(Problem(clip.name, str(error).removeprefix(str(clip.path)).strip()))
                    continue
                notes.write(json.dumps(row | {"text": done[key], "by": by}, ensure_ascii=False) + "\n")
                notes.flush()
            rows.append(row | {"text": done[key]})
    old, names = _rows(out), {clip.name for clip in clips}
    write_lines(out, [old.get(_key(row), {}) | row for row in rows]
                + [row for row in old.values() if row["file_name"] not in names])
    os.remove(part)
    return problems


def _key(row: dict) -> tuple[str, float]:
    return row["file_name"], row.get("start") or 0.0


def _rows(path: Path) -> dict[tuple[str, float], dict]:
    """The lines of a listing, without those that are none: a run can be cut off in the middle of one."""
    rows = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            rows[_key(row)] = row
        except (ValueError, TypeError, KeyError):
            continue
    return rows
