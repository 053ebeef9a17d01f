"""The exercise of notebook 08 about attention in chunks distinguishes right from wrong, and names the mistake."""

import math

import torch
import torch.nn.functional as F

from minicogvx.course.exercises import find
from tests.guards import guard

# ---- 8.6 in_chunks


def right_in_chunks(q, k, v, size, start=-math.inf, shrink_out=True, shrink_total=True):
    largest, total, out = torch.full((len(q),), start), torch.zeros(len(q)), torch.zeros(len(q), v.shape[1])
    for i in range(0, len(k), size):
        scores = q @ k[i:i + size].T * q.shape[1] ** -0.5
        new = torch.maximum(largest, scores.max(dim=1).values)
        weights, shrink = (scores - new[:, None]).exp(), (largest - new).exp()
        total = weights.sum(dim=1) + (total * shrink if shrink_total else total)
        out = weights @ v[i:i + size] + (out * shrink[:, None] if shrink_out else out)
        largest = new
    return out / total[:, None]


def answer_not_shrunk(q, k, v, size):
    return right_in_chunks(q, k, v, size, shrink_out=False)


def sum_not_shrunk(q, k, v, size):
    return right_in_chunks(q, k, v, size, shrink_total=False)


def neither_shrunk(q, k, v, size):
    return right_in_chunks(q, k, v, size, shrink_out=False, shrink_total=False)


def starts_at_zero(q, k, v, size):
    return right_in_chunks(q, k, v, size, start=0.0)


def without_maximum(q, k, v, size):
    parts = [((q @ keys.T / 2).exp(), values) for keys, values in zip(k.split(size), v.split(size))]
    return sum(p @ values for p, values in parts) / sum(p.sum(dim=1, keepdim=True) for p, _ in parts)


def the_whole_matrix(q, k, v, size):
    return (q @ k.T / 2).softmax(dim=1) @ v


def the_kernel(q, k, v, size):
    return F.scaled_dot_product_attention(q, k, v)


def mean_of_blocks(q, k, v, size):
    parts = [(q @ keys.T / 2).softmax(dim=1) @ values * len(keys) for keys, values in zip(k.split(size), v.split(size))]
    return sum(parts) / len(k)


def whole_blocks_only(q, k, v, size):
    n = len(k) // size * size
    return right_in_chunks(q, k[:n], v[:n], size)


def blocks_of_queries(q, k, v, size):
    return torch.cat([(rows @ k.T / 2).softmax(dim=1) @ v for rows in q.split(size)])


def unscaled(q, k, v, size):
    return right_in_chunks(2 * q, k, v, size)


def one_maximum_for_all_queries(q, k, v, size):
    largest, total, out = -math.inf, torch.zeros(len(q), 1), torch.zeros_like(q)
    for keys, values in zip(k.split(size), v.split(size)):
        scores = q @ keys.T / 2
        new = max(largest, float(scores.max()))
        powers, shrink = (scores - new).exp(), math.exp(largest - new)
        total, out, largest = total * shrink + powers.sum(1, keepdim=True), out * shrink + powers @ values, new
    return out / total


def maximum_of_the_first_chunk(q, k, v, size):
    largest, total, out = None, torch.zeros(len(q), 1), torch.zeros_like(q)
    for keys, values in zip(k.split(size), v.split(size)):
        scores = q @ keys.T / 2
        largest = scores.amax(1, keepdim=True) if largest is None else largest
        powers = (scores - largest).exp()
        total, out = total + powers.sum(1, keepdim=True), out + powers @ values
    return out / total


def maximum_of_each_chunk(q, k, v, size):
    largest, total, out = torch.full((len(q), 1), -math.inf), torch.zeros(len(q), 1), torch.zeros_like(q)
    for keys, values in zip(k.split(size), v.split(size)):
        scores = q @ keys.T / 2
        new = scores.amax(1, keepdim=True)
        powers, shrink = (scores - new).exp(), (largest - new).exp()
        total, out, largest = total * shrink + powers.sum(1, keepdim=True), out * shrink + powers @ values, new
    return out / total


def without_maximum_in_double(q, k, v, size):
    return without_maximum(q.double(), k.double(), v.double(), size).float()


def a_loop_over_queries(q, k, v, size):
    return torch.stack([(k @ row / 2).softmax(0) @ v for row in q])


def by_hand(q, k, v, size):
    answers = []
    for row in q:
        scores = [float(row @ key) / 2 for key in k]
        powers = [math.exp(score - max(scores)) for score in scores]
        answers.append(sum(power / sum(powers) * value for power, value in zip(powers, v)))
    return torch.stack(answers)


def one_key_at_a_time(q, k, v, size):
    return right_in_chunks(q, k, v, 1)


def ones_beside_the_values(q, k, v, size):
    """Right, in another way: the sum of weights is one more column."""
    largest, out = torch.full((len(q), 1), -math.inf), torch.zeros(len(q), v.shape[1] + 1)
    values = torch.cat([v, torch.ones(len(v), 1)], dim=1)
    for keys, more in zip(k.split(size), values.split(size)):
        scores = (q[:, None] * keys).sum(-1) / 2
        new = torch.maximum(largest, scores.amax(1, keepdim=True))
        out, largest = out * (largest - new).exp() + (scores - new).exp() @ more, new
    return out[:, :-1] / out[:, -1:]


def test_in_chunks():
    guard("8.6", right_in_chunks, [
        ("both the running sum and the running answer shrink", answer_not_shrunk),
        ("both the running sum and the running answer shrink", sum_not_shrunk),
        ("A chunk with small scores must count for little", neither_shrunk),
        ("Where all scores are -300", starts_at_zero),
        ("Where all scores are 300", without_maximum),
        ("of shape (40, 50), 2000 numbers", the_whole_matrix),
        ("calls PyTorch's scaled_dot_product_attention", the_kernel),
        ("A chunk with small scores must count for little", mean_of_blocks),
        ("50 is not a multiple of 8; the last chunk has 2 keys", whole_blocks_only),
        ("differs in", unscaled),
        ("The answer of query 1 of 2 holds NaN or infinity. Two queries have scores near 300 and -300",
         one_maximum_for_all_queries),
        ("the scores of a query rise by 600. Without a maximum, or with that of an earlier chunk",
         maximum_of_the_first_chunk),
        ("It is the largest score so far, not that of the chunk", maximum_of_each_chunk),
        ("Without a maximum", without_maximum_in_double),
        ("scores for all 50 keys at once. Look at 8 keys at a time", blocks_of_queries),
        ("scores for all 50 keys at once. Look at 8 keys at a time", a_loop_over_queries),
        ("it does not look at `size` keys at a time", by_hand),
        ("it does not look at `size` keys at a time", one_key_at_a_time),
    ])


def test_another_right_way_is_right():
    find("8.6").check(ones_beside_the_values)
