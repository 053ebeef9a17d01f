"""Figures of studies whose curves need more than one line of a notebook."""

from collections.abc import Sequence

from minicogvx.ablation.stages import StagesCurve
from minicogvx.course.show import PALETTE, new_figure

_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def stages_figure(curves: Sequence[StagesCurve]):
    """A matplotlib figure: loss on validation clips over seconds of training, one colour and style per variant.

    Dots on a curve mark the ends of its stages. Dotted vertical lines show, with names, the ends of the stages of the
    first variant that has several. The point before training is omitted: it would squeeze the rest. Runs of one variant
    with several seeds share its colour. Raises ValueError for no curves; show it with `course.show.show_figure`.
    """
    if not curves:
        raise ValueError("curves is empty; give at least one, such as those of load_results('stages')")
    figure, ((axis,),) = new_figure(width=7.5, height=3.4)
    names = list(dict.fromkeys(curve.name for curve in curves))
    for curve in curves:
        place, first = names.index(curve.name), curve is next(one for one in curves if one.name == curve.name)
        colour = PALETTE[place % len(PALETTE)]
        points = [(s, loss) for s, loss, steps in zip(curve.seconds, curve.loss, curve.steps) if steps]
        axis.plot(*zip(*points), linestyle=_STYLES[place % len(_STYLES)], color=colour,
                  label=curve.name if first else None)
        bounds = [(end, curve.loss[_nearest(curve.seconds, end)]) for end in curve.ends[:-1]]
        axis.plot([end for end, _ in bounds], [loss for _, loss in bounds], "o", color=colour, markersize=6)
    _mark_stages(axis, next((curve for curve in curves if len(curve.ends) > 1), None))
    axis.set(xlabel="seconds of training", ylabel="loss on validation clips, full size")
    axis.legend(fontsize=8, frameon=True, edgecolor="none")  # opaque, over the lines at the ends of stages
    return figure


def _mark_stages(axis, curve: StagesCurve | None) -> None:
    for label, end in zip(curve.stages, curve.ends) if curve else ():
        axis.axvline(end, color="#777777", linewidth=1, linestyle=":")
        axis.annotate(f"{label} ", (end, 1.0), xycoords=("data", "axes fraction"), rotation=90, fontsize=7, ha="right",
                      va="top", color="#555555")


def _nearest(seconds: Sequence[float], end: float) -> int:
    return min(range(len(seconds)), key=lambda i: abs(seconds[i] - end))
