"""Exercises 3.1, 3.3, 3.4 and 3.5 of notebook 03 distinguish right from wrong, and name the mistake."""

import torch
from torch.distributions import Normal, kl_divergence

from minicogvx.course.exercises import find
from minicogvx.course.exercises.checking import judge
from minicogvx.course.exercises.latent_draws import kl_from_standard_normal
from minicogvx.vae.autoencoder import DiagonalGaussian
from tests.guards import guard

# ---- 3.1 best_still


def right_best_still(film, l1_weight, l2_weight):
    """Exact: between two neighbouring sorted values the error is a parabola."""
    x = film.sort(dim=0).values
    candidates = [x]
    if l2_weight:
        for below in range(len(x) + 1):
            slope = l1_weight * (2 * below - len(x)) / len(x)
            candidates.append((x.mean(dim=0) - slope / (2 * l2_weight))[None])
    candidates = torch.cat(candidates)
    apart = film[:, None] - candidates[None]
    error = l1_weight * apart.abs().mean(dim=0) + l2_weight * apart.square().mean(dim=0)
    return candidates.gather(0, error.argmin(dim=0)[None])[0]


def always_the_mean(film, l1_weight, l2_weight):
    return film.mean(dim=0)


def always_the_median(film, l1_weight, l2_weight):
    return film.median(dim=0).values


def average_of_both(film, l1_weight, l2_weight):
    total = l1_weight + l2_weight
    return (l1_weight * film.median(dim=0).values + l2_weight * film.mean(dim=0)) / total


def slope_without_the_two(film, l1_weight, l2_weight):
    return right_best_still(film, l1_weight, l2_weight / 2)


def one_number_for_all(film, l1_weight, l2_weight):
    return right_best_still(film.reshape(-1, 1), l1_weight, l2_weight).expand(film.shape[1:])


def over_the_places(film, l1_weight, l2_weight):
    return right_best_still(film.flatten(1).T, l1_weight, l2_weight)


def weights_exchanged(film, l1_weight, l2_weight):
    return right_best_still(film, l2_weight, l1_weight)


def sorted_in_place(film, l1_weight, l2_weight):
    film.copy_(film.sort(dim=0).values)
    return right_best_still(film, l1_weight, l2_weight)


def test_best_still():
    guard("3.1", right_best_still, [
        ("for L1 alone it is the median", always_the_mean),
        ("gives 0 at (0, 0, 0), with an error of 0.3; at 0.3 the error is 0.21", always_the_median),
        ("the best of a sum is not the average of the two best", average_of_both),
        ("the best of a sum is not the average of the two best", slope_without_the_two),
        ("Each place has its own best, and for L2 alone it is the mean", one_number_for_all),
        ("has shape (10,); it must be (1, 1, 3)", over_the_places),
        ("for L2 alone it is the mean", weights_exchanged),
        ("changes its input clip", sorted_in_place),
    ])


# ---- 3.3 draw


def right_draw(mean, logvar):
    return Normal(mean, torch.exp(logvar / 2)).rsample()


def without_a_path_back(mean, logvar):
    return torch.normal(mean, (0.5 * logvar).exp())


def sampled(mean, logvar):
    return Normal(mean, (0.5 * logvar).exp()).sample()


def the_mean_itself(mean, logvar):
    return mean


def variance_for_deviation(mean, logvar):
    return mean + logvar.exp() * torch.randn_like(mean)


def logvar_for_deviation(mean, logvar):
    return mean + logvar * torch.randn_like(mean)


def uniform_noise(mean, logvar):
    return mean + (0.5 * logvar).exp() * torch.rand_like(mean)


def one_noise_for_all(mean, logvar):
    return mean + (0.5 * logvar).exp() * torch.randn(())


def one_noise_for_both_clips(mean, logvar):
    return mean + (0.5 * logvar).exp() * torch.randn(mean.shape[1:])


def seeded(mean, logvar):
    return mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))


def deviation_detached(mean, logvar):
    return mean + (0.5 * logvar).exp().detach() * torch.randn_like(mean)


def gradient_with_the_noise_left_out(mean, logvar):
    z = right_draw(mean, logvar)
    return z.detach() + (mean + logvar) - (mean + logvar).detach()


def test_draw():
    guard("3.3", right_draw, [
        ("torch.normal and .sample() draw, and a draw cannot be differentiated", without_a_path_back),
        ("No gradient comes back through the draw", sampled),
        ("gives the same value everywhere", the_mean_itself),
        ("with mean 3 and standard deviation 0.5 (logvar -1.39): the standard deviation of 4,000 draws is 0.25",
         variance_for_deviation),
        ("the standard deviation is its root", logvar_for_deviation),
        ("the standard deviation of 4,000 draws is 0.14", uniform_noise),
        ("every latent value needs noise of its own", one_noise_for_all),
        ("some values share their noise", one_noise_for_both_clips),
        ("each call must draw new noise", seeded),
        ("No gradient reaches logvar", deviation_detached),
        ("The gradients are not those of a draw", gradient_with_the_noise_left_out),
    ])


# ---- 3.4 nats_by_dice


def right_nats_by_dice(mean, logvar, draws=1000):
    q, p = Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)
    z = q.sample((draws,))
    return (q.log_prob(z) - p.log_prob(z)).sum(dim=(2, 3, 4, 5)).mean(dim=0)


def without_dice(mean, logvar, draws=1000):
    return kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3, 4))


def mean_over_the_latent(mean, logvar, draws=1000):
    return right_nats_by_dice(mean, logvar, draws) / mean[0].numel()


def the_other_way_round(mean, logvar, draws=1000):
    return -right_nats_by_dice(mean, logvar, draws)


def drawn_from_the_prior(mean, logvar, draws=1000):
    q, p, z = Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0), torch.randn(draws, *mean.shape)
    return (q.log_prob(z) - p.log_prob(z)).sum(dim=(2, 3, 4, 5)).mean(dim=0)


def without_the_stretch(mean, logvar, draws=1000):
    z = mean + (0.5 * logvar).exp() * torch.randn(draws, *mean.shape)
    return (0.5 * (z.square() - (z - mean).square() / logvar.exp())).sum(dim=(2, 3, 4, 5)).mean(dim=0)


def logvar_taken_for_log_of_the_deviation(mean, logvar, draws=1000):
    return right_nats_by_dice(mean, 2 * logvar, draws)


def summed_over_draws(mean, logvar, draws=1000):
    return draws * right_nats_by_dice(mean, logvar, draws)


def the_first_three_axes_only(mean, logvar, draws=1000):
    return kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))


def one_draw(mean, logvar, draws=1000):
    return right_nats_by_dice(mean, logvar, 1)


def test_nats_by_dice():
    guard("3.4", right_nats_by_dice, [
        ("You average over a clip's 72 latent values; a clip's nats are their sum", mean_over_the_latent),
        ("log q(z) minus log p(z), and z is drawn from q", the_other_way_round),
        ("Draw z from q = N(mean, exp(logvar))", drawn_from_the_prior),
        ("with mean 0 and variance 0.01 is", without_the_stretch),
        ("with mean 0 and variance 0.01 is", logvar_taken_for_log_of_the_deviation),
        ("with mean 0 and variance 0.01 is", summed_over_draws),
        ("of 3 clips has shape (3, 3); it must be (3,)", the_first_three_axes_only),
        ("with a scatter of", one_draw),
    ])
    assert judge(find("3.4"), without_dice).state == "right"  # a formula that nobody gave


# ---- 3.5 pull_weight


def gradients(nll, gan, last_layer):
    return [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (nll, gan)]


def right_pull_weight(nll, gan, last_layer):
    of_nll, of_gan = gradients(nll, gan, last_layer)
    return torch.clamp(of_nll.square().sum().sqrt() / (of_gan.square().sum().sqrt() + 1e-4), 0, 1e4).detach()


def ratio_upside_down(nll, gan, last_layer):
    return 1 / right_pull_weight(nll, gan, last_layer)


def ratio_of_the_losses(nll, gan, last_layer):
    return (nll / (gan + 1e-4)).abs().clamp(0, 1e4).detach()


def graph_freed(nll, gan, last_layer):
    of_nll, of_gan = (torch.autograd.grad(loss, last_layer)[0] for loss in (nll, gan))
    return (of_nll.norm() / (of_gan.norm() + 1e-4)).clamp(0, 1e4)


def by_backward(nll, gan, last_layer):
    nll.backward(retain_graph=True)
    of_nll = last_layer.grad.clone()
    gan.backward(retain_graph=True)
    return (of_nll.norm() / ((last_layer.grad - of_nll).norm() + 1e-4)).clamp(0, 1e4)


def with_a_gradient(nll, gan, last_layer):
    return right_pull_weight(nll, gan, last_layer) + 0 * nll


def not_bounded(nll, gan, last_layer):
    of_nll, of_gan = gradients(nll, gan, last_layer)
    return of_nll.norm() / of_gan.norm()


def bounded_too_high(nll, gan, last_layer):
    of_nll, of_gan = gradients(nll, gan, last_layer)
    return of_nll.norm() / (of_gan.norm() + 1e-4)


def squares_for_norms(nll, gan, last_layer):
    of_nll, of_gan = gradients(nll, gan, last_layer)
    return (of_nll.square().sum() / (of_gan.square().sum() + 1e-4)).clamp(0, 1e4)


def test_pull_weight():
    guard("3.5", right_pull_weight, [
        ("That is the ratio upside down", ratio_upside_down),
        ("the ratio of the norms over the whole tensor", ratio_of_the_losses),
        ("retain_graph=True", graph_freed),
        ("leaves a gradient in last_layer.grad", by_backward),
        ("The weight still belongs to the graph", with_a_gradient),
        ("pull_weight is inf; add 1e-4 to the denominator", not_bounded),
        ("clamped to 0..1e4, it must be 1e4", bounded_too_high),
        ("A norm is the root of the sum of squares", squares_for_norms),
    ])


# ---- what replaces the learner's own


def test_the_references_are_what_the_package_computes():
    posterior = DiagonalGaussian(torch.randn(2, 8, 3, 4, 4))
    torch.testing.assert_close(kl_from_standard_normal(posterior.mean, posterior.logvar), posterior.kl())
    by_dice = find("3.4").reference(posterior.mean, posterior.logvar, draws=2000)
    torch.testing.assert_close(by_dice, posterior.kl(), rtol=0.05, atol=1.0)
    torch.manual_seed(0)
    z = find("3.3").reference(posterior.mean, posterior.logvar)
    torch.testing.assert_close(z, posterior.sample(torch.Generator().manual_seed(0)))


def test_the_best_still_is_median_and_mean():
    film = torch.rand(7, 4, 4, 3)
    best_still = find("3.1").reference
    torch.testing.assert_close(best_still(film, 0.0, 1.0), film.mean(dim=0), atol=1e-5, rtol=0)
    torch.testing.assert_close(best_still(film, 1.0, 0.0), film.median(dim=0).values, atol=1e-5, rtol=0)
