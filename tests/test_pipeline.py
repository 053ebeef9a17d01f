"""The pipeline on a tiny random model: three tasks, one loop, and errors before any work."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minicogvx.pipeline import Pipeline
from minicogvx.pixels import encode_pixels
from minicogvx.presets import ScheduleConfig
from minicogvx.room import least_memory
from minicogvx.vae.tiling import tiled_decode
from tests.tiny import tiny_pipe

PROMPT = "a red circle moves right"
RUN = {"num_inference_steps": 3}


def make(**options) -> Pipeline:
    """Videos of 9 frames of 16 x 16 pixels."""
    return tiny_pipe(size=16, **options)


@pytest.fixture(scope="module")
def pipe():
    return make()


def test_text_to_video_gives_pixels(pipe):
    video = pipe(PROMPT, **RUN)
    assert video.shape == (9, 16, 16, 3) and video.dtype == torch.float32
    assert 0 <= video.min() and video.max() <= 1 and video.std() > 0
    assert pipe(PROMPT, num_frames=5, height=24, width=32, **RUN).shape == (5, 24, 32, 3)
    assert pipe(PROMPT, num_frames=1, **RUN).shape == (1, 16, 16, 3)


def test_same_seed_same_video_and_all_that_is_asked_for_matters(subtests):
    for sampler in ("ddim", "dpm"):
        pipe = make(schedule=ScheduleConfig(sampler=sampler))
        video = pipe(PROMPT, seed=3, **RUN)
        assert torch.equal(pipe(PROMPT, seed=3, **RUN), video)
        for change in ({"seed": 4}, {"prompt": "a blue star grows"}, {"negative_prompt": "a blue star"},
                       {"guidance_scale": 1.0}, {"dynamic_guidance": "meant"}):
            with subtests.test(sampler, change=change):
                assert not torch.equal(pipe(**{"prompt": PROMPT, "seed": 3, **change}, **RUN), video)


def test_a_model_samples_with_its_own_guidance_by_default(pipe):
    own = make(guidance_scale=2.0)
    assert pipe.guidance_scale == 6.0  # as published
    assert torch.equal(pipe(PROMPT, **RUN), own(PROMPT, guidance_scale=6.0, **RUN))
    assert torch.equal(own(PROMPT, **RUN), pipe(PROMPT, guidance_scale=2.0, **RUN))
    assert not torch.equal(own(PROMPT, **RUN), pipe(PROMPT, **RUN))
    assert not torch.equal(own(PROMPT, guidance_scale=0.0, **RUN), own(PROMPT, **RUN))


def test_unconditional_as_zeros_differs_from_the_empty_caption_and_without_guidance_neither_counts(pipe):
    zeros, plain = make(unconditional="zeros"), pipe(PROMPT, guidance_scale=1.0, **RUN)
    assert not torch.equal(pipe(PROMPT, **RUN), zeros(PROMPT, **RUN))
    assert torch.equal(zeros(PROMPT, guidance_scale=1.0, **RUN), plain)
    assert torch.equal(pipe(PROMPT, guidance_scale=1.0, negative_prompt="a star", **RUN), plain)


def test_image_is_the_first_latent_of_a_model_without_image_channels(pipe):
    image = torch.rand(16, 16, 3)
    latents = pipe.sample([PROMPT], image=image[None], **RUN)
    wanted = encode_pixels(pipe.vae, image[None, None], torch.Generator().manual_seed(0)).detach()
    assert torch.allclose(latents[:, :, :1], wanted)
    assert pipe(PROMPT, image=image, **RUN).shape == (9, 16, 16, 3)


def test_only_for_image_channels_is_the_scale_of_an_image_inverted(subtests):
    for channels in (4, 8):
        with subtests.test(channels=channels):
            pipe, image, seen = make(transformer={"in_channels": channels}), torch.rand(1, 16, 16, 3), []
            factor = pipe.vae.config.scaling_factor ** -2 if channels == 8 else 1.0

            def latent():
                """The image's: from the channels that the network sees, or from the video, where it was put."""
                video = pipe.sample([PROMPT], image=image, num_inference_steps=1)
                return seen[-1][:1, 4:, :1] if channels == 8 else video[:, :, :1]

            pipe.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            plain = latent()
            pipe.vae.config = replace(pipe.vae.config, invert_scale_latents=True)
            assert torch.allclose(latent(), factor * plain, atol=1e-6)


def test_image_channels(subtests):
    for patch_t, ofs in ((None, None), (2, None), (2, 8)):
        with subtests.test(patch_t=patch_t, ofs=ofs):
            pipe = make(transformer={"in_channels": 8, "patch_size_t": patch_t, "ofs_embed_dim": ofs})
            image = torch.rand(16, 16, 3)
            video = pipe(PROMPT, image=image, **RUN)
            assert video.shape == (9, 16, 16, 3)
            assert not torch.equal(video, pipe(PROMPT, image=1 - image, **RUN))
            with pytest.raises(ValueError, match="makes videos from an image"):
                pipe(PROMPT, **RUN)


def test_a_temporal_patch_is_filled_in_front_and_dropped():
    pipe = make(transformer={"patch_size_t": 2})
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2]))
    assert pipe(PROMPT, **RUN).shape[0] == 9
    assert pipe(PROMPT, num_frames=13, **RUN).shape[0] == 13
    assert seen == [4] * 6  # 9 frames are 3 latents, and patches need 4; 13 frames are 4 latents already
    assert pipe(PROMPT, image=torch.rand(16, 16, 3), **RUN).shape[0] == 9


def test_video_to_video_strength(pipe):
    film = torch.rand(9, 16, 16, 3)
    kept = pipe.sample([PROMPT], video=film[None], strength=0.0, num_inference_steps=10)
    encoded = encode_pixels(pipe.vae, film[None], torch.Generator().manual_seed(0)).detach()
    assert torch.allclose(kept, encoded)
    distances = [(pipe.sample([PROMPT], video=film[None], strength=s, num_inference_steps=10) - encoded).norm()
                 for s in (0.1, 0.9)]
    assert distances[0] < distances[1]


# ---- less memory: tiles, and networks that take turns


def test_tiles_are_those_of_tiled_decode(pipe, subtests):
    latents = pipe.sample([PROMPT], height=24, width=32, **RUN)
    for tile, size in ((True, None), ((16, 8), (16, 8))):  # True: half of 16 x 16 pixels
        with subtests.test(tile=tile):
            with torch.no_grad():
                wanted = tiled_decode(pipe.vae, latents / pipe.vae.config.scaling_factor, size)
            wanted = (wanted.permute(0, 2, 3, 4, 1) / 2 + 0.5).clamp(0, 1)
            assert torch.equal(pipe.decode(latents, tile), wanted)
            assert torch.equal(pipe(PROMPT, height=24, width=32, tile=tile, **RUN), wanted[0])
            assert not torch.equal(pipe.decode(latents), wanted)


def test_a_tile_that_holds_all_changes_nothing_and_the_pipelines_own_holds_for_every_call():
    pipe = make()
    film, video = torch.rand(9, 16, 16, 3), {}
    for pipe.tile in (False, True, (16, 16)):
        video[pipe.tile] = pipe(PROMPT, video=film, **RUN)
    assert torch.equal(video[False], video[16, 16]) and not torch.equal(video[False], video[True])
    assert torch.equal(video[False], pipe(PROMPT, video=film, tile=False, **RUN))
    with pytest.raises(ValueError, match="tile is 10x8 pixels"):
        pipe.decode(torch.zeros(1, 4, 3, 4, 4), (10, 8))


def where(pipe) -> dict:
    """The device of each network, by the last call of its `to`."""
    places = {}
    for name, part in (("vae", pipe.vae), ("transformer", pipe.transformer), ("text", pipe.text)):
        def to(*target, name=name, real=part.to):
            places[name] = str(target[0])
            return real("cpu")  # this machine has no other

        part.to = to
    return places


def test_networks_that_take_turns_are_alone_at_work_and_make_the_same(subtests):
    for pixels in ({}, {"image": torch.rand(16, 16, 3)}, {"video": torch.rand(9, 16, 16, 3)}):
        with subtests.test(given=list(pixels)):
            plain, pipe = make()(PROMPT, **pixels, **RUN), make()
            places, seen = where(pipe), []
            pipe.vae.decoder.register_forward_pre_hook(lambda *_: seen.append(("decoder", dict(places))))
            pipe.vae.encoder.register_forward_pre_hook(lambda *_: seen.append(("encoder", dict(places))))
            pipe.transformer.register_forward_pre_hook(lambda *_: seen.append(("transformer", dict(places))))
            pipe.text.encoder.register_forward_pre_hook(lambda *_: seen.append(("text", dict(places))))
            pipe._turns_on = torch.device("cpu", 7)  # `offload`, without asking whether there is such a device
            away, there = {"vae": "cpu", "transformer": "cpu", "text": "cpu"}, "cpu:7"
            pipe.vae.to("cpu"), pipe.transformer.to("cpu"), pipe.text.to("cpu")
            assert torch.equal(pipe(PROMPT, **pixels, **RUN), plain)
            owner = {"decoder": "vae", "encoder": "vae", "transformer": "transformer", "text": "text"}
            assert all(found == away | {owner[name]: there} for name, found in seen)
            order = list(dict.fromkeys(name for name, _ in seen))
            assert order == ["text", *(["encoder"] if pixels else []), "transformer", "decoder"] and places == away


def test_turns_begin_and_end_and_an_error_leaves_nothing_on_the_device():
    pipe = make()
    assert pipe.device == torch.device("cpu") and pipe.offload("cpu") is pipe
    pipe._turns_on = torch.device("cpu", 7)
    places = where(pipe)
    assert pipe.device == torch.device("cpu", 7)
    assert pipe.to(torch.float32).device == torch.device("cpu", 7)  # a number format alone ends no turns
    places.clear()
    pipe.transformer.forward = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        pipe(PROMPT, **RUN)
    assert set(places.values()) == {"cpu"}
    assert pipe.to("cpu").device == torch.device("cpu") and pipe._turns_on is None


def test_what_comes_out_is_float32_on_the_cpu_and_latents_may_be_of_any_format(pipe):
    latents = torch.randn(1, 4, 3, 4, 4)
    assert pipe.decode(latents).dtype == torch.float32 and pipe.decode(latents.double()).dtype == torch.float32
    low = make().to(torch.bfloat16)
    video = low(PROMPT, image=torch.rand(16, 16, 3, dtype=torch.float64), **RUN)
    assert video.dtype == torch.float32 and video.device.type == "cpu"
    assert low.sample([PROMPT], latents=latents, **RUN).dtype == torch.bfloat16


def test_a_giant_is_refused_before_any_work(pipe, monkeypatch):
    monkeypatch.setattr(pipe.text, "encode", lambda *_: pytest.fail("work has begun"))
    for size in ({"num_frames": 4 * 10**15 + 1}, {"height": 8 * 10**6, "width": 8 * 10**6}):
        with pytest.raises(ValueError, match="take more than .* GiB, and 'cpu' has .* GiB in all; ask for fewer"):
            pipe(PROMPT, **size, **RUN)
    monkeypatch.setattr("minicogvx.room.all_memory", lambda device: 60_000)  # whole frames in the VAE need more
    with pytest.raises(ValueError, match="9 frames of 16x16 take more than .* or let the VAE work in tiles"):
        pipe(PROMPT, **RUN)
    monkeypatch.setattr("minicogvx.room.all_memory", lambda device: None)  # unknown: it is tried
    with pytest.raises(pytest.fail.Exception, match="work has begun"):
        pipe(PROMPT, num_frames=4 * 10**15 + 1, **RUN)


def test_the_least_memory_is_below_what_a_real_clip_takes(pipe):
    """The bound may be low, never high: here against the tensors that one decode makes."""
    biggest = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            biggest.extend(t.untyped_storage().nbytes() for t in tree_leaves(made) if isinstance(t, torch.Tensor))
            return made

    latents = pipe.sample([PROMPT], num_frames=9, height=64, width=64, **RUN)
    with Sizes():
        pipe.decode(latents)
    sizes = pipe.vae.config, pipe.transformer.config
    bound = least_memory(*sizes, (1, 9, 64, 64), 4)
    assert bound <= 2 * max(biggest) and bound >= max(biggest) / 8
    assert least_memory(*sizes, (3, 9, 64, 64), 4) == 3 * bound
    assert least_memory(*sizes, (1, 9, 64, 64), 2) == bound // 2


def test_steps_are_reported_and_a_word_that_no_video_showed(pipe):
    seen = []
    with pytest.warns(UserWarning, match="never seen 'dog', 'sees'; it"):
        pipe("a red dog sees a dog", on_step=lambda done, total: seen.append((done, total)), **RUN)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    pipe(PROMPT, video=torch.rand(9, 16, 16, 3), strength=0.5, num_inference_steps=10,
         on_step=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5) and len(seen) == 8


def test_batch_equals_one_by_one(pipe):
    prompts = [PROMPT, "a blue star grows"]
    noise = torch.randn(2, 4, 3, 4, 4)
    both = pipe.sample(prompts, latents=noise, **RUN)
    single = torch.cat([pipe.sample([p], latents=noise[i:i + 1], **RUN) for i, p in enumerate(prompts)])
    assert torch.allclose(both, single, atol=1e-4)
