"""Exercises of notebook 05 on text distinguish right from wrong, and name the mistake."""

import math

import torch

from minicogvx.course.exercises import find
from tests.guards import guard

# ---- 5.1 pad_and_mask


def right_pad_and_mask(rows, length):
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        kept = row[:length - 1]
        ids[i, :len(kept) + 1] = torch.tensor([*kept, 1])
        mask[i, :len(kept) + 1] = True
    return ids, mask


def cut_without_an_end(rows, length):
    ids = torch.tensor([([*row, 1] + [0] * length)[:length] for row in rows])
    return ids, ids != 0


def end_at_the_end(rows, length):
    ids = torch.tensor([(row[:length - 1] + [0] * length)[:length - 1] + [1] for row in rows])
    return ids, ids != 0


def end_is_no_token(rows, length):
    ids, mask = right_pad_and_mask(rows, length)
    return ids, mask & (ids != 1)


def mask_of_ones(rows, length):
    ids, mask = right_pad_and_mask(rows, length)
    return ids, mask.long()


def appended(rows, length):
    for row in rows:
        row.append(1)
    return cut_without_an_end(rows, length)


def test_pad_and_mask():
    guard("5.1", right_pad_and_mask, [
        ("A row of 9 tokens becomes [20, 21, 22, 23, 24, 25], with 0 </s>", cut_without_an_end),
        ("The row [7, 8, 9] becomes [7, 8, 9, 0, 0, 1]; it must become [7, 8, 9, 1, 0, 0]", end_at_the_end),
        ("it must be [1, 1, 1, 1, 0, 0]: true for words and </s>", end_is_no_token),
        ("mask of pad_and_mask(rows, 6) has dtype torch.int64; it must be torch.bool", mask_of_ones),
        ("changes its input rows; list.append and += do that", appended),
    ])


# ---- 5.2 position_buckets


def bucket_of(ahead):
    """One number at a time, in integers: the distance at which each far bucket begins is ceil(8 * 16 ** (k / 8))."""
    distance = abs(ahead)
    far = sum(distance >= 8 * 16 ** (k / 8) - 1e-9 for k in range(1, 8))
    return (16 if ahead > 0 else 0) + (distance if distance < 8 else 8 + far)


def table_of(bucket):
    return lambda length: torch.tensor([[bucket(key - query) for key in range(length)] for query in range(length)])


right_position_buckets = table_of(bucket_of)


def query_minus_key(length):
    return right_position_buckets(length).T


def far_after_all(ahead):
    distance = abs(ahead)
    return (16 if ahead > 0 else 0) + min(distance, 15)


def rounded(ahead):
    distance = abs(ahead)
    far = 8 if distance < 8 else round(8 + 8 * math.log(distance / 8) / math.log(16))
    return (16 if ahead > 0 else 0) + (distance if distance < 8 else min(far, 15))


def uncapped(ahead):
    distance = abs(ahead)
    far = 0 if distance < 8 else int(8 + 8 * math.log(distance / 8) / math.log(16) + 1e-9)
    return (16 if ahead > 0 else 0) + (distance if distance < 8 else far)


def place_of_the_key(length):
    return torch.tensor([bucket_of(key) for key in range(length)]).expand(length, length)


def test_position_buckets():
    guard("5.2", right_position_buckets, [
        ("Rows and columns are exchanged: one token after the query is bucket 1", query_minus_key),
        ("a key 9 tokens before the query is 9; it must be 8", table_of(far_after_all)),
        ("a key 10 tokens before the query is 9; it must be 8", table_of(rounded)),
        ("a key 128 tokens before the query is 16; it must be 15", table_of(uncapped)),
        ("only key minus query may count", place_of_the_key),
    ])


def test_a_bucket_that_rounds_down_at_its_edge_is_right():
    from minicogvx.course.exercises import judge

    def low_edges(ahead):
        return bucket_of(ahead) - (abs(ahead) in (16, 32, 64))

    assert judge(find("5.2"), table_of(low_edges)).state == "right"


def test_the_buckets_are_those_of_transformers():
    from transformers.models.t5.modeling_t5 import T5Attention

    ahead = torch.arange(226) - torch.arange(226)[:, None]
    assert torch.equal(find("5.2").reference(226), T5Attention._relative_position_bucket(ahead))
    assert torch.equal(right_position_buckets(226), find("5.2").reference(226))


# ---- 5.3 drop_captions


def right_drop_captions(features, null, p, generator):
    keep = (torch.rand(len(features), 1, 1, generator=generator) >= p).to(features.dtype)
    return keep * features + (1 - keep) * null


def one_draw_for_all(features, null, p, generator):
    return null.expand_as(features) if torch.rand(1, generator=generator) < p else features


def token_by_token(features, null, p, generator):
    dropped = torch.rand(features.shape[:2], generator=generator) < p
    return torch.where(dropped[..., None], null, features)


def kept_with_p(features, null, p, generator):
    dropped = torch.rand(len(features), generator=generator) >= p
    return torch.where(dropped[:, None, None], null, features)


def to_zero(features, null, p, generator):
    return right_drop_captions(features, torch.zeros_like(null), p, generator)


def in_place(features, null, p, generator):
    features[torch.rand(len(features), generator=generator) < p] = null
    return features


def without_the_generator(features, null, p, generator):
    return right_drop_captions(features, null, p, None)


def seed_of_its_own(features, null, p, generator):
    return right_drop_captions(features, null, p, torch.Generator().manual_seed(0))


def as_dropout_does(features, null, p, generator):
    keep = (torch.rand(len(features), 1, 1, generator=generator) >= p).float()
    return keep * features / max(1 - p, 0.1) + (1 - keep) * null


def exact_share(features, null, p, generator):
    gone = torch.randperm(len(features), generator=generator)[:round(p * len(features))]
    dropped = torch.zeros(len(features), dtype=torch.bool).index_fill(0, gone, True)
    return torch.where(dropped[:, None, None], null, features)


def one_draw_per_group(features, null, p, generator):
    dropped = (torch.rand(4, generator=generator) < p).repeat_interleave(len(features) // 4)
    return torch.where(dropped[:, None, None], null, features)


def test_drop_captions():
    guard("5.3", right_drop_captions, [
        ("it must be about 30 % in each batch, every caption with a draw of its own", one_draw_per_group),
        ("is partly null and partly caption; drop a caption whole or not at all", token_by_token),
        ("With p = 0, 100% of the captions are dropped; it must be 0%", kept_with_p),
        ("dropped ones must become null", to_zero),
        ("changes its input features", in_place),
        ("drops other captions the second time; hand it to the random call", without_the_generator),
        ("Another seed of the generator drops the same captions", seed_of_its_own),
        ("kept ones stay as they are, without a factor", as_dropout_does),
        ("In 400 batches of one caption, 0% are dropped; it must be about 30 %", exact_share),
    ])
