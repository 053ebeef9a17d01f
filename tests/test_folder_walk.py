"""Walking a folder: linked folders, loops, broken links, and everything that is skipped."""

import os
import sys
from pathlib import Path

import pytest
from films import caption, mp4, ramp

from minicogvx.data import command
from minicogvx.data.films.folder import scan_folder
from minicogvx.data.films.folder_walk import walk_folder

ENDINGS = (".mp4", ".png")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "films" / "deep").mkdir(parents=True)
    for name in ("a.mp4", "deep/b.PNG"):
        (tmp_path / "films" / name).touch()
    return tmp_path / "films"


def problems(found):
    return {problem.name: problem.reason for problem in found.problems}


def test_linked_folders_are_gone_into(folder, tmp_path):
    (tmp_path / "disk" / "more").mkdir(parents=True)
    (tmp_path / "disk" / "more" / "c.mp4").touch()
    (folder / "videos").symlink_to(tmp_path / "disk")
    found = walk_folder(folder, ENDINGS)
    assert found.files == ["a.mp4", "deep/b.PNG", "videos/more/c.mp4"] and not found.problems
    top = tmp_path / "link"
    top.symlink_to(folder)
    assert walk_folder(top, ENDINGS).files == found.files


def test_a_linked_folder_with_videos_and_captions_is_scanned(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").mkdir()
    caption(mp4(tmp_path / "disk" / "a.mp4", ramp(16)))
    (tmp_path / "data" / "videos").symlink_to(tmp_path / "disk")
    found = scan_folder(tmp_path / "data")
    assert [clip.name for clip in found.clips] == ["videos/a.mp4"] and not found.problems


def test_links_back_are_named_and_not_followed(folder):
    for name, target in (("again", "."), ("up", ".."), ("far", "../.."), ("itself", "itself")):
        (folder / "deep" / name).symlink_to(folder / "deep" / target)
    found = walk_folder(folder, ENDINGS)
    assert found.files == ["a.mp4", "deep/b.PNG"]
    assert sorted(problems(found)) == ["deep/again", "deep/far", "deep/itself", "deep/up"]


def test_a_folder_that_two_names_lead_to_is_taken_once_by_its_own(folder, tmp_path):
    (folder / "aa").symlink_to(folder / "deep")
    (tmp_path / "disk").mkdir()
    for name in ("x", "y"):
        (folder / name).symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "c.mp4").touch()
    found = walk_folder(folder, ENDINGS)
    assert found.files == ["a.mp4", "deep/b.PNG", "x/c.mp4"]
    assert problems(found) == {"aa": "is the same folder as deep; used once", "y": "is the same folder as x; used once"}


def test_two_folders_that_link_to_each_other_end(folder):
    (folder / "other").mkdir()
    (folder / "other" / "deep").symlink_to(folder / "deep")
    (folder / "deep" / "other").symlink_to(folder / "other")
    found = walk_folder(folder, ENDINGS)
    assert found.files == ["a.mp4", "deep/b.PNG"] and len(found.problems) == 2


def test_links_that_lead_nowhere_are_named(folder):
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    (folder / "disk").symlink_to("/not/mounted")
    (folder / "self.png").symlink_to("self.png")
    found = walk_folder(folder, ENDINGS)
    told = problems(found)
    assert told["gone.mp4"] == "is a link to nowhere.mp4, which does not exist"
    assert told["disk"] == "is a link to /not/mounted, which does not exist"
    assert "cannot be followed" in told["self.png"]
    assert found.files == ["a.mp4", "deep/b.PNG"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_pipes_are_named_and_not_opened(folder):
    os.mkfifo(folder / "pipe.mp4")
    assert problems(walk_folder(folder, ENDINGS)) == {"pipe.mp4": "is a device or a pipe; it must be a file"}


def test_a_folder_that_cannot_be_entered_or_opened_is_named(folder, monkeypatch):
    may, real = os.access, os.scandir
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: Path(path).name != "deep" and may(path, mode))
        found = walk_folder(folder, ENDINGS)
    assert found.files == ["a.mp4"] and "no permission to enter" in problems(found)["deep"]

    def closed(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = walk_folder(folder, ENDINGS)
    assert found.files == ["a.mp4"] and "cannot be opened: Permission denied" in problems(found)["deep"]
    monkeypatch.setattr(os, "scandir", lambda path: closed("deep"))
    with pytest.raises(PermissionError):
        walk_folder(folder, ENDINGS)


def test_everything_else_is_counted(folder, capsys):
    for name in ("a.txt", "b.txt", "deep/b.TXT", "x.XYZ", "deep/y.xyz", "README", "._a.mp4", ".hidden",
                 "metadata.jsonl", "videos.txt", "prompts.txt", "deep/prompts.txt", "metadata.parquet"):
        (folder / name).touch()
    (folder / ".git").mkdir()
    (folder / ".git" / "z.mp4").touch()
    found = walk_folder(folder, ENDINGS)
    assert found.passed_over == {".txt": 2, ".xyz": 2, "without an ending": 1, "hidden": 1, ".parquet": 1,
                                 "hidden folder(s)": 1}
    assert found.lists == ["metadata.jsonl", "videos.txt"] and found.files == ["a.mp4", "deep/b.PNG"]
    assert command.main(["scan", str(folder)]) == 0
    told = "passed over: 1 .parquet, 2 .txt, 2 .xyz, 1 hidden, 1 hidden folder(s), 1 without an ending\n"
    assert told in capsys.readouterr().out


def test_an_empty_scan_says_what_it_saw(tmp_path):
    (tmp_path / "a.doc").touch()
    with pytest.raises(ValueError, match="holds no clip that can be used; passed over: 1 .doc"):
        scan_folder(tmp_path).need_clips()
