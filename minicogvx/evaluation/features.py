"""Features of clips from the model's own transformer, for distances between sets of clips.

Published evaluations use networks trained on photographs and videos of people. Those know no shapes world, and would
have to be downloaded. The transformer's middle block serves instead: in training it was aligned with shapes and motions
(training/alignment.py), and a linear probe reads both from it.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.pipeline import Pipeline
from minicogvx.training.alignment import aligned_blocks

TIMESTEP = 0  # of 0..999: the clips are whole, without noise


@torch.no_grad()
def clip_features(pipe: Pipeline, videos: Float[Tensor, "b t h w 3"], batch_size: int = 16) -> Float[Tensor, "b d"]:
    """A feature for each clip (0..1): the mean of its tokens after the middle block, each normalised, without caption.

    float32 on the CPU, and determined by the clip: it takes the mean of the VAE's posterior, and adds no noise.
    For features of single frames of one clip, each seen by itself, give `video[:, None]`.
    """
    seen, blocks = [], pipe.transformer.transformer_blocks
    middle = blocks[aligned_blocks((), len(blocks))[0]]
    hook = middle.register_forward_hook(lambda block, given, out: seen.append(out))
    try:
        return torch.cat([_of_batch(pipe, part, seen) for part in videos.split(batch_size)])
    finally:
        hook.remove()


def _of_batch(pipe: Pipeline, videos: Float[Tensor, "b t h w 3"], seen: list[Tensor]) -> Float[Tensor, "b d"]:
    pixels = (rearrange(videos, "b t h w c -> b c t h w") * 2 - 1).to(pipe.device, pipe.dtype)
    latents = (pipe.vae.encode(pixels).mode() * pipe.vae.config.scaling_factor).to(pipe.dtype)
    text = pipe.text.encode([""]).to(latents.device, latents.dtype).expand(len(latents), -1, -1)
    pipe.transformer(latents, torch.full((len(latents),), TIMESTEP, device=latents.device), text)
    out = seen.pop()
    tokens = out[0] if isinstance(out, tuple) else out  # a pair: see ValueResidualBlock
    tokens = tokens[:, text.shape[1]:].float()  # b n_video d
    return F.layer_norm(tokens, tokens.shape[-1:]).mean(dim=1).cpu()
