"""The shapes world and its captions."""

import random
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from minicogvx.data.world.captions import MAX_WORDS, caption, evaluation_caption, parse_caption, unjudged, vocabulary
from minicogvx.data.world.drawing import coverage, render, render_batch
from minicogvx.data.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    EXTENT,
    MOTIONS,
    SHAPES,
    SPLITS,
    UNIT_AREA,
    WORDS,
    Scene,
    ShapeObject,
    crowded_scenes,
    is_held_out,
    sample_scenes,
    trajectory,
)


def test_same_seed_gives_same_scenes_and_others_differ():
    first = sample_scenes(40, seed=3)
    assert first == sample_scenes(40, seed=3)
    assert first[:10] == sample_scenes(10, seed=3)
    assert first != sample_scenes(40, seed=4)
    assert first != sample_scenes(40, seed=3, split="held_out")
    assert torch.equal(render_batch(first[:2], 5, 16, 16), render_batch(first[:2], 5, 16, 16))


def test_every_pair_occurs_in_training_and_an_eighth_of_the_combinations_never():
    for scene in sample_scenes(3000, seed=0):
        assert not any(is_held_out(o.shape, o.colour, o.motion) for o in scene.objects)
    for scene in sample_scenes(500, seed=0, split="held_out"):
        assert sum(is_held_out(o.shape, o.colour, o.motion) for o in scene.objects) == 1
    assert is_held_out("triangle", "green", "moves up")
    triples = SPLITS["train"]
    for (i, first), (j, second) in combinations(enumerate((SHAPES, tuple(COLOURS), MOTIONS)), 2):
        assert len({(triple[i], triple[j]) for triple in triples}) == len(first) * len(second)
    held = SPLITS["held_out"]
    assert set(triples).isdisjoint(held) and len(held) / (len(held) + len(triples)) == pytest.approx(0.125)
    for i, values in enumerate((SHAPES, tuple(COLOURS), MOTIONS)):
        assert {triple[i] for triple in held} == set(values)


def test_two_objects_share_colours_and_distance():
    scenes = sample_scenes(150, seed=1, two_objects=0.5)
    pairs = [scene.objects for scene in scenes if len(scene.objects) == 2]
    assert 50 < len(pairs) < 100
    for a, b in pairs:
        assert a.colour != b.colour
        video = [render(Scene((thing,), "black"), 17, 48, 48).amax(-1) > 0.05 for thing in (a, b)]
        assert not (video[0] & video[1]).any()
    assert all(len(scene.objects) == 1 for scene in sample_scenes(50, seed=1, two_objects=0.0))


def test_shapes_stay_inside_and_move_far_enough():
    u = np.linspace(0, 1, 65)
    for scene in sample_scenes(500, seed=2):
        for thing in scene.objects:
            x, y, r = trajectory(thing, u)
            w, h = (share * r for share in EXTENT[thing.shape])
            assert (x - w).min() >= 0 and (x + w).max() <= 1 and (y - h).min() >= 0 and (y + h).max() <= 1
            if thing.motion in ("grows", "shrinks"):
                assert r.max() / r.min() > 1.8
            elif thing.motion != "stays still":
                assert np.hypot(np.ptp(x), np.ptp(y)) >= 0.3


def test_drawn_area_and_centre_are_the_stated_ones(subtests):
    for shape in SHAPES:
        with subtests.test(shape):
            steps = np.arange(-130, 130) + 0.5
            mask = coverage(shape, steps[None, :], steps[:, None], 90.0)
            assert mask.sum() / 90**2 == pytest.approx(UNIT_AREA[shape], rel=2e-3)
            assert abs((mask.sum(0) @ steps) / mask.sum()) < 0.1 and abs((mask.sum(1) @ steps) / mask.sum()) < 0.1
            half_width, half_height = (abs(steps[mask.any(axis)]).max() / 90 for axis in (0, 1))
            assert half_width <= EXTENT[shape][0] + 0.02 and half_height <= EXTENT[shape][1] + 0.02


def test_one_scene_at_any_resolution_and_frame_count_in_the_colours_of_the_palette():
    for scene in sample_scenes(30, seed=5):
        small, large = render(scene, 5, 24, 24), render(scene, 9, 96, 96)
        shrunk = torch.nn.functional.avg_pool2d(large[::2].permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
        assert (small - shrunk).abs().mean() < 0.01
    assert render(scene, 1, 16, 24).shape == (1, 16, 24, 3)
    scene = Scene((ShapeObject("bar", "cyan", "stays still", 0.5, 0.5, 0.2),), "navy")
    video = render(scene, 3, 32, 32)
    assert video.dtype == torch.float32 and video.min() >= 0 and video.max() <= 1
    assert torch.allclose(video[0, 16, 16], torch.tensor(COLOURS["cyan"]))
    assert torch.allclose(video[0, 0, 0], torch.tensor(BACKGROUNDS["navy"]))


def test_an_object_is_drawn_where_it_is_also_beyond_the_edges_of_the_frame(subtests):
    height, width, frames = 24, 40, 3
    columns, rows = np.arange(width)[None, :] + 0.5, np.arange(height)[:, None] + 0.5
    for shape in SHAPES:
        for x, y in ((0.5, 0.5), (0.02, 0.5), (-0.1, -0.1), (1.05, 0.98), (0.5, 1.3), (-2.0, 0.5), (3.0, 3.0)):
            with subtests.test(f"{shape} at {x}, {y}"):
                thing = ShapeObject(shape, "white", "moves right", x, y, 0.3, 0.2)
                video = render(Scene((thing,), "black"), frames, height, width)[..., 0].numpy()
                for drawn, cx, cy, r in zip(video, *trajectory(thing, np.linspace(0, 1, frames))):
                    share = coverage(shape, columns - cx * width, rows - cy * height, r * height)
                    black, white = BACKGROUNDS["black"][0], COLOURS["white"][0]
                    assert np.allclose(drawn, black + share * (white - black), atol=1e-4)


def test_a_crowded_scene_has_the_objects_of_several_and_the_last_lies_on_top():
    scenes = sample_scenes(6, seed=7)
    assert crowded_scenes(6, 7, 1) == scenes
    for scene, parts in zip(crowded_scenes(2, 7, 3), (scenes[:3], scenes[3:])):
        assert scene.objects == sum((part.objects for part in parts), ()) and scene.background == parts[0].background
    pile = Scene(tuple(ShapeObject("circle", colour, "stays still", 0.5, 0.5, radius)
                       for colour, radius in (("red", 0.45), ("green", 0.3), ("blue", 0.15))), "black")
    frame = render(pile, 1, 64, 64)[0]
    palette = COLOURS | BACKGROUNDS
    for column, colour in ((32, "blue"), (18, "green"), (8, "red"), (1, "black")):
        torch.testing.assert_close(frame[32, column], torch.tensor(palette[colour]))
    video = render_batch(crowded_scenes(20, 1, 8), 3, 32, 32)
    assert video.min() >= -1e-6 and video.max() <= 1 + 1e-6, "what is covered does not shine through"
    with pytest.raises(ValueError, match="has 3 objects; a caption describes one or two"):
        caption(pile, random.Random(0))


def test_objects_circle_as_often_as_asked_and_nothing_else_changes():
    scenes = sample_scenes(3000, 3, two_objects=0.1, circling=0.4)
    single = [scene.objects[0] for scene in scenes if len(scene.objects) == 1]
    assert abs(sum(thing.motion == "moves in a circle" for thing in single) / len(single) - 0.4) < 0.04
    assert {thing.motion for thing in single} == set(MOTIONS) and len(single) < 3000
    assert not any(is_held_out(thing.shape, thing.colour, thing.motion) for thing in single)
    always = sample_scenes(20, 3, "held_out", 0.0, circling=1.0)
    assert all(scene.objects[0].motion == "moves in a circle" for scene in always)


def test_a_smaller_world_has_the_chosen_words_only():
    choices = {"shape": ("star", "circle"), "motion": ("moves left", "moves up"), "background": ("navy",)}
    for split in ("train", "held_out"):
        scenes = sample_scenes(200, 1, split, two_objects=0.3, choices=choices)
        things = [thing for scene in scenes for thing in scene.objects]
        assert {thing.shape for thing in things} == {"circle", "star"}
        assert {thing.motion for thing in things} == {"moves left", "moves up"}
        assert {scene.background for scene in scenes} == {"navy"} and {len(scene.objects) for scene in scenes} == {1, 2}
        assert all(any(is_held_out(thing.shape, thing.colour, thing.motion) for thing in scene.objects)
                   == (split == "held_out") for scene in scenes)
    every = {kind: words[::-1] for kind, words in WORDS.items()}  # all of them, in whatever order
    assert sample_scenes(20, 3, choices=every) == sample_scenes(20, 3) == sample_scenes(20, 3, choices={})


def test_bad_requests_name_the_value():
    with pytest.raises(ValueError, match="circling is 1.5"):
        sample_scenes(1, 0, circling=1.5)
    with pytest.raises(ValueError, match="with circling=0.5 it must have scenes with 'moves in a circle' and without"):
        sample_scenes(1, 0, two_objects=0.0, choices={"motion": ("bounces",)}, circling=0.5)
    thing = sample_scenes(1, seed=0)[0].objects[0]
    for call, text in ((lambda: replace(thing, colour="teal"), "teal"), (lambda: Scene((thing,), "pink"), "pink"),
                       (lambda: sample_scenes(1, 0, split="test"), "test"), (lambda: Scene((), "black"), "0 objects"),
                       (lambda: sample_scenes(1, 0, two_objects=2.0), "2.0"),
                       (lambda: sample_scenes(1, 0, choices={"size": ("small",)}), "choices has 'size'"),
                       (lambda: sample_scenes(1, 0, choices={"shape": ("circle", "square")}), "'square'"),
                       (lambda: sample_scenes(1, 0, choices={"shape": "circle"}), "must be a list"),
                       (lambda: sample_scenes(1, 0, choices={"colour": ("red",)}), "leaves no scene"),
                       (lambda: sample_scenes(1, 0, two_objects=0.0, choices={
                           "shape": ("circle",), "colour": ("red",), "motion": ("moves left",)},
                           split="held_out"), "leaves no scene"),
                       (lambda: render(Scene((thing,), "black"), 0, 8, 8), "num_frames is 0")):
        with pytest.raises(ValueError, match=text):
            call()


def test_parse_caption_inverts_captions():
    rng = random.Random(0)
    for scene in sample_scenes(1000, seed=6, two_objects=0.3):
        for style in ("short", "dense"):
            text = caption(scene, rng, style)
            asked = parse_caption(text)
            assert len(text.split()) <= MAX_WORDS
            assert [(o.shape, o.colour, o.motion) for o in asked.objects] \
                == [(o.shape, o.colour, o.motion) for o in scene.objects], text
            if style == "dense":
                assert asked.background == scene.background, text
                assert [o.size for o in asked.objects] == [o.size for o in scene.objects], text
            else:
                assert asked.background in (None, scene.background), text
        assert parse_caption(evaluation_caption(scene, rng)).background == scene.background


def test_parse_free_prompts(subtests):
    cases = [
        ("a red circle moves right", [("circle", "red", "moves right")], None),
        ("A small yellow star bouncing, on a gray wall!", [("star", "yellow", "bounces")], "grey"),
        ("a circle that is red moves up and down", [("circle", "red", "bounces")], None),
        ("the ring moves in a circle", [("ring", None, "moves in a circle")], None),
        ("a blue bar and a red ring moving left", [("bar", "blue", "moves left"), ("ring", "red", "moves left")], None),
        ("a circle on a white background", [("circle", None, None)], None),
        ("an elephant", [], None),
    ]
    for text, objects, background in cases:
        with subtests.test(text):
            asked = parse_caption(text)
            assert [(o.shape, o.colour, o.motion) for o in asked.objects] == objects and asked.background == background


def test_what_no_reading_confirms_is_named(subtests):
    rng = random.Random(0)
    for scene in sample_scenes(300, seed=6, two_objects=0.3):
        assert unjudged(caption(scene, rng, "short")) == unjudged(evaluation_caption(scene, rng)) == []
        assert all(word in ("small", "large", "top", "bottom", "middle", "left", "right")
                   for words in unjudged(caption(scene, rng, "dense")) for word in words.split())
    for text, left in (
        ("a white star rotates on a purple background", ["rotates on a purple background"]),
        ("a red circle moves right and a blue square moves up", ["blue square moves up"]),
        ("A small white triangle falls down", ["small"]),
        ("a circle that is red moves slowly up", ["moves slowly up"]),
        ("a red and blue circle moves right", ["red"]),
        ("a shiny bar, near the top left, grows on navy", ["shiny", "top left"]),
        ("an elephant", ["elephant"]), ("", []),
    ):
        with subtests.test(text):
            assert unjudged(text) == left


def test_vocabulary_is_exactly_what_captions_use():
    rng, words, distinct = random.Random(1), set(), set()
    for scene in sample_scenes(1500, seed=7, two_objects=0.3):
        for _ in range(5):
            text = caption(scene, rng)
            distinct.add(text)
            words.update(text.split())
    assert words == set(vocabulary())
    assert len(vocabulary()) < 100 and list(vocabulary()) == sorted(vocabulary())
    assert len(distinct) > 6000


def test_captions_repeat_by_seed_and_sometimes_omit_the_background():
    scene = sample_scenes(1, seed=8, two_objects=0.0)[0]
    first, again = ([caption(scene, random.Random(i)) for i in range(20)] for _ in range(2))
    assert first == again
    said = [parse_caption(caption(scene, random.Random(i), "short")).background for i in range(400)]
    assert 60 < said.count(None) < 140
    with pytest.raises(ValueError, match="'long'"):
        caption(scene, random.Random(0), "long")
