"""The weights that learn, in float32, of networks that may compute in 16 bits; and their moving average.

A step of 1e-5 is lost in bfloat16, whose numbers near 1 are 1/128 apart. So updates are accumulated in float32, and a
network in 16 bits gets rounded copies.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharding import average_gradients, reshard


class Weights:
    """The trainable (not the frozen) weights of some modules, by name: "MODULE.its.own.name".

    After the backward passes of a step: `take_gradients`, an optimizer's step on `named()`, `write_back`.
    """

    def __init__(self, modules: Mapping[str, nn.Module], dtypes: Mapping[str, torch.dtype] = {}):
        """`dtypes`: of the modules that compute in 16 bits. They are rounded, after float32 copies were made."""
        self.modules = list(modules.values())
        self.computing = {f"{module}.{name}": p for module, network in modules.items()
                          for name, p in network.named_parameters() if p.requires_grad}
        self.learning = {name: p if p.element_size() >= 4 and _module(name) not in dtypes
                         else nn.Parameter(p.detach().to(torch.float32, copy=True))
                         for name, p in self.computing.items()}
        for module, dtype in dtypes.items():
            modules[module].to(dtype)

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Each float32 weight, by its name."""
        return iter(self.learning.items())

    def tensors(self) -> dict[str, Tensor]:
        """The same, without gradients: writing into them changes the weights."""
        return {name: p.detach() for name, p in self.learning.items()}

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Moves the networks' gradients to the float32 weights and adds them up there, not in 16 bits.

        Call it between the backward passes of a step.
        """
        for name, p in self.learning.items():
            low = self.computing[name]
            if low is not p and low.grad is not None:
                grad, low.grad = low.grad.to(p.dtype), None
                p.grad = grad if p.grad is None else p.grad.add_(grad)

    @torch.no_grad()
    def take_gradients(self, ranks: Ranks = Ranks()) -> None:
        """Leaves in the float32 weights the gradients of the step, as the mean over ranks; a missing one is zero.

        FSDP2 has averaged those of its shards already.
        """
        self.add_gradients()
        for name, p in self.learning.items():
            if not self.computing[name].requires_grad:  # frozen for a stage
                p.grad = None
            elif p.grad is None:
                p.grad = torch.zeros_like(p)
        whole = [p for p in self.learning.values() if p.grad is not None and not isinstance(p, DTensor)]
        average_gradients(whole, ranks)

    @torch.no_grad()
    def write_back(self) -> None:
        """Rounds the float32 weights into the networks that compute in 16 bits."""
        pairs = [(low, self.learning[name]) for name, low in self.computing.items() if low is not self.learning[name]]
        if pairs:
            torch._foreach_copy_(*map(list, zip(*pairs)))

    def copies(self) -> dict[str, Tensor]:
        """A copy of every weight: where a moving average begins."""
        return {name: tensor.clone() for name, tensor in self.tensors().items()}

    @contextmanager
    def replaced_by(self, others: Mapping[str, Tensor]) -> Iterator[None]:
        """Within this context, the networks compute with `others`, such as a moving average."""
        own = self.copies()
        self._set(others)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.learning.items():
            p.copy_(values[name])
        self.write_back()
        reshard(self.modules)


def _module(name: str) -> str:
    return name.partition(".")[0]


@torch.no_grad()
def update_average(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float, step: int) -> None:
    """average = decay average + (1 - decay) weight, in place; at first with a decay of (1 + step) / (10 + step)."""
    decay = min(decay, (1 + step) / (10 + step))
    if average:
        torch._foreach_lerp_(list(average.values()), [weights[name] for name in average], 1 - decay)
