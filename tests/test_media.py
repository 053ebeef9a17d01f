"""Videos, gifs and strips are written as they are, whole or not at all."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from minicogvx.media import write_gif, write_mp4, write_strip


def clip(t: int = 9, h: int = 32, w: int = 32) -> torch.Tensor:
    """A bright square that moves right over a slow ramp: smooth enough for H.264 to keep."""
    video = torch.linspace(0.2, 0.5, t)[:, None, None, None].expand(t, h, w, 3).clone()
    for k in range(t):
        video[k, h // 4:h // 2, 2 + 2 * k:10 + 2 * k, 0] = 1.0
    return video


def decode(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_mp4_keeps_frames_size_rate_and_pixels(tmp_path):
    video = clip(h=64, w=64)
    path = write_mp4(tmp_path / "new" / "clip.mp4", video, fps=8)
    frames = decode(path)
    assert frames.shape == (9, 64, 64, 3)
    assert np.abs(frames / 255 - video.numpy()).mean() < 0.02
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == 8
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")


def test_mp4_of_odd_size_repeats_the_last_row_or_column(tmp_path):
    for h, w in ((33, 32), (32, 33), (31, 37)):
        video = clip(h=h, w=w)
        frames = decode(write_mp4(tmp_path / "odd.mp4", video, fps=8))
        assert frames.shape == (9, h + h % 2, w + w % 2, 3)
        assert np.abs(frames[:, :h, :w] / 255 - video.numpy()).mean() < 0.03, (h, w)


def test_gif_is_enlarged_loops_and_keeps_its_time(tmp_path):
    video = clip(t=5, h=64, w=64)
    with Image.open(write_gif(tmp_path / "clip.gif", video, fps=8)) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (5, (192, 192), 0)
        assert gif.info["duration"] in (120, 125, 130)
        gif.seek(4)
        shown = np.asarray(gif.convert("RGB")).astype(int)
    expected = (video[4].repeat_interleave(3, 0).repeat_interleave(3, 1) * 255).round().numpy()
    assert np.abs(shown - expected).mean() < 6


def test_strip_has_first_and_last_frame_with_gaps_between(tmp_path):
    video = clip(t=9, h=64, w=64)
    strip = np.asarray(Image.open(write_strip(tmp_path / "s.png", video, num_frames=3, gap=4)))
    assert strip.shape == (128, 3 * 128 + 2 * 4, 3)
    big = (video.repeat_interleave(2, 1).repeat_interleave(2, 2) * 255).round().numpy()
    assert (strip[:, :128] == big[0]).all() and (strip[:, 132:260] == big[4]).all() and (strip[:, 264:] == big[8]).all()
    assert (strip[:, 128:132] == 255).all()


def test_strip_of_a_short_video_and_without_gap(tmp_path):
    strip = np.asarray(Image.open(write_strip(tmp_path / "s.png", clip(t=1), num_frames=6)))
    assert strip.shape == (128, 128, 3)
    strip = np.asarray(Image.open(write_strip(tmp_path / "s.png", clip(t=2), gap=0)))
    assert strip.shape == (128, 256, 3)


def test_bad_output_is_refused_and_leaves_nothing(tmp_path, subtests):
    hole = clip()
    hole[3, 0, 0, 0] = float("nan")
    for call, words in (
        (lambda: write_mp4(tmp_path / "nan.mp4", hole, fps=8), "NaN"),
        (lambda: write_mp4(tmp_path / "clip.avi", clip(), fps=8), r"must end in \.mp4"),
        (lambda: write_mp4(tmp_path / "clip.mp4", clip(), fps=0), "fps is 0"),
        (lambda: write_strip(tmp_path / "clip.png", clip(), num_frames=0), "num_frames is 0"),
    ):
        with subtests.test(msg=words), pytest.raises(ValueError, match=words):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_half_way_keeps_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "old.mp4").write_text("old")

    def fails(container, packets):
        raise RuntimeError("disk full")

    monkeypatch.setattr(av.container.OutputContainer, "mux", fails)
    with pytest.raises(RuntimeError, match="disk full"):
        write_mp4(tmp_path / "old.mp4", clip(), fps=8)
    assert [file.name for file in tmp_path.iterdir()] == ["old.mp4"]
    assert (tmp_path / "old.mp4").read_text() == "old"
