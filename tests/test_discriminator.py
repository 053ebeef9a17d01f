"""The 3D discriminator of the VAE: its shapes, its options, its formula, and that it learns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicogvx.vae.discriminator import DiscriminatorConfig, DiscriminatorStage, PatchDiscriminator3D
from minicogvx.vae.losses import VAELoss, VAELossConfig

SMALL = DiscriminatorConfig(width=4, stages=2, num_frames=5)


def clips(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(shape[0], shape[1], shape[2], 8, 8, generator=generator) * 2 - 1
    return F.interpolate(coarse, size=shape[2:], mode="nearest")


def test_discriminator_shapes(subtests):
    cases = [
        (9, 32, 32, (2, 4, 4)), (17, 32, 32, (3, 4, 4)), (9, 64, 64, (2, 8, 8)), (17, 64, 64, (3, 8, 8)),
        (1, 32, 32, (1, 4, 4)), (5, 30, 44, (1, 4, 6)), (9, 256, 256, (2, 32, 32))]
    for frames, height, width, logits in cases:
        with subtests.test(frames=frames, height=height, width=width):
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


def test_discriminator_stage_by_hand_and_it_sees_time():
    stage, video = DiscriminatorStage(3, 4, temporal=True, config=SMALL), torch.randn(1, 3, 5, 8, 8)
    even = torch.cat([video[:, :, :1], video], dim=2)  # an odd count repeats its first frame
    y = F.leaky_relu(stage.conv1(even), 0.1)
    y = F.leaky_relu(stage.conv2(stage.down(y)), 0.1)
    torch.testing.assert_close(stage(video), (y + stage.skip(even)) / 2**0.5)
    assert stage(video).shape == (1, 4, 3, 4, 4)
    net, video = PatchDiscriminator3D(DiscriminatorConfig(width=8)), clips(1, 3, 9, 32, 32)
    with torch.no_grad():  # an order of frames that no single frame betrays changes the logits
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
