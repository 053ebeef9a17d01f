"""The same weights give the same results in both programs: transformers (forward, training step) and the VAE.

float32 is compared with diffusers' float32, and must agree to rounding. In 16 bits two correct programs differ by their
rounding errors, so both are compared with diffusers' float32: our error may not be much larger than theirs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine, in_each_format
from benchmarks.gpu.rows import TOLERANCE, Row, judged
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.twins import (
    TransformerTwins,
    apart,
    joined,
    loss_and_gradients,
    mse,
    vae_inputs,
    vae_twins,
    worst_gradient,
)

MARGIN, SLACK = 1.5, 0.01  # in 16 bits our error may be 1.5 times that of diffusers, plus 0.01


@dataclass(frozen=True)
class Answers:
    """The results of both programs for one operation, such as a forward pass: lists of tensors to compare."""

    ours: list[Tensor]
    theirs: list[Tensor]
    worst: float = 0.0  # of single gradients; only for float32


def transformer(name: str) -> Callable[[Machine, Sizes], Iterator[Row]]:
    """The check of the transformer called `name`: prediction, loss and gradients."""
    def check(machine: Machine, sizes: Sizes) -> Iterator[Row]:
        def ask(dtype: torch.dtype) -> Iterator[tuple[str, Answers]]:
            yield from transformer_answers(sizes, name, dtype, machine.device)

        yield from in_every_format(f"parity {name}", machine, ask)
    return check


def transformer_answers(sizes: Sizes, name: str, dtype: torch.dtype,
                        device: torch.device) -> Iterator[tuple[str, Answers]]:
    """(what was asked, answers): the forward pass, then a training step."""
    twins = TransformerTwins(sizes.transformers[name], sizes.parity_frames, dtype, device)
    x = twins.inputs
    with torch.no_grad():
        yield "forward", Answers([twins.ours_says(x)], [twins.theirs_says(x)])
    our_loss, ours = loss_and_gradients(twins.ours, lambda: mse(twins.ours_says(x), x.target))
    their_loss, theirs = loss_and_gradients(twins.theirs, lambda: mse(twins.theirs_says(x), x.target))
    yield "training step", Answers([our_loss, joined(ours)], [their_loss, joined(theirs)], worst_gradient(ours, theirs))


def vae(machine: Machine, sizes: Sizes) -> Iterator[Row]:
    """The check of the VAE: encode and decode in the published chunks."""
    yield from in_every_format("parity vae", machine, lambda dtype: vae_answers(sizes, dtype, machine.device))


@torch.no_grad()
def vae_answers(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Answers]]:
    """(what was asked, answers): encode, then decode."""
    ours, theirs = vae_twins(sizes.vae, dtype, device)
    video, latents = vae_inputs(sizes.vae, sizes.vae_parity, dtype, device)
    posteriors = ours.encode(video), theirs.encode(video).latent_dist
    yield "encode", Answers(*([torch.cat([each.mean, each.logvar], dim=1)] for each in posteriors))
    yield "decode", Answers([ours.decode(latents)], [theirs.decode(latents).sample])


def in_every_format(check: str, machine: Machine,
                    ask: Callable[[torch.dtype], Iterator[tuple[str, Answers]]]) -> Iterator[Row]:
    """Rows of all operations of `ask`, in float32 and then in 16 bits. One may not fit where the other does."""
    exact: dict[str, list[Tensor]] = {}

    def rows(numbers: str) -> Iterator[Row]:
        for part, answers in ask(machine.format(numbers)):
            yield compared(check, part, numbers, answers, exact.get(part))
            if numbers == "float32":
                exact[part] = [tensor.cpu() for tensor in answers.theirs]

    yield from in_each_format(check, machine, rows)


def compared(check: str, part: str, numbers: str, answers: Answers, exact: list[Tensor] | None) -> Row:
    """Ours against theirs; in 16 bits, both against `exact` if that is known."""
    ours, theirs = answers.ours, answers.theirs
    fields = {"check": check, "part": part, "numbers": numbers}
    if numbers == "float32":
        return judged(max(apart(ours, theirs), answers.worst), TOLERANCE[numbers], beside="diffusers", **fields)
    if exact is None:
        return judged(apart(ours, theirs), TOLERANCE[numbers], beside="diffusers",
                      reason="there is no float32 to compare with", **fields)
    off = apart(theirs, exact)
    return judged(apart(ours, exact), MARGIN * off + SLACK, beside="float32 of diffusers",
                  reason=f"diffusers is off by {off:.1e}", **fields)
