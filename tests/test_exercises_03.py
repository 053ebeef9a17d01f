"""Exercises of notebook 03 distinguish right from wrong, and name the mistake."""

import torch
import torch.nn.functional as F

from minicogvx.course.exercises import find
from minicogvx.evaluation.reconstruction import flicker
from minicogvx.training.vae import psnr
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
        ("changes its input film", sorted_in_place),
    ])


# ---- 3.2 psnr_of_clips


def right_psnr_of_clips(video, copy):
    error = (video - copy.clamp(min=-1, max=1)).pow(2).mean(dim=(1, 2, 3, 4))
    return 20 * torch.log10(2 / error.sqrt())


def peak_of_one(video, copy):
    return right_psnr_of_clips(video, copy) - 20 * torch.log10(torch.tensor(2.0))


def not_clamped(video, copy):
    return 10 * torch.log10(4 / (video - copy).square().flatten(1).mean(dim=1))


def one_for_all_clips(video, copy):
    return (10 * torch.log10(4 / (video - copy.clamp(-1, 1)).square().mean())).expand(len(video))


def mean_of_decibels(video, copy):
    error = (video - copy.clamp(-1, 1)).square().mean(dim=(1, 3, 4))  # b t
    return (10 * torch.log10(4 / error)).mean(dim=1)


def a_scalar(video, copy):
    return right_psnr_of_clips(video, copy).mean()


def natural_logarithm(video, copy):
    return 10 * (4 / (video - copy.clamp(-1, 1)).square().flatten(1).mean(dim=1)).log()


def test_psnr_of_clips():
    guard("3.2", right_psnr_of_clips, [
        ("gives 33.98 dB where every pixel is off by 0.02; it must be 40.00", peak_of_one),
        ("with the copy clamped to -1..1 it must be", not_clamped),
        ("each clip has its own error, so average over c t h w and keep b", one_for_all_clips),
        ("first, and take the logarithm then", mean_of_decibels),
        ("of 2 clips has shape (); it must be (2,)", a_scalar),
        ("at (0,) it is 92.1; it must be 40", natural_logarithm),
    ])


# ---- 3.3 nats_per_clip


def right_nats_per_clip(mean, logvar):
    normal, standard = torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    return torch.distributions.kl_divergence(normal, standard).sum(dim=(1, 2, 3, 4))


def mean_over_the_latent(mean, logvar):
    return right_nats_per_clip(mean, logvar) / mean[0].numel()


def logvar_taken_for_log_of_the_deviation(mean, logvar):
    return right_nats_per_clip(mean, 2 * logvar)


def without_the_half(mean, logvar):
    return 2 * right_nats_per_clip(mean, logvar)


def wrong_sign_of_the_logarithm(mean, logvar):
    return 0.5 * (mean.square() + logvar.exp() - 1 + logvar).flatten(1).sum(1)


def the_mean_not_squared(mean, logvar):
    return 0.5 * (mean + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def the_first_three_axes_only(mean, logvar):
    return (0.5 * (mean.square() + logvar.exp() - 1 - logvar)).sum(dim=(1, 2, 3))  # as a released program does


def test_nats_per_clip():
    guard("3.3", right_nats_per_clip, [
        ("it must be their sum, 36", mean_over_the_latent),
        ("logvar is the logarithm of the variance", logvar_taken_for_log_of_the_deviation),
        ("with mean 1 and variance 1 is 72; it must be 36", without_the_half),
        ("with mean 0 and variance 0.01 is", wrong_sign_of_the_logarithm),
        ("whatever its sign", the_mean_not_squared),
        ("has shape (3, 3); it must be (3,)", the_first_three_axes_only),
    ])


# ---- 3.4 hinge_losses


def right_hinge_losses(real, fake):
    missed = (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
    return missed / 2, -fake.mean()


def without_relu(real, fake):
    return 0.5 * ((1 - real).mean() + (1 + fake).mean()), -fake.mean()


def relu_after_the_mean(real, fake):
    return 0.5 * (F.relu(1 - real.mean()) + F.relu(1 + fake.mean())), -fake.mean()


def hinge_without_the_half(real, fake):
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean(), -fake.mean()


def signs_exchanged(real, fake):
    return right_hinge_losses(fake, real)[0], -fake.mean()


def cross_entropy(real, fake):
    both = F.softplus(-real).mean() + F.softplus(fake).mean()
    return 0.5 * both, F.softplus(-fake).mean()


def generator_that_wants_to_look_fake(real, fake):
    return right_hinge_losses(real, fake)[0], fake.mean()


def one_loss_only(real, fake):
    return right_hinge_losses(real, fake)[0]


def test_hinge_losses():
    guard("3.4", right_hinge_losses, [
        ("Beyond the margin there is nothing to gain", without_relu),
        ("first max, then the mean", relu_after_the_mean),
        ("discriminator's loss is 2 where all logits are 0, so it is undecided; it must be 1", hinge_without_the_half),
        ("The discriminator's loss is 2 where it is sure", signs_exchanged),
        ("The discriminator's loss is 0.693 where all logits are 0", cross_entropy),
        ("The autoencoder's loss is -1 where it is sure: 1 for real and -1 for fake patches; it must be 1",
         generator_that_wants_to_look_fake),
        ("gives one Tensor; it must be two losses", one_loss_only),
    ])


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
        ("carries a gradient", with_a_gradient),
        ("pull_weight is inf; add 1e-4 to the denominator", not_bounded),
        ("clamped to 0..1e4, it must be 1e4", bounded_too_high),
        ("A norm is the root of the sum of squares", squares_for_norms),
    ])


# ---- what replaces the learner's own


def test_the_references_are_what_the_package_computes():
    video, copy = torch.rand(2, 2, 3, 5, 4, 4) * 2 - 1
    each = find("3.2").reference(video, copy)
    for i in range(2):
        assert abs(each[i].item() - psnr(video[i:i + 1], copy[i:i + 1])) < 1e-3
    moments = torch.randn(2, 8, 3, 4, 4)
    posterior = DiagonalGaussian(moments)
    nats = find("3.3").reference(posterior.mean, posterior.logvar)
    torch.testing.assert_close(nats, posterior.kl())


def test_the_best_still_is_median_and_mean():
    film = torch.rand(7, 4, 4, 3)
    best_still = find("3.1").reference
    torch.testing.assert_close(best_still(film, 0.0, 1.0), film.mean(dim=0), atol=1e-5, rtol=0)
    torch.testing.assert_close(best_still(film, 1.0, 0.0), film.median(dim=0).values, atol=1e-5, rtol=0)
    assert flicker(best_still(film, 1.0, 0.0).expand(2, -1, -1, -1)) == 0
