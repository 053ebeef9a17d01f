"""Exercise 14.3 of notebook 14: the Fréchet distance between two sets of features."""

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong
from minicogvx.course.exercises.plain_numbers import close, number_of
from minicogvx.evaluation.frechet import frechet_distance


def distance_of_clouds(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """The Fréchet distance of two normal distributions with the means and covariances of `a` and `b`."""
    return frechet_distance(a, b)


def check_frechet(frechet) -> None:
    """0 for the same features, means and spreads each by themselves, any rotation, sets of two sizes."""
    a = torch.randn(60, 3, dtype=torch.float64)
    mix = torch.tensor([[1.0, 0.8, 0.0], [-0.8, 0.4, 0.5], [0.3, 0.0, 2.0]], dtype=torch.float64)
    shift, b = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64), torch.randn(40, 3, dtype=torch.float64) @ mix
    line = torch.randn(50, 1, dtype=torch.float64)
    line = (line - line.mean()) / line.std()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    cases = (  # what is called, arguments, what it must be, why
        ("frechet(a, a)", (a, a), 0.0, "the same features have the distance 0"),
        ("frechet(a, a + (1, -2, 2))", (a, a + shift), 9.0, "the covariances are equal, so only the means' squared "
                                                           "distance is left"),
        ("frechet(line, 3 * line), one number each,", (line, 3 * line), 4.0, "with spreads 1 and 3 it is (3 - 1)^2"),
        ("frechet(a, b)", (a, b), distance_of_clouds(a, b), "of 60 and 40 features"),
        ("frechet(a, b), both turned,", (a @ turn, b @ turn), distance_of_clouds(a, b), "turning both changes nothing"),
    )
    for what, pair, wanted, why in cases:
        got = number_of(what, frechet(*(each.clone() for each in pair)))
        if not close(got, wanted, absolute=2e-3):
            raise Wrong(f"{what} is {got:.4g}; it must be {wanted:.4g}: {why}.{_slip(got, *pair)}")


def _slip(got: float, a: Tensor, b: Tensor) -> str:
    """A sentence on the mistake, if it is a known one."""
    means = (a.mean(0) - b.mean(0)).square().sum().item()
    ca, cb = (x.mT.cov().reshape(x.shape[1], x.shape[1]) for x in (a, b))
    traces, right = (ca.trace() + cb.trace()).item(), distance_of_clouds(a, b)
    shared = (means + traces - right) / 2
    biased = [(len(x) - 1) / len(x) for x in (a, b)]
    elementwise = (ca @ cb).clamp(min=0).sqrt().trace().item()
    for wrong, why in (
        (means + traces - shared, "The root of C1 C2 counts twice."),
        (right - means, "The means are missing."),
        (max(right, 0.0) ** 0.5, "That is its root; FID and FVD are squared distances."),
        (means + traces - 2 * elementwise, "A matrix has another root than its numbers: find R with R R = C1 C2, or "
                                           "the roots of the eigenvalues of C1 C2."),
        (means + traces - 2 * (ca @ cb).trace().item(), "Take the root of C1 C2 before its trace."),
        (means + biased[0] * ca.trace().item() + biased[1] * cb.trace().item()
         - 2 * (biased[0] * biased[1]) ** 0.5 * shared, "Covariances divide by n - 1."),
    ):
        if abs(wrong - right) > 1e-3 and close(got, wrong):
            return " " + why
    return ""
