"""Dense captions, from which a text-to-video model learns words (paper, section 3.4 and Appendix G).

The published pipeline: a short caption of the whole video; a vision-language model (CogVLM) describes one frame every
two seconds; a language model (GPT-4, later LLaMA-2 fine-tuned on 50,000 of its answers) summarises them in at most 100
words. Finally, a single model, CogVLM2-Caption, was trained to do all of it. Here any vision-language model and any
language model in the folder layout of transformers can be used; the published prompt was for GPT-4, ours is our own.
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

from minicogvx.data.films.caption_notes import notes_beside
from minicogvx.data.films.decode import stream_frames
from minicogvx.data.films.folder import VideoClip, clip_line, failed, read_clip
from minicogvx.data.films.listing import Line, Listing, Problem, one_line, same_name, writable_list
from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.oracle import read
from minicogvx.data.world.scenes import Scene, ShapeObject

MAX_WORDS = 100
EVERY_SECONDS = 2.0
_MODEL_SIDE = 448  # pixels of the shorter side of the model's input; its own processor resizes further
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
    """A one-line description of each picture (0..1). Raises ValueError if there are none."""
    if not len(frames):
        raise ValueError("there are no frames to describe; give at least one")
    return [" ".join(captioner(frame).split()) for frame in frames]


def join_descriptions(descriptions: Sequence[str], max_words: int = MAX_WORDS) -> str:
    """The fallback without a language model: one sentence per description, in order, without repetitions.

    "a dog sits", "a dog sits", "a dog runs" -> "A dog sits. Then a dog runs." It is a stopgap.
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
    """`text` on one line, with at most `max_words` words: truncated after the last sentence that fits, if any."""
    words = text.split()
    short = " ".join(words[:max_words])
    if len(words) <= max_words:
        return short
    whole = re.match(r"(.*[.!?])\s", short + " ")
    return whole.group(1) if whole else short


# ---- captioners of whole clips


class DenseCaptioner:
    """Clip -> caption: describes frames one by one, then summarises the descriptions.

    `describe` describes a picture; `summarise` answers a prompt, None joins the descriptions.
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

        `device` and `dtype`: None is the choice of `compat`.
        """
        from minicogvx.data.films.caption_models import LanguageModel, VisionLanguageModel

        summarise = LanguageModel(summary_folder, device=device, dtype=dtype) if summary_folder else None
        return cls(VisionLanguageModel(folder, FRAME_PROMPT, device=device, dtype=dtype), summarise, every_seconds)

    def __call__(self, clip: VideoClip) -> str:
        """The caption of `clip`, at most 100 words. Its previous caption goes into the prompt for the summary."""
        descriptions = caption_frames(still_frames(clip, self.every_seconds), self.describe)
        if self.summarise is None:
            return join_descriptions(descriptions)
        return limit_words(self.summarise(self.prompt(descriptions, clip.caption)))

    def prompt(self, descriptions: Sequence[str], short_caption: str = "") -> str:
        """The prompt for the language model."""
        numbered = "\n".join(f"{i}. {text}" for i, text in enumerate(descriptions, 1))
        short = f" Somebody called it: {short_caption}" if short_caption else ""
        return SUMMARY_PROMPT.format(every=self.every_seconds, short=short, descriptions=numbered, words=MAX_WORDS)


def still_frames(clip: VideoClip, every_seconds: float = EVERY_SECONDS) -> list[Float[Tensor, "h w 3"]]:
    """The first frame of `clip` and one every `every_seconds`, in 0..1, the shorter side at most 448 pixels."""
    if clip.is_image:
        return [read_clip(clip, 0.0, 1, 1.0, clip.height, clip.width)[0]]
    times = [clip.start + k * every_seconds for k in range(max(1, clip.frames_at(1 / every_seconds)))]
    return [frame.float() / 255 for frame in stream_frames(clip.path, times, _MODEL_SIDE)]


def caption_shapes(clip: VideoClip, seed: int = 0) -> str:
    """The exact caption of a clip of the shapes world, read from its pixels: shape, colour, motion and background.

    `seed` chooses the phrasing. Raises ValueError if the clip shows something else or is ambiguous.
    """
    if clip.is_image:
        raise ValueError("is a picture; the motion of a shape cannot be read from it")
    scale = _ORACLE_SIDE / min(clip.height, clip.width)
    # The middles of 17 equal parts of the clip, so that the whole motion is covered.
    fps, first = _ORACLE_FRAMES / clip.seconds, clip.seconds / _ORACLE_FRAMES / 2
    frames = read_clip(clip, first, _ORACLE_FRAMES, fps, round(clip.height * scale), round(clip.width * scale))
    seen = read(frames)
    things = [thing for thing in seen.objects if thing.shape and thing.colour and thing.motion]
    if seen.background is None or not things or seen.count != len(things):
        raise ValueError("shows nothing that the shapes world has, or something ambiguous")
    # The caption mentions neither position nor size, so any will do.
    objects = tuple(ShapeObject(thing.shape, thing.colour, thing.motion, 0.5, 0.5, 0.2) for thing in things)
    return evaluation_caption(Scene(objects, seen.background), random.Random(seed))


# ---- a whole folder


def caption_clips(clips: Sequence[VideoClip], captioner: ClipCaptioner, out: str | Path, overwrite: bool = False,
                  progress: bool = True, by: str = "") -> list[Problem]:
    """Give every clip a caption in `out`, a list like metadata.jsonl; clips that have one keep it.

    A clip's line in `out` gets the caption and keeps its other fields; clips without a line get one at the end; all
    other lines are unchanged. `overwrite` gives every clip a new caption. Progress is saved in a hidden folder beside
    `out`: an interrupted run resumes if `by`, which names the captioner and its settings, is the same.

    Clips that cannot be captioned are returned with the reason. Raises ValueError if `out` is not a list, or another
    run is writing captions for it; this, and OSError, before any captioning.
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
    text.encode()  # raises ValueError for a lone surrogate, which no list can hold
    text = one_line(text)
    if not text:
        raise ValueError("got no caption: the captioner said nothing")
    return text


def _write_captions(out: Path, clips: Sequence[VideoClip], captions: dict[int, str], overwrite: bool) -> None:
    listing = Listing(out, _folder_of(clips))  # read again: it may have changed in the meantime
    lines = _lines_of(clips, listing, overwrite)
    for i, text in captions.items():
        line = lines[i]
        if line is None:
            listing.append(clip_line(replace(clips[i], caption=text)))
        elif overwrite or not line.text:
            listing.set_caption(line, text)
    listing.write()


def _folder_of(clips: Sequence[VideoClip]) -> Path:
    """The folder to which the names of the clips are relative."""
    return clips[0].path.parents[clips[0].name.count("/")] if clips else Path()


def _keys(clips: Sequence[VideoClip]) -> list[tuple]:
    """Name, seconds and, among equal clips, a number: keys that are the same in the next run."""
    counts: Counter[tuple] = Counter()
    keys = []
    for clip in clips:
        piece = (clip.name, round(clip.start, 3), round(clip.end, 3))
        keys.append((*piece, counts[piece]))
        counts[piece] += 1
    return keys


def _lines_of(clips: Sequence[VideoClip], listing: Listing, overwrite: bool) -> list[Line | None]:
    """The line of `listing` for each clip; no line is used twice.

    First those with the same file, piece and caption, then those where one has no caption or it is overwritten.
    """
    names = {clip.name for clip in clips}
    alike = {same_name(name): name for name in names}
    free: dict[tuple, list[Line]] = {}
    for line in listing.lines:
        # The names of two files can differ in bytes that are not text.
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
