"""Classifier-free guidance (Ho and Salimans 2022), constant and dynamic."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def guide(uncond: Float[Tensor, "*shape"], cond: Float[Tensor, "*shape"],
          guidance_scale: int | float) -> Float[Tensor, "*shape"]:
    """uncond + w (cond - uncond), in at least float32.

    Extrapolates from the unconditional to the conditional prediction. w = 1 is the conditional output, 0 the
    unconditional one. The published default is 6. `uncond` may come from a negative prompt. In one batch of both, the
    published order is uncond first.
    """
    wide = torch.promote_types(cond.dtype, torch.float32)
    uncond, cond = uncond.to(wide), cond.to(wide)
    return uncond + guidance_scale * (cond - uncond)


def dynamic_guidance_scale(guidance_scale: float, i: int, timestep: int, num_inference_steps: int,
                           mode: str | None) -> float:
    """The guidance scale of step i = 0 .. n-1, which is at `timestep`.

    None: constant w. Otherwise  w_i = 1 + w (1 - cos(pi ((n - tau) / n)^5)) / 2  with n steps, where tau counts down:

    meant: tau = n - i, the steps that remain. The scale rises smoothly from 1 to almost 1 + w.
    published: tau = the timestep, 0 .. 999, in both released programs. Then (n - tau) / n is far outside 0..1, the
    cosine oscillates many times between two steps, and the scale is erratic in 1 .. 1 + w. The authors kept it: it
    looks good.

    Raises ValueError for another mode.
    """
    if mode is None:
        return guidance_scale
    if mode not in ("published", "meant"):
        raise ValueError(f"dynamic_guidance is {mode!r}; it must be None, 'published' or 'meant'")
    n = num_inference_steps
    tau = timestep if mode == "published" else n - i
    return 1 + guidance_scale * (1 - math.cos(math.pi * ((n - tau) / n) ** 5)) / 2


def guidance_scales(guidance_scale: float, timesteps: Int[Tensor, "n"], mode: str | None) -> list[float]:
    """The scale of every step of a run over `timesteps`: n of them, in video to video only those that remain.

    A scale of 1 is no guidance. A constant scale below 1 goes into the formula as it is, so 0 is the unconditional
    output (diffusers switches guidance off there). Dynamic guidance with a scale of at most 1 is off, as in diffusers.
    Raises ValueError for an unknown mode.
    """
    if mode is not None and guidance_scale <= 1:
        return [1.0] * len(timesteps)
    return [dynamic_guidance_scale(guidance_scale, i, int(t), len(timesteps), mode) for i, t in enumerate(timesteps)]
