"""Curation into the same folder again, and failing measures: no caption is lost, and no video stops the others."""

import json

import pytest
import torch
from films import caption, mp4, pan, texture
from PIL import Image

from minicogvx.data import command
from minicogvx.data.films.captioning import caption_clips
from minicogvx.data.films.curate import CurationThresholds, curate
from minicogvx.data.films.folder import scan_folder
from minicogvx.data.films.listing import write_lines


@pytest.fixture
def folder(tmp_path):
    """A video and a picture that are kept, without captions."""
    folder = tmp_path / "films"
    folder.mkdir()
    mp4(folder / "a.mp4", pan(20, seed=1))
    Image.fromarray((texture(64, 64, grain=2).numpy() * 255).astype("uint8")).save(folder / "b.png")
    return folder


def rows(path) -> dict[str, dict]:
    return {row["file_name"]: row for row in map(json.loads, path.read_text().splitlines())}


def captioned(folder, kept):
    clips = scan_folder(folder, 0.0, kept, need_captions=False).clips
    assert not caption_clips(clips, lambda clip: f"words on {clip.name}", kept, progress=False)
    return kept


def test_captions_and_notes_in_the_lists_stay(folder, tmp_path, capsys):
    again = ["curate", str(folder), "--out", str(tmp_path / "out"), "--best", "1"]
    assert command.main(again) == 0
    for name in ("kept.jsonl", "best.jsonl"):
        path = captioned(folder, tmp_path / "out" / name)
        write_lines(path, [row | {"rights": "mine"} for row in rows(path).values()])
    assert command.main([*again, "--max-black", "0.9"]) == 0
    for name in ("kept.jsonl", "best.jsonl"):
        after = rows(tmp_path / "out" / name)
        assert {name: (row["text"], row["rights"]) for name, row in after.items()} == {
            name: (f"words on {name}", "mine") for name in ("a.mp4", "b.png")}
        assert all(row["scores"].keys() >= {"motion"} for row in after.values())


def refused(folder, kept, listing=None):
    """A stricter curation would drop a.mp4, about which `kept` says more than a curation does."""
    report = kept.with_name("report.html")
    before, page = kept.read_bytes(), report.read_bytes()
    with pytest.raises(ValueError, match=r"kept.jsonl has captions or fields of 1 pieces .*such as a.mp4 from second"):
        curate(folder, kept.parent, CurationThresholds(min_motion=9.0), None, listing, False)
    assert kept.read_bytes() == before and report.read_bytes() == page


def test_what_is_known_of_a_piece_that_is_no_longer_kept_is_not_lost(folder, tmp_path):
    kept = tmp_path / "out" / "kept.jsonl"
    curate(folder, kept.parent, progress=False)
    bare = list(rows(kept).values())
    captioned(folder, kept)
    refused(folder, kept)
    refused(folder, kept, listing=kept)
    write_lines(kept, [row | {"rights": "mine"} for row in bare])
    refused(folder, kept)
    listed = write_lines(tmp_path / "mine.jsonl", list(rows(kept).values()))
    curate(folder, kept.parent, CurationThresholds(min_motion=9.0), None, listed, False)
    assert rows(kept).keys() == {"b.png"} and rows(kept)["b.png"]["rights"] == "mine"


def test_captions_that_the_folder_has_are_not_missed(folder, tmp_path):
    caption(folder / "a.mp4", "words")
    curate(folder, tmp_path / "out", progress=False)
    result = curate(folder, tmp_path / "out", CurationThresholds(min_motion=9.0), progress=False)
    assert [shot.clip.name for shot in result.kept] == ["b.png"]
    assert rows(tmp_path / "out" / "kept.jsonl").keys() == {"b.png"}


def test_the_three_files_are_tried_first(folder, tmp_path, monkeypatch, subtests):
    monkeypatch.setattr("minicogvx.data.films.curate.scan_folder", lambda *_, **__: pytest.fail("videos were read"))
    for i, (name, content, words) in enumerate((
        ("kept.jsonl", '{"file_name": "a.mp4"}\nmine', "kept.jsonl, line 2: is not JSON"),
        ("best.jsonl", "shopping", "best.jsonl holds something other than a list"),
        ("report.html", None, "report.html .*is a folder"),
        ("report.html", "", "report.html is not the report of a curation"),
        ("report.html", "<!DOCTYPE html>\n<title>Curation of cats</title>", "report.html is not the report"),
    )):
        with subtests.test(msg=f"{name}: {content}"):
            path = tmp_path / str(i) / name
            path.parent.mkdir()
            path.mkdir() if content is None else path.write_text(content)
            with pytest.raises((ValueError, OSError), match=words):
                command.main(["curate", str(folder), "--out", str(path.parent), "--best", "1"])
            assert content is None or path.read_text() == content


def test_a_measure_that_fails_is_a_problem_of_its_video(folder, tmp_path, monkeypatch, subtests):
    for error in (RuntimeError("sizes of tensors\nmust match"), ValueError("window is 3"), TimeoutError("no answer")):
        def flow(*_, error=error):
            raise error

        with subtests.test(msg=type(error).__name__):
            monkeypatch.setattr("minicogvx.data.films.shots.optical_flow", flow)
            result = curate(folder, tmp_path / "out", progress=False)
            assert [shot.clip.name for shot in result.kept] == ["b.png"]
            assert [problem.name for problem in result.problems] == ["a.mp4"]
            assert " ".join(str(error).split()) in result.problems[0].reason


def test_memory_that_does_not_suffice_ends_a_curation_and_a_captioning(folder, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    clips = scan_folder(folder, 0.0, need_captions=False).clips
    with pytest.raises(torch.OutOfMemoryError):
        caption_clips(clips, full, tmp_path / "a.jsonl", progress=False)
    monkeypatch.setattr("minicogvx.data.films.shots.optical_flow", full)
    with pytest.raises(torch.OutOfMemoryError):
        curate(folder, tmp_path / "out", progress=False)


def test_a_captioner_that_fails_on_one_clip_captions_the_others(folder, tmp_path):
    def captioner(clip):
        if clip.is_image:
            raise RuntimeError("mat1 and mat2\nshapes cannot be multiplied")
        return "words"

    clips = scan_folder(folder, 0.0, need_captions=False).clips
    problem, = caption_clips(clips, captioner, tmp_path / "a.jsonl", progress=False)
    assert str(problem) == "b.png: failed: mat1 and mat2 shapes cannot be multiplied"
    assert rows(tmp_path / "a.jsonl").keys() == {"a.mp4"}
