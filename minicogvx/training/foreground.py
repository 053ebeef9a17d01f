"""The cells of objects count more in the diffusion loss. A training of the shapes world only; off by default.

In these clips nine latent cells in ten are plain background, learnt within minutes, while the edges of shapes decide
whether a caption is obeyed. A cell that an object covers, even in part, weighs 1 + w alpha_bar_t: edges are seen where
there is little noise, so the weight falls to 1 towards pure noise. CogVideoX weighs all cells alike: weight 0.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minicogvx.data.world.features import span


def cell_weights(features: Float[Tensor, "b t h w k"], alphas_cumprod: Float[Tensor, " T"], t: Int[Tensor, " b"],
                 weight: float) -> Float[Tensor, "b 1 t h w"]:
    """What each latent cell counts in the loss. `features`: of `scene_features`; `weight`: w above, of objects."""
    covered = (features[..., list(span("shape"))].sum(-1) > 0).unsqueeze(1)  # b 1 t h w
    signal = alphas_cumprod.to(features)[t].view(-1, 1, 1, 1, 1)
    return torch.where(covered, 1 + weight * signal, 1.0)
