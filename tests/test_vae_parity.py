"""The VAE against diffusers' AutoencoderKLCogVideoX: the same weights give the same numbers and the same gradients."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from minicogvx.presets import VAEConfig
from minicogvx.vae import CausalVAE
from minicogvx.vae.tiling import tiled_decode, tiled_encode

THREE = VAEConfig(latent_channels=4, block_out_channels=(4, 8, 8), layers_per_block=1, norm_num_groups=2,
                  sample_height=32, sample_width=40)
FOUR = replace(THREE, latent_channels=6, block_out_channels=(6, 6, 12, 18), layers_per_block=2, norm_num_groups=3,
               sample_height=64, sample_width=80)
CONFIGS = {"three stages": THREE, "four stages": FOUR}


def theirs(config: VAEConfig) -> AutoencoderKLCogVideoX:
    stages = len(config.block_out_channels)
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * stages, up_block_types=("CogVideoXUpBlock3D",) * stages,
        block_out_channels=config.block_out_channels, latent_channels=config.latent_channels,
        layers_per_block=config.layers_per_block, norm_eps=config.norm_eps, norm_num_groups=config.norm_num_groups,
        temporal_compression_ratio=config.temporal_compression_ratio, sample_height=config.sample_height,
        sample_width=config.sample_width, scaling_factor=config.scaling_factor)


def pair(config: VAEConfig) -> tuple[CausalVAE, AutoencoderKLCogVideoX]:
    """Both programs with the same weights; none keeps its initial 0 or 1, which would hide a mistake."""
    torch.manual_seed(0)
    mine, other = CausalVAE(config), theirs(config)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other.load_state_dict(mine.state_dict(), strict=True)
    return mine, other


def clip(frames: int, size: int = 8, width: int | None = None) -> torch.Tensor:
    return torch.rand(1, 3, frames, size, width or size, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def difference(mine: torch.Tensor, other: torch.Tensor) -> float:
    """Largest error relative to the largest value."""
    assert mine.shape == other.shape
    return ((mine - other).abs().max() / other.abs().max()).item()


def moments(posterior) -> torch.Tensor:
    return torch.cat([posterior.mean, posterior.logvar], dim=1)


def test_the_published_vae_has_their_names_and_shapes():
    with torch.device("meta"):
        mine, other = CausalVAE(VAEConfig()).state_dict(), theirs(VAEConfig()).state_dict()
    assert {name: value.shape for name, value in mine.items()} == {name: value.shape for name, value in other.items()}


def compare(mine: CausalVAE, other: AutoencoderKLCogVideoX, video: torch.Tensor, chunk: tuple = (8, 2)) -> torch.Tensor:
    """Encodes and decodes in chunks of so many frames and latents, as both do; returns our video."""
    latent = other.encode(video).latent_dist
    assert difference(moments(mine.encode(video, chunk[0])), moments(latent)) <= 1e-5
    decoded = mine.decode(latent.mean, chunk[1])
    assert difference(decoded, other.decode(latent.mean).sample) <= 1e-5
    return decoded


@torch.no_grad()
def test_encode_and_decode_in_chunks_are_theirs(subtests):
    cases = {
        "three stages": (THREE, (1, 9, 17, 25)), "four stages": (FOUR, (1, 9, 17, 25)),
        "without a first frame": (THREE, (4, 8, 16)),
        "eight-fold in time": (replace(FOUR, temporal_compression_ratio=8), (17,)),
        "epsilon": (replace(THREE, norm_eps=3e-2), (9,)),  # of the config: that of the encoder's blocks alone
    }
    for name, (config, lengths) in cases.items():
        mine, other = pair(config)
        for frames in lengths:
            with subtests.test(name, frames=frames):
                decoded = compare(mine, other, (0.1 if name == "epsilon" else 1.0) * clip(frames))
                assert name == "without a first frame" or decoded.shape[2] == frames
    mine, other = pair(THREE)
    other.num_sample_frames_batch_size, other.num_latent_frames_batch_size = 100, 100
    with subtests.test("one chunk"):
        compare(mine, other, clip(17), (None, None))


@torch.no_grad()
def test_an_even_number_of_latents_comes_back_as_it_was_and_published_as_more(subtests):
    for frames, published in ((5, 8), (13, 16), (21, 24), (85, 88)):
        with subtests.test(frames=frames, published=published):
            by_parity, other = pair(THREE)
            mine = CausalVAE(replace(THREE, first_frame="start"))
            mine.load_state_dict(by_parity.state_dict())
            video = clip(frames)
            latent = other.encode(video).latent_dist
            assert difference(moments(mine.encode(video)), moments(latent)) <= 1e-5
            assert mine.decode(latent.mean).shape[2] == frames
            their_video = other.decode(latent.mean).sample
            assert their_video.shape[2] == published
            compare(by_parity, other, video)


def test_gradients_of_all_parameters_and_of_the_video_are_theirs(subtests):
    for config_name, config in CONFIGS.items():
        with subtests.test(config_name):
            mine, other = pair(config)
            video, frames = clip(9).repeat(2, 1, 1, 1, 1), 9
            video[1] = -video[1].flip(3)  # two different clips: the sums over the batch count
            inputs = [video.clone().requires_grad_(), video.clone().requires_grad_()]
            posteriors = mine.encode(inputs[0]), other.encode(inputs[1]).latent_dist
            videos = mine.decode(posteriors[0].mean), other.decode(posteriors[1].mean).sample
            weight = torch.randn(videos[1].shape, generator=torch.Generator().manual_seed(frames))
            for posterior, out in zip(posteriors, videos):
                ((out * weight).sum() + posterior.logvar.square().sum()).backward()
            assert difference(inputs[0].grad, inputs[1].grad) <= 5e-5
            ours, true = layers(mine), layers(other)
            assert ours.keys() == true.keys()
            worst = max((difference(ours[name], true[name]), name) for name in true)
            assert worst[0] <= 5e-5, worst


@pytest.fixture
def threads():
    """Sets the number of threads, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_values_and_gradients_are_theirs_at_half_the_published_frame_with_one_thread_and_two(threads):
    """Group norms sum over 9x240x360 pixels of four channels here, as many as in the published VAE at that size."""
    mine, other = pair(replace(THREE, block_out_channels=(8, 8, 8), sample_height=240, sample_width=360))
    video = clip(9, 240, 360)
    runs = {}
    for model, count in ((other, 2), (mine, 2), (mine, 1)):
        threads(count)
        model.zero_grad()
        x = video.clone().requires_grad_()
        posterior = model.encode(x) if model is mine else model.encode(x).latent_dist
        again = model.decode(posterior.mean) if model is mine else model.decode(posterior.mean).sample
        weight = torch.randn(again.shape, generator=torch.Generator().manual_seed(1))
        ((again * weight).sum() + posterior.logvar.square().sum()).backward()
        runs[model is mine, count] = (moments(posterior).detach(), again.detach(), x.grad, layers(model))
    exact = runs[False, 2]
    for run in (runs[True, 2], runs[True, 1]):
        assert difference(run[0], exact[0]) <= 1e-5 and difference(run[1], exact[1]) <= 1e-5
        assert difference(run[2], exact[2]) <= 5e-5
        worst = max((difference(run[3][name], exact[3][name]), name) for name in exact[3])
        assert worst[0] <= 5e-5, worst


def layers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of each layer, weight and bias together.

    A bias before a group norm cancels almost wholly, so its own gradient is mostly the rounding of its parts, in
    both programs.
    """
    found: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(name.rpartition(".")[0], []).append(parameter.grad.flatten())
    return {name: torch.cat(parts) for name, parts in found.items()}


@torch.no_grad()
def test_tiled_encode_and_decode_are_theirs(subtests):
    cases = {
        "three stages": THREE,  # half of 32x40: tiles of 16x20 pixels, 4x5 latents
        # 48x40 pixels, 6x5 latents: overlaps of exactly one latent
        "four stages": replace(FOUR, sample_height=96, sample_width=80),
    }
    for name, config in cases.items():
        with subtests.test(name):
            mine, other = pair(config)
            space = config.spatial_compression_ratio
            overlap = (1 / 6, 1 / 5) if space == 8 else (1 / 4, 1 / 5)  # whole latents, or theirs fall out of step
            other.enable_tiling(tile_overlap_factor_height=overlap[0], tile_overlap_factor_width=overlap[1])
            video = clip(9, 9 * space, 7 * space)  # the last tiles are cut off by the edge
            latent = other.encode(video).latent_dist
            assert latent.mean.shape[3:] == (9, 7)
            assert difference(moments(tiled_encode(mine, video, overlap=overlap)), moments(latent)) <= 1e-5
            decoded = tiled_decode(mine, latent.mean, overlap=overlap)
            assert decoded.shape == video.shape and difference(decoded, other.decode(latent.mean).sample) <= 1e-5
