"""Similarity, dynamics, features, distances and tests for pairs: known answers, and those of well-kept libraries."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats

import minicogvx
from minicogvx.data.world.drawing import render, render_batch
from minicogvx.data.world.scenes import Scene, ShapeObject, sample_scenes
from minicogvx.evaluation.dynamics import consistency, dynamic_degree, flow_peaks, is_dynamic
from minicogvx.evaluation.features import clip_features
from minicogvx.evaluation.frechet import frechet_distance
from minicogvx.evaluation.intervals import answers_needed, sign_test, wilson
from minicogvx.evaluation.similarity import lpips_distance, ssim
from minicogvx.evaluation.world_features import load_world_features
from tests.tiny import tiny_pipe


def two_clips(side: int = 40):
    """A drawn clip and a spoilt copy, 3 frames."""
    true = render(sample_scenes(1, 3)[0], 3, side, side + 8)
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    return true, (0.9 * true + 0.1 * noise).clamp(0, 1)


# ---- ssim and lpips


def test_ssim_is_that_of_scikit_image_and_torchmetrics():
    from skimage.metrics import structural_similarity
    from torchmetrics.functional.image import structural_similarity_index_measure

    true, other = two_clips()
    theirs = [structural_similarity(a.numpy(), b.numpy(), data_range=1.0, channel_axis=-1, gaussian_weights=True,
                                    sigma=1.5, use_sample_covariance=False) for a, b in zip(true, other)]
    assert ssim(true, other) == pytest.approx(np.mean(theirs), abs=1e-4)
    frames = [clip.permute(0, 3, 1, 2) for clip in (true, other)]
    _, places = structural_similarity_index_measure(*frames, data_range=1.0, return_full_image=True)
    assert ssim(true, other) == pytest.approx(float(places[..., 5:-5, 5:-5].mean()), abs=1e-4)  # without mirrored edges
    assert 0 < ssim(true, other) < 1 and ssim(true, true) == pytest.approx(1)


def test_lpips_is_that_of_the_lpips_package():
    from minicogvx.interop.lpips_weights import load_lpips

    true, other = two_clips(64)
    a, b = (clip.permute(0, 3, 1, 2) * 2 - 1 for clip in (true, other))
    theirs = load_lpips("alex")(a, b).mean().item()
    assert lpips_distance(true, other) == pytest.approx(theirs, rel=1e-4) and theirs > 0.01
    assert lpips_distance(true, true) == 0


def test_clips_that_cannot_be_compared_are_named():
    with pytest.raises(ValueError, match=r"\(3, 40, 48, 3\) and \(2, 40, 48, 3\)"):
        ssim(two_clips()[0], two_clips()[0][:2])
    with pytest.raises(ValueError, match="11 pixels a side"):
        ssim(torch.zeros(2, 10, 30, 3), torch.zeros(2, 10, 30, 3))
    with pytest.raises(ValueError, match="must be the same"):
        lpips_distance(two_clips()[0], two_clips()[0][:2])


# ---- dynamics


def moving(speed: float, frames: int = 17, side: int = 64):
    """A textured square that moves right by so many pixels a frame."""
    texture = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(1))
    texture = torch.nn.functional.interpolate(texture, size=(28, 28), mode="bilinear")
    video = torch.zeros(frames, side, side, 3)
    for i in range(frames):
        axes = torch.arange(side) + 0.5
        grid = torch.stack(torch.meshgrid((axes - 4 - speed * i) / 14 - 1, (axes - 18) / 14 - 1, indexing="xy"), -1)
        drawn = torch.nn.functional.grid_sample(texture, grid[None], align_corners=False)
        video[i] = drawn[0, 0, ..., None]
    return video


def test_the_fastest_pixels_move_as_the_square_does():
    for speed in (0.5, 1.0, 2.0):
        peaks = flow_peaks(moving(speed))
        assert peaks.shape == (16,)
        assert 0.8 * speed < float(peaks.median()) < 1.8 * speed, "around its rim, flow runs ahead"
    assert float(flow_peaks(moving(0.0)).max()) < 0.01


def test_the_rule_of_dynamic_degree(monkeypatch):
    """6 pixels for 256 of the shorter side, in a quarter of 17 frames: 4 pairs; and what the frame rate changes."""
    from minicogvx.evaluation import dynamics

    for side, fps, frames, least, wanted in ((64, 8, 17, 1.5, 4), (128, 8, 17, 3.0, 4), (64, 4, 17, 3.0, 4),
                                             (64, 24, 49, 1.5, 4), (64, 8, 49, 1.5, 12)):
        for fast, expected in ((wanted, True), (wanted - 1, False)):
            def peaks(video, fast=fast, least=least):
                assert len(video) == len(range(0, frames, max(1, round(fps / 8))))
                return torch.tensor([1.01 * least] * fast + [0.99 * least] * (len(video) - 1 - fast))

            monkeypatch.setattr(dynamics, "flow_peaks", peaks)
            assert is_dynamic(torch.zeros(frames, side, side + 8, 3), fps) is expected, (side, fps, fast)


def test_dynamic_degree_is_a_share():
    clips = [moving(2.5), moving(0.0), moving(0.5), moving(0.0)]
    assert [is_dynamic(clip) for clip in clips] == [True, False, False, False]
    assert dynamic_degree(clips) == 0.25
    with pytest.raises(ValueError, match="empty"):
        dynamic_degree([])
    with pytest.raises(ValueError, match="there are 2 frames"):
        is_dynamic(torch.zeros(2, 64, 64, 3))


def test_consistency_by_hand():
    same, across = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert consistency(torch.stack([same] * 4)) == pytest.approx(1)
    assert consistency(torch.stack([same, -same])) == 0, "a negative similarity counts as 0"
    # frames 0, 0, 1, 1: with the frame before 1, 0, 1; with the first 1, 0, 0
    assert consistency(torch.stack([same, 3 * same, across, across])) == pytest.approx((1 + 0 + 0.5) / 3)
    with pytest.raises(ValueError, match="1 frames"):
        consistency(same[None])


# ---- features and the distance between sets of them


def test_features_belong_to_their_clip():
    pipe = tiny_pipe()
    videos = render_batch(sample_scenes(3, 1), *pipe.video_size)
    features = clip_features(pipe, videos)
    assert features.shape == (3, pipe.transformer.config.width) and features.dtype == torch.float32
    assert torch.allclose(clip_features(pipe, videos.flip(0), batch_size=2).flip(0), features, atol=1e-4)
    assert not torch.allclose(features[0], features[1], atol=1e-3)
    blocks = pipe.transformer.transformer_blocks
    assert not any(block._forward_hooks for block in blocks), "no hook is left behind"
    assert clip_features(pipe, videos[0][:, None]).shape == (len(videos[0]), pipe.transformer.config.width)


def test_stored_features_are_those_of_the_shipped_toy():
    world = load_world_features()
    assert world.features.shape == (len(world.scenes), 64) and world.directions.shape == (64, len(world.centre))
    assert torch.allclose(world.directions @ world.directions.mT, torch.eye(64), atol=0.01)
    pipe = minicogvx.load("toy", "cpu", torch.float32)
    again = world.along(clip_features(pipe, render_batch(world.scenes[5:8], *pipe.video_size)))
    apart = (again - world.features[5:8]).norm() / again.norm()
    assert apart < 0.02, "run: python -m minicogvx.evaluation.world_features"


def random_sets(n: int = 300, d: int = 6):
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return one, other[:200] @ mix + 1


def test_frechet_distance_is_that_of_scipy_and_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    one, other = random_sets()
    root = linalg.sqrtm(np.cov(one.T) @ np.cov(other.T)).real
    gap = np.square(one.mean(0).numpy() - other.mean(0).numpy()).sum()
    theirs = gap + np.trace(np.cov(one.T) + np.cov(other.T) - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(theirs, rel=1e-6)
    assert frechet_distance(one, other) == pytest.approx(
        float(_compute_fid(one.mean(0), one.T.cov(), other.mean(0), other.T.cov())), rel=1e-6)


def test_frechet_distance_by_hand():
    one, other = random_sets()
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one + 2) == pytest.approx(4 * 6), "the squared distance of the means"
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one))
    line = torch.randn(500, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spread = line.std().item()
    assert frechet_distance(line, 3 * line) == pytest.approx((2 * line.mean().item()) ** 2 + (2 * spread) ** 2)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    assert frechet_distance(one @ turn, other @ turn) == pytest.approx(frechet_distance(one, other))
    few = [torch.randn(8, 30, generator=torch.Generator().manual_seed(i)) for i in (3, 4)]
    assert frechet_distance(*few) > 10, "few clips: far apart, though from the same distribution"
    for wrong in (one[:1], one[:, :3]):
        with pytest.raises(ValueError, match="n d and"):
            frechet_distance(one, wrong)


# ---- pairs


def test_sign_test_is_the_exact_test_of_the_pairs_that_differ():
    for won, lost, both, neither in ((5, 1, 40, 2), (0, 0, 7, 1), (12, 12, 0, 3), (0, 9, 3, 3), (30, 11, 100, 5)):
        new = [True] * won + [False] * lost + [True] * both + [False] * neither
        old = [False] * won + [True] * lost + [True] * both + [False] * neither
        theirs = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
        assert sign_test(new, old) == pytest.approx(theirs) == pytest.approx(sign_test(old, new))
    assert sign_test([0.5, 0.7, 0.2], [0.4, 0.6, 0.2]) == 0.5, "scores: by sign alone, and ties are left out"
    with pytest.raises(ValueError):
        sign_test([True], [True, False])


def test_answers_needed_is_where_the_interval_leaves_out_one_half():
    for share in (0.6, 0.75, 0.25, 1.0):
        needed = answers_needed(share)
        z = stats.norm.ppf(0.975)
        assert abs(share - 0.5) > z * math.sqrt(0.25 / needed) and abs(share - 0.5) <= z * math.sqrt(
            0.25 / (needed - 1))
    assert answers_needed(0.75) == 16 and wilson(12 / 16, 16)[0] > 0.5 > wilson(9 / 12, 12)[0]
    assert answers_needed(0.5) is None and answers_needed(0.501) is None
    with pytest.raises(ValueError, match="0..1"):
        answers_needed(1.5)


def test_a_scene_of_the_world_is_dynamic_by_its_speed():
    def clip(speed):
        return render(Scene((ShapeObject("cross", "white", "moves right", 0.25, 0.5, 0.15, speed),), "black"), 17, 64,
                      64)

    assert is_dynamic(clip(0.6)) and not is_dynamic(clip(0.1))
