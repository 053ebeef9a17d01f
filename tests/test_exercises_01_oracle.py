"""Exercises 1.4 and 1.5 (an oracle, and a forgery) distinguish right from wrong, and name the mistake."""

import math

import numpy as np
import pytest
import torch

from minicogvx.course.exercises import find
from minicogvx.course.exercises.notebook_01 import FORGED, RESTLESS, flicker_of
from minicogvx.data.world import oracle
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import DIRECTIONS, sample_scenes, trajectory
from tests.guards import guard


def without_return(*arguments, **named):
    pass


# ---- 1.4 read_direction


def right_read_direction(x, y, straight=0.8):
    gone = max(math.dist((x[0], y[0]), point) for point in zip(x, y))
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    if gone < 0.02:
        return "stays still"
    if math.hypot(dx, dy) < straight * gone:
        return None
    parts = [name for name, on in (("up", dy < -abs(dx) / 2.4), ("down", dy > abs(dx) / 2.4),
                                   ("left", dx < -abs(dy) / 2.4), ("right", dx > abs(dy) / 2.4)) if on]
    return "moves " + " and ".join(parts)


def y_points_up(x, y):
    return right_read_direction(x, [-value for value in y])


def four_directions(x, y):
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    if math.hypot(dx, dy) < 0.02:
        return right_read_direction(x, y)
    return ("moves left", "moves right")[dx > 0] if abs(dx) > abs(dy) else ("moves up", "moves down")[dy > 0]


def never_still(x, y):
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    return max(DIRECTIONS, key=lambda n: (dx * DIRECTIONS[n][0] + dy * DIRECTIONS[n][1]) / math.hypot(*DIRECTIONS[n]))


def only_the_ends(x, y):
    return "stays still" if math.dist((x[0], y[0]), (x[-1], y[-1])) < 0.05 else never_still(x, y)


def the_signs_alone(x, y):
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    parts = ["up"] * (dy < 0) + ["down"] * (dy > 0) + ["left"] * (dx < 0) + ["right"] * (dx > 0)
    return "moves " + " and ".join(parts)


def half_the_way_is_enough(x, y):
    return right_read_direction(x, y, straight=0.5)


def never_a_step_back(x, y):
    return right_read_direction(x, y, straight=0.97)


def slow_is_still(x, y):
    gone = max(math.dist((x[0], y[0]), point) for point in zip(x, y))
    return "stays still" if gone < 0.1 else right_read_direction(x, y)


def longest_product(x, y):
    if right_read_direction(x, y) in (None, "stays still"):
        return right_read_direction(x, y)
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    return max(DIRECTIONS, key=lambda n: dx * DIRECTIONS[n][0] + dy * DIRECTIONS[n][1])


def test_read_direction():
    guard("1.4", right_read_direction, [
        ('moves up: it must be "moves up"; you read \'moves down\'', y_points_up),
        ('must be "moves up and left"; you read', four_directions),
        ('must be "stays still"; you read', never_still),
        ("bounces, so it is no direction and not still; you read 'stays still', it must be None", only_the_ends),
        ('"moves left"; you read', the_signs_alone),
        ('"moves left"; you read', longest_product),
        ("back to 0.7 of its largest distance, so it is no direction and not still; you read", half_the_way_is_enough),
        ('back to 0.9 of its largest distance: it must be "moves right"; you read None', never_a_step_back),
        ('0.05 from its start, moves left: it must be "moves left"; you read \'stays still\'', slow_is_still),
        ('"moves left"; you read None', without_return),
    ])


# ---- 1.5 forge


def right_forge(clip):
    return torch.stack([(frame + 0.06 * (t % 2)).clamp(0, 1) for t, frame in enumerate(clip)])


def unchanged(clip):
    return clip


def one_noisy_frame(clip):
    return torch.cat([clip[:8], torch.rand(1, *clip.shape[1:]), clip[9:]])


def too_much_noise(clip):
    return (clip + 0.4 * torch.randn(clip.shape)).clamp(0, 1)


def noise_alone(clip):
    return torch.rand(clip.shape)


def shuffled(clip):
    return clip[[8, 0, 16, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15]]


def beyond_white(clip):
    return clip + 0.08 * torch.randn(clip.shape)


def not_a_number(clip):
    return clip / clip.new_zeros(()) * 0


def every_second_frame(clip):
    return clip[::2]


def as_bytes(clip):
    return (255 * clip).numpy()


def test_forge():
    guard("1.5", right_forge, [
        ("neighbouring frames differ by 0.008 on average; it must be 0.04 or more", unchanged),
        ("it must be 0.04 or more. (In the true clip it is 0.008.)", lambda clip: clip.flip(2).flip(2)),
        ("does not fool the oracle: it notices the", too_much_noise),
        ("does not fool the oracle: it notices the", noise_alone),
        ("does not fool the oracle: it notices the motion", shuffled),
        ("a video lies in 0..1", beyond_white),
        ("holds NaN or infinity", not_a_number),
        ("has shape (9, 64, 64, 3); it must be (17, 64, 64, 3)", every_second_frame),
        ("is a ndarray; it must be a tensor", as_bytes),
        ("is None; does your function end in return?", without_return),
    ])


@pytest.mark.parametrize("spoil", [one_noisy_frame, right_forge], ids=lambda spoil: spoil.__name__)
def test_the_oracle_lets_some_forgeries_pass(spoil):
    for scene in FORGED:
        assert oracle.matches(oracle.read(spoil(render(scene, 17, 64, 64))), scene)["all"]


def test_true_clips_hardly_flicker():
    for scene in FORGED:
        assert flicker_of(render(scene, 17, 64, 64)) < 0.01 < RESTLESS


# ---- what replaces the learner's own


def test_read_direction_agrees_with_the_oracle():
    clock = torch.linspace(0, 1, 17).numpy()
    for scene in sample_scenes(80, 5, two_objects=0.0):
        x, y, _ = trajectory(scene.objects[0], clock)
        if scene.objects[0].motion not in ("grows", "shrinks"):
            read = oracle.read(render(scene, 17, 64, 64)).objects[0].motion
            wanted = read if read in (*DIRECTIONS, "stays still") else None
            assert find("1.4").reference(x.tolist(), y.tolist()) == wanted, scene


def test_three_frames_of_a_bounce_show_a_shape_that_stays_where_it_is():
    thing = next(scene.objects[0] for scene in sample_scenes(400, 3, two_objects=0.0)
                 if scene.objects[0].motion == "bounces")  # notebook 01's
    _, height, _ = trajectory(thing, torch.linspace(0, 1, 17).numpy())
    spread = {kept: float(np.ptp(height[[round(16 * i / (kept - 1)) for i in range(kept)]])) for kept in (3, 5, 6, 17)}
    assert spread[3] < 1e-6 and spread[5] == spread[17] > 0.3
