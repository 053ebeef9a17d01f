"""The Fréchet distance between two sets of features: what FID and FVD are once a network has made the features."""

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(one: Float[Tensor, "n d"], other: Float[Tensor, "m _"]) -> float:
    """|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), with the means m and covariances C of both sets.

    That is the squared distance between two normal distributions (Heusel et al. 2017, arXiv 1706.08500, equation 6).
    Estimated from few clips it is too large: covariances take more clips than features have numbers. Computed in
    float64. Raises ValueError for sets of other widths, or of fewer than 2 clips.
    """
    if one.shape[1:] != other.shape[1:] or min(len(one), len(other)) < 2:
        raise ValueError(f"the features have shapes {tuple(one.shape)} and {tuple(other.shape)}; they must be n d and "
                         f"m d, with n and m of 2 at least")
    (m1, c1), (m2, c2) = (_moments(features) for features in (one, other))
    values, vectors = torch.linalg.eigh(c1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT  # symmetric; root @ root = c1
    # C1 C2 has the eigenvalues of root C2 root, which is symmetric; the trace of its root is the sum of their roots.
    shared = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()
    return max(0.0, float((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * shared))  # below 0 by rounding


def _moments(features: Tensor) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    features = features.detach().cpu().double()
    return features.mean(dim=0), features.mT.cov().reshape(features.shape[1], features.shape[1])
