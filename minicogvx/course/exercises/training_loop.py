"""The check of exercise 3.2: a training loop, held to one that is right, on a VAE of one weight."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from minicogvx.course.exercises.exercise import Wrong


def train_on_batches(vae: nn.Module, videos: Iterable[Tensor], loss: Callable[[Tensor, Tensor, object], Tensor],
                     optimizer) -> list[float]:
    """One step of `optimizer` for each of `videos` (b c t h w); the loss before each step."""
    losses = []
    for video in videos:
        again, posterior = vae(video)
        total = loss(video, again, posterior)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


class _OneWeight(nn.Module):
    """A "VAE" that multiplies by two weights; its posterior is the video's mean."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.25]))
        self.seen: list[Tensor] = []

    def forward(self, video: Tensor, *arguments) -> tuple[Tensor, Tensor]:
        self.seen.append(video)
        return video * self.weight.sum() + self.weight[0], video.mean()


def check_teach(teach) -> None:
    """Every video once and in order, the losses as numbers, and the weights that a right loop ends with."""
    videos = [torch.randn(1, 1, 2, 2, 2) for _ in range(4)]
    vae, asked = _OneWeight(), []

    def loss(video: Tensor, again: Tensor, posterior: Tensor) -> Tensor:
        if not any(video is one for one in videos) or again.shape != video.shape:
            raise Wrong("loss is called with something other than (video, copy, posterior), in that order.")
        asked.append(posterior)
        return (video - again).abs().mean() + (0.2 * video - 0.1 * again).square().mean()

    right, gathered = copy.deepcopy(vae), copy.deepcopy(vae)
    with torch.enable_grad():
        wanted = train_on_batches(right, videos, loss, torch.optim.SGD(right.parameters(), lr=0.1))
        _without_clearing(gathered, videos, loss)
        asked.clear()
        got = teach(vae, iter(videos), loss, torch.optim.SGD(vae.parameters(), lr=0.1))
    _check_losses(got, wanted, vae, asked, videos)
    start = _OneWeight().weight
    if torch.equal(vae.weight, start):
        raise Wrong("After teach the weights are what they were. Does a gradient reach the weights (backward), is it "
                    "still there at optimizer.step(), and is it used?")
    if torch.allclose(vae.weight, gathered.weight, atol=1e-5):
        raise Wrong("The gradients of earlier steps are still there when the next is added: clear them in every step, "
                    "optimizer.zero_grad().")
    if not torch.allclose(vae.weight, right.weight, atol=1e-5):
        raise Wrong(f"After 4 videos the weights are {_said(vae.weight)}; they must be {_said(right.weight)}: one step "
                    f"for each video, with the gradient of its own loss.")


def _without_clearing(vae: nn.Module, videos: list[Tensor], loss: Callable) -> None:
    optimizer = torch.optim.SGD(vae.parameters(), lr=0.1)
    for video in videos:
        loss(video, *vae(video)).backward()
        optimizer.step()


def _check_losses(got, wanted: list[float], vae: _OneWeight, asked: list, videos: list[Tensor]) -> None:
    if got is None:
        raise Wrong("teach is None; does your function end in return?")
    if len(vae.seen) != len(videos) or any(one is not video for one, video in zip(vae.seen, videos)):
        raise Wrong(f"The VAE was given {len(vae.seen)} videos, or not in their order; it must see each of "
                    f"{len(videos)} once.")
    if len(asked) != len(videos):
        raise Wrong(f"loss was called {len(asked)} times for {len(videos)} videos; once for each is enough.")
    if not isinstance(got, list) or len(got) != len(wanted):
        raise Wrong(f"teach gives {type(got).__name__} {got!r:.60}; it must be a list of {len(wanted)} losses, one for "
                    f"each video.")
    if isinstance(got[0], Tensor):
        raise Wrong("teach gives tensors, which keep the graph of every step alive; collect plain numbers, "
                    "total.item().")
    if abs(got[0] - wanted[0]) > 1e-4:
        raise Wrong(f"The first loss is {got[0]:.4g}; it must be {wanted[0]:.4g}, that of the untrained weights.")


def _said(weight: Tensor) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in weight.tolist()) + ")"
