"""Muon for matrices, AdamW for the rest, one learning-rate schedule for both.

Why Muon: after 200 small steps AdamW had learnt only the background of a clip, Muon the shape as well.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minicogvx.engine.muon import StackedMuon


class MuonAdamW:
    """`torch.optim.Muon` on the given matrices and convolution kernels, `torch.optim.AdamW` on all other parameters.

    Muon treats a convolution kernel `o i t h w` as the matrix `o x (i t h w)`, a view of it.
    Muon works on stacks of matrices (training/muon.py).
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], muon_lr: float = 0.02,
                 adamw_lr: float = 1e-3, muon_on: Callable[[str, Tensor], bool] = lambda name, p: p.ndim >= 2,
                 weight_decay: float = 0.0, clip: float = 1.0, betas: tuple[float, float] = (0.9, 0.95)):
        """`muon_on(name, parameter)`: whether Muon updates it; if never, AdamW is used alone."""
        parameters = [(name, p) for name, p in named_parameters if p.requires_grad]
        self.matrices = [p for name, p in parameters if muon_on(name, p)]
        self.others = [p for name, p in parameters if not muon_on(name, p)]
        self.flat = [nn.Parameter(p.data.view(p.shape[0], -1)) for p in self.matrices]
        # Neither takes an empty list.
        self.muon = self.flat and StackedMuon(self.flat, lr=muon_lr, momentum=0.95, weight_decay=weight_decay)
        self.adamw = self.others and torch.optim.AdamW(self.others, lr=adamw_lr, betas=betas, eps=1e-8,
                                                       weight_decay=weight_decay)
        self.clip = clip
        for group in self._groups():
            group["base_lr"] = group["lr"]

    def step(self, factor: float) -> Tensor:
        """One update at `factor` times the base learning rates; returns the gradient norm and clears the gradients.

        If the norm is not finite, the weights are left unchanged.
        """
        norm = nn.utils.clip_grad_norm_(self.matrices + self.others, self.clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if torch.isfinite(norm):
            for p, flat in zip(self.matrices, self.flat):
                flat.grad = None if p.grad is None else p.grad.reshape(flat.shape)
            for group in self._groups():
                group["lr"] = group["base_lr"] * factor
            for _, optimizer, _ in self.halves():
                optimizer.step()
        for p in self.matrices + self.others:
            p.grad = None
        return norm

    def _groups(self):
        return [group for _, optimizer, _ in self.halves() for group in optimizer.param_groups]

    def halves(self) -> list[tuple[str, torch.optim.Optimizer, list[nn.Parameter]]]:
        """Name, optimizer and parameters of Muon and of AdamW, without one that has no parameters."""
        return [half for half in (("muon", self.muon, self.flat), ("adamw", self.adamw, self.others)) if half[2]]


@torch.no_grad()
def average(averages: Iterable[nn.Module], modules: Iterable[nn.Module], decay: float) -> None:
    """Moving averages of weights, in place: average = decay average + (1 - decay) weight."""
    for kept, module in zip(averages, modules):
        torch._foreach_lerp_(list(kept.parameters()), list(module.parameters()), 1 - decay)


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Learning-rate factor: linear from 0 to 1 in `warmup` steps, then a cosine down to `floor` at the last step.

    The warm-up takes at most half of the steps, so that a short run gets beyond it.
    """
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup - 1, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon updates a parameter: the matrices of the transformer's blocks, except modulations."""
    return parameter.ndim == 2 and name.startswith("transformer.transformer_blocks") and ".norm" not in name
