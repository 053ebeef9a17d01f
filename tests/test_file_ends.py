"""Truncated videos are reported, whatever their format records about its length."""

import pytest
import torch
from films import coded, pan, ramp

from minicogvx.data.films.file_ends import is_whole
from minicogvx.data.films.pictures import UnusableFile
from minicogvx.data.films.probe import probe
from minicogvx.media import write_gif


def noise(t: int = 40):
    return torch.rand(t, 64, 96, 3, generator=torch.Generator().manual_seed(0))


MAKERS = {
    "a.gif": lambda path, video: write_gif(path, video[:12], 8, 64),
    "a.mkv": coded, "a.mp4": coded, "a.mov": coded, "a.avi": coded,
    "a.webm": lambda path, video: coded(path, video, "libvpx", **{"cpu-used": "8", "deadline": "realtime"}),
    "a.ogv": lambda path, video: coded(path, video, "libvpx", container={"format": "ogg"},
                                       **{"cpu-used": "8", "deadline": "realtime"}),
    "a.flv": lambda path, video: coded(path, video, "flv"),
    "a.wmv": lambda path, video: coded(path, video, "wmv2", container={"format": "asf"}),
    "pieces.mp4": lambda path, video: coded(path, video, container={"options": {
        "movflags": "frag_keyframe+empty_moov+default_base_moof"}}, g="8"),
}


def test_truncated_files_are_reported(tmp_path, subtests):
    for name, make in MAKERS.items():
        with subtests.test(msg=name):
            path = make(tmp_path / name, noise())
            whole = path.read_bytes()
            assert probe(path).frames == (12 if name == "a.gif" else 40)
            for left in (len(whole) // 2 + 1, len(whole) * 9 // 10 + 1, len(whole) - 101):
                path.write_bytes(whole[:left])
                with pytest.raises(UnusableFile, match=f"{name} is (cut off|not a video, or it is cut off)"):
                    probe(path)


def test_a_video_that_was_written_live_has_no_known_length(tmp_path):
    path = coded(tmp_path / "live.webm", ramp(16), "libvpx", container={"options": {"live": "1"}})
    assert probe(path).frames == 16


def test_what_follows_a_video_is_no_harm(tmp_path):
    for name in ("a.mp4", "a.mkv", "a.gif"):
        path = write_gif(tmp_path / name, pan(16), 8, 32) if name == "a.gif" else coded(tmp_path / name, ramp(16))
        path.write_bytes(path.read_bytes() + bytes(1000))
        assert probe(path).frames == 16


def test_a_gif_of_a_few_bytes_is_named(tmp_path):
    whole = MAKERS["a.gif"](tmp_path / "a.gif", noise()).read_bytes()
    for left in (6, 10, 12):
        path = tmp_path / f"{left}.gif"
        path.write_bytes(whole[:left])
        with pytest.raises(UnusableFile, match=f"{left}.gif is "):
            probe(path)
        assert not is_whole(path, "gif")


def test_the_end_of_a_broadcast_and_of_a_video_without_a_mark_is_no_harm(tmp_path):
    path = coded(tmp_path / "a.m2ts", noise(), container={"options": {"mpegts_m2ts_mode": "1"}})
    path.write_bytes(path.read_bytes() + path.read_bytes()[:100])
    assert probe(path).frames == 40
    path = MAKERS["a.ogv"](tmp_path / "a.ogv", noise())
    data = bytearray(path.read_bytes())
    data[data.rfind(b"OggS") + 5] &= ~4
    path.write_bytes(data)
    assert is_whole(path, "ogg")


def test_a_short_file_is_not_taken_for_a_disk_that_fails(tmp_path, monkeypatch):
    path = coded(tmp_path / "a.mkv", noise())
    path.write_bytes(path.read_bytes()[:200])  # FFmpeg reports this like a failing disk
    with pytest.raises(UnusableFile, match="a.mkv is not a video"):
        probe(path)
    monkeypatch.setattr("minicogvx.data.films.frames._can_be_read", lambda path: False)
    with pytest.raises(OSError, match="a.mkv cannot be read: Input/output error"):
        probe(path)
