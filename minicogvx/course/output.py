"""How pictures, videos and words get into a notebook: small PNGs with a text alternative, embedded mp4s and GIFs.

Every picture has its text alternative in three places, because programs differ in what they read: in the metadata of
the output, as plain text, and as a caption. JupyterLab gives a PNG no alt attribute; GitHub shows no videos, so a clip
always has a strip of its frames under it.
"""

import base64
import html
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageChops, ImageStat
from torch import Tensor

from minicogvx.media import write_gif

DPI = 150  # of stored figures: sharp on a laptop's screen
SCREEN_DPI = 100  # pixels on the page for an inch of a figure
COLOURS = 256  # of a stored picture
MAX_ERROR = 3.0  # grey levels, of a stored picture's colours


def display(data: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """One output of the cell, by mime type."""
    from IPython.display import display as display_in_ipython

    display_in_ipython(dict(data), metadata=dict(metadata), raw=True)


def display_png(data: bytes, alt: str, width: int | None = None) -> None:
    """A PNG, `width` pixels wide on the page, with `alt` as its text alternative and its caption."""
    picture = base64.b64encode(data).decode()
    metadata = {"alt": alt} | ({"width": width} if width else {})
    display({"image/png": picture, "text/plain": alt}, {"image/png": metadata})
    display({"text/markdown": f"*{alt}*", "text/plain": alt}, {})


def display_mp4(data: bytes, height: int, width: int, alt: str, labels: Sequence[tuple[str, float]] = ()) -> None:
    """An mp4 that plays in a loop, at a size in pixels on the page, less where there is no room.

    labels: words above it, each with the share of the width that it has.
    """
    above = "".join(f'<span style="display: inline-block; width: {100 * share:.2f}%; vertical-align: bottom">'
                    f"{html.escape(label)}</span>" for label, share in labels)
    source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    tag = (f'<video autoplay loop muted controls playsinline width="{width}" height="{height}" '
           f'style="image-rendering: pixelated; max-width: 100%; height: auto" aria-label="{html.escape(alt)}" '
           f'src="{source}">{html.escape(alt)}</video>')
    tag = f'<div style="max-width: {width}px"><div>{above}</div>{tag}</div>' if above else tag
    display({"text/html": tag, "text/plain": alt}, {})


def figure_html(data: bytes, words: str, width: int | None = None) -> str:
    """An `<img>` of a PNG or GIF, `width` pixels wide, with `words` as its text alternative and its caption."""
    kind = "gif" if data.startswith(b"GIF") else "png"
    words, code = html.escape(words), base64.b64encode(data).decode()
    size = f' width="{width}"' if width else ""
    return (f'<figure style="margin: 0"><img alt="{words}" src="data:image/{kind};base64,{code}"{size} '
            f'style="max-width: 100%; image-rendering: pixelated">'
            f'<figcaption style="line-height: 1.4; font-style: italic">{words}</figcaption></figure>')


def png_of_figure(figure) -> bytes:
    """A matplotlib figure as a small PNG of 150 dots per inch; no picture in it stands in half a frame."""
    for axis in figure.axes:
        spines = [axis.spines[side] for side in ("left", "bottom", "top", "right") if side in axis.spines]
        meshes = [each for each in axis.collections if hasattr(each, "get_coordinates")]  # of pcolormesh
        if (axis.images or meshes) and [spine.get_visible() for spine in spines] == [True, True, False, False]:
            axis.spines[:].set_visible(False)
            axis.grid(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return _small_png(Image.open(buffer).convert("RGB"))


def width_on_screen(figure) -> int:
    """The width of a figure's PNG on the page, in pixels."""
    return round(SCREEN_DPI * figure.get_figwidth())


def png_of_picture(picture: Float[Tensor, "h w 3"]) -> bytes:
    """A picture (0..1) as a small PNG."""
    pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return _small_png(Image.fromarray(pixels))


def gif_of_clip(video: Float[Tensor, "t h w 3"], fps: int | float, min_side: int = 192) -> bytes:
    """A clip (0..1) as a GIF that plays, its shorter side at least `min_side` pixels."""
    with tempfile.TemporaryDirectory() as folder:
        return write_gif(Path(folder) / "clip.gif", video, fps, min_side).read_bytes()


def _small_png(picture: Image.Image) -> bytes:
    # Evenly spaced colours make small files, and are near enough for flat shapes, but not for films of the world.
    small = picture.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    if _error(small, picture) > MAX_ERROR:
        small = picture.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _error(small: Image.Image, picture: Image.Image) -> float:
    """How far two pictures are apart, in grey levels, as the root of the mean square."""
    squares = ImageStat.Stat(ImageChops.difference(small.convert("RGB"), picture)).rms
    return (sum(square ** 2 for square in squares) / 3) ** 0.5
