"""Exercises of notebook 16 distinguish right from wrong, and name the mistake."""

import re

import numpy as np
import torch

from minicogvx.course.exercises.checking import find, judge
from minicogvx.course.exercises.sat_16 import START, as_sat, example_blocks, renamed_from_sat
from tests.guards import guard

# ---- 16.1 block_flops


def by_hand(n, d, d_time):
    matrices = [(n, d, d)] * 4 + [(n, d, 4 * d), (n, 4 * d, d), (n, d, n), (n, n, d), (1, d_time, 12 * d)]
    return sum(2 * rows * inner * columns for rows, inner, columns in matrices)


def as_a_float(n, d, d_time):
    return float(by_hand(n, d, d_time))


def multiplications_only(n, d, d_time):
    return by_hand(n, d, d_time) // 2


def scores_only(n, d, d_time):
    return by_hand(n, d, d_time) - 2 * n * n * d


def feed_forward_once(n, d, d_time):
    return by_hand(n, d, d_time) - 8 * n * d * d


def modulated_token_by_token(n, d, d_time):
    return by_hand(n, d, d_time) + (n - 1) * 24 * d * d_time


def without_modulation(n, d, d_time):
    return by_hand(n, d, d_time) - 24 * d * d_time


def cubic(n, d, d_time):
    return by_hand(n, d, d_time) + n**3


def nothing(*arguments):
    return None


def an_array(n, d, d_time):
    return np.ones(3)


def raising(*arguments):
    raise KeyError("n")


def test_block_flops():
    guard("16.1", by_hand, [
        ("a multiply and an add are two operations", multiplications_only),
        ("it must be 4 n^2 d", scores_only),
        ("d x 4d and 4d x d in the feed-forward", feed_forward_once),
        ("once for a clip, not for each token", modulated_token_by_token),
        ("twelve vectors of width d=8", without_modulation),
        ("parts that grow with n squared, with n and not at all", cubic),
        ("does your function end in return", nothing), ("it must be one number", an_array), ("KeyError", raising),
    ])
    assert judge(find("16.1"), as_a_float).state == "right"


# ---- 16.2 roofline


def layer_by_layer(layers, peak, bandwidth):
    total = 0.0
    for work, moved in layers:
        total += work / peak if work / peak > moved / bandwidth else moved / bandwidth
    return total


def added(layers, peak, bandwidth):
    return sum(work / peak + moved / bandwidth for work, moved in layers)


def quicker(layers, peak, bandwidth):
    return sum(min(work / peak, moved / bandwidth) for work, moved in layers)


def totals_first(layers, peak, bandwidth):
    return max(sum(work for work, _ in layers) / peak, sum(moved for _, moved in layers) / bandwidth)


def slowest_layer(layers, peak, bandwidth):
    return max(max(work / peak, moved / bandwidth) for work, moved in layers)


def exchanged(layers, peak, bandwidth):
    return layer_by_layer(layers, bandwidth, peak)


def arithmetic_alone(layers, peak, bandwidth):
    return sum(work / peak for work, _ in layers)


def test_roofline():
    guard("16.2", layer_by_layer, [
        ("take the longer, not the sum", added), ("not the quicker", quicker),
        ("longer layer by layer", totals_first), ("add their seconds", slowest_layer),
        ("Operations go with the peak", exchanged), ("counts arithmetic alone", arithmetic_alone),
        ("end in return", nothing), ("one number", an_array), ("KeyError", raising),
    ])


# ---- 16.3 longest


def one_after_the_other(seconds_of, limit):
    frames = None
    for k in range(21):
        if seconds_of(8 * k + 1) > limit:
            break
        frames = 8 * k + 1
    return frames


def by_fours(seconds_of, limit):
    fits = [frames for frames in range(1, 162, 4) if seconds_of(frames) <= limit]
    return fits[-1] if fits else None


def the_first_above(seconds_of, limit):
    return next((frames for frames in range(1, 162, 8) if seconds_of(frames) > limit), 161)


def strictly_below(seconds_of, limit):
    fits = [frames for frames in range(1, 162, 8) if seconds_of(frames) < limit]
    return fits[-1] if fits else None


def one_frame_at_least(seconds_of, limit):
    return one_after_the_other(seconds_of, limit) or 1


def without_an_end(seconds_of, limit):
    fits = [frames for frames in range(1, 20_000, 8) if seconds_of(frames) <= limit]
    return fits[-1] if fits else None


def test_longest():
    guard("16.3", one_after_the_other, [
        ("for 8k + 1 only", by_fours), ("above the limit", the_first_above),
        ("exactly the limit counts", strictly_below), ("so it must be None", one_frame_at_least),
        ("the list ends at 161", without_an_end), ("end in return", nothing), ("KeyError", raising),
    ])


# ---- 16.4 training_bytes


def eighteen(frozen, trained):
    return 2 * frozen + 18 * trained


def test_training_bytes():
    guard("16.4", eighteen, [
        ("A frozen weight has no gradient", lambda frozen, trained: 18 * (frozen + trained)),
        ("kept in 16 bits", lambda frozen, trained: 4 * frozen + 18 * trained),
        ("still needed in the forward pass", lambda frozen, trained: 18 * trained),
        ("copy that computes is missing", lambda frozen, trained: 2 * frozen + 16 * trained),
        ("two averages", lambda frozen, trained: 2 * frozen + 14 * trained),
        ("AdamW keeps two averages", lambda frozen, trained: 2 * frozen + 12 * trained),
        ("gradients come on top", lambda frozen, trained: 2 * frozen + 8 * trained),
        ("end in return", nothing), ("one number", lambda frozen, trained: torch.ones(2)), ("KeyError", raising),
    ])


# ---- 16.5 from_sat

SIMPLE = {"input_layernorm": "norm1.norm", "post_attention_layernorm": "norm2.norm",
          "attention.dense": "attn1.to_out.0", "mlp.dense_h_to_4h": "ff.net.0.proj", "mlp.dense_4h_to_h": "ff.net.2"}
ALL = {"norm1": (0, 1, 2, 6, 7, 8), "norm2": (3, 4, 5, 9, 10, 11)}


def solved(tensors, pattern=r"(\d+)", start=START, dealt=ALL, thirds=lambda tensor: tensor.chunk(3), swap=False):
    found = {}
    for name, tensor in tensors.items():
        name = name.removeprefix(start)
        stem, end = name.rsplit(".", 1)
        block = f"transformer_blocks.{re.search(r'[.]' + pattern, stem)[1]}"
        if "query_key_value" in stem:
            for which, piece in zip("qkv", thirds(tensor)):
                found[f"{block}.attn1.to_{which}.{end}"] = piece
        elif "adaLN" in stem:
            pieces = tensor.chunk(12)
            for norm, places in dealt.items():
                found[f"{block}.{norm}.linear.{end}"] = torch.cat([pieces[i] for i in places])
        elif "layernorm_list" in stem:
            which = "q" if ("query" in stem) != swap else "k"
            found[f"{block}.attn1.norm_{which}.{end}"] = tensor
        else:
            found[f"{block}.{next(ours for theirs, ours in SIMPLE.items() if stem.endswith(theirs))}.{end}"] = tensor
    return found


def one_digit(tensors):
    return solved(tensors, r"(\d)")


def prefix_left(tensors):
    return {START + name: tensor for name, tensor in solved(tensors).items()}


def in_halves(tensors):
    return solved(tensors, dealt={"norm1": range(6), "norm2": range(6, 12)})


def text_first(tensors):
    return solved(tensors, dealt={"norm1": (6, 7, 8, 0, 1, 2), "norm2": (9, 10, 11, 3, 4, 5)})


def every_third_row(tensors):
    return solved(tensors, thirds=lambda tensor: [tensor[i::3] for i in range(3)])


def key_for_query(tensors):
    return solved(tensors, swap=True)


def in_another_order(tensors):
    return solved(tensors, thirds=lambda tensor: [tensor.chunk(3)[i] for i in (1, 2, 0)])


def left_together(tensors):
    right = solved(tensors)
    for name in [name for name in right if "to_q" in name]:
        right[name.replace("to_q", "query_key_value")] = right.pop(name)
    return right


def taken_out(tensors):
    return {name: tensor for name, tensor in solved({name: tensors.pop(name) for name in list(tensors)}).items()}


def as_numpy(tensors):
    return {name: tensor.numpy() for name, tensor in solved(tensors).items()}


def in_half(tensors):
    return {name: tensor.half() for name, tensor in solved(tensors).items()}


def a_list(tensors):
    return list(solved(tensors).items())


def test_from_sat():
    guard("16.5", solved, [
        ("Layer 12 is missing", one_digit), ("strip 'model.diffusion_model.'", prefix_left),
        ("norm1 has all before attention", in_halves), ("video first, then text", text_first),
        ("never every third row", every_third_row), ("numbers of another tensor", key_for_query),
        ("Queries are the first third", in_another_order), ("still one tensor", left_together),
        ("The dict that was given has changed", taken_out), ("has shape ndarray", as_numpy),
        ("it must stay torch.float32", in_half), ("is a list; it must be a dict", a_list),
        ("is a NoneType", nothing), ("KeyError", raising),
    ])


def test_there_and_back():
    blocks = example_blocks()
    theirs = as_sat(blocks)
    assert len(theirs) == 2 * 2 * 9 and all(name.startswith(START) for name in theirs)
    back = renamed_from_sat(theirs)
    assert back.keys() == blocks.keys() and all(torch.equal(back[name], blocks[name]) for name in blocks)
