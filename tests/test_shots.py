"""Optical flow and the other measures on videos with known content, and the shots that are cut by them."""

import math
from pathlib import Path

import pytest
import torch
from films import mp4, pan, texture

from minicogvx.data.films.decode import read_video
from minicogvx.data.films.flow import motion_strength, optical_flow
from minicogvx.data.films.folder import VideoClip, read_clip, scan_folder
from minicogvx.data.films.shots import (
    CurationThresholds,
    Track,
    content_change,
    find_cuts,
    find_shots,
    histogram_change,
    measure,
    sharpness,
)
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import sample_scenes

ROOT = Path(__file__).resolve().parents[1]


def waves(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A texture that is known between the pixels, too: waves of 12 to 100 pixels, the longer the
    stronger, as in pictures."""
    generator, total = torch.Generator().manual_seed(0), torch.zeros_like(x)
    for a, b, c in torch.rand(24, 3, generator=generator).tolist():
        length, angle, phase = 12 + 88 * a, 2 * math.pi * b, 2 * math.pi * c
        total += length * torch.sin(2 * math.pi / length * (math.cos(angle) * x + math.sin(angle) * y) + phase)
    return 0.5 + total / 1200


def grid(h: int = 96, w: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij")
    return x, y


# ---- optical flow


def test_flow_of_a_shift_is_that_shift_at_most_pixels(subtests):
    x, y = grid()
    for dx, dy, share in ((0.3, -0.2, 0.95), (1.0, 0.0, 0.95), (-2.5, 1.5, 0.95), (6.0, -4.0, 0.95), (-11.0, 9.0, 0.8)):
        with subtests.test(msg=f"by {dx}, {dy}"):
            flow = optical_flow(waves(x, y)[None], waves(x - dx, y - dy)[None])
            inner = flow[0, :, 28:-28, 28:-28]
            assert (inner - torch.tensor([dx, dy])[:, None, None]).norm(dim=0).quantile(share) < 0.15
            assert motion_strength(flow[..., 28:-28, 28:-28]).item() * 40 == pytest.approx(math.hypot(dx, dy), rel=0.05)


def test_flow_of_a_turn_and_a_zoom():
    x, y = grid()
    u, v, angle, scale = x - 63.5, y - 47.5, math.radians(3), 1.04
    there = (scale * (math.cos(angle) * u - math.sin(angle) * v), scale * (math.sin(angle) * u + math.cos(angle) * v))
    back = ((math.cos(angle) * u + math.sin(angle) * v) / scale, (math.cos(angle) * v - math.sin(angle) * u) / scale)
    flow = optical_flow(waves(u, v)[None], waves(*back)[None])[0]
    error = torch.stack([flow[0] - (there[0] - u), flow[1] - (there[1] - v)]).norm(dim=0)
    assert error[28:-28, 28:-28].mean() < 0.25  # of up to 2.6 pixels: the motion is not the same within a window


def test_flow_of_what_does_not_move_is_none():
    x, y = grid(32, 48)
    still = waves(x, y)[None].repeat(2, 1, 1)
    assert optical_flow(still, still).abs().max() < 1e-9
    assert optical_flow(torch.full((1, 32, 48), 0.2), torch.full((1, 32, 48), 0.7)).abs().max() == 0  # no texture


def test_only_the_square_that_moves_has_flow():
    background, square = texture(64, 96)[..., 0], texture(20, 20, seed=1, grain=4)[..., 0]
    frames = torch.stack([background, background])
    frames[0, 22:42, 30:50], frames[1, 22:42, 33:53] = square, square
    flow = optical_flow(frames[:1], frames[1:])[0]
    assert (flow[:, 27:37, 36:44].mean((1, 2)) - torch.tensor([3.0, 0.0])).abs().max() < 0.3
    assert flow[:, :, :16].norm(dim=0).mean() < 0.05 and flow[:, :, 76:].norm(dim=0).mean() < 0.05


# ---- measures and shots


def blurred(video: torch.Tensor, sigma: float) -> torch.Tensor:
    steps = torch.arange(-int(4 * sigma), int(4 * sigma) + 1)
    kernel = torch.exp(-steps**2 / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    for axis in (1, 2):
        moved = video.movedim(axis, -1)
        edge = torch.nn.functional.pad(moved.reshape(-1, 1, moved.shape[-1]), (len(steps) // 2,) * 2, mode="replicate")
        video = torch.nn.functional.conv1d(edge, kernel).view(moved.shape).movedim(-1, axis)
    return video


def test_sharpness_falls_with_blur_and_not_with_contrast():
    picture = texture(96, 128, grain=2)[None]
    grey = [blurred(picture, sigma)[..., 0] if sigma else picture[..., 0] for sigma in (0, 1, 2, 4)]
    values = [sharpness(frame).item() for frame in grey]
    assert values == sorted(values, reverse=True) and values[0] > 3 * values[2]
    assert sharpness(0.3 + 0.2 * grey[1]).item() == pytest.approx(values[1], rel=1e-3)
    assert sharpness(torch.full((1, 20, 20), 0.5)).item() == 0


def test_changes_of_colour_and_of_content():
    red, blue = torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    half = torch.cat([red[:, :4], blue[:, 4:]], dim=1)
    assert histogram_change(torch.cat([red, red, half, blue])).tolist() == [0, 0.5, 0.5]
    assert content_change(torch.cat([red, blue])).tolist() == pytest.approx([2 / 3])
    turned = half.flip(1)  # the same colours elsewhere
    both = torch.cat([half, turned])
    assert histogram_change(both).item() == 0 and content_change(both).item() > 0.5


def real_film() -> torch.Tensor:
    """Two seconds at 180 x 320 pixels."""
    return read_video(ROOT / "data" / "clips" / "big_buck_bunny.mp4", 16, 180, 320, fps=8)


def test_a_real_video_has_no_fault(tmp_path):
    mp4(tmp_path / "rabbit.mp4", real_film())
    shot, = find_shots(only_clip(tmp_path))
    assert shot.reasons == (), shot.scores


def only_clip(folder) -> VideoClip:
    clip, = scan_folder(folder, need_captions=False).clips
    return clip


def test_a_video_of_two_shots_is_cut_between_them(tmp_path):
    mp4(tmp_path / "two.mp4", torch.cat([pan(20, seed=1), pan(28, seed=2)]))
    clip = only_clip(tmp_path)
    first, second = find_shots(clip)
    assert (first.clip.start, second.clip.end) == (0, clip.end) and first.reasons == second.reasons == ()
    assert 19 / 8 < first.clip.end <= second.clip.start == 20 / 8
    for shot, true in ((first, pan(20, seed=1)), (second, pan(28, seed=2))):  # no frame of the one in the other
        seen = read_clip(shot.clip, 0.0, len(true), 8, 64, 96)
        assert (seen - true).abs().mean((1, 2, 3)).max() < 0.05  # another shot: 0.23


def test_neither_a_fast_pan_nor_a_sudden_start_nor_a_fade_is_a_cut(tmp_path):
    mp4(tmp_path / "a.mp4", pan(24, step=9))
    mp4(tmp_path / "b.mp4", torch.cat([pan(12)[:1].expand(12, -1, -1, -1), pan(13, step=6)]))
    mp4(tmp_path / "c.mp4", pan(24) * torch.linspace(1, 0, 24)[:, None, None, None])
    for clip in scan_folder(tmp_path, need_captions=False).clips:
        assert find_cuts(measure(clip, 8.0), CurationThresholds()) == [], clip.name


def test_a_quick_motion_that_begins_with_a_cut_is_no_second_cut():
    content = [0.005] * 16 + [0.078, 0.086, 0.066, 0.042] + [0.016] * 8
    colours = [0.01] * 16 + [0.119, 0.014, 0.017, 0.012] + [0.013] * 8
    for order, cut in ((1, 17), (-1, 12)):  # ... or ends with it
        track = Track(content=content[::order], histogram=colours[::order])
        assert find_cuts(track, CurationThresholds()) == [cut]
    still, cut = [0.005] * 8, [0.3]
    apart = Track(content=still + cut + still[:2] + cut + still, histogram=still + [0.9] + still[:2] + [0.9] + still)
    assert find_cuts(apart, CurationThresholds()) == [9, 12]


def test_shots_of_the_shapes_world_are_whole_and_move(tmp_path):
    scenes = sample_scenes(12, seed=3)
    moving = [scene for scene in scenes if scene.objects[0].motion not in ("stays still", "grows", "shrinks")][:4]
    for i, scene in enumerate(moving):
        mp4(tmp_path / f"{i}.mp4", render(scene, 17, 64, 64))
    for clip in scan_folder(tmp_path, need_captions=False).clips:
        shot, = find_shots(clip)
        assert shot.reasons == (), (clip.name, shot.scores)


def test_each_fault_is_named(tmp_path, subtests):
    for fault, video in (("static", pan(16)[:1].expand(16, -1, -1, -1)), ("black", torch.full((16, 64, 96, 3), 0.01)),
                         ("blurred", blurred(real_film(), 2.0))):
        with subtests.test(msg=fault):
            mp4(tmp_path / "bad.mp4", video)
            shot, = find_shots(only_clip(tmp_path))
            assert fault in shot.reasons and (fault == "black" or len(shot.reasons) == 1), (shot.reasons, shot.scores)


def test_speed_is_measured_in_shorter_sides_a_second(tmp_path):
    mp4(tmp_path / "pan.mp4", pan(17, 64, 96, step=2))  # 16 pixels a second of 64
    shot, = find_shots(only_clip(tmp_path))
    assert shot.scores["motion"] == pytest.approx(16 / 64, rel=0.1)


def test_values_outside_their_range_are_named(subtests):
    one, low = torch.zeros(1, 32, 32), torch.zeros(1, 5, 32)
    for call, words in (
        (lambda: CurationThresholds(min_motion=-1.0), "min_motion is -1.0"),
        (lambda: CurationThresholds(fps=0.0), "fps is 0.0.* above 0, at most 240"),
        (lambda: optical_flow(one, one, window=4), "window is 4"),
        (lambda: optical_flow(low, low), "at most the frame's 5"),
    ):
        with subtests.test(msg=words), pytest.raises(ValueError, match=words):
            call()
