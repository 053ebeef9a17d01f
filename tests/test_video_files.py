import av
import numpy as np
import pytest
import torch
from films import sound_only
from PIL import Image

from minicogvx.data.films.decode import read_image, read_video, resize_and_crop
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


@pytest.mark.parametrize("h, w", [(33, 32), (32, 33), (31, 37)])
def test_mp4_of_odd_size_repeats_the_last_row_or_column(tmp_path, h, w):
    video = clip(h=h, w=w)
    frames = decode(write_mp4(tmp_path / "odd.mp4", video, fps=8))
    assert frames.shape == (9, h + h % 2, w + w % 2, 3)
    assert np.abs(frames[:, :h, :w] / 255 - video.numpy()).mean() < 0.03


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


def test_read_video_resamples_in_time(tmp_path):
    # 24 frames at 24 fps, frame k of brightness k / 24: at 8 fps one sees every third.
    ramp = (torch.arange(24) / 24)[:, None, None, None].expand(24, 32, 32, 3)
    path = write_mp4(tmp_path / "ramp.mp4", ramp, fps=24)
    seen = read_video(path, num_frames=8, height=16, width=16, fps=8)
    assert seen.shape == (8, 16, 16, 3)
    assert (seen.mean((1, 2, 3)) - torch.arange(0, 24, 3) / 24).abs().max() < 0.02
    slower = read_video(path, num_frames=40, height=16, width=16, fps=48)  # each frame twice
    assert (slower.mean((1, 2, 3)) - torch.arange(40).div(2, rounding_mode="floor") / 24).abs().max() < 0.02


def test_read_video_reads_a_gif(tmp_path):
    path = write_gif(tmp_path / "clip.gif", clip(), fps=10)
    seen = read_video(path, num_frames=9, height=32, width=32, fps=10)
    assert (seen - clip()).abs().mean() < 0.04


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


def test_read_image_of_each_kind(tmp_path):
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 255, 255
    pixels[:20, :, 3] = 0  # the upper half is transparent: people see white
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    seen = read_image(tmp_path / "cut.png", 40, 40)
    assert (seen[:20] == 1).all() and torch.equal(seen[30, 5], torch.tensor([1.0, 0.0, 0.0]))
    Image.new("L", (10, 20), 51).save(tmp_path / "grey.png")
    assert torch.allclose(read_image(tmp_path / "grey.png", 8, 8), torch.tensor(0.2), atol=1e-3)
    sideways = Image.new("RGB", (20, 10), "black")
    sideways.paste("white", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # a rotated phone: the stored left edge is the top
    sideways.save(tmp_path / "phone.png", exif=exif)
    upright = read_image(tmp_path / "phone.png", 20, 10)
    assert upright[:9].min() > 0.9 and upright[11:].max() < 0.1


def test_bad_files_are_named_in_one_sentence(tmp_path):
    whole = write_mp4(tmp_path / "whole.mp4", clip(), fps=8)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all, only words " * 50)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:400])
    sound_only(tmp_path / "sound.mp4")
    cases = {"empty.mp4": "is empty", "text.mp4": "not a video", "cut.mp4": "not a video",
             "sound.mp4": "no video stream",
             "whole.mp4": r"lasts 1\.1\d s; 17 frames at 8 fps need 2\.1\d s"}
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            read_video(tmp_path / name, 17, 32, 32, fps=8)
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="there is no file .*nowhere.mp4"):
        read_video(tmp_path / "nowhere.mp4", 9, 32, 32, fps=8)
    with pytest.raises(ValueError, match="is a folder"):
        read_video(tmp_path, 9, 32, 32, fps=8)


def test_bad_pictures_are_named_in_one_sentence(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "text.png").write_text("only words")
    (tmp_path / "empty.png").touch()
    for name, message in {"cut.png": "cut off", "text.png": "not a picture", "empty.png": "is empty"}.items():
        with pytest.raises(ValueError, match=message) as error:
            read_image(tmp_path / name, 32, 32)
        assert name in str(error.value)
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        read_image(tmp_path / "nowhere.png", 32, 32)


def test_bad_output_is_refused_and_leaves_nothing(tmp_path):
    hole = clip()
    hole[3, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        write_mp4(tmp_path / "nan.mp4", hole, fps=8)
    with pytest.raises(ValueError, match=r"must end in \.mp4"):
        write_mp4(tmp_path / "clip.avi", clip(), fps=8)
    with pytest.raises(ValueError, match="fps is 0"):
        write_mp4(tmp_path / "clip.mp4", clip(), fps=0)
    with pytest.raises(ValueError, match="num_frames is 0"):
        write_strip(tmp_path / "clip.png", clip(), num_frames=0)
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
