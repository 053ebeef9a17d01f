"""Exercises 2.5 and 2.6 of notebook 02, which lengths return and what leaks: right, wrong, and why."""

import torch

from minicogvx.course.exercises import find
from minicogvx.course.exercises.notebook_02 import count_frames_returned
from minicogvx.presets import VAEConfig
from minicogvx.vae import CausalVAE
from tests.guards import guard

# ---- 2.5 comes_back


def right_comes_back(num_frames, halvings=2):
    count = num_frames
    for _ in range(halvings):
        count = 1 + (count - 1) // 2 if count % 2 else count // 2
    for _ in range(halvings):
        count = 1 + 2 * (count - 1) if count % 2 else 2 * count
    return count == num_frames


def four_k_plus_one(num_frames, halvings=2):
    return num_frames % 2 ** halvings == 1 or halvings == 0


def eight_k_plus_one(num_frames, halvings=2):
    return num_frames % 2 ** (halvings + 1) == 1 or halvings == 0


def always_two_halvings(num_frames, halvings=2):
    return num_frames % 8 in (0, 1)


def odd_ones(num_frames, halvings=2):
    return num_frames % 2 == 1


def a_number_for_an_answer(num_frames, halvings=2):
    return int(right_comes_back(num_frames, halvings))


def without_return(*arguments, **named):
    right_comes_back(17)


def test_comes_back():
    guard("2.5", right_comes_back, [
        ("comes_back(5) is True, but the counts go 5 -> 3 -> 2 -> 4 -> 8", four_k_plus_one),
        ("comes_back(8) is False, but the counts go 8 -> 4 -> 2 -> 4 -> 8", eight_k_plus_one),
        ("comes_back(4, halvings=1) is False, but the counts go 4 -> 2 -> 4", always_two_halvings),
        ("comes_back(3) is True, but the counts go 3 -> 2 -> 1 -> 1 -> 1", odd_ones),
        ("comes_back(1) is 1, of type int; it must be True or False", a_number_for_an_answer),
        ("is None; does your function end in return?", without_return),
    ])


# ---- 2.6 first_affected


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


def only_the_first_sample_changed(network, clip, frame):
    changed = clip.clone()
    changed[0, :, frame] += torch.randn_like(changed[0, :, frame])
    return next(iter(frames_that_differ(network, clip, changed)), None)


def compares_the_first_sample(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] += torch.randn_like(changed[:, :, frame])
    return next(iter(frames_that_differ(lambda x: network(x)[:1], clip, changed)), None)


def compares_the_first_channel(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] += torch.randn_like(changed[:, :, frame])
    return next(iter(frames_that_differ(lambda x: network(x)[:, :1], clip, changed)), None)


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


def no_more_than_one_frame_ahead(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] += torch.randn_like(changed[:, :, frame])
    frames = frames_that_differ(network, clip, changed)
    return max(frames[0], frame - 1) if frames else None


def test_first_affected():
    guard("2.6", right_first_affected, [
        ("blind to a frame's brightness and contrast; it must be 5. It undoes a constant, or a factor", adds_one),
        ("blind to a frame's brightness and contrast; it must be 5. It undoes a constant, or a factor", doubles),
        ("is None for the identity, on a clip of zeros; it must be 5. A factor changes no zero", turns_round),
        ("for one that reads channel 1 only; it must be 5. Change every channel", one_channel),
        ("for one that reads a corner only; it must be 5. Change every place", one_pixel),
        ("is 7 for one in which every frame depends on all; it must be 0", no_more_than_one_frame_ahead),
        ("for one that reads sample 1 only; it must be 5. Change every sample", only_the_first_sample_changed),
        ("for one whose sample 0 is always 0; it must be 5. Compare all samples", compares_the_first_sample),
        ("for one whose channel 0 is always 0; it must be 5. Compare all channels", compares_the_first_channel),
        ("for a convolution with padding on both sides; it must be 4. It looks one frame ahead", what_went_in),
        ("is 6 for a convolution with padding on both sides; it must be 4", the_last),
        ("is 0 for one that drops all but 3 frames; it must be None", always_finds_one),
        ("for an output with rounding errors; it must be 5. Differences of 1e-6 are rounding", counts_rounding),
        ("gives a tensor for the identity; it must give a plain number", gives_a_tensor),
        ("changes its input clip", in_place),
        ("changes its input clip", without_a_copy),
    ])


def test_what_comes_back_is_what_the_vae_returns(subtests):
    torch.manual_seed(0)
    vae = CausalVAE(VAEConfig(latent_channels=2, block_out_channels=(2, 2, 2), layers_per_block=1, norm_num_groups=1,
                              first_frame="parity")).requires_grad_(False)
    for num_frames in range(1, 18):
        with subtests.test(msg=f"{num_frames} frames"):
            latents = vae.encode(torch.randn(1, 3, num_frames, 4, 4)).mode()
            returned = vae.decode(latents).shape[2]
            assert count_frames_returned(num_frames)[-1] == returned
            assert find("2.5").reference(num_frames) == (returned == num_frames)
