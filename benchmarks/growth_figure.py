"""The figure of `benchmarks.growth`: seconds above, peak memory below, a column for each curve, logarithmic axes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator

from benchmarks.growth_points import OPERATIONS, STEP, Curve
from minicogvx.course.show import PALETTE, new_figure

MARKS = dict(zip(OPERATIONS, zip(PALETTE, "os^")))  # colour and sign of each operation
PARTS = {"attention_seconds": ("attention alone", "--"), "matrix_seconds": ("matrix products alone", ":")}
AXES = {"seconds": ("seconds", 1.0), "peak_bytes": ("peak memory, MB", 1e6)}
ALONG = {"frames": "frames", "size": "height and width, pixels"}


def draw(curves: Sequence[Curve], rows: Sequence[dict], crossing: dict | None, name: str, path: Path) -> Path:
    """Writes a PNG and returns its path."""
    figure, axes = new_figure(2, len(curves), 4.2 * len(curves), 7.0)
    for column, curve in enumerate(curves):
        for line, cost in zip(axes, AXES):
            axis, (label, unit) = line[column], AXES[cost]
            for operation in OPERATIONS:
                _plot(axis, curve, rows, operation, cost, unit)
            if cost == "seconds":
                _plot_parts(axis, curve, rows, crossing)
            ticks = sorted({n if curve.along == "frames" else size for n, size in curve.clips})
            axis.set(xscale="log", yscale="log", xlabel=ALONG[curve.along], ylabel=label, title=f"{name}: {curve.name}")
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if cost == "peak_bytes" else (1,)))
            axis.yaxis.set_major_formatter("{x:g}")
            if axis.get_lines():
                low, high = axis.get_ylim()
                axis.set_ylim(low, high * (high / low) ** (0.55 if cost == "seconds" else 0.35))  # room for the legend
                axis.legend(fontsize=7, loc="upper left")
    figure.savefig(path, dpi=150, metadata={"Description": f"Seconds and peak memory of the {name} VAE and transformer "
                                                           f"against frames and size of a clip, with exponents"})
    return path


def _plot(axis, curve: Curve, rows: Sequence[dict], operation: str, cost: str, unit: float) -> None:
    points = [row for row in curve.of(rows, operation) if row[cost]]
    fitted, (colour, mark) = curve.exponent(rows, operation, cost), MARKS[operation]
    power = f": pixels^{fitted[0]:.2f} ({fitted[1]:.2f} to {fitted[2]:.2f})" if fitted else ""
    if points:
        axis.plot([row[curve.along] for row in points], [row[cost] / unit for row in points], color=colour,
                  marker=mark, label=operation + power)


def _plot_parts(axis, curve: Curve, rows: Sequence[dict], crossing: dict | None) -> None:
    """Attention and matrix products of the transformer, and where the first takes as long as the others."""
    points = curve.of(rows, STEP)
    x, tokens = ([row[key] for row in points] for key in (curve.along, "tokens"))
    for part, (label, style) in PARTS.items():
        if points:
            axis.plot(x, [row[part] for row in points], linestyle=style, linewidth=1.2, color=MARKS[STEP][0],
                      label=label)
    if points and tokens[0] <= crossing["tokens"] <= tokens[-1]:
        place = np.interp(crossing["tokens"], tokens, x)
        axis.axvline(place, color="#777777", linewidth=1, linestyle="-.")
        axis.annotate(f"{crossing['tokens']:.0f} tokens: \nattention overtakes ", (place, 0.03), fontsize=7,
                      xycoords=("data", "axes fraction"), va="bottom", ha="right", color="#555555")
