"""Exercises of notebook 03, what the VAE learns from: the best still, a training loop, the latent's draw and its price,
the adaptive weight, and what several seeds can tell."""

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_shape
from minicogvx.course.exercises.latent_draws import (
    check_draw,
    check_nats_by_dice,
    draw_with_gradient,
    nats_by_drawing,
)
from minicogvx.course.exercises.seeds_told import check_can_be_told, told_of_pairs
from minicogvx.course.exercises.training_loop import check_teach, train_on_batches
from minicogvx.vae.gan import adaptive_weight

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
    given, what = film.clone(), f"best_still(clip, {l1_weight:g}, {l2_weight:g}) of {name}"
    still = best_still(given, l1_weight, l2_weight)
    if not torch.equal(given, film):
        raise Wrong("best_still changes its input clip; work on a copy: clip.clone().")
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
        raise Wrong("The weight still belongs to the graph, so training would differentiate it, too; detach it.")
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
            "The slope is l1_weight * (c - clip).sign().mean(dim=0) + 2 * l2_weight * (c - clip).mean(dim=0). Where "
            "it is positive, c is too large.",
            "Halve an interval: low = clip.amin(dim=0), high = clip.amax(dim=0). Take the middle 30 times or more; "
            "torch.where(slope > 0, middle, high) is the new high, and low goes the other way.",
        ),
    ),
    Exercise(
        "3.2", "teach", difficulty=2, minutes=15, reference=train_on_batches, check=check_teach,
        hints=(
            "Four things happen for each video: a copy, a loss, a gradient, a step. PyTorch adds each gradient to what "
            "is left of the last one. Who clears it, and when?",
            "copy, posterior = vae(video); total = loss(video, copy, posterior). total.backward() makes the gradient, "
            "optimizer.step() uses it, optimizer.zero_grad() clears it, before the next backward and not between these "
            "two.",
            "Collect total.item(), a plain number: a list of tensors would keep the graph of every step alive.",
        ),
    ),
    Exercise(
        "3.3", "draw", difficulty=1, minutes=10, reference=draw_with_gradient, check=check_draw,
        hints=(
            "torch.normal(mean, std) has the right distribution but no gradient. Which random numbers need neither "
            "mean nor std?",
            "torch.randn_like(mean) is standard normal and depends on nothing. How do you give such a number another "
            "mean and another spread?",
            "The standard deviation is the root of the variance, (0.5 * logvar).exp(). Multiply by it, then add the "
            "mean.",
        ),
    ),
    Exercise(
        "3.4", "nats_by_dice", difficulty=2, minutes=15, reference=nats_by_drawing, check=check_nats_by_dice,
        hints=(
            "Draw z with your draw, many times. How much more likely is each z under N(mean, exp(logvar)) than under "
            "N(0, 1)?",
            "torch.distributions.Normal(m, s).log_prob(z) is the logarithm of a density; s is the standard "
            "deviation. You need one for q and one for p.",
            "In a loop over draws, add (log_q - log_p).flatten(1).sum(dim=1), one number for each clip; divide by "
            "draws at the end.",
        ),
    ),
    Exercise(
        "3.5", "pull_weight", difficulty=2, minutes=15, reference=adaptive_weight, check=check_pull_weight,
        hints=(
            "How strongly does a loss pull at last_layer? torch.autograd.grad(loss, last_layer) gives a tuple with "
            "the gradient, and the norm of that is the pull.",
            "Both gradients with retain_graph=True, or training cannot go back through the graph. By what factor must "
            "the GAN's be multiplied to be as long as the other?",
            "(norm of nll's) / (norm of gan's + 1e-4), then .clamp(0, 1e4) and .detach().",
        ),
    ),
    Exercise(
        "3.6", "can_be_told", difficulty=2, minutes=15, reference=told_of_pairs, check=check_can_be_told,
        hints=(
            "Some seeds are good for both variants and some bad for both. Which numbers, one for each seed, are free "
            "of that?",
            "Take the differences, new minus old, seed by seed. Their mean lies within t * s / sqrt(n) of the truth in "
            "95 of 100 studies, where s is their standard deviation (divide by n - 1).",
            "scipy.stats.t.ppf(0.975, n - 1) is t: 2.78 for five seeds, not 1.96. If the whole interval is above 0, "
            "say higher; below 0, lower.",
        ),
    ),
)
