"""What seeds say of a claim: they agree, they disagree, or this size cannot tell.

A claim says that one variant ends above, or below, another. It is judged by the differences of the two, paired by seed:
where the 95 % interval of their mean lies on the claimed side of 0, the seeds agree; where it lies on the other side,
they disagree; where it contains 0, or there is one seed, it cannot be told.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from minicogvx.ablation.paired import properties_obeyed
from minicogvx.ablation.seeds import Gain

VERDICTS = ("agrees", "disagrees", "cannot be told")
_DIGITS = {"loss": 3, "psnr": 2, "lpips": 3, "flicker": 2, "sharpness": 2, "obeyed": 1}


class Claim(NamedTuple):
    """That variant `new` of a study ends with a measure above, or below, that of variant `old`."""

    says: str  # in words
    source: str  # of the paper: a figure, a table, a section
    study: str  # whose committed results judge it
    new: str
    old: str
    measure: str  # "loss" on validation clips, "psnr" in dB, "lpips", "flicker", "obeyed" in percentage points ..
    expected: Literal["higher", "lower"]


class Judged(NamedTuple):
    """A claim, its differences by seed, and what they say."""

    claim: Claim
    differences: dict[int, float]  # new less old, by seed
    before: float  # the mean of `old`
    gain: Gain

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        return verdict_on(self.gain, self.claim.expected)

    def said(self) -> str:
        """The difference in words, such as "-0.083 (95 % interval -0.102 to -0.064, 5 seeds): agrees"."""
        said = self.gain.said(_DIGITS.get(self.claim.measure, 3))
        return f"{said.rpartition(': ')[0]}: {self.verdict}"


def verdict_on(gain: Gain, expected: Literal["higher", "lower"]) -> str:
    """What a difference says of a claim: "agrees", "disagrees" or "cannot be told".

    Raises ValueError for another direction than "higher" or "lower".
    """
    if expected not in ("higher", "lower"):
        raise ValueError(f"expected is {expected!r}; it must be 'higher' or 'lower'")
    return "cannot be told" if gain.verdict == "cannot be told" else (
        "agrees" if gain.verdict == expected else "disagrees")


def value_at_end(curve: Any, measure: str) -> float:
    """The last value of a curve's measure; "obeyed": the mean per cent of the four properties."""
    return properties_obeyed(curve) if measure == "obeyed" else float(getattr(curve, measure)[-1])


def judge_claim(claim: Claim, curves: Sequence[Any]) -> Judged:
    """The claim, judged by the seeds that both of its variants have among `curves`.

    Raises ValueError for a variant that is not there, or two without a common seed.
    """
    values: dict[str, dict[int, float]] = {}
    for curve in curves:
        if curve.name in (claim.new, claim.old):
            values.setdefault(curve.name, {})[curve.seed] = value_at_end(curve, claim.measure)
    for name in (claim.new, claim.old):
        if name not in values:
            raise ValueError(f"there is no variant {name!r} of {claim.study}; the variants are "
                             f"{', '.join(dict.fromkeys(curve.name for curve in curves))}")
    new, old = values[claim.new], values[claim.old]
    both = sorted(new.keys() & old.keys())
    if not both:
        raise ValueError(f"{claim.new!r} and {claim.old!r} have no seed in common, so they cannot be paired")
    differences = {seed: new[seed] - old[seed] for seed in both}
    middle = sum(old[seed] for seed in both) / len(both)
    return Judged(claim, differences, middle, gain_over(list(differences.values())))


def gain_over(differences: Sequence[float]) -> Gain:
    """The mean of differences, one a seed, and its 95 % interval."""
    from minicogvx.evaluation.intervals import mean_interval

    return Gain(*mean_interval(differences), len(differences))
