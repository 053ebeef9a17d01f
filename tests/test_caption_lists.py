"""What captioning does to a list: no line loses anything, none are mixed up, and one run at a time writes."""

import errno
import json
import os
import sys
from pathlib import Path

import pytest
from films import caption, mp4, pictures, ramp

from minicogvx.data import command
from minicogvx.data.films.caption_notes import Notes
from minicogvx.data.films.captioning import caption_clips
from minicogvx.data.films.folder import scan_folder
from minicogvx.data.films.listing import write_lines
from minicogvx.data.world.films import ShapeFilms, write_shape_films


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return mp4(tmp_path_factory.mktemp("film") / "a.mp4", ramp(24))  # 3 seconds


@pytest.fixture
def films(film, tmp_path):
    """A folder with the videos a.mp4 and b.mp4 and the picture c.png."""
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(film.read_bytes())
    return pictures(tmp_path, "c.png")


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]


def run(folder, captioner=None, listing=None, out=None, overwrite=False):
    """Captions `folder`; by default a clip is named after its length. Returns the lines and the problems."""
    out = out or folder / "metadata.jsonl"
    clips = scan_folder(folder, 0.0, listing, need_captions=False).clips
    problems = caption_clips(clips, captioner or (lambda clip: f"{clip.name} {clip.seconds:g}"), out, overwrite,
                             progress=False)
    return rows(out), [str(problem) for problem in problems]


def never(clip):
    raise AssertionError(f"{clip.name} was asked for")


def test_many_captions_of_one_video_stay_apart(films):
    before = [{"file_name": "a.mp4", "text": "first", "id": 1}, {"file_name": "a.mp4", "text": "first", "id": 2},
              {"file_name": "a.mp4", "start": 0, "text": "third", "id": 3},
              {"file_name": "a.mp4", "start": 0, "end": 3, "text": "fourth", "id": 4},
              {"file_name": "b.mp4", "text": "fifth"}, {"file_name": "c.png", "caption": "sixth"}]
    path = write_lines(films / "metadata.jsonl", before)
    content = path.read_bytes()
    run(films, never)
    assert path.read_bytes() == content
    after, _ = run(films, overwrite=True)
    assert [row.get("id") for row in after] == [1, 2, 3, 4, None, None] and len(after) == 6
    assert [row.keys() for row in after] == [row.keys() for row in before]
    assert {row.get("text") for row in after[:4]} == {"a.mp4 3"} and after[5]["caption"] == "c.png 0"


def test_pieces_that_begin_together_get_their_own_captions(films):
    pieces = [{"end": 1}, {"start": 0.0, "end": 2.0}, {"start": 0, "end": 1.0, "n": 2}, {"start": 1}, {}]
    write_lines(films / "metadata.jsonl", [{"file_name": "./a.mp4"} | piece for piece in pieces])
    after, _ = run(films, lambda clip, asked=iter("12345678"): f"{clip.seconds:g} s, asked {next(asked)}")
    assert [row["text"] for row in after] == ["1 s, asked 1", "2 s, asked 3", "1 s, asked 2", "2 s, asked 4",
                                              "3 s, asked 5", "3 s, asked 6", "0 s, asked 7"]
    assert [{name: value for name, value in row.items() if name not in ("file_name", "text")}
            for row in after[:5]] == pieces
    assert [row["file_name"] for row in after] == ["./a.mp4"] * 5 + ["b.mp4", "c.png"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_run_changes_nothing(films, overwrite):
    write_lines(films / "metadata.jsonl", [{"file_name": "a.mp4", "start": 0.5}, {"file_name": "a.mp4", "end": 9}])
    caption(films / "b.mp4", "beside")
    run(films, overwrite=overwrite)
    once = (films / "metadata.jsonl").read_bytes()
    run(films, overwrite=overwrite)
    assert (films / "metadata.jsonl").read_bytes() == once and once.count(b"\n") == 4
    assert not list(films.glob(".*"))


def test_lines_that_no_clip_is_stay(films):
    strange = ["not json", '{"file_name": "gone.mp4", "text": "two\u2028lines"}', '{"file_name": "b.mp4", "end": NaN}',
               '{"file_name": "a.mp4", "start": 50, "text": "beyond"}', "", '{"file_name": "../x.mp4"}']
    (films / "metadata.jsonl").write_text("\ufeff" + "\n".join(strange), encoding="utf-8")
    caption_clips(scan_folder(films, 0.0, need_captions=False).clips, lambda clip: "words", films / "metadata.jsonl",
                  overwrite=True, progress=False)
    lines = (films / "metadata.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines[0] == "\ufeffnot json" and lines[1:6] == strange[1:]
    assert [json.loads(line)["file_name"] for line in lines[6:-1]] == ["b.mp4", "c.png"]


def test_another_list_is_filled_and_its_own_words_stay(films):
    listing = write_lines(films / "kept.jsonl", [{"file_name": "a.mp4", "start": 0.0, "end": 1.0, "scores": {"m": 1}},
                                                 {"file_name": "b.mp4", "text": "b"}])
    out = write_lines(films / "out.jsonl", [{"file_name": "b.mp4", "text": "of mine"}, {"file_name": "q.mp4"}])
    before = listing.read_bytes()
    after, _ = run(films, listing=listing, out=out)
    assert listing.read_bytes() == before
    assert after == [{"file_name": "b.mp4", "text": "of mine"}, {"file_name": "q.mp4"},
                     {"file_name": "a.mp4", "start": 0.0, "end": 1.0, "text": "a.mp4 1", "scores": {"m": 1}},
                     {"file_name": "b.mp4", "text": "b"}]
    after[2]["text"] = "mended by hand"
    write_lines(out, after)
    assert run(films, never, listing, out)[0] == after


def test_words_of_other_kinds_of_lists_are_taken_over(films):
    (films / "metadata.csv").write_text("file_name,prompt,start\na.mp4,from a table,1\nb.mp4,,\n")
    after, _ = run(films)
    assert after == [{"file_name": "a.mp4", "start": 1.0, "text": "from a table"},
                     {"file_name": "b.mp4", "text": "b.mp4 3"}, {"file_name": "c.png", "text": "c.png 0"}]
    assert [clip.caption for clip in scan_folder(films, 0.0).clips].count("from a table") == 1


def test_a_clip_without_a_caption_is_named_and_does_not_end_the_run(films):
    def captioner(clip):
        if clip.name == "a.mp4":
            raise OSError(5, "Input/output error")
        return " \n" if clip.name == "b.mp4" else "two\u2028 lines\n"

    after, problems = run(films, captioner)
    assert after == [{"file_name": "c.png", "text": "two lines"}]
    assert "Input/output error" in problems[0] and "b.mp4: got no caption" in problems[1]


def test_what_was_added_meanwhile_stays(films):
    path = films / "metadata.jsonl"
    write_lines(path, [{"file_name": "a.mp4"}, {"file_name": "b.mp4"}])

    def captioner(clip):
        write_lines(path, [{"file_name": "new.mp4", "text": "new"}, {"file_name": "b.mp4", "text": "by hand"},
                           {"file_name": "a.mp4", "n": 1}])
        return "by a model"

    assert run(films, captioner)[0] == [
        {"file_name": "new.mp4", "text": "new"}, {"file_name": "b.mp4", "text": "by hand"},
        {"file_name": "a.mp4", "n": 1, "text": "by a model"}, {"file_name": "c.png", "text": "by a model"}]


def test_a_second_run_at_the_same_time_is_refused_before_it_works(films):
    def captioner(clip):
        with pytest.raises(ValueError, match=f"in use by another run.*process {os.getpid()}.*--out"):
            run(films, never)
        return "words"

    after, _ = run(films, captioner)
    assert [row["text"] for row in after] == ["words"] * 3


def test_two_lists_of_one_folder_can_be_written_at_once(films):
    other = films / "other.jsonl"
    after, _ = run(films, lambda clip: str(len(run(films, out=other)[0])))
    assert [row["text"] for row in after] == ["3"] * 3 and len(rows(other)) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take no such names")
def test_names_of_any_bytes_are_written_so_that_they_are_found_again(films):
    os.rename(films / "a.mp4", os.fsencode(films) + b"/caf\xe9.mp4")
    run(films, lambda clip: "words")
    found = scan_folder(films, 0.0).clips
    assert [os.fsencode(clip.name) for clip in found] == [b"b.mp4", b"c.png", b"caf\xe9.mp4"]
    (films / "metadata.jsonl").read_text(encoding="utf-8", errors="strict")


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take one of the two names")
def test_names_that_only_bytes_tell_apart_get_their_own_captions(tmp_path):
    names = ["e\u0301.png", "\u00e9.png"]
    pictures(tmp_path, *names)
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": name} for name in reversed(names)])
    after, _ = run(tmp_path, lambda clip: f"{len(clip.name)} letters")
    assert after == [{"file_name": name, "text": f"{len(name)} letters"} for name in reversed(names)]


def full(*_, **__):
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a system without /dev/full")
def test_notes_and_captions_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    path = tmp_path / "captions.jsonl"
    with pytest.raises(OSError, match=f"{path} cannot be written: "):
        Notes(path, open("/dev/full", "w"), "me", {}).add(("a.mp4", 0), "words")
    monkeypatch.setattr("pathlib.Path.write_text", full)
    monkeypatch.setattr("minicogvx.data.world.films.write_json", lambda *_: None)
    with pytest.raises(OSError, match="shape-00000.txt cannot be written: "):
        write_shape_films(tmp_path / "films", ShapeFilms(1, side=16), progress=False)


def test_mistakes_in_a_command_end_it_before_videos_are_read(films, monkeypatch, subtests):
    monkeypatch.setattr("minicogvx.data.films.folder.scan_folder", lambda *_, **__: pytest.fail("videos were read"))
    (films / "notes.json").write_text("[\n1\n]")
    for options, words in (
        (["shapes", "--out", str(films / "words.csv")], "must end in .jsonl"),
        (["shapes", "--out", str(films / "notes.json")], "one JSON value"),
        (["shapes", "--summary", "t5"], "--summary is for a captioner in a folder"),
        (["shapes", "--every", "3"], "--every is for a captioner in a folder"),
        (["nowhere"], "there is no folder nowhere"),
    ):
        with subtests.test(msg=" ".join(options)), pytest.raises((ValueError, OSError), match=words):
            command.main(["caption", str(films), "--captioner", *options])
    assert (films / "notes.json").read_text() == "[\n1\n]"
