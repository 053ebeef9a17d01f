"""Lists of clips, JSON lines: what is not changed keeps every byte, names mean one file, errors name the line."""

import json
import math
import os
import sys
from dataclasses import replace

import pytest
from films import caption, captions, mp4, pictures, ramp, row, written

from minicogvx.data.films.folder import clip_line, read_clip, scan_folder
from minicogvx.data.films.listing import Listing, read_list, writable_list, write_lines

# ---- unchanged parts keep every byte


ODD_LINES = [b'{"file_name": "b.png", "text": "two\xe2\x80\xa8lines\xc2\x85of\x0b words"}', b"", b"not json",
             b'{"file_name": "c.png",\t"score": NaN,  "score2": -Infinity}', b'{"no": "name"}', b"[1, 2]",
             b'{"file_name": "caf\xe9.png", "text": "ok"}', b'{"file_name": "d.png", "text": "Latin-1 \xe9"}',
             b'{"file_name": "d.png", "text": "x", "text": "y"}', b'  {"file_name":"e.png","n":1.10}  \r',
             b'\xef\xbb\xbf{"file_name": "f.png"}', b"[" * 5000]


def test_a_caption_changes_its_own_line_alone(tmp_path, subtests):
    own = b'{"file_name": "./a.png", "licence": "CC-BY", "start": 0, "more": {"deep": [1, null]}}\r'
    for mark, end in ((mark, end) for mark in (b"", b"\xef\xbb\xbf") for end in (b"", b"\n")):
        with subtests.test(msg=f"{mark} ... {end}"):
            content = mark + b"\n".join([*ODD_LINES[:4], own, *ODD_LINES[4:]]) + end
            listing = Listing(written(tmp_path, "list.jsonl", content), tmp_path)
            line, = [line for line in listing.lines if line.name == "a.png"]
            listing.set_caption(line, "naïve “words”")
            listing.append({"file_name": "z.png"})
            listing.write()
            assert listing.path.read_bytes().startswith(mark)
            lines = listing.path.read_bytes().removeprefix(mark).split(b"\n")
            assert [*lines[:4], *lines[5:-2]] == ODD_LINES and lines[-2:] == [b'{"file_name": "z.png"}', b""]
            assert json.loads(lines[4]) == json.loads(own) | {"text": "naïve “words”"} and lines[4].endswith(b"\r")


def test_a_caption_changes_nothing_else_in_its_line(tmp_path, subtests):
    for line, after in (
        (b'{"file_name":"a.png","n":2.50,"m":-1e999}', b'{"file_name":"a.png","n":2.50,"m":-1e999, "text": "new"}'),
        (b'\t{ "text" : "old", "file_name": "a.png", "deep": {"text": "x"} }  \r',
         b'\t{ "text" : "new", "file_name": "a.png", "deep": {"text": "x"} }  \r'),
        (b'{"file_name": "a.png", "caption": null , "e": 1E+2, "who": "caf\xe9"}',
         b'{"file_name": "a.png", "caption": "new" , "e": 1E+2, "who": "caf\xe9"}'),
        (b'{"text": "one", "file_name": "a.png", "text": "two", "u": "\\u00e9\\ud800"}',
         b'{"text": "one", "file_name": "a.png", "text": "new", "u": "\\u00e9\\ud800"}'),
        (b'\xef\xbb\xbf{"file_name": "a.png" }', b'\xef\xbb\xbf{"file_name": "a.png", "text": "new" }'),
    ):
        with subtests.test(msg=str(line)):
            listing = Listing(written(tmp_path, "list.jsonl", line + b"\n"), tmp_path)
            listing.set_caption(listing.lines[0], "new")
            listing.write()
            assert listing.path.read_bytes() == after + b"\n"
            assert Listing(listing.path, tmp_path).lines[0].text == "new"


def test_a_caption_goes_into_the_field_that_has_it(tmp_path):
    lines = [{"file_name": "a.png", "prompt": "old", "text": ""}, {"file_name": "b.png", "caption": None, "n": 1},
             {"file_name": "c.png", "text": None, "caption": "old"}]
    path = write_lines(tmp_path / "list.jsonl", lines)
    listing = Listing(path, tmp_path)
    for line in listing.lines:
        listing.set_caption(line, "new")
    listing.write()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        lines[0] | {"prompt": "new"}, lines[1] | {"caption": "new"}, lines[2] | {"caption": "new"}]


def test_what_is_no_list_is_never_written_over(tmp_path, subtests):
    for name, content, words in (
        ("film.mp4", "", "must end in .jsonl"), ("table.csv", "", "must end in .jsonl"),
        ("notes.txt", "my notes", "must end in .jsonl"),
        ("array.json", '[\n{"file_name": "a.png"},\n{"file_name": "b.png"}\n]', "one JSON value over 4 lines"),
        ("pretty.json", '{\n"file_name": "a.png"\n}', "one JSON value over 3 lines"),
        ("line.json", '[{"file_name": "a.png"}]', "other than a list"),
        ("settings.json", '{"version": 2}\n{"name": "a.png"}', "other than a list"),
        ("version.json", '{"version": 2}', "other than a list"),
        ("wide.jsonl", row().encode("utf-16"), "UTF-16"), ("noise.jsonl", bytes(range(256)), "other than a list"),
    ):
        path = written(tmp_path, name, content)
        before = path.read_bytes()
        with subtests.test(msg=name), pytest.raises(ValueError, match=f"{name}.*{words}"):
            writable_list(path)
        assert path.read_bytes() == before
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(OSError, match="x.jsonl .*is a folder"):
        writable_list(tmp_path / "x.jsonl")
    assert len(list(tmp_path.iterdir())) == 11


def test_blank_lines_are_no_lines(tmp_path):
    for content, clips in (("", 0), ("\n \n", 0), ("\n\n" + row() + "\n\n\n", 1), ("\ufeff", 0)):
        path = written(tmp_path, "list.jsonl", content)
        found = len(Listing(writable_list(path), tmp_path).lines), len(read_list(path, tmp_path)[0])
        assert found == (clips, clips), content


# ---- fields


NO_SECONDS = ("NaN", "Infinity", "-Infinity", "-0.5", "true", "false", '"1.5"', "[1]", "1e999", "1" + "0" * 400, "{}")


def test_lines_that_cannot_be_used_are_reported_by_number(tmp_path, subtests):
    bad = [(f'{{"file_name": "b.png", "text": "x", "{field}": {value}}}', f"has {field}=")
           for field in ("start", "end") for value in NO_SECONDS]
    bad += [(row(**fields), words) for fields, words in (
        ({"text": 5}, "has text=5"), ({"text": None, "caption": ["x"]}, "has caption="),
        ({"file_name": 3}, "no file_name"), ({"file_name": " "}, "no file_name"),
        ({"file_name": "../a.png"}, "outside the folder"), ({"file_name": "x/../../a.png"}, "outside the folder"),
        ({"file_name": "/etc/hosts"}, "outside the folder"), ({"text": "half \ud83d of an emoji"}, "not UTF-8"))]
    for line, words in bad:
        with subtests.test(msg=line[:80]):
            lines, problems = read_list(written(tmp_path, "list.jsonl", f"{row()}\n{line}\n{row()}"), tmp_path)
            assert [line.number for line in lines] == [1, 3]
            problem, = problems
            assert problem.name == "list.jsonl, line 2" and words in problem.reason and len(problem.reason) < 160


def test_which_field_is_the_caption(tmp_path):
    for fields, text in (({"text": "a", "caption": "b", "prompt": "c"}, "a"),
                         ({"text": None, "caption": "b", "prompt": "c"}, "b"),
                         ({"text": " ", "prompt": " c\n c "}, "c c"), ({"text": None, "description": "d"}, "")):
        (line,), problems = read_list(written(tmp_path, "list.jsonl", row(**fields)), tmp_path)
        assert line.text == text and not problems, fields


def test_fields_that_are_no_caption_are_named(tmp_path):
    pictures(tmp_path, "a.png")
    written(tmp_path, "metadata.jsonl", '{"file_name": "a.png", "description": "words"}')
    assert "its line has description, and none of text, caption, prompt" in captions(tmp_path)[1][0]


def test_control_characters_alone_are_no_caption(tmp_path, subtests):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    for nothing in ("\0\0", "\x1b\x07", "\u200b\u2060", " \t\x7f"):
        with subtests.test(msg=repr(nothing)):
            caption(tmp_path / "b.png", nothing)
            written(tmp_path, "metadata.jsonl",
                    row(text=nothing, prompt="words") + "\n" + row(file_name="c.png", text=nothing))
            found, problems = captions(tmp_path)
            assert found == {"a.png": "words"}
            assert [problem.split(";")[0] for problem in problems] == [
                "b.png: has no caption", "c.png: has no caption"]


def test_other_fields_stay_when_a_clip_is_cut(tmp_path):
    mp4(tmp_path / "a.mp4", ramp(24))
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": "./a.mp4", "caption": "x", "end": 2, "licence": "CC",
                                               "note": math.nan}])
    clip, = scan_folder(tmp_path).clips
    line = clip_line(clip)
    assert math.isnan(line.pop("note")) and line == {"file_name": "a.mp4", "end": 2, "text": "x", "licence": "CC"}
    line = clip_line(replace(clip, start=0.5, end=1.0))
    assert (line["start"], line["end"], line["licence"]) == (0.5, 1.0, "CC")
    assert read_clip(clip, 0.0, 2, 8, 16, 16).shape == (2, 16, 16, 3)


# ---- names


def test_every_spelling_of_a_name_is_one_file(tmp_path, subtests):
    pictures(tmp_path, "sub/é.png")
    for listed in ("./sub/é.png", "sub//é.png", "sub/x/../é.png", "sub/e\u0301.png", str(tmp_path / "sub" / "é.png"),
                   "sub\\é.png"):
        with subtests.test(msg=listed):
            written(tmp_path, "metadata.jsonl", row(file_name=listed))
            assert captions(tmp_path) == ({"sub/é.png": "words"}, [])


def test_a_name_with_a_back_slash_of_its_own_is_left_alone(tmp_path):
    pictures(tmp_path, "a\\b.png", "a/b.png")
    written(tmp_path, "metadata.jsonl", "\n".join([row(file_name="a\\b.png", text="one"),
                                                   row(file_name="a/b.png", text="two")]))
    assert captions(tmp_path)[0] == {"a\\b.png": "one", "a/b.png": "two"}


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take no such names")
def test_names_of_any_bytes(tmp_path):
    pictures(tmp_path, b"caf\xe9.png", b"\xff.png")
    written(tmp_path, "metadata.jsonl", b'{"file_name": "caf\xe9.png", "text": "bytes"}\n{"file_name": "\\udcff.png", '
                                        b'"text": "escaped"}\n')
    found = scan_folder(tmp_path)
    assert {os.fsencode(clip.name): clip.caption for clip in found.clips} == {b"caf\xe9.png": "bytes",
                                                                             b"\xff.png": "escaped"}
    again = write_lines(tmp_path / "again.jsonl", [clip_line(clip) for clip in found.clips])
    assert [clip.name for clip in scan_folder(tmp_path, listing=again).clips] == [clip.name for clip in found.clips]


def test_a_name_that_no_file_can_have_is_a_problem(tmp_path):
    pictures(tmp_path, "a.png")
    written(tmp_path, "metadata.jsonl", "\n".join([row(file_name="x" * 5000 + ".png"), row(file_name="a\0.png"),
                                                   row(file_name="."), row()]))
    found, problems = captions(tmp_path)
    assert found == {"a.png": "words"} and len(problems) == 3


def test_lists_of_linked_videos_are_used(tmp_path):
    away, films = tmp_path / "blobs", tmp_path / "films"
    pictures(away, "1234.png")
    films.mkdir()
    (films / "a.png").symlink_to(away / "1234.png")
    (films / "metadata.jsonl").symlink_to(written(away, "beef", row()))
    assert captions(films) == ({"a.png": "words"}, [])
    assert captions(films, listing=written(tmp_path, "kept.jsonl", row(text="kept"))) == ({"a.png": "kept"}, [])


def test_a_list_may_name_its_folder_by_either_path(tmp_path):
    pictures(tmp_path / "disk", "a.png", "b.png")
    (tmp_path / "films").symlink_to(tmp_path / "disk", target_is_directory=True)
    listing = write_lines(tmp_path / "list.jsonl", [
        {"file_name": str(tmp_path / folder / f"{name}.png"), "text": f"of {name}"}
        for folder, name in (("disk", "a"), ("films", "b"), ("other", "c"))])
    found, problems = captions(tmp_path / "films", listing=listing)
    assert found == {"a.png": "of a", "b.png": "of b"}
    assert len(problems) == 1 and "lies outside the folder" in problems[0]
