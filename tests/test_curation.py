"""Curation: flow and the other measures on videos with known content, shots, decisions, and the report."""

import base64
import io
import json
import math
import os
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from films import caption, film, mp4, pan, texture
from PIL import Image

from minicogvx.data import command
from minicogvx.data.films.curate import CurationThresholds, best_fraction, curate
from minicogvx.data.films.decode import read_video
from minicogvx.data.films.flow import motion_strength, optical_flow
from minicogvx.data.films.folder import VideoClip, read_clip, scan_folder
from minicogvx.data.films.listing import write_lines
from minicogvx.data.films.shots import (
    Shot,
    Track,
    content_change,
    find_cuts,
    find_shots,
    histogram_change,
    measure,
    sharpness,
)
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import sample_scenes

ROOT = Path(__file__).resolve().parents[1]


def waves(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A texture that is known between the pixels, too: waves of 12 to 100 pixels, the longer the
    stronger, as in pictures."""
    generator, total = torch.Generator().manual_seed(0), torch.zeros_like(x)
    for a, b, c in torch.rand(24, 3, generator=generator).tolist():
        length, angle, phase = 12 + 88 * a, 2 * math.pi * b, 2 * math.pi * c
        total += length * torch.sin(2 * math.pi / length * (math.cos(angle) * x + math.sin(angle) * y) + phase)
    return 0.5 + total / 1200


def grid(h: int = 96, w: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij")
    return x, y


# ---- optical flow


@pytest.mark.parametrize("dx, dy, share", [(0.3, -0.2, 0.95), (1.0, 0.0, 0.95), (-2.5, 1.5, 0.95), (6.0, -4.0, 0.95),
                                           (-11.0, 9.0, 0.8)])
def test_flow_of_a_shift_is_that_shift_at_most_pixels(dx, dy, share):
    x, y = grid()
    flow = optical_flow(waves(x, y)[None], waves(x - dx, y - dy)[None])
    inner = flow[0, :, 28:-28, 28:-28]
    assert (inner - torch.tensor([dx, dy])[:, None, None]).norm(dim=0).quantile(share) < 0.15
    assert motion_strength(flow[..., 28:-28, 28:-28]).item() * 40 == pytest.approx(math.hypot(dx, dy), rel=0.05)


def test_flow_of_a_turn_and_a_zoom():
    x, y = grid()
    u, v, angle, scale = x - 63.5, y - 47.5, math.radians(3), 1.04
    there = (scale * (math.cos(angle) * u - math.sin(angle) * v), scale * (math.sin(angle) * u + math.cos(angle) * v))
    back = ((math.cos(angle) * u + math.sin(angle) * v) / scale, (math.cos(angle) * v - math.sin(angle) * u) / scale)
    flow = optical_flow(waves(u, v)[None], waves(*back)[None])[0]
    error = torch.stack([flow[0] - (there[0] - u), flow[1] - (there[1] - v)]).norm(dim=0)
    assert error[28:-28, 28:-28].mean() < 0.25  # of up to 2.6 pixels: the motion is not the same within a window


def test_flow_of_what_does_not_move_is_none():
    x, y = grid(32, 48)
    still = waves(x, y)[None].repeat(2, 1, 1)
    assert optical_flow(still, still).abs().max() < 1e-9
    assert optical_flow(torch.full((1, 32, 48), 0.2), torch.full((1, 32, 48), 0.7)).abs().max() == 0  # no texture


def test_only_the_square_that_moves_has_flow():
    background, square = texture(64, 96)[..., 0], texture(20, 20, seed=1, grain=4)[..., 0]
    frames = torch.stack([background, background])
    frames[0, 22:42, 30:50], frames[1, 22:42, 33:53] = square, square
    flow = optical_flow(frames[:1], frames[1:])[0]
    assert (flow[:, 27:37, 36:44].mean((1, 2)) - torch.tensor([3.0, 0.0])).abs().max() < 0.3
    assert flow[:, :, :16].norm(dim=0).mean() < 0.05 and flow[:, :, 76:].norm(dim=0).mean() < 0.05


def test_a_bad_window_is_refused():
    with pytest.raises(ValueError, match="window is 4"):
        optical_flow(torch.zeros(1, 32, 32), torch.zeros(1, 32, 32), window=4)
    with pytest.raises(ValueError, match="at most the frame's 5"):
        optical_flow(torch.zeros(1, 5, 32), torch.zeros(1, 5, 32))


# ---- measures and shots


def blurred(video: torch.Tensor, sigma: float) -> torch.Tensor:
    steps = torch.arange(-int(4 * sigma), int(4 * sigma) + 1)
    kernel = torch.exp(-steps**2 / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    for axis in (1, 2):
        moved = video.movedim(axis, -1)
        edge = torch.nn.functional.pad(moved.reshape(-1, 1, moved.shape[-1]), (len(steps) // 2,) * 2, mode="replicate")
        video = torch.nn.functional.conv1d(edge, kernel).view(moved.shape).movedim(-1, axis)
    return video


def test_sharpness_falls_with_blur_and_not_with_contrast():
    picture = texture(96, 128, grain=2)[None]
    grey = [blurred(picture, sigma)[..., 0] if sigma else picture[..., 0] for sigma in (0, 1, 2, 4)]
    values = [sharpness(frame).item() for frame in grey]
    assert values == sorted(values, reverse=True) and values[0] > 3 * values[2]
    assert sharpness(0.3 + 0.2 * grey[1]).item() == pytest.approx(values[1], rel=1e-3)
    assert sharpness(torch.full((1, 20, 20), 0.5)).item() == 0


def test_changes_of_colour_and_of_content():
    red, blue = torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    half = torch.cat([red[:, :4], blue[:, 4:]], dim=1)
    assert histogram_change(torch.cat([red, red, half, blue])).tolist() == [0, 0.5, 0.5]
    assert content_change(torch.cat([red, blue])).tolist() == pytest.approx([2 / 3])
    turned = half.flip(1)  # the same colours elsewhere
    both = torch.cat([half, turned])
    assert histogram_change(both).item() == 0 and content_change(both).item() > 0.5


def real_film() -> torch.Tensor:
    """Two seconds at 180 x 320 pixels."""
    return read_video(ROOT / "data" / "clips" / "big_buck_bunny.mp4", 16, 180, 320, fps=8)


def test_a_real_video_has_no_fault(tmp_path):
    mp4(tmp_path / "rabbit.mp4", real_film())
    shot, = find_shots(only_clip(tmp_path))
    assert shot.reasons == (), shot.scores


def only_clip(folder) -> VideoClip:
    clip, = scan_folder(folder, need_captions=False).clips
    return clip


def test_a_video_of_two_shots_is_cut_between_them(tmp_path):
    mp4(tmp_path / "two.mp4", torch.cat([pan(20, seed=1), pan(28, seed=2)]))
    clip = only_clip(tmp_path)
    first, second = find_shots(clip)
    assert (first.clip.start, second.clip.end) == (0, clip.end) and first.reasons == second.reasons == ()
    assert 19 / 8 < first.clip.end <= second.clip.start == 20 / 8
    for shot, true in ((first, pan(20, seed=1)), (second, pan(28, seed=2))):  # no frame of the one in the other
        seen = read_clip(shot.clip, 0.0, len(true), 8, 64, 96)
        assert (seen - true).abs().mean((1, 2, 3)).max() < 0.05  # another shot: 0.23


def test_neither_a_fast_pan_nor_a_sudden_start_nor_a_fade_is_a_cut(tmp_path):
    mp4(tmp_path / "a.mp4", pan(24, step=9))
    mp4(tmp_path / "b.mp4", torch.cat([pan(12)[:1].expand(12, -1, -1, -1), pan(13, step=6)]))
    mp4(tmp_path / "c.mp4", pan(24) * torch.linspace(1, 0, 24)[:, None, None, None])
    for clip in scan_folder(tmp_path, need_captions=False).clips:
        assert find_cuts(measure(clip, 8.0), CurationThresholds()) == [], clip.name


def test_shots_of_the_shapes_world_are_whole_and_move(tmp_path):
    scenes = sample_scenes(12, seed=3)
    moving = [scene for scene in scenes if scene.objects[0].motion not in ("stays still", "grows", "shrinks")][:4]
    for i, scene in enumerate(moving):
        mp4(tmp_path / f"{i}.mp4", render(scene, 17, 64, 64))
    for clip in scan_folder(tmp_path, need_captions=False).clips:
        shot, = find_shots(clip)
        assert shot.reasons == (), (clip.name, shot.scores)


@pytest.mark.parametrize("video, reason", [
    (pan(16)[:1].expand(16, -1, -1, -1), "static"), (torch.full((16, 64, 96, 3), 0.01), "black"), (2.0, "blurred")])
def test_each_fault_is_named(tmp_path, video, reason):
    video = blurred(real_film(), video) if reason == "blurred" else video
    mp4(tmp_path / "bad.mp4", video)
    shot, = find_shots(only_clip(tmp_path))
    assert reason in shot.reasons, shot.scores
    if reason != "black":
        assert shot.reasons == (reason,), shot.scores


def test_speed_is_measured_in_shorter_sides_a_second(tmp_path):
    mp4(tmp_path / "pan.mp4", pan(17, 64, 96, step=2))  # 16 pixels a second of 64
    shot, = find_shots(only_clip(tmp_path))
    assert shot.scores["motion"] == pytest.approx(16 / 64, rel=0.1)


def test_thresholds_are_checked():
    with pytest.raises(ValueError, match="min_motion is -1.0"):
        CurationThresholds(min_motion=-1.0)
    with pytest.raises(ValueError, match="fps is 0.0; it must be a number above 0, at most 240"):
        CurationThresholds(fps=0.0)


# ---- a folder


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


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    caption(mp4(folder / "two.mp4", torch.cat([pan(20, seed=1), pan(28, seed=2, step=2)])), 'two "shots" & <more>')
    caption(mp4(folder / "still.mp4", pan(1).expand(16, -1, -1, -1)))
    mp4(folder / "black.mp4", torch.zeros(16, 64, 96, 3))
    (folder / "broken.mp4").write_text("words")
    Image.fromarray((texture(64, 64, grain=2).numpy() * 255).astype("uint8")).save(caption(folder / "still.png"))
    return folder


def test_curation_keeps_drops_and_tells(folder, tmp_path, capsys):
    assert command.main(["curate", str(folder), "--out", str(tmp_path / "out"), "--best", "0.4"]) == 0
    assert "3 shots kept, 2 dropped (static 2, black 1, blurred 1), 1 problems" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "kept.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["still.png", "two.mp4", "two.mp4"]
    assert rows[1].keys() == {"file_name", "start", "end", "text", "scores"}
    assert rows[1]["text"] == 'two "shots" & <more>'
    assert rows[0]["scores"]["motion"] is None and rows[1]["scores"]["aesthetic"] is None
    found = scan_folder(folder, listing=tmp_path / "out" / "kept.jsonl")
    assert [(clip.start, round(clip.end, 3)) for clip in found.clips[1:]] == [(0.0, 2.376), (2.5, 6.0)]
    assert not found.problems
    best = (tmp_path / "out" / "best.jsonl").read_text().splitlines()
    assert len(best) == 1 and json.loads(best[0]) in rows


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


def test_a_quick_motion_that_begins_with_a_cut_is_no_second_cut():
    content = [0.005] * 16 + [0.078, 0.086, 0.066, 0.042] + [0.016] * 8
    colours = [0.01] * 16 + [0.119, 0.014, 0.017, 0.012] + [0.013] * 8
    for order, cut in ((1, 17), (-1, 12)):  # ... or ends with it
        track = Track(content=content[::order], histogram=colours[::order])
        assert find_cuts(track, CurationThresholds()) == [cut]
    still, cut = [0.005] * 8, [0.3]
    apart = Track(content=still + cut + still[:2] + cut + still, histogram=still + [0.9] + still[:2] + [0.9] + still)
    assert find_cuts(apart, CurationThresholds()) == [9, 12]


def test_a_limit_without_a_scorer_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="min-aesthetic is 6.0, and nothing measures it"):
        command.main(["curate", str(folder), "--out", str(tmp_path / "out"), "--min-aesthetic", "6"])
    assert not (tmp_path / "out").exists()


def test_a_video_that_breaks_off_inside_is_a_problem_and_no_end(folder, tmp_path):
    path = film(folder / "hole.mkv", torch.rand(64, 64, 96, 3))
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data) - 2000):
        data[at] = 0
    path.write_bytes(bytes(data))
    result = curate(folder, tmp_path, progress=False)
    assert "hole.mkv" in [problem.name for problem in result.problems]
    assert {"still.png", "two.mp4"} == {shot.clip.name for shot in result.kept}


def test_a_folder_without_videos_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no video or picture that can be used"):
        curate(tmp_path, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


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


def test_kept_shots_are_read_back(folder, tmp_path):
    result = curate(folder, tmp_path, progress=False)
    again = scan_folder(folder, 0.0, tmp_path / "kept.jsonl", need_captions=False).clips
    assert [each.line.fields["scores"] for each in again] == [each.scores for each in result.kept]


def test_the_lists_of_curation_keep_what_others_wrote(folder, tmp_path, capsys):
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
