"""A text encoder that begins with ears for its neighbours: its biases, and what they change."""

import pytest
import torch

from minicogvx.data.world.captions import vocabulary
from minicogvx.training.local_text import prefer_neighbours, random_text
from minicogvx.training.settings import TransformerTraining
from tests.tiny import TINY

PAIR = ["a red circle moves left and a blue star moves right", "a blue circle moves left and a red star moves right"]


def encoder(slope: float | None):
    torch.manual_seed(0)
    return random_text(TINY.text, vocabulary(), 16, TransformerTraining(text_bias_slope=slope))


def test_biases_fall_with_the_distance_and_half_as_fast_in_each_next_head():
    attention = encoder(2.0).encoder.encoder.block[0].layer[0].SelfAttention
    bias = attention.compute_bias(16, 16)[0]  # head query key
    distance = (torch.arange(16)[:, None] - torch.arange(16)).abs()
    for head, of_head in enumerate(bias):
        near = distance < 8  # further away, several distances share a bucket
        assert torch.equal(of_head[near], -2.0 * 0.5 ** head * distance[near])
        rows = [of_head[distance == d].unique() for d in range(16)]
        assert all(len(row) == 1 for row in rows), "the same to the left and to the right"
        assert all(a >= b for a, b in zip(rows, rows[1:])) and rows[8] < rows[7]


def test_nothing_else_changes_and_sharp_scores_leave_the_order_of_the_words_to_be_heard():
    plain, local = encoder(None), encoder(2.0)
    changed = [name for (name, a), b in zip(plain.encoder.state_dict().items(), local.encoder.state_dict().values())
               if not torch.equal(a, b)]
    assert changed == ["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]

    def red_changes(text) -> float:
        one, other = text.encode(PAIR)
        return ((one[1] - other[7]).norm() / one[1].norm()).item()  # red stands second, then eighth

    with torch.no_grad():
        for text in (plain, local):
            for block in text.encoder.encoder.block:
                block.layer[0].SelfAttention.q.weight.mul_(30.0)  # as training makes them
        assert red_changes(plain) < 1e-3 < 0.3 < red_changes(local)
        prefer_neighbours(local.encoder, 0.0)
        assert red_changes(local) < 1e-4, "without positions a caption is a bag of words"


def test_a_negative_slope_is_refused():
    with pytest.raises(ValueError, match="text_bias_slope is -1"):
        TransformerTraining(text_bias_slope=-1.0)
