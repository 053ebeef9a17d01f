"""Films whose copy or download broke off are named, whatever their format says of its length."""

import pytest
import torch
from films import coded, pan, ramp

from minicogvx.data.pictures import UnusableFile
from minicogvx.data.video_files import write_gif
from minicogvx.data.video_probe import probe


def noise(t: int = 40):
    return torch.rand(t, 64, 96, 3, generator=torch.Generator().manual_seed(0))


def gif(path):
    return write_gif(path, noise(12), 8, 64)


MAKERS = {
    "a.gif": gif, "a.mkv": coded, "a.ts": coded, "a.mp4": coded, "a.mov": coded, "a.avi": coded,
    "a.webm": lambda path, video: coded(path, video, "libvpx", **{"cpu-used": "8", "deadline": "realtime"}),
    "a.ogv": lambda path, video: coded(path, video, "libvpx", container={"format": "ogg"},
                                       **{"cpu-used": "8", "deadline": "realtime"}),
    "a.flv": lambda path, video: coded(path, video, "flv"),
    "a.wmv": lambda path, video: coded(path, video, "wmv2", container={"format": "asf"}),
    "a.m2ts": lambda path, video: coded(path, video, container={"options": {"mpegts_m2ts_mode": "1"}}),
    "pieces.mp4": lambda path, video: coded(path, video, container={"options": {
        "movflags": "frag_keyframe+empty_moov+default_base_moof"}}, g="8"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_cut_off_is_named(tmp_path, name):
    path = tmp_path / name
    whole = (MAKERS[name](path) if name == "a.gif" else MAKERS[name](path, noise())).read_bytes()
    frames = probe(path).frames
    assert frames == (12 if name == "a.gif" else 40)
    for left in (len(whole) // 2 + 1, len(whole) * 9 // 10 + 1, len(whole) - 101):
        path.write_bytes(whole[:left])
        with pytest.raises(UnusableFile, match=f"{name} is (cut off|not a video, or it is cut off)"):
            probe(path)


def test_a_film_that_was_written_live_says_nothing_of_its_length(tmp_path):
    path = coded(tmp_path / "live.webm", ramp(16), "libvpx", container={"options": {"live": "1"}})
    assert probe(path).frames == 16


def test_what_stands_behind_a_film_is_no_harm(tmp_path):
    for name in ("a.mp4", "a.mkv", "a.gif"):
        path = write_gif(tmp_path / name, pan(16), 8, 32) if name == "a.gif" else coded(tmp_path / name, ramp(16))
        path.write_bytes(path.read_bytes() + bytes(1000))
        assert probe(path).frames == 16
