"""Exercises 12.3 and 12.4 of notebook 12: gradients averaged in a ring, and added up over parts of a batch."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_close, expect_shape

Send = Callable[[int, Tensor], Tensor]

# ---- 12.3 ring_all_reduce


def mean_by_ring(values: Sequence[Float[Tensor, " m"]], send: Send) -> list[Float[Tensor, " m"]]:
    """The mean of all ranks' numbers, on each of them, by messages to the next rank: a ring all-reduce.

    `send(rank, piece)` hands a piece to the rank after `rank`, and returns what arrives there. Each rank sends
    2 (n - 1) pieces, of an n-th of the numbers each.
    """
    n = len(values)
    pieces = [list(own.chunk(n)) for own in values]
    for step in range(n - 1):  # sums grow on their way round
        arriving = [send(rank, pieces[rank][(rank - step) % n]) for rank in range(n)]
        for rank, piece in enumerate(arriving):
            place = (rank - step) % n
            pieces[(rank + 1) % n][place] = pieces[(rank + 1) % n][place] + piece
    for step in range(n - 1):  # whole sums go round
        arriving = [send(rank, pieces[rank][(rank + 1 - step) % n]) for rank in range(n)]
        for rank, piece in enumerate(arriving):
            pieces[(rank + 1) % n][(rank + 1 - step) % n] = piece
    return [torch.cat(own) / n for own in pieces]


class _Post:
    """Counts what each rank sends; `lost` delivers zeros instead."""

    def __init__(self, ranks: int, lost: bool = False):
        self.sent: list[list[int]] = [[] for _ in range(ranks)]
        self.lost = lost

    def __call__(self, rank: int, piece: Tensor) -> Tensor:
        if not isinstance(piece, Tensor):
            raise Wrong(f"send(rank, piece) was given a {type(piece).__name__} as its piece; it must be a tensor.")
        if not 0 <= rank < len(self.sent):
            raise Wrong(f"send was called for rank {rank}; ranks are 0 to {len(self.sent) - 1}.")
        self.sent[rank].append(piece.numel())
        return torch.zeros_like(piece) if self.lost else piece.clone()


def check_ring_all_reduce(ring_all_reduce) -> None:
    """The mean, everywhere, from what was sent, in 2 (n - 1) messages of an n-th."""
    for n in (2, 3, 4):
        values = list(torch.randn(n, 12).unbind())
        before, post = [own.clone() for own in values], _Post(n)
        what = f"ring_all_reduce of {n} ranks with 12 numbers each"
        got = ring_all_reduce(values, post)
        if any(not torch.equal(a, b) for a, b in zip(values, before)):
            raise Wrong(f"{what}: the numbers that you were given have changed. Views of chunk share them: write "
                        f"a + b, and not a += b.")
        _check_means(what, got, before)
        _check_messages(what, post, n)
        lost = ring_all_reduce(list(before), _Post(n, lost=True))
        if torch.allclose(lost[0], torch.stack(before).mean(dim=0), atol=1e-4):
            raise Wrong(f"{what}: when the messages are lost on their way, the mean is still right. A rank knows its "
                        f"own numbers and what `send` returned, and nothing else.")


def _check_means(what: str, got: object, values: list[Tensor]) -> None:
    n, mean = len(values), torch.stack(values).mean(dim=0)
    if not isinstance(got, (list, tuple)) or len(got) != n:
        raise Wrong(f"{what} gives {'None' if got is None else f'a {type(got).__name__}'}; it must be a list with a "
                    f"tensor for each rank.")
    for rank, own in enumerate(got):
        expect_shape(f"{what}: the answer of rank {rank}", own, (12,))
        if torch.allclose(own.float(), n * mean, atol=1e-4):
            raise Wrong(f"{what}: rank {rank} has the sum; it must have the mean, so divide by {n}.")
        right = torch.isclose(own.float(), mean, atol=1e-4)
        wrong = [place for place, piece in enumerate(right.chunk(n)) if not piece.all()]
        if wrong:
            raise Wrong(f"{what}: rank {rank} has the mean in {n - len(wrong)} of its {n} pieces, but not in "
                        f"{', '.join(map(str, wrong))}. In the first round rank r sends piece (r - step) % n; what it "
                        f"then holds whole, and sends first in the second round, is piece (r + 1) % n.")


def _check_messages(what: str, post: _Post, n: int) -> None:
    share = 12 // n
    for rank, sizes in enumerate(post.sent):
        if any(size != share for size in sizes):
            raise Wrong(f"{what}: rank {rank} sent messages of {', '.join(map(str, sizes))} numbers. Send pieces of "
                        f"{share}, an n-th: whole ones take n times as long, however many ranks there are.")
        if len(sizes) != 2 * (n - 1):
            raise Wrong(f"{what}: rank {rank} sent {len(sizes)} messages; {n - 1} for the sums and {n - 1} to pass "
                        f"them on are {2 * (n - 1)}.")


# ---- 12.4 accumulate


def accumulated(losses_of: Callable[[Tensor, Tensor], Tensor], weights: Tensor, clips: Tensor, most: int) -> Tensor:
    """The gradient of the mean loss of all clips, with at most `most` of them in a forward pass at a time."""
    weights.grad = None
    for part in clips.split(most):
        (losses_of(weights, part).sum() / len(clips)).backward()
    return weights.grad


class _Model:
    """Squared errors of a small model; notes which clips it saw, and whether it is freed before the next pass."""

    def __init__(self, clips: Tensor, most: int):
        self.clips, self.most = clips, most
        self.seen: list[int] = []
        self.open = 0  # forward passes without their backward pass

    def __call__(self, weights: Tensor, part: Tensor) -> Tensor:
        if len(part) > self.most:
            raise Wrong(f"A forward pass has {len(part)} clips; there is memory for {self.most} at a time.")
        if self.open:
            raise Wrong("A forward pass begins before the backward pass of the part before it. All activations are "
                        "kept then, and that is what there is no memory for: call backward() for each part.")
        self.seen += [int((self.clips == row).all(dim=1).nonzero()[0]) for row in part]
        losses = (torch.tanh(part @ weights) - part[:, 0]).square()
        if losses.requires_grad:
            self.open += 1
            losses.register_hook(self._closed)
        return losses

    def _closed(self, gradient: Tensor) -> None:
        self.open -= 1


def check_accumulate(accumulate) -> None:
    """The gradient of the big batch, also where the last part is smaller, and again when it is called again."""
    clips, start = torch.randn(10, 4), torch.randn(4)
    with torch.enable_grad():
        for most in (5, 4, 10):
            weights = start.clone().requires_grad_()
            right = torch.autograd.grad(_Model(clips, 10)(weights, clips).mean(), weights)[0]
            what = f"accumulate of 10 clips, at most {most} at a time,"
            for again in (False, True):
                model = _Model(clips, most)
                got = accumulate(model, weights, clips, most)
                expect_shape(what, got, (4,))
                if sorted(model.seen) != list(range(10)):
                    raise Wrong(f"{what} looks at clips {sorted(model.seen)}; each of the 10 counts once.")
                got = got.detach().clone()
                _check_gradient(what, got, right, most, again)
            if not torch.equal(weights.detach(), start):
                raise Wrong(f"{what} changed the weights; it must only give the gradient.")


def _check_gradient(what: str, got: Tensor, right: Tensor, most: int, again: bool) -> None:
    if again and torch.allclose(got.float(), 2 * right, rtol=1e-3, atol=1e-5):
        raise Wrong(f"{what} gives twice the gradient when it is called a second time: that of the first call is still "
                    f"in weights.grad. Clear it first.")
    for factor, why in ((-(-10 // most), "the means of the parts are added up: divide by the number of all clips"),
                        (10, "the losses are added up and never divided by the number of clips")):
        if factor > 1 and torch.allclose(got.float(), factor * right, rtol=1e-3, atol=1e-5):
            raise Wrong(f"{what} gives {factor} times the gradient of the big batch: {why}.")
    if not torch.allclose(got.float(), right, rtol=1e-3, atol=1e-5) and most == 4:
        raise Wrong(f"{what} is off by {(got - right).abs().max():.2g}. The parts are 4, 4 and 2 clips: with the mean "
                    f"of each part's mean, a clip of the last part counts twice as much as the others.")
    expect_close(what, got, right)
