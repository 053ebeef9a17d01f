"""Exercises of notebook 12, uniform sampling and ranks: intervals, their worth, rings, accumulation, shards, heads."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minicogvx.course.exercises.exercise import Exercise, Wrong
from minicogvx.course.exercises.rings_12 import accumulated, check_accumulate, check_ring_all_reduce, mean_by_ring
from minicogvx.course.exercises.shards_12 import (
    bytes_a_gpu,
    check_memory_a_gpu,
    check_tokens_for_heads,
    heads_of_all_tokens,
)
from minicogvx.diffusion.timesteps import rank_interval

# ---- 12.1 interval


def interval_of(rank: int, ranks: int, T: int) -> tuple[int, int]:
    """The timesteps of a rank, first .. end - 1 (explicit uniform sampling, paper 3.3)."""
    return rank_interval(T, rank, ranks)


def check_interval(interval) -> None:
    """All timesteps, each in one interval, and no interval longer than another by more than one."""
    for ranks, T in ((1, 1000), (2, 1000), (8, 1000), (4, 10), (3, 7), (7, 1000), (5, 9)):
        pairs = [_pair(interval, rank, ranks, T) for rank in range(ranks)]
        what = f"With {ranks} ranks and T = {T} the intervals are {', '.join(f'{a}..{b}' for a, b in pairs)}"
        owners = [[rank for rank, (first, end) in enumerate(pairs) if first <= t < end] for t in range(T)]
        for t, own in enumerate(owners):
            if len(own) > 1:
                raise Wrong(f"{what}, and timestep {t} belongs to ranks {own[0]} and {own[1]}. `end` is the first "
                            f"timestep that is not the rank's any more, so it is where the next rank begins.")
            if not own:
                raise Wrong(f"{what}, and timestep {t} belongs to no rank. `end` is the first timestep that is not the "
                            f"rank's any more, and where {ranks} does not divide {T} nothing may be left over.")
        beyond = next((pair for pair in pairs if pair[0] < 0 or pair[1] > T), None)
        if beyond:
            raise Wrong(f"{what}; timesteps are 0 to {T - 1}, and ranks are counted from 0.")
        lengths = [end - first for first, end in pairs]
        if max(lengths) - min(lengths) > 1:
            raise Wrong(f"{what}, of {min(lengths)} to {max(lengths)} timesteps. They may differ by one, or a timestep "
                        f"of a short interval is drawn more often than one of a long one.")
        if any(a[0] > b[0] for a, b in zip(pairs, pairs[1:])):
            raise Wrong(f"{what}; rank 0 has the smallest timesteps.")


def _pair(interval, rank: int, ranks: int, T: int) -> tuple[int, int]:
    what, got = f"interval({rank}, {ranks}, {T})", interval(rank, ranks, T)
    if got is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    try:
        first, end = got
        whole = first == int(first) and end == int(end) and not isinstance(first, float) and not isinstance(end, float)
    except (TypeError, ValueError):
        raise Wrong(f"{what} is {got!r}; it must be two whole numbers, first and end.") from None
    if not whole:
        raise Wrong(f"{what} is {got!r}; both must be whole numbers (int): use // and not /.")
    return int(first), int(end)


# ---- 12.2 worth


def worth_of_parts(t: Int[Tensor, " m"], values: Float[Tensor, "m k"], parts: int, T: int = 1000) -> float:
    """How many times larger a batch of independent draws must be for as little noise as one draw from each part.

    The variance of all rows of `values` over the mean variance within a part; of a row of several numbers, their sum.
    """
    own = t * parts // T
    within = torch.stack([values[own == part].var(dim=0).sum() for part in range(parts)])
    return (values.var(dim=0).sum() / within.mean()).item()


def check_worth(worth) -> None:
    """One for one part, and for values that t has no part in; what is planted; no matter of scale, shift or order."""
    t = torch.arange(512) * 1000 // 512 + 1  # eight in each of 64 parts
    steps = 2.0 * (t * 8 // 1000 % 2)  # 0 or 2, changes between eighths of the timesteps: variance 1
    noise = torch.randn(512, 1)
    planted = steps[:, None] + 0.5 * (noise - noise.mean()) / noise.std()
    right = worth_of_parts(t, planted, 8)  # about 5
    got = _number("worth(t, values, 8)", worth(t, planted, 8))
    if abs(got - right) > 0.02 * right:
        raise Wrong(_why_not(got, right))
    one = _number("worth(t, values, 1)", worth(t, planted, 1))
    if abs(one - 1) > 0.01:
        raise Wrong(f"With one part nothing is gained: worth(t, values, 1) must be 1; it is {one:.3g}.")
    order = torch.randperm(512)
    for what, other in (("in another order, each with its own t", worth(t[order], planted[order], 8)),
                        ("all raised by 100", worth(t, planted + 100, 8)),
                        ("all multiplied by 10", worth(t, 10 * planted, 8))):
        other = _number(f"worth of values {what},", other)
        if abs(other - right) > 0.03 * right:
            raise Wrong(f"The same values {what}, are worth {other:.3g} and not {right:.3g}. A part is made of the "
                        f"values whose t lies in it, and noise is what differs from the mean.")
    _check_gradients(worth, t, planted)


def _why_not(got: float, right: float) -> str:
    said = f"For values of variance 1.25, of which 0.25 is within the parts, worth is {got:.3g}; it must be {right:.3g}"
    if abs(got - right ** 0.5) < 0.05:
        return f"{said}. That is the ratio of the standard deviations; the noise of a mean of b is their square over b."
    if abs(got - 1 / right) < 0.02:
        return f"{said}. That is what remains of the noise; say how much larger the other batch must be."
    if abs(got - (1 - 1 / right)) < 0.02:
        return f"{said}. That is the share that lies between the parts; say how much larger the batch must be."
    return f"{said}: the variance of all values over the mean of the variances within the parts."


def _check_gradients(worth, t: Tensor, planted: Tensor) -> None:
    noise = torch.randn(512, 4000)
    got = _number("worth(t, values, 64)", worth(t, noise, 64))
    if abs(got - 1) > 0.03:
        raise Wrong(f"Values that do not depend on t must be worth 1, in 64 parts, too; yours are worth {got:.3g}. "
                    f"The 8 values of a part lie nearer to their own mean than to the true one, so divide the sum of "
                    f"squares by 7 (unbiased); and add up the variances of a row's numbers.")
    both = torch.cat([planted, 10 * torch.randn(512, 1)], dim=1)
    got, right = _number("worth(t, values, 8)", worth(t, both, 8)), worth_of_parts(t, both, 8)
    if abs(got - right) > 0.03 * right:
        raise Wrong(f"A row may hold several numbers: here the second is noise, and a hundred times the first in "
                    f"variance. Add up the variances of the numbers first, then divide: {right:.3g}; yours is "
                    f"{got:.3g}.")


def _number(what: str, got: object) -> float:
    if got is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    try:
        return float(got)
    except (TypeError, ValueError, RuntimeError):
        shape = f" of shape {tuple(got.shape)}" if hasattr(got, "shape") else ""
        raise Wrong(f"{what} is a {type(got).__name__}{shape}; it must be one number.") from None


EXERCISES = (
    Exercise(
        "12.1", "interval", difficulty=1, minutes=8, reference=interval_of, check=check_interval,
        hints=(
            "Where does rank r begin, if all intervals were equally long? At r T / n. Where does it end? Where rank "
            "r + 1 begins.",
            "Round both in the same way, and neither a gap nor an overlap can arise.",
            "return rank * T // ranks, (rank + 1) * T // ranks",
        ),
    ),
    Exercise(
        "12.2", "worth", difficulty=2, minutes=15, reference=worth_of_parts, check=check_worth,
        hints=(
            "A mean of b independent draws has the variance (variance of all) / b. With one draw from each part, only "
            "what varies within the parts is left.",
            "The part of a value is t * parts // T. Take the variance of each part, and the mean over the parts.",
            "values.var(dim=0).sum() over the mean of values[own == part].var(dim=0).sum(). Tensor.var divides by one "
            "less than the count, as it should.",
        ),
    ),
    Exercise(
        "12.3", "ring_all_reduce", difficulty=3, minutes=20, reference=mean_by_ring, check=check_ring_all_reduce,
        hints=(
            "Cut each rank's numbers with chunk(n). In step s of the first round rank r sends its piece (r - s) % n, "
            "and the next rank adds it to its own piece of that number.",
            "After n - 1 steps rank r holds the whole sum of piece (r + 1) % n. In the second round whole sums travel, "
            "and the next rank keeps them instead of adding.",
            "All ranks send at once: first arriving = [send(r, ...) for r in range(n)], then put all of them in "
            "place. Divide by n at the very end.",
        ),
    ),
    Exercise(
        "12.4", "accumulate", difficulty=2, minutes=10, reference=accumulated, check=check_accumulate,
        hints=(
            "The loss of the whole batch is the sum of all clips' losses over the number of all clips. A sum can be "
            "taken apart.",
            "backward() adds to weights.grad, part after part, and frees what it no longer needs.",
            "for part in clips.split(most): (losses_of(weights, part).sum() / len(clips)).backward(). Clear "
            "weights.grad before, or a second call adds to the first.",
        ),
    ),
    Exercise(
        "12.5", "memory_a_gpu", difficulty=2, minutes=10, reference=bytes_a_gpu, check=check_memory_a_gpu,
        hints=(
            "Replicated, each weight costs 4 bytes, its 16-bit copy 2, its gradient 4, AdamW's two averages 8.",
            "Sharded, the 4, the 4 and the 8 are divided by the number of GPUs. In 16 bits there is only what is "
            "gathered just now.",
            "Gathered: 2 bytes for `rest`; for a block 2 x 2 (its own and the next one's weights) + 2 + 4 (its "
            "gradient, twice). Activations are never divided: every GPU has clips of its own.",
        ),
    ),
    Exercise(
        "12.6", "tokens_for_heads", difficulty=2, minutes=10, reference=heads_of_all_tokens,
        check=check_tokens_for_heads,
        hints=(
            "Before: each rank has some tokens and all heads. After: each rank has all tokens and some heads. Which "
            "axis is joined, which is cut?",
            "Rank r gets heads r h / n to (r + 1) h / n - 1 of every other rank's tokens, in the order of the ranks.",
            "joined = torch.cat(parts, dim=1); then list(joined.chunk(len(parts), dim=0)).",
        ),
    ),
)
