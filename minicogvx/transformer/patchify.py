"""Latents to patches and back (paper 2.2): the inside of a patch is flattened as (channel, frame, row, column)."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def patchify(latents: Float[Tensor, "b c t h w"], patch_t: int, patch: int) -> Float[Tensor, "b n patch_values"]:
    """Cut latents into boxes of patch_t x patch x patch. Tokens run over time first, then rows, then columns."""
    return rearrange(latents, "b c (t r) (h p) (w q) -> b (t h w) (c r p q)", r=patch_t, p=patch, q=patch)


def unpatchify(tokens: Float[Tensor, "b n patch_values"], grid: tuple[int, int, int], patch_t: int,
               patch: int) -> Float[Tensor, "b c t h w"]:
    """Inverse of `patchify`. `grid` is the number of patches along time, height and width."""
    t, h, w = grid
    return rearrange(tokens, "b (t h w) (c r p q) -> b c (t r) (h p) (w q)", t=t, h=h, w=w, r=patch_t, p=patch, q=patch)
