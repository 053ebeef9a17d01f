"""Exercises of notebook 05: padding, T5's buckets, dropped captions, guidance, and the variety that it costs."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_close, expect_shape
from minicogvx.course.exercises.variety import check_half_variety, check_variety, entropy_bits, scale_that_halves
from minicogvx.diffusion.guidance import guide

PAD, END = 0, 1  # token ids, as T5 has them

# ---- 5.1 pad_and_mask


def padded_ids(rows: list[list[int]], length: int) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Token ids with `</s>` at the end, filled up to `length`, and where they are no padding.

    A row that is too long loses its last words; it keeps its `</s>`.
    """
    ended = [[*row[:length - 1], END] for row in rows]
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in ended])
    mask = torch.tensor([[place < len(row) for place in range(length)] for row in ended])
    return ids, mask


def check_pad_and_mask(pad_and_mask) -> None:
    """One `</s>` after the words, padding after that, and a mask that counts `</s>` in and padding out."""
    rows, length = [[7, 8, 9], [], [5] * 5, list(range(20, 29))], 6
    what, given = "pad_and_mask(rows, 6)", [list(row) for row in rows]
    got, wanted = pad_and_mask(given, length), padded_ids(rows, length)
    if given != rows:
        raise Wrong("pad_and_mask changes its input rows; list.append and += do that. Make new lists.")
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong(f"{what} is one {type(got).__name__}; it must be two tensors, ids and mask.")
    for name, tensor, dtype in zip(("ids", "mask"), got, (torch.long, torch.bool)):
        expect_shape(f"{name} of {what}", tensor, (len(rows), length))
        if tensor.dtype != dtype:
            raise Wrong(f"{name} of {what} has dtype {tensor.dtype}; it must be {dtype}.")
    for row, ids, mask, want, want_mask in zip(rows, *got, *wanted):
        ends = int((ids == END).sum())
        if ends != 1:
            raise Wrong(f"A row of {len(row)} tokens becomes {ids.tolist()}, with {ends} </s> (id {END}); it must have "
                        f"one, even where the row is empty or too long.")
        if ids.tolist() != want.tolist():
            raise Wrong(f"The row {row} becomes {ids.tolist()}; it must become {want.tolist()}.")
        if mask.tolist() != want_mask.tolist():
            raise Wrong(f"The mask of {ids.tolist()} is {mask.int().tolist()}; it must be {want_mask.int().tolist()}: "
                        f"true for words and </s>, false for padding.")


# ---- 5.2 position_buckets


def t5_buckets(length: int) -> Int[Tensor, "n n"]:
    """The bucket, 0..31, of each key (column) as seen from each query (row) (Raffel et al. 2020, section 2.1)."""
    ahead = torch.arange(length) - torch.arange(length)[:, None]
    distance = ahead.abs()
    far = 8 + (8 * torch.log(distance.clamp(min=1) / 8) / math.log(16)).long()
    return 16 * (ahead > 0).long() + torch.where(distance < 8, distance, far.clamp(max=15))


def check_position_buckets(position_buckets) -> None:
    """Only key minus query counts; a half for each side, one bucket a distance up to 7, logarithmic up to 128."""
    length = 226
    what = f"position_buckets({length})"
    got = position_buckets(length)
    expect_shape(what, got, (length, length))
    if got.dtype != torch.long:
        raise Wrong(f"{what} has dtype {got.dtype}; buckets are indices of a table, so it must be torch.int64.")
    if got[0, 0] != 0:
        raise Wrong(f"The bucket of a token seen from itself is {int(got[0, 0])}; it must be 0.")
    if not torch.equal(got[1:, 1:], got[:-1, :-1]):
        raise Wrong("The bucket changes when query and key both move by one; only key minus query may count.")
    wanted = t5_buckets(length)
    if torch.equal(got, wanted.T):
        raise Wrong(f"Rows and columns are exchanged: one token after the query is bucket {int(got[0, 1])}; keys "
                    f"after the query have buckets 16 to 31, keys before it 1 to 15. Row i is query i.")
    for apart in range(1, length):
        for pair, name in (((apart, 0), "before"), ((0, apart), "after")):
            mine, right = int(got[pair]), int(wanted[pair])
            at_the_edge = apart in (16, 32, 64) and mine == right - 1  # a logarithm that rounds down by one bit
            if mine != right and not at_the_edge:
                raise Wrong(f"The bucket of a key {apart} tokens {name} the query is {mine}; it must be {right}.")


# ---- 5.3 drop_captions


def captions_dropped(features: Float[Tensor, "b n d"], null: Float[Tensor, "n d"], p: float,
                     generator: torch.Generator) -> Float[Tensor, "b n d"]:
    """Features of which each sample as a whole is `null` with probability p, drawn with the generator."""
    dropped = torch.rand(len(features), generator=generator) < p
    return torch.where(dropped[:, None, None], null, features)


def check_drop_captions(drop_captions) -> None:
    """Whole samples, each with a draw of its own, the right share, the null given, and the generator's numbers."""
    features, null = torch.randn(400, 3, 5), torch.randn(3, 5)

    def dropped(p: float, seed: int) -> Tensor:
        """Which of the 400 samples became null; refuses what is neither kept nor null as a whole."""
        what, given = f"drop_captions(features, null, {p:g}, generator)", features.clone()
        got = drop_captions(given, null, p, torch.Generator().manual_seed(seed))
        if not torch.equal(given, features):
            raise Wrong("drop_captions changes its input features; make a new tensor.")
        expect_shape(what, got, tuple(features.shape))
        is_null, kept = (got == null).flatten(1), (got == features).flatten(1)
        whole = is_null.all(dim=1) | kept.all(dim=1)
        if (mixed := ~whole & (is_null | kept).all(dim=1)).any():
            raise Wrong(f"Sample {int(mixed.nonzero()[0])} is partly null and partly caption; drop a caption whole or "
                        f"not at all.")
        if not whole.all():
            raise Wrong(f"Sample {int((~whole).nonzero()[0])} is neither its own features nor null; dropped ones must "
                        f"become null, kept ones stay as they are, without a factor.")
        return is_null.all(dim=1)

    for p in (0.0, 1.0):
        if (share := dropped(p, 0).float().mean().item()) != p:
            raise Wrong(f"With p = {p:g}, {share:.0%} of the captions are dropped; it must be {p:.0%}.")
    first = dropped(0.3, 1)
    if not torch.equal(first, dropped(0.3, 1)):
        raise Wrong("The same generator drops other captions the second time; hand it to the random call.")
    if torch.equal(first, dropped(0.3, 2)):
        raise Wrong("Another seed of the generator drops the same captions; draw with the generator.")
    share = torch.stack([dropped(0.3, seed) for seed in range(20)]).float().mean(dim=1)
    if not 0.25 < share.mean() < 0.35 or share.max() > 0.5:
        raise Wrong(f"With p = 0.3, between {share.min():.0%} and {share.max():.0%} of the captions of a batch of 400 "
                    f"are dropped; it must be about 30 % in each batch, every caption with a draw of its own.")
    generator = torch.Generator().manual_seed(3)
    alone = [torch.equal(drop_captions(features[:1], null, 0.3, generator)[0], null) for _ in range(400)]
    if not 0.2 < sum(alone) / 400 < 0.4:
        raise Wrong(f"In 400 batches of one caption, {sum(alone) / 400:.0%} are dropped; it must be about 30 %. Draw "
                    f"for each caption whether it is dropped, instead of dropping a fixed share of the batch.")


# ---- 5.4 guided_velocity


def both_in_one_batch(network, x: Float[Tensor, "b c t h w"], t: Int[Tensor, "b"], text: Float[Tensor, "b n d"],
                      null: Float[Tensor, "b n d"], scale: float) -> Float[Tensor, "b c t h w"]:
    """The guided answer: one run for both, null first; half the batch where the scale is 1."""
    if scale == 1:
        return network(x, t, text).float()
    both = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, text]))
    return guide(*both.chunk(2), scale)


class _Network:
    """Stands in for the transformer: an answer that shows which x, t and text went in, in bfloat16, and a count."""

    def __init__(self):
        self.batches, self.orders = [], []

    def __call__(self, x, t, text):
        for name, given in (("t", t), ("text", text)):
            if len(given) != len(x):
                raise Wrong(f"The network was given {len(x)} samples of x, but {len(given)} of {name}.")
        self.batches.append(len(x))
        self.orders.append(text[:, 0, 0].tolist())
        return (x * (1 + t.reshape(-1, 1, 1, 1, 1) / 1000) + text.mean(dim=(1, 2)).reshape(-1, 1, 1, 1, 1)).bfloat16()


def check_guided_velocity(guided_velocity) -> None:
    """One run, null first, each sample with its own text; full precision; and the saving at scale 1."""
    x, t = torch.randn(2, 3, 1, 2, 2), torch.tensor([999, 40])
    text, null = torch.tensor([2.0, 3.0]).reshape(2, 1, 1).expand(2, 4, 5), torch.full((2, 4, 5), -1.0)
    for scale in (6.0, 0.0, 1.0):
        network, want = _Network(), both_in_one_batch(_Network(), x, t, text, null, scale)
        what = f"guided_velocity with scale {scale:g}"
        got = guided_velocity(network, x, t, text, null, scale)
        expect_shape(what, got, tuple(x.shape))
        if scale != 1 and (got.float() - both_in_one_batch(_Network(), x, t, null, text, scale)).abs().max() < 1e-4:
            raise Wrong(f"{what}: caption and null are exchanged; guidance goes from null towards the caption.")
        if got.dtype != torch.float32:
            raise Wrong(f"{what} is {got.dtype}; the network answers in bfloat16, and {scale:g} times a difference of "
                        f"two nearly equal numbers must be taken in float32.")
        _name_slip(what, got, x, t, text, null, scale)
        expect_close(what, got, want, atol=1e-5)
        if scale == 1 and network.batches != [2]:
            raise Wrong(f"With scale 1 the network was given {network.batches} samples; null has no part in the "
                        f"result, so it must be [2].")
        if scale != 1 and network.batches != [4]:
            raise Wrong(f"{what}: the network was given batches of {network.batches}; it must be one batch, [4].")
        if scale != 1 and network.orders[0][:2] != [-1.0, -1.0]:
            raise Wrong(f"{what}: the caption comes first in the batch; as published, null comes first.")


def _name_slip(what: str, got: Tensor, x: Tensor, t: Tensor, text: Tensor, null: Tensor, scale: float) -> None:
    """Refuses the two most frequent mistakes by name."""
    if scale == 1:
        return
    uncond, cond = _Network()(torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, text])).chunk(2)
    wide = uncond.float() + scale * (cond.float() - uncond.float())
    late = (uncond + scale * (cond - uncond)).float()
    if torch.equal(got, late) and not torch.equal(late, wide):
        raise Wrong(f"{what} is off by up to {(late - wide).abs().max():.2g}: the difference was taken in bfloat16, "
                    f"and made float32 only afterwards. Call .float() on the network's answers, then subtract.")
    if torch.allclose(got, cond.float() + scale * (cond.float() - uncond.float()), atol=1e-5):
        raise Wrong(f"{what}: the scale counts once too often. Begin at null's answer, not at the caption's: with "
                    f"scale 1 the caption's answer must come out.")


EXERCISES = (
    Exercise(
        "5.1", "pad_and_mask", difficulty=1, minutes=10, reference=padded_ids, check=check_pad_and_mask,
        hints=(
            "Three cases: a row that is shorter than length - 1, one that is longer, and an empty one. What comes "
            "after the last word in all three?",
            "Cut first, row[:length - 1]; then there is always room for </s>. Pad after that.",
            "The mask is true for the first len(row) + 1 places of a row that was cut: [place <= len(row) for place in "
            "range(length)].",
        ),
    ),
    Exercise(
        "5.2", "position_buckets", difficulty=2, minutes=15, reference=t5_buckets, check=check_position_buckets,
        hints=(
            "ahead = torch.arange(n) - torch.arange(n)[:, None] is key minus query for all pairs. Its sign gives the "
            "half, its size the place in it.",
            "For distances from 8 on: 8 + 8 * log(distance / 8) / log(128 / 8), rounded down, and at most 15. "
            "log(0) is no number: clamp the distance first, since torch.where computes both sides.",
            "16 * (ahead > 0) + torch.where(distance < 8, distance, far), as torch.int64; .long() rounds down.",
        ),
    ),
    Exercise(
        "5.3", "drop_captions", difficulty=1, minutes=10, reference=captions_dropped, check=check_drop_captions,
        hints=(
            "How many random numbers does a batch of b captions need?",
            "torch.rand(b, generator=generator) < p says which are dropped. In what shape does it broadcast to b n d?",
            "torch.where(dropped[:, None, None], null, features) makes a new tensor and broadcasts null.",
        ),
    ),
    Exercise(
        "5.4", "guided_velocity", difficulty=2, minutes=15, reference=both_in_one_batch, check=check_guided_velocity,
        hints=(
            "The network takes a batch. Put both questions into one, null first, and take the answers apart again.",
            "torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, text]); then .float() and .chunk(2).",
            "uncond + scale * (cond - uncond). Where scale is 1 that is cond, so ask for cond alone.",
        ),
    ),
    Exercise(
        "5.5", "half_variety", difficulty=2, minutes=10, reference=scale_that_halves, check=check_half_variety,
        hints=(
            "guided_samples(w).std() is the spread. Print it for some scales between 1 and 6.",
            "The spread falls as the scale rises. Between which two of your scales does it pass half of the first?",
            "Halve that interval, look at its middle, and keep the half in which the spread passes the target.",
        ),
    ),
    Exercise(
        "5.6", "variety", difficulty=1, minutes=10, reference=entropy_bits, check=check_variety,
        hints=(
            "First the share p of each different answer. Counter(answers) counts them, and it takes None, too.",
            "An answer with the share p adds -p log2(p). What do two answers, each with the share 1/2, add up to?",
            "sum(-count / n * math.log2(count / n) for count in Counter(answers).values()), with n = len(answers).",
        ),
    ),
)
