"""Dense captions: what a text-to-video model learns words from (paper, section 3.4 and Appendix G).

The published way: a short caption of the whole video; a vision-language model (CogVLM) describes one frame every two
seconds; a language model (GPT-4, later LLaMA-2 fine-tuned on 50,000 of its answers) sums them up in at most 100 words.
At last all of it was taught to one model, CogVLM2-Caption. Here any vision-language model and any language model in the
folder layout of transformers take these parts; the published prompt is GPT-4's, and ours is our own.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.data.caption_notes import notes_beside
from minicogvx.data.captions import evaluation_caption
from minicogvx.data.listing import Line, Listing, Problem, same_name, writable_list
from minicogvx.data.oracle import read
from minicogvx.data.shapes import Scene, ShapeObject
from minicogvx.data.video_files import stream_frames
from minicogvx.data.video_folder import VideoClip, clip_line, failed, read_clip

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
    """Give every clip a caption in `out`, a list as metadata.jsonl; clips that have one, here or there, keep it.

    A line of `out` on a clip gets the caption and keeps its other fields; clips without a line get one at the end; all
    other lines stay as they are. `overwrite` gives every clip a new caption. What is done is noted in a hidden folder
    beside `out` as it goes: a run that was cut off resumes there if `by`, which says who captions and how, is the same.

    Clips that the captioner cannot name are returned with the reason. Raises ValueError where `out` is something other
    than a list, or another run is writing captions for it; both, and OSError, before the captioner is asked.
    """
    out, problems, captions = writable_list(out), [], {}
    lines = _lines_of(clips, Listing(out, _folder_of(clips)), overwrite)
    with notes_beside(out, by) as notes:
        for i, key in enumerate(tqdm(_keys(clips), "captioning", disable=not progress)):
            clip, there = clips[i], lines[i].text if lines[i] else ""
            if (clip.caption or there) and not overwrite:
                captions[i] = clip.caption or there
                continue
            if key not in notes.done:
                try:
                    text = _one_line(captioner(clip))
                except (ValueError, OSError, RuntimeError) as error:
                    problems.append(failed(clip, error))
                    continue
                notes.add(key, text)
            captions[i] = notes.done[key]
        _write_captions(out, clips, captions, overwrite)
    return problems


def _one_line(text: str) -> str:
    if not text.strip():
        raise ValueError("got no caption: the captioner said nothing")
    text.encode()  # raises ValueError for half a character, which no list can hold
    return " ".join(text.split())


def _write_captions(out: Path, clips: Sequence[VideoClip], captions: dict[int, str], overwrite: bool) -> None:
    listing = Listing(out, _folder_of(clips))  # read again: somebody may have changed it since the captioner began
    lines = _lines_of(clips, listing, overwrite)
    for i, text in captions.items():
        line = lines[i]
        if line is None:
            listing.append(clip_line(replace(clips[i], caption=text)))
        elif overwrite or not line.text:
            listing.set_caption(line, text)
    listing.write()


def _folder_of(clips: Sequence[VideoClip]) -> Path:
    """The folder that the names of the clips are seen from."""
    return clips[0].path.parents[clips[0].name.count("/")] if clips else Path()


def _keys(clips: Sequence[VideoClip]) -> list[tuple]:
    """Name, seconds and, of several clips alike, the number of each: the same again in the next run."""
    counts: Counter[tuple] = Counter()
    keys = []
    for clip in clips:
        piece = (clip.name, round(clip.start, 3), round(clip.end, 3))
        keys.append((*piece, counts[piece]))
        counts[piece] += 1
    return keys


def _lines_of(clips: Sequence[VideoClip], listing: Listing, overwrite: bool) -> list[Line | None]:
    """The line of `listing` that each clip is; no line is two clips.

    First those that say the same in file, piece and caption, then those where one has no caption or it does not count.
    """
    names = {clip.name for clip in clips}
    alike = {same_name(name): name for name in names}
    free: dict[tuple, list[Line]] = {}
    for line in listing.lines:
        # Two files can have names that only their bytes tell apart.
        name = line.name if line.name in names else alike.get(same_name(line.name), line.name)
        free.setdefault((name, line.start, line.end), []).append(line)
    rows = [clip_line(clip) for clip in clips]
    groups = [free.get((clip.name, row.get("start", 0.0), row.get("end")), []) for clip, row in zip(clips, rows)]
    found: list[Line | None] = [None] * len(clips)
    for same_caption in (True, False):
        for i, (clip, group) in enumerate(zip(clips, groups)):
            fits = [line for line in group if (line.text == clip.caption if same_caption else
                                               overwrite or not line.text or not clip.caption)]
            if found[i] is None and fits:
                found[i] = fits[0]
                group.remove(fits[0])
    return found
