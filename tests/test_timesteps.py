"""Timesteps of sampling and of training, and guidance: published numbers and statistics."""

import math
from itertools import product

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from minicogvx.diffusion import (
    NoiseSchedule,
    dynamic_guidance_scale,
    guidance_scales,
    guide,
    inference_timesteps,
    rank_interval,
    rank_timesteps,
    start_index,
    stratified_timesteps,
    uniform_timesteps,
)
from minicogvx.diffusion.timesteps import target_timesteps
from minicogvx.presets import ScheduleConfig

T = 1000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------- timesteps of sampling

def test_trailing_timesteps_and_where_a_video_starts_among_them():
    schedule = NoiseSchedule(ScheduleConfig())
    assert inference_timesteps(schedule, 50).tolist() == list(range(999, 0, -20))
    assert inference_timesteps(schedule, 7).tolist() == [999, 856, 713, 570, 428, 285, 142]
    assert inference_timesteps(schedule, 1).tolist() == [999]
    assert inference_timesteps(schedule, T).tolist() == list(range(999, -1, -1))
    for n in (0, -3, T + 1):
        with pytest.raises(ValueError, match=f"num_inference_steps is {n}; it must be from 1 to 1000"):
            inference_timesteps(schedule, n)
    assert [start_index(s, 50) for s in (0.0, 0.01, 0.02, 0.5, 0.8, 0.99, 1.0)] == [50, 50, 49, 25, 10, 1, 0]
    for strength in (-0.1, 1.01, math.nan):
        with pytest.raises(ValueError, match=f"strength is {strength}; it must be from 0 to 1"):
            start_index(strength, 50)


def test_timesteps_are_those_of_diffusers_for_every_number_of_steps():
    schedule, too_long = NoiseSchedule(ScheduleConfig()), []
    theirs = CogVideoXDDIMScheduler(timestep_spacing="trailing")
    for n in range(1, T + 1):
        theirs.set_timesteps(n)
        expected = theirs.timesteps.tolist()
        if len(expected) > n:  # their float error lets in a timestep -1
            too_long.append(n)
            assert expected.pop() == -1
        assert inference_timesteps(schedule, n).tolist() == expected, n
    assert len(too_long) == 62 and too_long[0] == 61


def test_the_other_spacings_are_those_of_diffusers(subtests):
    for spacing, T in product(("leading", "linspace"), (1000, 997, 50)):
        with subtests.test(spacing, T=T):
            schedule = NoiseSchedule(ScheduleConfig(num_train_timesteps=T, timestep_spacing=spacing))
            theirs = CogVideoXDDIMScheduler(num_train_timesteps=T, timestep_spacing=spacing)
            for n in range(1, T + 1):
                theirs.set_timesteps(n)
                assert torch.equal(inference_timesteps(schedule, n), theirs.timesteps), n


def test_targets():
    schedule = NoiseSchedule(ScheduleConfig())
    assert target_timesteps(schedule, 50).tolist() == list(range(979, -2, -20))
    assert target_timesteps(schedule, 50, "next").tolist() == list(range(979, 0, -20)) + [-1]
    assert target_timesteps(schedule, 7).tolist() == [857, 714, 571, 428, 286, 143, 0]  # leaves a trace of noise
    assert target_timesteps(schedule, 7, "next").tolist() == [856, 713, 570, 428, 285, 142, -1]


# ---------------------------------------------------------------------------- timesteps of training

def test_intervals_partition_the_timesteps_and_draws_fill_them(subtests):
    for world, grouping in product((1, 2, 3, 7, 8, 12, 64, 1000), ("paper", "v1.0")):
        with subtests.test(grouping, world=world):
            intervals = sorted({rank_interval(T, rank, world, grouping) for rank in range(world)})
            assert [t for low, high in intervals for t in range(low, high)] == list(range(T))
            sizes = {high - low for low, high in intervals}
            assert max(sizes) - min(sizes) <= (grouping == "paper" and T % world > 0)
    # 12 ranks: 12 and 6 do not divide 1000, 4 does, so three neighbours share an interval in the release
    assert [rank_interval(T, rank, 12, "v1.0") for rank in (0, 2, 3, 11)] == \
        [(0, 250), (0, 250), (250, 500), (750, 1000)]
    assert rank_interval(T, 5, 7, "v1.0") == (0, T)
    assert rank_interval(T, 5, 8, "v1.0") == rank_interval(T, 5, 8) == (625, 750)
    assert set(rank_timesteps(2000, T, 3, 40, seeded()).tolist()) == set(range(75, 100))
    for rank, world, told in ((-1, 4, "rank is -1"), (4, 4, "rank is 4; .* in 0..3"), (0, T + 1, "world_size is 1001")):
        with subtests.test(told), pytest.raises(ValueError, match=told):
            rank_interval(T, rank, world)


def test_stratified_batch_has_one_timestep_in_each_part_in_any_order(subtests):
    for b in (1, 4, 7, 32):
        with subtests.test(b=b):
            for seed in range(20):
                t = stratified_timesteps(b, T, seeded(seed)).sort().values
                for i, value in enumerate(t.tolist()):
                    assert i * T // b <= value < math.ceil((i + 1) * T / b)
    g = seeded()
    first = torch.stack([stratified_timesteps(8, T, g) for _ in range(2000)])[:, 0].double()
    assert abs(first.mean() - 499.5) < 30 and first.std() > 270
    for draw in (uniform_timesteps, stratified_timesteps):
        assert torch.equal(draw(9, T, seeded(1)), draw(9, T, seeded(1)))
        assert not torch.equal(draw(9, T, seeded(1)), draw(9, T, seeded(2)))


def test_every_timestep_is_equally_likely(subtests):
    ways = {
        "uniform": lambda g: uniform_timesteps(7, 20, g), "few strata": lambda g: stratified_timesteps(7, 20, g),
        "more than timesteps": lambda g: stratified_timesteps(50, 20, g),
        "ranks": lambda g: torch.cat([rank_timesteps(2, 20, rank, 4, g) for rank in range(4)]),
    }
    for name, draw in ways.items():
        with subtests.test(name):
            g = seeded()
            t = torch.cat([draw(g) for _ in range(3000)])
            counts, expected = torch.bincount(t, minlength=20).double(), len(t) / 20
            assert len(counts) == 20
            assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-squared, 19 degrees: 1 in 10,000 is above


def test_explicit_uniform_sampling_reduces_the_variance_of_the_loss():
    # A smooth stand-in for the loss at each timestep, shaped like the paper's table 9.
    loss = 0.12 + 0.1 * ((torch.arange(T) - 500) / 500.0) ** 2
    g = seeded()
    ways = {
        "uniform": lambda: uniform_timesteps(16, T, g),
        "stratified": lambda: stratified_timesteps(16, T, g),
        "ranks": lambda: torch.cat([rank_timesteps(2, T, rank, 8, g) for rank in range(8)]),
    }
    means = {name: torch.stack([loss[way()].mean() for _ in range(1000)]) for name, way in ways.items()}
    for name in ("stratified", "ranks"):
        assert means[name].mean() == pytest.approx(means["uniform"].mean().item(), abs=1e-3)
        assert means[name].var() < means["uniform"].var() / 10


# ---------------------------------------------------------------------------- guidance

def test_guide():
    uncond, cond = torch.randn(2, 1, 4, 3, 2, 2, generator=seeded())
    torch.testing.assert_close(guide(uncond, cond, 1.0), cond)
    torch.testing.assert_close(guide(uncond, cond, 0.0), uncond)
    torch.testing.assert_close(guide(uncond, cond, 6.0), 6 * cond - 5 * uncond)
    torch.testing.assert_close(guide(uncond.bfloat16(), cond.bfloat16(), 6.0),
                               guide(uncond.bfloat16().float(), cond.bfloat16().float(), 6.0), rtol=0, atol=0)


def test_dynamic_guidance_as_published_jumps_about():
    timesteps = inference_timesteps(NoiseSchedule(ScheduleConfig()), 50).tolist()
    scales = [dynamic_guidance_scale(6.0, i, t, 50, "published") for i, t in enumerate(timesteps)]
    assert [round(s, 2) for s in scales[:8]] == [2.29, 2.54, 6.97, 6.42, 2.79, 4.27, 1.04, 4.17]
    assert round(sum(scales) / 50, 2) == 3.82
    assert round(min(scales), 2) == 1 and round(max(scales), 2) == 7


def test_dynamic_guidance_as_meant_rises_and_none_is_constant():
    scales = [dynamic_guidance_scale(6.0, i, -1, 50, "meant") for i in range(50)]
    assert scales == sorted(scales)
    assert scales[0] == 1 and round(scales[-1], 2) == 6.86
    assert dynamic_guidance_scale(6.0, 3, 939, 50, None) == 6.0
    for scale in (0.0, 0.5, 1.0, 6.0):
        assert guidance_scales(scale, torch.tensor([999, 499]), None) == [scale, scale]
    for scale, mode in product((0.0, 0.5, 1.0), ("published", "meant")):  # up to one it guides nothing
        assert guidance_scales(scale, torch.tensor([999, 499]), mode) == [1.0, 1.0]


def test_the_scales_of_a_video_count_its_own_steps():
    left = inference_timesteps(NoiseSchedule(ScheduleConfig()), 50)[10:]  # strength 0.8
    assert [round(s, 2) for s in guidance_scales(6.0, left, "published")[:5]] == [2.33, 2.18, 3.07, 3.16, 3.66]
    meant = guidance_scales(6.0, left, "meant")
    assert meant[0] == 1 and meant == sorted(meant) and len(meant) == 40
    assert guidance_scales(6.0, left[:0], "meant") == []


def test_unknown_options(subtests):
    calls = {
        "target is 'exact'; .* 'stride'": lambda: target_timesteps(NoiseSchedule(ScheduleConfig()), 7, "exact"),
        "grouping is 'v2'; .* 'paper' or 'v1.0'": lambda: rank_interval(T, 0, 8, "v2"),
        "dynamic_guidance is 'cosine'; .* None, 'pub": lambda: dynamic_guidance_scale(6.0, 0, 999, 50, "cosine"),
    }
    for told, call in calls.items():  # where jaxtyping checks the annotations it speaks first
        with subtests.test(told), pytest.raises(Exception, match=f"{told}|Type-check error"):
            call()
