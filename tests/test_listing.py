"""Lists of clips: every kind and spelling is read, no user's data is lost, and errors name the line."""

import json
import math
import os
import sys
from dataclasses import replace

import pytest
from films import caption, mp4, ramp
from PIL import Image

from minicogvx.data.films.folder import clip_line, read_clip, scan_folder
from minicogvx.data.films.listing import Listing, read_list, writable_list, write_lines


def pictures(folder, *names):
    """Small pictures; names may be bytes."""
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), "red").save(path)
    return folder


def written(folder, name, text):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def row(**fields) -> str:
    return json.dumps({"file_name": "a.png", "text": "words"} | fields)


def captions(folder, **options):
    found = scan_folder(folder, 0.0, **options)
    return {clip.name: clip.caption for clip in found.clips}, [str(problem) for problem in found.problems]


# ---- unchanged parts keep every byte


ODD_LINES = [b'{"file_name": "b.png", "text": "two\xe2\x80\xa8lines\xc2\x85of\x0b words"}', b"", b"not json",
             b'{"file_name": "c.png",\t"score": NaN,  "score2": -Infinity}', b'{"no": "name"}', b"[1, 2]",
             b'{"file_name": "caf\xe9.png", "text": "ok"}', b'{"file_name": "d.png", "text": "Latin-1 \xe9"}',
             b'{"file_name": "d.png", "text": "x", "text": "y"}', b'  {"file_name":"e.png","n":1.10}  \r',
             b'\xef\xbb\xbf{"file_name": "f.png"}', b"[" * 5000]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_caption_changes_its_own_line_alone(tmp_path, mark, end):
    own = b'{"file_name": "./a.png", "licence": "CC-BY", "start": 0, "more": {"deep": [1, null]}}\r'
    path = written(tmp_path, "list.jsonl", mark + b"\n".join([*ODD_LINES[:4], own, *ODD_LINES[4:]]) + end)
    listing = Listing(path, tmp_path)
    line, = [line for line in listing.lines if line.name == "a.png"]
    listing.set_caption(line, "naïve “words”")
    listing.append({"file_name": "z.png"})
    listing.write()
    lines = path.read_bytes().removeprefix(mark).split(b"\n")
    assert [*lines[:4], *lines[5:-2]] == ODD_LINES and lines[-2:] == [b'{"file_name": "z.png"}', b""]
    assert json.loads(lines[4]) == json.loads(own) | {"text": "naïve “words”"} and lines[4].endswith(b"\r")
    assert path.read_bytes().startswith(mark)


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


@pytest.mark.parametrize("name, content, words", [
    ("film.mp4", "", "must end in .jsonl"), ("table.csv", "", "must end in .jsonl"),
    ("notes.txt", "my notes", "must end in .jsonl"),
    ("array.json", '[\n{"file_name": "a.png"},\n{"file_name": "b.png"}\n]', "one JSON value over 4 lines"),
    ("pretty.json", '{\n"file_name": "a.png"\n}', "one JSON value over 3 lines"),
    ("line.json", '[{"file_name": "a.png"}]', "something other than a list"),
    ("wide.jsonl", row().encode("utf-16"), "UTF-16"), ("noise.jsonl", bytes(range(256)), "something other")])
def test_what_is_no_list_is_never_written_over(tmp_path, name, content, words):
    path = written(tmp_path, name, content)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=words):
        writable_list(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content, clips", [("", 0), ("\n \n", 0), ("\n\n" + row() + "\n\n\n", 1), ("\ufeff", 0)])
def test_blank_lines_are_no_lines(tmp_path, content, clips):
    path = written(tmp_path, "list.jsonl", content)
    assert len(Listing(writable_list(path), tmp_path).lines) == len(read_list(path, tmp_path)[0]) == clips


def test_a_folder_is_no_list(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(OSError, match="is a folder"):
        writable_list(tmp_path / "x.jsonl")


# ---- fields


@pytest.mark.parametrize("field", ["start", "end"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "-0.5", "true", "false", '"1.5"', "[1]", "1e999",
                                   "1" + "0" * 400, "{}"])
def test_seconds_that_are_none_are_reported_by_line(tmp_path, field, value):
    bad = f'{{"file_name": "b.png", "text": "x", "{field}": {value}}}'
    path = written(tmp_path, "list.jsonl", f"{row()}\n{bad}\n{row()}")
    lines, problems = read_list(path, tmp_path)
    assert [line.number for line in lines] == [1, 3]
    assert len(problems) == 1 and problems[0].name == "list.jsonl, line 2" and field in problems[0].reason
    assert len(problems[0].reason) < 160


@pytest.mark.parametrize("fields, words", [
    ({"text": 5}, "has text=5"), ({"text": None, "caption": ["x"]}, "has caption="), ({"file_name": 3}, "no file_name"),
    ({"file_name": " "}, "no file_name"), ({"file_name": "../a.png"}, "outside the folder"),
    ({"file_name": "x/../../a.png"}, "outside the folder"), ({"file_name": "/etc/hosts"}, "outside the folder"),
    ({"text": "half \ud83d of an emoji"}, "not UTF-8")])
def test_lines_that_cannot_be_used_are_reported(tmp_path, fields, words):
    path = written(tmp_path, "list.jsonl", row(**fields))
    lines, problems = read_list(path, tmp_path)
    assert not lines and problems[0].name == "list.jsonl, line 1" and words in problems[0].reason


@pytest.mark.parametrize("fields, text", [
    ({"text": "a", "caption": "b", "prompt": "c"}, "a"), ({"text": None, "caption": "b", "prompt": "c"}, "b"),
    ({"text": " ", "prompt": " c\n c "}, "c c"), ({"text": None, "description": "d"}, "")])
def test_which_field_is_the_caption(tmp_path, fields, text):
    lines, problems = read_list(written(tmp_path, "list.jsonl", row(**fields)), tmp_path)
    assert lines[0].text == text and not problems


def test_fields_that_are_no_caption_are_named(tmp_path):
    pictures(tmp_path, "a.png")
    written(tmp_path, "metadata.jsonl", '{"file_name": "a.png", "description": "words"}')
    assert "its line has description, and none of text, caption, prompt" in captions(tmp_path)[1][0]


# ---- names


@pytest.mark.parametrize("listed", ["./sub/é.png", "sub//é.png", "sub/x/../é.png", "sub/e\u0301.png", "ABSOLUTE",
                                    "sub\\é.png"])
def test_every_spelling_of_a_name_is_one_file(tmp_path, listed):
    pictures(tmp_path, "sub/é.png")
    listed = str(tmp_path / "sub" / "é.png") if listed == "ABSOLUTE" else listed
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


@pytest.mark.parametrize("nothing", ["\0\0", "\x1b\x07", "\u200b\u2060", " \t\x7f"])
def test_control_characters_alone_are_no_caption(tmp_path, nothing):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    caption(tmp_path / "b.png", nothing)
    written(tmp_path, "metadata.jsonl", row(text=nothing, prompt="words") + "\n" + row(file_name="c.png", text=nothing))
    found, problems = captions(tmp_path)
    assert found == {"a.png": "words"}
    assert [problem.split(";")[0] for problem in problems] == ["b.png: has no caption", "c.png: has no caption"]


# ---- tables and pairs


@pytest.mark.parametrize("table", [
    "file_name,text\na.png,words\n", "\ufefffile_name,text\r\na.png,words\r\n", "file_name;caption\na.png;words\n",
    "file_name\tprompt\na.png\twords\n", 'id,file_name,start,end,text\n7,./a.png,0,,"wo""r""ds"\n',
    'file_name, text, note\na.png, "words", "of\ntwo lines"\nb.png\n'])
def test_a_table_is_read(tmp_path, table):
    pictures(tmp_path, "a.png")
    written(tmp_path, "metadata.csv", table)
    assert captions(tmp_path)[0]["a.png"].replace('"', "") == "words"


def test_a_table_keeps_commas_lines_and_pieces(tmp_path):
    caption(mp4(tmp_path / "a.mp4", ramp(24)), "beside")
    path = written(tmp_path, "metadata.csv", 'file_name,start,end,text,licence\na.mp4,1.5,,"late,\nvery late",CC\n'
                                             'a.mp4,,nan,x,\na.mp4,-1,,x,\na.mp4,soon,,x,\na.mp4,0,1.25,early,CC0\n')
    clips = scan_folder(tmp_path, 0.0).clips
    assert [(clip.start, round(clip.end, 2), clip.caption) for clip in clips] == [
        (1.5, 3.0, "late, very late"), (0.0, 1.25, "early")]
    assert clip_line(clips[1]) == {"file_name": "a.mp4", "start": 0.0, "end": 1.25, "text": "early", "licence": "CC0"}
    _, problems = captions(tmp_path)
    assert [problem.split(": ")[0] for problem in problems] == [f"metadata.csv, line {n}" for n in (4, 5, 6)]
    assert len(scan_folder(tmp_path, 0.0, listing=path).clips) == 2


@pytest.mark.parametrize("line, words", [
    ("a.png,a red circle, moving right", "line 2: has 3 cells for 2 columns; put a caption with ','"),
    ('a.png,red,"moves",right', "has 4 cells for 2 columns"),
    ('a.png,"never closed', "line 2: has a quotation mark that is not closed"),
    ('a.png,"never closed, "" in it', "a quotation mark that is not closed"),
    ('"a.png,words', "a quotation mark that is not closed"),
    ('a.png,"it has a 5" disc', "has text behind a closing quotation mark"),
    ('a.png,"one" and "two"', "has text behind a closing quotation mark"),
    ('a.png,"over\ntwo" lines', "a quotation mark that is not closed")])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_line_of_a_table_that_is_ambiguous_is_reported_and_the_others_are_used(tmp_path, line, words, separator):
    pictures(tmp_path, "a.png", "b.png", "c.png", "d.png")
    lines = ["file_name,text", line, 'b.png,"two, quoted"', 'c.png,a\u20285" disc,,', 'd.png,"over\nlines"']
    written(tmp_path, "metadata.csv", "\r\n".join(lines).replace(",", separator))
    found, problems = captions(tmp_path)
    quoted = f"two{separator} quoted" if separator != "\t" else "two quoted"
    assert found == {"b.png": quoted, "c.png": 'a 5" disc', "d.png": "over lines"}
    assert any(words.replace("','", repr(separator)) in problem for problem in problems)


@pytest.mark.parametrize("table, words", [
    ("name,text\na.png,x\n", "no column file_name"), ("", "no column file_name"),
    ("file_name,text,text\na.png,x,y\n", "has 2 columns text; each column must have a name of its own"),
    ("file_name,text, file_name\na.png,x,a.png\n", "has 2 columns file_name"),
    ('file_name,"text\na.png,x\n', "line 1: has a quotation mark that is not closed"),
    ("file_name,text\na.png," + "x" * 200_000, "cannot be read as a table")])
def test_a_table_that_is_none_is_reported(tmp_path, table, words):
    pictures(tmp_path, "a.png")
    written(tmp_path, "metadata.csv", table)
    assert any(words in problem for problem in captions(tmp_path)[1])


@pytest.mark.parametrize("names, prompts", [("videos.txt", "prompts.txt"), ("video.txt", "caption.txt"),
                                            ("images.txt", "prompt.txt")])
def test_a_file_of_names_and_one_of_captions(tmp_path, names, prompts):
    pictures(tmp_path, "in/a.png", "in/b.png", "c.png")
    written(tmp_path, names, "./in/b.png\r\nin/a.png\r\n")
    written(tmp_path, prompts, "of \u2028 b\r\nof a")
    assert captions(tmp_path)[0] == {"in/a.png": "of a", "in/b.png": "of b"}
    written(tmp_path, prompts, "of b\nof a\nof nothing\n")
    found, problems = captions(tmp_path)
    assert not found and f"{names}: has 2 lines, and {prompts} has 3" in problems[0]


def test_a_file_of_captions_alone_is_no_list(tmp_path):
    pictures(tmp_path, "a.png", "prompts.png")
    written(tmp_path, "prompts.txt", "beside prompts.png")
    assert captions(tmp_path)[0] == {"prompts.png": "beside prompts.png"}


@pytest.mark.parametrize("names, prompts, third", [
    ("videos.txt", "prompts.txt", "prompts.png"), ("images.txt", "caption.txt", "caption.png"),
    ("videos.txt", "prompts.txt", "videos.png"), ("video.txt", "captions.txt", "video.png")])
def test_a_pair_is_no_caption_of_a_video_of_its_name(tmp_path, names, prompts, third):
    pictures(tmp_path, "a.png", third, "b.png")
    caption(tmp_path / "b.png", "beside")
    written(tmp_path, names, "a.png\n")
    written(tmp_path, prompts, "of a\n")
    found, problems = captions(tmp_path)
    assert found == {"a.png": "of a", "b.png": "beside"}
    assert len(problems) == 1 and f"{third}: has no caption" in problems[0]
    written(tmp_path, names, f"a.png\n{third}\n")
    written(tmp_path, prompts, "of a\nof the other\n")
    assert captions(tmp_path) == ({"a.png": "of a", third: "of the other", "b.png": "beside"}, [])


def test_lists_in_sub_folders_name_what_lies_there(tmp_path):
    pictures(tmp_path, "train/a.png", "train/b.png", "test/a.png")
    written(tmp_path / "train", "metadata.jsonl", row() + "\n" + row(file_name="../test/a.png", text="across"))
    written(tmp_path / "train", "metadata.csv", "file_name,text\nb.png,table\na.png,later\n")
    assert captions(tmp_path) == ({"test/a.png": "across", "train/a.png": "words", "train/b.png": "table"}, [])
    written(tmp_path, "metadata.jsonl", row(file_name="train/a.png", text="outer"))
    assert captions(tmp_path)[0]["train/a.png"] == "outer"
    written(tmp_path / "train", "metadata.jsonl", row(file_name="../../a.png"))
    assert "train/metadata.jsonl, line 1: names" in captions(tmp_path)[1][0]


def test_a_list_without_words_does_not_hide_those_of_another(tmp_path):
    pictures(tmp_path, "a.png")
    written(tmp_path, "metadata.jsonl", '{"file_name": "a.png", "id": 1}')
    written(tmp_path, "metadata.csv", "file_name,text\na.png,table\n")
    clip, = scan_folder(tmp_path).clips
    assert clip.caption == "table" and clip_line(clip) == {"file_name": "a.png", "text": "table", "id": 1}


def test_a_list_that_cannot_be_read_is_a_problem_of_its_folder_and_an_error_where_it_is_named(tmp_path):
    pictures(tmp_path, "sub/a.png", "b.png")
    caption(tmp_path / "b.png")
    path = written(tmp_path / "sub", "metadata.jsonl", row().encode("utf-16"))
    found, problems = captions(tmp_path)
    assert list(found) == ["b.png"] and problems[0] == "sub/metadata.jsonl: is UTF-16 text; save it as UTF-8"
    with pytest.raises(ValueError, match="UTF-16"):
        scan_folder(tmp_path, listing=path)


def test_a_bad_caption_beside_a_listed_file_does_not_matter(tmp_path):
    pictures(tmp_path, "a.png", "B.png")
    written(tmp_path, "a.txt", b"\xff\xfe")
    written(tmp_path, "B.TXT", "upper case")
    written(tmp_path, "metadata.jsonl", row())
    assert captions(tmp_path) == ({"B.png": "upper case", "a.png": "words"}, [])


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
