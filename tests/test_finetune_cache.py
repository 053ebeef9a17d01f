"""`finetune` on what `data encode` made: pieces, one size, one length, other rates."""

import pytest

import minicogvx
from minicogvx import cli
from tests.test_finetune import films_and_model

CACHE = ["--num-frames", "5", "--height", "32", "--width", "32", "--windows", "2", "--one-size", "--one-length",
         "--fps", "12"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of videos, a model, and the cache that the model made of the videos."""
    home = films_and_model(tmp_path_factory.mktemp("home"))
    assert cli.main(["data", "encode", str(home / "films"), "--model", str(home / "model"), *CACHE, "--out",
                     str(home / "cache")]) == 0
    return home


def test_a_model_is_trained_on_a_cache(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("minicogvx.data.films.folder.scan_folder", lambda *_, **__: pytest.fail("videos were read"))
    assert cli.main(["finetune", str(home / "cache"), "--model", str(home / "model"), "--steps", "1", "--out",
                     str(tmp_path / "x")]) == 0, capsys.readouterr().err
    assert minicogvx.load(tmp_path / "x" / "pipeline").fps == 12 and not (tmp_path / "x" / "cache").exists()


@pytest.mark.parametrize("options, words", [
    (["--height", "32"], "--height says how videos are read"), (["--list", "kept.jsonl"], "--list says how videos"),
    (["--image-to-video"], "has no first frames; make it with --first-frame")])
def test_what_a_cache_cannot_give_is_refused(home, tmp_path, capsys, options, words):
    assert cli.main(["finetune", str(home / "cache"), "--model", str(home / "model"), "--steps", "1", "--out",
                     str(tmp_path / "x"), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_a_clip_says_why(home, tmp_path, capsys):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.doc").touch()
    assert cli.main(["finetune", str(tmp_path / "films"), "--model", str(home / "model"), "--out",
                     str(tmp_path / "x")]) == 2
    assert "holds no clip that can be used; passed over: 1 .doc" in capsys.readouterr().err
