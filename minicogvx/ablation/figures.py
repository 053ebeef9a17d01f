"""Figures of studies whose curves need more than one line of a notebook."""

from collections.abc import Sequence

from minicogvx.ablation.stages import StagesCurve

_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def stages_figure(curves: Sequence[StagesCurve]):
    """A matplotlib figure: loss on clips held back over seconds of training, one colour and style a variant.

    Dots on a curve mark where one of its stages ended and the next began; a dotted line through all of them, with the
    name of the stage that ends there, belongs to the first variant that has several. The point before training is left
    out: it would squeeze the rest. Runs of one variant with several seeds share its colour. Raises ValueError for no
    curves; show the figure with `course.show.show_figure`.
    """
    from minicogvx.course.show import PALETTE, new_figure  # it stands above this module

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
    axis.set(xlabel="seconds of training", ylabel="loss on clips held back, full size")
    axis.legend(fontsize=8, frameon=True, edgecolor="none")  # the ends of stages must not run through the words
    return figure


def _mark_stages(axis, curve: StagesCurve | None) -> None:
    for label, end in zip(curve.stages, curve.ends) if curve else ():
        axis.axvline(end, color="#777777", linewidth=1, linestyle=":")
        axis.annotate(f"{label} ", (end, 1.0), xycoords=("data", "axes fraction"), rotation=90, fontsize=7, ha="right",
                      va="top", color="#555555")


def _nearest(seconds: Sequence[float], end: float) -> int:
    return min(range(len(seconds)), key=lambda i: abs(seconds[i] - end))
