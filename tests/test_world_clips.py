"""Clips of the shapes world as training data: their latents, what covers each cell, the length of their captions."""

import random

import pytest
import torch

from minicogvx.data.clips.clips import BriefCaptions, Clips
from minicogvx.data.world.captions import caption, fewest_tokens, most_tokens
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.features import FEATURES, scene_features
from minicogvx.data.world.scenes import COLOURS, MOTIONS, SHAPES, UNIT_AREA, Scene, ShapeObject, sample_scenes
from minicogvx.engine.ranks import Ranks
from tests.tiny import tiny_vae
from tests.trained import world_clips


def test_latents_are_those_of_the_vae_sampled_or_at_their_mean_at_any_size():
    clips = world_clips(5, batch_size=2)
    assert isinstance(clips, Clips) and len(clips) == 5 and clips.latent_size(4) == (3, 8, 8)
    video = render_batch(sample_scenes(5, 0, "train", 0.15), 9, 32, 32).permute(0, 4, 1, 2, 3) * 2 - 1
    with torch.no_grad():
        posterior = tiny_vae().encode(video)
    drawn = [torch.stack([clips.latents(i, torch.Generator().manual_seed(seed)) for i in range(5)]) for seed in (1, 2)]
    mean = torch.stack([clips.latents(i) for i in range(5)])
    assert torch.allclose(mean, 0.9 * posterior.mean, atol=2e-3) and not torch.equal(*drawn)
    spread = 0.9 * posterior.std.square().mean().sqrt().item()
    assert (drawn[0] - mean).square().mean().sqrt().item() == pytest.approx(spread, rel=0.1)
    assert torch.equal(clips.first_pixels(3), video[3, :, :1])
    assert clips.caption(0, random.Random(0)) != clips.caption(0, random.Random(1))
    small = world_clips(2, side=16)
    assert small.latent_size(0) == (3, 4, 4) and small.scenes == clips.scenes[:2]
    for read in (lambda: clips.text(0), clips.empty_text):
        with pytest.raises(ValueError, match="no text features"):
            read()
    with pytest.raises(ValueError, match="clips is 1; it must be at least 2, the number of ranks"):
        world_clips(1, here=Ranks(1, 2))
    given = world_clips(0, scenes=clips.scenes[2:4])
    assert given.scenes == clips.scenes[2:4] and torch.allclose(given.latents(1), clips.latents(3), atol=5e-3)
    with pytest.raises(ValueError, match="clips is 3; where scenes are given"):
        world_clips(3, scenes=clips.scenes)


def test_features_say_which_shape_motion_and_colour_cover_a_cell():
    ring = ShapeObject("ring", "red", "moves right", x=0.3, y=0.5, radius=0.2, speed=0.4)
    bar = ShapeObject("bar", "blue", "stays still", x=0.5, y=0.9, radius=0.08)
    alone, both = scene_features([Scene((ring,), "navy"), Scene((ring, bar), "navy")], num_frames=9, cells=8)
    assert alone.shape == (3, 8, 8, 6 + 13 + 8) and FEATURES == 27
    shape, motion = alone[..., SHAPES.index("ring")], alone[..., 6 + MOTIONS.index("moves right")]
    colour = alone[..., 19 + list(COLOURS).index("red")]
    assert torch.equal(shape, motion) and torch.equal(shape, colour)
    assert alone.sum() == pytest.approx(3 * shape.sum().item(), rel=1e-6)
    area = UNIT_AREA["ring"] * 0.2**2 * 8 * 8  # in cells
    assert shape.sum((1, 2)).tolist() == pytest.approx([area] * 3, rel=0.1)
    centre = (shape.sum(1) * (torch.arange(8) + 0.5)).sum(1) / shape.sum((1, 2)) / 8  # in widths
    # frames 0, 1 to 4, 5 to 8 of nine: clip times 0, 0.3125, 0.8125
    assert centre.tolist() == pytest.approx([0.3, 0.3 + 0.4 * 0.3125, 0.3 + 0.4 * 0.8125], abs=0.01)
    assert torch.allclose(both[..., SHAPES.index("ring")], shape) and both[..., SHAPES.index("bar")].sum() > 0


def test_the_most_tokens_of_a_caption_are_a_close_bound():
    words = random.Random(0)
    for two, style in ((0.0, "short"), (1.0, "short"), (0.0, None), (1.0, "dense")):
        scenes = sample_scenes(600, 0, "train", two)
        longest = max(len(caption(scene, words, style).split()) for scene in scenes)
        assert longest + 1 <= most_tokens(scenes, style) <= longest + 6


def test_every_clip_has_a_caption_of_the_fewest_tokens_and_briefer_ones_cannot_be_asked_for():
    clips = world_clips(40, two_objects=0.7)
    for style in ("short", "dense", None):
        slots = fewest_tokens(style)
        brief, words = BriefCaptions(clips, range(len(clips)), slots), random.Random(0)
        drawn = [brief.caption(i, words, style) for i in range(len(clips)) for _ in range(3)]
        assert max(len(text.split()) for text in drawn) + 1 == slots and len(set(drawn)) > 60
    assert torch.equal(brief.latents(3), clips.latents(3)) and torch.equal(brief.features(3), clips.features(3))
    with pytest.raises(ValueError, match="text_slots is 4; no phrasing of clip 0 is that short"):
        BriefCaptions(clips, range(len(clips)), 4).caption(0, random.Random(0))
