"""Curation of a folder: what is kept, what is dropped and why, the lists, and the report."""

import base64
import io
import json
import os
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from films import caption, film, mp4, pan, texture
from PIL import Image

from minicogvx.data import command
from minicogvx.data.films.curate import CurationThresholds, best_fraction, curate
from minicogvx.data.films.folder import VideoClip, scan_folder
from minicogvx.data.films.listing import write_lines
from minicogvx.data.films.shots import Shot


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.pictures, self.charts, self.words = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.pictures += [attributes] if tag == "img" else []
        self.charts += [attributes["aria-label"]] if tag == "svg" else []

    def handle_data(self, data):
        self.words += data + " "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shots, a still video, a black one, a broken one, and a picture. Tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("films")
    caption(mp4(folder / "two.mp4", torch.cat([pan(20, seed=1), pan(28, seed=2, step=2)])), 'two "shots" & <more>')
    caption(mp4(folder / "still.mp4", pan(1).expand(16, -1, -1, -1)))
    mp4(folder / "black.mp4", torch.zeros(16, 64, 96, 3))
    (folder / "broken.mp4").write_text("words")
    Image.fromarray((texture(64, 64, grain=2).numpy() * 255).astype("uint8")).save(caption(folder / "still.png"))
    return folder


def test_curation_keeps_drops_and_tells(folder, tmp_path, capsys):
    assert command.main(["curate", str(folder), "--out", str(tmp_path / "out"), "--best", "0.4"]) == 0
    printed = capsys.readouterr()
    assert "3 shots kept, 2 dropped (static 2, black 1, blurred 1), 1 problem\n" in printed.out
    assert "without a caption" not in printed.out
    assert "curating" in printed.err and "pictures of what was kept" in printed.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "kept.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["still.png", "two.mp4", "two.mp4"]
    assert rows[1].keys() == {"file_name", "start", "end", "text", "scores"}
    assert rows[1]["text"] == 'two "shots" & <more>'
    assert rows[0]["scores"]["motion"] is None and rows[1]["scores"]["aesthetic"] is None
    found = scan_folder(folder, listing=tmp_path / "out" / "kept.jsonl")
    assert [(clip.start, round(clip.end, 3)) for clip in found.clips[1:]] == [(0.0, 2.376), (2.5, 6.0)]
    assert not found.problems
    assert [clip.line.fields["scores"] for clip in found.clips] == [row["scores"] for row in rows]
    best = (tmp_path / "out" / "best.jsonl").read_text().splitlines()
    assert len(best) == 1 and json.loads(best[0]) in rows


def test_kept_films_without_a_caption_are_named(folder, tmp_path, capsys):
    films = shutil.copytree(folder, tmp_path / "films")
    (films / "two.txt").unlink()
    assert command.main(["curate", str(films), "--out", str(tmp_path / "out")]) == 0
    assert "1 kept file without a caption, which training needs: two.mp4\n" in capsys.readouterr().out


def test_the_page_stands_alone_and_shows_every_shot(folder, tmp_path):
    result = curate(folder, tmp_path, CurationThresholds(), progress=False)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "http" not in text and "<more>" not in text
    assert len(page.pictures) == len(result.shots) == 5
    for attributes in page.pictures:
        kind, data = attributes["src"].split(",")
        assert kind == "data:image/jpeg;base64" and attributes["alt"].startswith("middle frame of ")
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert min(picture.size) in (64, 96)
    assert len(page.charts) == 3 and page.charts[0].startswith("Motion: 4 shots from ")
    for words in ("3 kept", "2 dropped", "1 files or lines could not be used", "broken.mp4", "not measured", "static"):
        assert words in page.words, words


def test_a_scorer_decides_where_there_is_one(folder, tmp_path):
    result = curate(folder, tmp_path, scorer=lambda picture: 10 * float(picture[..., 0].mean()), progress=False)
    assert all(shot.scores["aesthetic"] is not None for shot in result.shots)
    low = [shot for shot in result.shots if shot.scores["aesthetic"] < 4.5]
    assert low and all("plain" in shot.reasons for shot in low)
    assert len(Page((tmp_path / "report.html").read_text()).charts) == 4


def test_what_cannot_be_curated_is_refused_and_leaves_nothing(folder, tmp_path):
    with pytest.raises(ValueError, match="min-aesthetic is 6.0"):  # nothing measures it
        command.main(["curate", str(folder), "--out", str(tmp_path / "out"), "--min-aesthetic", "6"])
    with pytest.raises(ValueError, match="holds no video or picture that can be used"):
        curate(tmp_path, tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_breaks_off_inside_is_a_problem_and_no_end(folder, tmp_path):
    folder = shutil.copytree(folder, tmp_path / "films")
    path = film(folder / "hole.mkv", torch.rand(64, 64, 96, 3))
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data) - 2000):
        data[at] = 0
    path.write_bytes(bytes(data))
    result = curate(folder, tmp_path / "out", progress=False)
    assert "hole.mkv" in [problem.name for problem in result.problems]
    assert {"still.png", "two.mp4"} == {shot.clip.name for shot in result.kept}


def shot(i: int, **scores) -> Shot:
    clip = VideoClip(Path(f"{i}.mp4"), f"{i}.mp4", "", 8, 8.0, 32, 32)
    return Shot(clip, {"motion": None, "sharpness": None, "black": 0.0, "aesthetic": None} | scores)


def test_the_best_fraction():
    scored = [shot(i, aesthetic=value) for i, value in enumerate([3.0, 9.0, 5.0, 8.0, 1.0, 2.0, 4.0, 6.0, 7.0, 0.0])]
    assert [each.clip.name for each in best_fraction(scored, 0.2)] == ["1.mp4", "3.mp4"]
    values = [(0.1, 0.1), (0.3, 0.3), (0.2, 0.9), (0.1, 0.2)]
    plain = [shot(i, sharpness=a, motion=b) for i, (a, b) in enumerate(values)]
    assert [each.clip.name for each in best_fraction(plain, 0.5)] == ["1.mp4", "2.mp4"]
    assert len(best_fraction(scored, 0.01)) == 1
    with pytest.raises(ValueError, match="the share is 0"):
        best_fraction(scored, 0.0)


def test_the_lists_of_curation_keep_what_others_wrote(folder, tmp_path, capsys):
    folder = shutil.copytree(folder, tmp_path / "films")
    row = {"file_name": "./two.mp4", "caption": "one\u2028two", "licence": "CC", "scores": {"own": 7}}
    write_lines(folder / "metadata.jsonl", [row])
    (folder / "notes.doc").touch()
    assert command.main(["curate", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "passed over: 1 .doc\n" in capsys.readouterr().out
    assert "passed over: 1 .doc" in Page((tmp_path / "out" / "report.html").read_text()).words
    kept = tmp_path / "out" / "kept.jsonl"
    rows = [json.loads(line) for line in kept.read_text().split("\n") if "two.mp4" in line]
    assert [(each["file_name"], each["text"], each["licence"]) for each in rows] == [("two.mp4", "one two", "CC")] * 2
    assert all("caption" not in each and each["scores"].keys() >= {"motion"} for each in rows)
    kept.write_bytes(b"\xef\xbb\xbf\r\n" + kept.read_bytes().replace(b"\n", b"\r\n"))
    again = scan_folder(folder, 0.0, kept, need_captions=False).clips
    assert [each.line.fields["scores"] for each in again][-2:] == [each["scores"] for each in rows]


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take no such names")
def test_names_of_any_bytes_are_curated(tmp_path):
    picture = Image.fromarray((texture(64, 64, grain=2).numpy() * 255).astype("uint8"))
    picture.save(tmp_path / os.fsdecode(b"caf\xe9.png"))
    result = curate(tmp_path, tmp_path / "out", progress=False)
    again = scan_folder(tmp_path, 0.0, tmp_path / "out" / "kept.jsonl", need_captions=False).clips
    assert [os.fsencode(each.name) for each in again] == [b"caf\xe9.png"] and len(result.kept) == 1
    assert "caf\\udce9.png" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
