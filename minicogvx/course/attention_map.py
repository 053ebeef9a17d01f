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
    show.show_figure(_all_weights(weights[0], list(labels), grid),
                     f"{words}, as a picture: a row for each query, a column for each key; the darker, the more the "
                     f"query takes from the key.")
    parts.display_made(lambda: _Chooser(weights, list(labels), words, grid).box)


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


class _Chooser:
    """Buttons for the labels and for the places of one frame, sliders for head and frame, the picture of one query."""

    def __init__(self, weights: Float[Tensor, "heads n n"], labels: list[str], words: str,
                 grid: tuple[int, int, int] | None):
        self.weights, self.labels, self.words, self.grid = weights, labels, words, grid
        self.named, self.query = [*labels, *_places(grid)], 0
        widgets, (t, h, w) = parts.ipywidgets_module(), grid or (1, 0, 0)
        self.head, self.frame = parts.int_slider("head", 0, len(weights) - 1), parts.int_slider("frame", 0, t - 1)
        self.tokens = widgets.ToggleButtons(options=[(label, i) for i, label in enumerate(labels)],
                                            value=0 if labels else None, description="token",
                                            style={"button_width": "auto"})
        self.squares = widgets.ToggleButtons(options=[(f"{i} {j}", i * w + j) for i in range(h) for j in range(w)],
                                             value=None if labels else 0, description="row column",
                                             style={"button_width": "44px"}, layout={"width": f"{100 + 52 * w}px"})
        self.picture = widgets.HTML()
        self.head.observe(lambda change: self.draw(), names="value")
        for control in (self.tokens, self.frame, self.squares):
            control.observe(self.choose, names="value")
        self.draw()
        shown = [*([self.head] if len(weights) > 1 else []), *([self.tokens] if labels else []),
                 *([self.frame, self.squares] if grid else [])]
        self.box = widgets.VBox([*shown, self.picture])

    def choose(self, change) -> None:
        """A token or a place was clicked, or the frame moved: only one of the two rows of buttons stays pressed."""
        if change["new"] is None:
            return
        if change["owner"] is self.tokens:
            self.query, self.squares.value = change["new"], None
        elif self.squares.value is not None:
            _, h, w = self.grid
            self.query = len(self.labels) + self.frame.value * h * w + self.squares.value
            self.tokens.value = None
        self.draw()

    def draw(self) -> None:
        """The picture and the words of the query that is chosen."""
        row = self.weights[self.head.value, self.query]
        most = [f"{self.named[i]} ({row[i]:.2f})" for i in row.topk(min(3, len(row))).indices.tolist()]
        head = f", head {self.head.value}" if len(self.weights) > 1 else ""
        words = f"{self.words}{head}: {self.named[self.query]} takes most from {', '.join(most)}."
        figure = _one_query(row, self.query, self.labels, self.grid)
        self.picture.value = output.figure_html(output.png_of_figure(figure), words, output.width_on_screen(figure))


def _all_weights(weights: Float[Tensor, "n n"], labels: list[str], grid: tuple[int, int, int] | None):
    """A figure of all weights, as shades of their square roots; the places of a frame share a label."""
    figure, axes = show.new_figure(1, 1, 4.8, 4.4)
    axis = axes[0, 0]
    axis.imshow(weights.sqrt().numpy(), cmap="Blues", vmin=0, interpolation="nearest")
    axis.set(xlabel="key", ylabel="query")
    t, h, w = grid or (0, 0, 0)
    edges = [len(labels) + k * h * w - 0.5 for k in range(t)]
    ticks, named = [edge + h * w / 2 for edge in edges], [f"frame {k}" for k in range(t)]
    if len(labels) <= 24 and len(weights) <= 40:  # room for a line of words each
        ticks, named = [*range(len(labels)), *ticks], [*labels, *named]
    elif labels and t:
        ticks, named = [(len(labels) - 1) / 2, *ticks], ["words", *named]
        for edge in edges:
            axis.axhline(edge, color="#999999", linewidth=0.6)
            axis.axvline(edge, color="#999999", linewidth=0.6)
    if named:
        axis.set_xticks(ticks, named, rotation=90)
        axis.set_yticks(ticks, named)
    return figure


def _one_query(row: Float[Tensor, " n"], query: int, labels: list[str], grid: tuple[int, int, int] | None):
    """A figure: bars for the labels, and a map for each frame of the grid, on one scale; the query is outlined."""
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
    return figure
