"""Exercises of notebook 12 distinguish right from wrong, and name the mistake."""

import numpy as np
import torch

from minicogvx.course.exercises.shards_12 import bytes_a_gpu
from tests.guards import guard

# ---- what any answer may do: raise, give nothing, or something of another kind


def raises(*arguments):
    raise KeyError("no")


def gives_nothing(*arguments):
    return None


def gives_an_array(*arguments):
    return np.zeros(3)


# ---- 12.1 interval


def interval(rank, ranks, T):
    return rank * T // ranks, (rank + 1) * T // ranks


def last_ones_lost(rank, ranks, T):
    return rank * (T // ranks), (rank + 1) * (T // ranks)


def inclusive(rank, ranks, T):
    return rank * T // ranks, (rank + 1) * T // ranks - 1


def begins_with_the_last(rank, ranks, T):
    return max(0, rank * T // ranks - 1), (rank + 1) * T // ranks


def rest_to_the_last(rank, ranks, T):
    return rank * (T // ranks), T if rank == ranks - 1 else (rank + 1) * (T // ranks)


def rounded_up(rank, ranks, T):
    share = -(-T // ranks)
    return min(rank * share, T), min((rank + 1) * share, T)


def fractions(rank, ranks, T):
    return rank * T / ranks, (rank + 1) * T / ranks


def counted_from_one(rank, ranks, T):
    return interval(rank - 1, ranks, T)


def backwards(rank, ranks, T):
    return interval(ranks - 1 - rank, ranks, T)


def test_interval():
    guard("12.1", interval, [
        ("timestep 8 belongs to no rank", last_ones_lost),
        ("timestep 999 belongs to no rank", inclusive),
        ("belongs to ranks 0 and 1", begins_with_the_last),
        ("They may differ by one", rest_to_the_last),
        ("They may differ by one", rounded_up),
        ("both must be whole numbers", fractions),
        ("belongs to no rank", counted_from_one),
        ("rank 0 has the smallest timesteps", backwards),
        ("KeyError", raises), ("is None", gives_nothing), ("two whole numbers", gives_an_array),
    ])


# ---- 12.2 worth


def worth(t, values, parts, T=1000):
    own = t * parts // T
    within = torch.stack([values[own == part].var(dim=0).sum() for part in range(parts)])
    return values.var(dim=0).sum() / within.mean()


def of_standard_deviations(t, values, parts):
    return worth(t, values, parts) ** 0.5


def what_remains(t, values, parts):
    return 1 / worth(t, values, parts)


def share_between(t, values, parts):
    return 1 - 1 / worth(t, values, parts)


def biased(t, values, parts):
    own = t * parts // 1000
    within = torch.stack([values[own == part].var(dim=0, unbiased=False).sum() for part in range(parts)])
    return values.var(dim=0, unbiased=False).sum() / within.mean()


def mean_of_ratios(t, values, parts):
    own = t * parts // 1000
    within = torch.stack([values[own == part].var(dim=0) for part in range(parts)])
    return (values.var(dim=0) / within.mean(dim=0)).mean()


def in_their_order(t, values, parts):
    within = torch.stack([chunk.var(dim=0).sum() for chunk in values.chunk(parts)])
    return values.var(dim=0).sum() / within.mean()


def squares(t, values, parts):
    own = t * parts // 1000
    within = torch.stack([values[own == part].square().sum(1).mean() for part in range(parts)])
    return values.square().sum(1).mean() / within.mean()


def a_row(t, values, parts):
    return values.var(dim=0)


def test_worth():
    guard("12.2", worth, [
        ("ratio of the standard deviations", of_standard_deviations),
        ("what remains of the noise", what_remains),
        ("the share that lies between the parts", share_between),
        ("divide the sum of squares by 7", biased),
        ("Add up the variances of the numbers first", mean_of_ratios),
        ("in another order, each with its own t", in_their_order),
        ("the mean of the variances within the parts", squares),
        ("KeyError", raises), ("is None", gives_nothing), ("must be one number", gives_an_array),
    ])


# ---- 12.3 ring_all_reduce


def ring(values, send, first=0, whole=False, divide=True, in_place=False, rounds=None):
    n = len(values)
    pieces = [list(own.chunk(n)) for own in values]
    for step in range(n - 1):
        arriving = [send(rank, pieces[rank][(rank - step) % n]) for rank in range(n)]
        for rank, piece in enumerate(arriving):
            own, place = pieces[(rank + 1) % n], (rank - step) % n
            if in_place:
                own[place] += piece
            else:
                own[place] = own[place] + piece
    for step in range(n - 1 if rounds is None else rounds):
        arriving = [send(rank, pieces[rank][(rank + 1 + first - step) % n]) for rank in range(n)]
        for rank, piece in enumerate(arriving):
            pieces[(rank + 1) % n][(rank + 1 + first - step) % n] = piece
    return [torch.cat(own) / (n if divide else 1) for own in pieces]


def solved_ring(values, send):
    return ring(values, send)


def the_sum(values, send):
    return ring(values, send, divide=False)


def off_by_one(values, send):
    return ring(values, send, first=1)


def overwrites(values, send):
    return ring(values, send, in_place=True)


def stops_early(values, send):
    return ring(values, send, rounds=0)


def whole_messages(values, send):
    n, total, going = len(values), [own.clone() for own in values], [own.clone() for own in values]
    for _ in range(n - 1):
        arriving = [send(rank, going[rank]) for rank in range(n)]
        going = [arriving[(rank - 1) % n] for rank in range(n)]
        total = [a + b for a, b in zip(total, going)]
    return [own / n for own in total]


def without_messages(values, send):
    return [torch.stack(list(values)).mean(dim=0)] * len(values)


def for_show(values, send):
    ring(values, send)
    return [torch.stack(list(values)).mean(dim=0)] * len(values)


def only_one(values, send):
    return ring(values, send)[0]


def test_ring_all_reduce():
    guard("12.3", solved_ring, [
        ("has the sum; it must have the mean", the_sum),
        ("is piece (r + 1) % n", off_by_one),
        ("have changed. Views of chunk share them", overwrites),
        ("has the mean in 1 of its 2 pieces", stops_early),
        ("Send pieces of 6, an n-th", whole_messages),
        ("sent 0 messages", without_messages),
        ("when the messages are lost", for_show),
        ("a list with a tensor for each rank", only_one),
        ("KeyError", raises), ("None", gives_nothing), ("ndarray", gives_an_array),
    ])


# ---- 12.4 accumulate


def accumulate(losses_of, weights, clips, most):
    weights.grad = None
    for part in clips.split(most):
        (losses_of(weights, part).sum() / len(clips)).backward()
    return weights.grad


def not_divided(losses_of, weights, clips, most):
    weights.grad = None
    for part in clips.split(most):
        losses_of(weights, part).sum().backward()
    return weights.grad


def means_added(losses_of, weights, clips, most):
    weights.grad = None
    for part in clips.split(most):
        losses_of(weights, part).mean().backward()
    return weights.grad


def mean_of_means(losses_of, weights, clips, most):
    weights.grad = None
    parts = clips.split(most)
    for part in parts:
        (losses_of(weights, part).mean() / len(parts)).backward()
    return weights.grad


def never_cleared(losses_of, weights, clips, most):
    for part in clips.split(most):
        (losses_of(weights, part).sum() / len(clips)).backward()
    return weights.grad


def one_backward(losses_of, weights, clips, most):
    weights.grad = None
    (sum(losses_of(weights, part).sum() for part in clips.split(most)) / len(clips)).backward()
    return weights.grad


def at_once(losses_of, weights, clips, most):
    return torch.autograd.grad(losses_of(weights, clips).mean(), weights)[0]


def rest_left_out(losses_of, weights, clips, most):
    weights.grad = None
    for i in range(len(clips) // most):
        (losses_of(weights, clips[i * most:(i + 1) * most]).sum() / len(clips)).backward()
    return weights.grad


def test_accumulate():
    guard("12.4", accumulate, [
        ("never divided by the number of clips", not_divided),
        ("the means of the parts are added up", means_added),
        ("a clip of the last part counts twice as much", mean_of_means),
        ("in weights.grad. Clear it first", never_cleared),
        ("call backward() for each part", one_backward),
        ("there is memory for 5 at a time", at_once),
        ("each of the 10 counts once", rest_left_out),
        ("KeyError", raises), ("is None", gives_nothing), ("ndarray", gives_an_array),
    ])


# ---- 12.5 memory_a_gpu


def memory_a_gpu(block, blocks, rest, activations, gpus, sharding):
    return bytes_a_gpu(block, blocks, rest, activations, gpus, sharding)


def optimizer_not_cut(block, blocks, rest, activations, gpus, sharding):
    count = block * blocks + rest
    more = 8 * count * (1 - 1 / gpus) if sharding == "fsdp" else 0
    return bytes_a_gpu(block, blocks, rest, activations, gpus, sharding) + more


def copy_forgotten(block, blocks, rest, activations, gpus, sharding):
    less = 2 * (block * blocks + rest) if sharding == "replicate" else 0
    return bytes_a_gpu(block, blocks, rest, activations, gpus, sharding) - less


def activations_divided(block, blocks, rest, activations, gpus, sharding):
    return bytes_a_gpu(block, blocks, rest, activations / gpus, gpus, sharding)


def nothing_gathered(block, blocks, rest, activations, gpus, sharding):
    if sharding == "fsdp":
        return 16 * (block * blocks + rest) / gpus + activations
    return bytes_a_gpu(block, blocks, rest, activations, gpus, sharding)


def always_sharded(block, blocks, rest, activations, gpus, sharding):
    if sharding == "replicate":
        return 18 * (block * blocks + rest) / gpus + activations
    return bytes_a_gpu(block, blocks, rest, activations, gpus, sharding)


def one_average(block, blocks, rest, activations, gpus, sharding):
    less = 4 * (block * blocks + rest) / (1 if sharding == "replicate" else gpus)
    return bytes_a_gpu(block, blocks, rest, activations, gpus, sharding) - less


def words(block, blocks, rest, activations, gpus, sharding):
    return "18 GB"


def test_memory_a_gpu():
    guard("12.5", memory_a_gpu, [
        ("AdamW's two averages are not cut", optimizer_not_cut),
        ("the 16-bit copy of the weights is missing", copy_forgotten),
        ("activations are divided by the GPUs", activations_divided),
        ("what is gathered while a block computes is missing", nothing_gathered),
        ("nothing is divided", always_sharded),
        ("AdamW keeps two averages", one_average),
        ("must be a number of bytes", words),
        ("KeyError", raises), ("is None", gives_nothing), ("is a ndarray", gives_an_array),
    ])


# ---- 12.6 tokens_for_heads


def tokens_for_heads(parts):
    return list(torch.cat(parts, dim=1).chunk(len(parts), dim=0))


def every_head(parts):
    return [torch.cat(parts, dim=1)] * len(parts)


def every_other_head(parts):
    whole = torch.cat(parts, dim=1)
    return [whole[rank::len(parts)] for rank in range(len(parts))]


def last_rank_first(parts):
    return list(torch.cat(parts[::-1], dim=1).chunk(len(parts), dim=0))


def own_first(parts):
    return [torch.cat([parts[rank], *parts[:rank], *parts[rank + 1:]], dim=1).chunk(len(parts), dim=0)[rank]
            for rank in range(len(parts))]


def own_tokens_only(parts):
    return [part.chunk(len(parts), dim=0)[rank] for rank, part in enumerate(parts)]


def test_tokens_for_heads():
    guard("12.6", tokens_for_heads, [
        ("that is an all-gather", every_head),
        ("Neighbouring heads stay together", every_other_head),
        ("its tokens are in another order", last_rank_first),
        ("its tokens are in another order", own_first),
        ("has shape (4, 3, 3); it must be (4, 7, 3)", own_tokens_only),
        ("KeyError", raises), ("None", gives_nothing), ("ndarray", gives_an_array),
    ])
