"""Differences between variants, paired by seed, with 95 % intervals.

Variants of one seed saw the same clips, captions and noise. So differences within a seed vary less than losses from
seed to seed, and the interval of their mean says what the seeds allow. It is Student's, for a mean over all seeds: it
does not cover another choice of clips, of length, or of size.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import stats

from minicogvx.ablation.transformers import Curve

PROPERTIES = ("shape", "colour", "motion", "background")
Measure = Callable[[Curve], float]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval, with the value of each seed."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @property
    def sign(self) -> int:
        """-1 or 1 if the whole interval is below or above 0; 0 if these seeds cannot tell."""
        return -1 if self.high < 0 else 1 if self.low > 0 else 0


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean and its 95 % t-interval. Raises ValueError for fewer than two values."""
    if len(values) < 2:
        raise ValueError(f"there are {len(values)} values; how much they vary takes at least 2")
    mean = statistics.fmean(values)
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - reach, mean + reach, tuple(values))


def final_loss(curve: Curve) -> float:
    """The loss on validation clips at the end of training."""
    return curve.loss[-1]


def properties_obeyed(curve: Curve) -> float:
    """Mean share of shape, colour, motion and background that are as the caption says, 0..1."""
    return statistics.fmean(curve.obeyed[name] for name in PROPERTIES)


def of_variant(curves: Sequence[Curve], name: str) -> list[Curve]:
    """The curves of one variant, by seed. Raises ValueError if there are none."""
    found = sorted((curve for curve in curves if curve.name == name), key=lambda curve: curve.seed)
    if not found:
        raise ValueError(f"there is no variant {name!r}; there are "
                         f"{', '.join(dict.fromkeys(curve.name for curve in curves))}")
    return found


def difference(curves: Sequence[Curve], name: str, other: str, measure: Measure = final_loss) -> Interval:
    """What `measure` gives for variant `name` less what it gives for `other`, seed by seed.

    Raises ValueError for an unknown variant, fewer than two seeds, or variants with different seeds.
    """
    ours, theirs = of_variant(curves, name), of_variant(curves, other)
    if [curve.seed for curve in ours] != [curve.seed for curve in theirs]:
        raise ValueError(f"{name!r} has the seeds {[curve.seed for curve in ours]} and {other!r} "
                         f"{[curve.seed for curve in theirs]}; pairs need the same")
    return over_seeds([measure(a) - measure(b) for a, b in zip(ours, theirs)])


def say_difference(name: str, other: str, found: Interval, unit: float = 1.0, digits: int = 3) -> str:
    """One line: the difference, its interval, and what it allows to say. `unit` 0.01 gives percentage points."""
    said = {-1: f"{name} is lower", 0: "these seeds cannot tell", 1: f"{name} is higher"}[found.sign]
    mean, low, high = (f"{value / unit:+.{digits}f}" for value in (found.mean, found.low, found.high))
    return f"{name} less {other}: {mean}, 95 % interval {low} to {high}, {len(found.values)} seeds: {said}"


def say_obeyed(curves: Sequence[Curve], name: str) -> str:
    """One line: how many per cent of the captions a variant obeys, by property and in all of them, with intervals."""
    shares = {what: over_seeds([100 * curve.obeyed[what] for curve in of_variant(curves, name)])
              for what in (*PROPERTIES, "all")}
    said = (f"{what} {share.mean:.0f} ({max(0.0, share.low):.0f} to {min(100.0, share.high):.0f})"
            for what, share in shares.items())
    return f"{name}: {', '.join(said)}"
