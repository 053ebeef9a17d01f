"""Lists of captions: everything but captions keeps every byte, and names and tables are read as intended."""

import errno
import json
import os
import sys

import pytest
from films import mp4, ramp
from PIL import Image

from minicogvx.data import command
from minicogvx.data.films import caption_notes
from minicogvx.data.films.captioning import caption_clips
from minicogvx.data.films.folder import scan_folder
from minicogvx.data.films.listing import Listing, writable_list, write_lines
from minicogvx.data.world.films import ShapeFilms, write_shape_films


@pytest.mark.parametrize("line, after", [
    (b'{"file_name":"a.png","n":2.50,"m":-1e999}', b'{"file_name":"a.png","n":2.50,"m":-1e999, "text": "new"}'),
    (b'\t{ "text" : "old", "file_name": "a.png", "deep": {"text": "x"} }  \r',
     b'\t{ "text" : "new", "file_name": "a.png", "deep": {"text": "x"} }  \r'),
    (b'{"file_name": "a.png", "caption": null , "e": 1E+2, "who": "caf\xe9"}',
     b'{"file_name": "a.png", "caption": "new" , "e": 1E+2, "who": "caf\xe9"}'),
    (b'{"text": "one", "file_name": "a.png", "text": "two", "u": "\\u00e9\\ud800"}',
     b'{"text": "one", "file_name": "a.png", "text": "new", "u": "\\u00e9\\ud800"}'),
    (b'\xef\xbb\xbf{"file_name": "a.png" }', b'\xef\xbb\xbf{"file_name": "a.png", "text": "new" }')])
def test_a_caption_changes_nothing_but_itself(tmp_path, line, after):
    path = tmp_path / "list.jsonl"
    path.write_bytes(line + b"\n")
    listing = Listing(path, tmp_path)
    listing.set_caption(listing.lines[0], "new")
    listing.write()
    assert path.read_bytes() == after + b"\n"
    assert Listing(path, tmp_path).lines[0].text == "new"


@pytest.mark.parametrize("content", ['{"version": 2}', '{"version": 2}\n{"name": "a.png"}'])
def test_a_file_of_other_objects_is_no_list(tmp_path, content):
    path = tmp_path / "settings.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="something other than a list of clips"):
        writable_list(path)


def test_a_list_may_name_its_folder_by_either_path(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "films").symlink_to(tmp_path / "disk", target_is_directory=True)
    for name in ("a", "b"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / "disk" / f"{name}.png")
    write_lines(tmp_path / "list.jsonl", [{"file_name": str(tmp_path / "disk" / "a.png"), "text": "of a"},
                                          {"file_name": str(tmp_path / "films" / "b.png"), "text": "of b"},
                                          {"file_name": str(tmp_path / "other" / "c.png"), "text": "of c"}])
    found = scan_folder(tmp_path / "films", listing=tmp_path / "list.jsonl")
    assert {clip.name: clip.caption for clip in found.clips} == {"a.png": "of a", "b.png": "of b"}
    assert "lies outside the folder" in found.problems[0].reason


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take one of the two names")
def test_names_that_only_bytes_tell_apart_get_their_own_captions(tmp_path):
    names = ["e\u0301.png", "\u00e9.png"]
    for name in names:
        Image.new("RGB", (16, 16), "red").save(tmp_path / name)
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": name} for name in reversed(names)])
    clips = scan_folder(tmp_path, 0.0, need_captions=False).clips
    caption_clips(clips, lambda clip: f"{len(clip.name)} letters", tmp_path / "metadata.jsonl", progress=False)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert rows == [{"file_name": name, "text": f"{len(name)} letters"} for name in reversed(names)]


def test_blank_lines_and_spaces_at_the_ends_do_not_matter(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / name)
    (tmp_path / "images.txt").write_text("a.png\nb.png\n\n\n")
    (tmp_path / "prompts.txt").write_text("of a\nof b\n\n")
    assert [clip.caption for clip in scan_folder(tmp_path).clips] == ["of a", "of b"]
    (tmp_path / "metadata.csv").write_text("file_name ,\ttext \na.png,first\nb.png,second\n")
    assert [clip.caption for clip in scan_folder(tmp_path).clips] == ["first", "second"]


def full(*_, **__):
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a system without /dev/full")
def test_notes_and_captions_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    path = tmp_path / "captions.jsonl"
    with pytest.raises(OSError, match=f"{path} cannot be written: "):
        caption_notes.Notes(path, open("/dev/full", "w"), "me", {}).add(("a.mp4", 0), "words")
    monkeypatch.setattr("pathlib.Path.write_text", full)
    monkeypatch.setattr("minicogvx.data.world.films.write_json", lambda *_: None)
    with pytest.raises(OSError, match="shape-00000.txt cannot be written: "):
        write_shape_films(tmp_path / "films", ShapeFilms(1, side=16), progress=False)


@pytest.mark.parametrize("options, words", [
    (["--captioner", "shapes", "--summary", "t5"], "--summary is for a captioner in a folder"),
    (["--captioner", "shapes", "--every", "3"], "--every is for a captioner in a folder"),
    (["--captioner", "nowhere"], "there is no folder nowhere")])
def test_a_captioner_is_opened_before_videos_are_read(tmp_path, monkeypatch, options, words):
    mp4(tmp_path / "a.mp4", ramp(16))
    monkeypatch.setattr("minicogvx.data.films.folder.scan_folder", lambda *_, **__: pytest.fail("videos were read"))
    with pytest.raises((ValueError, OSError), match=words):
        command.main(["caption", str(tmp_path), *options])
