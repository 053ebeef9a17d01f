"""Videos have the colours that a player shows: matrix, range, depth, HDR, transparency, interlacing."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from films import coded, mp4

from minicogvx.data.films.decode import read_video
from minicogvx.data.films.probe import probe

COLOUR = torch.tensor([0.1, 0.75, 0.3])
MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # FFmpeg's numbers


def test_the_matrix_and_the_range_that_a_video_notes(tmp_path, subtests):
    formats = (("libx264", "yuv420p"), ("libx264", "yuv422p10le"), ("ffv1", "yuv444p12le"))
    for matrix, full, (codec, pix_fmt) in itertools.product(MATRICES, (False, True), formats):
        with subtests.test(msg=f"matrix {matrix}, {'full' if full else 'limited'} range, {pix_fmt}"):
            path = one_colour(tmp_path / "a.mkv", matrix, full, codec, pix_fmt)
            assert (read_video(path, 1, 32, 48, 8)[0] - COLOUR).abs().max() < 0.02


def one_colour(path, matrix, full, codec, pix_fmt):
    """Two frames of COLOUR, coded by hand."""
    red, blue = MATRICES[matrix]
    luma = red * COLOUR[0] + (1 - red - blue) * COLOUR[1] + blue * COLOUR[2]
    values = [luma, (COLOUR[2] - luma) / (2 - 2 * blue) + 0.5, (COLOUR[0] - luma) / (2 - 2 * red) + 0.5]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 48, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        frame = av.VideoFrame(48, 32, pix_fmt)
        for k, (plane, part, value) in enumerate(zip(frame.planes, frame.format.components, values)):
            top = 2 ** part.bits - 1
            level = value * top if full else (value * (224 if k else 219) + 16) * (top + 1) / 256
            kind = np.uint8 if part.bits == 8 else np.uint16
            plane.update(np.full(plane.buffer_size // kind().itemsize, round(float(level)), kind).tobytes())
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        for k in range(2):
            frame.pts, frame.time_base = k, Fraction(1, 8)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def test_what_the_package_writes_is_read_in_the_same_colours(tmp_path):
    for height, width in ((64, 64), (720, 1280)):
        path = mp4(tmp_path / "a.mp4", COLOUR.expand(2, height, width, 3))
        assert (read_video(path, 1, 8, 8, 8)[0] - COLOUR).abs().max() < 0.02, (height, width)


def test_a_large_video_without_a_matrix_has_that_of_television(tmp_path):
    def bt709(stream):
        stream.codec_context.colorspace = 2

    wide = torch.tensor([1.0, 0.0, 0.0]).expand(2, 720, 1280, 3)
    path = coded(tmp_path / "a.mkv", wide, "ffv1", "yuv420p", prepare=bt709)  # coded as BT.601, and says nothing
    red, green, blue = read_video(path, 1, 8, 8, 8)[0, 4, 4]
    assert red > 0.95 and 0.05 < green < 0.15 and blue < 0.05
    small = coded(tmp_path / "b.mkv", wide[:, :64, :64], "ffv1", "yuv420p", prepare=bt709)
    assert read_video(small, 1, 8, 8, 8)[0, 4, 4, 1] < 0.03


@pytest.mark.parametrize("transfer, grey, white", [(16, 0.44, 0.581), (18, 0.5, 0.75)])  # PQ: 50 and 203 candela; HLG
def test_videos_with_hdr(tmp_path, transfer, grey, white):
    video = torch.zeros(2, 64, 64, 3)
    video[:, :, 32:], video[:, :, :32] = white, grey

    def prepare(stream):
        stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, 9
        stream.codec_context.colorspace = 9

    path = coded(tmp_path / "phone.mkv", video, "ffv1", "yuv420p10le", prepare=prepare)
    seen = read_video(path, 1, 64, 64, 8)[0, 32, :, 1]
    assert seen[40:].min() > 0.97 and (seen[:24] - 0.56).abs().max() < 0.03


def test_transparency_is_white(tmp_path, subtests):
    video = torch.zeros(9, 64, 64, 4)
    video[..., 0] = video[..., 3] = 1
    video[:, :32, :, 3] = 0
    for ending, codec, pix_fmt in (
        ("mov", "png", "rgba"), ("mov", "qtrle", "argb"), ("mov", "prores_ks", "yuva444p10le"),
        ("mkv", "ffv1", "yuva420p"), ("webm", "libvpx-vp9", "yuva420p"), ("webm", "libvpx", "yuva420p"),
    ):
        with subtests.test(msg=codec):
            options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
            path = coded(tmp_path / f"{codec}.{ending}", video, codec, pix_fmt, **options)
            seen = read_video(path, 9, 64, 64, 8)
            assert (seen[:, :24] > 0.95).all()
            assert (seen[:, 40:] - torch.tensor([1.0, 0.0, 0.0])).abs().mean() < 0.03
            assert probe(path).frames == 9


def test_interlaced_videos_show_one_moment_at_a_time(tmp_path):
    # A bright bar moves right; odd lines are half a frame later than even ones.
    woven = torch.zeros(10, 64, 128, 3)
    for k in range(10):
        woven[k, ::2, 8 * k:8 * k + 24] = woven[k, 1::2, 8 * k + 4:8 * k + 28] = 1
    path = coded(tmp_path / "a.mts", woven, pix_fmt="yuv422p", crf="5", **{"x264-params": "tff=1"})
    with av.open(str(path)) as file:
        assert next(file.decode(video=0)).interlaced_frame
    seen = read_video(path, 8, 64, 128, 8)
    assert (seen[:, 1:] - seen[:, :-1]).abs().max() < 0.25  # no line differs from the next one
    assert (seen[2, 32, 18:38] > 0.8).all()
