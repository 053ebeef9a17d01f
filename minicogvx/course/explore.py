"""Sliders for whatever a notebook can compute: a grid of two settings, or a figure.

Each shows a static picture first, as those of `widgets.py` do. The function that draws is called when a slider moves,
once for each choice of values.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minicogvx.course import show
from minicogvx.course import widget_parts as parts


def explore_grid(function: Callable[..., Any], alt: str = "", fps: int | float = 8, **sliders: Sequence[Any]) -> None:
    """Two sliders: `function` of both values gives a clip (t h w 3 in 0..1), a picture (h w 3) or a figure.

    For example `explore_grid(made, "A caption with ...", guidance=[1, 3, 6], seed=[0, 1, 2])`. The sliders have the
    names of the arguments; those called `first` and `second` get the names of the function's parameters. Both start in
    the middle. The static picture shows at most 3 x 3 of the values; of clips, the middle frame. `alt` left out is the
    function's docstring. Raises ValueError for other than two sliders, one without values, or no `alt`.
    """
    if len(sliders) != 2:
        raise ValueError(f"explore_grid takes two sliders, such as first=[1, 2], second=[3, 4]; it was given "
                         f"{len(sliders)}")
    alt, compute, names, values = _prepared(function, alt, sliders)
    rows, columns = (_spread(len(each)) for each in values)
    start = tuple(len(each) // 2 for each in values)
    if isinstance(compute(*start), Tensor):
        figure, axes = show.new_figure(len(rows), len(columns), 2.0 * len(columns) + 0.6, 2.0 * len(rows) + 0.3)
        for line, i in zip(axes, rows):
            for axis, j in zip(line, columns):
                axis.imshow(_middle(compute(i, j)), interpolation="nearest")
                axis.set(xticks=[], yticks=[])
            line[0].set_ylabel(f"{names[0]} {parts.text_of(values[0][i])}")
        for axis, j in zip(axes[0], columns):
            axis.set_title(f"{names[1]} {parts.text_of(values[1][j])}")
        show.show_figure(figure, alt)
    else:
        show.show_figure(_figure(compute(*start)), f"{parts.clause(alt)}: {_said(names, values, start)}.")
    _show_sliders(compute, alt, names, values, fps)


def explore_figure(draw: Callable[..., Any], alt: str = "", **sliders: Sequence[Any]) -> None:
    """Redraws a figure as sliders move: `draw(**values)` gives a matplotlib figure, such as one of `new_figure`.

    For example `explore_figure(draw, "The schedule's curve", shift=[1, 3, 6])`. Each slider starts in the middle of its
    values; the static picture is that figure. `draw` may also return (figure, words), where the text alternative is to
    say more than the values, or a clip or picture as in `explore_grid`. Raises ValueError for no slider, one without
    values, or no `alt`.
    """
    if not sliders:
        raise ValueError("explore_figure takes at least one slider, such as shift=[1, 3, 6]")
    alt, compute, names, values = _prepared(draw, alt, sliders)
    start = tuple(len(each) // 2 for each in values)
    result, words = _with_words(compute(*start), alt, names, values, start)
    if isinstance(result, Tensor):
        show._show_png(show._png(torch.as_tensor(_middle(result))), words)
    else:
        show.show_figure(result, words)
    _show_sliders(compute, alt, names, values, 8)


# ---- helpers


def _prepared(function: Callable[..., Any], alt: str, sliders: Mapping[str, Sequence[Any]]):
    """(alt, a cached function of places in the lists of values, names of the sliders, lists of values)."""
    alt = alt or (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
    if not alt.strip():
        raise ValueError("alt is empty; say in a sentence what the picture shows")
    values = [list(each) for each in sliders.values()]
    for name, each in zip(sliders, values):
        if not each:
            raise ValueError(f"the slider {name} has no values")
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of something built in
        parameters = []
    by_name = all(name in parameters for name in sliders)
    names = list(sliders) if by_name or len(parameters) < len(sliders) else parameters[:len(sliders)]
    names = list(sliders) if tuple(sliders) != ("first", "second") else names
    done: dict[tuple[int, ...], Any] = {}

    def compute(*places: int) -> Any:
        if places not in done:
            chosen = [each[place] for each, place in zip(values, places)]
            done[places] = function(**dict(zip(sliders, chosen))) if by_name else function(*chosen)
        return done[places]

    return alt, compute, names, values


def _show_sliders(compute: Callable[..., Any], alt: str, names: list[str], values: list[list],
                  fps: int | float) -> None:
    def picture_and_words(*places: int) -> tuple[bytes, str]:
        result, words = _with_words(compute(*places), alt, names, values, places)
        return _picture(result, fps), words

    sliders = [parts.choice(name, list(map(parts.text_of, each)), len(each) // 2, wait=True)
               for name, each in zip(names, values)]
    parts.display_widget(parts.explorer(sliders, picture_and_words))


def _with_words(result: Any, alt: str, names: list[str], values: list[list], places: tuple[int, ...]):
    if isinstance(result, tuple):
        return result
    return result, f"{parts.clause(alt)}: {_said(names, values, places)}."


def _said(names: list[str], values: list[list], places: tuple[int, ...]) -> str:
    return ", ".join(f"{name} {parts.text_of(each[place])}" for name, each, place in zip(names, values, places))


def _figure(result: Any):
    return result[0] if isinstance(result, tuple) else result


def _picture(result: Any, fps: int | float) -> bytes:
    from minicogvx.course.widgets import _frame, _strip

    if not isinstance(result, Tensor):
        return parts.png_of(result)
    return _strip(result) if result.ndim == 4 else _frame(result)


def _middle(result: Tensor):
    """The picture, or the clip's middle frame, as matplotlib takes it."""
    picture = result[len(result) // 2] if result.ndim == 4 else result
    return picture.detach().float().cpu().clamp(0, 1).numpy()


def _spread(count: int) -> list[int]:
    return sorted({0, count // 2, count - 1})
