"""Exercise 14.1 of notebook 14: structural similarity of two pictures, window by window."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong
from minicogvx.course.exercises.plain_numbers import close, number_of
from minicogvx.evaluation.similarity import ssim

_BEYOND = "some windows reach beyond the edge, where there is nothing; take only those that lie inside"
_RANGE_1, _RANGE_255 = (0.01**2, 0.03**2), ((2.55) ** 2, (7.65) ** 2)


def similarity_of_windows(a: Float[Tensor, "h w"], b: Float[Tensor, "h w"]) -> float:
    """SSIM of two pictures with values in 0..1: the mean over all windows of 11 x 11 pixels inside them."""
    return ssim(a[None, ..., None], b[None, ..., None])


def check_structural(structural) -> None:
    """1 for equal pictures, flat ones included; the value of flat ones; and what becomes of windows and weights."""
    a, b = _pictures()
    for name, picture in (("a", a), ("black", torch.zeros(24, 24))):
        got = number_of(f"structural({name}, {name})", structural(picture, picture))
        if not close(got, 1.0):
            raise Wrong(f"structural({name}, {name}) is {got:.4g}; of equal pictures it must be 1"
                        + (". Where both are flat only the constants keep 0 / 0 away." if name == "black" else "."))
    dark, bright = torch.full((24, 24), 0.2), torch.full((24, 24), 0.6)
    got = number_of("structural(0.2 everywhere, 0.6 everywhere)", structural(dark, bright))
    if not close(got, 0.60009, absolute=1e-3):
        why = _said_of_flat(got)
        raise Wrong(f"structural(0.2 everywhere, 0.6 everywhere) is {got:.4g}; it must be 0.6001{why}.")
    got, turned = (number_of("structural(a, b)", structural(*pair)) for pair in ((a, b), (b, a)))
    wanted = similarity_of_windows(a, b)
    if close(got, wanted):
        return
    for name, value in _slips(a, b).items():
        if close(got, value):
            raise Wrong(f"structural(a, b) is {got:.4g}; it must be {wanted:.4g}: {name}.")
    if not close(got, turned):
        raise Wrong(f"structural(a, b) is {got:.4g} and structural(b, a) {turned:.4g}; they must be equal.")
    raise Wrong(f"structural(a, b) of two random pictures, 30 x 26, is {got:.4g}; it must be {wanted:.4g}.")


def _pictures() -> tuple[Tensor, Tensor]:
    """Two pictures with a bright and a dark half, and noise of different size in each."""
    a = torch.rand(30, 26) * torch.linspace(0.1, 0.4, 26)
    a[:, 13:] += 0.5
    return a, (a + 0.25 * torch.rand(30, 26) * torch.linspace(1, 0, 30)[:, None]).clamp(0, 1)


def _said_of_flat(got: float) -> str:
    flat = (2 * 0.12 + _RANGE_255[0]) / (0.4 + _RANGE_255[0])
    if close(got, flat, absolute=1e-3):
        return ". These are the constants for values in 0..255; ours lie in 0..1, so they are 0.01^2 and 0.03^2"
    if close(got, (2 * 0.12 + 0.01) / (0.4 + 0.01), absolute=1e-3):
        return ". The constants are squares: 0.01^2 and 0.03^2"
    dark, bright, gauss = torch.full((24, 24), 0.2), torch.full((24, 24), 0.6), _gauss()
    if close(got, _formula(dark, bright, lambda x: F.conv2d(x[None, None], gauss, padding=5)), absolute=1e-3):
        return f": {_BEYOND}"
    return ". Flat pictures have no spread, so only their means and the constants are left"


def _slips(a: Tensor, b: Tensor) -> dict[str, float]:
    gauss = _gauss()
    return {
        "you took the whole picture as one window": _formula(a, b, lambda x: x.mean()),
        "all pixels of a window count alike; they must have Gaussian weights": _formula(
            a, b, lambda x: F.avg_pool2d(x[None, None], 11, 1)),
        _BEYOND: _formula(a, b, lambda x: F.conv2d(x[None, None], gauss, padding=5)),
        "the spread must be the variance, not the standard deviation": _formula(
            a, b, lambda x: F.conv2d(x[None, None], gauss), root=True),
    }


def _gauss() -> Float[Tensor, "1 1 11 11"]:
    line = torch.exp(-((torch.arange(11.0) - 5) / 1.5) ** 2 / 2)
    return (line[:, None] * line / line.sum() ** 2)[None, None]


def _formula(a: Tensor, b: Tensor, mean, root: bool = False) -> float:
    c1, c2 = _RANGE_1
    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    if root:
        va, vb = va.clamp(min=0).sqrt(), vb.clamp(min=0).sqrt()
    light = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1)
    return (light * (2 * both + c2) / (va + vb + c2)).mean().item()
