"""Atomic writing, and checks before work that output can be written."""

import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest

from minicogvx import files
from minicogvx.files import check_writable, locked, remove_parts, written_whole


def test_what_is_written_is_there_whole_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "below" / "film.mp4"
    with written_whole(path) as part:
        assert part.parent == path.parent and part.suffix == ".mp4" and part.name.startswith(".")
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["film.mp4"]
    path = tmp_path / ("x" * 250 + ".json")  # of the greatest length
    check_writable(path)
    with written_whole(path) as part:
        part.write_text("{}")
    assert path.exists()


def test_where_it_fails_the_old_file_stays_and_no_part(tmp_path, subtests):
    path = tmp_path / "a.json"
    path.write_text("old")
    for error in (ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")):
        with subtests.test(type(error).__name__):
            with pytest.raises(type(error)) as told, written_whole(path) as part:
                part.write_text("half")
                raise error
            assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]
    assert str(told.value) == f"{path} cannot be written: No space left"
    with pytest.raises(FileNotFoundError, match="other.txt"), written_whole(path):  # an error about another file
        (tmp_path / "other.txt").read_text()


def test_many_at_once_do_not_mix(tmp_path):
    def write(i):
        with written_whole(tmp_path / "a.txt") as part:
            part.write_text(str(i) * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(set((tmp_path / "a.txt").read_text())) == 1 and os.listdir(tmp_path) == ["a.txt"]


@pytest.fixture
def places(tmp_path):
    """A folder with a file, a folder and a link that leads nowhere."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "x")
    return tmp_path


def test_a_place_that_can_be_written_stays_as_it_is(places, subtests):
    before = sorted(os.walk(places))
    for name, folder in (("a.mp4", False), ("new/a.mp4", False), ("file", False), ("new/run", True), ("folder", True),
                         ("folder/new", True), ("nowhere", False)):
        with subtests.test(name, folder=folder):
            check_writable(places / name, folder)
            assert sorted(os.walk(places)) == before and (places / "file").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_refused(places, subtests):
    cases = [
        ("folder", False, "is a folder"), ("file", True, "is no folder"), ("file/a.mp4", False, "is no folder"),
        ("file/deep/run", True, "is no folder"), ("nowhere/a.mp4", False, "is no folder"),
        ("x" * 300, False, "too long"), ("x" * 300, True, "too long"), (f"new/{'x' * 300}/a.mp4", False, "too long"),
        ("/dev/null", False, "a device"), ("/proc/minicogvx/a.mp4", False, "No such file")]
    for name, folder, why in cases:
        with subtests.test(name[:40], folder=folder):
            path = places / name
            with pytest.raises(OSError, match=why) as told:
                check_writable(path, folder)
            assert str(told.value).startswith(f"{path} cannot be written: ")


def test_a_link_stays_a_link_and_the_file_that_it_leads_to_is_written(tmp_path, subtests):
    for number, target in enumerate(("shared.jsonl", "disk/shared.jsonl", "missing/shared.jsonl")):
        folder = tmp_path / str(number)
        (folder / "disk").mkdir(parents=True)
        (folder / "other.jsonl").symlink_to(target)
        (folder / "link.jsonl").symlink_to("other.jsonl")
        with subtests.test(target):
            for text in ("old", "new"):
                check_writable(folder / "link.jsonl")
                with written_whole(folder / "link.jsonl") as part:
                    part.write_text(text)
                assert (folder / target).read_text() == text and not (folder / target).is_symlink()
                assert os.readlink(folder / "link.jsonl") == "other.jsonl"
            assert [path.name for path in (folder / target).parent.glob("*shared*")] == ["shared.jsonl"]


def test_a_protected_file_is_refused_and_stays(places, subtests):
    (places / "link").symlink_to(places / "file")
    for mode, name in product((0o444, 0o400, 0o555, 0o000), ("file", "link")):
        with subtests.test(name, mode=mode):
            (places / "file").chmod(mode)
            message = f"{places / name} cannot be written: it is write-protected; name another file"
            with pytest.raises(OSError, match=message):
                check_writable(places / name)
            with pytest.raises(OSError, match=message), written_whole(places / name):
                raise AssertionError("the block must not begin")
            (places / "file").chmod(0o644)
            assert (places / "file").read_text() == "mine"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_device_is_not_renamed_away():
    with pytest.raises(OSError, match="a device"), written_whole("/dev/full"):
        raise AssertionError("the block must not begin")


# ---- one run at a time


HOLD = """
import sys, time
from minicogvx.files import locked
with locked(sys.argv[1]):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_kept_for_one_process_and_free_once_it_is_dead(tmp_path):
    out = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match=rf"{out} is in use by another run \(process {holder.pid} on .*\)"):
            with locked(out):
                raise AssertionError("two at once")
    finally:
        holder.kill()  # as if by kill -9: the lock file stays
        holder.wait()
    assert (out / ".lock").exists()
    with locked(out):
        pass


def test_a_lock_leaves_what_was_there_and_nothing_else(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("old", "new/below"):
        with pytest.raises(KeyError), locked(tmp_path / name):
            raise KeyError
    assert os.listdir(tmp_path / "old") == [] and not (tmp_path / "new" / "below").exists()
    with locked(tmp_path / "new" / "below"):
        (tmp_path / "new" / "below" / "mine").touch()
    assert os.listdir(tmp_path / "new" / "below") == ["mine"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/run cannot be written"), locked(tmp_path / "file" / "run"):
        raise AssertionError("there is no folder")


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    for name in (".a.0123abcd.part.safetensors", ".tmpA1b2C3", ".x.89abcdef.part"):
        (tmp_path / name).touch()
    mine = {".part", ".tmp", ".tmp-folder", "a.part", ".a.part.txt", ".tmp-notes", "b.safetensors", ".a.0123abc.part"}
    for name in mine:
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert set(os.listdir(tmp_path)) == mine
    remove_parts(tmp_path / "missing")


def test_a_place_below_no_root_ends_the_search(monkeypatch):
    monkeypatch.setattr(files, "_exists", lambda path: False)  # as a drive that is not there
    monkeypatch.setattr(files.Path, "is_dir", lambda path: False)
    for path in ("/films/new/a.mp4", "films/a.mp4"):
        with pytest.raises(OSError, match=f"{path} cannot be written: .* is not there"):
            check_writable(path)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_permissions_are_those_of_the_old_file_or_the_usual_ones(tmp_path):
    (tmp_path / "plain").touch()
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(0o640)
    for name in ("new", "old"):
        with written_whole(tmp_path / name) as part:
            part.touch(0o600)  # as writers do that make their own temporary file
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"plain": modes["plain"], "new": modes["plain"], "old": 0o640}
