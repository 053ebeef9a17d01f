"""Muon for matrices, AdamW for the rest, and the learning-rate schedules, the same for both.

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
    Muon works on stacks of matrices (engine/muon.py); AdamW on a GPU is one fused kernel, on a CPU torch's `foreach`
    form: a small model has hundreds of small weights, and this one computes the same with fewer calls from Python.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], muon_lr: float = 0.02,
                 adamw_lr: float = 1e-3, muon_on: Callable[[str, Tensor], bool] = lambda name, p: p.ndim >= 2,
                 weight_decay: float = 0.0, clip: float = 1.0, betas: tuple[float, float] = (0.9, 0.95)):
        """`muon_on(name, parameter)`: whether Muon updates it; if never, AdamW is used alone."""
        parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.matrices = {name: p for name, p in parameters.items() if muon_on(name, p)}
        self.others = {name: p for name, p in parameters.items() if name not in self.matrices}
        self.flat = {name: nn.Parameter(p.data.view(p.shape[0], -1)) for name, p in self.matrices.items()}
        self.clip, self.halves = clip, []  # each an optimizer and its parameters by name; neither takes an empty list
        if self.flat:
            muon = StackedMuon(list(self.flat.values()), lr=muon_lr, momentum=0.95, weight_decay=weight_decay)
            self.halves.append((muon, self.flat))
        if self.others:
            fused = all(p.is_cuda for p in self.others.values()) or None  # None: as torch chooses
            foreach = all(p.device.type == "cpu" and not isinstance(p, DTensor) for p in self.others.values()) or None
            adamw = torch.optim.AdamW(list(self.others.values()), lr=adamw_lr, betas=betas, eps=1e-8,
                                      weight_decay=weight_decay, fused=fused, foreach=foreach)
            self.halves.append((adamw, self.others))
        for group in self._groups():
            group["base_lr"] = group["lr"]

    def step(self, factor: float) -> Tensor:
        """One update at `factor` times the base learning rates; returns the gradient norm and clears the gradients.

        If the norm is not finite, the weights are left unchanged.
        """
        parameters = [*self.matrices.values(), *self.others.values()]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if torch.isfinite(norm):
            for name, flat in self.flat.items():
                grad = self.matrices[name].grad
                flat.grad = None if grad is None else grad.reshape(flat.shape)
            for group in self._groups():
                group["lr"] = group["base_lr"] * factor
            for optimizer, _ in self.halves:
                optimizer.step()
        for p in parameters:
            p.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """The state for a checkpoint, by the names of the parameters, such as "proj_out.weight/exp_avg".

        These are the optimizers' own tensors, so that a checkpoint can be read into them. Before the first step they
        are created as it would create them.
        """
        tensors = {}
        for optimizer, named in self.halves:
            for name, p in named.items():
                state = optimizer.state[p]
                if not state:
                    state.update(_first_state(optimizer, p))
                tensors |= {f"{name}/{slot}": value for slot, value in state.items()}
        return tensors

    def _groups(self) -> list[dict]:
        return [group for optimizer, _ in self.halves for group in optimizer.param_groups]


def _first_state(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, Tensor]:
    """What `optimizer` holds for `p` before its first step."""
    if isinstance(optimizer, StackedMuon):
        return {"momentum_buffer": torch.zeros_like(p, requires_grad=False)}
    fused = optimizer.param_groups[0]["fused"]
    return {"step": torch.zeros((), dtype=torch.float32, device=p.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(p, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(p, requires_grad=False)}


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Learning-rate factor: linear from 0 to 1 in `warmup` steps, then a cosine down to `floor` at the last step.

    The warm-up takes at most half of the steps, so that a short run gets beyond it.
    """
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup - 1, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def warmup_stable_decay(step: int, steps: int, warmup: int, cooldown: float = 0.2, floor: float = 0.02) -> float:
    """Learning-rate factor: a warm-up as in `warmup_cosine`, then 1, and at the end down to `floor`.

    It falls in the last `cooldown` of the steps (a share), as 1 - sqrt(part of them that is done): steeply at first.
    The schedule is that of MiniCPM (arXiv 2404.06395), the form of its end that of arXiv 2405.18392.
    """
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    falling = min(round(cooldown * steps), steps - warmup)
    done = max(0, step - (steps - 1 - falling)) / max(falling, 1)
    return floor + (1 - floor) * (1 - math.sqrt(min(done, 1.0)))


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon updates a parameter: the matrices of the transformer's blocks, except modulations."""
    return parameter.ndim == 2 and name.startswith("transformer.transformer_blocks") and ".norm" not in name
