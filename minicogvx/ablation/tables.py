"""A study's results as a table of plain text: one line for each variant, with intervals over seeds."""

import math
from collections.abc import Sequence
from typing import Any

from minicogvx.ablation.paired import of_variant
from minicogvx.ablation.verdicts import Claim, judge_claim, value_at_end
from minicogvx.evaluation.intervals import mean_interval


def results_table(curves: Sequence[Any], reference: str, measure: str = "loss", digits: int = 4) -> list[str]:
    """Lines: variant, parameters, seeds, the measure at the end, and the difference from `reference`, paired by seed.

    Each number is a mean over seeds with its 95 % interval; of one seed there is none. Raises ValueError for a
    `reference` that is not there.
    """
    of_variant(curves, reference)
    rows = [("variant", "parameters", "seeds", f"{measure} at the end", f"less {reference}")]
    for name in dict.fromkeys(curve.name for curve in curves):
        runs = of_variant(curves, name)
        ends = mean_interval([value_at_end(curve, measure) for curve in runs])
        less = "" if name == reference else judge_claim(
            Claim("", "", "this study", name, reference, measure, "higher"), curves).gain.said(digits)
        rows.append((name, f"{runs[0].parameters:,}", str(len(runs)), _with_interval(ends, digits), less))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) if 0 < place < 4 else cell.ljust(width)
                      for place, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]


def _with_interval(found: tuple[float, float, float], digits: int) -> str:
    mean, low, high = (f"{value:.{digits}f}" for value in found)
    return f"{mean} ({low} to {high})" if math.isfinite(found[1]) else mean
