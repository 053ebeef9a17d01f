"""What seeds say of transformers: losses and obeyed captions, paired by seed (seeds.py), in sentences.

The intervals are for a mean over all seeds. They do not cover another choice of clips, of length, or of size.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from minicogvx.ablation.seeds import Gain, gain_of_pairs
from minicogvx.ablation.transformers import Curve
from minicogvx.evaluation.intervals import mean_interval

PROPERTIES = ("shape", "colour", "motion", "background")
Measure = Callable[[Curve], int | float]


def final_loss(curve: Curve) -> float:
    """The loss on validation clips at the end of training."""
    return curve.loss[-1]


def properties_obeyed(curve: Curve) -> float:
    """Of shape, colour, motion and background, the mean per cent that are as the caption says."""
    return 100 * statistics.fmean(curve.obeyed[name] for name in PROPERTIES)


def steps_until(loss: float) -> Measure:
    """A measure: the step at which a curve is first below `loss`; its last step if it never is."""
    return lambda curve: next((step for step, value in zip(curve.steps, curve.loss) if value < loss), curve.steps[-1])


def of_variant(curves: Sequence[Any], name: str) -> list[Any]:
    """The curves of one variant, by seed. Raises ValueError if there are none."""
    found = sorted((curve for curve in curves if curve.name == name), key=lambda curve: curve.seed)
    if not found:
        raise ValueError(f"there is no variant {name!r}; there are "
                         f"{', '.join(dict.fromkeys(curve.name for curve in curves))}")
    return found


def of_pairs(curves: Sequence[Curve], name: str, other: str, measure: Measure = final_loss) -> list[float]:
    """What `measure` gives for variant `name` less what it gives for `other`, for each seed.

    Raises ValueError for an unknown variant, or variants with different seeds.
    """
    ours, theirs = of_variant(curves, name), of_variant(curves, other)
    if [curve.seed for curve in ours] != [curve.seed for curve in theirs]:
        raise ValueError(f"{name!r} has the seeds {[curve.seed for curve in ours]} and {other!r} "
                         f"{[curve.seed for curve in theirs]}; pairs need the same")
    return [float(measure(a) - measure(b)) for a, b in zip(ours, theirs)]


def gain_of(curves: Sequence[Curve], name: str, other: str, measure: Measure = final_loss) -> Gain:
    """By how much variant `name` is above `other`; raises what `of_pairs` raises."""
    differences = of_pairs(curves, name, other, measure)
    return gain_of_pairs(differences, [0.0] * len(differences))


def say_obeyed(curves: Sequence[Curve], name: str) -> str:
    """One line: how many per cent of the captions a variant obeys, by property and in all of them, with intervals."""
    said = []
    for what in (*PROPERTIES, "all"):
        mean, low, high = mean_interval([100 * curve.obeyed[what] for curve in of_variant(curves, name)])
        said.append(f"{what} {mean:.0f} ({max(0.0, low):.0f} to {min(100.0, high):.0f})")
    return f"{name}: {', '.join(said)}"
