"""Large pictures through the VAE tile by tile: less memory for a slightly different picture (not in the paper).

A tile is cut out, passes the VAE alone, chunk by chunk in time, and is blended into its neighbours where they overlap.
Each group norm sees one tile only, so the numbers differ a little from those of the whole; the blending hides seams.

    tile 0 |-----------====|            the ==== is seen twice: its weight falls from 1 to 0 in the tile
    tile 1             |====-----------====|    on the left (or above) and rises from 0 to 1 in the tile on the right
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.presets import VAEConfig
from minicogvx.vae.autoencoder import CausalVAE, DiagonalGaussian
from minicogvx.vae.checks import check_latents, check_video

OVERLAP = (1 / 6, 1 / 5)  # of a tile's height and width, as published


def tiled_encode(vae: CausalVAE, video: Float[Tensor, "b c t h w"], tile: tuple[int, int] | None = None,
                 overlap: tuple[float, float] = OVERLAP, chunk_frames: int | None = 8) -> DiagonalGaussian:
    """`vae.encode(video)`, one tile of `tile` pixels (height, width) at a time; a video that fits in one is not cut.

    `tile`: None takes half of the config's sample size, 240x360 in the published VAE. `overlap`: the part of a
    tile's height and width that it shares with the next, rounded to whole latents and at least one of them unless 0.
    Raises ValueError for a tile that the VAE's compression does not divide, an overlap that leaves nothing new in a
    tile, and whatever `encode` refuses.
    """
    sizes, shared = _tile_in_latents(vae.config, tile, overlap)
    check_video(vae.config, video)
    space = vae.config.spatial_compression_ratio
    tile = (sizes[0] * space, sizes[1] * space)
    if _fits(video, tile):
        return vae.encode(video, chunk_frames)

    def moments(piece: Tensor) -> Tensor:
        posterior = vae.encode(piece, chunk_frames)
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    step = (tile[0] - shared[0] * space, tile[1] - shared[1] * space)
    return DiagonalGaussian(_by_tiles(moments, video, tile, step, shared))


def tiled_decode(vae: CausalVAE, latents: Float[Tensor, "b c lt lh lw"], tile: tuple[int, int] | None = None,
                 overlap: tuple[float, float] = OVERLAP, chunk_latents: int | None = 2) -> Float[Tensor, "b o t h w"]:
    """`vae.decode(latents)`, one tile at a time; `tile` in pixels, and the rest as in `tiled_encode`."""
    tile, shared = _tile_in_latents(vae.config, tile, overlap)
    check_latents(vae.config, latents)
    if _fits(latents, tile):
        return vae.decode(latents, chunk_latents)
    space = vae.config.spatial_compression_ratio
    step = (tile[0] - shared[0], tile[1] - shared[1])
    return _by_tiles(lambda piece: vae.decode(piece, chunk_latents), latents, tile, step,
                     (shared[0] * space, shared[1] * space))


def check_tile(config: VAEConfig, tile: tuple[int, int] | None) -> None:
    """Raises ValueError for a tile, in pixels, that `tiled_encode` and `tiled_decode` would refuse."""
    _tile_in_latents(config, tile, OVERLAP)


def _by_tiles(run: Callable[[Tensor], Tensor], x: Tensor, tile: tuple[int, int], step: tuple[int, int],
              shared: tuple[int, int]) -> Tensor:
    """Runs every tile and joins the results. `tile` and `step` count pixels of x, `shared` those of the result."""
    rows, above = [], []
    for top in range(0, x.shape[3], step[0]):
        row: list[Tensor] = []
        for column, left in enumerate(range(0, x.shape[4], step[1])):
            y = run(x[:, :, :, top:top + tile[0], left:left + tile[1]])
            # The published order: first with the (already blended) tile above, then with the one on the left.
            y = blend(above[column], y, shared[0], dim=3) if above else y
            y = blend(row[-1], y, shared[1], dim=4) if row else y
            row.append(y)
        scale = row[0].shape[3] / min(tile[0], x.shape[3] - top)  # pixels of the result for one of x
        height, width = round(step[0] * scale), round(step[1] * scale)
        rows.append(torch.cat([y[:, :, :, :height, :width] for y in row], dim=4))
        above = row
    return torch.cat(rows, dim=3)


def blend(before: Float[Tensor, "b c t h1 w1"], after: Float[Tensor, "b c t h2 w2"], extent: int,
          dim: int) -> Float[Tensor, "b c t h2 w2"]:
    """`after` with its first `extent` rows (dim=3) or columns (dim=4) fading in over the last ones of `before`."""
    extent = min(extent, before.shape[dim], after.shape[dim])
    if extent == 0:
        return after
    old = before.narrow(dim, before.shape[dim] - extent, extent)
    new, rest = after.split([extent, after.shape[dim] - extent], dim=dim)
    weight = torch.arange(extent, device=after.device, dtype=after.dtype) / extent
    weight = weight.view(-1, 1) if dim == 3 else weight
    return torch.cat([old * (1 - weight) + new * weight, rest], dim=dim)


def _fits(x: Tensor, tile: tuple[int, int]) -> bool:
    return x.shape[3] <= tile[0] and x.shape[4] <= tile[1]


def _tile_in_latents(config: VAEConfig, tile: tuple[int, int] | None,
                     overlap: tuple[float, float]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of a tile, and what it shares with the next, in latents.

    Whole latents keep the tiles of the video and those of the latents in step. `diffusers` rounds the two apart for
    some sizes (a tile of 64 pixels with 1/6 is one) and then returns a picture of another size; the published agree.
    """
    space = config.spatial_compression_ratio
    if tile is None:  # rounded down to whole latents
        tile = tuple(max(size // 2 // space, 1) * space for size in (config.sample_height, config.sample_width))
    if any(size <= 0 or size % space for size in tile):
        raise ValueError(f"tile is {tile[0]}x{tile[1]} pixels; height and width must be multiples of {space}, such as "
                         f"{4 * space}x{4 * space}")
    if not all(0 <= part < 1 for part in overlap):
        raise ValueError(f"overlap is {overlap}; each part of a tile that is shared must be at least 0 and below 1")
    latents = (tile[0] // space, tile[1] // space)
    shared = tuple(max(round(size * part), 1) if part else 0 for size, part in zip(latents, overlap))
    if any(part >= size for part, size in zip(shared, latents)):
        raise ValueError(f"a tile of {tile[0]}x{tile[1]} pixels is {latents[0]}x{latents[1]} latents, of which "
                         f"overlap={overlap} shares {shared[0]}x{shared[1]}; take a larger tile or a smaller overlap")
    return latents, shared
