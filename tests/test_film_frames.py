"""Videos of every kind are read as a player shows them, or reported."""

import errno
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from films import call, caption, coded, film, mp4, pan, ramp, sound_only, with_cover
from PIL import Image

from minicogvx.data.films import pictures, shots
from minicogvx.data.films.curate import CurationThresholds, curate
from minicogvx.data.films.decode import read_video, stream_frames
from minicogvx.data.films.folder import read_clip, scan_folder
from minicogvx.data.films.frame_order import in_order
from minicogvx.data.films.pictures import UnusableFile, existing_file
from minicogvx.data.films.probe import FILMS, probe
from minicogvx.media import write_gif

LEVELS = 0.1 + 0.8 * torch.arange(16) / 16  # of `ramp(16)`


def levels(path, frames: int, fps: float = 8, start: float = 0.0) -> torch.Tensor:
    return read_video(path, frames, 16, 16, fps, start).mean((1, 2, 3))


def agrees(path, frames: int, seconds: float):
    """What the probe promises is what can be read, and no more."""
    facts = probe(path)
    assert (facts.frames, facts.seconds) == (frames, pytest.approx(seconds, abs=2e-3))
    shown = list(stream_frames(path, (k / 8 for k in range(1000)), 8))
    assert len(shown) == pytest.approx(seconds * 8, abs=0.1)
    return facts


# ---- containers


@pytest.mark.parametrize("name, codec, options", [
    ("a.mts", "libx264", {}), ("a.M2TS", "libx264", {"container": {"options": {"mpegts_m2ts_mode": "1"}}}),
    ("a.3gp", "libx264", {}), ("a.m4v", "libx264", {}), ("a.qt", "libx264", {"container": {"format": "mov"}}),
    ("a.f4v", "libx264", {}), ("a.flv", "flv", {}), ("a.ogv", "libvpx", {"container": {"format": "ogg"}}),
    ("a.webm", "libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}), ("a.asf", "msmpeg4", {}),
    ("a.WMV", "wmv2", {"container": {"format": "asf"}}), ("a.divx", "mpeg4", {"container": {"format": "avi"}}),
    ("a.vob", "mpeg2video", {"fps": 25}), ("a.mpe", "mpeg1video", {"fps": 25, "container": {"format": "mpeg"}}),
    ("a.m2v", "mpeg2video", {"fps": 25}), ("a.mxf", "mpeg2video", {"fps": 25}), ("a.3g2", "libx264", {})])
def test_videos_of_every_ending_are_seen_and_read(tmp_path, name, codec, options):
    coded(caption(tmp_path / name), ramp(16, 64, 96), codec, **options)
    found = scan_folder(tmp_path, min_seconds=0.5)
    assert not found.problems
    clip, = found.clips
    fps = options.get("fps", 8)
    assert (clip.frames, clip.height, clip.width) == (16, 64, 96)
    assert clip.fps == pytest.approx(fps, rel=1e-2) and clip.seconds == pytest.approx(16 / fps, abs=0.02)
    seen = read_clip(clip, 0.0, 16, fps, 32, 48).mean((1, 2, 3))
    assert (seen - LEVELS).abs().max() < 0.03


def test_no_ending_counts_twice():
    assert len(set(FILMS)) == len(FILMS) and all(ending == ending.lower() for ending in FILMS)


def test_a_cover_is_not_the_video(tmp_path):
    path = with_cover(mp4(tmp_path / "song.mp4", ramp(16)))
    with av.open(str(path)) as file:
        assert file.streams.video[0].disposition & Disposition.attached_pic
    agrees(path, 16, 2.0)
    assert (levels(path, 16) - LEVELS).abs().max() < 0.01


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


@pytest.mark.parametrize("name", ["12:30.mp4", "http:a.mp4", "50%d.gif", "-i.mp4", "caf\udce9.mp4", "été 夏.mp4"])
def test_names_are_only_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    mp4(tmp_path / "a.mp4", ramp(16)) if name.endswith("mp4") else write_gif("a.gif", pan(16), 8, 32)
    (tmp_path / "a").with_suffix(name[-4:]).rename(name)
    assert probe(existing_file(name)).frames == 16


# ---- time


@pytest.mark.parametrize("ending, codec", [("ts", "libx264"), ("mkv", "libx264"), ("webm", "libvpx")])
def test_joined_videos_run_on(tmp_path, ending, codec):
    one = coded(tmp_path / f"one.{ending}", ramp(48, 32, 48), codec, g="8")
    twice = tmp_path / f"twice.{ending}"
    twice.write_bytes(one.read_bytes() * 2)
    agrees(one, 48, 6.0)
    agrees(twice, 96, 12.0)
    expected = 0.1 + 0.8 * torch.arange(48) / 48
    assert (levels(twice, 96) - torch.cat([expected, expected])).abs().max() < 0.03
    # Beyond the joint a moment has a time stamp that another moment has, too.
    assert (levels(twice, 16, start=8.0) - expected[16:32]).abs().max() < 0.03
    assert (levels(one, 4, start=5.25) - expected[42:46]).abs().max() < 0.03


def in_order_of_decoding(path, source):
    """Copies a video; its packets are stamped one after the other, as in AVI."""
    with av.open(str(source)) as old, av.open(str(path), "w") as file:
        stream = file.add_stream_from_template(old.streams.video[0])
        for k, packet in enumerate(packet for packet in old.demux(video=0) if packet.size):
            packet.pts = packet.dts = round(k / 8 / packet.time_base)
            packet.stream = stream
            file.mux(packet)
    return path


@pytest.mark.parametrize("name, codec, options", [
    ("a.avi", "libx264", {"bf": "3"}), ("a.avi", "libx264", {"bf": "7", "b_strategy": "0", "g": "16"}),
    ("a.avi", "libx264", {"bf": "16", "b-pyramid": "strict", "b_strategy": "0"}),
    ("a.avi", "mpeg4", {"bf": "2", "qmax": "2"}), ("a.avi", "libx264", {"bf": "0"}),
    ("a.divx", "libx264", {"bf": "3", "container": {"format": "avi"}}),
    ("copy.mp4", "libx264", {"bf": "3"}), ("copy.mkv", "libx264", {"bf": "5", "b_strategy": "0"}),
    ("copy.mov", "libx264", {"bf": "2"}), ("copy.ts", "libx264", {"bf": "3"})])
def test_frames_are_read_in_order_from_stamps_in_order_of_decoding(tmp_path, name, codec, options):
    path = tmp_path / name
    source = coded(path.with_name("source.mkv") if name.startswith("copy") else path, ramp(48), codec, **options)
    path = in_order_of_decoding(path, source) if source != path else path
    agrees(path, 48, 6.0)
    expected = 0.1 + 0.8 * torch.arange(48) / 48
    assert (levels(path, 48) - expected).abs().max() < 0.012  # frames differ by 0.017
    assert (levels(path, 4, start=5.25) - expected[42:46]).abs().max() < 0.012


@pytest.mark.parametrize("stamps, restarts", [
    ([0, 3, 2, 4, 1, 7, 6, 8, 5], []), ([*range(10)] * 3, [(9, 0)] * 2), ([0, 2, 1] * 4, [(2, 0)] * 3),
    ([5, 7, 6, 8, *range(30), *range(9)], [(8, 0), (29, 0)]), ([*range(40), 2, 4, 3, *range(5, 30)], [(39, 2)]),
    ([None, 1, 3, 2, None, None, 4, 6, 5], []), ([7], []), ([], [])])
def test_stamps_are_put_in_order_until_they_restart(stamps, restarts):
    found = [*in_order((k, stamp) for k, stamp in enumerate(stamps))]
    assert [frame for frame, _ in found] == [*range(len(stamps))]
    ordered = [stamp for _, stamp in found]
    assert sorted(map(str, ordered)) == sorted(map(str, stamps))
    assert [(a, b) for a, b in zip(ordered, ordered[1:]) if None not in (a, b) and b < a] == restarts


def test_a_video_stands_still_in_a_gap_and_is_measured_in_no_time(tmp_path, monkeypatch):
    times = [k / 8 for k in range(16)] + [600 + k / 8 for k in range(16)]
    path = caption(film(tmp_path / "gap.mkv", pan(32), times))
    clip, = scan_folder(tmp_path).clips
    assert clip.variable_rate and clip.seconds == pytest.approx(602, abs=0.01)
    waits = read_video(path, 3, 64, 96, fps=8, start=300.0)
    assert (waits[0] - pan(32)[15]).abs().mean() < 0.04 and torch.equal(waits[0], waits[2])
    measured = []
    monkeypatch.setattr(shots, "sharpness", lambda grey: measured.append(len(grey)) or torch.ones(len(grey)))
    track = shots.measure(clip, 8.0)
    assert sum(measured) == 32 and len(track.seconds) == len(track.black) == len(track.sharpness) == 602 * 8
    assert len(track.motion) == len(track.content) == len(track.histogram) == 602 * 8 - 1
    assert sum(value > 0 for value in track.content) == 31 and track.content[15:4799] == [0.0] * 4784


@pytest.mark.parametrize("late", [1.5, 5.0, 3600.0])
@pytest.mark.parametrize("name, codec", [
    ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.asf", "msmpeg4"), ("a.wmv", "wmv2"), ("a.mp4", "libx264"),
    ("a.flv", "flv"), ("a.ts", "libx264"), ("a.mpg", "mpeg2video")])
def test_a_video_may_begin_late(tmp_path, name, codec, late):
    whole = late_video(tmp_path / name, codec, late)
    facts = probe(whole)
    assert facts.frames == 40 and facts.seconds == pytest.approx(1.6, abs=0.03)
    assert (levels(whole, 8, fps=5) - (0.1 + 0.8 * torch.arange(0, 40, 5) / 40)).abs().max() < 0.06


@pytest.mark.parametrize("name, codec", [
    ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.wmv", "wmv2"), ("a.flv", "flv")])
def test_a_late_video_that_is_cut_off_is_refused(tmp_path, name, codec):
    path = late_video(tmp_path / name, codec, 5.0)
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 2 // 3])
    with pytest.raises(UnusableFile, match="cut off"):
        probe(path)


def late_video(path, codec, late):
    """40 frames at 25 per second, the first of them at second `late`."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for k, pixels in enumerate((ramp(40) * 255).round().byte().numpy()):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(1000 * late) + 40 * k, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def test_a_leap_of_hours_is_no_part_of_the_video(tmp_path):
    times = [k / 8 for k in range(16)] + [7200 + k / 8 for k in range(16)]
    path = film(tmp_path / "leap.mkv", ramp(32), times)
    agrees(path, 32, 4.0)
    assert (levels(path, 32) - (0.1 + 0.8 * torch.arange(32) / 32)).abs().max() < 0.02


def test_the_last_picture_of_a_gif_stays_as_long_as_it_says(tmp_path):
    pages = [Image.new("L", (32, 32), level) for level in (0, 100, 200)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:], duration=[100, 200, 1700])
    agrees(tmp_path / "a.gif", 3, 2.0)
    assert (levels(tmp_path / "a.gif", 4, fps=2) * 255 - torch.tensor([0, 200, 200, 200])).abs().max() < 1


def test_a_recording_that_begins_in_the_middle_of_a_scene_begins_with_its_first_whole_picture(tmp_path):
    path = coded(tmp_path / "whole.ts", ramp(48, 32, 48), g="16", bf="0", sc_threshold="0")
    data = path.read_bytes()
    with av.open(str(path)) as file:
        places = [packet.pos for packet in file.demux(video=0) if packet.pos is not None]
    at = places[8] // 188 * 188
    path.with_name("late.ts").write_bytes(data[:188 * 3] + data[at:])
    facts = agrees(path.with_name("late.ts"), 32, 4.0)
    assert not facts.variable_rate
    assert (levels(path.with_name("late.ts"), 32) - (0.1 + 0.8 * torch.arange(16, 48) / 48)).abs().max() < 0.02


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
    whole = shots.stream_frames

    def damaged(path, *rest):
        if path.name == "a.mp4":
            raise UnusableFile(path, "is damaged")
        return whole(path, *rest)

    monkeypatch.setattr(shots, "stream_frames", damaged)
    result = curate(tmp_path, tmp_path / "out", progress=False)
    assert [str(problem) for problem in result.problems] == ["a.mp4: is damaged"]
    assert [shot.clip.name for shot in result.shots] == ["b.mp4"]


TURNS = {"as it is": (1, 0, 0, 1), "mirrored": (-1, 0, 0, 1), "upside down": (1, 0, 0, -1), "half": (-1, 0, 0, -1),
         "left": (0, -1, 1, 0), "right": (0, 1, -1, 0), "transposed": (0, 1, 1, 0), "crosswise": (0, -1, -1, 0)}


@pytest.mark.parametrize("name", TURNS)
def test_mirrors_and_turns(tmp_path, name):
    a, b, c, d = TURNS[name]
    stored = torch.zeros(8, 32, 64, 3)
    stored[:, :16, :32, 0] = 1  # a red corner, and a green edge below
    stored[:, 24:, :, 1] = 1

    def prepare(stream):
        stream.set_display_matrix([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])

    path = coded(tmp_path / "a.mp4", stored, "libx264", "yuv444p", prepare=prepare, crf="10")
    expected = torch.zeros(*((64, 32) if b else (32, 64)), 3)
    for y in range(32):
        for x in range(64):  # a step to the right goes to (a, b), a step down to (c, d); -1: from the other edge
            expected[b * x + d * y - (b + d < 0), a * x + c * y - (a + c < 0)] = stored[0, y, x]
    seen = read_video(path, 1, *expected.shape[:2], 8)[0]
    assert (seen - expected).abs().mean() < 0.03
    assert (probe(path).height, probe(path).width) == tuple(expected.shape[:2])


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
    monkeypatch.setattr(pictures, "MOST_PIXELS", 20000)
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


def test_a_video_without_a_stream_is_reported(tmp_path):
    path = sound_only(tmp_path / "song.mp4")
    with pytest.raises(UnusableFile, match="has no video stream"):
        probe(path)
    assert issubclass(UnusableFile, ValueError)


@pytest.mark.parametrize("code, kind", [(errno.ESTALE, OSError), (errno.ENOTCONN, OSError), (errno.EPERM, UnusableFile),
                                        (errno.ENOMEM, UnusableFile)])
def test_a_failing_disk_is_not_a_damaged_video(tmp_path, monkeypatch, code, kind):
    def broken(*_, **__):
        raise av.error.classes[code](code, os.strerror(code))

    path = mp4(tmp_path / "a.mp4", ramp(16))
    monkeypatch.setattr(av, "open", broken)
    with pytest.raises(kind, match="a.mp4 " + ("cannot be read: " if kind is OSError else "is not a video")) as told:
        probe(path)
    assert type(told.value) is kind
