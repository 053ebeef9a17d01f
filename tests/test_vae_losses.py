"""Losses of the VAE: each by hand, and the whole with its gradients."""

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicogvx.interop import lpips_weights
from minicogvx.vae import DiagonalGaussian
from minicogvx.vae.discriminator import DiscriminatorConfig, PatchDiscriminator3D
from minicogvx.vae.gan import adaptive_weight, gradient_penalty, hinge_discriminator_loss, hinge_generator_loss
from minicogvx.vae.losses import VAELoss, VAELossConfig, reconstruction_l1
from minicogvx.vae.perceptual import PerceptualDistance, _unit

pytestmark = pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight")
SMALL = DiscriminatorConfig(width=4, stages=2, num_frames=5)


@pytest.fixture(scope="module")
def alex():
    """LPIPS: the real one where its weights are on this machine, else a random trunk with real linear layers."""
    if lpips_weights.lpips_source("alex"):
        return lpips_weights.load_lpips("alex")
    torch.manual_seed(0)
    return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)


def clips(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(shape[0], shape[1], shape[2], 8, 8, generator=generator) * 2 - 1
    return F.interpolate(coarse, size=shape[2:], mode="nearest")


# LPIPS of videos


def test_perceptual_distance_is_lpips_over_all_frames_under_autocast_too(alex):
    a, b = clips(2, 3, 3, 40, 48, seed=1), clips(2, 3, 3, 40, 48, seed=2)
    distance = PerceptualDistance(alex)
    with torch.no_grad():
        frames = [x.transpose(1, 2).flatten(0, 1) for x in (a, b)]
        expected = alex(*frames).mean().item()
        assert distance(a, b).item() == pytest.approx(expected, rel=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = distance(a, b)
            assert distance(a, a.clone()) == 0
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(expected, rel=0.02)


def test_perceptual_distance_orders_changes(alex):
    distance, video = PerceptualDistance(alex), clips(1, 3, 2, 64, 64)
    blurred = F.avg_pool3d(F.pad(video, (1, 1, 1, 1, 0, 0), mode="replicate"), (1, 3, 3), 1)
    slightly = 0.7 * video + 0.3 * blurred
    noisy = video + 0.7 * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same, slight, noise = (distance(video, x).item() for x in (video.clone(), slightly, noisy))
    assert same == 0 < slight < 0.5 * noise


def test_perceptual_distance_on_chosen_frames(alex):
    video, spoiled = clips(2, 3, 4, 32, 32), clips(2, 3, 4, 32, 32)
    spoiled[:, :, 2] *= -1  # only frame 2 differs
    with torch.no_grad():
        every = PerceptualDistance(alex)(video, spoiled).item()
        one = PerceptualDistance(alex, frames=1)
        draws = [one(video, spoiled, torch.Generator().manual_seed(seed)).item() for seed in range(40)]
        again = one(video, spoiled, torch.Generator().manual_seed(7)).item()
    assert draws[7] == again and min(draws) == 0 and max(draws) > every
    assert np.mean(draws) == pytest.approx(every, rel=0.5)


def test_perceptual_distance_sizes(alex):
    tiny = clips(1, 3, 1, 16, 16)
    with pytest.raises(ValueError, match="16x16 pixels with lpips_upscale=1; 31"):
        PerceptualDistance(alex)(tiny, -tiny)
    with torch.no_grad():
        enlarged = F.interpolate(tiny[:, :, 0], scale_factor=2, mode="bilinear")
        expected = alex(enlarged, -enlarged).item()
        distance = PerceptualDistance(alex, upscale=2)
        assert distance(tiny, -tiny).item() == pytest.approx(expected, rel=1e-5)
        edge = torch.rand(1, 3, 1, 31, 31)
        assert PerceptualDistance(alex)(edge, -edge).isfinite()
        with pytest.raises(RuntimeError):  # 31 is indeed the least
            alex(edge[:, :, 0, :30, :30], edge[:, :, 0, :30, :30])


def test_perceptual_distance_gradients(alex):
    distance, video = PerceptualDistance(alex), clips(1, 3, 1, 64, 64)
    reconstruction = (0.5 * video).requires_grad_()
    distance(video, reconstruction).backward()
    assert reconstruction.grad.abs().sum() > 0 and all(p.grad is None for p in distance.parameters())
    thawed = lpips.LPIPS(net="alex", pnet_rand=True, pnet_tune=True, verbose=False).train()
    distance = PerceptualDistance(thawed)  # a model from elsewhere is frozen, too
    assert not thawed.training and not any(p.requires_grad for p in distance.parameters())
    silent = torch.zeros(1, 4, 2, 2, requires_grad=True)  # lpips itself gives NaN here
    _unit(silent).sum().backward()
    assert silent.grad.isfinite().all()
    assert not distance.train().model.training  # else dropout


# Formulas


def posterior_of(mean, logvar):
    return DiagonalGaussian(torch.cat([mean, logvar], dim=1))


def test_l1_hinge_and_gradient_penalty_by_hand():
    assert reconstruction_l1(torch.zeros(1, 1, 1, 1, 2), torch.tensor([[[[[1.0, -3.0]]]]])).item() == 2
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0, 1.0])
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert hinge_generator_loss(fake).item() == pytest.approx(1 / 3)

    class Linear(nn.Module):
        def forward(self, x):
            return 2 * x.sum(1)

    video = torch.zeros(3, 1, 2, 2, 2)  # gradient 2 at 8 places: squared norm 32
    assert gradient_penalty(Linear(), video, "r1").item() == pytest.approx(32)
    assert gradient_penalty(Linear(), video, "unit_norm").item() == pytest.approx((32**0.5 - 1) ** 2)


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    nll, gan = (3 * layer).sum(), (layer * torch.tensor([0.0, 0.5])).sum()
    assert adaptive_weight(nll, gan, layer).item() == pytest.approx(3 * 2**0.5 / (0.5 + 1e-4))
    assert adaptive_weight(nll, 0 * gan, layer).item() == 1e4  # clamped
    assert not adaptive_weight(nll, gan, layer).requires_grad


# The whole loss


class TinyDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv3d(2, 4, 1), nn.Conv3d(4, 3, 1)

    def forward(self, z):
        return self.last(F.interpolate(self.first(z), size=(5, 32, 32)))


def setting(seed=0):
    torch.manual_seed(seed)
    decoder, mean, logvar = TinyDecoder(), torch.randn(2, 2, 2, 4, 4), torch.randn(2, 2, 2, 4, 4)
    return decoder, clips(2, 3, 5, 32, 32), mean.requires_grad_(), logvar.requires_grad_()


def loss_with(alex, **fields):
    torch.manual_seed(1)
    fields = {"gan_start": 10, "lpips_net": "alex", "lpips_frames": None, "kl_weight": 0.5} | fields
    config = VAELossConfig(**fields)
    return VAELoss(config, PatchDiscriminator3D(SMALL), PerceptualDistance(alex, config.lpips_frames))


NAMES = {"total", "l1", "l2", "lpips", "kl", "kl_per_element", "gan_generator", "gan_weight"}


def test_total_before_the_gan(alex):
    decoder, video, mean, logvar = setting()
    losses = loss_with(alex, l1_weight=2.0, lpips_weight=0.3)
    parts = losses.autoencoder(video, decoder(mean), posterior_of(mean, logvar), step=9)
    assert set(parts) == NAMES and all(part.shape == () for part in parts.values())
    expected = 2 * parts["l1"] + 0.3 * parts["lpips"] + 0.5 * parts["kl"] / (3 * 5 * 32 * 32)
    assert parts["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert parts["kl_per_element"].item() == pytest.approx(parts["kl"].item() / 64)
    assert parts["gan_generator"] == 0 and parts["gan_weight"] == 0
    assert [name for name, part in parts.items() if part.requires_grad] == ["total"]
    parts = loss_with(alex, l1_weight=0.0, l2_weight=3.0, lpips_weight=0.0, kl_weight=0.0).autoencoder(
        video, decoder(mean), posterior_of(mean, logvar), step=9)
    assert parts["l2"].item() == pytest.approx((video - decoder(mean)).square().mean().item(), rel=1e-6)
    assert parts["total"].item() == pytest.approx(3 * parts["l2"].item(), rel=1e-6)


def test_gan_from_its_start_step(alex):
    decoder, video, mean, logvar = setting()
    losses, last = loss_with(alex, lpips_weight=0.0, gan_weight=0.8), decoder.last.weight
    parts = losses.autoencoder(video, decoder(mean), posterior_of(mean, logvar), step=10, last_layer=last)
    reconstruction = decoder(mean)
    gan = -losses.discriminator_net(reconstruction).mean()
    g, = torch.autograd.grad(gan, last, retain_graph=True)
    r, = torch.autograd.grad((video - reconstruction).abs().mean(), last)
    weight = 0.8 * (r.norm() / (g.norm() + 1e-4)).item()
    assert parts["gan_generator"].item() == pytest.approx(gan.item(), rel=1e-5)
    assert parts["gan_weight"].item() == pytest.approx(weight, rel=1e-4)
    without = parts["l1"] + 0.5 * parts["kl"] / (3 * 5 * 32 * 32)
    assert parts["total"].item() == pytest.approx((without + weight * gan).item(), rel=1e-4)
    parts["total"].backward()
    assert all(p.grad.abs().sum() > 0 for p in [*decoder.parameters(), mean, logvar])
    assert all(p.grad is None and p.requires_grad for p in losses.discriminator_net.parameters())


def test_gradient_of_the_total(alex):
    """That of the written-out sum, with the adaptive weight held fixed; each network runs backward once."""
    decoder, video, mean, logvar = setting()
    losses, runs = loss_with(alex), []
    losses.discriminator_net.register_full_backward_hook(lambda *_: runs.append("discriminator"))
    losses.perceptual.model.net.slice5.register_full_backward_hook(lambda *_: runs.append("lpips"))
    parts = losses.autoencoder(video, decoder(mean), posterior_of(mean, logvar), 10, decoder.last.weight)
    got = torch.autograd.grad(parts["total"], [*decoder.parameters(), mean, logvar])
    assert sorted(runs) == ["discriminator", "lpips"]
    reconstruction = decoder(mean)
    total = (reconstruction_l1(video, reconstruction) + losses.perceptual(video, reconstruction)
             + 0.5 * posterior_of(mean, logvar).kl().mean() / video[0].numel()
             + parts["gan_weight"] * hinge_generator_loss(losses.discriminator_net(reconstruction)))
    for a, b in zip(got, torch.autograd.grad(total, [*decoder.parameters(), mean, logvar])):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_bfloat16_reconstruction(alex):
    decoder, video, mean, logvar = setting()
    losses = loss_with(alex)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        half = decoder.to(dtype)
        reconstruction = half(mean.to(dtype))
        parts = losses.autoencoder(video.to(dtype), reconstruction, posterior_of(mean, logvar), 10, half.last.weight)
        parts["total"].backward()
        results.append({name: part.item() for name, part in parts.items()})
        assert all(part.dtype == torch.float32 for part in parts.values())
        parts = losses.discriminator(video.to(dtype), reconstruction, 10)
        assert parts["total"].isfinite() and parts["total"].dtype == torch.float32
    assert results[1] == pytest.approx(results[0], rel=0.1, abs=0.02)


def test_fixed_weight_and_evaluation(alex):
    decoder, video, mean, logvar = setting()
    fixed = loss_with(alex, adaptive_weight=False, gan_weight=0.3)
    parts = fixed.autoencoder(video, decoder(mean), posterior_of(mean, logvar), 10)
    assert parts["gan_weight"].item() == pytest.approx(0.3)
    parts["total"].backward()  # leaves nothing in the discriminator
    assert all(p.grad is None and p.requires_grad for p in fixed.discriminator_net.parameters())
    with torch.no_grad():  # no gradients, so no ratio of gradients
        parts = loss_with(alex).autoencoder(video, decoder(mean), posterior_of(mean, logvar), 10)
    assert parts["gan_weight"] == 1 and parts["total"].isfinite()
    without = VAELoss(VAELossConfig(gan_weight=0.0, lpips_weight=0.0))
    assert without.autoencoder(video, decoder(mean), posterior_of(mean, logvar), 10**6)["gan_generator"] == 0


def test_discriminator_loss(alex):
    decoder, video, mean, _ = setting()
    losses, reconstruction = loss_with(alex, gradient_penalty="r1", gradient_penalty_weight=2.0), decoder(mean)
    idle = losses.discriminator(video, reconstruction, step=9)
    assert set(idle) == {"total", "gan_discriminator", "gradient_penalty", "logits_real", "logits_fake"}
    assert all(part.item() == 0 for part in idle.values()) and not idle["total"].requires_grad
    parts = losses.discriminator(video, reconstruction, step=10)
    net = losses.discriminator_net
    expected = hinge_discriminator_loss(net(video), net(reconstruction)).item()
    assert parts["gan_discriminator"].item() == pytest.approx(expected, rel=1e-5)
    assert parts["logits_real"].item() == pytest.approx(net(video).mean().item(), rel=1e-4)
    assert parts["total"].item() == pytest.approx(expected + 2 * parts["gradient_penalty"].item(), rel=1e-5)
    parts["total"].backward()
    assert all(p.grad is None for p in decoder.parameters())
    assert net.stages[0].conv1.weight.grad.abs().sum() > 0


def test_nan_is_named(alex, subtests):
    for name in ("video", "reconstruction", "mean", "logvar"):
        with subtests.test(name):
            _, video, mean, logvar = setting()
            inputs = {"video": video, "reconstruction": video.clone(), "mean": mean.detach(), "logvar": logvar.detach()}
            inputs[name][0, 0, 0, 0, :2] = float("nan")
            with pytest.raises(ValueError, match=f"^{name} holds NaN or infinity in 2 of"):
                loss_with(alex).autoencoder(inputs["video"], inputs["reconstruction"],
                                            posterior_of(inputs["mean"], inputs["logvar"]), step=0)
            if name in ("video", "reconstruction"):
                with pytest.raises(ValueError, match=f"^{name} holds NaN"):
                    loss_with(alex).discriminator(inputs["video"], inputs["reconstruction"], step=10)


def test_bad_settings(alex):
    _, video, mean, logvar = setting()
    with pytest.raises(ValueError, match="last_layer is None"):
        loss_with(alex).autoencoder(video, video, posterior_of(mean, logvar), step=10)
    with pytest.raises(ValueError, match="gan_weight is 1.0 but no discriminator is given; pass one or set 0"):
        VAELoss(VAELossConfig())
    with pytest.raises(ValueError, match="lpips_weight is 1.0 but no perceptual distance is given; pass one or set 0"):
        VAELoss(VAELossConfig(), PatchDiscriminator3D(SMALL))
    for field, value in {"kl_weight": -1.0, "lpips_frames": 0, "lpips_upscale": 0, "gan_start": -5,
                         "gan_weight": float("nan"), "masked_latents": 1.5, "equivariance": -0.1,
                         "correlation_weight": float("nan"), "correlation_threshold": 2.0}.items():
        with pytest.raises(ValueError, match=f"{field} is {value}"):
            VAELossConfig(**{field: value})
    with pytest.raises(ValueError, match="stages is 0"):
        DiscriminatorConfig(stages=0)
