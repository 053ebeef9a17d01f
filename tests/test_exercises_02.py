"""Exercises 2.1, 2.3 and 2.4 of notebook 02 distinguish right from wrong, and name the mistake."""

import torch
import torch.nn.functional as F
from torch import nn

from minicogvx.course.exercises import find
from minicogvx.course.exercises.checking import judge
from minicogvx.vae.causal_conv import CausalConv3d
from minicogvx.vae.layers import stretch_time
from tests.guards import guard

# ---- 2.1 pad_past


def right_pad_past(x, kernel_size):
    return torch.cat([x[:, :, :1]] * (kernel_size - 1) + [x], dim=2)


def with_zeros(x, kernel_size):
    return F.pad(x, (0, 0, 0, 0, kernel_size - 1, 0))


def on_both_sides(x, kernel_size):
    missing = kernel_size - 1
    return torch.cat([x[:, :, :1]] * (missing - missing // 2) + [x] + [x[:, :, -1:]] * (missing // 2), dim=2)


def behind(x, kernel_size):
    return torch.cat([x] + [x[:, :, -1:]] * (kernel_size - 1), dim=2)


def the_last_frame(x, kernel_size):
    return torch.cat([x[:, :, -1:]] * (kernel_size - 1) + [x], dim=2)


def mirrored(x, kernel_size):
    return torch.cat([x[:, :, 1:kernel_size].flip(2), x], dim=2)


def one_frame_too_many(x, kernel_size):
    return torch.cat([x[:, :, :1]] * kernel_size + [x], dim=2)


def always_two(x, kernel_size):
    return right_pad_past(x, 3)


def backwards(x, kernel_size):
    return right_pad_past(x.flip(3), kernel_size)


def halves_its_input(x, kernel_size):
    out = right_pad_past(x, kernel_size)
    x.mul_(0.5)
    return out


def returns_nothing(*arguments, **named):
    right_pad_past(*arguments, **named)


def with_torch_pad(x, kernel_size):
    return F.pad(x, (kernel_size - 1, 0), mode="replicate")


def with_torch_pad_of_all_axes(x, kernel_size):
    return F.pad(x, (0, 0, 0, 0, kernel_size - 1, 0), mode="replicate")


def test_pad_past():
    guard("2.1", right_pad_past, [
        ("does not stay constant: the mean over the kernel at frame 0 is 0.33 (kernel_size=3)", with_zeros),
        ("The future leaks into the past: frame 1 was changed", on_both_sides),
        ("changed with it (kernel_size=3). All padding belongs in front", behind),
        ("The future leaks into the past: frame 4 was changed", the_last_frame),
        ("The future leaks into the past: frame 1 was changed", mirrored),
        ("of 5 frames has shape (2, 3, 8, 2, 4); it must be (2, 3, 7, 2, 4)", one_frame_too_many),
        ("pad_past(x, 4) of 5 frames has shape (2, 3, 7, 2, 4); it must be (2, 3, 8, 2, 4)", always_two),
        ("after the padding, differs in", backwards),
        ("is None; does your function end in return?", returns_nothing),
        ("changes its input x", halves_its_input),
        ("NotImplementedError", with_torch_pad),  # torch's own: it was tried
    ])
    assert judge(find("2.1"), with_torch_pad_of_all_axes).state == "right"  # another right way


# ---- 2.3 stretch


def right_stretch(z, frames):
    count = z.shape[2]
    index = [0] + [1 + i * (count - 1) // (frames - 1) for i in range(frames - 1)]
    return z[:, :, index]


def nearest(z, frames):
    return F.interpolate(z, (frames, *z.shape[3:]))


def blended(z, frames):
    return F.interpolate(z, (frames, *z.shape[3:]), mode="trilinear")


def all_alike_cut_at_the_end(z, frames):
    return z.repeat_interleave(-(-frames // z.shape[2]), dim=2)[:, :, :frames]


def the_whole_again_and_again(z, frames):
    times = (frames - 1) // max(z.shape[2] - 1, 1)
    return torch.cat([z[:, :, :1]] + [z[:, :, 1:]] * times, dim=2)


def the_last_stands_alone(z, frames):
    return right_stretch(z.flip(2), frames).flip(2)


def four_times_always(z, frames):
    return right_stretch(z, 4 * (z.shape[2] - 1) + 1)


def divides_by_nothing(z, frames):
    times = (frames - 1) // (z.shape[2] - 1)
    return torch.cat([z[:, :, :1], z[:, :, 1:].repeat_interleave(times, dim=2)], dim=2)


def one_place_for_all(z, frames):
    return right_stretch(z, frames)[..., :1, :1].expand(-1, -1, -1, *z.shape[3:])


def test_stretch():
    guard("2.3", right_stretch, [
        ("gives the frames 0 0 0 0 1 1 1 2 2 2 2 3 3 3 4 4 4; it must be 0 1 1 1 1 2 2 2 2 3 3 3 3 4 4 4 4", nearest),
        ("mixes neighbouring frames", blended),
        ("gives the frames 0 0 0 0 1 1 1 1 2", all_alike_cut_at_the_end),
        ("gives the frames 0 1 2 3 4 1 2 3 4", the_whole_again_and_again),
        ("gives the frames 0 0 0 0 1 1 1 1 2", the_last_stands_alone),
        ("stretch(z, 9) of 5 frames has shape (2, 3, 17, 2, 4); it must be (2, 3, 9, 2, 4)", four_times_always),
        ("ZeroDivisionError", divides_by_nothing),
        ("differs in", one_place_for_all),
    ])


# ---- 2.4 stream


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


def the_past_no_longer_than_the_piece(conv, x, chunk):
    past, out = right_pad_past(x[:, :, :1], conv.kernel_size[0])[:, :, 1:], []
    for piece in x.split(chunk, dim=2):
        out.append(conv(torch.cat([past, piece], dim=2)))
        past = piece[:, :, 1 - conv.kernel_size[0]:]
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
    guard("2.4", right_stream, [
        ("first differs from the whole clip at frame 4, frame 0 of piece 1", without_a_cache),
        ("gives the convolution 11 frames at once; with its past, a piece has at most 6", all_at_once),
        ("of 9 frames, has shape (1, 3, 4, 4, 4); it must be (1, 3, 9, 4, 4)", without_a_start),
        ("chunk=1) with a kernel of 3 frames gives the convolution 2 frames at once, fewer than its kernel",
         the_past_no_longer_than_the_piece),
        ("chunk=1) with a kernel of 3 frames first differs from the whole clip at frame 2", the_past_of_the_piece),
        ("at frame 0, the start of the clip", zeros_at_the_start),
        ("of 9 frames, has shape (1, 3, 8, 4, 4)", without_the_rest),
        ("at frame 0, the start of the clip", remembers_the_last_clip),
    ])


# ---- what replaces the learner's own


def test_the_references_are_what_the_package_computes():
    causal, x = CausalConv3d(2, 3, 3), torch.randn(1, 2, 5, 4, 4)
    plain = nn.Conv3d(2, 3, 3, padding=(0, 1, 1))
    plain.load_state_dict(causal.conv.state_dict())
    torch.testing.assert_close(plain(find("2.1").reference(x, 3)), causal(x))
    torch.testing.assert_close(find("2.4").reference(plain, x, 2), causal(x))
    for frames in (5, 9, 17):
        torch.testing.assert_close(find("2.3").reference(x, frames), stretch_time(x, frames))
