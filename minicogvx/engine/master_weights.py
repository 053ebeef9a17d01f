"""Float32 copies of the trained weights of a model that computes in 16 bits.

A step of 1e-5 is lost in bfloat16, whose numbers near 1 are 1/128 apart. So updates are accumulated in float32.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharding import average_gradients


class MasterWeights(nn.Module):
    """The trainable (not the frozen) weights of `model` in float32, by the model's own names.

    After each backward pass: `take_gradients`, an optimizer step on `named_weights`, `write_back`. `own`: these are the
    model's own weights, not copies, because they are float32 already, as under FSDP2.
    """

    def __init__(self, model: nn.Module, own: bool = False):
        super().__init__()
        self.own, self.full = own, nn.ParameterDict()
        self.low = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, p in self.low.items():  # one by one: ParameterDict sorts the keys of a dictionary
            without_dots = name.replace(".", "/")  # ParameterDict allows no dots in names
            self.full[without_dots] = p if own else nn.Parameter(p.detach().to(torch.float32, copy=True))

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Each float32 weight by its name in the model."""
        return ((name.replace("/", "."), p) for name, p in self.full.items())

    def tensors(self) -> dict[str, Tensor]:
        """The weights as a state dict."""
        return {name: p.detach() for name, p in self.named_weights()}

    @torch.no_grad()
    def take_gradients(self, ranks: Ranks = Ranks()) -> None:
        """Moves the model's gradients to the float32 weights, as the mean over ranks; a missing one counts as zero.

        With `own`, nothing to do: FSDP2 has averaged them.
        """
        if self.own:
            return
        for (_, full), low in zip(self.named_weights(), self.low.values()):
            full.grad = torch.zeros_like(full) if low.grad is None else low.grad.float()
            low.grad = None
        average_gradients(self.parameters(), ranks)

    @torch.no_grad()
    def write_back(self, weights: "MasterWeights | None" = None) -> None:
        """Copies the float32 weights (or `weights`, such as their moving average) into the model, rounded."""
        for (_, full), low in () if self.own else zip((weights or self).named_weights(), self.low.values()):
            low.copy_(full)
