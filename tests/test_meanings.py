"""How much a caption says: which scenes it fits, and how far it pins down where the object is."""

import random
from dataclasses import replace

import pytest
import torch

from minicogvx.data.world.captions import caption
from minicogvx.data.world.meanings import left_open, meaning
from minicogvx.data.world.scenes import Scene, ShapeObject, sample_scenes

THING = ShapeObject("star", "cyan", "moves left", x=0.8, y=0.5, radius=0.22, speed=0.4, size="large")


def test_a_meaning_is_the_same_in_any_words():
    words = random.Random(0)
    dense = {meaning(caption(Scene((THING,), "brown"), words, "dense")) for _ in range(60)}
    assert dense == {("star", "cyan", "moves left", "large", "brown", "right")}
    short = {meaning(caption(Scene((THING,), "brown"), words, "short")) for _ in range(60)}
    assert short == {("star", "cyan", "moves left", None, background, None) for background in ("brown", None)}


def test_the_error_is_that_of_a_new_scene_of_the_same_meaning():
    places = (0.65, 0.7, 0.8, 0.95)
    alike = [Scene((replace(THING, x=x),), "brown") for x in places]
    alone = Scene((replace(THING, shape="bar", x=0.5),), "navy")
    found = left_open([*alike, alone], "dense")
    assert (found.meanings, found.measured_on) == (2, 4)  # the scene that is alone counts for nothing
    assert found.scenes_that_fit == pytest.approx((4 * 4 + 1) / 5)
    assert found.error["left to right"] == pytest.approx(torch.tensor(places).std().item())  # n - 1 below
    assert found.error["top to bottom"] == found.error["radius"] == 0
    with pytest.raises(ValueError, match="no two of these 2 scenes share a meaning"):
        left_open([alike[0], alone], "dense")


def test_a_dense_caption_leaves_less_than_half_as_much_open_as_a_short_one():
    scenes = sample_scenes(8_000, seed=0, two_objects=0.0)
    nothing, short, dense = (left_open(scenes, style) for style in (None, "short", "dense"))
    assert (nothing.meanings, nothing.scenes_that_fit) == (1, 8_000)
    assert dense.scenes_that_fit < short.scenes_that_fit / 3
    for what in ("left to right", "top to bottom", "radius"):
        assert dense.error[what] < short.error[what] / 2 < nothing.error[what] / 2
    assert nothing.error["left to right"] == pytest.approx(0.175, abs=0.005)
    # An unbiased estimate does not grow with the number of scenes; one that counts lone scenes as exact does.
    assert dense.error["left to right"] == pytest.approx(0.049, abs=0.003)
