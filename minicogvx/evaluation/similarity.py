"""How alike two clips are: SSIM, which compares small windows, and LPIPS, which compares a network's features.

PSNR is in `reconstruction.py`. All three compare frame i with frame i, so they need the true clip.
"""

from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.interop.lpips_weights import load_lpips
from minicogvx.vae.perceptual import PerceptualDistance

_RADIUS, _SIGMA = 5, 1.5  # of the window: Gaussian weights, 11 x 11 pixels
_C1, _C2 = 0.01**2, 0.03**2  # keep both quotients away from 0 / 0; for values in 0..1


def ssim(true: Float[Tensor, "t h w c"], other: Float[Tensor, "_ _ _ _"]) -> float:
    """Structural similarity of two clips in 0..1: 1 for equal ones (Wang et al. 2004, doi 10.1109/TIP.2003.819861).

    The mean over frames, channels and all windows that lie inside the frame, as scikit-image computes it with Gaussian
    weights. (torchmetrics adds windows around the edge, filled by mirroring.) Raises ValueError for different shapes
    and frames of less than 11 pixels a side.
    """
    if true.shape != other.shape or min(true.shape[1:3]) <= 2 * _RADIUS:
        raise ValueError(f"the clips have shapes {tuple(true.shape)} and {tuple(other.shape)}; both must be the same "
                         f"t h w c, of {2 * _RADIUS + 1} pixels a side at least")
    a, b = (rearrange(clip.float(), "t h w c -> (t c) 1 h w") for clip in (true, other))
    mean_a, mean_b = _windows(a), _windows(b)
    var_a, var_b = _windows(a * a) - mean_a**2, _windows(b * b) - mean_b**2
    cov = _windows(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * cov + _C2) / (var_a + var_b + _C2)
    return (light * structure).mean().item()


def lpips_distance(true: Float[Tensor, "t h w 3"], other: Float[Tensor, "_ _ _ 3"], net: str = "alex") -> float:
    """LPIPS between two clips in 0..1: 0 for equal ones, the mean over frames (arXiv 1801.03924).

    Raises ValueError for different shapes and for frames too small for the network, and what `load_lpips` raises where
    its weights are not on this machine.
    """
    if true.shape != other.shape:
        raise ValueError(f"the clips have shapes {tuple(true.shape)} and {tuple(other.shape)}; both must be the same")
    a, b = (rearrange(clip.float() * 2 - 1, "t h w c -> 1 c t h w") for clip in (true, other))
    with torch.no_grad():
        return _network(net).to(a.device)(a, b).item()


@cache
def _network(net: str) -> PerceptualDistance:
    return PerceptualDistance(load_lpips(net))


def _windows(x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h2 w2"]:
    """The weighted mean of the window around every pixel whose window lies inside the picture."""
    away = torch.arange(-_RADIUS, _RADIUS + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-(away / _SIGMA) ** 2 / 2)
    weights = weights / weights.sum()
    return F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
