"""`torch.optim.Muon`, faster for small models and on CPUs without bfloat16.

Matrices of one shape are orthogonalised together, in the dtype in which the device is fastest.
"""

from functools import cache

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from minicogvx.compat import fastest_dtype

STACKED = 2**20  # elements of a matrix, at most; a larger one keeps every core busy by itself


class StackedMuon(torch.optim.Muon):
    """The update of `torch.optim.Muon`, in the same order of operations, on stacks of matrices.

    A small transformer has dozens of matrices of three shapes. One by one, most of the time is spent on launching tiny
    operations. Large matrices and DTensors are updated one by one. The results agree with torch's to the rounding of
    bfloat16, in which torch computes on every device, even on CPUs that emulate it fifty times slower than float32.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            stacks = {}
            for p in group["params"]:
                if p.grad is not None:
                    alone = id(p) if p.numel() > STACKED or isinstance(p, DTensor) else 0
                    stacks.setdefault((p.shape, p.device, alone), []).append(p)
            for weights in stacks.values():
                self._update(weights, group)

    def _update(self, weights: list[Tensor], group: dict) -> None:
        if group["adjust_lr_fn"] not in (None, "original"):
            raise ValueError(f"adjust_lr_fn is {group['adjust_lr_fn']!r}; on stacks it must be None or 'original'")
        lr, momentum, shape = group["lr"], group["momentum"], weights[0].shape
        gradients, buffers = [p.grad for p in weights], [self._buffer(p) for p in weights]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum) if group["nesterov"] else buffers
        how = group["ns_coefficients"], group["ns_steps"], group["eps"]
        if len(updates) == 1:
            updates = [orthogonalised(updates[0], *how)]
        else:
            updates = orthogonalised(torch.stack(list(updates)), *how).unbind()
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        factor = lr * max(1.0, shape[0] / shape[1]) ** 0.5
        torch._foreach_add_(weights, [update.to(p.dtype) for update, p in zip(updates, weights)],
                            alpha=-factor)

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]


@cache
def _iterates_in(device_type: str) -> torch.dtype:
    """The dtype of the iteration, independent of MINICOGVX_DTYPE: bfloat16 if the device computes in it."""
    return fastest_dtype(device_type)[0]


def orthogonalised(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """A matrix `m n`, or each of a stack `k m n`, with singular values moved close to 1 (Newton-Schulz iteration)."""
    a, b, c = coefficients
    tall, add_product = matrices.shape[-2] > matrices.shape[-1], torch.baddbmm if matrices.ndim == 3 else torch.addmm
    x = matrices.to(_iterates_in(matrices.device.type))
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
