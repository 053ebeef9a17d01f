"""What is drawn for a step of the transformer: the same on any number of ranks, in any number of passes."""

from dataclasses import dataclass, replace

import pytest
import torch

from minicogvx.data.clips.clips import Selected
from minicogvx.engine.ranks import Ranks
from minicogvx.presets import TransformerConfig
from minicogvx.training.batches import Steps
from minicogvx.training.settings import ImageCondition, TransformerTraining
from minicogvx.training.stages import Stage, stage_of

CONFIG = TransformerConfig(num_attention_heads=2, attention_head_dim=16, num_layers=1, in_channels=4, out_channels=4,
                           text_embed_dim=8, max_text_seq_length=6, time_embed_dim=8, sample_height=4, sample_width=4,
                           sample_frames=9)


@dataclass
class Clips:
    """Clips of three sizes, of which number i says so in every number."""

    count: int = 24
    has_text: bool = False
    has_first_frames: bool = True
    scaling_factor: float = 1.0

    def __len__(self):
        return self.count

    def latent_size(self, i):
        return (1, 3, 5)[i % 3], 4, 4

    def latents(self, i, generator=None):
        latents = torch.full((4, *self.latent_size(i)), float(i))
        return latents if generator is None else latents + 0.1 * torch.randn(latents.shape, generator=generator)

    def caption(self, i, words, style=None):
        return f"clip {i} {words.randrange(100)}"

    def text(self, i):
        return torch.full((6, 8), float(i))

    def empty_text(self):
        return torch.full((6, 8), -1.0)

    def first_pixels(self, i):
        return torch.full((3, 1, 8, 8), i / 24)


def training(*stages, **changed):
    return TransformerTraining(stages or (Stage(6, batch_size=8),), **{"timesteps": "stratified"} | changed)


def examples(steps, step):
    return [example for one in steps[step] for example in one.examples]


def key(example):
    return (example.caption, example.timestep, example.latents.sum().item(), example.noise.sum().item(),
            None if example.picture is None else example.picture.sum().item())


def test_a_step_is_the_same_on_any_number_of_ranks_in_any_number_of_passes():
    for changed in ({}, {"image_to_video": True}, {"timesteps": "uniform"}):
        alone = [sorted(map(key, examples(Steps(Clips(), training(**changed), CONFIG, seed=3), k))) for k in range(6)]
        for world in (2, 4):
            for accumulate in (1, 2):
                many = [Steps(Clips(), training(accumulate=accumulate, **changed), CONFIG, Ranks(rank, world), seed=3)
                        for rank in range(world)]
                assert [sorted(key(e) for steps in many for e in examples(steps, k)) for k in range(6)] == alone
    assert alone != [sorted(map(key, examples(Steps(Clips(), training(), CONFIG, seed=4), k))) for k in range(6)]
    again = Steps(Clips(), training(timesteps="uniform"), CONFIG, seed=3)
    assert sorted(map(key, examples(again, 4))) == alone[4], "without the steps before"


def test_losses_add_up_to_the_mean_of_the_joint_batch():
    for world, accumulate in ((1, 1), (1, 4), (2, 2)):
        for rank in range(world):
            steps = Steps(Clips(), training(accumulate=accumulate), CONFIG, Ranks(rank, world))
            assert sum(len(one.examples) / one.total for one in steps[0]) == pytest.approx(1.0)
            assert all(len({e.latents.shape for e in one.examples}) == 1 for one in steps[0])


def test_each_clip_has_its_own_part_of_the_timesteps_or_each_rank():
    for step in range(6):
        times = sorted(e.timestep for e in examples(Steps(Clips(), training(), CONFIG), step))
        assert [t * 8 // 1000 for t in times] == list(range(8))
        for rank in range(4):
            own = examples(Steps(Clips(), training(timesteps="rank"), CONFIG, Ranks(rank, 4)), step)
            assert {e.timestep // 250 for e in own} == {rank}
    drawn = [e.timestep for k in range(6) for e in examples(Steps(Clips(), training(timesteps="uniform"), CONFIG), k)]
    assert 0 <= min(drawn) and max(drawn) < 1000 and len(set(drawn)) > 40
    sizes = {}  # timesteps do not depend on the size, by which clips are dealt out to ranks
    for k in range(6):
        for e in examples(Steps(Clips(), training(), CONFIG), k):
            sizes.setdefault(e.latents.shape[1], []).append(e.timestep)
    assert all(min(times) < 400 and max(times) > 600 for times in sizes.values())


def test_pictures_are_part_of_a_batch_or_its_whole():
    for share, count in ((0.0, 0), (0.25, 4), (1.0, 16)):
        steps = Steps(Selected(Clips(), [2, 5, 8, 11, 14]), training(Stage(3, 16, images=share)), CONFIG)
        for k in range(3):
            assert sum(e.latents.shape[1] == 1 for e in examples(steps, k)) == count


def test_stages_follow_one_another_with_clips_of_their_own():
    stages = Stage(2, batch_size=4), Stage(3, batch_size=8)
    steps = Steps([Selected(Clips(), range(0, 24, 3)), Clips()], training(*stages), CONFIG)
    assert len(steps) == 5 and [stage_of(stages, k) for k in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    first = [e for k in range(2) for e in examples(steps, k)]
    assert {e.latents.shape[1] for e in first} == {1}
    assert len({e.latents.mean().round().item() for e in first}) == 8, "of 8 clips, each is shown once"
    assert [len(examples(steps, k)) for k in range(5)] == [4, 4, 8, 8, 8]
    with pytest.raises(ValueError, match="3 sets of clips for 2 stages"):
        Steps([Clips()] * 3, training(*stages), CONFIG)


def test_captions_are_dropped_in_a_share_and_stored_features_with_them():
    stored = replace(Clips(), has_text=True)
    for zero_text, value in ((False, -1.0), (True, 0.0)):
        steps = Steps(stored, training(Stage(20, 24), text_dropout=0.25), CONFIG, zero_text=zero_text)
        drawn = [e for k in range(20) for e in examples(steps, k)]
        dropped = [e for e in drawn if not e.caption]
        assert 0.18 < len(dropped) / len(drawn) < 0.32
        assert all((e.text == value).all() for e in dropped)
        assert all((e.text == int(e.caption.split()[1])).all() for e in drawn if e.caption)


def test_posteriors_are_sampled_as_published_or_taken_at_their_mean():
    for how, exact in (("mean", True), ("sample", False)):
        assert all((e.latents == e.latents.round()).all().item() == exact
                   for e in examples(Steps(Clips(), training(posterior=how), CONFIG), 0))


def test_from_an_image_no_picture_is_its_own_answer_and_pictures_are_noised():
    steps = Steps(Clips(), training(image_to_video=True, image=ImageCondition(dropout=0.5)), CONFIG)
    drawn = [e for k in range(6) for e in examples(steps, k)]
    assert {e.latents.shape[1] for e in drawn} == {3, 5}
    for e in drawn:
        number = e.latents.mean().round().item()
        assert 0 < (e.picture - number / 24).std() < 1 and e.picture_noise.shape == (4, 1, 4, 4)
    shown = [{one.shows_pictures for one in steps[k]} for k in range(6)]
    assert all(len(one) == 1 for one in shown), "once for a batch"
    with pytest.raises(ValueError, match="all have one frame"):
        Steps(Selected(Clips(), [0, 3]), training(image_to_video=True), CONFIG)


def test_packs_hold_clips_of_all_sizes_each_as_often_as_any_other():
    tokens = {frames: 6 + frames * 4 for frames in (1, 3, 5)}
    for world in (1, 2):
        steps = [Steps(Clips(), training(Stage(9, batch_size=4, pack=60)), CONFIG, Ranks(rank, world), seed=1)
                 for rank in range(world)]
        seen = [e for k in range(9) for one in steps for e in examples(one, k)]
        for one in (one for steps_of in steps for one in steps_of[0]):
            assert one.packed and one.tokens == sum(tokens[e.latents.shape[1]] for e in one.examples) <= 60
        assert all(len(one[k]) == 4 // world for one in steps for k in range(9))
        if world == 1:
            alone = sorted(map(key, seen))
    assert sorted(map(key, seen)) == alone
    pictures = Steps(Clips(), training(Stage(4, batch_size=2, pack=60, images=1.0)), CONFIG)
    assert {e.latents.shape[1] for k in range(4) for e in examples(pictures, k)} == {1}


def test_random_numbers_come_from_generators_of_their_own():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Steps(Clips(), training(image_to_video=True), CONFIG)[0]
    assert torch.equal(before, torch.get_rng_state())
