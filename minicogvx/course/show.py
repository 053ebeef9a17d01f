"""Pictures for notebooks: a playing clip, rows of frames, figures in one style, source code from its own file.

Every picture has its text alternative in three places, because programs differ in what they read: in the metadata of
the output, as plain text, and as a caption. JupyterLab gives a PNG no alt attribute; GitHub shows no videos, so a clip
always has a strip of its frames under it.
"""

import base64
import html
import inspect
import io
import logging
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minicogvx.media import write_mp4

MAX_CLIP_BYTES = 200_000  # of the embedded mp4: notebooks should be small
GAP, LABEL_SIZE, LINE = 12, 15, 20  # pixels between clips side by side; of the labels above them, and of their lines
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")  # Okabe and Ito's
STYLE = {
    "font.size": 10, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 2,
    "legend.frameon": False, "figure.facecolor": "white", "savefig.facecolor": "white",
}


# ---- clips


def show_clip(video: Float[Tensor, "t h w 3"], alt: str, fps: int | float = 8, num_frames: int = 6) -> None:
    """Plays `video` (0..1) in the notebook, with a strip of `num_frames` of its frames and `alt` under it.

    The mp4 is embedded: at most 200 KB, halved in size until it fits. Raises ValueError for a bad shape or no `alt`.
    """
    _check(video, alt)
    data, height, width = _small_mp4(_enlarge(video, 64), fps)
    times = max(1, -(-192 // min(height, width)))  # enlarged by the browser, as notebooks should be small
    _show_mp4(data, times * height, times * width, alt)
    strip = rearrange(_padded(_enlarge(_chosen(video, num_frames), 96)), "t h w c -> h (t w) c")
    _show_png(_png(strip), f"{alt} ({frames_said(video, num_frames)})")


def show_rows(rows: dict[str, Float[Tensor, "_ _ _ 3"]], alt: str, num_frames: int = 6) -> None:
    """One labelled row of frames for each video, to compare them, with frame numbers above.

    Raises ValueError for a bad shape, no `alt`, or no rows.
    """
    if not rows:
        raise ValueError("there are no rows; give at least one video with its label")
    for video in rows.values():
        _check(video, alt)
    columns = min(num_frames, max(map(len, rows.values())))
    shape = next(iter(rows.values())).shape
    figure, axes = new_figure(len(rows), columns, 1.15 * columns + 1.6, (1.2 * shape[1] / shape[2]) * len(rows) + 0.25)
    for row, (label, video) in zip(axes, rows.items()):
        places = _places(len(video), columns)
        for axis in row:
            axis.set_axis_off()
        for axis, place in zip(row, places):
            axis.imshow(video[place].detach().float().cpu().clamp(0, 1).numpy(), interpolation="nearest")
            axis.set_title(f"frame {place}", fontsize=7, pad=2, color="#555555")
        row[0].text(-0.08, 0.5, textwrap.fill(label, 20), transform=row[0].transAxes, ha="right", va="center")
    show_figure(figure, alt)


def compare_clips(clips: Mapping[str, Float[Tensor, "_ _ _ 3"]], alt: str, fps: int | float = 8,
                  num_frames: int = 6) -> None:
    """Plays clips (0..1) side by side, with gaps and a label above each, and shows rows of their frames below.

    A shorter clip waits at its last frame for the others. At most four stand in a row. Raises ValueError for a bad
    shape, no `alt`, or no clips.
    """
    if not clips:
        raise ValueError("there are no clips; give at least one with its label")
    for video in clips.values():
        _check(video, alt)
    data, height, width = _labelled_mp4(clips, fps)
    _show_mp4(data, height, width, alt)
    show_rows(dict(clips), alt, num_frames)


def frames_said(video: Float[Tensor, "t h w 3"], num_frames: int = 6) -> str:
    """Which frames a strip of `num_frames` shows, counted from 0."""
    places = _places(len(video), num_frames)
    if len(places) == len(video):
        return f"frames 0 to {len(video) - 1}" if len(video) > 1 else "frame 0"
    return f"frames {', '.join(map(str, places[:-1]))} and {places[-1]}"


# ---- figures


def new_figure(rows: int = 1, columns: int = 1, width: float = 7.0, height: float = 2.6) -> tuple:
    """A matplotlib figure in the course's style and its axes, an array of rows x columns. Sizes in inches.

    Raises ImportError, with the command that installs it, if matplotlib is missing.
    """
    # The first import builds a font cache, with a message on stderr that would end up in the notebook.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    try:
        import matplotlib
        from cycler import cycler
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is missing; install it with: pip install -e '.[notebooks]'") from error
    matplotlib.rcParams.update(STYLE | {"axes.prop_cycle": cycler(color=PALETTE)})  # also for a learner's own plots
    # Not pyplot, which keeps a list of open figures and prints stray objects.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def show_figure(figure, alt: str) -> None:
    """Shows a matplotlib figure once, as a small PNG, with `alt` as its text alternative and its caption."""
    if not alt.strip():
        raise ValueError("alt is empty; say in a sentence what the picture shows")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    picture = Image.open(buffer).convert("RGB")
    _show_png(_small_png(picture), alt)


# ---- source


def show_source(thing: Callable) -> None:
    """Shows the source of a function, method or class of the package, with the name of its file.

    Raises ValueError for anything that is not part of minicogvx, such as a copy in a notebook.
    """
    module = inspect.getmodule(thing)
    if module is None or not module.__name__.startswith("minicogvx"):
        raise ValueError(f"{getattr(thing, '__qualname__', thing)} is not part of minicogvx; "
                         f"show something of the package")
    path = Path(*module.__name__.split(".")).with_suffix(".py")
    source = textwrap.dedent(inspect.getsource(thing)).rstrip()
    markdown = f"`{path.as_posix()}`: `{thing.__qualname__}`\n\n```python\n{source}\n```"
    _display({"text/markdown": markdown, "text/plain": f"{path.as_posix()}\n\n{source}"}, {})


# ---- helpers


def _check(video: Tensor, alt: str) -> None:
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(f"the video has shape {tuple(video.shape)}; it must be t h w 3 with at least one frame")
    if not alt.strip():
        raise ValueError("alt is empty; say in a sentence what the video shows")


def _show_mp4(data: bytes, height: int, width: int, alt: str) -> None:
    source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    tag = (f'<video autoplay loop muted controls playsinline width="{width}" height="{height}" '
           f'style="image-rendering: pixelated; max-width: 100%; height: auto" aria-label="{html.escape(alt)}" '
           f'src="{source}">{html.escape(alt)}</video>')
    _display({"text/html": tag, "text/plain": alt}, {})


def _labelled_mp4(clips: Mapping[str, Tensor], fps: int | float) -> tuple[bytes, int, int]:
    """One mp4 of all clips, in rows, with its height and width; in smaller pictures until it fits."""
    columns = -(-len(clips) // -(-len(clips) // 4))
    for side in (192, 128, 96, 64):
        panels = [_panel(label, video, side, max(map(len, clips.values()))) for label, video in clips.items()]
        height, width = (max(panel.shape[axis] for panel in panels) for axis in (1, 2))
        panels = [F.pad(panel, (0, 0, 0, width - panel.shape[2], 0, height - panel.shape[1]), value=1.0)
                  for panel in panels]
        panels += [torch.ones_like(panels[0])] * (-len(panels) % columns)
        sheet = rearrange(torch.stack(panels), "(rows columns) t h w c -> t (rows h) (columns w) c", columns=columns)
        with tempfile.TemporaryDirectory() as folder:
            data = write_mp4(Path(folder) / "clips.mp4", sheet, fps).read_bytes()
        if len(data) <= MAX_CLIP_BYTES:
            break
    return data, *sheet.shape[1:3]


def _panel(label: str, video: Tensor, side: int, length: int) -> Float[Tensor, "t h w 3"]:
    """A clip of `length` frames at about `side` pixels with its label above and a white border that keeps a gap."""
    video = video.detach().float().cpu()
    video = torch.cat([video, video[-1:].expand(length - len(video), -1, -1, -1)])
    if min(video.shape[1:3]) > 2 * side:
        video = F.interpolate(video.permute(0, 3, 1, 2), scale_factor=side / min(video.shape[1:3]), mode="area")
        video = video.permute(0, 2, 3, 1)
    video = F.pad(_enlarge(video, side), (0, 0, 0, GAP), value=1.0)
    font = ImageFont.load_default(LABEL_SIZE)
    wrapped = textwrap.wrap(label, max(8, int(video.shape[2] / (0.55 * LABEL_SIZE)))) or [""]
    text = Image.new("RGB", (video.shape[2], LINE * len(wrapped)), "white")
    for place, line in enumerate(wrapped):
        ImageDraw.Draw(text).text((0, LINE * place), line, fill="black", font=font)
    pixels = torch.frombuffer(bytearray(text.tobytes()), dtype=torch.uint8).view(text.height, text.width, 3)
    return torch.cat([(pixels / 255).expand(length, -1, -1, -1), video], dim=1)


def _small_mp4(video: Tensor, fps: int | float) -> tuple[bytes, int, int]:
    with tempfile.TemporaryDirectory() as folder:
        while True:
            data = write_mp4(Path(folder) / "clip.mp4", video, fps).read_bytes()
            if len(data) <= MAX_CLIP_BYTES or min(video.shape[1:3]) < 32:
                return data, video.shape[1], video.shape[2]
            video = video[:, ::2, ::2]


def _places(length: int, count: int) -> list[int]:
    return torch.linspace(0, length - 1, min(count, length)).round().long().tolist()


def _chosen(video: Tensor, count: int) -> Tensor:
    return video[_places(len(video), count)]


def _enlarge(video: Tensor, min_side: int) -> Tensor:
    factor = max(1, -(-min_side // min(video.shape[1:3])))
    return video.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def _padded(video: Tensor, gap: int = 4) -> Tensor:
    return torch.nn.functional.pad(video.detach().float().cpu(), (0, 0, 0, gap), value=1.0)


def _png(picture: Float[Tensor, "h w 3"]) -> bytes:
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return _small_png(Image.fromarray(pixels))


def _small_png(picture: Image.Image) -> bytes:
    # 48 colours are enough for flat shapes and thin lines, and make the file much smaller.
    buffer = io.BytesIO()
    small = picture.quantize(48, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    small.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _show_png(data: bytes, alt: str) -> None:
    picture = base64.b64encode(data).decode()
    _display({"image/png": picture, "text/plain": alt}, {"image/png": {"alt": alt}})
    _display({"text/markdown": f"*{alt}*", "text/plain": alt}, {})


def _display(data: dict, metadata: dict) -> None:
    from IPython.display import display

    display(data, metadata=metadata, raw=True)
