"""Exercises of notebook 08 about heads, space and time distinguish right from wrong, and name the mistake."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from minicogvx.presets import TransformerConfig, preset
from minicogvx.transformer.attention import attention
from minicogvx.transformer.cpu_attention import math_attention
from minicogvx.transformer.model import flops
from tests.guards import guard

# ---- 8.1 multi_head


def by_hand(q, k, v, heads, pattern="(heads d)", axis=-1, scale=None, softmax=torch.softmax):
    q, k, v = (rearrange(x, f"b n {pattern} -> b heads n d", heads=heads) for x in (q, k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return rearrange(softmax(scores, axis) @ v, f"b heads n d -> b n {pattern}")


def over_the_queries(q, k, v, heads):
    return by_hand(q, k, v, heads, axis=-2)


def interleaved(q, k, v, heads):
    return by_hand(q, k, v, heads, "(d heads)")


def one_head_for_all(q, k, v, heads):
    return by_hand(q, k, v, 1)


def not_scaled(q, k, v, heads):
    return by_hand(q, k, v, heads, scale=1.0)


def scaled_by_the_whole_width(q, k, v, heads):
    return by_hand(q, k, v, heads, scale=q.shape[-1] ** -0.5)


def without_a_maximum(q, k, v, heads):
    return by_hand(q, k, v, heads, softmax=lambda scores, axis: scores.exp() / scores.exp().sum(axis, keepdim=True))


def heads_left_in_front(q, k, v, heads):
    q, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=heads) for x in (q, k, v))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def the_kernel(q, k, v, heads):
    q, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")


def the_package(q, k, v, heads):
    q, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=heads) for x in (q, k, v))
    return rearrange(attention(q, k, v), "b heads n d -> b n (heads d)")


def the_package_written_out(q, k, v, heads):
    q, k, v = (rearrange(x, "b n (heads d) -> (b heads) n d", heads=heads) for x in (q, k, v))
    return rearrange(math_attention(q, k, v), "(b heads) n d -> b n (heads d)", heads=heads)


def only_viewed(q, k, v, heads):
    q, k, v = (x.reshape(len(x), heads, x.shape[1], -1) for x in (q, k, v))
    answers = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
    return answers.reshape(len(q), q.shape[2], -1)


def one_maximum_for_all(q, k, v, heads):
    return by_hand(q, k, v, heads, softmax=lambda scores, axis: (scores - scores.max()).exp() / (
        scores - scores.max()).exp().sum(axis, keepdim=True))


def never_divided(q, k, v, heads):
    return by_hand(q, k, v, heads, softmax=lambda scores, axis: (scores - scores.amax(axis, keepdim=True)).exp())


def test_multi_head():
    guard("8.1", by_hand, [
        ("the weights of a query sum to 1", over_the_queries),
        ("the weights of a query sum to 1", never_divided),
        ("Head i owns neighbouring channels", interleaved),
        ("each head has a softmax of its own", one_head_for_all),
        ("The scores are multiplied by 1; with 16 channels in 2 heads", not_scaled),
        ("The scores are multiplied by 0.25; with 16 channels in 2 heads", scaled_by_the_whole_width),
        ("subtract from the scores of each query the largest of them", without_a_maximum),
        ("not one number for all", one_maximum_for_all),
        ("hands its work to a ready-made attention", the_kernel),
        ("hands its work to a ready-made attention", the_package),
        ("hands its work to a ready-made attention", the_package_written_out),
        ("mixes tokens and heads: no axis has moved", only_viewed),
        ("has shape (2, 3, 5, 4); it must be (2, 5, 12)", heads_left_in_front),
    ])


# ---- 8.3 space_or_time

IN, OUT = "b heads (frames places) d", {"space": "(b frames) heads places d", "time": "(b places) heads frames d"}


def apart(q, k, v, frames, kind, inside=IN, there=OUT, back=None):
    q, k, v, b = *(rearrange(x, f"{inside} -> {there[kind]}", frames=frames) for x in (q, k, v)), len(q)
    answers = F.scaled_dot_product_attention(q, k, v)
    return rearrange(answers, f"{(back or there)[kind]} -> {inside}", frames=frames, b=b)


def kinds_exchanged(q, k, v, frames, kind):
    return apart(q, k, v, frames, {"space": "time", "time": "space"}[kind])


def places_first(q, k, v, frames, kind):
    return apart(q, k, v, frames, kind, inside="b heads (places frames) d")


def everything(q, k, v, frames, kind):
    return F.scaled_dot_product_attention(q, k, v)


def always_space(q, k, v, frames, kind):
    return apart(q, k, v, frames, "space")


def batch_mixed_up(q, k, v, frames, kind):
    back = {"space": "(frames b) heads places d", "time": "(places b) heads frames d"}
    return apart(q, k, v, frames, kind, back=back)


def left_apart(q, k, v, frames, kind):
    q, k, v = (rearrange(x, f"{IN} -> {OUT[kind]}", frames=frames) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)


def frames_and_places_as_heads(q, k, v, frames, kind):
    return q.new_zeros(q.shape) + v.mean(dim=2, keepdim=True)


def with_a_mask(q, k, v, frames, kind):
    token, places = torch.arange(q.shape[2]), q.shape[2] // frames
    own = token // places if kind == "space" else token % places
    return F.scaled_dot_product_attention(q, k, v, own[:, None] == own)


def test_space_or_time():
    guard("8.3", apart, [
        ("the token at frame 0, place 1 did not change", kinds_exchanged),
        ("and n is (frames places)", places_first),
        ("the token at frame 1, place 0 changed, too", everything),
        ("In time a token sees its own place in every frame", always_space),
        ("take the batch apart again in the same order", batch_mixed_up),
        ("it must be (2, 2, 12, 6)", left_apart),
        ("right numbers, at the cost of full attention", with_a_mask),
        ("changed, too", frames_and_places_as_heads),
    ])


# ---- what the notebook says


def test_attention_is_half_of_a_block_s_work_at_six_times_the_width():
    """A claim of the notebook: of a block's matrix products, attention has the share n / (n + 6 d)."""
    config = preset("5b").transformer
    size, text, n = (13, 60, 90), 226, 226 + 13 * 30 * 45
    one, two = (flops(TransformerConfig(num_layers=layers), size, text) for layers in (1, 2))
    modulation = 2 * 12 * config.width * config.time_embed_dim
    block = two - one - modulation
    assert 4 * n * n * config.width / block == pytest.approx(n / (n + 6 * config.width))
