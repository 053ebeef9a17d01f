"""The checks of exercises 3.3 and 3.4: a latent that is drawn, and the price of what it tells."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_shape

# ---- 3.3 draw


def draw_with_gradient(mean: Float[Tensor, "b c t h w"],
                       logvar: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
    """A draw from N(mean, exp(logvar)) that can be differentiated: noise without parameters, stretched and shifted."""
    return mean + (0.5 * logvar).exp() * torch.randn_like(mean)


def check_draw(draw) -> None:
    """Mean and deviation of many draws, values that are independent, new ones each time, and both gradients."""
    mean = torch.tensor([[3.0], [-1.0]]).expand(2, 4000).reshape(2, 4, 10, 10, 10).clone()
    for deviation in (0.5, 2.0):
        logvar = torch.full_like(mean, 2 * math.log(deviation))
        z = draw(mean.clone(), logvar.clone())
        what = (f"draw(mean, logvar) with mean 3 and standard deviation {deviation:g} "
                f"(logvar {2 * math.log(deviation):.2f})")
        expect_shape(what, z, tuple(mean.shape))
        if not torch.isfinite(z).all():
            raise Wrong(f"{what} holds NaN or infinity.")
        found = z[0].std().item()
        if found < 1e-3:
            raise Wrong(f"{what} gives the same value everywhere; every latent value needs noise of its own.")
        if abs(z[0].mean().item() - 3) > 0.3:
            raise Wrong(f"{what}: the mean of 4,000 draws is {z[0].mean().item():.2f}.")
        if abs(found / deviation - 1) > 0.1:
            raise Wrong(f"{what}: the standard deviation of 4,000 draws is {found:.2f}. logvar is the logarithm of "
                        f"the variance, and the standard deviation is its root.")
        same = torch.allclose(z[0] - mean[0], z[1] - mean[1], atol=1e-3)
        if same or z[0].flatten(1).std(dim=1).min() < 0.5 * deviation:
            raise Wrong(f"{what}: some values share their noise; each needs noise of its own.")
        if torch.equal(draw(mean.clone(), logvar.clone()), z):
            raise Wrong("Two draws are the same; each call must draw new noise.")
    _check_gradients(draw)


def _check_gradients(draw) -> None:
    with torch.enable_grad():
        mean, logvar = (torch.zeros(1, 2, 3, 3, 3, requires_grad=True) for _ in range(2))
        z = draw(mean, logvar)
        slopes = (None, None)
        if z.requires_grad:
            slopes = torch.autograd.grad(z.sum(), (mean, logvar), allow_unused=True)
    slopes = [torch.zeros_like(z) if slope is None else slope for slope in slopes]  # torch.normal gives zeros
    if not any(slope.any() for slope in slopes):
        raise Wrong("No gradient comes back through the draw. torch.normal and .sample() draw, and a draw cannot be "
                    "differentiated; .detach() cuts what could. Draw noise that depends on nothing, and let mean and "
                    "logvar act on it.")
    for name, slope in zip(("mean", "logvar"), slopes):
        if not slope.any():
            raise Wrong(f"No gradient reaches {name}: training could never change it.")
    if (slopes[0] - 1).abs().max() > 1e-4 or (slopes[1] - 0.5 * z.detach()).abs().max() > 1e-3:
        raise Wrong("The gradients are not those of a draw: with mean 0 and logvar 0, the slope of z by mean is 1, "
                    "and by logvar z / 2.")


# ---- 3.4 nats_by_dice


def nats_by_drawing(mean: Float[Tensor, "b c t h w"], logvar: Float[Tensor, "b c t h w"],
                    draws: int = 1000) -> Float[Tensor, " b"]:
    """KL of N(mean, exp(logvar)) from N(0, 1) in nats, summed over a clip's latent, as a mean over draws."""
    total = torch.zeros(len(mean), device=mean.device)
    for _ in range(draws):
        noise = torch.randn_like(mean)
        z = mean + (0.5 * logvar).exp() * noise
        total += 0.5 * (z.square() - noise.square() - logvar).flatten(1).sum(dim=1)  # log q(z) - log p(z)
    return total / draws


def kl_from_standard_normal(mean: Float[Tensor, "b c t h w"],
                            logvar: Float[Tensor, "b c t h w"]) -> Float[Tensor, " b"]:
    """The same without draws: 0.5 (mean^2 + variance - 1 - logvar), summed over a clip's latent."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1)


def check_nats_by_dice(nats_by_dice) -> None:
    """Nothing for a standard normal; what a mean and what a variance costs; the sum over a clip, clip by clip."""
    zero = torch.zeros(3, 4, 2, 3, 3)
    count = zero[0].numel()
    for name, mean, logvar in (
        ("mean 0 and variance 1", zero, zero),
        ("mean 0 and variance 0.01", zero, zero + math.log(0.01)),  # here draws from p are more than a wrong sign
        ("mean 1 and variance 1", zero + 1, zero),
        ("mean -2 and variance 1", zero - 2, zero),
        ("mean 0 and variance 4", zero, zero + math.log(4)),
    ):
        _check_nats(nats_by_dice, f"of {count} latent values with {name}", mean, logvar)
    mean, logvar = torch.randn(3, 4, 2, 3, 3), torch.randn(3, 4, 2, 3, 3)
    _check_nats(nats_by_dice, "of a clip of its own mean and variance everywhere", mean, logvar)


def _check_nats(nats_by_dice, of_what: str, mean: Tensor, logvar: Tensor) -> None:
    draws, count = 1000, mean[0].numel()
    got = nats_by_dice(mean.clone(), logvar.clone(), draws=draws)
    expect_shape(f"nats_by_dice of {len(mean)} clips", got, (len(mean),))
    wanted, variance = kl_from_standard_normal(mean, logvar), logvar.exp()
    # log q - log p of a value with noise e is 0.5 ((m + s e)^2 - e^2 - log v): its variance is m^2 v + 0.5 (v - 1)^2
    sigma = ((mean.square() * variance + 0.5 * (variance - 1).square()).flatten(1).sum(dim=1) / draws).sqrt()
    apart = (got - wanted).abs()
    if (apart < 5 * sigma + 0.02).all():
        return
    i = int(apart.argmax())
    said = f"nats_by_dice {of_what} is {got[i].item():.4g}; it is about {wanted[i].item():.4g}"
    for factor, why in ((1 / count, f"You average over a clip's {count} latent values; a clip's nats are their sum."),
                        (-1.0, "The sign is wrong: log q(z) minus log p(z), and z is drawn from q.")):
        if wanted[i] > 1 and abs(got[i].item() - factor * wanted[i].item()) < 5 * sigma[i].item() * abs(factor) + 0.02:
            raise Wrong(f"{said}. {why}")
    raise Wrong(f"{said}, with a scatter of {sigma[i].item():.2g}. Draw z from q = N(mean, exp(logvar)); log q(z) is "
                f"-log s - (z - m)^2 / (2 s^2), up to a constant that log p(z) has as well.")
