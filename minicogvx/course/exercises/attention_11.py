"""Exercise 11.3 of notebook 11: attention within the clips of a pack, without anything as large as all pairs."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minicogvx.course.exercises.exercise import Wrong, expect_close, expect_shape

LENGTHS = (9, 4, 12, 4, 11)


def attended_clip_by_clip(q: Float[Tensor, "heads n d"], k: Float[Tensor, "heads n d"], v: Float[Tensor, "heads n d"],
                          lengths: Sequence[int]) -> Float[Tensor, "heads n d"]:
    """Attention in which every token sees its own clip, for clips of these lengths end to end."""
    clips = zip(*(x.split(list(lengths), dim=1) for x in (q, k, v)))
    return torch.cat([F.scaled_dot_product_attention(*clip) for clip in clips], dim=1)


class _NoMatrix(TorchFunctionMode):
    """Notices a tensor with a number for every pair of tokens of the pack."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        got = func(*args, **(kwargs or {}))
        n = sum(LENGTHS)
        if isinstance(got, Tensor) and got.numel() >= n * n:
            raise Wrong(f"For clips of {', '.join(map(str, LENGTHS))} tokens you make a tensor of shape "
                        f"{tuple(got.shape)}, as large as all {n} x {n} pairs. Most of these are forbidden; at 75,000 "
                        f"tokens they would be 5.6 billion. Never let clips meet instead.")
        return got


def check_attend_varlen(attend_varlen) -> None:
    """No n x n tensor; clips apart; weights that sum to 1 over the clip's own keys; any lengths."""
    lengths, n = list(LENGTHS), sum(LENGTHS)
    q, k, v = torch.randn(3, 2, n, 4).unbind()
    with _NoMatrix():
        got = attend_varlen(q, k, v, lengths)
    what = f"attend_varlen(q, k, v, lengths={lengths}) of 2 heads"
    expect_shape(what, got, (2, n, 4))
    _check_padding(what, got, (q, k, v))
    _check_apart(attend_varlen, what, got, (q, k, v))
    sums = attend_varlen(q, k, torch.ones_like(v), lengths)
    if not torch.allclose(sums.float(), torch.ones(2, n, 4), atol=1e-4):
        raise Wrong(f"{what}: where every value is 1, every answer must be 1, because weights sum to 1 over the keys "
                    f"of the own clip; the first answer is {sums[0, 0, 0].item():.3g}.")
    expect_close(what, got, attended_clip_by_clip(q, k, v, lengths))
    one = attend_varlen(q, k, v, [n])
    expect_close("attend_varlen of a single clip", one, F.scaled_dot_product_attention(q, k, v))


def _check_padding(what: str, got: Tensor, qkv: tuple[Tensor, ...]) -> None:
    """Padded with zeros to one length and attended without a mask: zeros take part as keys."""
    longest = max(LENGTHS)
    padded = [torch.stack([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in x.split(list(LENGTHS), dim=1)])
              for x in qkv]
    answers = F.scaled_dot_product_attention(*padded)  # clips heads longest d
    joined = torch.cat([answer[:, :length] for answer, length in zip(answers, LENGTHS)], dim=1)
    if torch.allclose(got.float(), joined, atol=1e-4):
        raise Wrong(f"{what}: clips are padded to {longest} tokens, and the padding takes part: a key of zeros has the "
                    f"score 0, and exp(0) is not 0. Padding needs a mask, or leave it out.")


def _check_apart(attend_varlen, what: str, got: Tensor, qkv: tuple[Tensor, ...]) -> None:
    q, k, v = qkv
    first = 0
    for number, length in enumerate(LENGTHS):
        changed = v.clone()
        changed[:, first:first + length] += 5
        moved = (attend_varlen(q, k, changed, list(LENGTHS)) - got).abs().amax(dim=(0, 2)) > 1e-4
        own = torch.zeros(sum(LENGTHS), dtype=torch.bool)
        own[first:first + length] = True
        if (moved & ~own).any():
            other = int((moved & ~own).nonzero()[0])
            raise Wrong(f"{what}: the values of clip {number}, tokens {first} to {first + length - 1}, were changed, "
                        f"and the answer of token {other} changed, which is of another clip.")
        if (own & ~moved).any():
            raise Wrong(f"{what}: the values of clip {number} were changed, and the answer of its token "
                        f"{int((own & ~moved).nonzero()[0])} did not change.")
        first += length
