"""An attention map to click on: choose a token, and see from which tokens it takes how much."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course import output, show
from minicogvx.course import widget_parts as parts


def explore_attention(weights: Float[Tensor, "*heads n keys"], labels: Sequence[str], alt: str = "",
                      grid: tuple[int, int, int] | None = None) -> None:
    """Click a token and see where it looks: `weights[i, j]` is how much query i takes from key j.

    labels: one for each token. With `grid` (t, h, w), `labels` name the tokens before the last t * h * w, which are the
    places of a clip and are drawn as one map a frame. With heads, a slider chooses one. The static picture shows all
    weights of head 0; `alt` says what they are. Raises ValueError for a bad shape, negative or NaN weights, or a number
    of labels that does not fit.
    """
    weights = _checked(weights, labels, grid)
    words = parts.without_stop(alt) or f"The attention of {weights.shape[1]} tokens"
    named = [*labels, *_places(grid)]
    show.show_figure(_all_weights(weights[0], named), f"{words}, as a picture: a row for each query, a column for each "
                                                      f"key; the darker, the more the query takes from the key.")
    parts.display_widget(_chooser(weights, list(labels), named, words, grid))


def _checked(weights: Tensor, labels: Sequence[str], grid: tuple[int, int, int] | None) -> Float[Tensor, "heads n n"]:
    weights = weights.detach().float().cpu()
    if weights.ndim not in (2, 3) or weights.shape[-1] != weights.shape[-2]:
        raise ValueError(f"the weights have shape {tuple(weights.shape)}; they must be n x n, or heads x n x n")
    if not bool((weights >= 0).all()):
        raise ValueError("some weights are negative or NaN; give the weights after the softmax")
    places = len(_places(grid))
    if len(labels) + places != weights.shape[-1]:
        beside = f" and {places} places of a clip" if grid else ""
        raise ValueError(f"there are {len(labels)} labels{beside} for {weights.shape[-1]} tokens")
    return weights[None] if weights.ndim == 2 else weights


def _places(grid: tuple[int, int, int] | None) -> list[str]:
    if grid is None:
        return []
    t, h, w = grid
    return [f"frame {k}, row {i}, column {j}" for k in range(t) for i in range(h) for j in range(w)]


def _chooser(weights: Tensor, labels: list[str], named: list[str], words: str, grid: tuple[int, int, int] | None):
    """Buttons for the labels and the places of a frame, sliders for head and frame, and the picture of one query."""
    widgets = parts.ipywidgets_module()
    heads = parts.int_slider("head", 0, len(weights) - 1)
    buttons = widgets.ToggleButtons(options=[(label, i) for i, label in enumerate(labels)], value=0 if labels else None,
                                    description="token", style={"button_width": "auto"})
    boxes, picture, query = [], widgets.HTML(), [0]
    if grid is not None:
        t, h, w = grid
        frames = parts.int_slider("frame", 0, t - 1)
        squares = widgets.ToggleButtons(options=[(f"{i} {j}", i * w + j) for i in range(h) for j in range(w)],
                                        value=None if labels else 0, description="row column",
                                        style={"button_width": "44px"}, layout={"width": f"{100 + 52 * w}px"})
        boxes = [frames, squares]

    def draw(change=None) -> None:
        row = weights[heads.value, query[0]]
        most = [f"{named[int(i)]} ({row[i]:.2f})" for i in row.topk(min(3, len(row))).indices]
        said = f"{words}, head {heads.value}: " if len(weights) > 1 else f"{words}: "
        png = _one_query(row, query[0], labels, grid)
        picture.value = output.figure_html(png, f"{said}{named[query[0]]} takes most from {', '.join(most)}.", 700)

    def clicked(change) -> None:
        if change["new"] is None:
            return
        if change["owner"] is buttons:
            query[0] = change["new"]
            if boxes:
                squares.value = None
        elif squares.value is not None:
            buttons.value = None
            query[0] = len(labels) + frames.value * grid[1] * grid[2] + squares.value
        draw()

    heads.observe(draw, names="value")
    for each in (buttons, *boxes):
        each.observe(clicked, names="value")
    draw()
    return widgets.VBox([*([heads] if len(weights) > 1 else []), *([buttons] if labels else []), *boxes, picture])


def _all_weights(weights: Float[Tensor, "n n"], named: list[str]):
    figure, axes = show.new_figure(1, 1, 4.8, 4.4)
    axis = axes[0, 0]
    axis.imshow(weights.sqrt().numpy(), cmap="Blues", vmin=0, interpolation="nearest")
    axis.set(xlabel="key", ylabel="query")
    if len(named) <= 24:
        axis.set_xticks(range(len(named)), named, rotation=90)
        axis.set_yticks(range(len(named)), named)
    return figure


def _one_query(row: Float[Tensor, " n"], query: int, labels: list[str], grid: tuple[int, int, int] | None) -> bytes:
    """Bars for the labels, and a map for each frame of the grid, on one scale; the query is outlined."""
    t, h, w = grid or (0, 0, 0)
    figure, axes = show.new_figure(2 if labels and t else 1, 1, 7.0, (1.6 if labels else 0) + (1.8 if t else 0))
    if labels:
        axis = axes[0, 0]
        colours = [show.PALETTE[3] if i == query else show.PALETTE[0] for i in range(len(labels))]
        axis.bar(range(len(labels)), row[:len(labels)].numpy(), color=colours)
        axis.set_xticks(range(len(labels)), labels, rotation=45 if len(labels) > 8 else 0)
        axis.set_ylabel("weight")
    if t:
        axis, places = axes[-1, 0], row[len(labels):].view(t, h, w)
        sheet = torch.full((h, t * (w + 1) - 1), torch.nan)
        for k in range(t):
            sheet[:, k * (w + 1):k * (w + 1) + w] = places[k]
        axis.imshow(sheet.numpy(), cmap="Blues", vmin=0, vmax=max(float(places.max()), 1e-9), interpolation="nearest")
        axis.set_xticks([k * (w + 1) + (w - 1) / 2 for k in range(t)], [f"frame {k}" for k in range(t)])
        axis.set(yticks=[])
        axis.grid(False)
        if query >= len(labels):
            k, rest = divmod(query - len(labels), h * w)
            y, x = rest // w, k * (w + 1) + rest % w
            axis.plot([x - .5, x + .5, x + .5, x - .5, x - .5], [y - .5, y - .5, y + .5, y + .5, y - .5],
                      color=show.PALETTE[3])
    return output.png_of_figure(figure)
