"""Videos and pictures are read at the times and sizes that are asked for, or the reason is told in one sentence."""

import numpy as np
import pytest
import torch
from films import film, mp4, ramp, sound_only, written
from PIL import Image

from minicogvx.data.films.decode import read_image, read_video, resize_and_crop, stream_frames
from minicogvx.media import write_mp4


def test_read_video_resamples_in_time(tmp_path):
    # 24 frames at 24 fps, frame k of brightness k / 24: at 8 fps one sees every third.
    brighter = (torch.arange(24) / 24)[:, None, None, None].expand(24, 32, 32, 3)
    path = write_mp4(tmp_path / "ramp.mp4", brighter, fps=24)
    seen = read_video(path, num_frames=8, height=16, width=16, fps=8)
    assert seen.shape == (8, 16, 16, 3)
    assert (seen.mean((1, 2, 3)) - torch.arange(0, 24, 3) / 24).abs().max() < 0.02
    slower = read_video(path, num_frames=40, height=16, width=16, fps=48)  # each frame twice
    assert (slower.mean((1, 2, 3)) - torch.arange(40).div(2, rounding_mode="floor") / 24).abs().max() < 0.02


def test_a_seek_gives_the_frames_that_decoding_from_the_beginning_gives(tmp_path, monkeypatch):
    path = film(tmp_path / "long.mp4", ramp(160, 16, 16), fps=8)  # 20 seconds, a key frame every second
    sought = read_video(path, 9, 16, 16, fps=5, start=13.3)
    monkeypatch.setattr("minicogvx.data.films.frames._SEEK_FROM", float("inf"))
    assert torch.equal(sought, read_video(path, 9, 16, 16, fps=5, start=13.3))
    with pytest.raises(ValueError, match="long.mp4 lasts 20.00 s; 9 frames at 5 fps need 20.80 s"):
        read_video(path, 9, 16, 16, fps=5, start=19.0)
    with pytest.raises(ValueError, match="start is -1"):
        read_video(path, 1, 16, 16, fps=8, start=-1.0)


def test_a_long_video_is_read_at_constant_memory(tmp_path):
    frames = stream_frames(film(tmp_path / "long.mp4", ramp(400, 16, 16)), (k / 8 for k in range(10**6)), 8)
    seen = [(tuple(frame.shape), float(frame.float().mean() / 255)) for frame in frames]
    assert len(seen) == 400 and seen[0][0] == (8, 8, 3) and seen[-1][1] > 0.85
    long = stream_frames(tmp_path / "long.mp4", iter([0.0]))
    assert next(long).shape == (16, 16, 3) and next(long, None) is None


def test_resize_covers_then_crops_the_middle():
    # Left third red, middle third green, right third blue: the square crop of a wide picture is the green part.
    wide = torch.zeros(1, 30, 90, 3, dtype=torch.uint8)
    for k in range(3):
        wide[:, :, 30 * k:30 * (k + 1), k] = 255
    square = resize_and_crop(wide, 30, 30)
    assert (square[..., 1] == 1).all() and square[..., 0].max() == 0
    small = resize_and_crop(wide, 10, 10)
    assert small.shape == (1, 10, 10, 3) and small[0, :, 2:8, 1].min() > 0.95


def test_resize_is_antialiased():
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    assert (resize_and_crop(stripes, 16, 16)[:, 2:-2, 2:-2] - 0.5).abs().max() < 0.05


def test_bad_files_are_named_in_one_sentence(tmp_path, subtests):
    whole = mp4(tmp_path / "whole.mp4", ramp(9))
    written(tmp_path, "cut.mp4", whole.read_bytes()[:400])
    sound_only(tmp_path / "sound.mp4")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "whole.png")
    written(tmp_path, "cut.png", (tmp_path / "whole.png").read_bytes()[:900])
    for ending in ("mp4", "png"):
        written(tmp_path, f"empty.{ending}", "")
        written(tmp_path, f"text.{ending}", "not a video at all, only words " * 50)
    (tmp_path / "folder.mp4").mkdir()
    for name, error, words in (
        ("empty.mp4", ValueError, "is empty"), ("text.mp4", ValueError, "not a video"),
        ("cut.mp4", ValueError, "not a video"), ("sound.mp4", ValueError, "no video stream"),
        ("whole.mp4", ValueError, r"lasts 1\.1\d s; 17 frames at 8 fps need 2\.1\d s"),
        ("nowhere.mp4", FileNotFoundError, "there is no file"), ("folder.mp4", ValueError, "is a folder"),
        ("cut.png", ValueError, "cut off"), ("text.png", ValueError, "not a picture"),
        ("empty.png", ValueError, "is empty"), ("nowhere.png", FileNotFoundError, "there is no file"),
    ):
        with subtests.test(msg=name):
            with pytest.raises(error, match=words) as told:
                if name.endswith("png"):
                    read_image(tmp_path / name, 32, 32)
                else:
                    read_video(tmp_path / name, 17, 32, 32, fps=8)
            assert name in str(told.value) and "\n" not in str(told.value)
