"""Pixels as people see them, `b t h w 3` in 0..1, to scaled latents `b c t h w` and back."""

from numbers import Integral

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.diffusion.samplers import Generators, check_finite, randn
from minicogvx.ranges import shown
from minicogvx.vae import CausalVAE
from minicogvx.vae.tiling import tiled_decode, tiled_encode

Tile = bool | tuple[int, int]  # False: the VAE sees whole frames; True: tiles of half its sample size; or their pixels


def encode_pixels(vae: CausalVAE, video: Float[Tensor, "b t h w 3"], generator: Generators, tile: Tile = False,
               inverted: bool = False) -> Float[Tensor, "b2 c lt lh lw"]:
    """Scaled latents, sampled from the posterior: of one video, one for each of a list of generators.

    `inverted`: divided by the scaling factor, as 1.5-5b-i2v was trained (`VAEConfig.invert_scale_latents`).
    Raises ValueError where the VAE's output is not finite.
    """
    weight = next(vae.parameters())
    video = (rearrange(video, "b t h w c -> b c t h w") * 2 - 1).to(weight.device, weight.dtype)
    posterior = tiled_encode(vae, video, tile_size(tile)) if tile else vae.encode(video)
    mean = posterior.mean
    count = len(generator) if isinstance(generator, list) else len(mean)
    latents = mean + posterior.std * randn((count, *mean.shape[1:]), generator, mean.dtype, mean.device)
    check_finite(latents, "what the VAE makes of the given pixels")
    return latents / vae.config.scaling_factor if inverted else latents * vae.config.scaling_factor


def decode_pixels(vae: CausalVAE, latents: Float[Tensor, "b c lt lh lw"],
              tile: Tile = False) -> Float[Tensor, "b t h w 3"]:
    """Pixels of scaled latents, float32 on the CPU. Raises ValueError for NaN or infinity, in or out."""
    weight = next(vae.parameters())
    latents = (latents.to(weight.device) / vae.config.scaling_factor).to(weight.dtype)
    video = tiled_decode(vae, latents, tile_size(tile)) if tile else vae.decode(latents)
    video = check_finite(video.cpu().float(), "the VAE's video")  # before the clamp, which would hide infinity
    return rearrange(video / 2 + 0.5, "b c t h w -> b t h w c").clamp(0, 1)


def tile_size(tile: Tile) -> tuple[int, int] | None:
    """Height and width of a tile in pixels; None: what `vae/tiling.py` takes by default."""
    return None if tile is True else tile


def check_tile_kind(tile: Tile) -> None:
    """Raises ValueError for what is neither True nor False nor a height and a width."""
    pair = isinstance(tile, (tuple, list)) and len(tile) == 2 and all(
        isinstance(size, Integral) and not isinstance(size, bool) for size in tile)
    if not (isinstance(tile, bool) or pair):
        raise ValueError(f"tile is {shown(tile)}; it must be True, False, or height and width in pixels")
