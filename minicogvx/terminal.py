"""Frames of a clip as coloured characters in a terminal, and lines that are drawn again in place.

A character is a half block: its foreground is one pixel, its background the pixel below.
"""

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import TextIOBase

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

_HALF, _RESET = "\u2580", "\x1b[0m"
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LEVELS = (0, 95, 135, 175, 215, 255)  # of red, green and blue in the cube of 256 colours; then 24 greys
_SHADES = " .:*#"  # without colours: how far a cell is from the frame's border
_LEAST, _MOST = 16, 32  # pixels of a frame's side


@dataclass(frozen=True)
class Screen:
    """What the place that text goes to can show."""

    colours: str = "no"  # "24-bit", "256" or "no"
    terminal: bool = False  # if not, no pictures at all
    width: int = 80  # characters
    codes: bool = False  # whether the cursor can be moved


def screen_of(stream: TextIOBase, variables: Mapping[str, str] = os.environ) -> Screen:
    """What `stream` can show, by its environment: NO_COLOR, COLORTERM, TERM, COLUMNS."""
    width = max(20, shutil.get_terminal_size().columns)
    if not stream.isatty():
        return Screen(width=width)
    kind, windows = variables.get("TERM", ""), sys.platform == "win32" and "WT_SESSION" in variables
    if kind in ("dumb", "") and not windows:
        return Screen(terminal=True, width=width)
    if variables.get("NO_COLOR") or not _can_write(stream, _HALF):
        return Screen("no", True, width, True)
    if windows or variables.get("COLORTERM", "").lower() in ("truecolor", "24bit") or "direct" in kind:
        return Screen("24-bit", True, width, True)
    return Screen("256" if "256" in kind else "no", True, width, True)


def _can_write(stream: TextIOBase, character: str) -> bool:
    try:
        character.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def frames_as_text(video: Float[Tensor, "t h w 3"], screen: Screen, most: int = 4) -> list[str]:
    """Lines that show `most` frames of a clip (0..1) side by side, first and last among them; fewer if it is narrow.

    Empty where there is no terminal. Without colours, cells that differ from the frame's border are marked.
    """
    if not screen.terminal:
        return []
    count = min(most, len(video), max(1, (screen.width - 1) // (_LEAST + 1)))
    side = min(_MOST, (screen.width - count) // count) // 2 * 2
    chosen = video[torch.linspace(0, len(video) - 1, count).round().long()].permute(0, 3, 1, 2).float()
    small = F.adaptive_avg_pool2d(chosen, (side, side)).clamp(0, 1)
    bytes_ = (small * 255).round().to(torch.uint8).permute(0, 2, 3, 1)  # t h w 3
    draw = {"24-bit": _coloured(_true_colour), "256": _coloured(_of_256), "no": _shaded}[screen.colours]
    drawn = [draw(frame) for frame in bytes_]
    return [" ".join(rows) for rows in zip(*drawn)]


def _coloured(code: Callable[[list[int]], str]) -> Callable[[UInt8[Tensor, "h w 3"]], list[str]]:
    """Draws a frame with the colours that `code` makes of pixels."""
    return lambda frame: [_half_blocks(above.tolist(), below.tolist(), code)
                          for above, below in zip(frame[::2], frame[1::2])]


def _half_blocks(above: list[list[int]], below: list[list[int]], code: Callable[[list[int]], str]) -> str:
    pieces, last = [], None
    for pair in zip(above, below):
        if pair != last:
            pieces.append(f"\x1b[38;{code(pair[0])};48;{code(pair[1])}m")
        pieces.append(_HALF)
        last = pair
    return "".join(pieces) + _RESET


def _true_colour(pixel: list[int]) -> str:
    return "2;" + ";".join(map(str, pixel))


def _of_256(pixel: list[int]) -> str:
    """The nearest of the cube's 216 colours and the 24 greys."""
    steps = [min(range(6), key=lambda i: abs(_LEVELS[i] - value)) for value in pixel]
    grey = min(23, max(0, round((sum(pixel) / 3 - 8) / 10)))
    cube_error = sum((_LEVELS[i] - value) ** 2 for i, value in zip(steps, pixel))
    grey_error = sum((8 + 10 * grey - value) ** 2 for value in pixel)
    return f"5;{232 + grey if grey_error < cube_error else 16 + 36 * steps[0] + 6 * steps[1] + steps[2]}"


def _shaded(frame: UInt8[Tensor, "h w 3"]) -> list[str]:
    """Draws how far each cell is from the frame's border."""
    border = torch.cat([frame[0], frame[-1], frame[:, 0], frame[:, -1]]).float().median(dim=0).values
    far = (frame.float() - border).abs().amax(dim=-1) / 255  # h w
    cells = (far[::2] + far[1::2]) / 2
    return ["".join(_SHADES[min(len(_SHADES) - 1, int(8 * value))] for value in row) for row in cells.tolist()]


def put(text: str) -> None:
    """Writes the program's own text with its colours to the standard output, which otherwise shows such codes."""
    getattr(sys.stdout, "write_codes", sys.stdout.write)(text)
    sys.stdout.flush()


class Redrawn:
    """Lines at the end of a terminal, which the next ones replace; `show` does nothing where that is impossible."""

    def __init__(self, screen: Screen):
        self.screen, self.lines = screen, 0

    def show(self, lines: list[str]) -> None:
        """Draws lines in place of the last ones; each is cut at the width of the screen, if it has no colours."""
        if not self.screen.codes:
            return
        cut = [line if _CODES.search(line) else line[:self.screen.width - 1] for line in lines]
        put((f"\x1b[{self.lines}A" if self.lines else "") + "\x1b[J" + "".join(f"{line}\n" for line in cut))
        self.lines = len(cut)

    def clear(self) -> None:
        """Removes the lines."""
        self.show([])


def play(video: Float[Tensor, "t h w 3"], fps: int | float, screen: Screen) -> None:
    """Plays a clip once, in place, in a terminal with colours; then removes it."""
    if screen.colours != "no":
        live = Redrawn(screen)
        for frame in video:
            live.show(frames_as_text(frame[None], screen))
            time.sleep(1 / fps)
        live.clear()
