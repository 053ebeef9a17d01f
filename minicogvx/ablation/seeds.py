"""What several seeds allow to say: variants of a study beside each other, paired by seed, with 95 % intervals.

A seed trains all variants on the same clips in the same order. So the difference of two variants changes less from seed
to seed than either of them does, and it is differences that are judged.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from minicogvx.evaluation.intervals import mean_interval, with_sign

_MEASURES = {"loss": ("loss on validation clips", 4), "psnr": ("PSNR in dB", 2), "lpips": ("LPIPS", 3),
             "flicker": ("flicker", 2), "sharpness": ("sharpness", 2), "kl_per_element": ("nats a latent number", 2)}


class Gain(NamedTuple):
    """By how much one variant exceeds another: the mean over seeds, and the 95 % interval of that mean."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """"higher" or "lower" where the interval excludes 0, else "cannot be told"."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "cannot be told"

    def said(self, digits: int = 2) -> str:
        """In words, such as "+1.94 (95 % interval +1.50 to +2.38, 5 seeds): higher"."""
        if not math.isfinite(self.low):
            return f"{with_sign(self.mean, digits)} (one seed, no interval): {self.verdict}"
        mean, low, high = (with_sign(value, digits) for value in (self.mean, self.low, self.high))
        return f"{mean} (95 % interval {low} to {high}, {self.seeds} seeds): {self.verdict}"


def final_values(curves: Sequence[Any], measure: str) -> dict[str, dict[int, float]]:
    """The last value of `measure`, such as "psnr", of each variant and seed: {variant: {seed: value}}."""
    values: dict[str, dict[int, float]] = {}
    for curve in curves:
        values.setdefault(curve.name, {})[curve.seed] = getattr(curve, measure)[-1]
    return values


def paired_gain(curves: Sequence[Any], measure: str, new: str, old: str) -> Gain:
    """By how much variant `new` ends above `old`, over the seeds that both have.

    Raises ValueError for a variant that is not among the curves, or two without a common seed.
    """
    values = final_values(curves, measure)
    for name in (new, old):
        if name not in values:
            raise ValueError(f"there is no variant {name!r}; the variants are {', '.join(values)}")
    both = sorted(values[new].keys() & values[old].keys())
    if not both:
        raise ValueError(f"{new!r} and {old!r} have no seed in common, so they cannot be paired")
    return gain_of_pairs([values[new][seed] for seed in both], [values[old][seed] for seed in both])


def gain_of_pairs(new: Sequence[float], old: Sequence[float]) -> Gain:
    """By how much `new` exceeds `old`; entries i of both are of the same seed."""
    return Gain(*mean_interval([a - b for a, b in zip(new, old, strict=True)]), len(new))


def comparisons(curves: Sequence[Any], names: Sequence[str]) -> list[str]:
    """What several seeds say of variants: for each of `names` after the first, its gain on the first in each measure.

    No sentences for fewer than two seeds.
    """
    if len({curve.seed for curve in curves}) < 2:
        return []
    measures = {measure: said for measure, said in _MEASURES.items() if hasattr(curves[0], measure)}
    return [f"{name} against {names[0]}, {label}: {paired_gain(curves, measure, name, names[0]).said(digits)}"
            for name in names[1:] for measure, (label, digits) in measures.items()]
