"""What a pipeline rejects before any work, what it accepts for a whole batch, and that it never returns NaN."""

from array import array
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minicogvx.pipeline import Pipeline
from minicogvx.presets import PRESETS, preset, video_size
from tests.tiny import TINY, tiny_pipe

PROMPT = "a red circle moves right"
PAIR, RUN = [PROMPT, "a blue star grows"], {"num_inference_steps": 3}
IMAGE, FILM = torch.rand(1, 16, 16, 3), torch.rand(1, 9, 16, 16, 3)
NAN, INF = float("nan"), float("inf")


def make(**options) -> Pipeline:
    """Videos of 9 frames of 16 x 16 pixels."""
    return tiny_pipe(size=16, **options)


@pytest.fixture(scope="module")
def pipe():
    return make()


@pytest.fixture
def idle(pipe, monkeypatch):
    """A pipeline none of whose networks may be at work."""
    for part in (pipe.transformer, pipe.vae.encoder, pipe.text.encoder):
        monkeypatch.setattr(part, "forward", lambda *_, **__: pytest.fail("work has begun"))
    return pipe


# ---- refused


def test_refused_in_one_sentence_before_any_work(idle, subtests):
    cases = [
        ({"prompts": []}, "it must be a list of captions, one at least"),
        ({"prompts": PROMPT}, "it must be a list of captions"),
        ({"prompts": [PROMPT, " "]}, "the prompt is empty"),
        ({"prompts": [PROMPT, 5]}, "a prompt is 5; it must be text"),
        ({"prompts": ["a caf\udce9"]}, "is not UTF-8"),
        ({"negative_prompt": None}, "a prompt is None; it must be text"),
        ({"negative_prompt": "a " * 40}, "has 41 tokens; at most 32 fit"),
        ({"prompts": ["a " * 40]}, "has 41 tokens; at most 32 fit"),
        ({"image": IMAGE, "video": FILM}, "both an image and a video"),
        ({"image": IMAGE[:, :8, :8]}, "the image is 8x8; it must be 16x16"),
        ({"video": FILM * 255}, "divide 8-bit pixels by 255"),
        ({"prompts": [PROMPT], "image": IMAGE.repeat(2, 1, 1, 1)}, "2 images are given for 1 prompt; give one"),
        ({"image": IMAGE.repeat(3, 1, 1, 1)}, "3 images are given for 2 prompts; give one for all of them"),
        ({"video": FILM.repeat(4, 1, 1, 1, 1)}, "4 videos are given for 2 prompts"),
        ({"image": IMAGE[:0]}, "0 images are given"),
        ({"image": IMAGE[..., :1]}, "the image is 16x16x1; it must be height x width x 3, here 16x16x3"),
        ({"image": IMAGE[0]}, "it must be height x width x 3"),
        ({"video": FILM[0]}, "it must be frames x height x width x 3"),
        ({"video": FILM[:, :5]}, "the video is 5x16x16; it must be 9x16x16"),
        ({"image": (255 * IMAGE).byte()}, "the image is torch.uint8; it must be a tensor of floating point"),
        ({"image": torch.zeros(1, 16, 16, 3, dtype=torch.uint8)}, "divide 8-bit pixels by 255"),
        ({"video": FILM.bool()}, "the video is torch.bool"),
        ({"image": IMAGE.numpy()}, "the image is ndarray; it must be a tensor"),
        ({"image": -IMAGE}, "values outside 0..1 or NaN"),
        ({"video": FILM * NAN}, "values outside 0..1 or NaN"),
        ({"latents": torch.randn(2, 4, 5, 8, 8)}, "for 9 frames of 16x16 and 2 prompts it must be \\(2, 4, 3, 4, 4\\)"),
        ({"latents": torch.randn(1, 4, 3, 4, 4)}, "and 2 prompts it must be \\(2, 4, 3, 4, 4\\)"),
        ({"latents": torch.randn(2, 4, 2, 4, 4)}, "latents has the shape \\(2, 4, 2, 4, 4\\)"),
        ({"latents": torch.full((2, 4, 3, 4, 4), NAN)}, "latents holds NaN"),
        ({"latents": torch.ones(2, 4, 3, 4, 4, dtype=torch.int64)}, "floating point"),
        ({"num_frames": 0}, "num_frames is 0; it must be 4k \\+ 1, such as 1 or 5"),
        ({"num_frames": -3}, "num_frames is -3"), ({"num_frames": 9.0}, "num_frames is 9.0; it must be a whole number"),
        ({"num_frames": True}, "num_frames is True"), ({"num_frames": 10}, "num_frames is 10; .* as 9 or 13"),
        ({"height": 0}, "height is 0; it must be a multiple of 8, at least 8"), ({"height": -16}, "height is -16"),
        ({"width": 0}, "width is 0"), ({"width": 12}, "width is 12; it must be a multiple of 8"),
        ({"width": 10**23}, "width is 1000"), ({"height": 10**30}, "height is 1000"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ({"guidance_scale": NAN}, "guidance_scale is nan; it must be a number from 0"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"), ({"guidance_scale": -1}, "guidance_scale is -1"),
        ({"guidance_scale": "6"}, "guidance_scale is '6'"),
        ({"strength": 5.0}, "strength is 5.0; it must be from 0 to 1"), ({"strength": NAN}, "strength is nan"),
        ({"strength": "0.5"}, "strength is '0.5'"), ({"strength": None}, "strength is None"),
        ({"strength": 0.5}, "strength is 0.5; it goes with a video, which is not given; leave it out"),
        ({"strength": 0, "image": IMAGE}, "strength is 0; it goes with a video"),
        ({"strength": 1.0}, "strength is 1.0; it goes with a video"),
        ({"dynamic_guidance": "wild"}, "dynamic_guidance is 'wild'; it must be None, 'published' or 'meant'"),
        ({"sampler": "euler"}, "sampler is 'euler'; it must be 'ddim' or 'dpm'"),
        ({"cache": -0.1}, "cache is -0.1; it must be a number from 0.0 to 1.0"), ({"cache": NAN}, "cache is nan"),
        ({"cache": 2.0}, "cache is 2.0"), ({"cache": True}, "cache is True"), ({"cache": "1"}, "cache is '1'"),
        ({"seed": -1}, "seed is -1"), ({"seed": 2**64}, "seed is 18446744073709551616"), ({"seed": 0.5}, "seed is 0.5"),
        ({"seed": [1, 2, 3]}, "seed has 3 numbers for 2 prompts; it must be one"),
        ({"seed": [1, None]}, "seed is None"),
        ({"seed": range(3)}, "seed has 3 numbers for 2 prompts"), ({"seed": range(-1, 1)}, "seed is -1"),
        ({"seed": "12"}, "seed is '12'"), ({"seed": b"12"}, "seed is b'12'"),
        ({"tile": (10, 8)}, "tile is 10x8 pixels"), ({"tile": 8}, "tile is 8; it must be True, False, or height and w"),
    ]
    for given, sentence in cases:
        with subtests.test(sentence):
            # Where jaxtyping checks the annotations it speaks first.
            with pytest.raises((ValueError, TypeError), match=f"{sentence}|[Tt]ype-check") as caught:
                idle.sample(**{"prompts": PAIR, **RUN, **given})
            assert isinstance(caught.value, ValueError) or "ype-check" in str(caught.value)
    for image in ("a.png", np.zeros((16, 16, 3)), [[0.5]]):
        with pytest.raises((ValueError, TypeError), match="it must be a tensor|[Tt]ype-check"):
            idle(PROMPT, image=image, **RUN)
    with pytest.raises((ValueError, TypeError), match="it must be text|[Tt]ype-check"):
        idle([PROMPT], **RUN)


def test_noise_of_a_filled_temporal_patch_counts_the_frame_in_front():
    pipe = make(transformer={"in_channels": 8, "patch_size_t": 2})
    with pytest.raises(ValueError, match=r"it must be \(1, 4, 4, 4, 4\)"):
        pipe.sample([PROMPT], image=IMAGE, latents=torch.randn(1, 4, 3, 4, 4), **RUN)
    assert pipe.sample([PROMPT], image=IMAGE, latents=torch.randn(1, 4, 4, 4, 4), **RUN).shape == (1, 4, 3, 4, 4)


def test_learned_positions_are_reported_before_any_work(pipe):
    config = replace(pipe.transformer.config, position="learned", sample_height=6)
    learned = Pipeline(pipe.vae, type(pipe.transformer)(config), pipe.schedule_config, pipe.text)
    learned.text.encode = lambda *_: pytest.fail("work has begun")
    assert learned.video_size == (9, 24, 16)  # not the VAE's 16x16
    for size in ({"height": 16}, {"num_frames": 5}, {"width": 24}):
        with pytest.raises(ValueError, match="has learned its positions, and makes 9 frames of 24x16 alone"):
            learned.sample([PROMPT], **size, **RUN)
    del learned.text.encode
    assert learned(PROMPT, **RUN).shape == (9, 24, 16, 3)


def test_a_tile_that_cannot_be_is_reported_by_decode_too(idle, subtests):
    for tile in (8, "8x8", (8,), (8, 8.0), (8, 8, 8), [True, 8]):
        for given in ({"tile": tile}, {}):
            idle.tile = False if given else tile
            with subtests.test(tile=tile, given=list(given)):
                with pytest.raises((ValueError, TypeError), match="^tile is .*; it must be True, False|[Tt]ype-check"):
                    idle.decode(torch.zeros(1, 4, 3, 4, 4), **given)
            del idle.tile


def test_a_pipeline_with_impossible_numbers_is_not_made(subtests):
    cases = [("fps", fps) for fps in (0, -8, 24.0, "24", True, 10**9, None)]
    for name, value in [*cases, *(("guidance_scale", scale) for scale in (NAN, -0.5, INF))]:
        with subtests.test(name, value=value):
            with pytest.raises((ValueError, TypeError), match=f"^{name} is .*; it must be a|[Tt]ype-check"):
                make(**{name: value})


# ---- defaults


def test_the_default_size_is_one(subtests):
    """In pixels, not of the transformer's position grid, which is 2400 x 2400 in the 1.5 models."""
    for name in PRESETS:
        with subtests.test(name):
            whole, found = preset(name), Pipeline.__new__(Pipeline)  # the weights of the large ones fit nowhere
            found.vae, found.transformer = SimpleNamespace(config=whole.vae), SimpleNamespace(config=whole.transformer)
            assert found.video_size == whole.video_size
            assert video_size(whole.vae, whole.transformer, 5, 0, 32) == (5, 0, 32)  # 0 was said, and will be refused
            assert name[:3] != "1.5" or found.video_size == (81, 768, 1360)
    wide = replace(TINY.transformer, position="rope+learned", sample_width=6)  # a learned table goes before the VAE
    assert video_size(TINY.vae, wide) == (9, 32, 24)
    assert video_size(TINY.vae, replace(wide, position="rope")) == (9, 32, 32)


def test_a_sampler_may_be_chosen_for_one_call(pipe):
    dpm = make(schedule=replace(pipe.schedule_config, sampler="dpm"))
    assert torch.equal(pipe(PROMPT, sampler="dpm", **RUN), dpm(PROMPT, **RUN))
    assert torch.equal(pipe(PROMPT, **RUN), dpm(PROMPT, sampler="ddim", **RUN))
    assert not torch.equal(pipe(PROMPT, **RUN), dpm(PROMPT, **RUN))


# ---- batches


def test_one_image_or_video_serves_all_prompts(pipe, subtests):
    for fields in ({}, {"in_channels": 8}, {"in_channels": 8, "patch_size_t": 2}, {"patch_size_t": 2}):
        with subtests.test("image", fields=fields):
            model = make(transformer=fields)
            both = model.sample(PAIR, image=IMAGE, seed=[3, 3], **RUN)
            twice = model.sample(PAIR, image=IMAGE.repeat(2, 1, 1, 1), seed=[3, 3], **RUN)
            assert both.shape == (2, 4, 3, 4, 4) and torch.allclose(both, twice, atol=1e-5)
    for strength in (0.1, 0.8):  # 0.1 leaves no step to take
        with subtests.test("video", strength=strength):
            both = pipe.sample(PAIR, video=FILM, strength=strength, seed=[3, 3], **RUN)
            twice = pipe.sample(PAIR, video=FILM.repeat(2, 1, 1, 1, 1), strength=strength, seed=[3, 3], **RUN)
            assert both.shape == (2, 4, 3, 4, 4) and torch.allclose(both, twice, atol=1e-5)


def test_with_a_seed_for_each_a_video_is_the_same_in_any_batch(pipe, subtests):
    prompts, seeds = [*PAIR, PROMPT], [4, 11, 4]
    pixels = {"text": None, "image": torch.rand(3, 16, 16, 3), "video": torch.rand(3, 9, 16, 16, 3)}
    for sampler, (task, given) in product(("ddim", "dpm"), pixels.items()):
        def made(chosen):
            extra = {} if given is None else {task: given[chosen]}
            return pipe.sample([prompts[i] for i in chosen], seed=[seeds[i] for i in chosen], sampler=sampler, **extra,
                               **RUN)

        with subtests.test(sampler, task=task):
            whole = made([0, 1, 2])
            for chosen in ([0], [1, 2], [2, 0]):
                assert torch.allclose(made(chosen), whole[chosen], atol=1e-4)
            alone = pipe.sample([prompts[1]], seed=11, sampler=sampler, **RUN)
            assert task != "text" or torch.allclose(alone, whole[1:2], atol=1e-4)
    for sequence in (range(4, 6), array("q", [4, 5]), (4, 5)):
        assert torch.equal(pipe.sample(PAIR, seed=sequence, **RUN), pipe.sample(PAIR, seed=[4, 5], **RUN))


# ---- a NaN never leaves


def broken(part: str, value: float) -> Pipeline:
    """A pipeline with one bad weight at the end of one network."""
    pipe = make()
    weight = {"text": pipe.text.encoder.encoder.final_layer_norm.weight,
              "transformer": pipe.transformer.proj_out.weight,
              "encoder": pipe.vae.encoder.conv_out.conv.weight, "decoder": pipe.vae.decoder.conv_out.conv.bias}[part]
    weight.data.view(-1)[0] = value
    return pipe


def test_a_bad_weight_is_named_by_its_network_and_bad_latents_are_not_decoded(pipe, subtests):
    parts = {"text": "the text encoder's output holds NaN or infinity", "transformer": "the model output of step 0",
             "encoder": "what the VAE makes of the given pixels holds", "decoder": "the VAE's video holds NaN or inf"}
    for value, (part, sentence) in product((NAN, INF), parts.items()):
        with subtests.test(part, value=value):
            with pytest.raises(ValueError, match=f"{sentence}.* look at the weights"):
                broken(part, value)(PROMPT, image=IMAGE[0], **RUN)
    for value in (NAN, INF):
        with pytest.raises(ValueError, match="the latents hold NaN or infinite"):
            pipe.decode(torch.full((1, 4, 3, 4, 4), value))
    with pytest.raises((ValueError, TypeError), match="it must be b c t h w|[Tt]ype-check"):
        pipe.decode(torch.zeros(4, 3, 4, 4))
