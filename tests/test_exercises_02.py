"""Exercises of notebook 02 distinguish right from wrong, and name the mistake."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicogvx.course.exercises import find
from minicogvx.presets import VAEConfig
from minicogvx.vae import CausalVAE
from minicogvx.vae.causal_conv import CausalConv3d
from tests.guards import guard

# ---- 2.1 pad_past


def right_pad_past(x, kernel_size, dilation=1):
    return torch.cat([x[:, :, :1]] * ((kernel_size - 1) * dilation) + [x], dim=2)


def with_zeros(x, kernel_size, dilation=1):
    return F.pad(x, (0, 0, 0, 0, (kernel_size - 1) * dilation, 0))


def on_both_sides(x, kernel_size, dilation=1):
    missing = (kernel_size - 1) * dilation
    return torch.cat([x[:, :, :1]] * (missing - missing // 2) + [x] + [x[:, :, -1:]] * (missing // 2), dim=2)


def behind(x, kernel_size, dilation=1):
    return torch.cat([x] + [x[:, :, -1:]] * ((kernel_size - 1) * dilation), dim=2)


def the_last_frame(x, kernel_size, dilation=1):
    return torch.cat([x[:, :, -1:]] * ((kernel_size - 1) * dilation) + [x], dim=2)


def mirrored(x, kernel_size, dilation=1):
    missing = (kernel_size - 1) * dilation
    return torch.cat([x[:, :, 1:1 + missing].flip(2), x], dim=2)


def one_frame_too_many(x, kernel_size, dilation=1):
    return torch.cat([x[:, :, :1]] * kernel_size + [x], dim=2)


def without_dilation(x, kernel_size, dilation=1):
    return right_pad_past(x, kernel_size)


def backwards(x, kernel_size, dilation=1):
    return right_pad_past(x.flip(3), kernel_size, dilation)


def halves_its_input(x, kernel_size, dilation=1):
    out = right_pad_past(x, kernel_size, dilation)
    x.mul_(0.5)
    return out


def returns_nothing(*arguments, **named):
    right_pad_past(*arguments, **named)


def with_torch_pad(x, kernel_size, dilation=1):
    return F.pad(x, ((kernel_size - 1) * dilation, 0), mode="replicate")


def test_pad_past():
    guard("2.1", right_pad_past, [
        ("does not stay constant: the mean over the kernel at frame 0 is 0.33 (kernel_size=3)", with_zeros),
        ("The future leaks into the past: frame 1 was changed", on_both_sides),
        ("changed with it (kernel_size=3). All padding belongs in front", behind),
        ("The future leaks into the past: frame 4 was changed", the_last_frame),
        ("The future leaks into the past: frame 1 was changed", mirrored),
        ("of 5 frames has shape (2, 3, 8, 2, 4); it must be (2, 3, 7, 2, 4)", one_frame_too_many),
        ("dilation=2) of 5 frames has shape (2, 3, 7, 2, 4); it must be (2, 3, 9, 2, 4)", without_dilation),
        ("after the padding, differs in", backwards),
        ("is None; does your function end in return?", returns_nothing),
        ("changes its input x", halves_its_input),
        ("NotImplementedError", with_torch_pad),  # torch's own: it was tried
    ])


# ---- 2.2 latent_frames


def right_latent_frames(num_frames, ratio=4):
    if num_frames < 1 or (num_frames - 1) % ratio:
        raise ValueError(f"{num_frames} frames")
    return 1 + (num_frames - 1) // ratio


def rounded_down(num_frames, ratio=4):
    return num_frames // ratio


def never_refuses(num_frames, ratio=4):
    return (num_frames - 1) // ratio + 1


def true_division(num_frames, ratio=4):
    return (num_frames - 1) / ratio + 1


def always_four(num_frames, ratio=4):
    return right_latent_frames(num_frames, 4)


def forgets_the_negative(num_frames, ratio=4):
    if (num_frames - 1) % ratio:
        raise ValueError(num_frames)
    return (num_frames - 1) // ratio + 1


def test_latent_frames():
    guard("2.2", right_latent_frames, [
        ("latent_frames(17) is 4; it must be 5", rounded_down),
        ("latent_frames(16) gives 4; it must raise ValueError", never_refuses),
        ("latent_frames(17) is 5.0, of type float", true_division),
        ("latent_frames(17, ratio=8) is 5; it must be 3", always_four),
        ("latent_frames(-3) gives 0; it must raise ValueError", forgets_the_negative),
    ])


# ---- 2.3 stream


def right_stream(conv, x, chunk, pad=right_pad_past):
    padded, more = pad(x, conv.kernel_size[0]), conv.kernel_size[0] - 1
    pieces = [conv(padded[:, :, start:start + chunk + more]) for start in range(0, x.shape[2], chunk)]
    return torch.cat(pieces, dim=2)


def without_a_cache(conv, x, chunk):
    return torch.cat([conv(right_pad_past(piece, conv.kernel_size[0])) for piece in x.split(chunk, dim=2)], dim=2)


def all_at_once(conv, x, chunk):
    return conv(right_pad_past(x, conv.kernel_size[0]))


def without_a_start(conv, x, chunk):
    return torch.cat([conv(piece) for piece in x.split(chunk, dim=2) if piece.shape[2] >= conv.kernel_size[0]], dim=2)


def the_past_of_the_piece(conv, x, chunk):
    past, out = right_pad_past(x[:, :, :1], conv.kernel_size[0])[:, :, 1:], []
    for piece in x.split(chunk, dim=2):
        out.append(conv(torch.cat([past, piece], dim=2)))
        past = right_pad_past(piece, conv.kernel_size[0])[:, :, 1 - conv.kernel_size[0]:]
    return torch.cat(out, dim=2)


def zeros_at_the_start(conv, x, chunk):
    return right_stream(conv, x, chunk, pad=with_zeros)


def without_the_rest(conv, x, chunk):
    return right_stream(conv, x[:, :, :x.shape[2] // chunk * chunk], chunk)


def remembers_the_last_clip(conv, x, chunk, cache={}):
    first, out = cache.get("past", x[:, :, :1]), right_stream(conv, x, chunk)
    cache["past"] = x[:, :, -1:]
    return out + (first - x[:, :, :1]).abs().mean()


def test_stream():
    guard("2.3", right_stream, [
        ("first differs from the whole clip at frame 4, frame 0 of piece 1", without_a_cache),
        ("gives the convolution 11 frames at once; with its past, a piece has at most 6", all_at_once),
        ("of 9 frames, has shape (1, 3, 4, 4, 4); it must be (1, 3, 9, 4, 4)", without_a_start),
        ("chunk=1) with a kernel of 3 frames first differs from the whole clip at frame 2", the_past_of_the_piece),
        ("at frame 0, the start of the clip", zeros_at_the_start),
        ("of 9 frames, has shape (1, 3, 8, 4, 4)", without_the_rest),
        ("at frame 0, the start of the clip", remembers_the_last_clip),
    ])


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


def no_more_than_one_frame_ahead(network, clip, frame):
    changed = clip.clone()
    changed[:, :, frame] += torch.randn_like(changed[:, :, frame])
    frames = frames_that_differ(network, clip, changed)
    return max(frames[0], frame - 1) if frames else None


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


# ---- what replaces the learner's own


def test_the_references_are_what_the_package_computes():
    causal, x = CausalConv3d(2, 3, 3), torch.randn(1, 2, 5, 4, 4)
    plain = nn.Conv3d(2, 3, 3, padding=(0, 1, 1))
    plain.load_state_dict(causal.conv.state_dict())
    torch.testing.assert_close(plain(find("2.1").reference(x, 3)), causal(x))
    torch.testing.assert_close(find("2.3").reference(plain, x, 2), causal(x))
    with pytest.raises(ValueError, match="num_frames is 16; it must be 4k . 1"):
        find("2.2").reference(16)


def test_frames_back_is_what_the_vae_returns(subtests):
    torch.manual_seed(0)
    vae = CausalVAE(VAEConfig(latent_channels=2, block_out_channels=(2, 2, 2), layers_per_block=1, norm_num_groups=1,
                              first_frame="parity")).requires_grad_(False)
    for num_frames in range(1, 18):
        with subtests.test(msg=f"{num_frames} frames"):
            latents = vae.encode(torch.randn(1, 3, num_frames, 4, 4)).mode()
            assert vae.decode(latents).shape[2] == find("2.4").reference(num_frames)
