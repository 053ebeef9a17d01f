"""Rewards, the policy gradient and distillation: formulas against other ways to compute them, and small trainings."""

import math
from dataclasses import replace

import pytest
import torch

from minicogvx.data.world.drawing import render, render_batch
from minicogvx.data.world.scenes import Scene, ShapeObject, sample_scenes
from minicogvx.diffusion import DDIMSampler, NoiseSchedule
from minicogvx.presets import preset
from minicogvx.training.distillation import distil, distillation_loss, target_x0, teacher_trajectories
from minicogvx.training.policy import (
    PolicyTraining,
    adapted_copy,
    clipped_objective,
    gaussian_log_prob,
    latent_shape,
    learn_from_reward,
    rollout,
    step_gaussian,
)
from minicogvx.training.reward import (
    all_right,
    colour_seen,
    first_layout,
    group_advantages,
    layout_spread,
    rewards_of,
    share_right,
)
from tests.tiny import tiny_pipe

SCHEDULE = NoiseSchedule(preset("toy").schedule)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- rewards


def test_a_true_clip_earns_all_and_a_wrong_one_its_share():
    scene = sample_scenes(1, 3, two_objects=0.0)[0]
    clip = render(scene, 17, 64, 64)
    assert share_right(clip, scene) == 1.0 == all_right(clip, scene)
    colour = "white" if scene.objects[0].colour != "white" else "red"
    other = replace(scene, objects=(replace(scene.objects[0], colour=colour),))
    assert share_right(clip, other) == 0.8 and all_right(clip, other) == 0.0
    assert 0 < colour_seen(clip, scene) < 0.3 and colour_seen(clip, other) < colour_seen(clip, scene)


def test_layouts_and_their_spread():
    def at(x, radius=0.2):
        return render(Scene((ShapeObject("circle", "red", "stays still", x, 0.4, radius),), "black"), 5, 64, 64)

    x, y, size = first_layout(at(0.3))
    assert math.isclose(x, 0.3, abs_tol=0.02) and math.isclose(y, 0.4, abs_tol=0.02)
    assert math.isclose(size, 0.2 * math.sqrt(math.pi), abs_tol=0.03)
    assert layout_spread([at(0.3), at(0.3)]) < 0.01 < 0.1 < layout_spread([at(0.25), at(0.75)])
    assert layout_spread([at(0.5, 0.15), at(0.5, 0.3)]) > 0.1
    empty = torch.zeros(5, 64, 64, 3)
    assert first_layout(empty) is None and layout_spread([empty, at(0.3)]) == 0.0


def test_advantages_compare_within_a_group():
    rewards = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.6, 0.6, 0.6, 0.6], [5.0, 6.0, 5.0, 6.0]])
    assert torch.allclose(group_advantages(rewards), torch.tensor([[-1.0, 1, -1, 1], [0, 0, 0, 0], [-1, 1, -1, 1]]))


def test_rewards_go_to_the_groups_of_their_scenes():
    scenes = sample_scenes(2, 5, two_objects=0.0)
    clips = render_batch([scenes[0], scenes[1], scenes[1], scenes[0]], 17, 64, 64)
    found = rewards_of(all_right, clips, scenes, 2)
    assert found.tolist() == [[1.0, 0.0], [1.0, 0.0]]


# ---- the policy


def test_without_eta_a_step_is_that_of_ddim():
    x, v, sampler = noise(2, 4, 3, 4, 4), noise(2, 4, 3, 4, 4, seed=1), DDIMSampler(SCHEDULE, 4, "next")
    for i, (t, t_next) in enumerate(zip(sampler.timesteps.tolist(), sampler.targets.tolist())):
        mean, std = step_gaussian(SCHEDULE, v, x, t, t_next, 0.0)
        assert std == 0 and torch.allclose(mean, sampler.step(v, i, x)[0], atol=1e-4)


def test_a_random_step_keeps_the_noise_level():
    """Whatever eta is: from clean latents of 0 and true noise, the next latents have the variance 1 - alpha_bar'."""
    true = noise(1, 16, 5, 32, 32)
    for eta in (0.3, 1.0):
        for t, t_next in ((999, 749), (749, 499), (499, 249)):
            x = math.sqrt(1 - SCHEDULE.alpha_bar(t)) * true
            v = math.sqrt(SCHEDULE.alpha_bar(t)) * true
            mean, std = step_gaussian(SCHEDULE, v, x, t, t_next, eta)
            assert math.isclose(float(mean.square().mean()) + std**2, 1 - SCHEDULE.alpha_bar(t_next), rel_tol=0.02)


def test_log_probabilities_are_those_of_torch():
    x, mean = noise(3, 4, 5), noise(3, 4, 5, seed=1)
    wanted = torch.distributions.Normal(mean, 0.7).log_prob(x).flatten(1).sum(dim=1)
    assert torch.allclose(gaussian_log_prob(x, mean, 0.7), wanted, atol=1e-3)


def test_the_objective_stops_rewarding_and_goes_on_punishing():
    old = torch.zeros(1).requires_grad_()
    for step, advantage, moves in ((0.1, 1.0, True), (1.0, 1.0, False), (-1.0, -1.0, False), (1.0, -1.0, True)):
        new = torch.tensor([step]).requires_grad_()
        with torch.enable_grad():
            value = clipped_objective(new, old.detach(), torch.tensor([advantage]), 0.2)
            (slope,) = torch.autograd.grad(value.sum(), new)
        assert bool(slope) is moves, (step, advantage)


def test_a_rollout_knows_its_own_log_probabilities():
    pipe = tiny_pipe()
    text, begin = pipe.text.encode(["a red circle moves up"] * 2), noise(2, *latent_shape(pipe))
    taken = rollout(pipe.transformer, pipe.schedule, text, begin, 3, 0.8, torch.Generator().manual_seed(0))
    assert taken.states.shape == (4, *begin.shape) and taken.log_probs.shape == (2, 2)
    sampler = DDIMSampler(pipe.schedule, 3, "next")
    with torch.no_grad():
        for i in range(2):
            t = int(sampler.timesteps[i])
            v = pipe.transformer(taken.states[i], torch.full((2,), t), text)
            step = step_gaussian(pipe.schedule, v, taken.states[i], t, int(sampler.targets[i]), 0.8)
            assert torch.allclose(gaussian_log_prob(taken.states[i + 1], *step), taken.log_probs[i], atol=0.5)


@pytest.mark.parametrize("way", ["gradient", "contrast"])
def test_a_policy_learns_what_is_rewarded(way):
    """The reward is how bright a clip is, which the oracle has no part in."""
    pipe = tiny_pipe()
    training = PolicyTraining(12, way, captions=2, members=8, num_inference_steps=3, learning_rate=2e-2, rank=4)
    model = adapted_copy(pipe.transformer, training)
    records = learn_from_reward(pipe, model, training, lambda clip, scene: float(clip.mean()))
    rewards = [one["reward"] for one in records]
    assert sum(rewards[-3:]) > sum(rewards[:3]), rewards
    assert all(0 <= one["clipped"] <= 1 and one["teach"] == 1 for one in records)


@pytest.mark.parametrize(("change", "words"), [
    ({"way": "luck"}, "way is 'luck'"), ({"members": 1}, "members is 1"), ({"eta": 0.0}, "eta is 0.0"),
    ({"iterations": 0}, "iterations is 0"), ({"num_inference_steps": 1}, "num_inference_steps 1")])
def test_bad_settings_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        PolicyTraining(**({"iterations": 1} | change))


# ---- distillation


def test_the_target_is_what_makes_ddim_land():
    x, landing, sampler = noise(2, 4, 3, 4, 4), noise(2, 4, 3, 4, 4, seed=1), DDIMSampler(SCHEDULE, 4, "next")
    for i, (t, t_next) in enumerate(zip(sampler.timesteps.tolist(), sampler.targets.tolist())):
        x0 = target_x0(x, landing, t, t_next, SCHEDULE)
        v = (math.sqrt(SCHEDULE.alpha_bar(t)) * x - x0) / math.sqrt(1 - SCHEDULE.alpha_bar(t))
        assert torch.allclose(sampler.step(v, i, x)[0], landing, atol=1e-3)


def test_a_teacher_without_guidance_and_with_as_few_steps_has_nothing_to_teach():
    pipe = tiny_pipe()
    pipe.guidance_scale = 1.0
    states, text = teacher_trajectories(pipe, 3, steps=4, kept=4, batch=2)
    assert states.shape == (5, 3, *latent_shape(pipe)) and len(text) == 3
    sampler = DDIMSampler(pipe.schedule, 4, "next")
    for i in range(4):
        moments = (torch.full((3,), int(each[i])) for each in (sampler.timesteps, sampler.targets))
        with torch.no_grad():
            loss = distillation_loss(pipe.transformer, states[i], states[i + 1], *moments, text, pipe.schedule)
        assert loss.shape == (3,) and loss.max() < 1e-6


def test_a_student_comes_closer_to_its_teacher():
    pipe = tiny_pipe()
    trajectories = teacher_trajectories(pipe, 4, steps=8, kept=4)
    model = adapted_copy(pipe.transformer, PolicyTraining(1, rank=4))
    losses = distil(model, trajectories, pipe.schedule, 40, 1e-2, batch=4)
    assert sum(losses[-4:]) < sum(losses[:4])
    with pytest.raises(ValueError, match="steps is 9"):
        teacher_trajectories(pipe, 4, steps=9, kept=4)
