"""Exercises of notebook 01 distinguish right from wrong, and name the mistake."""

import math
from bisect import bisect_right

import pytest
import torch
import torch.nn.functional as F

from minicogvx.course.exercises import find
from minicogvx.data.films.decode import read_video, resize_and_crop
from minicogvx.data.world import oracle
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import DIRECTIONS, sample_scenes, trajectory
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


# ---- 1.2 longest_clip


def right_longest_clip(seconds, fps, max_frames=49, ratio=4):
    fitting = [n for n in range(1, max_frames + 1, ratio) if (n - 1) / fps < seconds]
    if not fitting:
        raise ValueError("no frame")
    return fitting[-1]


def all_in_fours(seconds, fps, max_frames=49, ratio=4):
    return min(math.ceil(seconds * fps), max_frames) // ratio * ratio


def without_a_cap(seconds, fps, max_frames=49, ratio=4):
    return right_longest_clip(seconds, fps, 10**5, ratio)


def the_end_counted_in(seconds, fps, max_frames=49, ratio=4):
    return right_longest_clip(seconds + 1e-6, fps, max_frames, ratio)


def the_next_larger(seconds, fps, max_frames=49, ratio=4):
    shown = min(math.ceil(seconds * fps), max_frames)
    return shown + -(shown - 1) % ratio


def rounded_down(seconds, fps, max_frames=49, ratio=4):
    shown = min(int(seconds * fps), max_frames)
    return 1 + (shown - 1) // ratio * ratio


def as_a_float(seconds, fps, max_frames=49, ratio=4):
    return 1.0 * right_longest_clip(seconds, fps, max_frames, ratio)


def always_four(seconds, fps, max_frames=49, ratio=4):
    return right_longest_clip(seconds, fps, max_frames, 4)


def never_complains(seconds, fps, max_frames=49, ratio=4):
    return right_longest_clip(max(seconds, 1e-6), fps, max_frames, ratio)


def test_longest_clip():
    guard("1.2", right_longest_clip, [
        ("longest_clip(3.0, 8) is 24, which is not 4k + 1; it must be 21", all_in_fours),
        ("longest_clip(60.0, 8) is 477; at most 49 are allowed, so it must be 49", without_a_cap),
        ("the last of them would be shown at second 3 of 3", the_end_counted_in),
        ("the last of them would be shown at second 3 of 3", the_next_larger),
        ("longest_clip(0.1, 8) is -3; it must be 1", rounded_down),
        ("is 21.0, of type float", as_a_float),
        ("ratio=8) is 21, which is not 8k + 1; it must be 17", always_four),
        ("longest_clip(0.0, 8) gives 1; it must raise ValueError", never_complains),
        ("is None; does your function end in return?", without_return),
    ])


# ---- 1.3 fit_frames


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
    guard("1.3", right_fit_frames, [
        ("stretches the picture: neighbours are 3 rows of the film apart and 5.", stretched),
        ("begins at column 0 and ends at column 177 of 0 to 319: that is not the middle", at_the_top_left),
        ("neighbours are 1 pixels of the film apart; they must be 3", only_cropped),
        ("stretches the picture", first_a_square),
        ("fit_frames of 180x320 frames to 60x60", with_black_bars),
        ("makes values that no pixel had", mixes_pixels),
        ("has shape (2, 160, 90, 2); it must be (2, 90, 160, 2)", width_first),
        ("is None; does your function end in return?", without_return),
    ])


# ---- 1.4 pick_bucket


def right_pick_bucket(height, width, buckets):
    return min(buckets, key=lambda b: abs(math.log(b[1] / b[0]) - math.log(width / height)))


def by_difference(height, width, buckets):
    return min(buckets, key=lambda b: abs(b[1] / b[0] - width / height))


def sides_exchanged(height, width, buckets):
    return right_pick_bucket(width, height, buckets)


def by_size(height, width, buckets):
    return min(buckets, key=lambda b: abs(b[0] - height) + abs(b[1] - width))


def by_area(height, width, buckets):
    return min(buckets, key=lambda b: abs(b[0] * b[1] - height * width))


def the_first_wide_enough(height, width, buckets):
    return next((b for b in buckets if b[1] / b[0] >= width / height), buckets[-1])


def a_size_of_its_own(height, width, buckets):
    return height // 16 * 16, width // 16 * 16


def test_pick_bucket():
    guard("1.4", right_pick_bucket, [
        ("% of the frame; (", by_difference),
        ("Sizes are (height, width)", sides_exchanged),
        ("pick_bucket(", by_size),
        ("of the frame", by_area),
        ("of the frame", the_first_wide_enough),
        ("it must be one of the buckets", a_size_of_its_own),
        ("is None; does your function end in return?", without_return),
    ])


# ---- 1.5 read_direction


def right_read_direction(x, y):
    gone = max(math.dist((x[0], y[0]), point) for point in zip(x, y))
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    if gone < 0.02:
        return "stays still"
    if math.hypot(dx, dy) < gone / 2:
        return None
    parts = [name for name, on in (("up", dy < -abs(dx) / 2.4), ("down", dy > abs(dx) / 2.4),
                                   ("left", dx < -abs(dy) / 2.4), ("right", dx > abs(dy) / 2.4)) if on]
    return "moves " + " and ".join(parts)


def y_points_up(x, y):
    return right_read_direction(x, [-value for value in y])


def four_directions(x, y):
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    if math.hypot(dx, dy) < 0.02:
        return right_read_direction(x, y)
    return ("moves left", "moves right")[dx > 0] if abs(dx) > abs(dy) else ("moves up", "moves down")[dy > 0]


def never_still(x, y):
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    return max(DIRECTIONS, key=lambda n: (dx * DIRECTIONS[n][0] + dy * DIRECTIONS[n][1]) / math.hypot(*DIRECTIONS[n]))


def only_the_ends(x, y):
    return "stays still" if math.dist((x[0], y[0]), (x[-1], y[-1])) < 0.05 else never_still(x, y)


def the_signs_alone(x, y):
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    parts = ["up"] * (dy < 0) + ["down"] * (dy > 0) + ["left"] * (dx < 0) + ["right"] * (dx > 0)
    return "moves " + " and ".join(parts)


def longest_product(x, y):
    if right_read_direction(x, y) in (None, "stays still"):
        return right_read_direction(x, y)
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    return max(DIRECTIONS, key=lambda n: dx * DIRECTIONS[n][0] + dy * DIRECTIONS[n][1])


def test_read_direction():
    guard("1.5", right_read_direction, [
        ('"moves up"; you read \'moves down\'', y_points_up),
        ('"moves up and left"; you read', four_directions),
        ('"stays still"; you read', never_still),
        ("bounces, so it is no direction and not still; you read 'stays still', it must be None", only_the_ends),
        ('"moves left"; you read', the_signs_alone),
        ('"moves left"; you read', longest_product),
        ('"moves left"; you read None', without_return),
    ])


# ---- what replaces the learner's own


def test_resample_and_longest_clip_are_what_read_video_does(tmp_path):
    ramp = (torch.arange(75) / 90)[:, None, None, None].expand(75, 32, 32, 3)
    path = write_mp4(tmp_path / "ramp.mp4", ramp, fps=25)
    count = find("1.2").reference(3.0, 8)
    index = find("1.1").reference([i / 25 for i in range(75)], 3.0, 8)
    seen = read_video(path, count, 32, 32, fps=8).mean((1, 2, 3))
    assert count == 21 and (seen - ramp[index[:count], 0, 0, 0]).abs().max() < 0.01  # neighbours differ by 0.011
    with pytest.raises(ValueError, match="lasts 3.00 s"):
        read_video(path, count + 4, 32, 32, fps=8)


def test_fit_frames_shows_what_resize_and_crop_shows():
    smooth = torch.linspace(0, 255, 90)[:, None, None] + torch.zeros(90, 160, 3)
    frames = smooth.round().to(torch.uint8)[None]
    mine, package = find("1.3").reference(frames, 32, 40), resize_and_crop(frames, 32, 40)
    assert (mine / 255 - package).abs().max() < 0.02


def test_read_direction_agrees_with_the_oracle():
    clock = torch.linspace(0, 1, 17).numpy()
    for scene in sample_scenes(80, 5, two_objects=0.0):
        x, y, _ = trajectory(scene.objects[0], clock)
        if scene.objects[0].motion not in ("grows", "shrinks"):
            read = oracle.read(render(scene, 17, 64, 64)).objects[0].motion
            wanted = read if read in (*DIRECTIONS, "stays still") else None
            assert find("1.5").reference(x.tolist(), y.tolist()) == wanted, scene
