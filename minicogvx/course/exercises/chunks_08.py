"""Exercise 8.6 of notebook 08: attention in chunks of keys."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minicogvx.course.exercises.exercise import Wrong, expect_close, expect_shape


def attended_in_chunks(q: Float[Tensor, "n d"], k: Float[Tensor, "m d"], v: Float[Tensor, "m d"],
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
    """Notices scores of all keys at once, and the ready-made kernel; counts calls."""

    def __init__(self, queries: int, keys: int, width: int):
        super().__init__()
        self.queries, self.keys, self.width, self.calls = queries, keys, width, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            raise Wrong("in_chunks calls PyTorch's scaled_dot_product_attention; here you write what it does.")
        self.calls += 1
        got = func(*args, **(kwargs or {}))
        if isinstance(got, Tensor) and got.is_floating_point():
            self._check(tuple(got.shape))
        return got

    def _check(self, shape: tuple[int, ...]) -> None:
        made = f"With {self.queries} queries, {self.keys} keys and chunks of 8 you make a tensor of shape {shape}"
        if math.prod(shape) >= self.queries * self.keys:
            raise Wrong(f"{made}, {math.prod(shape)} numbers; the whole score matrix has {self.queries * self.keys} "
                        f"and must never be built.")
        # k, v and their transposes have all keys, and their width beside; a column of ones may stand beside the values
        beside = [size for size in shape if size not in (1, self.keys)]
        if self.keys in shape and shape != (self.keys, 1) and (not beside or max(beside) > self.width + 1):
            raise Wrong(f"{made}: scores for all {self.keys} keys at once. Look at 8 keys at a time.")


def check_in_chunks(in_chunks) -> None:
    """Never all keys at once; weights that sum to 1; every key counts; any size; scores that are far apart."""
    q, k, v = torch.randn(40, 4), 2 * torch.randn(50, 4), torch.randn(50, 4)
    with _Watch(40, 50, 4):
        got = in_chunks(q, k, v, 8)
    what = "in_chunks(q, k, v, size=8) of 40 queries and 50 keys"
    expect_shape(what, got, tuple(q.shape))
    sums = in_chunks(q, k, torch.ones_like(v), 8)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise Wrong(f"{what}: where every value is 1, every answer must be 1; the first is {sums[0, 0].item():.3g}. "
                    f"When the maximum rises, both the running sum and the running answer shrink by exp(old - new).")
    changed = v.clone()
    changed[-1] += 5
    if torch.allclose(in_chunks(q, k, changed, 8), got, atol=1e-5):
        raise Wrong(f"{what}: the last value was changed, and no answer changed. 50 is not a multiple of 8; the last "
                    f"chunk has 2 keys.")
    for scale in (300.0, -300.0):  # one query; all scores near the scale
        large = in_chunks(torch.full((1, 4), scale / 8), torch.full((50, 4), 4.0), v, 8)
        if not torch.isfinite(large).all():
            raise Wrong(f"Where all scores are {scale:g} the answer holds NaN or infinity: exp of it leaves the range "
                        f"of float32. Subtract the running maximum, which starts at minus infinity.")
    once, twice = in_chunks(q, k, v, 50), in_chunks(q, k, v, 5)
    if not torch.allclose(once, twice, atol=1e-4):
        raise Wrong(f"With one chunk of 50 keys and with ten chunks of 5 your answers differ by up to "
                    f"{(once - twice).abs().max().item():.3g}. A chunk with small scores must count for little: "
                    f"divide once, at the end, by the sum over all chunks.")
    expect_close(what, got, attended_in_chunks(q, k, v, 8))
    _check_apart(in_chunks, v)
    _check_size(in_chunks, q, k, v)


# ---- scores that jump: over queries, and from chunk to chunk

_JUMPS = (  # of each: scores of a query in five chunks of 10 keys, for two queries; and what a NaN then means
    ((300, 300, 300, 300, 300), (-300, -300, -300, -300, -300),
     "Two queries have scores near {a:g} and {b:g}. With one maximum for both, the second has only zeros left, and 0/0 "
     "is NaN. Each query needs a running maximum of its own."),
    ((0, 600, 600, 1200, 1200), (0, 0, 0, 0, 0),
     "From one chunk to the next the scores of a query rise by 600. Without a maximum, or with that of an earlier "
     "chunk, exp leaves the range. Take the larger of the old maximum and the chunk's."),
    ((1200, 600, 0, -600, -1200), (0, 0, 0, 0, 0),
     "From one chunk to the next the scores of a query fall by 600. The running maximum must not fall with them: "
     "exp(old - new) would leave the range. It is the largest score so far, not that of the chunk."),
)


def _check_apart(in_chunks, v: Tensor) -> None:
    for first, second, why in _JUMPS:
        scores = torch.tensor([first, second], dtype=torch.float64).repeat_interleave(10, dim=1)  # 2 50
        q = torch.eye(2, 4)
        k = torch.cat([2 * scores.T, torch.zeros(50, 2)], dim=1).float() + 0.5 * torch.randn(50, 4)
        exact = (q.double() @ k.double().T / 2).softmax(dim=1) @ v.double()
        got = in_chunks(q, k, v, 10)
        if not torch.isfinite(got).all():
            bad = int((~torch.isfinite(got)).any(dim=1).nonzero()[0])
            raise Wrong(f"The answer of query {bad} of 2 holds NaN or infinity. {why.format(a=first[0], b=second[0])}")
        expect_close("in_chunks of scores that jump by hundreds", got, exact.float(), atol=1e-3)


def _check_size(in_chunks, q: Tensor, k: Tensor, v: Tensor) -> None:
    calls = {}
    for size in (50, 5):
        with _Counter() as counter:
            in_chunks(q, k, v, size)
        calls[size] = counter.calls
    if calls[50] >= calls[5]:
        raise Wrong(f"With size=50 your function calls torch {calls[50]} times and with size=5 {calls[5]} times: it "
                    f"does not look at `size` keys at a time. One chunk is less work for Python than ten.")


class _Counter(TorchFunctionMode):
    """Counts calls of torch functions."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))
