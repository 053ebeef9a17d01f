"""Videos of the shapes world on disk, and the styles for a LoRA."""

from dataclasses import replace

import pytest
import torch

from minicogvx import cli
from minicogvx.data.films.decode import read_video
from minicogvx.data.films.folder import scan_folder
from minicogvx.data.world.captions import parse_caption
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.films import ShapeFilms, write_shape_films
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, ShapeObject, sample_scenes
from minicogvx.data.world.styles import (
    FIGURE,
    GROUND,
    STYLES,
    SURVIVES,
    as_seen,
    colours_of,
    render_styled,
    shows,
    style,
)
from minicogvx.files import locked

SCENES = sample_scenes(24, 9, "train", two_objects=0.0)


# ---- styles


def test_a_style_has_one_ground_and_one_figure_whatever_the_colours(subtests):
    for name, look in STYLES.items():
        with subtests.test(name):
            thing = ShapeObject("circle", "red", "stays still", 0.5, 0.5, 0.2)
            scenes = [Scene((replace(thing, colour=colour),), background)
                      for colour in COLOURS for background in BACKGROUNDS]
            videos = render_styled(scenes, look, 2, 32, 32)
            assert videos.shape == (32, 2, 32, 32, 3) and torch.equal(videos, videos[:1].expand_as(videos))
            assert videos[0, 0, 0, 0].tolist() == pytest.approx(look.ground, abs=1e-5)
            assert videos[0, 0, 16, 16].tolist() == pytest.approx(look.figure, abs=1e-5)
            ground, figure = colours_of(videos[0])
            assert ground.tolist() == pytest.approx(look.ground, abs=1e-5)
            assert figure.tolist() == pytest.approx(look.figure, abs=1e-5)


def test_no_colour_of_the_plain_world_is_taken_for_the_style(subtests):
    """Every background with every colour is at least 1.25 times further away than what counts, in both."""
    for name, look in STYLES.items():
        with subtests.test(name):
            others = [Scene((ShapeObject("circle", colour, "stays still", 0.5, 0.5, 0.2),), background)
                      for colour in COLOURS for background in BACKGROUNDS]
            for clip in render_batch(others, 2, 32, 32):
                ground, figure = colours_of(clip)
                assert (ground - torch.tensor(look.ground)).norm() > 1.25 * GROUND
                assert (figure - torch.tensor(look.figure)).norm() > 1.25 * FIGURE
            for other in STYLES.values():
                assert all(shows(clip, look) == (other is look) for clip in render_styled(SCENES[:4], other, 2, 32, 32))


def test_both_colours_must_be_the_styles(subtests):
    for name, look in STYLES.items():
        with subtests.test(name):
            clip = render_styled(SCENES[:1], look, 9, 64, 64)[0]
            noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
            assert shows(clip, look) and shows(clip + 0.03 * noise, look)
            figure = (clip - torch.tensor(look.ground)).norm(dim=-1, keepdim=True) > 0.2
            assert not shows(torch.where(figure, torch.tensor(COLOURS["red"]), clip), look)
            assert not shows(torch.where(figure, clip, torch.tensor(BACKGROUNDS["grey"])), look)
            assert not shows(torch.tensor(look.ground).expand_as(clip), look)  # no figure at all


def test_shape_motion_and_count_survive(subtests):
    for name, look in STYLES.items():
        with subtests.test(name):
            for scene, clip in zip(SCENES, render_styled(SCENES, look, 17, 64, 64)):
                verdict = matches(read(as_seen(clip, look)), scene)
                assert all(verdict[name] for name in SURVIVES), (scene, verdict)
                thing = scene.objects[0]
                other = Scene((replace(thing, shape="ring" if thing.shape == "bar" else "bar"),), "grey")
                assert not matches(read(as_seen(clip, look)), other)["shape"]
    assert {scene.objects[0].shape for scene in SCENES} == set(SHAPES)


def test_plain_is_the_world_as_it_is_and_other_names_are_refused():
    assert torch.equal(render_styled(SCENES[:2], style("plain"), 5, 16, 16), render_batch(SCENES[:2], 5, 16, 16))
    with pytest.raises(ValueError, match="style is 'noir'; it must be one of plain, sepia, cyanotype"):
        style("noir")
    scene, look = sample_scenes(1, 0, "train", two_objects=1.0)[0], STYLES["sepia"]  # two objects are painted both
    seen = as_seen(render_styled([scene], look, 17, 64, 64)[0], look)
    alone = [as_seen(render_styled([replace(scene, objects=(thing,))], look, 17, 64, 64)[0], look)
             for thing in scene.objects]
    assert torch.allclose(seen, (alone[0] + alone[1]).clamp(0, 1), atol=1e-4)


# ---- videos


def test_videos_are_what_the_scenes_are_and_training_can_read_them(tmp_path):
    films = ShapeFilms(6, seed=4)
    assert write_shape_films(tmp_path / "a", films, progress=False) == 6
    found = scan_folder(tmp_path / "a")
    assert len(found.clips) == 6 and not found.problems
    assert all(clip.frames == 17 and clip.fps == 8 and clip.height == clip.width == 128 for clip in found.clips)
    for scene, clip in zip(sample_scenes(6, 4, "train", 0.0), found.clips):
        video = read_video(clip.path, 17, 64, 64, 8)
        assert matches(read(video), scene)["all"] and matches(read(video), parse_caption(clip.caption))["all"]
    write_shape_films(tmp_path / "b", films, progress=False)
    write_shape_films(tmp_path / "c", replace(films, seed=5), progress=False)
    first, same, other = ([read_video(path, 17, 64, 64, 8) for path in sorted((tmp_path / name).glob("*.mp4"))]
                          for name in "abc")
    assert all(torch.equal(x, y) for x, y in zip(first, same))
    assert not any(torch.equal(x, y) for x, y in zip(first, other))


def test_styled_videos_still_have_the_look_after_the_codec(tmp_path):
    write_shape_films(tmp_path, ShapeFilms(3, "sepia", frames=9), progress=False)
    wanted = render_styled(sample_scenes(3, 0, "train", 0.0), STYLES["sepia"], 9, 64, 64)
    for clip, true in zip(scan_folder(tmp_path).clips, wanted):
        video = read_video(clip.path, 9, 64, 64, 8)
        assert shows(video, STYLES["sepia"]) and (video - true).square().mean() < 10 ** -3


def test_the_same_command_goes_on_and_any_other_folder_is_refused(tmp_path, capsys):
    command = ["data", "shapes", str(tmp_path / "films"), "--clips", "3", "--frames", "9", "--side", "32"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'films'}: 3 videos and captions\n"
    text = (tmp_path / "films" / "shape-00001.txt").read_text()
    (tmp_path / "films" / "shape-00001.mp4").unlink()
    (tmp_path / "films" / "shape-00001.txt").unlink()
    assert cli.main(command) == 0
    assert "3 videos and captions, 2 of them already present" in capsys.readouterr().out
    assert (tmp_path / "films" / "shape-00001.txt").read_text() == text
    assert cli.main([*command, "--style", "sepia"]) == 2
    assert "was begun with style='plain', not 'sepia'; name a new or empty folder" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.mp4").write_bytes(b"film")
    assert cli.main(["data", "shapes", str(tmp_path / "mine"), "--clips", "3"]) == 2
    assert "holds other files; name a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["holiday.mp4"]
    assert cli.main(["data", "shapes", str(tmp_path / "mine" / "holiday.mp4"), "--clips", "3"]) == 2
    assert "is a file; name a new or empty folder" in capsys.readouterr().err


def test_two_at_once_do_not_mix_and_a_changed_caption_stays(tmp_path, capsys):
    films = tmp_path / "films"
    command = ["data", "shapes", str(films), "--clips", "2", "--frames", "9", "--side", "32"]
    with locked(films):
        assert cli.main(command) == 2
        assert f"{films} is in use by another run" in capsys.readouterr().err
    films.mkdir()
    (films / ".lock").touch()  # a killed run left it
    assert cli.main(command) == 0 and not (films / ".lock").exists()
    (films / "shape-00001.txt").write_text("mine")
    (films / "shape-00001.mp4").unlink()
    assert cli.main(command) == 0
    assert (films / "shape-00001.txt").read_text() == "mine" and (films / "shape-00001.mp4").exists()


def test_mistakes_are_one_sentence_and_leave_nothing(tmp_path, capsys, subtests):
    cases = [
        (["--clips", "0"], "clips is 0; it must be 1 or more"),
        (["--clips", "2", "--style", "noir"], "style is 'noir'"),
        (["--clips", "2", "--side", "33"], "side is 33; it must be an even number, 16 or more"),
        (["--clips", "2", "--frames", "8"], "frames is 8; it must be 9 or more"),
        (["--clips", "2", "--two-objects", "1.5"], "two-objects is 1.5; it must be from 0 to 1"),
    ]
    for options, sentence in cases:
        with subtests.test(sentence):
            assert cli.main(["data", "shapes", str(tmp_path / "films"), *options]) == 2
            told = capsys.readouterr().err
            assert sentence in told and told.count("\n") == 1 and not list(tmp_path.iterdir())
