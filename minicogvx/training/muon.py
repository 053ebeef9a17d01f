"""`torch.optim.Muon`, quicker for small models: matrices of one shape are orthogonalised together."""

import torch
from torch import Tensor

STACKED = 2**20  # numbers in a matrix, at most; a larger one keeps every core busy by itself


class StackedMuon(torch.optim.Muon):
    """The update of `torch.optim.Muon`, in the same order of operations, on stacks of matrices.

    A small transformer has dozens of matrices of three shapes. One by one, most of the time goes into starting
    operations that are over at once. The results agree to the rounding of bfloat16, in which both compute.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            stacks = {}
            for p in group["params"]:
                if p.grad is not None:
                    alone = id(p) if p.numel() > STACKED else 0
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
        updates = orthogonalised(torch.stack(list(updates)), group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        factor = lr * max(1.0, shape[0] / shape[1]) ** 0.5
        torch._foreach_add_(weights, list(updates.to(weights[0].dtype).unbind()), alpha=-factor)

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]


def orthogonalised(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Each matrix of a stack `k m n` with its singular values brought near 1, in bfloat16 (Newton-Schulz iteration)."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
