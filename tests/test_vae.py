"""The 3D causal VAE: its size, causality, options, chunks, tiles and what it rejects."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from minicogvx.presets import VAEConfig, preset
from minicogvx.vae import CausalVAE, DiagonalGaussian
from minicogvx.vae.autoencoder import chunk_sizes
from minicogvx.vae.checks import check_chunk, check_latents, check_piece
from minicogvx.vae.layers import DownConv2d, UpConv2d, fold, halve_time, unfold
from minicogvx.vae.tiling import OVERLAP, _tile_in_latents, blend, tiled_decode, tiled_encode
from tests.tiny import TINY, tiny_vae


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clip(frames: int, height: int = 8, width: int = 8) -> torch.Tensor:
    return normal(1, 3, frames, height, width, seed=frames).clamp(-1, 1)


def change(x: torch.Tensor, start: int) -> torch.Tensor:
    """x with everything from frame `start` on replaced."""
    return torch.cat([x[:, :, :start], -3 * x[:, :, start:].flip(3)], dim=2)


def test_the_published_vae_has_its_published_size():
    with torch.device("meta"):
        vae = CausalVAE(VAEConfig())

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert (count(vae), count(vae.encoder), count(vae.decoder)) == (215_583_907, 92_215_456, 123_368_451)
    assert len(vae.state_dict()) == 436


# frame 5 belongs to latent 2: latent 0 is frame 0, latent 1 is frames 1 to 4
def test_norm_over_the_frame_never_leaks_the_future(subtests):
    for grad in (False, True):
        with subtests.test(grad=grad):
            vae, video, latents = tiny_vae(norm_over="frame"), clip(9), normal(1, 4, 3, 2, 2)
            with torch.set_grad_enabled(grad):
                before, after = (vae.encode(v, chunk_frames=None).mean for v in (video, change(video, 5)))
                assert (after - before)[:, :, :2].abs().max() <= 1e-6 and (after - before)[:, :, 2].abs().max() > 1e-2
                before, after = (vae.decode(z, chunk_latents=None) for z in (latents, change(latents, 2)))
                assert (after - before)[:, :, :5].abs().max() <= 1e-6 and (after - before)[:, :, 5:].abs().max() > 1e-2


def test_norm_over_the_chunk_leaks_the_future_inside_a_chunk_and_not_between_chunks():
    vae, latents = tiny_vae(), normal(1, 4, 5, 2, 2)
    video = clip(17)
    whole = [vae.encode(v, chunk_frames=None).mean for v in (video, change(video, 9))]
    assert (whole[1] - whole[0])[:, :, :3].abs().max() > 1e-3
    chunked = [vae.encode(v).mean for v in (video, change(video, 9))]
    assert (chunked[1] - chunked[0])[:, :, :3].abs().max() <= 1e-6
    whole = [vae.decode(z, chunk_latents=None) for z in (latents, change(latents, 3))]
    assert (whole[1] - whole[0])[:, :, :9].abs().max() > 1e-3
    chunked = [vae.decode(z) for z in (latents, change(latents, 3))]
    assert (chunked[1] - chunked[0])[:, :, :9].abs().max() <= 1e-6


def test_one_image_is_a_video_of_one_frame():
    vae, video = tiny_vae(), clip(9)
    latent = vae.encode(video[:, :, :1]).mean
    assert latent.shape == (1, 4, 1, 2, 2) and vae.decode(latent).shape == (1, 3, 1, 8, 8)
    by_frame = tiny_vae(norm_over="frame")  # the first latent of a clip is then the latent of its first frame
    torch.testing.assert_close(by_frame.encode(video).mean[:, :, :1], by_frame.encode(video[:, :, :1]).mean)
    latents = normal(1, 4, 3, 2, 2)
    torch.testing.assert_close(by_frame.decode(latents)[:, :, :1], by_frame.decode(latents[:, :, :1]))


def test_zeros_before_the_first_frame_are_another_model_with_the_same_weights():
    first, zeros = tiny_vae(norm_over="frame"), tiny_vae(norm_over="frame", time_padding="zeros")
    video = clip(5)
    assert (first.encode(video).mean - zeros.encode(video).mean).abs().max() > 1e-3
    latents = normal(1, 4, 2, 2, 2)
    assert (first.decode(latents) - zeros.decode(latents)).abs().max() > 1e-3


def test_every_compression_makes_the_round_trip(subtests):
    for (stages, ratio), kind in product(((3, 1), (3, 2), (3, 4), (4, 8), (5, 4), (5, 1)), ("plain", "residual")):
        with subtests.test(stages=stages, ratio=ratio, kind=kind):
            vae = tiny_vae(block_out_channels=(4, 4, 8, 8, 8)[:stages], temporal_compression_ratio=ratio,
                           resampling=kind)
            size = 2 ** (stages - 1)
            for frames in (1, ratio + 1, 3 * ratio + 1):
                latent = vae.encode(clip(frames, size, 2 * size)).mean
                assert latent.shape == (1, 4, (frames - 1) // ratio + 1, 1, 2)
                assert vae.decode(latent).shape == (1, 3, frames, size, 2 * size)
    for frames in (1, 5, 8, 17):  # the other rule for the first frame
        vae, other = (tiny_vae(first_frame="parity", resampling=kind) for kind in ("plain", "residual"))
        latent, of_other = vae.encode(clip(frames)).mean, other.encode(clip(frames)).mean
        assert latent.shape == of_other.shape and vae.decode(latent).shape == other.decode(of_other).shape
    vae = tiny_vae().to("meta")  # where shapes at full size come from
    assert vae.encode(clip(9).to("meta")).mean.shape == (1, 4, 3, 2, 2)
    assert vae.decode(normal(1, 4, 3, 2, 2).to("meta")).shape == (1, 3, 9, 8, 8)


def test_residual_resampling_moves_pixels_onto_channels_and_back():
    x = normal(2, 3, 5, 8, 6)
    for temporal in (False, True):
        every = fold(x, 12 * (1 + temporal), temporal)  # room for all: nothing is averaged
        assert every.shape == (2, 12 * (1 + temporal), 3 if temporal else 5, 4, 3)
        assert torch.equal(unfold(every, 3, temporal)[:, :, -5:], x)
        few = normal(2, 8, 3, 4, 3)
        torch.testing.assert_close(fold(unfold(few, 4, temporal), 8, temporal), few)
    means = F.avg_pool3d(x, (1, 2, 2))
    torch.testing.assert_close(fold(x, 3, False), means)
    torch.testing.assert_close(fold(x, 3, True), halve_time(means))
    assert torch.equal(unfold(means, 3, False), F.interpolate(means, scale_factor=(1, 2, 2)))


def test_residual_resampling_changes_the_width_and_only_adds_a_shortcut():
    vae = tiny_vae(resampling="residual")
    assert [tuple(block.downsamplers[0].conv.weight.shape[:2]) for block in vae.encoder.down_blocks[:2]] == [
        (4, 4), (8, 4)]
    assert [tuple(block.upsamplers[0].conv.weight.shape[:2]) for block in vae.decoder.up_blocks[:2]] == [(4, 8), (4, 4)]
    assert not any("shortcut" in name for name in vae.state_dict())
    for module in vae.modules():
        if isinstance(module, (DownConv2d, UpConv2d)):
            torch.nn.init.zeros_(module.weight), torch.nn.init.zeros_(module.bias)
    x = normal(1, 4, 5, 8, 8)
    assert torch.equal(vae.encoder.down_blocks[1].downsamplers[0](x), fold(x, 8, True))
    up, z = vae.decoder.up_blocks[0].upsamplers[0], normal(1, 8, 3, 4, 4)
    assert torch.equal(up(z), unfold(z, 4, True)[:, :, 1:])


def test_any_4k_plus_1_frames_come_back(subtests):
    vae = tiny_vae()
    for frames in (1, 5, 9, 13, 21):
        with subtests.test(frames=frames):
            assert vae(clip(frames), torch.Generator().manual_seed(0))[0].shape[2] == frames
            assert vae(clip(frames), chunk_frames=None)[0].shape[2] == frames


def test_a_bfloat16_video_with_float32_weights(subtests):
    for grad in (False, True):
        with subtests.test(grad=grad):
            vae, video, latents = tiny_vae(), clip(9), normal(1, 4, 3, 2, 2)
            vae.requires_grad_(grad)
            with torch.set_grad_enabled(grad):
                posterior, decoded = vae.encode(video.bfloat16()), vae.decode(latents.bfloat16())
            assert decoded.dtype == torch.bfloat16 and posterior.mean.dtype == torch.float32  # the KL wants float32
            for half, single in ((posterior.mean, vae.encode(video).mean), (decoded.float(), vae.decode(latents))):
                assert (half - single).norm() <= 0.03 * single.norm()
            if grad:
                (decoded.float().square().mean() + posterior.kl().sum()).backward()
                assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in vae.parameters())


def test_chunks_put_the_remainder_first_and_time_is_halved_by_averaging_pairs():
    assert chunk_sizes(49, 8) == [9, 8, 8, 8, 8, 8] and chunk_sizes(13, 2) == [3, 2, 2, 2, 2, 2]
    assert chunk_sizes(1, 8) == [1] and chunk_sizes(13, 8) == [13] and chunk_sizes(17, None) == [17]
    x = torch.tensor([1.0, 2.0, 4.0, 6.0, 10.0]).view(1, 1, 5, 1, 1)
    assert halve_time(x).flatten().tolist() == [1.0, 3.0, 8.0]
    assert halve_time(x[:, :, 1:]).flatten().tolist() == [3.0, 8.0]
    assert halve_time(x[:, :, :1]).flatten().tolist() == [1.0]


def test_the_posterior_is_a_diagonal_gaussian():
    moments = torch.cat([normal(2, 3, 2, 2, 2), 0.5 * normal(2, 3, 2, 2, 2, seed=1)], dim=1)
    posterior = DiagonalGaussian(moments)
    assert torch.equal(posterior.mean, moments[:, :3]) and torch.equal(posterior.mode(), posterior.mean)
    true = torch.distributions.kl_divergence(torch.distributions.Normal(posterior.mean, posterior.std),
                                             torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl(), true.flatten(1).sum(1))
    one, two, other = (posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)
    generator, same = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    assert DiagonalGaussian(torch.empty(1, 4, 1, 2, 2, device="meta")).sample(generator).is_meta
    torch.randn(1, 2, 1, 2, 2, generator=same)  # noise is drawn where the generator is
    assert torch.equal(generator.get_state(), same.get_state())
    extreme = DiagonalGaussian(torch.tensor([0.0, 0.0, 99.0, -99.0]).view(1, 4, 1, 1, 1))
    assert extreme.logvar.flatten().tolist() == [20.0, -30.0]


def test_what_cannot_be_encoded_or_decoded_is_refused_in_one_sentence(subtests):
    vae, nan = tiny_vae(), torch.nan
    encode, decode = (vae.encode, lambda x: tiled_encode(vae, x)), (vae.decode, lambda z: tiled_decode(vae, z))
    cases = [
        (encode, torch.zeros(1, 3, 16, 8, 8), "the video has 16 frames; it must have 4k + 1, such as 13 or 17"),
        (encode, torch.zeros(1, 3, 3, 8, 8), "the video has 3 frames; it must have 4k + 1, such as 1 or 5"),
        (encode, torch.zeros(1, 3, 0, 8, 8), "the video has 0 frames; it must have 4k + 1, such as 1 or 5"),
        (encode, torch.zeros(1, 3, 5, 8, 10), "the video is 8x10; height and width must be multiples of 4"),
        (encode, torch.zeros(1, 1, 5, 8, 8), "the video has 1 channels; this VAE takes 3"),
        (encode, torch.full((1, 3, 5, 8, 8), nan), "the video holds NaN or infinite values"),
        (decode, torch.zeros(1, 5, 2, 2, 2), "the latents have 5 channels; this VAE takes 4"),
        (decode, torch.zeros(1, 4, 0, 2, 2), "the latents have 0 frames"),
        (decode, torch.full((1, 4, 2, 2, 2), torch.inf), "the latents hold NaN or infinite values; "),
        ((tiny_vae(first_frame="parity").encode,), torch.zeros(1, 3, 0, 8, 8),
         "the video has 0 frames; it must have at least 1"),
    ]
    for ways, x, sentence in cases:
        for number, way in enumerate(ways):
            with subtests.test(sentence, tiled=number == 1):
                with pytest.raises(ValueError) as error:
                    way(x)
                assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def test_what_is_no_video_is_refused_by_its_shape_and_format(subtests):
    cases = [
        (torch.zeros(3, 5, 8, 8), "must be .b, c, t, h, w."), (torch.zeros(1, 3, 5, 0, 8), "each at least 1"),
        (torch.zeros(0, 3, 5, 8, 8), "each at least 1"), (torch.zeros(1, 3, 5, 8, 8).byte(), "floating point"),
    ]
    for x, words in cases:
        for what, check, config in (("the video has", check_piece, TINY.vae),
                                    ("the latents have", check_latents, replace(TINY.vae, latent_channels=3))):
            with subtests.test(words, what=what), pytest.raises(ValueError, match=f"^{what} the .*{words}"):
                check(config, x)


def test_a_chunk_that_cuts_a_latent_or_is_no_whole_number_is_refused(subtests):
    vae, z = tiny_vae(), normal(1, 4, 3, 4, 8)
    for chunk in (6, -8, 2):
        with subtests.test(chunk_frames=chunk), pytest.raises(ValueError, match=f"^chunk_frames is {chunk}; .* as 8"):
            vae.encode(clip(17), chunk_frames=chunk)
    for chunk in (0, -1, -2):
        for decode in (lambda: vae.decode(z, chunk), lambda: tiled_decode(vae, z, (8, 8), chunk_latents=chunk)):
            with subtests.test(chunk_latents=chunk), pytest.raises(ValueError, match=f"^chunk_latents is {chunk}; "):
                decode()
    for chunk in (2.0, "2", 0.5):  # annotations that are checked would speak first
        for name, multiple in (("chunk_latents", 1), ("chunk_frames", 4)):
            with subtests.test(name, chunk=chunk), pytest.raises(ValueError, match=f"^{name} is {chunk!r}; "):
                check_chunk(name, chunk, multiple, 8)


def test_a_clip_no_larger_than_one_tile_is_untouched():
    vae, video, latents = tiny_vae(), clip(5, 16, 8), normal(1, 4, 2, 4, 4)  # a tile is half of 32x32
    assert torch.equal(tiled_encode(vae, video).mean, vae.encode(video).mean)
    assert torch.equal(tiled_decode(vae, latents), vae.decode(latents))


def test_default_tiles_are_half_the_picture(subtests):
    cases = [
        ("5b", (30, 45), (5, 9)), ("1.5-5b", (48, 85), (8, 17)),  # published: half a picture, a sixth and a fifth of it
        ("toy", (4, 4), (1, 1)), ("micro", (4, 4), (1, 1)), ("small", (8, 8), (1, 2)),
    ]
    for name, tile, shared in cases:
        with subtests.test(name):
            with torch.device("meta"):
                vae = CausalVAE(preset(name).vae)
            assert _tile_in_latents(vae.config, None, OVERLAP) == (tile, shared)


def test_tiles_of_any_size_return_the_whole_picture(subtests):
    for overlap, tile in product(((1 / 6, 1 / 5), (0.0, 0.0), (0.5, 0.7)), ((8, 12), (12, 8))):
        with subtests.test(overlap=overlap, tile=tile):
            vae, video = tiny_vae(), clip(5, 20, 16)
            latent = tiled_encode(vae, video, tile, overlap).mean
            assert latent.shape == (1, 4, 2, 5, 4)
            assert tiled_decode(vae, latent, tile, overlap).shape == video.shape


def test_tiles_are_laid_side_by_side_and_blended_where_they_overlap():
    vae, z = tiny_vae(), normal(1, 4, 2, 4, 8)
    halves = [vae.decode(half) for half in z.split(4, dim=4)]
    assert torch.equal(tiled_decode(vae, z, (16, 16), (0.0, 0.0)), torch.cat(halves, dim=4))
    vae, z = tiny_vae(), normal(1, 4, 2, 4, 7)
    left, right = vae.decode(z[:, :, :, :, :4]), vae.decode(z[:, :, :, :, 3:])  # they share one latent: four columns
    whole = tiled_decode(vae, z, (16, 16), (0.0, 0.25))[:, :, :, :, :24]  # the next tile starts at column 24
    fade = torch.arange(4) / 4
    torch.testing.assert_close(whole[..., :12], left[..., :12])
    torch.testing.assert_close(whole[..., 12:16], left[..., 12:] * (1 - fade) + right[..., :4] * fade)
    torch.testing.assert_close(whole[..., 16:24], right[..., 4:12])


def test_blend_fades_from_the_one_to_the_other():
    before, after = torch.zeros(1, 1, 1, 6, 2), torch.ones(1, 1, 1, 5, 2)
    assert blend(before, after, 4, dim=3)[0, 0, 0, :, 0].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert blend(before.mT, after.mT, 2, dim=4)[0, 0, 0, 0].tolist() == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert torch.equal(blend(before, after, 0, dim=3), after)
    assert torch.equal(after, torch.ones(1, 1, 1, 5, 2))  # nothing is written in place


def test_a_tiling_that_cannot_work_is_refused_in_one_sentence(subtests):
    cases = [
        ((10, 8), (0.2, 0.2), "tile is 10x8 pixels; height and width must be multiples of 4, such as 16x16"),
        ((0, 8), (0.2, 0.2), "tile is 0x8 pixels"), ((8, 8), (0.2, 1.0), "overlap is (0.2, 1.0)"),
        ((8, 8), (-0.1, 0.2), "overlap is (-0.1, 0.2)"),
        ((4, 8), (0.2, 0.2), "a tile of 4x8 pixels is 1x2 latents, of which overlap=(0.2, 0.2) shares 1x1; "),
    ]
    for tile, overlap, sentence in cases:
        for run, x in ((tiled_encode, clip(1, 16, 16)), (tiled_decode, normal(1, 4, 1, 4, 4))):
            with subtests.test(sentence, run=run.__name__):
                with pytest.raises(ValueError) as error:
                    run(tiny_vae(), x, tile, overlap)
                assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def test_one_parameter_alone_can_be_trained(subtests):
    for trained in ("decoder.norm_out.conv_y.conv.weight", "decoder.norm_out.norm_layer.bias", "encoder.norm_out.bias",
                    "encoder.conv_out.conv.weight"):
        with subtests.test(trained):
            vae = tiny_vae()
            vae.get_parameter(trained).requires_grad_(True)
            vae(clip(5), torch.Generator().manual_seed(0))[0].square().sum().backward()
            assert vae.get_parameter(trained).grad.abs().sum() > 0
