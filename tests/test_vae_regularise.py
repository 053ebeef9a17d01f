"""What makes latents easier to learn: each formula by hand, and each in a step of the trainer."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minicogvx.training.latent_scale import normalise_latents
from minicogvx.training.run import Keep
from minicogvx.training.settings import VAEStage, VAETraining
from minicogvx.training.vae import VAETask, train_vae
from minicogvx.training.videos import VideoSteps, WorldVideos, world_batch
from minicogvx.vae.discriminator import DiscriminatorConfig
from minicogvx.vae.regularise import (
    HIDDEN_SHARES,
    MaskedLatents,
    Transform,
    draw_transform,
    hidden_cells,
    local_correlation,
)
from tests.tiny import TINY, tiny_vae
from tests.trained import GAN, LOSS

STAGE = VAEStage(6, batch_size=4, num_frames=9, loss=LOSS)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def begin(seed: int = 0, gan: bool = False, **loss) -> tuple[VAETask, VideoSteps]:
    """A task at its first step, and its data; `loss`: fields of the loss."""
    stage = replace(STAGE, loss=replace(replace(GAN, gan_start=0) if gan else LOSS, **loss))
    training = VAETraining((stage,), accumulate=2 if gan else 1, discriminator=DiscriminatorConfig(width=4))
    task = VAETask(tiny_vae().requires_grad_(True), training)
    task.begin(0)
    return task, VideoSteps(WorldVideos(), training, 0, TINY.vae, seed=seed)


def watch_decoder(task: VAETask) -> list[torch.Tensor]:
    """The latents that the decoder sees from now on."""
    seen, decode = [], task.vae.decode
    task.vae.decode = lambda latents, chunk: seen.append(latents.detach().clone()) or decode(latents, chunk)
    return seen


# ---- masked latents


def test_three_clips_in_ten_are_masked_a_tenth_with_each_share():
    shares = Counter(hidden_cells((3, 8, 8), 0.3, one).float().mean().item() for one in generators(2000))
    assert set(shares) == {0.0, *HIDDEN_SHARES}
    assert shares[0.0] / 2000 == pytest.approx(0.7, abs=0.04)
    assert all(shares[share] / 2000 == pytest.approx(0.1, abs=0.03) for share in HIDDEN_SHARES)
    one, other = (hidden_cells((1, 8, 8), 1.0, generator) for generator in generators(2))
    assert not torch.equal(one, other), "each clip has its own"


def test_hidden_cells_hold_the_token_and_others_what_they_held():
    mask, latents = MaskedLatents(4), normal(6, 4, 3, 8, 8).requires_grad_()
    seen = mask(latents, 1.0, generators(6))
    hidden = torch.stack([hidden_cells((3, 8, 8), 1.0, one) for one in generators(6)])[:, None].expand_as(latents)
    token = mask.token[None, :, None, None, None].expand_as(latents)
    assert torch.equal(seen[hidden], token[hidden]) and torch.equal(seen[~hidden], latents[~hidden])
    weight = normal(*latents.shape, seed=1)
    (seen * weight).sum().backward()
    torch.testing.assert_close(mask.token.grad, (weight * hidden).sum((0, 2, 3, 4)))
    assert torch.equal(latents.grad, weight * ~hidden)
    assert torch.equal(mask(latents, 0.0, generators(6)), latents)


def test_the_token_learns_and_is_kept_in_checkpoints_but_is_no_part_of_the_vae():
    task, data = begin(masked_latents=1.0)
    seen, before = watch_decoder(task), task.mask.token.detach().clone()
    video = data[0][0].video
    task.backward(data[0][0], 0.0)
    held = (seen[0] == before[:, None, None, None]).all(1)
    assert {one.float().mean().item() for one in held} <= set(HIDDEN_SHARES)
    assert task.mask.token.grad.abs().min() > 0
    task.update(0, 1.0)
    assert not torch.equal(task.mask.token, before)
    assert torch.equal(task.state()["weights/mask.token"], task.mask.token)
    assert {name.partition("/")[0] for name in task.state() if "mask.token" in name} == {"weights", "optimizer"}
    assert task.vae.state_dict().keys() == tiny_vae().state_dict().keys()
    task.reconstruct(video, [0, 1, 2, 3])  # as validation does
    assert not (seen[1] == task.mask.token[:, None, None, None]).all(1).any()


def test_the_token_is_scaled_with_the_latents():
    task, _ = begin(masked_latents=1.0)
    before, videos = task.mask.token.detach().clone(), [world_batch(8, 1, 9, 32, 32)]
    deviation = normalise_latents(tiny_vae(), videos)
    task.to_unit_variance(videos)
    torch.testing.assert_close(task.mask.token.detach(), before / deviation)


# ---- local correlation


def correlation_by_hand(clip: torch.Tensor) -> float:
    """Pearson's correlation of every pair of cells in a window, with numpy; `clip`: c t h w."""
    clip = clip.double()
    z = ((clip - clip.mean((1, 2, 3), keepdim=True)) / clip.std((1, 2, 3), keepdim=True)).numpy()

    def of_windows(z: np.ndarray, frames: int) -> float:
        found = []
        for t in range(0, z.shape[1] - frames + 1, frames):
            for y in range(0, z.shape[2] - 1, 2):
                for x in range(0, z.shape[3] - 1, 2):
                    cells = z[:, t:t + frames, y:y + 2, x:x + 2].reshape(len(z), -1).T
                    table = np.corrcoef(cells)
                    found.append(table[np.triu_indices(len(cells), 1)].mean())
        return float(np.mean(found))

    return of_windows(z[:, :1], 1) if z.shape[1] < 3 else (of_windows(z[:, :1], 1) + of_windows(z[:, 1:], 2)) / 2


def test_local_correlation_is_that_of_all_pairs_in_a_window(subtests):
    for size in ((5, 4, 6), (3, 2, 2), (4, 5, 7), (2, 4, 4), (1, 4, 4)):
        with subtests.test(size=size):
            latents = 3 * normal(2, 6, *size) + normal(1, 6, 1, 1, 1, seed=1)
            expected = [correlation_by_hand(clip) for clip in latents]
            assert local_correlation(latents).tolist() == pytest.approx(expected, abs=1e-4)
    blocks = F.interpolate(normal(2, 16, 2, 4, 4), scale_factor=2)  # each window one vector
    latents = torch.cat([blocks[:, :, :1], blocks], dim=2)
    assert local_correlation(latents).tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert local_correlation(normal(4, 16, 5, 8, 8)).abs().max() < 0.05


def test_the_gradient_of_local_correlation_has_its_share_at_the_encoders_last_layer():
    """It asks for more correlation; none of it reaches the decoder; and enough correlation ends it."""
    gradients, figures = [], []
    for loss in ({}, {"correlation_weight": 0.25, "correlation_threshold": 1.0},
                 {"correlation_weight": 0.25, "correlation_threshold": -0.9}):
        task, data = begin(**loss)
        figures.append(task.backward(data[0][0], 0.0))
        gradients.append({name: p.grad for name, p in task.vae.named_parameters()})
    layer = "encoder.conv_out.conv.weight"
    added = gradients[1][layer] - gradients[0][layer]
    assert added.norm().item() == pytest.approx(0.25 * gradients[0][layer].norm().item(), rel=0.02)
    vae, video = tiny_vae().requires_grad_(True), data[0][0].video
    correlation = local_correlation(vae.encode(video).mean).mean()
    upwards, = torch.autograd.grad(correlation, vae.encoder.conv_out.conv.weight)
    assert F.cosine_similarity(added.flatten(), -upwards.flatten(), dim=0) > 0.99
    assert figures[1]["correlation"].item() == pytest.approx(correlation.item(), abs=1e-4)
    assert "correlation" not in figures[0]
    for name, gradient in gradients[0].items():
        if name.startswith("decoder"):
            torch.testing.assert_close(gradients[1][name], gradient)
        assert torch.equal(gradients[2][name], gradient)


# ---- equivariance


def test_a_transform_does_the_same_to_pixels_and_to_latents(subtests):
    """Latents that are means of blocks of pixels stay so: turned and flipped exactly, made smaller where all is smooth.
    """
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(0, 3, 48), indexing="ij")
    smooth = (rows + columns).expand(2, 3, 5, -1, -1)
    for turns in range(4):
        for flipped in (False, True):
            for size, video, edge in (((8, 12), normal(2, 3, 5, 32, 48), 0), ((5, 7), smooth, 1)):
                with subtests.test(turns=turns, flipped=flipped, size=size):
                    transform = Transform(size, turns, flipped)
                    latents = transform(F.avg_pool3d(video, (1, 4, 4)))
                    again = F.avg_pool3d(transform(video, 4), (1, 4, 4))
                    assert latents.shape[3:] == (size[::-1] if turns % 2 else size)
                    inner = (..., slice(edge, latents.shape[3] - edge), slice(edge, latents.shape[4] - edge))
                    torch.testing.assert_close(latents[inner], again[inner], rtol=0, atol=1e-5)
    corner = torch.zeros(1, 1, 1, 4, 4)
    corner[..., 0, 1] = 1
    assert len({tuple(Transform((4, 4), turns, flipped)(corner).flatten().tolist())
                for turns in range(4) for flipped in (False, True)}) == 8


def test_transforms_are_drawn_from_a_quarter_of_the_side_up_and_leave_what_a_loss_needs():
    drawn = [draw_transform((8, 12), 0.5, seed=seed) for seed in range(1000)]
    some = [one for one in drawn if one]
    assert len(some) / 1000 == pytest.approx(0.5, abs=0.05)
    assert {one.size for one in some} == {(2, 3), (3, 4), (4, 6), (5, 8), (6, 9), (7, 10)}
    assert {(one.quarter_turns, one.flipped) for one in some} == {(i, f) for i in range(4) for f in (False, True)}
    assert {draw_transform((8, 8), 1.0, least=6, seed=seed).size for seed in range(50)} == {(6, 6), (7, 7)}
    assert {draw_transform((8, 8), 1.0, least=8, seed=seed).size for seed in range(9)} == {(8, 8)}
    assert draw_transform((1, 1), 1.0).size == (1, 1) and draw_transform((8, 8), 0.0) is None


def test_a_step_decodes_the_transformed_latent_and_compares_with_the_transformed_clip(monkeypatch):
    task, data = begin(equivariance=1.0)
    batch, seen, compared = data[0][0], watch_decoder(task), []
    task.reconstruct(batch.video, batch.seeds)
    loss = task.objective.autoencoder
    monkeypatch.setattr(task.objective, "autoencoder", lambda video, again, *rest: compared.append((video, again))
                        or loss(video, again, *rest))
    figures = task.backward(batch, 0.0)
    transform = task._transform(batch.transform_seed)
    torch.testing.assert_close(seen[1], transform(seen[0]))
    (video, again), = compared
    assert torch.equal(video, transform(batch.video, 4)) and again.shape == video.shape != batch.video.shape
    expected = figures["l1"] + 10 * figures["l2"] + 0.1 * figures["kl"] / batch.video[0].numel()
    assert figures["total"].item() == pytest.approx(expected.item(), rel=1e-5), "the KL is of the clip that was encoded"
    assert all(part.conv_in.conv.weight.grad.abs().sum() > 0 for part in (task.vae.encoder, task.vae.decoder))


def test_all_passes_of_a_step_have_one_transform_so_a_discriminator_sees_one_size():
    task, data = begin(gan=True, equivariance=1.0)
    sizes = set()
    for step in range(4):
        first, second = data[step]
        assert first.transform_seed == second.transform_seed
        task.backward(first, 0.0, last=False)
        assert "gan_discriminator" in task.backward(second, 0.0)
        sizes.add(task._transform(first.transform_seed).size)
        task.update(step, 1.0)
    assert len(sizes) > 1 and min(min(sizes)) >= 2  # the discriminator needs 8 pixels
    other = begin(seed=1, equivariance=1.0)[1]
    assert len({passes[0].transform_seed for passes in (data[0], data[1], other[0])}) == 3


# ---- all of them


def test_with_all_of_them_a_seed_decides_a_training_and_its_state_holds_all_that_follows():
    everything = {"masked_latents": 0.5, "correlation_weight": 0.1, "correlation_threshold": 1.0, "equivariance": 0.5}
    loss = replace(LOSS, **everything)
    training = VAETraining((replace(STAGE, steps=3, loss=loss), replace(STAGE, steps=2)), ema_decay=0.5)
    one, again = (train_vae(TINY.vae, training, WorldVideos(3), 3, torch.float32, Keep(progress=False)).state_dict()
                  for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one) and one.keys() == tiny_vae().state_dict().keys()
    whole, data = begin(**everything)
    tasks = [whole, begin(**everything)[0]]
    for step in range(2):
        whole.backward(data[step][0], 0.0)
        whole.update(step, 1.0)
    for name, tensor in tasks[1].state().items():
        tensor.copy_(whole.state()[name])
    for task in tasks:
        for step in (2, 3):
            task.backward(data[step][0], 0.0)
            task.update(step, 1.0)
    assert all(torch.equal(tensor, tasks[1].state()[name]) for name, tensor in whole.state().items())
