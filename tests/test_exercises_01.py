"""Exercises 1.1 to 1.3 (frames in time, frames in space, packs) distinguish right from wrong, and name the mistake."""

import math
from bisect import bisect_right

import pytest
import torch
import torch.nn.functional as F

from minicogvx.course.exercises import find
from minicogvx.course.exercises.notebook_00 import tokens_in_sequence
from minicogvx.course.exercises.notebook_01 import CAPACITY, clip_sizes
from minicogvx.data.films.decode import read_video, resize_and_crop
from minicogvx.media import write_mp4
from tests.guards import guard

# ---- 1.1 resample


def right_resample(times, end, fps):
    count = next(k for k in range(10**6) if times[0] + k / fps >= end)
    return [max(i for i, time in enumerate(times) if time <= times[0] + k / fps) for k in range(count)]


def every_third(times, end, fps):
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 1
    return list(range(0, len(times), max(1, round(rate / fps))))


def nearest_in_time(times, end, fps):
    count = math.ceil((end - times[0]) * fps - 1e-9)
    return [min(range(len(times)), key=lambda i: abs(times[i] - times[0] - k / fps)) for k in range(count)]


def the_next_one(times, end, fps):
    count = math.ceil((end - times[0]) * fps - 1e-9)
    return [min(bisect_right(times, times[0] + k / fps), len(times) - 1) for k in range(count)]


def from_second_zero(times, end, fps):
    return [max(0, bisect_right(times, k / fps) - 1) for k in range(math.ceil(end * fps - 1e-9))]


def at_an_even_rate(times, end, fps):
    seconds = end - times[0]
    return [int(k / fps * len(times) / seconds + 1e-9) for k in range(math.ceil(seconds * fps - 1e-9))]


def until_the_last_frame(times, end, fps):
    return right_resample(times, times[-1] + 1e-6, fps)


def past_the_end(times, end, fps):
    return right_resample(times, end, fps) + [len(times)]


def without_return(*arguments, **named):
    pass


def test_resample():
    guard("1.1", right_resample, [
        ("to 8 fps: result 8 is frame 24, which at second 1.000 of the film is no longer on screen", every_third),
        ("not on screen yet", nearest_in_time),
        ("not on screen yet", the_next_one),
        ("seconds 7.3, 7.35", from_second_zero),
        ("seconds 7.3, 7.35", at_an_even_rate),
        ("has 178 frames; it must have 180, one for each moment k / 60", until_the_last_frame),
        ("has the index 75; the film's frames are 0 to 74", past_the_end),
        ("is None; does your function end in return?", without_return),
    ])


# ---- 1.2 fit_frames


def right_fit_frames(frames, height, width):
    _, h, w, _ = frames.shape
    scale = max(height / h, width / w)
    rows = [min(h - 1, int(h / 2 + (i + 0.5 - height / 2) / scale)) for i in range(height)]
    columns = [min(w - 1, int(w / 2 + (i + 0.5 - width / 2) / scale)) for i in range(width)]
    return frames[:, rows][:, :, columns]


def stretched(frames, height, width):
    rows = torch.arange(height) * frames.shape[1] // height
    return frames[:, rows][:, :, torch.arange(width) * frames.shape[2] // width]


def at_the_top_left(frames, height, width):
    _, h, w, _ = frames.shape
    scale = max(height / h, width / w)
    return frames[:, (torch.arange(height) / scale).long()][:, :, (torch.arange(width) / scale).long()]


def only_cropped(frames, height, width):
    _, h, w, _ = frames.shape
    top, left = max(0, (h - height) // 2), max(0, (w - width) // 2)
    return frames[:, top:top + height, left:left + width]


def first_a_square(frames, height, width):
    side = min(frames.shape[1:3])
    return stretched(only_cropped(frames, side, side), height, width)


def with_black_bars(frames, height, width):
    _, h, w, _ = frames.shape
    scale = min(height / h, width / w)
    small = stretched(frames, round(h * scale), round(w * scale))
    top, left = (height - small.shape[1]) // 2, (width - small.shape[2]) // 2
    right, bottom = width - small.shape[2] - left, height - small.shape[1] - top
    return F.pad(small, (0, 0, left, right, top, bottom))


def mixes_pixels(frames, height, width):
    _, h, w, _ = frames.shape
    scale = max(height / h, width / w)
    size = (max(height, round(h * scale)), max(width, round(w * scale)))
    big = F.interpolate(frames.permute(0, 3, 1, 2), size, mode="area").permute(0, 2, 3, 1)
    return only_cropped(big, height, width)


def width_first(frames, height, width):
    return right_fit_frames(frames, width, height)


def test_fit_frames():
    guard("1.2", right_fit_frames, [
        ("stretches the picture: neighbours are 3 rows of the film apart and 5.", stretched),
        ("begins at column 0 and ends at column 177 of 0 to 319: that is not the middle", at_the_top_left),
        ("neighbours are 1 pixels of the film apart; they must be 3", only_cropped),
        ("stretches the picture", first_a_square),
        ("fit_frames of 180x320 frames to 60x60", with_black_bars),
        ("makes values that no pixel had", mixes_pixels),
        ("has shape (2, 160, 90, 2); it must be (2, 90, 160, 2)", width_first),
        ("is None; does your function end in return?", without_return),
    ])


# ---- 1.3 pack_clips


def right_pack_clips(tokens, capacity):
    packs = []
    for i, count in enumerate(tokens):  # into the fullest pack that has room
        fitting = [pack for pack in packs if sum(tokens[j] for j in pack) + count <= capacity]
        if fitting:
            max(fitting, key=lambda pack: sum(tokens[j] for j in pack)).append(i)
        else:
            packs.append([i])
    return packs


def in_order(tokens, capacity):
    packs, room = [], 0
    for i, count in enumerate(tokens):
        if count > room:
            packs.append([])
            room = capacity
        packs[-1].append(i)
        room -= count
    return packs


def largest_first_in_order(tokens, capacity):
    order = sorted(range(len(tokens)), key=lambda i: -tokens[i])
    return [[order[i] for i in pack] for pack in in_order([tokens[i] for i in order], capacity)]


def one_to_a_pack(tokens, capacity):
    return [[i] for i in range(len(tokens))]


def all_in_one(tokens, capacity):
    return [list(range(len(tokens)))]


def counts_for_numbers(tokens, capacity):
    return [[tokens[i] for i in pack] for pack in right_pack_clips(tokens, capacity)]


def counted_from_one(tokens, capacity):
    return [[i + 1 for i in pack] for pack in right_pack_clips(tokens, capacity)]


def without_the_last_pack(tokens, capacity):
    return right_pack_clips(tokens, capacity)[:-1]


def one_clip_twice(tokens, capacity):
    return [*right_pack_clips(tokens, capacity), [0]]


def empties_its_input(tokens, capacity):
    packs = right_pack_clips(tokens, capacity)
    tokens.clear()
    return packs


def test_pack_clips():
    guard("1.3", right_pack_clips, [
        ("packs, which are 84 % full; at least 90 % is possible. Before you close a pack", in_order),
        ("% full; at least 90 % is possible", largest_first_in_order),
        ("needs 150 packs", one_to_a_pack),
        ("pack 0 (counted from 0) holds", all_in_one),
        ("a pack is a list of clip numbers, 0 to 149, not of token counts", counts_for_numbers),
        ("holds 150; a pack is a list of clip numbers, 0 to 149", counted_from_one),
        ("leaves out", without_the_last_pack),
        ("holds clip 0 2 times; each clip belongs to one pack", one_clip_twice),
        ("changes its list of token counts", empties_its_input),
        ("is None; does your function end in return?", without_return),
    ])


def test_the_text_of_the_exercise_says_how_full_packs_in_order_are():
    for seed in range(3):
        tokens = [tokens_in_sequence(*size, text=226) for size in clip_sizes(150, seed)]
        assert 0.75 < sum(tokens) / (CAPACITY * len(in_order(tokens, CAPACITY))) < 0.85
        assert sum(tokens) / (CAPACITY * len(find("1.3").reference(tokens, CAPACITY))) > 0.95


# ---- what replaces the learner's own


def test_resample_is_what_read_video_does(tmp_path):
    ramp = (torch.arange(75) / 90)[:, None, None, None].expand(75, 32, 32, 3)
    path = write_mp4(tmp_path / "ramp.mp4", ramp, fps=25)
    index = find("1.1").reference([i / 25 for i in range(75)], 3.0, 8)
    seen = read_video(path, len(index), 32, 32, fps=8).mean((1, 2, 3))
    assert len(index) == 24 and (seen - ramp[index, 0, 0, 0]).abs().max() < 0.01  # neighbours differ by 0.011
    with pytest.raises(ValueError, match="lasts 3.00 s"):
        read_video(path, len(index) + 1, 32, 32, fps=8)


def test_fit_frames_shows_what_resize_and_crop_shows():
    smooth = torch.linspace(0, 255, 90)[:, None, None] + torch.zeros(90, 160, 3)
    frames = smooth.round().to(torch.uint8)[None]
    mine, package = find("1.2").reference(frames, 32, 40), resize_and_crop(frames, 32, 40)
    assert (mine / 255 - package).abs().max() < 0.02


def test_a_fence_of_single_pixels_runs_backwards_and_one_of_means_is_grey():
    columns = torch.arange(120)
    fence = torch.stack([(columns - move) % 6 < 3 for move in range(12)])  # to the right, one column a frame
    fence = 255 * fence[:, None, :, None].expand(-1, 120, -1, 3).to(torch.uint8)
    single, means = find("1.2").reference(fence, 24, 24), resize_and_crop(fence, 24, 24)
    assert torch.equal(single[1:, :, 1:-1], single[:-1].roll(-1, dims=2)[:, :, 1:-1])  # to the left
    assert not torch.equal(single[1:, :, 1:-1], single[:-1].roll(1, dims=2)[:, :, 1:-1])
    assert single.float().std() > 100 and means[:, :, 4:-4].std() < 0.1
