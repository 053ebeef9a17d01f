"""Exercises of notebook 08 distinguish right from wrong, and name the mistake."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from minicogvx.course.exercises import find
from minicogvx.presets import TransformerConfig, preset
from minicogvx.transformer.layout import DenseLayout
from minicogvx.transformer.model import flops
from minicogvx.transformer.variants import VariantAttention
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
    return F.scaled_dot_product_attention(q, k, v)


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
        ("subtract the largest score before exp", without_a_maximum),
        ("has shape (2, 3, 5, 4); it must be (2, 5, 12)", heads_left_in_front),
    ])


# ---- 8.2 space_or_time

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


def test_space_or_time():
    guard("8.2", apart, [
        ("the token at frame 0, place 1 did not change", kinds_exchanged),
        ("and n is (frames places)", places_first),
        ("the token at frame 1, place 0 changed, too", everything),
        ("In time a token sees its own place in every frame", always_space),
        ("take the batch apart again in the same order", batch_mixed_up),
        ("it must be (2, 2, 12, 6)", left_apart),
        ("changed, too", frames_and_places_as_heads),
    ])


# ---- 8.3 reachable


def sight(frames, places, text, kind, keeps=True):
    n, video = text + frames * places, torch.arange(frames * places)
    sees = torch.zeros(n, n, dtype=torch.bool)
    inside = {"full": torch.ones(len(video), len(video), dtype=torch.bool),
              "space": (video // places)[:, None] == video // places,
              "time": (video % places)[:, None] == video % places}[kind]
    sees[text:, text:] = inside
    if kind != "time":
        sees[:text], sees[:, :text] = True, True
    elif keeps:
        sees[:text, :text] = torch.eye(text, dtype=torch.bool)
    return sees


def right_reachable(frames, places, text, kinds):
    heard = torch.eye(text + frames * places, dtype=torch.long)
    for kind in kinds:
        heard = (sight(frames, places, text, kind).long() @ heard).clamp(max=1)
    return heard.bool()


def only_the_last(frames, places, text, kinds):
    return right_reachable(frames, places, text, kinds[-1:])


def all_together(frames, places, text, kinds):
    heard = right_reachable(frames, places, text, [])
    for kind in kinds:
        heard = heard | sight(frames, places, text, kind)
    return heard


def as_counts(frames, places, text, kinds):
    return right_reachable(frames, places, text, kinds).long()


def text_forgets_itself(frames, places, text, kinds):
    heard = torch.eye(text + frames * places)
    for kind in kinds:
        heard = sight(frames, places, text, kind, keeps=False).float() @ heard
    return heard > 0


def without_text(frames, places, text, kinds):
    return right_reachable(frames, places, 0, kinds)


def frames_last(frames, places, text, kinds):
    n, order = text + frames * places, torch.arange(frames * places)
    order = torch.cat([torch.arange(text), text + rearrange(order, "(f p) -> (p f)", f=frames)])
    return right_reachable(frames, places, text, kinds)[order][:, order] if n else None


def text_sees_in_time(frames, places, text, kinds):
    heard = right_reachable(frames, places, text, kinds)
    heard[:text] |= bool(kinds)
    return heard


def starts_from_nothing(frames, places, text, kinds):
    return right_reachable(frames, places, text, kinds) & bool(kinds)


def test_reachable():
    guard("8.3", right_reachable, [
        ("by way of a third token", only_the_last),
        ("by way of a third token", all_together),
        ("Whether, not how often", as_counts),
        ("text token 0 must have heard of itself; the residual keeps what was there", text_forgets_itself),
        ("has shape (6, 6); it must be (8, 8)", without_text),
        ("the token at frame 0, place 0 must have heard of the token at frame 0, place 1", frames_last),
        ("text itself only", text_sees_in_time),
        ("must have heard of itself", starts_from_nothing),
    ])


# ---- 8.4 in_blocks


def right_in_blocks(q, k, v, size, start=-math.inf, shrink_out=True, shrink_total=True):
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
    return right_in_blocks(q, k, v, size, shrink_out=False)


def sum_not_shrunk(q, k, v, size):
    return right_in_blocks(q, k, v, size, shrink_total=False)


def neither_shrunk(q, k, v, size):
    return right_in_blocks(q, k, v, size, shrink_out=False, shrink_total=False)


def starts_at_zero(q, k, v, size):
    return right_in_blocks(q, k, v, size, start=0.0)


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
    return right_in_blocks(q, k[:n], v[:n], size)


def blocks_of_queries(q, k, v, size):
    return torch.cat([(rows @ k.T / 2).softmax(dim=1) @ v for rows in q.split(size)])


def unscaled(q, k, v, size):
    return right_in_blocks(2 * q, k, v, size)


def test_in_blocks():
    guard("8.4", right_in_blocks, [
        ("both the running sum and the running answer shrink", answer_not_shrunk),
        ("both the running sum and the running answer shrink", sum_not_shrunk),
        ("A block with small scores must count for little", neither_shrunk),
        ("Where all scores are -300", starts_at_zero),
        ("Where all scores are 300", without_maximum),
        ("of shape (40, 50), 2000 numbers", the_whole_matrix),
        ("calls PyTorch's scaled_dot_product_attention", the_kernel),
        ("A block with small scores must count for little", mean_of_blocks),
        ("50 is not a multiple of 8; the last block has 2 keys", whole_blocks_only),
        ("differs in", unscaled),
    ])


def test_in_blocks_may_also_cut_the_queries():
    find("8.4").check(blocks_of_queries)  # memory grows with n + m there, too


# ---- 8.5 attention_share


def right_attention_share(tokens, width):
    return 2 * tokens**2 * width / (2 * tokens**2 * width + 12 * tokens * width**2)


def one_product(tokens, width):
    return tokens / (tokens + 12 * width)


def projections_too(tokens, width):
    return (tokens + 2 * width) / (tokens + 6 * width)


def no_feed_forward(tokens, width):
    return tokens / (tokens + 2 * width)


def no_projections(tokens, width):
    return tokens / (tokens + 4 * width)


def pairs_for_nothing(tokens, width):
    return 2 * tokens**2 / (2 * tokens**2 + 12 * tokens * width**2)


def the_other_part(tokens, width):
    return 1 - right_attention_share(tokens, width)


def a_ratio(tokens, width):
    return tokens / (6 * width)


def a_tensor(tokens, width):
    return torch.tensor(right_attention_share(tokens, width))


def percent(tokens, width):
    return 100 * right_attention_share(tokens, width)


def test_attention_share():
    guard("8.5", right_attention_share, [
        ("there are two, q k^T and weights times v", one_product),
        ("they belong to the linear part", projections_too),
        ("the feed-forward alone has 8 d^2", no_feed_forward),
        ("do not forget q, k, v and out", no_projections),
        ("d for its score and d for its value", pairs_for_nothing),
        ("a share is attention over everything", a_ratio),
        ("it must be a number", a_tensor),
        ("it must be 0.5", percent),
        ("attention_share(112, 256) is 0.932", the_other_part),
    ])


# ---- what replaces the learner's own


def test_the_reference_reaches_what_the_packages_attention_reaches(subtests):
    frames, places = 3, 4
    for kind, pattern, text in (("full", "full", 2), ("space", "spatial", 2), ("time", "temporal", 0)):
        with subtests.test(msg=kind):
            torch.manual_seed(0)
            attention, x = VariantAttention(16, 1, pattern), torch.randn(1, text + frames * places, 16)
            layout = DenseLayout(text, (frames, 1, places))
            answer, sees = attention(x, layout), torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
            for token in range(x.shape[1]):
                changed = x.clone()
                changed[:, token] += torch.randn(16)
                sees[:, token] = (attention(changed, layout) - answer).abs().amax(dim=(0, 2)) > 1e-6
            residual = torch.eye(len(sees), dtype=torch.bool)
            assert torch.equal(sees | residual, find("8.3").reference(frames, places, text, [kind]))


def test_the_reference_share_is_what_the_package_counts():
    config = preset("5b").transformer
    size, text, n = (13, 60, 90), 226, 226 + 13 * 30 * 45
    one, two = (flops(TransformerConfig(num_layers=layers), size, text) for layers in (1, 2))
    modulation = 2 * 12 * config.width * config.time_embed_dim
    block = two - one - modulation
    assert 4 * n * n * config.width / block == pytest.approx(find("8.5").reference(n, config.width))
