"""Truncated videos are reported, whatever their format records about its length."""

import pytest
import torch
from films import coded, pan, ramp

from minicogvx.data.films import file_ends
from minicogvx.data.films import frames as film_frames
from minicogvx.data.films.pictures import UnusableFile
from minicogvx.data.films.probe import probe
from minicogvx.media import write_gif


def noise(t: int = 40):
    return torch.rand(t, 64, 96, 3, generator=torch.Generator().manual_seed(0))


def gif(path):
    return write_gif(path, noise(12), 8, 64)


MAKERS = {
    "a.gif": gif, "a.mkv": coded, "a.mp4": coded, "a.mov": coded, "a.avi": coded,
    "a.webm": lambda path, video: coded(path, video, "libvpx", **{"cpu-used": "8", "deadline": "realtime"}),
    "a.ogv": lambda path, video: coded(path, video, "libvpx", container={"format": "ogg"},
                                       **{"cpu-used": "8", "deadline": "realtime"}),
    "a.flv": lambda path, video: coded(path, video, "flv"),
    "a.wmv": lambda path, video: coded(path, video, "wmv2", container={"format": "asf"}),
    "pieces.mp4": lambda path, video: coded(path, video, container={"options": {
        "movflags": "frag_keyframe+empty_moov+default_base_moof"}}, g="8"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_truncated_files_are_reported(tmp_path, name):
    path = tmp_path / name
    whole = (MAKERS[name](path) if name == "a.gif" else MAKERS[name](path, noise())).read_bytes()
    frames = probe(path).frames
    assert frames == (12 if name == "a.gif" else 40)
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


@pytest.mark.parametrize("left", [6, 10, 12])
def test_a_gif_of_a_few_bytes_is_named(tmp_path, left):
    path = gif(tmp_path / "a.gif")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UnusableFile, match="a.gif is "):
        probe(path)
    with path.open("rb") as file:
        assert not file_ends._gif(file, left)


def test_the_end_of_a_broadcast_and_of_a_video_without_a_mark_is_no_harm(tmp_path):
    path = coded(tmp_path / "a.m2ts", noise(), container={"options": {"mpegts_m2ts_mode": "1"}})
    path.write_bytes(path.read_bytes() + path.read_bytes()[:100])
    assert probe(path).frames == 40
    path = MAKERS["a.ogv"](tmp_path / "a.ogv", noise())
    data = bytearray(path.read_bytes())
    data[data.rfind(b"OggS") + 5] &= ~4
    path.write_bytes(data)
    with path.open("rb") as file:
        assert file_ends.is_whole(path, "ogg") and file_ends._ogg(file, len(data))


@pytest.mark.parametrize("fails, kind, words", [(False, UnusableFile, "is not a video"),
                                                (True, OSError, "cannot be read: Input/output error")])
def test_a_short_file_is_not_taken_for_a_disk_that_fails(tmp_path, monkeypatch, fails, kind, words):
    path = coded(tmp_path / "a.mkv", noise())
    path.write_bytes(path.read_bytes()[:200])  # FFmpeg reports this like a failing disk
    if fails:
        monkeypatch.setattr(film_frames, "_can_be_read", lambda path: False)
    with pytest.raises(kind, match=f"a.mkv {words}"):
        probe(path)
