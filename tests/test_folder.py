"""A folder of videos: what can be used, what cannot and why, and the right frame at the right second."""

import errno
import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from films import caption, captions, film, mp4, pictures, ramp, sound_only
from PIL import Image

from minicogvx.cli import main
from minicogvx.data import command
from minicogvx.data.films.folder import clip_bucket, clip_line, read_clip, scan_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One of every kind; all but two have captions."""
    folder = tmp_path_factory.mktemp("films")
    whole = caption(mp4(folder / "whole.mp4", ramp(24)), "a  ramp\ngets brighter")
    caption(film(folder / "cut.mp4", torch.rand(24, 32, 48, 3))).write_bytes(
        (folder / "cut.mp4").read_bytes()[:-20_000])
    caption(film(folder / "tail.mkv", torch.rand(48, 32, 48, 3))).write_bytes(
        (folder / "tail.mkv").read_bytes()[:-60_000])
    caption(folder / "head.mp4").write_bytes(whole.read_bytes()[:300])
    caption(folder / "words.mp4").write_text("not a video at all, only words " * 50)
    caption(folder / "empty.mp4").touch()
    caption(sound_only(folder / "sound.mp4"))
    caption(mp4(folder / "two.mp4", ramp(2)))
    mp4(folder / "mute.mp4", ramp(16))
    caption(Image.new("RGB", (60, 40), "red").save(folder / "red.png") or folder / "red.png", "red")
    (folder / "half.png").write_bytes((folder / "red.png").read_bytes()[:60])
    (folder / "notes.md").write_text("not a video, and not meant as one")
    (folder / "deep").mkdir()
    caption(film(folder / "deep" / "film.mkv", ramp(16)), "in a folder")
    return folder


def test_every_bad_file_is_named_with_its_reason_and_the_others_are_used(folder):
    found = scan_folder(folder)
    assert [clip.name for clip in found.clips] == ["deep/film.mkv", "red.png", "whole.mp4"]
    reasons = {problem.name: problem.reason for problem in found.problems}
    expected = {"cut.mp4": "cut off", "tail.mkv": "cut off", "head.mp4": "not a video", "words.mp4": "not a video",
                "empty.mp4": "is empty", "sound.mp4": "no video stream", "two.mp4": "too short: 2 frames",
                "mute.mp4": "no caption", "half.png": "not a picture"}
    assert reasons.keys() == expected.keys()
    for name, words in expected.items():
        assert words in reasons[name] and str(folder) not in reasons[name] and "\n" not in reasons[name], reasons[name]
    whole = found.clips[2]
    assert (whole.frames, whole.height, whole.width, whole.rotation, whole.variable_rate) == (24, 32, 48, 0, False)
    assert whole.caption == "a ramp gets brighter"
    assert whole.fps == pytest.approx(8, abs=1e-3) and whole.seconds == pytest.approx(3, abs=1e-3)
    assert found.clips[1].is_image and found.clips[1].frames_at(8) == 1
    assert [clip.name for clip in scan_folder(folder, need_captions=False).clips] == [
        "deep/film.mkv", "mute.mp4", "red.png", "whole.mp4"]


def test_the_command_prints_them(folder, capsys):
    assert command.main(["scan", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "whole.mp4: 48 wide, 32 high, 3.00 s, 8 fps: a ramp gets brighter" in printed
    assert "red.png: 60 wide, 40 high, picture: red" in printed
    assert "not used: sound.mp4: has no video stream" in printed
    assert printed.endswith("2 films and 1 picture can be used, 5.0 s in all; 9 problems\n")


def test_control_characters_in_names_and_captions_are_printed_escaped(tmp_path, capsys):
    caption(mp4(tmp_path / "\x1b[31mred.mp4", ramp(16)), "a \x1b[2J film")
    mp4(tmp_path / "\x9bmute\x07.mp4", ramp(16))
    (tmp_path / "a.b\x1bc").touch()
    assert main(["data", "scan", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "\\x1b[31mred.mp4: 48 wide, 32 high" in printed and ": a \\x1b[2J film" in printed
    assert "not used: \\x9bmute\\x07.mp4: has no caption" in printed and "1 .b\\x1bc" in printed
    assert not set(printed) & {"\x1b", "\x9b", "\x07"}


def test_a_video_of_one_frame_is_told_so(tmp_path):
    caption(mp4(tmp_path / "one.mp4", ramp(1)))
    caption(film(tmp_path / "one.mkv", ramp(1)))
    for least in (0.0, 1.0):
        found = scan_folder(tmp_path, least)
        assert not found.clips and [problem.name for problem in found.problems] == ["one.mkv", "one.mp4"]
        assert {problem.reason for problem in found.problems} == {
            "has 1 frame; a video must have at least 2, and a picture must be a picture file, such as PNG"}


def test_what_an_interrupted_run_left_is_not_counted(tmp_path):
    mp4(tmp_path / "a.mp4", ramp(16))
    for name in (".metadata.jsonl.notes", ".best of all.jsonl.notes", ".cache"):
        (tmp_path / name).mkdir()
    for name in (".a.0123abcd.part.mp4", ".mine.mp4"):
        (tmp_path / name).touch()
    assert scan_folder(tmp_path).passed_over == {"hidden folder(s)": 1, "hidden": 1}


def test_frames_come_from_the_second_asked_for(tmp_path):
    caption(mp4(tmp_path / "ramp.mp4", ramp(48)))
    clip = scan_folder(tmp_path).clips[0]
    seen = read_clip(clip, 1.5, 5, 4, 16, 16)  # seconds 1.5, 1.75, ... 2.5: frames 12, 14, ... 20
    assert seen.shape == (5, 16, 16, 3)
    assert (seen.mean((1, 2, 3)) - (0.1 + 0.8 * torch.arange(12, 21, 2) / 48)).abs().max() < 0.01
    with pytest.raises(ValueError, match=r"ramp.mp4 lasts 6.00 s; 9 frames at 4 fps from second 4 on need 6.25 s"):
        read_clip(clip, 4.0, 9, 4, 16, 16)


def test_a_variable_rate_is_resampled_by_time_stamps(tmp_path):
    times = [k / 8 for k in range(8)] + [1 + k / 24 for k in range(24)]  # a second at 8 fps, then one at 24
    caption(film(tmp_path / "uneven.mp4", ramp(32), times))
    clip = scan_folder(tmp_path).clips[0]
    assert clip.variable_rate and clip.fps == pytest.approx(31 / (1 + 23 / 24), rel=1e-3)
    seen = read_clip(clip, 0.0, 16, 8, 32, 48).mean((1, 2, 3))
    shown = torch.tensor([*range(8), *range(8, 32, 3)])
    assert (seen - (0.1 + 0.8 * shown / 32)).abs().max() < 0.01


def test_a_rotated_video_is_turned_upright(tmp_path):
    stored = torch.zeros(16, 32, 64, 3)
    stored[:, :16, :32] = 1.0  # bright where it is at the top and on the left
    caption(film(tmp_path / "phone.mp4", stored, rotation=90))
    clip = scan_folder(tmp_path).clips[0]
    assert (clip.rotation, clip.height, clip.width) == (90, 64, 32)
    seen = read_clip(clip, 0.0, 2, 8, 64, 32)[0, ..., 0]
    assert (seen - torch.rot90(stored[0, ..., 0])).abs().mean() < 0.05


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    stored = torch.zeros(16, 32, 32, 3)
    stored[:, :, :16] = 1.0
    caption(film(tmp_path / "wide.mp4", stored, aspect=Fraction(2, 1)))
    clip = scan_folder(tmp_path).clips[0]
    assert (clip.height, clip.width) == (32, 64)
    seen = read_clip(clip, 0.0, 1, 8, 32, 64)[0, ..., 0]
    assert seen[:, :30].min() > 0.9 and seen[:, 34:].max() < 0.1


def test_metadata_comes_before_text_files_and_can_cut_pieces(tmp_path):
    caption(mp4(tmp_path / "a.mp4", ramp(24)), "from the text file")
    mp4(tmp_path / "b.mp4", ramp(24))
    caption(mp4(tmp_path / "c.mp4", ramp(24)), "beside c")
    rows = [{"file_name": "a.mp4", "text": "from the metadata"},
            {"file_name": "b.mp4", "text": "late", "start": 1.5, "end": 3},
            {"file_name": "b.mp4", "text": "early", "end": 1.25}, {"file_name": "b.mp4", "text": "beyond", "end": 9},
            {"file_name": "none.mp4", "text": "not there"}, {"file_name": "../x.mp4", "text": "outside"},
            {"text": "no name"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nnot json\n")
    found = scan_folder(tmp_path)
    assert [(clip.name, clip.caption, clip.start, round(clip.end, 3)) for clip in found.clips] == [
        ("a.mp4", "from the metadata", 0, 3), ("b.mp4", "late", 1.5, 3), ("b.mp4", "early", 0, 1.25),
        ("c.mp4", "beside c", 0, 3)]
    assert [clip_line(clip) for clip in found.clips[:2]] == rows[:2]
    told = [str(problem) for problem in found.problems]
    for words in ("line 6: names '../x.mp4', which lies outside", "line 7: has no file_name", "line 8: is not JSON",
                  "b.mp4: is listed from second 0 to 9; it lasts 3.00 s", "none.mp4: there is no file"):
        assert sum(words in line for line in told) == 1, (words, told)
    late = read_clip(found.clips[1], 0.25, 2, 8, 32, 48)  # seconds 1.75 and 1.875 of the file
    assert (late.mean((1, 2, 3)) - (0.1 + 0.8 * torch.tensor([14, 15]) / 24)).abs().max() < 0.01
    (tmp_path / "few.jsonl").write_text(json.dumps({"file_name": "c.mp4"}) + "\n")
    assert [clip.caption for clip in scan_folder(tmp_path, listing=tmp_path / "few.jsonl").clips] == ["beside c"]


def test_pictures_are_one_frame_and_upright(tmp_path):
    sideways = Image.new("RGB", (64, 32), "black")
    sideways.paste("white", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "phone.png", exif=exif)
    Image.new("RGB", (64, 32)).save(caption(tmp_path / "flat.webp"))
    caption(tmp_path / "phone.png")
    flat, phone = scan_folder(tmp_path).clips
    assert (phone.height, phone.width, flat.height, flat.width) == (64, 32, 32, 64)
    picture = read_clip(phone, 0.0, 1, 8, 64, 32)
    assert picture.shape == (1, 64, 32, 3) and picture[0, :30].min() > 0.9 > 0.1 > picture[0, 34:].max()
    with pytest.raises(ValueError, match="num_frames is 9; phone.png is a picture"):
        read_clip(phone, 0.0, 9, 8, 64, 32)
    assert clip_bucket(phone, 64, 64)[0] > 64 > clip_bucket(phone, 64, 64)[1]


def test_bad_folders_and_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*none"):
        scan_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="there is no file .*none.jsonl"):
        scan_folder(tmp_path, listing=tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="min_seconds is -1"):
        scan_folder(tmp_path, min_seconds=-1)


def test_a_caption_that_cannot_be_read_is_a_problem_of_its_video(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        caption(pictures(tmp_path, name) / name)
    real = Path.read_text
    for code in (errno.ESTALE, errno.ENXIO):
        def read_text(path, *rest, code=code, **options):
            if path.name == "a.txt":
                raise OSError(code, os.strerror(code), str(path))
            return real(path, *rest, **options)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_text", read_text)
            found, problems = captions(tmp_path)
        assert list(found) == ["b.png"]
        assert problems == [f"a.png: has a caption, a.txt, that cannot be read: {os.strerror(code)}"]
