"""One picture to compare models: frames of some clips before, after, and of the true clips, side by side."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minicogvx.files import written_whole
from minicogvx.media import output_file

_GAP, _BETWEEN, _MARGIN = 3, 18, 12  # pixels between frames, between columns, around everything
_LABEL, _CAPTION = 18, 15  # font sizes in pixels
_INK, _PALE = (30, 30, 30), (90, 90, 90)


def write_comparison(path: str | Path, columns: dict[str, Sequence[Float[Tensor, "t h w 3"]]], captions: Sequence[str],
                     num_frames: int = 4, side: int = 96) -> Path:
    """A PNG with one column for each label and one row for each caption; returns its path.

    A cell holds `num_frames` evenly spaced frames of a clip (values in 0..1), first and last among them, each about
    `side` pixels high. Raises ValueError for a bad file name or columns that do not have a clip for every caption.
    """
    path = output_file(path, (".png",))
    for label, clips in columns.items():
        if len(clips) != len(captions):
            raise ValueError(f"the column {label!r} has {len(clips)} clips; it must have {len(captions)}, one for each "
                             f"caption")
    cells = {label: [_frames(clip, num_frames, side) for clip in clips] for label, clips in columns.items()}
    first = next(iter(cells.values()))[0]
    width = len(cells) * (first.width + _BETWEEN) - _BETWEEN + 2 * _MARGIN
    band = _CAPTION + 8 + first.height + _BETWEEN
    picture = Image.new("RGB", (width, 2 * _MARGIN + _LABEL + 10 + len(captions) * band - _BETWEEN), "white")
    draw = ImageDraw.Draw(picture)
    for column, (label, frames) in enumerate(cells.items()):
        x = _MARGIN + column * (first.width + _BETWEEN)
        draw.text((x, _MARGIN), _fit(label, _LABEL, first.width), _INK, ImageFont.load_default(_LABEL))
        for row, cell in enumerate(frames):
            picture.paste(cell, (x, _MARGIN + _LABEL + 10 + row * band + _CAPTION + 8))
    for row, caption in enumerate(captions):
        draw.text((_MARGIN, _MARGIN + _LABEL + 10 + row * band), _fit(caption, _CAPTION, width - 2 * _MARGIN), _PALE,
                  ImageFont.load_default(_CAPTION))
    with written_whole(path) as part:
        picture.save(part, format="PNG")
    return path


def _frames(clip: Tensor, num_frames: int, side: int) -> Image.Image:
    chosen = torch.linspace(0, len(clip) - 1, min(num_frames, len(clip))).round().long()
    pixels = (clip[chosen].detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    height, width = max(side, pixels.shape[1]), round(max(side, pixels.shape[1]) * pixels.shape[2] / pixels.shape[1])
    strip = Image.new("RGB", (len(pixels) * (width + _GAP) - _GAP, height), "white")
    for i, frame in enumerate(pixels):
        enlarged = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
        strip.paste(enlarged, (i * (width + _GAP), 0))
    return strip


def _fit(text: str, size: int, width: int) -> str:
    """`text`, truncated to `width` pixels."""
    font = ImageFont.load_default(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
