"""Exercises of notebook 07 about modulations and blocks distinguish right from wrong, and name the mistake."""

import torch
from torch import nn

from minicogvx.course.exercises import find
from minicogvx.transformer.embeddings import timestep_sinusoid
from minicogvx.transformer.expert_norm import ExpertNorm
from minicogvx.transformer.layout import DenseLayout
from tests.guards import guard

# ---- 7.3 expert_modulation


def right_expert_modulation(x, num_text, modulation):
    b, n, d = x.shape
    video, text = modulation.view(b, 2, 3, 1, d).unbind(1)
    per_token = torch.cat([text.expand(-1, -1, num_text, -1), video.expand(-1, -1, n - num_text, -1)], dim=2)
    return x * (1 + per_token[:, 1]) + per_token[:, 0], text[:, 2], video[:, 2]


def text_first(x, num_text, modulation):
    return right_expert_modulation(x, num_text, modulation.roll(modulation.shape[1] // 2, dims=1))


def scale_before_shift(x, num_text, modulation):
    pieces = modulation.chunk(6, dim=1)
    return right_expert_modulation(x, num_text, torch.cat([pieces[i] for i in (1, 0, 2, 4, 3, 5)], dim=1))


def one_for_both(x, num_text, modulation):
    return right_expert_modulation(x, 0, modulation)


def text_at_the_end(x, num_text, modulation):
    y, *gates = right_expert_modulation(x.flip(1), num_text, modulation)
    return y.flip(1), *gates


def gates_exchanged(x, num_text, modulation):
    y, text_gate, gate = right_expert_modulation(x, num_text, modulation)
    return y, gate, text_gate


def gated_at_once(x, num_text, modulation):
    y, text_gate, gate = right_expert_modulation(x, num_text, modulation)
    return torch.cat([y[:, :num_text] + text_gate * y[:, :num_text], y[:, num_text:]], dim=1), text_gate, gate


def no_one(x, num_text, modulation):
    y, *gates = right_expert_modulation(x, num_text, modulation)
    return y - x, *gates


def y_alone(x, num_text, modulation):
    return right_expert_modulation(x, num_text, modulation)[0]


def gates_without_their_axis(x, num_text, modulation):
    y, text_gate, gate = right_expert_modulation(x, num_text, modulation)
    return y, text_gate[:, 0], gate[:, 0]


def pieces_in_turns(x, num_text, modulation):
    b, d6 = modulation.shape
    return right_expert_modulation(x, num_text, modulation.view(b, d6 // 6, 6).transpose(1, 2).reshape(b, d6))


def test_expert_modulation():
    guard("7.3", right_expert_modulation, [
        ("piece 0 of the modulation (of 0..5), the video shift, changes the tokens [0, 1, 2]", text_first),
        ("the video shift, was set to 0.5, and y is not x + 0.5 there", scale_before_shift),
        ("the video shift, changes the tokens [0, 1, 2, 3, 4, 5, 6, 7]; it must change [3, 4, 5, 6, 7]", one_for_both),
        ("of the 8 tokens, of which the first 3 are text", text_at_the_end),
        ("the video gate, was set to 0.5, and the text gate that you return is 0.5; it must be 0", gates_exchanged),
        ("the text gate, changes y; gates act later", gated_at_once),
        ("With a modulation of zeros y must be x itself", no_one),
        ("is of type Tensor; it must be three tensors", y_alone),
        ("the text gate of expert_modulation(x, 3, modulation) has shape (2, 4); it must be (2, 1, 4)",
         gates_without_their_axis),
        ("the video shift, changes the tokens [0, 1, 2, 3, 4, 5, 6, 7]", pieces_in_turns),
    ])


# ---- 7.4 half_block


def right_half_block(x, num_text, modulation, norm, layer):
    y, text_gate, gate = right_expert_modulation(norm(x), num_text, modulation)
    gates = torch.cat([text_gate.expand(-1, num_text, -1), gate.expand(-1, x.shape[1] - num_text, -1)], dim=1)
    return x + gates * layer(y)


def adds_to_the_modulated(x, num_text, modulation, norm, layer):
    y = right_expert_modulation(norm(x), num_text, modulation)[0]
    return y + right_half_block(x, num_text, modulation, norm, layer) - x


def gates_everything(x, num_text, modulation, norm, layer):
    y, text_gate, gate = right_expert_modulation(norm(x), num_text, modulation)
    return torch.cat([text_gate.expand(-1, num_text, -1), gate.expand(-1, x.shape[1] - num_text, -1)], 1) * (
        x + layer(y))


def one_after_the_other(x, num_text, modulation, norm, layer):
    y, text_gate, gate = right_expert_modulation(norm(x), num_text, modulation)
    return torch.cat([x[:, :num_text] + text_gate * layer(y[:, :num_text]),
                      x[:, num_text:] + gate * layer(y[:, num_text:])], dim=1)


def without_the_norm(x, num_text, modulation, norm, layer):
    return right_half_block(x, num_text, modulation, lambda x: x, layer)


def without_the_modulation(x, num_text, modulation, norm, layer):
    y, text_gate, gate = right_expert_modulation(norm(x), num_text, modulation)
    new = layer(norm(x))
    return torch.cat([x[:, :num_text] + text_gate * new[:, :num_text], x[:, num_text:] + gate * new[:, num_text:]], 1)


def with_given(x, num_text, modulation, layer, given):
    _, text_gate, gate = right_expert_modulation(x, num_text, modulation)
    gates = torch.cat([text_gate.expand(-1, num_text, -1), gate.expand(-1, x.shape[1] - num_text, -1)], dim=1)
    return x + gates * layer(given)


def normed_afterwards(x, num_text, modulation, norm, layer):
    return with_given(x, num_text, modulation, layer, norm(right_expert_modulation(x, num_text, modulation)[0]))


def neither(x, num_text, modulation, norm, layer):
    return with_given(x, num_text, modulation, layer, x)


def without_the_shift(x, num_text, modulation, norm, layer):
    only_scales = modulation.clone().unflatten(1, (6, -1))
    only_scales[:, [0, 3]] = 0
    return with_given(x, num_text, modulation, layer,
                      right_expert_modulation(norm(x), num_text, only_scales.flatten(1))[0])


def through_the_other_gate(x, num_text, modulation, norm, layer):
    y, text_gate, gate = right_expert_modulation(norm(x), num_text, modulation)
    new = layer(y)
    return torch.cat([x[:, :num_text] + gate * new[:, :num_text], x[:, num_text:] + text_gate * new[:, num_text:]], 1)


def gates_plus_one(x, num_text, modulation, norm, layer):
    return right_half_block(x, num_text, modulation, norm, layer) + layer(norm(x)) * 0 + 1


def test_half_block():
    guard("7.4", right_half_block, [
        ("With both gates 0 the result must be x itself", adds_to_the_modulated),
        ("With both gates 0 the result must be x itself", gates_everything),
        ("layer is called with 3 and 4 tokens; it must be called once, with all 7", one_after_the_other),
        ("modulates x itself; norm comes first", without_the_norm),
        ("only norms; shift and scale are missing", without_the_modulation),
        ("norms afterwards, which takes shift and scale away again", normed_afterwards),
        ("gives x itself to the layer", neither),
        ("what layer is given differs in", without_the_shift),
        ("Text goes through the video gate", through_the_other_gate),
        ("layer is called with 7 and 7 tokens", gates_plus_one),
    ])


# ---- 7.5 split_the_twelve


def right_split_the_twelve(rows):
    halves = rows.unflatten(0, (2, 2, -1)).transpose(0, 1).flatten(1, 2)
    return halves[0], halves[1]


def in_the_middle(rows):
    return rows.chunk(2)


def text_before_video(rows):
    return tuple(torch.cat(half.chunk(2)[::-1]) for half in right_split_the_twelve(rows))


def halves_exchanged(rows):
    return right_split_the_twelve(rows)[::-1]


def every_second_piece(rows):
    pieces = rows.chunk(12)
    return torch.cat(pieces[::2]), torch.cat(pieces[1::2])


def every_second_row(rows):
    return rows[::2], rows[1::2]


def by_columns(rows):
    pieces = rows.chunk(12, dim=-1)
    return torch.cat(pieces[:3] + pieces[6:9], dim=-1), torch.cat(pieces[3:6] + pieces[9:], dim=-1)


def all_twelve(rows):
    return rows.chunk(12)


def test_split_the_twelve():
    guard("7.5", right_split_the_twelve, [
        ("the first half holds the rows of pieces [0, 1, 2, 3, 4, 5]", in_the_middle),
        ("the first half holds the rows of pieces [6, 7, 8, 0, 1, 2]", text_before_video),
        ("the first half holds the rows of pieces [3, 4, 5, 9, 10, 11]", halves_exchanged),
        ("the first half holds the rows of pieces [0, 2, 4, 6, 8, 10]", every_second_piece),
        ("it must hold [0, 1, 2, 6, 7, 8], each whole", every_second_row),
        ("the first half of a weight (24, 5) has shape", by_columns),
        ("split_the_twelve(rows) gives 12 tensors; it must give two, for", all_twelve),
    ])


# ---- what replaces the learner's own


def test_the_references_are_what_the_package_computes():
    torch.manual_seed(0)
    expert, x, time = ExpertNorm(8, 5, 1e-5), torch.randn(2, 7, 8), torch.randn(2, 5)
    for parameter in expert.parameters():
        nn.init.normal_(parameter)
    modulation = expert.linear(time)
    normed = find("7.1").reference(x, expert.norm.weight, expert.norm.bias)
    torch.testing.assert_close(normed, expert.norm(x))
    y, gates = expert(x, time, DenseLayout(3, (1, 2, 2)))
    torch.testing.assert_close(find("7.3").reference(normed, 3, modulation), (y, *gates))
    layer = nn.Linear(8, 8)
    half = find("7.4").reference(x, 3, modulation, expert.norm, layer)
    torch.testing.assert_close(half, right_half_block(x, 3, modulation, expert.norm, layer))
    assert find("7.2").reference is timestep_sinusoid


def test_the_twelve_pieces_are_two_expert_norms():
    norm1, norm2 = torch.randn(2, 6 * 4, 5).unbind()
    a, b = norm1.chunk(2), norm2.chunk(2)
    one_layer = torch.cat([a[0], b[0], a[1], b[1]])  # video's six, then text's six; in each, attention first
    torch.testing.assert_close(find("7.5").reference(one_layer), (norm1, norm2))
