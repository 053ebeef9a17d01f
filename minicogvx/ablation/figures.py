"""Figures of studies whose curves need more than one line of a notebook."""

from collections.abc import Sequence

from minicogvx.ablation.paired import PROPERTIES, final_loss, of_pairs, of_variant
from minicogvx.ablation.stages import StagesCurve
from minicogvx.ablation.transformers import Curve
from minicogvx.course.show import PALETTE, new_figure
from minicogvx.evaluation.intervals import mean_interval

_STYLES, _MARKERS = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))), ("o", "s", "^", "D")


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


def paired_figure(curves: Sequence[Curve], reference: str):
    """A matplotlib figure of three panels, each with 95 % intervals over seeds.

    Left, the mean loss on validation clips, with a band. Middle, the final loss of every other variant less that of
    `reference`, paired by seed: a small dot for each seed. Right, the same for the share of captions that are obeyed,
    by property, in percentage points. Raises ValueError for fewer than two seeds, and as `paired.of_pairs` does.
    """
    names = list(dict.fromkeys(curve.name for curve in curves))
    if len(of_variant(curves, reference)) < 2:
        raise ValueError(f"{reference!r} has one seed; how much seeds differ takes at least 2")
    others = [name for name in names if name != reference]
    figure, (axes,) = new_figure(1, 3, width=9.5, height=3.2)
    for place, name in enumerate(names):
        _curve_with_band(axes[0], of_variant(curves, name), place)
    axes[0].set(xlabel="step", ylabel="loss on validation clips", yscale="log")
    _plain_ticks(axes[0])
    axes[0].legend(fontsize=8)
    for name in others:
        _differences(axes[1], [of_pairs(curves, name, reference, final_loss)], names.index(name), len(others), name)
    axes[1].set(xlabel=f"final loss, less that of {reference}", yticks=[], ylim=(0.6, -0.6))  # as the right panel
    axes[1].legend(fontsize=8)
    rows = (*PROPERTIES, "all")
    for name in others:
        found = [of_pairs(curves, name, reference, lambda curve: 100 * curve.obeyed[what]) for what in rows]
        _differences(axes[2], found, names.index(name), len(others))
    axes[2].set(xlabel=f"captions obeyed, less {reference}\n(percentage points)")
    axes[2].set_yticks(range(len(rows)), rows)
    axes[2].set_ylim(len(rows) - 0.4, -0.6)
    for axis in axes[1:]:
        axis.axvline(0, color="#000000", linewidth=1, linestyle=":")
    return figure


def _curve_with_band(axis, curves: Sequence[Curve], place: int) -> None:
    # without the point before training, which would squeeze the rest
    means, lows, highs = zip(*map(mean_interval, zip(*(curve.loss[1:] for curve in curves))))
    steps, colour = curves[0].steps[1:], PALETTE[place % len(PALETTE)]
    axis.plot(steps, means, _STYLES[place % len(_STYLES)], color=colour, label=curves[0].name, linewidth=1.5)
    axis.fill_between(steps, lows, highs, color=colour, alpha=0.2, linewidth=0)


def _differences(axis, found: Sequence[Sequence[float]], place: int, count: int, label: str | None = None) -> None:
    """For each row of `found` the differences of all seeds as dots, their mean, and its interval."""
    colour, marker = PALETTE[place % len(PALETTE)], _MARKERS[place % len(_MARKERS)]
    for row, differences in enumerate(found):
        height, (mean, low, high) = row + 0.7 * ((place + 0.5) / (count + 1) - 0.5), mean_interval(differences)
        axis.plot(differences, [height] * len(differences), ".", color=colour, markersize=4, alpha=0.5)
        axis.errorbar(mean, height, xerr=[[mean - low], [high - mean]], fmt=marker, color=colour, markersize=5,
                      capsize=3, label=label)


def _plain_ticks(axis) -> None:
    """Numbers such as 0.5 instead of powers of ten on the logarithmic axis of a loss."""
    low, high = axis.get_ylim()
    ticks = [tick for tick in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 2, 3)
             if low <= tick <= high]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
