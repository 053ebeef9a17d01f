"""Exercises 10.4 to 10.6 of notebook 10: sharpness, the best share, and how many captions tell two models apart."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_equal
from minicogvx.data.films.shots import sharpness

# ---- 10.4 clip_sharpness


def sharpness_of_clip(clip: Float[Tensor, "t h w 3"]) -> float:
    """The mean of the package's sharpness over frames: change from pixel to pixel over the spread of brightness."""
    return float(sharpness(clip.mean(dim=-1)).mean())


def check_clip_sharpness(clip_sharpness) -> None:
    """Blur lowers it; brightness, contrast, number of frames and motion do not; nothing to see gives 0."""
    clip = _textured()
    sharp = _value("clip_sharpness of a sharp clip", clip_sharpness(clip))
    blurred = _value("clip_sharpness of a blurred clip", clip_sharpness(_blurred(clip)))
    if not blurred < 0.8 * sharp:
        raise Wrong(f"clip_sharpness is {sharp:.3g} for a sharp clip and {blurred:.3g} for the same clip blurred; it "
                    f"must fall clearly. Look at changes from pixel to pixel.")
    for name, changed, why in (
            ("brighter by 0.2", clip + 0.2, "Brightness says nothing about focus; take differences"),
            ("with half the contrast", 0.5 + (clip - 0.5) / 2, "Low contrast is not blur; divide by something that "
             "grows with contrast"),
            ("with each frame twice", clip.repeat_interleave(2, dim=0), "Take means over frames, not sums, and no "
             "changes in time"),
            ("in another order of frames", clip.flip(0)[[0, 2, 4, 1, 3, 5]], "Sharpness is a matter of each frame, not "
             "of changes in time"),
            ("mirrored", clip.flip(2), "Left and right must count the same")):
        got = _value(f"clip_sharpness of a clip {name}", clip_sharpness(changed))
        if abs(got - sharp) > 0.02 * abs(sharp):
            raise Wrong(f"clip_sharpness is {sharp:.3g}, and {got:.3g} for the same clip {name}. {why}.")
    blank = _value("clip_sharpness of a grey clip", clip_sharpness(torch.full((3, 16, 16, 3), 0.5)))
    if not abs(blank) < 1e-3:
        raise Wrong(f"clip_sharpness of a clip of one colour is {blank:.3g}; it must be 0, as nothing is sharp in it.")


def _textured() -> Tensor:
    """A clip of 6 frames in which something moves, in 0.2..0.7."""
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    picture = F.interpolate(coarse, size=(32, 32), mode="nearest")[0].permute(1, 2, 0)
    return 0.2 + 0.5 * torch.stack([picture.roll(2 * i, dims=1) for i in range(6)])


def _blurred(clip: Tensor) -> Tensor:
    planes = clip.permute(0, 3, 1, 2)
    return F.avg_pool2d(F.pad(planes, (2, 2, 2, 2), mode="replicate"), 5, 1).permute(0, 2, 3, 1)


def _value(what: str, got) -> float:
    if got is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    try:
        value = float(got)
    except (TypeError, ValueError):
        raise Wrong(f"{what} is a {type(got).__name__}; it must be one number.") from None
    if not math.isfinite(value):
        raise Wrong(f"{what} is {value}. Where nothing can be seen the spread is 0; do not divide by it.")
    return value


# ---- 10.5 top_share


def best_by_score(scores: Sequence[int | float], share: float) -> list[int]:
    """The numbers of the clips with the highest scores, ascending: this share of all, rounded, and at least one."""
    count = max(1, round(share * len(scores)))
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def check_top_share(top_share) -> None:
    """As many as asked, the highest, in the order of the data, first of equals, at least one."""
    for scores, share in (([0.3, 0.9, 0.1, 0.8, 0.5, 0.2, 0.7, 0.6, 0.4, 0.0], 0.2), ([5.0, 100.0, 6.0, 7.0, 8.0], 0.4),
                          ([1.0, 2.0, 2.0, 2.0, 0.0], 0.4), ([3.0, 1.0], 0.1), ([1.0, 3.0, 2.0], 1.0)):
        what, wanted = f"top_share({scores}, {share})", best_by_score(scores, share)
        got = top_share(list(scores), share)
        if isinstance(got, Tensor):
            got = got.tolist()
        if got is None or not isinstance(got, (list, tuple, range)):
            expect_equal(what, got, wanted)
        got = list(got)
        if got == wanted:
            continue
        if sorted(got) == wanted:
            raise Wrong(f"{what} is {got}: the right clips, sorted by score. Keep them in the order of the data, "
                        f"{wanted}.")
        if len(got) != len(wanted):
            raise Wrong(f"{what} has {len(got)} clips; {share:g} of {len(scores)} are {len(wanted)}. A threshold, such "
                        f"as the mean, does not fix how many pass; and at least one must.")
        if sorted(got) == best_by_score([-score for score in scores], share):
            raise Wrong(f"{what} is {got}: the clips with the lowest scores.")
        if all(isinstance(i, int) and 0 <= i < len(scores) for i in got) and sorted(
                scores[i] for i in got) == sorted(scores[i] for i in wanted):
            raise Wrong(f"{what} is {got}; of equal scores the first in the data is taken, so it must be {wanted}.")
        raise Wrong(f"{what} is {got}; it must be {wanted}.")


# ---- 10.6 captions_needed


def captions_to_tell_apart(a: float, b: float) -> int:
    """Captions of each model, independent ones, from which the 95 % interval of a - b no longer contains 0."""
    return math.ceil(1.96 ** 2 * (a * (1 - a) + b * (1 - b)) / (a - b) ** 2)


def check_captions_needed(captions_needed) -> None:
    """At the number that is found the interval just excludes 0."""
    for a, b in ((0.24, 0.215), (0.31, 0.19), (0.5, 0.4), (0.02, 0.05)):
        what, wanted = f"captions_needed({a}, {b})", captions_to_tell_apart(a, b)
        got = _value(what, captions_needed(a, b))
        if abs(got - wanted) <= 2:
            continue
        reach = 1.96 * math.sqrt((a * (1 - a) + b * (1 - b)) / got) if got > 0 else math.inf
        raise Wrong(f"{what} is {got:,.0f}; with so many captions the 95 % interval of the difference would reach from "
                    f"{abs(a - b) - reach:+.3f} to {abs(a - b) + reach:+.3f}. {_why_captions(got, a, b, wanted)}")


def _why_captions(got: float, a: float, b: float, wanted: int) -> str:
    variances, apart = a * (1 - a) + b * (1 - b), abs(a - b)
    for value, told in (
            (1.645 ** 2 * variances / apart ** 2, "1.645 is one-sided; the two-sided 95 % interval reaches 1.96."),
            (1.96 ** 2 * a * (1 - a) / apart ** 2, "Both shares are off, so both variances count."),
            (1.96 ** 2 * b * (1 - b) / apart ** 2, "Both shares are off, so both variances count."),
            (1.96 * math.sqrt(variances) / apart, "The reach falls with the root of n: half the difference takes four "
             "times as many."),
            (1.96 ** 2 * variances / apart, "The difference enters squared: half of it takes four times as many."),
            (variances / apart ** 2, "That is one standard deviation; the 95 % interval reaches 1.96 of them."),
            (2 * wanted, "Say how many captions *each* model gets, not both together.")):
        if abs(got - value) <= 2:
            return told
    return "Its lower end must just be 0."
