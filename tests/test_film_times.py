"""Frames are read at the second at which a player shows them, whatever the time stamps of the file."""

from fractions import Fraction

import av
import pytest
import torch
from films import agrees, caption, coded, film, levels, pan, ramp
from PIL import Image

from minicogvx.data.films.decode import read_video
from minicogvx.data.films.folder import scan_folder
from minicogvx.data.films.frame_order import in_order
from minicogvx.data.films.pictures import UnusableFile
from minicogvx.data.films.probe import probe
from minicogvx.data.films.shots import measure


def test_joined_videos_run_on(tmp_path, subtests):
    expected = 0.1 + 0.8 * torch.arange(48) / 48
    for ending, codec in (("ts", "libx264"), ("mkv", "libx264"), ("webm", "libvpx")):
        with subtests.test(msg=ending):
            one = coded(tmp_path / f"one.{ending}", ramp(48, 32, 48), codec, g="8")
            twice = tmp_path / f"twice.{ending}"
            twice.write_bytes(one.read_bytes() * 2)
            agrees(one, 48, 6.0)
            agrees(twice, 96, 12.0)
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


def test_frames_are_read_in_order_from_stamps_in_order_of_decoding(tmp_path, subtests):
    expected = 0.1 + 0.8 * torch.arange(48) / 48
    for i, (name, codec, options) in enumerate((
        ("a.avi", "libx264", {"bf": "3"}), ("a.avi", "libx264", {"bf": "7", "b_strategy": "0", "g": "16"}),
        ("a.avi", "libx264", {"bf": "16", "b-pyramid": "strict", "b_strategy": "0"}),
        ("a.avi", "mpeg4", {"bf": "2", "qmax": "2"}), ("a.avi", "libx264", {"bf": "0"}),
        ("a.divx", "libx264", {"bf": "3", "container": {"format": "avi"}}),
        ("copy.mp4", "libx264", {"bf": "3"}), ("copy.mkv", "libx264", {"bf": "5", "b_strategy": "0"}),
        ("copy.mov", "libx264", {"bf": "2"}), ("copy.ts", "libx264", {"bf": "3"}),
    )):
        with subtests.test(msg=f"{name}, {codec}, {options}"):
            path = tmp_path / f"{i}{name}"
            if name.startswith("copy"):
                in_order_of_decoding(path, coded(path.with_suffix(".source.mkv"), ramp(48), codec, **options))
            else:
                coded(path, ramp(48), codec, **options)
            agrees(path, 48, 6.0)
            assert (levels(path, 48) - expected).abs().max() < 0.012  # frames differ by 0.017
            assert (levels(path, 4, start=5.25) - expected[42:46]).abs().max() < 0.012


def test_stamps_are_put_in_order_until_they_restart(subtests):
    for stamps, restarts in (
        ([0, 3, 2, 4, 1, 7, 6, 8, 5], []), ([*range(10)] * 3, [(9, 0)] * 2), ([0, 2, 1] * 4, [(2, 0)] * 3),
        ([5, 7, 6, 8, *range(30), *range(9)], [(8, 0), (29, 0)]), ([*range(40), 2, 4, 3, *range(5, 30)], [(39, 2)]),
        ([None, 1, 3, 2, None, None, 4, 6, 5], []), ([7], []), ([], []),
    ):
        with subtests.test(msg=str(stamps)):
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
    monkeypatch.setattr("minicogvx.data.films.shots.sharpness",
                        lambda grey: measured.append(len(grey)) or torch.ones(len(grey)))
    track = measure(clip, 8.0)
    assert sum(measured) == 32 and len(track.seconds) == len(track.black) == len(track.sharpness) == 602 * 8
    assert len(track.motion) == len(track.content) == len(track.histogram) == 602 * 8 - 1
    assert sum(value > 0 for value in track.content) == 31 and track.content[15:4799] == [0.0] * 4784


def test_a_video_may_begin_late_and_is_still_missed_where_it_is_cut_off(tmp_path, subtests):
    for ending, codec in {"mkv": "libx264", "webm": "libvpx", "asf": "msmpeg4", "wmv": "wmv2", "mp4": "libx264",
                          "flv": "flv", "ts": "libx264", "mpg": "mpeg2video"}.items():
        for late in (1.5, 3600.0, 5.0):
            with subtests.test(msg=f"{ending}, {late} s"):
                path = late_video(tmp_path / f"{late}.{ending}", codec, late)
                facts = probe(path)
                assert facts.frames == 40 and facts.seconds == pytest.approx(1.6, abs=0.03)
                assert (levels(path, 8, fps=5) - (0.1 + 0.8 * torch.arange(0, 40, 5) / 40)).abs().max() < 0.06
        if ending in ("mkv", "webm", "wmv", "flv"):
            path.write_bytes(path.read_bytes()[:path.stat().st_size * 2 // 3])
            with subtests.test(msg=f"{ending}, cut off"), pytest.raises(UnusableFile, match="cut off"):
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
