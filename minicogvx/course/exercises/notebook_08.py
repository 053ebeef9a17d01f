"""Exercises of notebook 08, full attention: heads, space and time, who has heard of whom, in blocks, its share."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_close, expect_shape
from minicogvx.transformer.attention import attention
from minicogvx.transformer.variants import spatial_attention, temporal_attention

OWN = {"space": "frame", "time": "place in every frame"}

# ---- 8.1 multi_head


def attended_by_heads(q: Float[Tensor, "b n d"], k: Float[Tensor, "b m d"], v: Float[Tensor, "b m d"],
                      heads: int) -> Float[Tensor, "b n d"]:
    """Attention in `heads` parts of the width, each with a softmax of its own (paper 2.2)."""
    q, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=heads) for x in (q, k, v))
    return rearrange(attention(q, k, v), "b heads n d -> b n (heads d)")


def check_multi_head(multi_head) -> None:
    """Weights that sum to 1 over the keys, heads that are apart, the right scale, no overflow."""
    q, k, v = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    what = "multi_head(q, k, v, heads=3) of 5 queries and 7 keys"
    got = multi_head(q, k, v, 3)
    expect_shape(what, got, (2, 5, 12))
    sums = multi_head(q, k, torch.ones_like(v), 3)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise Wrong(f"{what}: where every value is 1, every answer must be 1, because the weights of a query sum to 1 "
                    f"over the keys; the first answer is {sums[0, 0, 0].item():.3g}.")
    changed = q.clone()
    changed[:, :, 4:8] += 1  # head 1
    moved = (multi_head(changed, k, v, 3) - got).abs().amax(dim=(0, 1)) > 1e-5
    if moved[:4].any() or moved[8:].any():
        raise Wrong(f"{what}: channels 4 to 7 of q were changed, which are head 1, and channels "
                    f"{moved.nonzero().flatten().tolist()} of the answer changed. Head i owns neighbouring channels: "
                    f"12 channels are (heads d), not (d heads), and each head has a softmax of its own.")
    _check_scale(multi_head)
    if not torch.isfinite(multi_head(100 * q, 100 * k, v, 3)).all():
        raise Wrong("With large scores the answer holds NaN or infinity; subtract the largest score before exp.")
    expect_close(what, got, attended_by_heads(q, k, v, 3))


def _check_scale(multi_head) -> None:
    q, k, v = torch.zeros(1, 1, 16), torch.zeros(1, 2, 16), torch.zeros(1, 2, 16)
    q[..., 0], k[:, 0, 0], v[:, 0, 0] = 1, 1, 1  # two keys, whose scores differ by the scale alone
    share = multi_head(q, k, v, 2)[0, 0, 0].item()
    scale = math.log(share / (1 - share)) if 0 < share < 1 else math.nan
    if not abs(scale - 8 ** -0.5) < 1e-3:
        raise Wrong(f"The scores are multiplied by {scale:.3g}; with 16 channels in 2 heads it must be 1 / sqrt(8) = "
                    f"{8 ** -0.5:.3g}, where 8 is the width of one head.")


# ---- 8.2 space_or_time


def attended_apart(q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"],
                   frames: int, kind: str) -> Float[Tensor, "b heads n d"]:
    """One half of 2D+1D attention: within each frame ("space"), or along each place ("time")."""
    return spatial_attention(q, k, v, 0, frames) if kind == "space" else temporal_attention(q, k, v, frames)


def check_space_or_time(space_or_time) -> None:
    """Every token's answer changes with those tokens, and only those, that its kind of attention may see."""
    frames, places = 3, 4
    q, k, v = torch.randn(3, 2, 2, frames * places, 6).unbind()
    changed = v.clone()
    changed[1] += 1  # the second sample
    for kind in ("space", "time"):
        what = f'space_or_time(q, k, v, frames={frames}, kind="{kind}")'
        got = space_or_time(q, k, v, frames, kind)
        expect_shape(what, got, tuple(q.shape))
        if not torch.allclose(space_or_time(q, k, changed, frames, kind)[0], got[0], atol=1e-5):
            raise Wrong(f"{what}: sample 1 was changed, and the answers of sample 0 changed with it. Put frames or "
                        f"places beside the batch, (b frames), and take the batch apart again in the same order.")
        _check_who_sees(space_or_time, (q, k, v), (frames, places), kind, what)
        expect_close(what, got, attended_apart(q, k, v, frames, kind))


def _check_who_sees(space_or_time, qkv: tuple[Tensor, ...], size: tuple[int, int], kind: str, what: str) -> None:
    q, k, v = qkv
    plain, places, own = space_or_time(q, k, v, size[0], kind), size[1], OWN[kind]
    for token in range(q.shape[2]):
        changed = v.clone()
        changed[:, :, token] += 5
        moved = (space_or_time(q, k, changed, size[0], kind) - plain).abs().amax(dim=(0, 1, 3)) > 1e-4
        for other in range(q.shape[2]):
            same = token // places == other // places if kind == "space" else token % places == other % places
            if bool(moved[other]) != same:
                raise Wrong(f"{what}: the value of {_name(token, places)} was changed, and the answer of "
                            f"{_name(other, places)} {'did not change' if same else 'changed, too'}. In {kind} a token "
                            f"sees its own {own}, and n is (frames places).")


def _name(token: int, places: int, text: int = 0) -> str:
    if token < text:
        return f"text token {token}"
    return f"the token at frame {(token - text) // places}, place {(token - text) % places}"


# ---- 8.3 reachable


def tokens_heard_of(frames: int, places: int, text: int, kinds: Sequence[str]) -> Bool[Tensor, "n n"]:
    """Row i: of which tokens token i holds information after attentions of these kinds, each with its residual."""
    frame = torch.arange(frames * places) // places
    place = torch.arange(frames * places) % places
    n = text + frames * places
    heard = torch.eye(n, dtype=torch.bool)
    for kind in kinds:
        sees = torch.ones(n, n, dtype=torch.bool)  # "full"; and in "space" all that has to do with text
        if kind == "space":
            sees[text:, text:] = frame[:, None] == frame
        elif kind == "time":
            sees = torch.eye(n, dtype=torch.bool)
            sees[text:, text:] = place[:, None] == place
        heard = sees.float() @ heard.float() > 0
    return heard


def check_reachable(reachable) -> None:
    """Nothing without attention; one attention; chains, where the middleman counts."""
    for frames, places, text in ((3, 2, 0), (2, 3, 2)):
        for kinds in ((), ("full",), ("space",), ("time",), ("space", "time"), ("space", "space"), ("time", "time"),
                      ("time", "space", "time")):
            what = f"reachable({frames}, {places}, {text}, {list(kinds)})"
            wanted = tokens_heard_of(frames, places, text, kinds)
            got = reachable(frames, places, text, list(kinds))
            expect_shape(what, got, tuple(wanted.shape))
            if got.dtype != torch.bool:
                raise Wrong(f"{what} has dtype {got.dtype}; it must be torch.bool. Whether, not how often.")
            if not torch.equal(got, wanted):
                i, j = (got != wanted).nonzero()[0].tolist()
                here, there = _name(i, places, text), _name(j, places, text)
                verb = "must have heard of" if wanted[i, j] else "cannot have heard of"
                raise Wrong(f"{what}: {here} {verb} {'itself' if i == j else there}{_because(i, j, text, kinds)}.")


def _because(i: int, j: int, text: int, kinds: Sequence[str]) -> str:
    if i == j:
        return "; the residual keeps what was there"
    if set(kinds) == {"space", "time"}:
        return ", by way of a third token: whom I see has already heard of others"
    if set(kinds) == {"time"}:
        return "; in time a token sees its own place only, and text itself only"
    return "; in space text sees everything, and is seen by all" if kinds == ("space",) and min(i, j) < text else ""


# ---- 8.4 in_blocks


def attended_in_blocks(q: Float[Tensor, "n d"], k: Float[Tensor, "m d"], v: Float[Tensor, "m d"],
                       size: int) -> Float[Tensor, "n d"]:
    """Attention that looks at `size` keys at a time and keeps a running maximum and sum (FlashAttention's idea)."""
    largest = torch.full((len(q), 1), -math.inf)
    total, out = torch.zeros(len(q), 1), torch.zeros_like(q)
    for keys, values in zip(k.split(size), v.split(size)):
        scores = q @ keys.T / math.sqrt(q.shape[1])
        new = torch.maximum(largest, scores.amax(dim=1, keepdim=True))
        shrink, weights = (largest - new).exp(), (scores - new).exp()
        total = total * shrink + weights.sum(dim=1, keepdim=True)
        out = out * shrink + weights @ values
        largest = new
    return out / total


class _Watch(TorchFunctionMode):
    """Notices a tensor as large as the score matrix, and the ready-made kernel."""

    def __init__(self, limit: int):
        super().__init__()
        self.limit = limit

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            raise Wrong("in_blocks calls PyTorch's scaled_dot_product_attention; here you write what it does.")
        got = func(*args, **(kwargs or {}))
        if isinstance(got, Tensor) and got.numel() >= self.limit:
            raise Wrong(f"With 40 queries, 50 keys and blocks of 8 you make a tensor of shape {tuple(got.shape)}, "
                        f"{got.numel()} numbers; the whole score matrix has {self.limit} and must never be built.")
        return got


def check_in_blocks(in_blocks) -> None:
    """Never the whole matrix; weights that sum to 1; every key counts; any block size; large scores."""
    q, k, v = torch.randn(40, 4), 2 * torch.randn(50, 4), torch.randn(50, 4)
    with _Watch(len(q) * len(k)):
        got = in_blocks(q, k, v, 8)
    what = "in_blocks(q, k, v, size=8) of 40 queries and 50 keys"
    expect_shape(what, got, tuple(q.shape))
    sums = in_blocks(q, k, torch.ones_like(v), 8)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise Wrong(f"{what}: where every value is 1, every answer must be 1; the first is {sums[0, 0].item():.3g}. "
                    f"When the maximum rises, both the running sum and the running answer shrink by exp(old - new).")
    changed = v.clone()
    changed[-1] += 5
    if torch.allclose(in_blocks(q, k, changed, 8), got, atol=1e-5):
        raise Wrong(f"{what}: the last value was changed, and no answer changed. 50 is not a multiple of 8; the last "
                    f"block has 2 keys.")
    for scale in (300.0, -300.0):  # one query; all scores near the scale
        large = in_blocks(torch.full((1, 4), scale / 8), torch.full((50, 4), 4.0), v, 8)
        if not torch.isfinite(large).all():
            raise Wrong(f"Where all scores are {scale:g} the answer holds NaN or infinity: exp of it leaves the range "
                        f"of float32. Subtract the running maximum, which starts at minus infinity.")
    once, twice = in_blocks(q, k, v, 50), in_blocks(q, k, v, 5)
    if not torch.allclose(once, twice, atol=1e-4):
        raise Wrong(f"With one block of 50 keys and with ten blocks of 5 your answers differ by up to "
                    f"{(once - twice).abs().max().item():.3g}. A block with small scores must count for little: "
                    f"divide once, at the end, by the sum over all blocks.")
    expect_close(what, got, attended_in_blocks(q, k, v, 8))


# ---- 8.5 attention_share


def share_of_attention(tokens: int, width: int) -> float:
    """Share of q k^T and of weights times v in the work of one block's matrix products."""
    return tokens / (tokens + 6 * width)


def check_attention_share(attention_share) -> None:
    """Half at six times the width; the usual miscounts are named."""
    for tokens, width in ((6 * 256, 256), (112, 256), (17776, 3072)):
        what, wanted = f"attention_share({tokens}, {width})", share_of_attention(tokens, width)
        got = attention_share(tokens, width)
        if not isinstance(got, (int, float)):
            raise Wrong(f"{what} is a {type(got).__name__}; it must be a number.")
        if not math.isclose(got, wanted, rel_tol=1e-6):
            why = [name for name, value in _miscounts(tokens, width).items() if math.isclose(got, value, rel_tol=1e-3)]
            raise Wrong(" ".join([f"{what} is {got:.4g}; it must be {wanted:.4g}.", *why[:1]]))


def _miscounts(n: int, d: int) -> dict[str, float]:
    return {
        "You counted one product of n x n pairs; there are two, q k^T and weights times v.": n / (n + 12 * d),
        "The projections q, k, v and out grow with n, not with n^2: they belong to the linear part.":
            (n + 2 * d) / (n + 6 * d),
        "The linear part has 12 d^2 weights: the feed-forward alone has 8 d^2 of them.": n / (n + 2 * d),
        "The linear part has 12 d^2 weights: do not forget q, k, v and out, 4 d^2.": n / (n + 4 * d),
        "Each query-key pair costs 2 d multiplications: d for its score and d for its value.": n / (n + 6 * d * d),
        "That is the other part; the attention's share grows with n.": 6 * d / (n + 6 * d),
        "That is attention over the linear part; a share is attention over everything.": n / (6 * d),
    }


EXERCISES = (
    Exercise(
        "8.1", "multi_head", difficulty=1, minutes=10, reference=attended_by_heads, check=check_multi_head,
        hints=(
            'Cut the width: rearrange(x, "b n (heads d) -> b heads n d", heads=heads). Heads are then like a batch.',
            "scores = q @ k.transpose(-1, -2) / sqrt(d), with d the width of one head. Over which axis must the "
            "weights of a query sum to 1?",
            'weights = scores.softmax(dim=-1), then weights @ v, and back: "b heads n d -> b n (heads d)".',
        ),
    ),
    Exercise(
        "8.2", "space_or_time", difficulty=2, minutes=10, reference=attended_apart, check=check_space_or_time,
        hints=(
            "Attention runs over the last but one axis and treats all axes before it as batch. Which axis must stand "
            "there, and which must hide in the batch?",
            'Space: "b heads (frames places) d -> (b frames) heads places d". Time: the same with frames and places '
            "exchanged on the right-hand side.",
            "Then PyTorch's kernel, and the pattern the other way round, with b=len(q) and frames=frames.",
        ),
    ),
    Exercise(
        "8.3", "reachable", difficulty=2, minutes=15, reference=tokens_heard_of, check=check_reachable,
        hints=(
            "One matrix a kind: may i look at j? For a video token i, i // places is the frame, i % places the place.",
            "At first each token has heard of itself alone; then of all that those whom it sees had heard of.",
            "That is a matrix product: heard = (sees.float() @ heard.float()) > 0, once for each kind, in order. In "
            '"time" a text token sees itself: start there from eye, not from zeros.',
        ),
    ),
    Exercise(
        "8.4", "in_blocks", difficulty=3, minutes=20, reference=attended_in_blocks, check=check_in_blocks,
        hints=(
            "Keep three things a query: the largest score so far, the sum of weights, the weighted sum of values.",
            "When a larger maximum comes, multiply both sums by exp(old - new). It starts at minus infinity.",
            "for keys, values in zip(k.split(size), v.split(size)): scores = q @ keys.T / sqrt(d); new = "
            "torch.maximum(largest, scores.amax(1, keepdim=True)); ... and out / total at the very end.",
        ),
    ),
    Exercise(
        "8.5", "attention_share", difficulty=1, minutes=10, reference=share_of_attention, check=check_attention_share,
        hints=(
            "Linear: every token meets every weight of a block once. Which matrices are there, with how many d^2 each?",
            "q, k, v, out: 4 d^2. Feed-forward, d -> 4d -> d: 8 d^2. Then add q k^T and weights times v.",
            "Each of those two costs n^2 d, over all heads together. 2 n^2 d / (2 n^2 d + 12 n d^2), and n d cancels.",
        ),
    ),
)
