"""Operations on a trained transformer, for notebook 07: its modulations are changed while it runs.

    with changed_modulations(net, towards_video(0.5)):
        film = pipe("a red circle moves right")

A modulation is b 6d: shift, scale and gate of video, then those of text (transformer/expert_norm.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.transformer.expert_norm import ExpertNorm
from minicogvx.transformer.model import ExpertTransformer

Modulation = Float[Tensor, "b d6"]
Change = Callable[[nn.Linear, Modulation], Modulation]


def expert_norms(net: ExpertTransformer) -> list[ExpertNorm]:
    """The norm before the attention and the norm before the feed-forward of every block, in order."""
    return [norm for block in net.transformer_blocks for norm in (block.norm1, block.norm2)]


@contextmanager
def changed_modulations(net: ExpertTransformer, change: Change) -> Iterator[None]:
    """While it lasts, every modulation becomes change(linear, modulation), where `linear` is the layer that made it."""
    hooks = [norm.linear.register_forward_hook(lambda linear, given, out: change(linear, out))
             for norm in expert_norms(net)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def towards_video(dose: float) -> Change:
    """The text's modulation moves towards the video's: 0 leaves it as it is, 1 gives text the video's own numbers."""
    def change(linear: nn.Linear, modulation: Modulation) -> Modulation:
        video, text = modulation.chunk(2, dim=-1)
        return torch.cat([video, torch.lerp(text, video, dose)], dim=-1)
    return change


def exchanged(linear: nn.Linear, modulation: Modulation) -> Modulation:
    """Video gets the text's modulation, and text the video's."""
    return modulation.roll(modulation.shape[-1] // 2, dims=-1)
