"""The check of exercise 9.2, Muon's iteration: singular values near 1, singular vectors kept."""

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_close, expect_shape

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Keller Jordan's


def nearly_orthogonal(matrix: Float[Tensor, "m n"], rounds: int = 5) -> Float[Tensor, "m n"]:
    """Singular values moved close to 1, singular vectors kept: the Newton-Schulz iteration of Muon, in float32."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def check_orthogonalise(orthogonalise) -> None:
    """Singular values near 1 for wide, tall, large and small matrices, and for zeros; the same singular vectors."""
    for shape, size in (((4, 9), 1.0), ((9, 4), 1.0), ((6, 6), 1e4), ((5, 8), 1e-4)):
        matrix = size * torch.randn(shape)
        given, what = matrix.clone(), f"orthogonalise of a {shape[0]} x {shape[1]} matrix with entries near {size:g}"
        got = orthogonalise(given)
        if not torch.equal(given, matrix):
            raise Wrong("orthogonalise changes the matrix that it is given; make a new one.")
        expect_shape(what, got, shape)
        wanted, values = nearly_orthogonal(matrix), torch.linalg.svdvals(got.float().nan_to_num(0, 0, 0))
        if not torch.isfinite(got).all():
            raise Wrong(f"{what} holds NaN or infinity. Divide by the matrix's norm first, the root of the sum of "
                        f"squares, not by its largest entry: the iteration only converges for singular values of at "
                        f"most 1. And b belongs to X X^T, c to its square.")
        _name_a_single_round(what, got.float(), matrix)
        if torch.allclose(got.float(), wanted, atol=2e-2):
            continue
        if values.min() < 0.3 or values.max() > 1.5:
            raise Wrong(f"{what} has singular values from {values.min().item():.2f} to {values.max().item():.2f}; "
                        f"after five rounds they must lie near 1, about 0.7 to 1.2.")
        expect_close(what, got, wanted, atol=2e-2)
    zero = orthogonalise(torch.zeros(3, 5))
    expect_shape("orthogonalise of zeros", zero, (3, 5))
    if not torch.equal(zero.float(), torch.zeros(3, 5)):
        raise Wrong("orthogonalise of zeros must be zeros; do not divide by 0, clamp(min=1e-7) the norm.")


def _name_a_single_round(what: str, got: Tensor, matrix: Tensor) -> None:
    once = nearly_orthogonal(matrix, rounds=1)
    if torch.allclose(got, once, atol=1e-4):
        raise Wrong(f"{what} is what one round gives; there are five.")
