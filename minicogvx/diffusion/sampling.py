"""The sampling loop, one for all tasks, and the guided output of the network that each of its steps asks for."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.diffusion.conditioning import TextOnly
from minicogvx.diffusion.guidance import guide
from minicogvx.diffusion.samplers import DDIMSampler, DPMSampler, Generators

OFS = 2.0  # the constant that 1.5-5b-i2v was trained with


def sample_loop(transformer: nn.Module, sampler: DDIMSampler | DPMSampler, text: Float[Tensor, "b2 n d"],
                condition: TextOnly, scales: list[float], generator: Generators | None = None,
                on_step: Callable[[int, int], None] | None = None) -> Float[Tensor, "b c t h w"]:
    """Clean latents from noise, for every task (paper 2; image to video: appendix D).

    Args:
        text: features of b texts to move away from (empty captions or negative prompts), then of the b captions.
        condition: where to begin, and what is given besides captions (`diffusion/conditioning.py`).
        scales: the guidance scale of each step from `condition.start` on.
        on_step: called with (steps done, steps in all).

    Raises ValueError where the network's output is not finite.
    """
    timesteps = sampler.timesteps.tolist()
    latents, x0 = condition.first(), None
    for i in range(condition.start, len(timesteps)):
        latents = condition.before(latents, timesteps[i])                                        # b c t h w
        seen = condition.network_input(latents)                                                  # b c_in t h w
        v = guided_output(transformer, seen, timesteps[i], text, scales[i - condition.start])    # b c t h w
        latents, x0 = sampler.step(v, i, latents, x0, generator)                                 # b c t h w, twice
        if on_step:
            on_step(i - condition.start + 1, len(scales))
    return condition.last(latents)


def guided_output(transformer: nn.Module, latents: Float[Tensor, "b c_in t h w"], t: int,
                  text: Float[Tensor, "b2 n d"], guidance_scale: float) -> Float[Tensor, "b c t h w"]:
    """The guided output at timestep `t`, float32: both texts in one batch, or with a scale of 1 the captions alone."""
    if guidance_scale == 1:
        text = text[len(latents):]
    else:
        latents = torch.cat([latents, latents])
    times = torch.full((len(latents),), t, device=latents.device)
    ofs = torch.full_like(times, OFS, dtype=latents.dtype) if transformer.config.ofs_embed_dim else None
    output = transformer(latents, times, text, ofs).float()
    return output if guidance_scale == 1 else guide(*output.chunk(2), guidance_scale)
