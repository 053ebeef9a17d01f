"""Exercises of notebook 08, full attention: heads, who may see whom, who heard of whom, following, and in chunks."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minicogvx.course.exercises.chunks_08 import attended_in_chunks, check_in_chunks
from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_close, expect_shape
from minicogvx.course.exercises.sight_08 import (
    allowed_pairs,
    check_following_head,
    check_may_see,
    check_reachable,
    most_telling,
    token_name,
    tokens_heard_of,
)
from minicogvx.transformer.variants import spatial_attention, temporal_attention

OWN = {"space": "frame", "time": "place in every frame"}

# ---- 8.1 multi_head


def attended_by_heads(q: Float[Tensor, "b n d"], k: Float[Tensor, "b m d"], v: Float[Tensor, "b m d"],
                      heads: int) -> Float[Tensor, "b n d"]:
    """Attention in `heads` parts of the width, each with a softmax of its own (paper 2.2)."""
    q, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=heads) for x in (q, k, v))
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return rearrange(weights @ v, "b heads n d -> b n (heads d)")


class _NoKernel(TorchFunctionMode):
    """Notices attention that somebody else wrote: PyTorch's kernel, or the package's, which calls it or `baddbmm`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.scaled_dot_product_attention, torch.baddbmm):
            raise Wrong("multi_head hands its work to a ready-made attention; here you write what it does: scores, "
                        "softmax, weighted mean.")
        return func(*args, **(kwargs or {}))


def check_multi_head(multi_head) -> None:
    """Weights that sum to 1 over the keys, heads that are apart, the right scale, no overflow."""
    q, k, v = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    what = "multi_head(q, k, v, heads=3) of 5 queries and 7 keys"
    with _NoKernel():
        got = multi_head(q, k, v, 3)
    expect_shape(what, got, (2, 5, 12))
    _check_split(multi_head)
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
        raise Wrong("With large scores the answer holds NaN or infinity; before exp, subtract from the scores of each "
                    "query the largest of them, not one number for all.")
    expect_close(what, got, attended_by_heads(q, k, v, 3))


def _check_split(multi_head) -> None:
    """A view without moving an axis mixes tokens and heads, and every shape fits."""
    x = torch.randn(1, 6, 12)
    q, k, v = (x.roll(place, 1).view(1, 3, 6, 4) for place in range(3))
    mixed = ((q @ k.mT / 2).softmax(dim=-1) @ v).reshape(1, 6, 12)
    if torch.allclose(multi_head(x, x.roll(1, 1), x.roll(2, 1), 3), mixed, atol=1e-4):
        raise Wrong("A view of b n (heads d) as b heads n d mixes tokens and heads: no axis has moved. View it as "
                    "b n heads d, then exchange the axes n and heads; and the same on the way back.")


def _check_scale(multi_head) -> None:
    q, k, v = torch.zeros(1, 1, 16), torch.zeros(1, 2, 16), torch.zeros(1, 2, 16)
    q[..., 0], k[:, 0, 0], v[:, 0, 0] = 1, 1, 1  # two keys, whose scores differ by the scale alone
    share = multi_head(q, k, v, 2)[0, 0, 0].item()
    scale = math.log(share / (1 - share)) if 0 < share < 1 else math.nan
    if not abs(scale - 8 ** -0.5) < 1e-3:
        raise Wrong(f"The scores are multiplied by {scale:.3g}; with 16 channels in 2 heads it must be 1 / sqrt(8) = "
                    f"{8 ** -0.5:.3g}, where 8 is the width of one head.")


# ---- 8.3 space_or_time


def attended_apart(q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"],
                   frames: int, kind: str) -> Float[Tensor, "b heads n d"]:
    """One half of 2D+1D attention: within each frame ("space"), or along each place ("time")."""
    return spatial_attention(q, k, v, 0, frames) if kind == "space" else temporal_attention(q, k, v, frames)


class _NoMatrix(TorchFunctionMode):
    """Notices a tensor as large as the matrix of all pairs."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        got = func(*args, **(kwargs or {}))
        if isinstance(got, Tensor) and got.numel() >= 35 * 35:
            raise Wrong(f"With 5 frames of 7 places you make a tensor of shape {tuple(got.shape)}, as large as the "
                        f"matrix of all 35 x 35 pairs: right numbers, at the cost of full attention. Put frames or "
                        f"places beside the batch instead.")
        return got


def check_space_or_time(space_or_time) -> None:
    """Every token's answer changes with those tokens, and only those, that its kind of attention may see."""
    small = torch.randn(1, 1, 35, 2)
    for kind in ("space", "time"):
        with _NoMatrix():
            space_or_time(small, small, small, 5, kind)
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
                raise Wrong(f"{what}: the value of {token_name(token, places)} was changed, and the answer of "
                            f"{token_name(other, places)} {'did not change' if same else 'changed, too'}. In {kind} a "
                            f"token sees its own {own}, and n is (frames places).")


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
        "8.2", "may_see", difficulty=2, minutes=15, reference=allowed_pairs, check=check_may_see,
        hints=(
            "Begin with all True. Which of the four quarters changes in \"cross\", which in \"causal\"?",
            "frame = torch.arange(frames * places) // places. In \"causal\" a video row may see a video column if "
            "frame[:, None] >= frame. In \"cross\" a word still has to see something: itself.",
            "In \"causal\" no word may see the video: every frame sees the words, so in the next block they would "
            "hand on what they saw of later frames.",
        ),
    ),
    Exercise(
        "8.3", "space_or_time", difficulty=2, minutes=10, reference=attended_apart, check=check_space_or_time,
        hints=(
            "Attention runs over the last but one axis and treats all axes before it as batch. Which axis must stand "
            "there, and which must hide in the batch?",
            'Space: "b heads (frames places) d -> (b frames) heads places d". Time: the same with frames and places '
            "exchanged on the right-hand side.",
            "Then PyTorch's kernel, and the pattern the other way round, with b=len(q) and frames=frames.",
        ),
    ),
    Exercise(
        "8.4", "reachable", difficulty=2, minutes=15, reference=tokens_heard_of, check=check_reachable,
        hints=(
            "One matrix for each kind: may i look at j? Video token i is in frame i // places, at place i % places.",
            "At first each token has heard of itself alone. Each attention adds what the tokens it sees had heard of.",
            "That is a matrix product: heard = (sees.float() @ heard.float()) > 0, once for each kind, in order. In "
            '"time" and "first" a text token sees itself: start there from eye, not from zeros.',
        ),
    ),
    Exercise(
        "8.5", "following_head", difficulty=2, minutes=15, reference=most_telling, check=check_following_head,
        hints=(
            "A boolean mask picks tokens: seen[..., shape] has the weights on all shape tokens of all clips, for each "
            "block and head.",
            "A head that looks at everything looks at the shape, too. Take the mean over shape tokens less the mean "
            "over background tokens.",
            "contrast = seen[..., shape].mean(-1) - seen[..., background].mean(-1); then "
            "divmod(int(contrast.argmax()), contrast.shape[1]).",
        ),
    ),
    Exercise(
        "8.6", "in_chunks", difficulty=3, minutes=25, reference=attended_in_chunks, check=check_in_chunks,
        hints=(
            "Keep three things for each query: the largest score so far, the sum of weights, the weighted sum of "
            "values.",
            "When a larger maximum comes, multiply both sums by exp(old - new). The maximum starts at minus infinity "
            "and never falls: torch.maximum of the old one and the chunk's.",
            "for keys, values in zip(k.split(size), v.split(size)): scores = q @ keys.T / sqrt(d); new = "
            "torch.maximum(largest, scores.amax(1, keepdim=True)); ... and out / total at the very end.",
        ),
    ),
)
