"""Exercises 2.4 and 2.5 tell right from wrong, and agree with the package's VAE."""

import pytest
import torch

from minicogvx.course.exercises import find
from minicogvx.presets import VAEConfig
from minicogvx.vae import CausalVAE
from tests.guards import guard

# ---- 2.4 frames_back


def right_frames_back(num_frames, halvings=2):
    count = num_frames
    for _ in range(halvings):
        count = 1 + (count - 1) // 2 if count % 2 else count // 2
    for _ in range(halvings):
        count = 1 + 2 * (count - 1) if count % 2 else 2 * count
    return count


def what_people_expect(num_frames, halvings=2):
    return (num_frames - 1) // 2**halvings * 2**halvings + 1


def all_in_pairs(num_frames, halvings=2):
    return -(-num_frames // 2**halvings) * 2**halvings


def decides_once(num_frames, halvings=2):
    odd, count = num_frames % 2, num_frames
    for _ in range(halvings):
        count = odd + (count - odd) // 2
    for _ in range(halvings):
        count = odd + 2 * (count - odd)
    return count


def only_the_latents(num_frames, halvings=2):
    for _ in range(halvings):
        num_frames = (num_frames + 1) // 2
    return num_frames


def with_true_division(num_frames, halvings=2):
    count = num_frames
    for _ in range(halvings):
        count = 1 + (count - 1) / 2 if count % 2 else count / 2
    for _ in range(halvings):
        count = 1 + 2 * (count - 1) if count % 2 else 2 * count
    return count


def always_two(num_frames, halvings=2):
    return right_frames_back(num_frames, 2)


def without_return(*arguments, **named):
    right_frames_back(17)


def test_frames_back():
    guard("2.4", right_frames_back, [
        ("frames_back(5) is 5; it must be 8", what_people_expect),
        ("frames_back(17) is 20; it must be 17", all_in_pairs),
        ("frames_back(5) is 5; it must be 8", decides_once),
        ("frames_back(17) is 5; it must be 17", only_the_latents),
        ("frames_back(17) is 17.0, of type float", with_true_division),
        ("frames_back(5, halvings=1) is 8; it must be 5", always_two),
        ("is None; does your function end in return?", without_return),
    ])


@pytest.mark.parametrize("num_frames", range(1, 18))
def test_frames_back_is_what_the_vae_returns(num_frames):
    torch.manual_seed(0)
    vae = CausalVAE(VAEConfig(latent_channels=2, block_out_channels=(2, 2, 2), layers_per_block=1, norm_num_groups=1,
                              first_frame="parity")).requires_grad_(False)
    latents = vae.encode(torch.randn(1, 3, num_frames, 4, 4)).mode()
    assert vae.decode(latents).shape[2] == find("2.4").reference(num_frames)


# ---- 2.5 first_affected


def frames_that_differ(network, clip, changed):
    difference = (network(changed) - network(clip)).abs().amax(dim=(0, 1, 3, 4))
    return (difference > 1e-4).nonzero().flatten().tolist()


def right_first_affected(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] = changed[:, :, frame].roll(1, dims=-1) + torch.randn_like(changed[:, :, frame])
    return next(iter(frames_that_differ(network, clip, changed)), None)


def adds_one(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] += 1
    return next(iter(frames_that_differ(network, clip, changed)), None)


def doubles(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] *= 2
    return next(iter(frames_that_differ(network, clip, changed)), None)


def turns_round(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] *= -1
    return next(iter(frames_that_differ(network, clip, changed)), None)


def one_channel(network, clip, frame):
    changed = clip.clone()
    changed[:, 0, frame] += torch.randn_like(changed[:, 0, frame])
    return next(iter(frames_that_differ(network, clip, changed)), None)


def one_pixel(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame, 0, 0] += 3
    return next(iter(frames_that_differ(network, clip, changed)), None)


def the_last(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] += torch.randn_like(changed[:, :, frame])
    return (frames_that_differ(network, clip, changed) or [None])[-1]


def always_finds_one(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] += torch.randn_like(changed[:, :, frame])
    return int((network(changed) - network(clip)).abs().amax(dim=(0, 1, 3, 4)).gt(1e-4).int().argmax())


def counts_rounding(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] += torch.randn_like(changed[:, :, frame])
    frames = (network(changed) != network(clip)).any(4).any(3).any(1).any(0).nonzero().flatten().tolist()
    return frames[0] if frames else None


def gives_a_tensor(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] += torch.randn_like(changed[:, :, frame])
    return (network(changed) - network(clip)).abs().amax(dim=(0, 1, 3, 4)).nonzero().flatten()[0]


def in_place(network, clip, frame):
    before = network(clip).clone()
    clip[:, :, frame] += torch.randn_like(clip[:, :, frame])
    return int((network(clip) - before).abs().amax(dim=(0, 1, 3, 4)).nonzero()[0])


def without_a_copy(network, clip, frame):
    changed = clip
    changed[:, :, frame] += 1
    return next(iter(frames_that_differ(network, clip, changed)), None)


def what_went_in(network, clip, frame):
    return frame


def test_first_affected():
    guard("2.5", right_first_affected, [
        ("is None for a norm over each frame; it must be 5. It takes a constant, or a factor, away", adds_one),
        ("is None for a norm over each frame; it must be 5. It takes a constant, or a factor, away", doubles),
        ("is None for the identity, on a clip of zeros; it must be 5. A factor changes no zero", turns_round),
        ("for one that reads channel 1 only; it must be 5. Change every channel", one_channel),
        ("for one that reads a corner only; it must be 5. Change every place", one_pixel),
        ("is 7 for a group norm over all frames; it must be 0", no_more_than_one_frame_ahead),
        ("for a convolution with padding on both sides; it must be 4. It looks one frame ahead", what_went_in),
        ("is 6 for a convolution with padding on both sides; it must be 4", the_last),
        ("is 0 for one that drops all but 3 frames; it must be None", always_finds_one),
        ("for an output with rounding errors; it must be 5. Differences of 1e-6 are rounding", counts_rounding),
        ("gives a tensor for the identity; it must give a plain number", gives_a_tensor),
        ("changes its input clip", in_place),
        ("changes its input clip", without_a_copy),
    ])


def no_more_than_one_frame_ahead(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] += torch.randn_like(changed[:, :, frame])
    frames = frames_that_differ(network, clip, changed)
    return max(frames[0], frame - 1) if frames else None
