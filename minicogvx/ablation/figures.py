"""Figures of studies whose curves need more than one line of a notebook."""

import math
from collections.abc import Sequence
from typing import Any

from minicogvx.ablation.paired import PROPERTIES, final_loss, of_pairs, of_variant
from minicogvx.ablation.schedules import SchedulesCurve, at_full_size
from minicogvx.ablation.stages import StagesCurve
from minicogvx.ablation.transformers import Curve
from minicogvx.ablation.verdicts import VERDICTS, Claim, Judged, judge_claim
from minicogvx.course.show import PALETTE, new_figure
from minicogvx.evaluation.intervals import mean_interval

FEW = 4  # intervals between ticks, at most: numbers such as -0.025 are wide
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
        axis.locator_params(axis="x", nbins=FEW)
    return figure


def results_figure(curves: Sequence[Any], reference: str, measure: str = "loss"):
    """A matplotlib figure of two panels for a study of any kind, of one's own also; `measure` as in a curve's field.

    Left, the measure over steps: means, with bands of 95 % intervals where there are several seeds. Right, by how much
    every other variant ends above `reference`, paired by seed: a dot for each seed, the mean, its interval. Raises
    ValueError for a variant that is not there, or variants without a common seed.
    """
    names = list(dict.fromkeys(curve.name for curve in curves))
    of_variant(curves, reference)
    others = [name for name in names if name != reference]
    figure, (axes,) = new_figure(1, 2, width=8.0, height=max(3.0, 0.4 * len(others)))
    for place, name in enumerate(names):
        _curve_with_band(axes[0], of_variant(curves, name), place, measure)
    axes[0].set(xlabel="step", ylabel=measure)
    axes[0].legend(fontsize=8)
    for row, name in enumerate(others):
        found = judge_claim(Claim("", "", "this study", name, reference, measure, "higher"), curves)
        _mean_bar(axes[1], list(found.differences.values()), row, names.index(name))
    axes[1].axvline(0, color="#000000", linewidth=1, linestyle=":")
    axes[1].set(xlabel=f"{measure} at the end,\nless that of {reference}", ylim=(len(others) - 0.4, -0.6))
    axes[1].set_yticks(range(len(others)), others, fontsize=8)
    axes[1].locator_params(axis="x", nbins=FEW)
    return figure


def schedules_figure(curves: Sequence[SchedulesCurve], chosen: str, reference: str, measure: str = "loss"):
    """A matplotlib figure of one schedule among the others; `measure` is "loss", or a kind of word of `gain`.

    Left, the measure at the full size over steps: the mean of `chosen` with the band of its 95 % interval over seeds,
    the other means in grey; below them, the stages of `chosen`. Right, by how much each schedule ends above
    `reference`, over the seeds that both have: a dot for each, the mean, its interval. Raises ValueError for a schedule
    that is not there.
    """
    names, ours = list(dict.fromkeys(curve.name for curve in curves)), of_variant(curves, chosen)
    figure, (axes,) = new_figure(1, 2, width=9.0, height=3.1)
    for name in names:
        means, lows, highs = zip(*map(mean_interval, zip(*(at_full_size(curve, measure)[1:]
                                                           for curve in of_variant(curves, name)))))
        look = {"color": PALETTE[0], "linewidth": 2, "zorder": 3} if name == chosen else {"color": "#bbbbbb"}
        axes[0].plot(ours[0].steps[1:], means, **look)
        if name == chosen and len(ours) > 1:
            axes[0].fill_between(ours[0].steps[1:], lows, highs, color=PALETTE[0], alpha=0.2, linewidth=0)
    _stages_below(axes[0], ours[0])
    said = "loss on validation clips" if measure == "loss" else f"gain of the {measure} word"
    axes[0].set(xlabel="step, each of as many tokens", ylabel=said)
    for row, name in enumerate(names):
        found = [at_full_size(one, measure)[-1] - at_full_size(other, measure)[-1] for one in of_variant(curves, name)
                 for other in of_variant(curves, reference) if one.seed == other.seed]
        axes[1].axhspan(row - 0.45, row + 0.45, color=PALETTE[0], alpha=0.12 if name == chosen else 0, linewidth=0)
        if name != reference:
            _mean_bar(axes[1], found, row, 0 if name == chosen else 6)
    axes[1].axvline(0, color="#000000", linewidth=1, linestyle=":")
    axes[1].set(xlabel=f"{said} at the end,\nless that of {reference}", ylim=(len(names) - 0.4, -0.6))
    axes[1].set_yticks(range(len(names)), names, fontsize=8)
    return figure


def _stages_below(axis, curve: SchedulesCurve) -> None:
    """A strip under the curves that says which clips each step showed."""
    colours = {"thumbnails": PALETTE[4], "pictures": PALETTE[1], "clips": PALETTE[2]}
    for kind, begin, end in zip(curve.stages, [0, *curve.ends], curve.ends):
        axis.axvspan(begin, end, 0, 0.09, color=colours[kind], alpha=0.45, linewidth=0)
        axis.text((begin + end) / 2, 0.045, kind, transform=axis.get_xaxis_transform(), fontsize=7, ha="center",
                  va="center")
    axis.margins(y=0.12)


def claims_figure(found: Sequence[Judged]):
    """A matplotlib figure with a row for each judged claim: what the claim expects lies to the right of 0.

    The large mark is the mean, the bar its 95 % interval, a dot below it a seed, each divided by the largest absolute
    value of its row, so that rows of different measures can stand together; colour and mark are the verdict's. Raises
    ValueError for no claims.
    """
    if not found:
        raise ValueError("found is empty; give at least one judged claim")
    figure, ((axis,),) = new_figure(width=8.5, height=0.42 * len(found) + 0.9)
    looks = dict(zip(VERDICTS, (("#009E73", "o"), ("#D55E00", "X"), ("#777777", "D"))))
    for row, one in enumerate(found):
        sign = 1 if one.claim.expected == "higher" else -1
        ends = [end for end in (one.gain.low, one.gain.high) if math.isfinite(end)]
        unit = sign * max(map(abs, [*one.differences.values(), *ends])) or 1.0
        colour, mark = looks[one.verdict]
        axis.plot([each / unit for each in one.differences.values()], [row + 0.25] * len(one.differences), ".",
                  color=colour, markersize=5)
        if ends:
            axis.plot([end / unit for end in ends], [row, row], "-", color=colour, linewidth=2)
        axis.plot(one.gain.mean / unit, row, mark, color=colour, markersize=7)
    for verdict, (colour, mark) in looks.items():
        axis.plot([], [], mark, color=colour, label=verdict)
    axis.axvline(0, color="#000000", linewidth=1, linestyle=":")
    axis.set(xlim=(-1.1, 1.1), ylim=(len(found) - 0.4, -0.6), xticks=[0])
    axis.set_xticklabels(["no difference"])
    axis.set_yticks(range(len(found)), [one.claim.says for one in found], fontsize=8)
    axis.set_xlabel("\u2190 against the claim      as the claim says \u2192")
    axis.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _curve_with_band(axis, curves: Sequence[Any], place: int, measure: str = "loss") -> None:
    # without the point before training, which would squeeze the rest
    means, lows, highs = zip(*map(mean_interval, zip(*(getattr(curve, measure)[1:] for curve in curves))))
    steps, colour = curves[0].steps[1:], PALETTE[place % len(PALETTE)]
    axis.plot(steps, means, linestyle=_STYLES[place % len(_STYLES)], color=colour, label=curves[0].name, linewidth=1.5)
    if len(curves) > 1:
        axis.fill_between(steps, lows, highs, color=colour, alpha=0.2, linewidth=0)


def _differences(axis, found: Sequence[Sequence[float]], place: int, count: int, label: str | None = None) -> None:
    """For each row of `found` the differences of all seeds as dots, their mean, and its interval."""
    colour, marker = PALETTE[place % len(PALETTE)], _MARKERS[place % len(_MARKERS)]
    for row, differences in enumerate(found):
        height, (mean, low, high) = row + 0.7 * ((place + 0.5) / (count + 1) - 0.5), mean_interval(differences)
        axis.plot(differences, [height] * len(differences), ".", color=colour, markersize=4, alpha=0.5)
        axis.errorbar(mean, height, xerr=[[mean - low], [high - mean]], fmt=marker, color=colour, markersize=5,
                      capsize=3, label=label)


def _mean_bar(axis, differences: Sequence[float], row: int, place: int) -> None:
    """The mean of differences with its interval if there are several, in numbers above and as a bar; a dot a seed."""
    colour, (mean, low, high) = PALETTE[place % len(PALETTE)], mean_interval(differences)
    axis.plot(differences, [row + 0.12] * len(differences), ".", color=colour, markersize=5)
    reach = [[mean - low], [high - mean]] if len(differences) > 1 else None
    axis.errorbar(mean, row, xerr=reach, fmt=_MARKERS[place % len(_MARKERS)], color=colour, markersize=6, capsize=4)
    said = f"{mean:+z.3f}" if reach is None else f"{mean:+z.3f} ({low:+z.3f} to {high:+z.3f})"
    axis.annotate(said, (mean, row), (0, 6), textcoords="offset points", fontsize=7,
                  ha="left" if mean < 0 else "right",  # towards the line at 0, where there is room
                  bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5})


def _plain_ticks(axis) -> None:
    """Numbers such as 0.5 instead of powers of ten on the logarithmic axis of a loss."""
    low, high = axis.get_ylim()
    ticks = [tick for tick in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 2, 3)
             if low <= tick <= high]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
