"""Exercises of notebook 03, what the VAE learns from: the best still, PSNR, KL, hinge losses, the adaptive weight."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_close, expect_shape
from minicogvx.vae.gan import adaptive_weight, hinge_discriminator_loss, hinge_generator_loss

# ---- 3.1 best_still


def constant_of_least_error(film: Float[Tensor, "t *place"], l1_weight: float,
                            l2_weight: float) -> Float[Tensor, "*place"]:
    """At each place the number c of least `l1_weight` mean |x - c| + `l2_weight` mean (x - c)^2 over the frames x.

    The error is convex in c, so its slope changes sign once; bisection finds where.
    """
    low, high = film.amin(dim=0), film.amax(dim=0)
    for _ in range(40):
        middle = (low + high) / 2
        slope = l1_weight * (middle - film).sign().mean(dim=0) + 2 * l2_weight * (middle - film).mean(dim=0)
        low, high = torch.where(slope > 0, low, middle), torch.where(slope > 0, middle, high)
    return (low + high) / 2


def check_best_still(best_still) -> None:
    """The mean for L2, a median for L1, and for both together no picture with a smaller error."""
    bright = torch.zeros(10, 1, 1, 3)
    bright[:3] = 1
    films = {"a pixel that is 1 in 3 of 10 frames and 0 in the others": bright,
             "random pixels, 5 frames": torch.rand(5, 4, 2, 3), "random pixels, 6 frames": torch.rand(6, 2, 2, 3)}
    for l1_weight, l2_weight in ((0.0, 1.0), (1.0, 0.0), (1.0, 2.0), (2.0, 0.5)):
        for name, film in films.items():
            _check_still(best_still, name, film, l1_weight, l2_weight)


def _check_still(best_still, name: str, film: Tensor, l1_weight: float, l2_weight: float) -> None:
    given, what = film.clone(), f"best_still(film, {l1_weight:g}, {l2_weight:g}) of {name}"
    still = best_still(given, l1_weight, l2_weight)
    if not torch.equal(given, film):
        raise Wrong("best_still changes its input film; work on a copy: film.clone().")
    expect_shape(what, still, tuple(film.shape[1:]))
    still, wanted = still.double(), constant_of_least_error(film.double(), l1_weight, l2_weight)
    if not torch.isfinite(still).all():
        raise Wrong(f"{what} holds NaN or infinity.")
    mine, best = (_error_of(film.double(), one, l1_weight, l2_weight) for one in (still, wanted))
    worst = tuple(int(i) for i in torch.unravel_index((mine - best).argmax(), mine.shape))
    if mine[worst] - best[worst] < 1e-4:
        return
    rule = "it needs care where both weights count: the best of a sum is not the average of the two best"
    if not l1_weight or not l2_weight:
        rule = "for L2 alone it is the mean" if not l1_weight else "for L1 alone it is the median"
    raise Wrong(f"{what} gives {still[worst].item():.3g} at {worst}, with an error of {mine[worst].item():.4g}; at "
                f"{wanted[worst].item():.3g} the error is {best[worst].item():.4g}. Each place has its own best, and "
                f"{rule}.")


def _error_of(film: Tensor, still: Tensor, l1_weight: float, l2_weight: float) -> Tensor:
    apart = film - still
    return l1_weight * apart.abs().mean(dim=0) + l2_weight * apart.square().mean(dim=0)


# ---- 3.2 psnr_of_clips


def decibels_of_clips(video: Float[Tensor, "b c t h w"], copy: Float[Tensor, "b c t h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each clip in dB, pixels in -1..1 (peak 2); the copy is clamped first."""
    error = (video.float() - copy.float().clamp(-1, 1)).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error)


def check_psnr_of_clips(psnr_of_clips) -> None:
    """A known error, one number a clip, the mean before the logarithm, and copies that overshoot."""
    video = torch.rand(2, 3, 5, 4, 4) * 1.6 - 0.8
    error = torch.tensor([0.02, 0.1]).reshape(2, 1, 1, 1, 1)
    got = _decibels(psnr_of_clips, video, video + error)
    wanted = decibels_of_clips(video, video + error)
    if torch.allclose(got, wanted - 20 * math.log10(2), atol=0.05):
        raise Wrong(f"psnr_of_clips gives {got[0].item():.2f} dB where every pixel is off by 0.02; it must be "
                    f"{wanted[0].item():.2f}. Pixels run from -1 to 1, so the peak is 2.")
    if torch.allclose(got[0], got[1], atol=0.05):
        raise Wrong(f"Two clips with errors of 0.02 and 0.1 both get {got[0].item():.2f} dB; each clip has its own "
                    f"error, so average over c t h w and keep b.")
    expect_close("psnr_of_clips of two clips whose pixels are off by 0.02 and by 0.1,", got, wanted, atol=0.02)
    uneven = video.clone()
    uneven[:, :, 0] += 0.1
    uneven[:, :, 1:] += 0.001
    got, wanted = _decibels(psnr_of_clips, video, uneven), decibels_of_clips(video, uneven)
    if not torch.allclose(got, wanted, atol=0.05):
        raise Wrong(f"In a clip of 5 frames the first is off by 0.1, the others by 0.001: psnr_of_clips gives "
                    f"{got[0].item():.2f} dB; it must be {wanted[0].item():.2f}. Average the squared error over the "
                    f"whole clip first, and take the logarithm then.")
    over = torch.where(torch.rand_like(video) < 0.5, 1.5, video + 0.1)
    true = torch.where(over == 1.5, 1.0, video)
    got, wanted = _decibels(psnr_of_clips, true, over), decibels_of_clips(true, over)
    if not torch.allclose(got, wanted, atol=0.02):
        raise Wrong(f"A copy holds 1.5 where the video is 1; shown, both are the brightest there is. psnr_of_clips "
                    f"gives {got[0].item():.2f} dB; with the copy clamped to -1..1 it must be {wanted[0].item():.2f}.")


def _decibels(psnr_of_clips, video: Tensor, copy: Tensor) -> Tensor:
    got = psnr_of_clips(video.clone(), copy.clone())
    expect_shape(f"psnr_of_clips of {len(video)} clips", got, (len(video),))
    if (got < 0).all():
        raise Wrong(f"psnr_of_clips gives {got[0].item():.2f} dB for a good copy; less error must be more decibels.")
    return got


# ---- 3.3 nats_per_clip


def kl_from_standard_normal(mean: Float[Tensor, "b c t h w"],
                            logvar: Float[Tensor, "b c t h w"]) -> Float[Tensor, " b"]:
    """KL of N(mean, exp(logvar)) from N(0, 1) in nats, summed over a clip's latent: one number a clip."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1)


def check_nats_per_clip(nats_per_clip) -> None:
    """Nothing for a standard normal; what a mean and what a variance costs; the sum over a clip, clip by clip."""
    zero = torch.zeros(3, 4, 2, 3, 3)
    count = zero[0].numel()
    for name, mean, logvar, why in (
        ("mean 0 and variance 1", zero, zero, "That is the standard normal itself."),
        ("mean 1 and variance 1", zero + 1, zero, "A mean m costs m^2 / 2."),
        ("mean -2 and variance 1", zero - 2, zero, "A mean m costs m^2 / 2, whatever its sign."),
        ("mean 0 and variance 0.01", zero, zero + math.log(0.01),
         "logvar is the logarithm of the variance, so the variance is exp(logvar)."),
        ("mean 0 and variance 4", zero, zero + math.log(4), "Too wide costs, too: nothing may be below 0."),
    ):
        got = nats_per_clip(mean.clone(), logvar.clone())
        expect_shape(f"nats_per_clip of 3 clips with {name}", got, (3,))
        wanted = kl_from_standard_normal(mean, logvar)[0].item()
        if abs(got[0].item() * count - wanted) < 1e-2 and wanted:
            raise Wrong(f"nats_per_clip gives the mean over a clip's {count} latent numbers, {got[0].item():.4g}; it "
                        f"must be their sum, {wanted:.4g}.")
        if not abs(got[0].item() - wanted) < 1e-2:
            raise Wrong(f"nats_per_clip of {count} latent numbers with {name} is {got[0].item():.4g}; it must be "
                        f"{wanted:.4g}. {why}")
    mean, logvar = torch.randn(3, 4, 2, 3, 3), torch.randn(3, 4, 2, 3, 3)
    expect_close("nats_per_clip(mean, logvar) of three different clips", nats_per_clip(mean, logvar),
                 kl_from_standard_normal(mean, logvar), atol=1e-2)


# ---- 3.4 hinge_losses


def both_hinge_losses(real: Float[Tensor, "*patch"],
                      fake: Float[Tensor, "*patch"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """What the discriminator minimises, and what the autoencoder minimises, from logits of patches (high is "real")."""
    return hinge_discriminator_loss(real, fake), hinge_generator_loss(fake)


def check_hinge_losses(hinge_losses) -> None:
    """Undecided, sure, mistaken; no reward beyond the margin; patch by patch."""
    for name, real, fake, why in (
        ("all logits are 0, so it is undecided", [0, 0], [0, 0], "Both margins are missed by 1."),
        ("it is sure: 1 for real and -1 for fake patches", [1, 1], [-1, -1], "Both margins are just reached."),
        ("it is surer than it need be: 3 and -5", [3, 3], [-5, -5], "Beyond the margin there is nothing to gain."),
        ("it takes everything for real: all logits are 1", [1, 1], [1, 1], "Only the fake patches miss the margin."),
        ("it takes everything for fake: all logits are -2", [-2, -2], [-2, -2],
         "Only the real patches miss the margin."),
        ("patches differ: real 3 and -1, fake -3 and 1", [3, -1], [-3, 1],
         "Each patch has its own margin: first max, then the mean."),
    ):
        real, fake = (torch.tensor(logits).float().reshape(2, 1, 1, 1) for logits in (real, fake))
        got = hinge_losses(real.clone(), fake.clone())
        if got is None:
            raise Wrong("hinge_losses is None; does your function end in return?")
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise Wrong(f"hinge_losses gives one {type(got).__name__}; it must be two losses, the discriminator's and "
                        f"the autoencoder's.")
        for who, mine, wanted in zip(("discriminator", "autoencoder"), got, both_hinge_losses(real, fake)):
            expect_shape(f"The {who}'s loss", mine, ())
            if abs(mine.item() - wanted.item()) > 1e-4:
                reason = why if who == "discriminator" else "It is minus the mean logit of the fake patches."
                raise Wrong(f"The {who}'s loss is {mine.item():.3g} where {name}; it must be {wanted.item():.3g}. "
                            f"{reason}")


# ---- 3.5 pull_weight


def check_pull_weight(pull_weight) -> None:
    """A ratio of norms, without a gradient and without a trace; where the GAN's gradient vanishes, no more than 1e4."""
    with torch.enable_grad():
        for factor in (1.0, 4.0, 0.1):
            nll, gan, last_layer = _two_losses(factor)
            wanted = adaptive_weight(nll, gan, last_layer).item()  # first: the check of the graph uses it up
            got = _weight(pull_weight, nll, gan, last_layer)
            what = f"Where the two gradients have the norms {wanted * factor:.3g} and {factor:.3g}, pull_weight"
            if abs(got - 1 / wanted) < 1e-2 * got:
                raise Wrong(f"{what} is {got:.4g}; it must be {wanted:.4g}. That is the ratio upside down: the "
                            f"larger the GAN's gradient, the smaller its weight.")
            if abs(got - wanted ** 2) < 1e-2 * got:
                raise Wrong(f"{what} is {got:.4g}; it must be {wanted:.4g}. A norm is the root of the sum of squares.")
            if abs(got - wanted) > 1e-2 * wanted:
                raise Wrong(f"{what} is {got:.4g}; it must be {wanted:.4g}, the ratio of the norms over the whole "
                            f"tensor.")
        nll, gan, last_layer = _two_losses(0.0)
        got = _weight(pull_weight, nll, gan, last_layer)
        if abs(got - 1e4) > 1:
            raise Wrong(f"Where the GAN has no gradient at all, pull_weight is {got:.4g}; with 1e-4 added to the "
                        f"denominator, and the result clamped to 0..1e4, it must be 1e4.")


def _two_losses(factor: float) -> tuple[Tensor, Tensor, Tensor]:
    # Two losses of a small last layer: gradients of the norms 2.5 and `factor`, with mixed signs.
    last_layer = torch.randn(3, 4, requires_grad=True)
    toward, away = torch.randn(2, 3, 4)
    squared = last_layer.square()  # as a step in between: a graph that is freed too early is noticed
    kept = squared - squared.detach()
    nll = ((last_layer * toward).sum() / toward.norm()) * 2.5 + 0 * kept.sum()
    gan = ((last_layer * away).sum() / away.norm()) * factor + 0 * kept.sum()
    return nll, gan, last_layer


def _weight(pull_weight, nll: Tensor, gan: Tensor, last_layer: Tensor) -> float:
    got = pull_weight(nll, gan, last_layer)
    expect_shape("pull_weight(nll, gan, last_layer)", got, ())
    if last_layer.grad is not None:
        raise Wrong("pull_weight leaves a gradient in last_layer.grad, which the optimizer would add to its step; "
                    "torch.autograd.grad only returns it.")
    if got.requires_grad:
        raise Wrong("The weight carries a gradient, so training would change it by its own slope; detach it.")
    if not torch.isfinite(got):
        raise Wrong(f"pull_weight is {got.item()}; add 1e-4 to the denominator, and clamp.")
    try:
        (nll + got * gan).backward()
    except RuntimeError as error:
        raise Wrong("After pull_weight the total cannot be differentiated any more: its graph was freed. Ask for "
                    "retain_graph=True.") from error
    last_layer.grad = None
    return got.item()


EXERCISES = (
    Exercise(
        "3.1", "best_still", difficulty=3, minutes=20, reference=constant_of_least_error, check=check_best_still,
        hints=(
            "Every place stands alone, and its error is a valley in c. At the bottom the slope is 0. What is the "
            "slope of |x - c|, and what that of (x - c)^2?",
            "The slope is l1_weight * (c - film).sign().mean(dim=0) + 2 * l2_weight * (c - film).mean(dim=0). Where "
            "it is positive, c is too large.",
            "Halve an interval: low = film.amin(dim=0), high = film.amax(dim=0). Take the middle 30 times or more; "
            "torch.where(slope > 0, middle, high) is the new high, and low goes the other way.",
        ),
    ),
    Exercise(
        "3.2", "psnr_of_clips", difficulty=1, minutes=10, reference=decibels_of_clips, check=check_psnr_of_clips,
        hints=(
            "PSNR is 10 log10(peak^2 / mean squared error). How far apart are the darkest and the brightest pixel?",
            "The copy may overshoot: copy.clamp(-1, 1). Then the squared error, .flatten(1).mean(dim=1), one for "
            "each clip.",
            "10 * torch.log10(4 / error), with the logarithm last.",
        ),
    ),
    Exercise(
        "3.3", "nats_per_clip", difficulty=1, minutes=10, reference=kl_from_standard_normal, check=check_nats_per_clip,
        hints=(
            "For one number with mean m and variance v it is (m^2 + v - 1 - log v) / 2. Which of these do you have, "
            "and which must be computed from logvar?",
            "v is logvar.exp(), and log v is logvar itself. With m = 0 and v = 1 it must be 0.",
            "Sum over all axes but the first: .flatten(1).sum(dim=1).",
        ),
    ),
    Exercise(
        "3.4", "hinge_losses", difficulty=1, minutes=10, reference=both_hinge_losses, check=check_hinge_losses,
        hints=(
            "The discriminator wants real logits of at least 1 and fake ones of at most -1. By how much does a patch "
            "miss its margin?",
            "A real patch misses by max(0, 1 - real), a fake one by max(0, 1 + fake); torch.relu is max(0, ...). "
            "Half of each mean.",
            "The autoencoder's loss is -fake.mean(): no margin there. Return both, the discriminator's first.",
        ),
    ),
    Exercise(
        "3.5", "pull_weight", difficulty=2, minutes=15, reference=adaptive_weight, check=check_pull_weight,
        hints=(
            "How strongly does a loss pull at last_layer? torch.autograd.grad(loss, last_layer) gives a tuple with "
            "the gradient.",
            "Both gradients with retain_graph=True, or training cannot go back through the graph. The pull is "
            "gradient.norm().",
            "(norm of nll's) / (norm of gan's + 1e-4), then .clamp(0, 1e4) and .detach().",
        ),
    ),
)
