"""Sliders for whatever a notebook can compute: a grid of two settings, or a figure.

Each shows a static picture first, as those of `widgets.py` do. The function that draws is called when a slider stops
at values that it has not been called with.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from minicogvx.course import output, show
from minicogvx.course import widget_parts as parts
from minicogvx.media import enlarge_frames

SIDE = 192  # pixels, at least, of the shorter side of a picture or clip


def explore_grid(function: Callable[..., Any], /, alt: str = "", fps: int | float = 8,
                 **sliders: Sequence[Any]) -> None:
    """Two sliders: `function` of both values gives a clip (t h w 3 in 0..1), a picture (h w 3) or a figure.

    For example `explore_grid(made, "A caption with ...", guidance=[1, 3, 6], seed=[0, 1, 2])`. The sliders have the
    names of the arguments; those called `first` and `second` get the names of the function's parameters. Both start in
    the middle. The static picture shows at most 3 x 3 of the values; of clips, the middle frame. `alt` left out is the
    function's docstring. Raises ValueError for other than two sliders, one without values, or no `alt`.
    """
    if len(sliders) != 2:
        raise ValueError(f"explore_grid takes two sliders, such as first=[1, 2], second=[3, 4]; it was given "
                         f"{len(sliders)}")
    grid = _Grid(function, alt, sliders)
    result, words = grid.at(*grid.start)
    if isinstance(result, Tensor):
        show.show_figure(_sheet(grid), _words_of_sheet(grid))
    else:
        show.show_figure(result, words)
    _display_sliders(grid, fps)


def explore_figure(draw: Callable[..., Any], /, alt: str = "", **sliders: Sequence[Any]) -> None:
    """Redraws a figure as sliders move: `draw(**values)` gives a matplotlib figure, such as one of `new_figure`.

    For example `explore_figure(draw, "The schedule's curve", shift=[1, 3, 6])`. Each slider starts in the middle of its
    values; the static picture is that figure. `draw` may also return (figure, words), where the text alternative is to
    say more than the values, or a clip or picture as in `explore_grid`. `alt` left out is the docstring of `draw`.
    Raises ValueError for no slider, one without values, or no `alt`.
    """
    if not sliders:
        raise ValueError("explore_figure takes at least one slider, such as shift=[1, 3, 6]")
    grid = _Grid(draw, alt, sliders)
    result, words = grid.at(*grid.start)
    if isinstance(result, Tensor):
        output.display_png(output.png_of_picture(enlarge_frames(_middle(result)[None], SIDE)[0]), words)
    else:
        show.show_figure(result, words)
    _display_sliders(grid, 8)


# ---- helpers


class _Grid:
    """What a function gives for each choice of values, computed once; places are those in the lists of values."""

    def __init__(self, function: Callable[..., Any], alt: str, sliders: Mapping[str, Sequence[Any]]):
        self.alt = alt or (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
        if not self.alt.strip():
            raise ValueError("alt is empty; say in a sentence what the picture shows")
        self.function, self.arguments = function, list(sliders)
        self.values = [list(each) for each in sliders.values()]
        for name, each in zip(sliders, self.values):
            if not each:
                raise ValueError(f"the slider {name} has no values")
        self.start = tuple(len(each) // 2 for each in self.values)
        parameters = _parameters(function)
        self.by_name = all(name in parameters for name in sliders)
        named = not self.by_name and self.arguments == ["first", "second"] and len(parameters) >= 2
        self.names = parameters[:2] if named else self.arguments
        self.done: dict[tuple[int, ...], Any] = {}

    def at(self, *places: int) -> tuple[Any, str]:
        """The clip, picture or figure, and its text alternative."""
        if places not in self.done:
            chosen = [each[place] for each, place in zip(self.values, places)]
            self.done[places] = (self.function(**dict(zip(self.arguments, chosen))) if self.by_name
                                 else self.function(*chosen))
        result = self.done[places]
        return result if isinstance(result, tuple) else (result, self._words(places))

    def _words(self, places: tuple[int, ...]) -> str:
        said = [f"{name} {parts.value_text(each[place])}"
                for name, each, place in zip(self.names, self.values, places)]
        alt = parts.without_stop(self.alt)
        return f"{alt}{'. Here: ' if '. ' in alt else ': '}{', '.join(said)}."


def _parameters(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of something built in
        return []


def _display_sliders(grid: _Grid, fps: int | float) -> None:
    def drawn(*places: int) -> tuple[bytes, str, int | None]:
        result, words = grid.at(*places)
        if not isinstance(result, Tensor):
            return output.png_of_figure(result), words, output.width_on_screen(result)
        if result.ndim == 4:
            return output.gif_of_clip(result, fps, SIDE), words, None
        return output.png_of_picture(enlarge_frames(_middle(result)[None], SIDE)[0]), words, None

    parts.display_made(lambda: parts.explorer(
        [parts.choice_slider(name, list(map(parts.value_text, each)), place, wait=True)
         for name, each, place in zip(grid.names, grid.values, grid.start)], drawn))


def _sheet(grid: _Grid):
    """A figure of at most 3 x 3 clips or pictures: the first, middle and last value of each slider."""
    rows, columns = map(_in_sheet, grid.values)
    figure, axes = show.new_figure(len(rows), len(columns), 1.8 * len(columns) + 0.6, 1.8 * len(rows) + 0.3)
    for line, i in zip(axes, rows):
        for axis, j in zip(line, columns):
            axis.imshow(_middle(grid.at(i, j)[0]).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{grid.names[0]} {parts.value_text(grid.values[0][i])}")
    for axis, j in zip(axes[0], columns):
        axis.set_title(f"{grid.names[1]} {parts.value_text(grid.values[1][j])}")
    return figure


def _in_sheet(values: Sequence[Any]) -> list[int]:
    """The places of the first, the middle and the last value."""
    return sorted({0, len(values) // 2, len(values) - 1})


def _words_of_sheet(grid: _Grid) -> str:
    """The text alternative, with how many of the values the sheet has no place for."""
    few = [f"{len(_in_sheet(each))} of the {len(each)} values of {name}" for name, each in zip(grid.names, grid.values)
           if len(each) > len(_in_sheet(each))]
    if not few:
        return grid.alt
    return f"{parts.without_stop(grid.alt)}. The picture shows {' and '.join(few)}; the sliders have all of them."


def _middle(result: Tensor) -> Tensor:
    """The picture, or the clip's middle frame: h w 3 in 0..1."""
    picture = result[len(result) // 2] if result.ndim == 4 else result
    return picture.detach().float().cpu().clamp(0, 1)
