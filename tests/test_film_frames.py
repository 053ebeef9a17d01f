"""Videos of every kind are read as a player shows them, or reported."""

import errno
import os
import shutil
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from films import agrees, call, caption, coded, film, levels, mp4, pan, ramp, with_cover

from minicogvx.data.films.curate import CurationThresholds, curate
from minicogvx.data.films.decode import read_video, stream_frames
from minicogvx.data.films.folder import read_clip, scan_folder
from minicogvx.data.films.pictures import UnusableFile, existing_file
from minicogvx.data.films.probe import FILMS, probe
from minicogvx.media import write_gif

# ---- containers


ENDINGS = {
    "mts": ("libx264", {}), "M2TS": ("libx264", {"container": {"options": {"mpegts_m2ts_mode": "1"}}}),
    "3gp": ("libx264", {}), "m4v": ("libx264", {}), "qt": ("libx264", {"container": {"format": "mov"}}),
    "f4v": ("libx264", {}), "flv": ("flv", {}), "ogv": ("libvpx", {"container": {"format": "ogg"}}),
    "webm": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}), "asf": ("msmpeg4", {}),
    "WMV": ("wmv2", {"container": {"format": "asf"}}), "divx": ("mpeg4", {"container": {"format": "avi"}}),
    "vob": ("mpeg2video", {"fps": 25}), "mpe": ("mpeg1video", {"fps": 25, "container": {"format": "mpeg"}}),
    "m2v": ("mpeg2video", {"fps": 25}), "mxf": ("mpeg2video", {"fps": 25}), "3g2": ("libx264", {}),
}


def test_videos_of_every_ending_are_seen_and_read(tmp_path, subtests):
    assert len(set(FILMS)) == len(FILMS) and all(ending == ending.lower() for ending in FILMS)
    for ending, (codec, options) in ENDINGS.items():
        coded(caption(tmp_path / f"{ending}.{ending}"), ramp(16, 64, 96), codec, **options)
    found = scan_folder(tmp_path, min_seconds=0.5)
    assert not found.problems
    clips = {clip.path.stem: clip for clip in found.clips}
    for ending, (_, options) in ENDINGS.items():
        with subtests.test(msg=ending):
            clip, fps = clips[ending], options.get("fps", 8)
            assert (clip.frames, clip.height, clip.width) == (16, 64, 96)
            assert clip.fps == pytest.approx(fps, rel=1e-2) and clip.seconds == pytest.approx(16 / fps, abs=0.02)
            seen = read_clip(clip, 0.0, 16, fps, 32, 48).mean((1, 2, 3))
            assert (seen - ramp(16).mean((1, 2, 3))).abs().max() < 0.03


def test_a_cover_is_not_the_video(tmp_path):
    path = with_cover(mp4(tmp_path / "song.mp4", ramp(16)))
    with av.open(str(path)) as file:
        assert file.streams.video[0].disposition & Disposition.attached_pic
    agrees(path, 16, 2.0)
    assert (levels(path, 16) - ramp(16).mean((1, 2, 3))).abs().max() < 0.01


def test_of_several_streams_the_largest_is_taken_and_the_default_one_before_it(tmp_path):
    def both(path, default):
        with av.open(str(path), "w") as file:
            small, large = (file.add_stream("libx264", rate=8) for _ in range(2))
            (small.height, small.width), (large.height, large.width) = (32, 32), (64, 96)
            for stream in (small, large):
                stream.pix_fmt = "yuv420p"
            small.disposition = Disposition.default if default else Disposition(0)
            large.disposition = Disposition(0)
            for k in range(16):
                for stream, value in ((small, 255), (large, 128)):
                    pixels = np.full((stream.height, stream.width, 3), value, np.uint8)
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            for stream in (small, large):
                file.mux(stream.encode())
        return path

    assert probe(both(tmp_path / "preview.mkv", False)).width == 96
    assert (levels(tmp_path / "preview.mkv", 16) - 0.5).abs().max() < 0.02
    assert probe(both(tmp_path / "chosen.mkv", True)).width == 32
    assert (levels(tmp_path / "chosen.mkv", 16) - 1).abs().max() < 0.02


def test_a_title_in_an_old_encoding_is_no_obstacle(tmp_path):
    path = coded(tmp_path / "old.avi", ramp(16), "mpeg4")
    with av.open(str(path)) as source, av.open(str(tmp_path / "titled.avi"), "w") as file:
        file.metadata["title"] = "cafe"
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                file.mux(packet)
    data = (tmp_path / "titled.avi").read_bytes()
    assert b"cafe" in data
    (tmp_path / "titled.avi").write_bytes(data.replace(b"cafe", b"caf\xe9"))
    assert probe(tmp_path / "titled.avi").frames == 16


def test_names_are_only_names(tmp_path, monkeypatch, subtests):
    monkeypatch.chdir(tmp_path)
    film = {".mp4": mp4(tmp_path / "a.mp4", ramp(16)), ".gif": write_gif("a.gif", pan(16), 8, 32)}
    for name in ("12:30.mp4", "http:a.mp4", "50%d.gif", "-i.mp4", "caf\udce9.mp4", "été 夏.mp4"):
        with subtests.test(msg=ascii(name)):
            shutil.copy(film[name[-4:]], name)
            assert probe(existing_file(name)).frames == 16


# ---- shape


def test_sizes_that_change_inside_are_fitted(tmp_path):
    caption(call(tmp_path / "call.webm", [(48, 64), (96, 128), (64, 48)]))
    caption(mp4(tmp_path / "whole.mp4", pan(17)))
    agrees(tmp_path / "call.webm", 48, 6.0)
    assert read_video(tmp_path / "call.webm", 48, 64, 64, 8).shape == (48, 64, 64, 3)
    result = curate(tmp_path, tmp_path / "out", CurationThresholds(fps=2.0), progress=False)
    assert not result.problems and {shot.clip.name for shot in result.shots} == {"call.webm", "whole.mp4"}


def test_a_video_that_fails_in_a_measure_leaves_the_others(tmp_path, monkeypatch):
    for name in ("a.mp4", "b.mp4"):
        caption(mp4(tmp_path / name, pan(17)))

    def damaged(path, *rest):
        if path.name == "a.mp4":
            raise UnusableFile(path, "is damaged")
        return stream_frames(path, *rest)

    monkeypatch.setattr("minicogvx.data.films.shots.stream_frames", damaged)
    result = curate(tmp_path, tmp_path / "out", progress=False)
    assert [str(problem) for problem in result.problems] == ["a.mp4: is damaged"]
    assert [shot.clip.name for shot in result.shots] == ["b.mp4"]


TURNS = {  # where a step right and a step down go, and by how many degrees the video is turned, up to mirroring
    "as it is": (1, 0, 0, 1, 0), "mirrored": (-1, 0, 0, 1, 0), "upside down": (1, 0, 0, -1, 0),
    "half": (-1, 0, 0, -1, 180), "left": (0, -1, 1, 0, 90), "right": (0, 1, -1, 0, 270),
    "transposed": (0, 1, 1, 0, 270), "crosswise": (0, -1, -1, 0, 90),
}


def test_mirrors_and_turns(tmp_path, subtests):
    stored = torch.zeros(8, 32, 64, 3)
    stored[:, :16, :32, 0] = 1  # a red corner, and a green edge below
    stored[:, 24:, :, 1] = 1
    for name, (a, b, c, d, degrees) in TURNS.items():
        def prepare(stream, matrix=(a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)):
            stream.set_display_matrix([*matrix])

        with subtests.test(msg=name):
            path = coded(tmp_path / f"{name}.mp4", stored, "libx264", "yuv444p", prepare=prepare, crf="10")
            expected = torch.zeros(*((64, 32) if b else (32, 64)), 3)
            for y in range(32):
                for x in range(64):  # a step right goes to (a, b), a step down to (c, d); -1: from the other edge
                    expected[b * x + d * y - (b + d < 0), a * x + c * y - (a + c < 0)] = stored[0, y, x]
            facts = probe(path)
            assert (facts.height, facts.width, facts.rotation) == (*expected.shape[:2], degrees)
            seen = read_video(path, 1, facts.height, facts.width, 8)[0]
            assert (seen - expected).abs().mean() < 0.03


def test_the_bound_on_size(tmp_path):
    write_gif(tmp_path / "huge.gif", ramp(3), 8, 32)
    data = bytearray((tmp_path / "huge.gif").read_bytes())
    data[6:10] = struct.pack("<HH", 20000, 12000)
    (tmp_path / "huge.gif").write_bytes(data)
    for read in (probe, lambda path: levels(path, 1)):
        with pytest.raises(UnusableFile, match="huge.gif has pictures of 20000x12000 pixels; at most"):
            read(tmp_path / "huge.gif")


def test_the_bound_holds_for_sizes_that_come_later_and_for_long_pixels(tmp_path, monkeypatch):
    path = call(tmp_path / "call.webm", [(96, 128), (192, 256)])
    monkeypatch.setattr("minicogvx.data.films.pictures.MOST_PIXELS", 20000)
    assert levels(path, 16).shape == (16,)
    with pytest.raises(UnusableFile, match="call.webm has pictures of 256x192 pixels"):
        levels(path, 20)
    film(tmp_path / "wide.mp4", ramp(8), aspect=Fraction(20, 1))
    with pytest.raises(UnusableFile, match="wide.mp4 has pictures of 960x32 pixels"):
        levels(tmp_path / "wide.mp4", 1)


def test_videos_of_a_few_pixels_have_no_sharpness(tmp_path):
    caption(coded(tmp_path / "dot.mkv", torch.rand(9, 2, 2, 3), "ffv1", "bgr0"))
    shots = curate(tmp_path, tmp_path / "out", progress=False).shots
    assert shots and all(shot.scores["sharpness"] == 0 and "blurred" in shot.reasons for shot in shots)


# ---- damage


def test_damage_inside_is_named_where_it_is_met(tmp_path):
    path = caption(coded(tmp_path / "hole.mp4", torch.rand(64, 64, 96, 3, generator=torch.Generator().manual_seed(0)),
                         g="64", bf="0"))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        packet = [packet for packet in file.demux(video=0) if packet.pos is not None][40]
    data[packet.pos + packet.size // 10:packet.pos + packet.size // 10 + 200] = bytes(200)
    path.write_bytes(data)
    caption(mp4(tmp_path / "whole.mp4", pan(17)))
    found = scan_folder(tmp_path)
    assert len(found.clips) == 2  # a scan decodes the first picture only
    assert read_clip(found.clips[0], 0.0, 16, 8, 64, 96).shape[0] == 16
    with pytest.raises(UnusableFile, match="hole.mp4 is (damaged|not a video)"):
        read_clip(found.clips[0], 0.0, 60, 8, 64, 96)
    result = curate(tmp_path, tmp_path / "out", progress=False)
    assert [problem.name for problem in result.problems] == ["hole.mp4"]
    assert {shot.clip.name for shot in result.shots} == {"whole.mp4"}


def test_a_failing_disk_is_not_a_damaged_video(tmp_path, monkeypatch, subtests):
    path = mp4(tmp_path / "a.mp4", ramp(16))
    for code, kind in ((errno.ESTALE, OSError), (errno.ENOTCONN, OSError), (errno.EPERM, UnusableFile),
                       (errno.ENOMEM, UnusableFile)):
        def broken(*_, code=code, **__):
            raise av.error.classes[code](code, os.strerror(code))

        monkeypatch.setattr(av, "open", broken)
        with subtests.test(msg=errno.errorcode[code]):
            words = "cannot be read: " if kind is OSError else "is not a video"
            with pytest.raises(kind, match=f"a.mp4 {words}") as told:
                probe(path)
            assert type(told.value) is kind
