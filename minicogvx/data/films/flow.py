"""Optical flow: where each pixel of one frame is in the next (Lucas and Kanade 1981; pyramid after Bouguet 2000).

For a window around every pixel, least squares finds the motion that best explains the change of brightness, first on a
small copy of the frames, then refined on larger ones, so that motions far above one pixel are found.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

_LEAST_GRADIENT = 1e-4  # added to the squared gradients (brightness 0..1 per pixel): no motion without texture
_LONGEST_STEP = 2.0  # pixels in one refinement: the range of the linear model


def optical_flow(first: Float[Tensor, "b h w"], second: Float[Tensor, "b h w"], levels: int = 4, window: int = 7,
                 iterations: int = 5) -> Float[Tensor, "b 2 h w"]:
    """(dx, dy) in pixels for each pixel of `first`, brightness in 0..1: what is at (x, y) in `first` is at
    (x + dx, y + dy) in `second`.

    `levels`: halvings at most, none below twice `window`, the side of the windows that are assumed to move together.
    Raises ValueError for an even window or frames smaller than it.
    """
    if window < 3 or window % 2 == 0 or window > min(first.shape[1:]):
        side = min(first.shape[1:])
        raise ValueError(f"window is {window}; it must be odd, 3 or more and at most the frame's {side}")
    pyramid = [(first[:, None], second[:, None])]
    while len(pyramid) < levels and min(pyramid[-1][0].shape[2:]) >= 4 * window:
        pyramid.append(tuple(F.avg_pool2d(frames, 2) for frames in pyramid[-1]))
    flow = torch.zeros_like(pyramid[-1][0]).repeat(1, 2, 1, 1)
    for one, other in reversed(pyramid):
        flow = _refine(one, other, _enlarge(flow, one.shape[2:]), window, iterations)
    return flow


def motion_strength(flow: Float[Tensor, "b 2 h w"]) -> Float[Tensor, " b"]:
    """Mean length of the flow, in shorter sides of the frame."""
    return flow.norm(dim=1).mean((1, 2)) / min(flow.shape[2:])


def _refine(first: Tensor, second: Tensor, flow: Tensor, window: int, iterations: int) -> Tensor:
    gx, gy = (_patches(gradient, window) for gradient in _gradient(first))
    patch = _patches(first, window)
    # The 2 x 2 normal equations (xx xy; xy yy) step = -(ex; ey) of every window; all iterations share the matrix.
    xx, yy = gx.square().mean(-1) + _LEAST_GRADIENT, gy.square().mean(-1) + _LEAST_GRADIENT
    xy = (gx * gy).mean(-1)
    determinant = xx * yy - xy * xy
    for _ in range(iterations):
        error = _moved_patches(second, flow, window) - patch
        ex, ey = (gx * error).mean(-1), (gy * error).mean(-1)
        step = torch.stack([xy * ey - yy * ex, xy * ex - xx * ey], dim=1) / determinant[:, None]
        flow = flow + step.clamp(-_LONGEST_STEP, _LONGEST_STEP)
    return flow


def _gradient(frames: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(frames, (1, 1, 1, 1), mode="replicate")
    along_x = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    along_y = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return along_x / 2, along_y / 2


def _patches(frames: Tensor, window: int) -> Float[Tensor, "b h w k"]:
    """The `window` x `window` pixels around each pixel, row by row."""
    padded = F.pad(frames, (window // 2,) * 4, mode="replicate")
    return rearrange(F.unfold(padded, window), "b k (h w) -> b h w k", h=frames.shape[2])


def _moved_patches(frames: Tensor, flow: Tensor, window: int) -> Float[Tensor, "b h w k"]:
    """The same, with each patch taken as a whole from where its centre has moved to; edges are replicated."""
    height, width = frames.shape[2:]
    around = torch.arange(window, dtype=flow.dtype, device=flow.device) - window // 2
    x = torch.arange(width, dtype=flow.dtype, device=flow.device) + flow[:, 0]
    y = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None] + flow[:, 1]
    grid = torch.stack([(2 * (x[..., None] + around.repeat(window)) + 1) / width - 1,
                        (2 * (y[..., None] + around.repeat_interleave(window)) + 1) / height - 1], dim=-1)
    grid = rearrange(grid, "b h w k c -> b (h w) k c")
    read = F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return rearrange(read, "b 1 (h w) k -> b h w k", h=height)


def _enlarge(flow: Tensor, size: tuple[int, int]) -> Tensor:
    if flow.shape[2:] == size:
        return flow
    ratio = torch.tensor([size[1] / flow.shape[3], size[0] / flow.shape[2]], dtype=flow.dtype, device=flow.device)
    return F.interpolate(flow, size=size, mode="bilinear", align_corners=False) * rearrange(ratio, "c -> c 1 1")
