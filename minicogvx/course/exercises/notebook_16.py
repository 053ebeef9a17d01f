"""Exercises of notebook 16, full size: work, roofline, what ten minutes buy, bytes of training, names of weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from minicogvx.course.exercises.exercise import Exercise, Wrong
from minicogvx.course.exercises.sat_16 import check_from_sat, renamed_from_sat


def _number(what: str, got: Any) -> float:
    """`got` as a number. Raises Wrong for anything else, and for NaN."""
    if got is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    if isinstance(got, bool) or not hasattr(got, "__float__"):
        raise Wrong(f"{what} is {_short(got)}; it must be a number.")
    try:
        value = float(got)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{what} is {_short(got)}; it must be one number.") from None
    if not math.isfinite(value):
        raise Wrong(f"{what} is {value}; every number must be finite.")
    return value


def _short(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"of the type {type(value).__name__}" + (f" and the shape {tuple(shape)}" if shape is not None else "")


# ---- 16.1 block_flops


def flops_of_a_block(n: int, d: int, d_time: int) -> int:
    """Operations of the matrix products of one block with n tokens of width d (paper 2.2)."""
    per_token = 4 * d * d + 8 * d * d  # q, k, v, out; feed-forward
    return 2 * (n * per_token + 2 * n * n * d + 12 * d * d_time)


def check_block_flops(block_flops) -> None:
    """The three parts of the sum, told apart by how they grow: with n squared, with n, and not at all."""
    d, d_time = 8, 5
    at = [_number(f"block_flops(n={n}, d={d}, d_time={d_time})", block_flops(n, d, d_time)) for n in (1, 2, 3, 4)]
    if any(abs(2 * value - flops_of_a_block(n, d, d_time)) < 1e-6 for n, value in enumerate(at, 1)):
        raise Wrong("Every number is half of what it must be: a multiply and an add are two operations.")
    square = (at[2] - 2 * at[1] + at[0]) / 2
    line, fixed = at[1] - at[0] - 3 * square, 3 * at[0] - 3 * at[1] + at[2]
    if abs(at[3] - (16 * square + 4 * line + fixed)) > 1e-6 * abs(at[3]):
        raise Wrong("The number of operations must be a sum of parts that grow with n squared, with n and not at all.")
    if abs(square - 4 * d) > 1e-6:
        raise Wrong(f"The part that grows with n squared is {square / d:.3g} n^2 d; it must be 4 n^2 d. A score is a "
                    f"product of d numbers, for n x n pairs; the weighted sums of values are as many again; a multiply "
                    f"and an add are two.")
    if abs(line - 24 * d * d) > 1e-6:
        more = " The modulation is computed once for a clip, not for each token." if abs(
            line - 24 * d * d - 24 * d * d_time) < 1e-6 else ""
        raise Wrong(f"The part that grows with n is {line / d / d:.4g} n d^2; it must be 24 n d^2: four matrices of "
                    f"d x d around the attention, d x 4d and 4d x d in the feed-forward, two operations each.{more}")
    if abs(fixed - 24 * d * d_time) > 1e-6:
        raise Wrong(f"The part that does not grow is {fixed:.4g}; it must be {24 * d * d_time}: twelve vectors of "
                    f"width d={d} from a time embedding of width d_time={d_time}, two operations each.")
    for d, d_time in ((3072, 512), (7, 3)):
        what, right = f"block_flops(n=50, d={d}, d_time={d_time})", flops_of_a_block(50, d, d_time)
        got = _number(what, block_flops(50, d, d_time))
        if abs(got / right - 1) > 1e-9:
            raise Wrong(f"{what} is {got:.6g}; it must be {right}.")


# ---- 16.2 roofline


def slower_of_two(layers: Sequence[tuple[float, float]], peak: float, bandwidth: float) -> float:
    """Seconds of layers, pairs of (operations, bytes), one after the other: each waits for its slower side."""
    return sum(max(work / peak, moved / bandwidth) for work, moved in layers)


def check_roofline(roofline) -> None:
    """The slower side counts; layers wait one after the other."""
    work, traffic = (800.0, 10.0), (10.0, 600.0)
    cases = ([work], [traffic], [work, traffic], [work] * 3 + [traffic] * 2)
    for layers in cases:
        what = f"roofline({layers}, peak=10.0, bandwidth=5.0)"
        got, right = _number(what, roofline(list(layers), 10.0, 5.0)), slower_of_two(layers, 10.0, 5.0)
        if abs(got - right) < 1e-6:
            continue
        raise Wrong(f"{what} is {got:.4g}; it must be {right:.4g}. {_why(layers, got)}")


def _why(layers: Sequence[tuple[float, float]], got: float) -> str:
    parts = [(work / 10, moved / 5) for work, moved in layers]
    guesses = {
        sum(a + b for a, b in parts): "Arithmetic and memory work at the same time: take the longer, not the sum.",
        sum(min(a, b) for a, b in parts): "The layer waits for the slower of the two, not the quicker.",
        sum(max(work / 5, moved / 10) for work, moved in layers): "Operations go with the peak, bytes with the "
                                                                  "bandwidth.",
        max(sum(a for a, _ in parts), sum(b for _, b in parts)): "Layers run one after the other, and each waits for "
                                                                 "its own slower side: take the longer layer by layer.",
        max(max(pair) for pair in parts): "Layers run one after the other: add their seconds.",
        sum(a for a, _ in parts): "This counts arithmetic alone.",
    }
    return next((words for value, words in guesses.items() if abs(value - got) < 1e-6),
                "A layer takes operations / peak or bytes / bandwidth, whichever is longer.")


# ---- 16.3 longest


def most_frames(seconds_of: Callable[[int], float], limit: float) -> int | None:
    """The largest of 1, 9, 17 .. 161 frames that takes at most `limit` seconds; None if not even one frame does."""
    fits = [frames for frames in range(1, 162, 8) if seconds_of(frames) <= limit]
    return fits[-1] if fits else None


def check_longest(longest) -> None:
    """Allowed counts of frames; at most the limit; the largest; None where nothing fits."""
    for name, seconds_of, limit in (
            ("10 seconds a frame", lambda frames: 10.0 * frames, 540.0),
            ("10 seconds a frame", lambda frames: 10.0 * frames, 490.0),
            ("the square of the frames, in seconds", lambda frames: float(frames * frames), 700.0),
            ("1 second a frame", lambda frames: float(frames), 10_000.0),
            ("100 seconds and 1 more a frame", lambda frames: 100.0 + frames, 50.0)):
        what, right = f"longest for {name} and a limit of {limit:.0f} s", most_frames(seconds_of, limit)
        got = longest(seconds_of, limit)
        if right is None:
            if got is not None:
                raise Wrong(f"{what} is {got}; not even one frame fits, so it must be None.")
            continue
        frames = _number(what, got)
        if frames == right:
            continue
        if frames % 8 != 1:
            raise Wrong(f"{what} is {frames:g}; the published VAE gives back as many frames as it was given for 8k + 1 "
                        f"only: 1, 9, 17 .. 161.")
        if frames > 161:
            raise Wrong(f"{what} is {frames:g}; the list ends at 161 frames, the longest that was trained.")
        if seconds_of(int(frames)) > limit:
            raise Wrong(f"{what} is {frames:g}, which takes {seconds_of(int(frames)):g} s, above the limit.")
        raise Wrong(f"{what} is {frames:g}; {right} frames also stay within the limit, where exactly the limit counts "
                    f"as within.")


# ---- 16.4 training_bytes


def bytes_of_training(frozen: int, trained: int) -> int:
    """Bytes of weights, gradients and AdamW under mixed precision (paper, Table 6), without activations."""
    return 2 * (frozen + trained) + (4 + 4 + 8) * trained


def check_training_bytes(training_bytes) -> None:
    """2 for every weight, 16 more for each that learns."""
    each = _number("training_bytes(frozen=1000, trained=0)", training_bytes(1000, 0)) / 1000
    if each != 2:
        why = ("A frozen weight has no gradient, no averages and no float32 copy." if each > 4 else
               "It is kept in 16 bits, for computing, and in no other format." if each else
               "It is still needed in the forward pass, in 16 bits.")
        raise Wrong(f"A frozen weight takes {each:g} bytes; it must be 2. {why}")
    each = _number("training_bytes(frozen=0, trained=1000)", training_bytes(0, 1000)) / 1000
    why = {16: "The 16-bit copy that computes is missing.", 14: "A float32 weight needs a 16-bit copy and AdamW two "
           "averages; one 2 or 4 is missing.", 12: "AdamW keeps two averages, of the gradient and of its square, and "
           "there are the gradients.", 10: "Weights, gradients and both averages are float32: 4 bytes each.",
           8: "Averages alone are 8; weights and gradients come on top."}.get(int(each), "Add up: a 16-bit copy that "
           "computes; in float32 the weight itself, its gradient and two averages of AdamW.")
    if each != 18:
        raise Wrong(f"A weight that learns takes {each:g} bytes; it must be 18. {why}")
    for frozen, trained in ((5_570_283_072, 66_060_288), (3, 7)):
        got = _number(f"training_bytes({frozen}, {trained})", training_bytes(frozen, trained))
        if got != bytes_of_training(frozen, trained):
            raise Wrong(f"training_bytes({frozen}, {trained}) is {got:.0f}; it must be the sum of both kinds, "
                        f"{bytes_of_training(frozen, trained)}.")


EXERCISES = (
    Exercise(
        "16.1", "block_flops", difficulty=1, minutes=10, reference=flops_of_a_block, check=check_block_flops,
        hints=(
            "A product of an n x d and a d x m matrix has n m numbers, each a sum of d products: 2 n d m operations.",
            "For each token: q, k, v and out are d x d; the feed-forward goes to 4d and back. Then n x n scores of "
            "length d, and as much again to sum the values.",
            "2 * (n * 12 * d * d + 2 * n * n * d + 12 * d * d_time)",
        ),
    ),
    Exercise(
        "16.2", "roofline", difficulty=1, minutes=10, reference=slower_of_two, check=check_roofline,
        hints=(
            "One layer: how long for arithmetic alone, and how long for memory alone?",
            "Both go on at the same time, so a layer takes the longer of the two.",
            "The next layer needs the result of this one: add up over layers, max(work / peak, moved / bandwidth).",
        ),
    ),
    Exercise(
        "16.3", "longest", difficulty=2, minutes=15, reference=most_frames, check=check_longest,
        hints=(
            "Which counts of frames are allowed? range(1, 162, 8).",
            "Keep those that take at most the limit. If none are left, return None.",
            "fits = [f for f in range(1, 162, 8) if seconds_of(f) <= limit], and the last of them.",
        ),
    ),
    Exercise(
        "16.4", "training_bytes", difficulty=1, minutes=10, reference=bytes_of_training, check=check_training_bytes,
        hints=(
            "Which numbers exist for a weight that only computes, and which more for one that learns?",
            "One that learns has, in float32, itself, its gradient and two averages: 4 + 4 + 4 + 4.",
            "2 * (frozen + trained) + 16 * trained",
        ),
    ),
    Exercise(
        "16.5", "from_sat", difficulty=3, minutes=25, reference=renamed_from_sat, check=check_from_sat,
        hints=(
            "Go through the tensors. Strip the prefix, find the number of the layer (it may have two digits) and the "
            "ending, weight or bias.",
            "query_key_value.chunk(3) gives q, k, v. chunk(12) of the modulation gives twelve pieces.",
            "norm1.linear is torch.cat of the pieces 0, 1, 2, 6, 7, 8; norm2.linear of 3, 4, 5, 9, 10, 11.",
        ),
    ),
)
