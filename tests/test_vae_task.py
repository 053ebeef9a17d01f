"""A step of the VAE's trainer against plain PyTorch; its GAN, its stages, and the videos that it sees.

The loop around it: test_loop.py. Several ranks: test_vae_ranks.py. What is refused before work: test_recipes.py.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minicogvx.data.films.folder import scan_folder
from minicogvx.engine.ranks import Ranks
from minicogvx.training.critic import Critic
from minicogvx.training.latent_scale import normalise_latents, whiten_latents
from minicogvx.training.loop import fit
from minicogvx.training.run import Keep, Run
from minicogvx.training.settings import VAEStage, VAETraining
from minicogvx.training.vae import VAETask, VAEValidation, small_branches, train_vae
from minicogvx.training.videos import FilmVideos, VideoSteps, WorldVideos, world_batch
from minicogvx.vae.discriminator import DiscriminatorConfig
from tests.films import caption, mp4, ramp
from tests.tiny import TINY, tiny_vae
from tests.trained import GAN, LOSS

STAGE = VAEStage(6, batch_size=4, num_frames=5, loss=LOSS)
TRAINING = VAETraining((STAGE,), discriminator=DiscriminatorConfig(width=4))
QUIET = Keep(progress=False)


def begin(training: VAETraining, number: int = 0) -> VAETask:
    """The tiny VAE at the beginning of a stage."""
    task = VAETask(tiny_vae().requires_grad_(True), training)
    task.begin(number)
    return task


def videos(training: VAETraining, number: int = 0) -> VideoSteps:
    return VideoSteps(WorldVideos(), training, number, TINY.vae)


def take(task: VAETask, data: VideoSteps, steps: range) -> list[dict[str, float]]:
    """The figures of each step."""
    rows = []
    for step in steps:
        passes, row = data[step], {}
        for one in passes:
            for name, value in task.backward(one, 0.0, one is passes[-1]).items():
                row[name] = row.get(name, 0.0) + value.item()
        rows.append(row | {"grad_norm": task.update(step, 1.0).item()})
    return rows


def weights(task: VAETask) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in task.vae.named_parameters()}


def plain_steps(training: VAETraining, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same in plain PyTorch, one clip at a time: losses, and weights after them."""
    pieces = 4 if training.chunk_frames == 4 else None  # of frames: norms are taken over each
    vae, data, losses = tiny_vae().requires_grad_(True), videos(replace(training, accumulate=4)), []
    optimizer = torch.optim.AdamW(vae.parameters(), training.learning_rate, (0.9, 0.95), 1e-8, 0.0)
    for step in range(steps):
        loss = torch.zeros(())
        for one in data[step]:
            posterior = vae.encode(one.video, pieces)
            noise = torch.randn(posterior.mean.shape[1:], generator=torch.Generator().manual_seed(one.seeds[0]))
            back = vae.decode(posterior.mean + posterior.std * noise, pieces and 1)
            mean, logvar = posterior.mean.flatten(), posterior.logvar.flatten()
            kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
            loss = loss + ((one.video - back).abs().mean() + 10 * (one.video - back).square().mean()
                           + 0.1 * kl / one.video.numel()) / 4
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), training.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: p.detach() for name, p in vae.named_parameters()}


def test_a_step_is_that_of_plain_pytorch_however_it_is_computed(subtests):
    """In passes, in chunks of frames, and with blocks that are recomputed."""
    start = dict(tiny_vae().named_parameters())
    for changed in ({}, {"accumulate": 3}, {"chunk_frames": None}, {"chunk_frames": 4},
                    {"gradient_checkpointing": True, "accumulate": 2}):
        with subtests.test(**changed):
            training = replace(TRAINING, **changed)
            losses, expected = plain_steps(training, 2)
            task = begin(training)
            assert [row["total"] for row in take(task, videos(training), range(2))] == pytest.approx(losses, rel=1e-4)
            for name, p in weights(task).items():
                assert (p - expected[name]).norm() <= 0.05 * (expected[name] - start[name]).norm() + 1e-6, name


def test_recomputed_blocks_give_the_same_bits_and_keep_less(subtests):
    for chunk in (None, 4):
        with subtests.test(chunk_frames=chunk):
            gradients, kept = [], []
            for wanted in (False, True):
                training = replace(TRAINING, stages=(replace(STAGE, num_frames=9),), chunk_frames=chunk,
                                   gradient_checkpointing=wanted)
                task, size = begin(training), []
                with torch.autograd.graph.saved_tensors_hooks(lambda x: size.append(x.numel()) or x, lambda x: x):
                    task.backward(videos(training)[0][0], 0.0)
                gradients.append([p.grad for p in task.vae.parameters()])
                kept.append(sum(size))
                assert all("forward" not in vars(module) for module in task.vae.modules())
            assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)) and kept[1] < 0.7 * kept[0]


def test_a_gan_begins_at_its_step_teaches_both_sides_and_continues_from_stage_to_stage():
    """Steps are counted over all stages; of a later stage of other frames the discriminator is taken over as well."""
    loss = replace(GAN, gan_start=3)
    training = replace(TRAINING, stages=(replace(STAGE, steps=2, loss=loss),
                                         replace(STAGE, steps=3, num_frames=9, loss=loss)))
    task = begin(training)
    rows = take(task, videos(training), range(2))
    task.begin(1)
    first = {name: tensor.clone() for name, tensor in task.critic.state().items()}
    rows += take(task, videos(training, 1), range(3))
    assert [row["gan_weight"] > 0 for row in rows] == ["gan_discriminator" in row for row in rows] == [False] * 3 + [
        True] * 2
    changed = {name for name, tensor in task.critic.state().items() if not torch.equal(tensor, first[name])}
    assert {name.startswith("optimizer/") for name in changed} == {True, False}

    critic = task.critic
    for frames, kept in ((9, True), (17, True), (1, False)):  # for pictures its kernels have other shapes
        later = Critic(loss, TRAINING.discriminator, frames, earlier=critic)
        own, before = later.network.state_dict(), critic.network.state_dict()
        assert ([tensor.shape for tensor in own.values()] == [tensor.shape for tensor in before.values()]) == kept
        assert not kept or all(torch.equal(tensor, before[name]) for name, tensor in own.items())
    assert Critic(LOSS, TRAINING.discriminator, 9, earlier=critic).state() == {}


def test_the_state_holds_all_that_the_next_steps_depend_on(subtests):
    """Also the vectors of a spectral norm: steps from a restored state are the same, bit for bit."""
    plain = replace(TRAINING, stages=(replace(STAGE, loss=replace(GAN, gan_start=0)),))
    spectral = replace(plain, discriminator=DiscriminatorConfig(width=4, spectral_norm=True))
    for name, training in {"muon, average": replace(plain, optimizer="muon", ema_decay=0.5),
                           "spectral norm": spectral}.items():
        with subtests.test(name):
            whole = begin(training)
            take(whole, videos(training), range(2))
            state = {name: tensor.clone() for name, tensor in whole.state().items()}
            torch.manual_seed(7)
            other = begin(training)
            assert other.state().keys() == state.keys()
            for key, tensor in other.state().items():
                tensor.copy_(state[key])
            other.restored()
            for task in (whole, other):
                take(task, videos(training), range(2, 4))
            assert all(torch.equal(tensor, other.state()[key]) for key, tensor in whole.state().items())


def test_a_stage_of_the_decoder_alone_leaves_every_bit_of_the_encoder(subtests):
    """So latents that a diffusion model has seen keep their meaning: whatever the optimizer."""
    stages = replace(STAGE, decoder_only=True), STAGE
    for changed in ({}, {"optimizer": "muon", "ema_decay": 0.5, "weight_decay": 0.1}):
        with subtests.test(**changed):
            training = replace(TRAINING, stages=stages, **changed)
            task, before = begin(training), dict(tiny_vae().named_parameters())
            take(task, videos(training), range(2))
            moved = {name.split(".")[0] for name, p in weights(task).items() if not torch.equal(p, before[name])}
            assert moved == {"decoder"}
            task.begin(1)
            take(task, videos(training, 1), range(1))
            moved = {name.split(".")[0] for name, p in weights(task).items() if not torch.equal(p, before[name])}
            assert moved == {"encoder", "decoder"} and all(p.requires_grad for p in task.vae.parameters())


def test_the_result_is_the_moving_average():
    training = replace(TRAINING, ema_decay=0.5)
    task = begin(training)
    expected = {f"vae.{name}": p for name, p in weights(task).items()}
    for step in range(3):
        take(task, videos(training), range(step, step + 1))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * task.weights.learning[name].detach()
                    for name, value in expected.items()}
    task.finish()
    for name, p in weights(task).items():
        torch.testing.assert_close(p, expected[f"vae.{name}"])


def test_a_step_whose_reconstruction_is_not_finite_is_left_out(tmp_path, capsys, subtests):
    """Wherever it comes from, and with a discriminator or not; |x| has a finite slope even at NaN."""
    for name in ("encoder.conv_in.conv.bias", "encoder.conv_out.conv.bias", "decoder.conv_out.conv.bias"):
        for value in (float("nan"), float("inf")):
            for loss in (replace(LOSS, l2_weight=0.0), replace(GAN, l2_weight=0.0, gan_start=1)):
                with subtests.test(name=name, value=value, gan=loss.gan_weight):
                    training = replace(TRAINING, stages=(replace(STAGE, steps=4, batch_size=1, loss=loss),))
                    task, steps = begin(training), []

                    def backward(batch, progress, last=True, task=task, real=task.backward, name=name, value=value):
                        steps.append(weights(task) | task.critic.state())
                        weight = task.vae.get_parameter(name)
                        sound = weight.data[0].item()
                        weight.data[0] = value if batch.step == 2 else sound
                        figures = real(batch, progress, last)
                        weight.data[0] = sound
                        return figures

                    task.backward = backward
                    folder = tmp_path / f"{name}{value}{loss.gan_weight}"
                    fit(task, videos(training), Run("vae", 4, Keep(folder, log_every=1, progress=False)),
                        lambda step: 1.0)
                    assert [any(not torch.equal(b[key], a[key]) for key in weights(task)) for a, b in
                            zip(steps, steps[1:])] == [True, True, False]
                    assert all(torch.isfinite(tensor).all() for tensor in task.state().values())
                    rows = [json.loads(line) for line in (folder / "vae.jsonl").open()]
                    assert [isinstance(row["grad_norm"], str) for row in rows] == [False, False, True, False]
                    assert "the gradient of step 2 is not finite; the weights stay" in capsys.readouterr().err


# ---- what is watched


def test_videos_that_are_held_back_are_measured_and_change_nothing(tmp_path):
    training = replace(TRAINING, ema_decay=0.5, stages=(replace(STAGE, steps=4), replace(STAGE, steps=2, loss=GAN)))
    watched, found = replace(training, validate_every=2), []
    for name, wanted in (("plain", training), ("watched", watched)):
        keep = Keep(tmp_path / name, log_every=1, progress=False)
        found.append(train_vae(TINY.vae, wanted, WorldVideos(), keep=keep).state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    rows = [json.loads(line) for line in (tmp_path / "watched" / "vae_0.jsonl").open()]
    assert [row["step"] for row in rows if "validation_psnr" in row] == [1, 3]
    task = begin(training)
    take(task, videos(training), range(2))
    watcher = VAEValidation(WorldVideos(), STAGE, (5, 32, 32), 2)
    before = watcher(2, task)
    assert before == watcher(2, task) and before["validation_l1"] > 0 and task.seen == []
    task.average = {}
    assert watcher(2, task) != before, "of the average, where there is one"


def test_videos_that_are_held_back_are_measured_if_they_are_long_enough(folder):
    clips = scan_folder(folder).clips
    some = FilmVideos(clips[3:], measured=clips[:3])
    measured = list(some.held_back(STAGE, (5, 32, 32)))
    assert len(measured) == 3 and measured[0].shape == (3, 5, 32, 32)
    for few, frames in ((FilmVideos(clips), 5), (some, 49)):
        with pytest.raises(ValueError, match="films that are held back has"):
            VAEValidation(few, STAGE, (frames, 32, 32), 1)


# ---- before and after


def test_small_branches_begin_near_the_identity():
    vae = tiny_vae()
    convolution = next(p for name, p in vae.named_parameters() if name.endswith("conv2.conv.weight"))
    before = convolution.clone()
    small_branches(vae)
    assert torch.allclose(convolution, 0.2 * before)
    with torch.no_grad():
        assert vae.encode(world_batch(2, 1, 5, 32, 32)).std.mean() < 0.5  # exp(-2) and a little


def test_latents_are_brought_to_unit_variance_at_whatever_size_the_last_stage_had_and_decode_to_the_same(subtests):
    vae, video = tiny_vae(), world_batch(16, 1, 9, 32, 32)
    with torch.no_grad():
        before, logvar = vae.decode(vae.encode(video).mean), vae.encode(video).logvar
        normalise_latents(vae, [video[:10], video[10:]])
        posterior = vae.encode(video)
        assert torch.allclose(vae.decode(posterior.mean), before, atol=1e-4)
        assert torch.allclose(posterior.mean.transpose(0, 1).flatten(1).std(1), torch.ones(4), atol=1e-3)
        assert not torch.allclose(posterior.logvar, logvar), "the posterior's width is scaled with its mean"
    for height, width in ((None, None), (24, 40)):
        with subtests.test(height=height):
            training = replace(TRAINING, stages=(replace(STAGE, steps=1, height=height, width=width),))
            vae = train_vae(TINY.vae, training, WorldVideos(), keep=QUIET)
            with torch.no_grad():
                latents = vae.encode(world_batch(32, 9, 5, height or 32, width or 32)).mean
            deviation = latents.transpose(0, 1).flatten(1).std(1)
            assert (0.7 < deviation).all() and (deviation < 1.4).all()


def test_whitened_latents_have_mean_0_and_no_correlation_and_decode_to_the_same_but_at_borders():
    vae, video = tiny_vae(), world_batch(16, 1, 9, 32, 32)
    vae.encoder.conv_out.conv.bias.data[:4] += torch.tensor([3.0, -2.0, 0.0, 1.0])
    with torch.no_grad():
        posterior = vae.encode(video)
        before, width = vae.decoder.conv_in(posterior.mean), posterior.std
        mix, _ = whiten_latents(vae, [video[:10], video[10:]], floor=1e-4)
        after = vae.encode(video)
        changed = (vae.decoder.conv_in(after.mean) - before).abs()
    assert changed[..., 1:-1, 1:-1].max() < 1e-4 < changed.max(), "at the border it sees zeros"
    flat = after.mean.transpose(0, 1).flatten(1)
    assert torch.allclose(torch.cov(flat), torch.eye(4), atol=0.02) and flat.mean(1).abs().max() < 1e-3
    assert torch.corrcoef(posterior.mean.transpose(0, 1).flatten(1)).fill_diagonal_(0).abs().max() > 0.1, "before"
    exact = (mix.square() @ width.square().transpose(0, 1).flatten(1)).sqrt()
    assert (after.std.transpose(0, 1).flatten(1) / exact - 1).abs().mean() < 0.005, "to first order"


def test_a_training_whitens_before_its_last_stage():
    stages = (replace(STAGE, steps=3), replace(STAGE, steps=1, learning_rate_factor=0.0))
    training = replace(TRAINING, stages=stages, small_branches=True)
    video, found = world_batch(32, 9, 5, 32, 32), []
    for whiten in (False, True):
        vae = train_vae(TINY.vae, replace(training, whiten=whiten), WorldVideos(), keep=QUIET)
        with torch.no_grad():
            flat = vae.encode(video).mean.transpose(0, 1).flatten(1)
        found.append((flat.mean(1).abs().max(), torch.corrcoef(flat).fill_diagonal_(0).abs().max()))
    assert all(with_it < 0.5 * without for without, with_it in zip(*found)) and found[1][0] < 0.3
    with pytest.raises(ValueError, match="whiten is True; .* two stages or more"):
        replace(training, stages=stages[:1], whiten=True)


def test_a_seed_decides_a_training_and_earlier_draws_do_not():
    results = []
    for seed, draws in ((5, 0), (5, 3), (6, 0)):
        torch.rand(draws)
        results.append(train_vae(TINY.vae, replace(TRAINING, small_branches=True, stages=(replace(STAGE, steps=2),)),
                                 WorldVideos(seed), seed, keep=QUIET).state_dict())
    first, again, other = results
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.conv_in.conv.weight"], other["encoder.conv_in.conv.weight"])


# ---- videos


def test_drawn_videos_are_new_in_each_step_and_shared_by_ranks():
    alone = [one.video for step in range(2) for one in videos(TRAINING)[step]]
    assert alone[0].shape == (4, 3, 5, 32, 32) and not torch.equal(*alone)
    parts = [VideoSteps(WorldVideos(), TRAINING, 0, TINY.vae, Ranks(rank, 2))[0][0] for rank in (0, 1)]
    assert torch.equal(torch.cat([part.video for part in parts]), alone[0])
    assert [seed for part in parts for seed in part.seeds] == videos(TRAINING)[0][0].seeds
    slow, fast = world_batch(3, 7, 9, 32, 32), world_batch(3, 7, 5, 32, 32, frame_rate=16)
    assert torch.allclose(fast, slow[:, :, :5], atol=1e-6), "at twice the rate, the first half of the motion"
    rates = VideoSteps(WorldVideos(), replace(TRAINING, stages=(replace(STAGE, steps=20, frame_rates=(8, 16)),)), 0,
                       TINY.vae)
    moved = [(one.video[:, :, 1:] - one.video[:, :, :-1]).abs().mean() for step in range(12) for one in rates[step]]
    assert max(moved) > 1.3 * min(moved)


def test_a_stage_draws_crowds_and_is_measured_without():
    crowd = replace(TRAINING, stages=(replace(STAGE, crowd=6),))
    many, few = (VideoSteps(WorldVideos(), training, 0, TINY.vae)[3][0].video for training in (crowd, TRAINING))
    size, seed = (5, 32, 32), 1 + 3
    assert torch.equal(few, world_batch(4, seed, *size)) and torch.equal(many, world_batch(4, seed, *size, crowd=6))
    edges = [(video[..., 1:] - video[..., :-1]).abs().mean() for video in (many, few)]
    assert edges[0] > 2 * edges[1]
    held_back = [list(WorldVideos().held_back(training.stages[0], size)) for training in (crowd, TRAINING)]
    assert all(map(torch.equal, *held_back))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten films that grow brighter; two last 1 s, the others 3."""
    for i in range(10):
        caption(mp4(tmp_path / f"{i}.mp4", ramp(8 if i < 2 else 24, 32, 32)))
    return tmp_path


def test_every_film_that_is_long_enough_comes_once_an_epoch_from_a_moment_of_its_own(folder, monkeypatch):
    """At rates of 8 and 16, on one rank or two: four epochs of the eight films of 3 s, in which two of 1 s are not."""
    clips, pieces = scan_folder(folder).clips, []

    def read(clip, start, frames, rate, height, width):
        pieces.append((clip.name, start, rate))
        assert 0 <= start and start + (frames - 1) / rate < clip.seconds
        return torch.zeros(frames, height, width, 3)

    training = replace(TRAINING, stages=(VAEStage(8, batch_size=4, num_frames=17, frame_rates=(8, 16), loss=LOSS),))
    with monkeypatch.context() as patch:
        patch.setattr("minicogvx.training.videos.read_clip", read)
        taken = []
        for world in (1, 2):
            pieces.clear()
            for step in range(8):
                for rank in range(world):
                    VideoSteps(FilmVideos(clips, 3), training, 0, TINY.vae, Ranks(rank, world))[step]
            taken.append(list(pieces))
    assert taken[0] == taken[1]
    for epoch in range(4):
        assert Counter(name for name, *_ in pieces[8 * epoch:8 * epoch + 8]) == {f"{i}.mp4": 1 for i in range(2, 10)}
    assert len({start for _, start, _ in pieces}) > 8 and {rate for *_, rate in pieces} == {8, 16}
    video = VideoSteps(FilmVideos(clips, 3), training, 0, TINY.vae)[0][0].video.mean((1, 3, 4))
    assert video.shape == (4, 17) and (video[:, -1] > video[:, 0]).all(), "frames in their order"


def test_a_film_that_is_too_short_or_cannot_be_read_is_named(folder, capsys):
    clips = scan_folder(folder).clips
    (folder / "4.mp4").write_bytes(b"broken")
    films, stage = FilmVideos(clips, 3), replace(STAGE, batch_size=10)
    taken = [films.batch(stage, (5, 32, 32), step, step, slice(None)) for step in range(2)]
    assert capsys.readouterr().out.count("4.mp4") == 1
    again = FilmVideos(clips, 3).batch(stage, (5, 32, 32), 1, 1, slice(None))
    assert len(again) == 10 and torch.equal(again, taken[1])
    with pytest.raises(ValueError, match="none of 10 films has 49 frames at 8 frames per second"):
        FilmVideos(clips).batch(STAGE, (49, 32, 32), 0, 0, slice(4))
    for path in folder.glob("*.mp4"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no film can be read; \d.mp4"):
        FilmVideos(clips).batch(STAGE, (5, 32, 32), 0, 0, slice(1))
