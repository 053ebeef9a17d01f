"""A run of `train` or `finetune` writes over nothing that is not its own."""

import json

import pytest

from minicogvx import cli
from minicogvx.engine.run_folder import forget_failed_start
from minicogvx.training.lora import FILE
from tests.test_finetune import films_and_model

LIST = '{"file_name": "a.mp4", "text": "a red circle"}\n'
ROW = '{"step": 0, "loss": 1.0, "grad_norm": 1.0, "seconds": 0.1}\n'


@pytest.mark.parametrize("name, content", [
    ("a.jsonl", LIST), ("a.jsonl", ROW), ("run.json", '{"steps": 1, "seed": 0}'), ("run.json", "my notes"),
    ("run.json", ""), ("first.png", "mine")])
def test_what_lies_in_a_new_folder_under_the_names_of_a_run_is_left_alone(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"holds {name}, which this run did not make"):
        forget_failed_start(tmp_path / "run.json", ["*.jsonl"], ["first.png"])
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize("content, ours", [
    (ROW, True), (ROW + ROW[:20], True), (ROW[:5], True), ("", True), (ROW[:20] + ROW + "\0" * 9, True), (LIST, False),
    (ROW + LIST, False), ("my notes", False), ('{"step": 1, "file_name": "a.mp4"}\n', False), ("[1]\n7\n", False)])
def test_of_logs_only_those_of_runs_are_forgotten(tmp_path, content, ours):
    record, log = tmp_path / "run.json", tmp_path / "finetune.jsonl"
    record.write_text(json.dumps({"steps": 1, "seed": 0, "device": "cpu", "torch": "2"}))
    log.write_text(content)
    if ours:
        forget_failed_start(record, ["*.jsonl"])
        assert not list(tmp_path.iterdir())
        return
    with pytest.raises(ValueError, match="holds finetune.jsonl, which this run did not make"):
        forget_failed_start(record, ["*.jsonl"])
    assert log.read_text() == content and record.exists()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Videos and a model."""
    return films_and_model(tmp_path_factory.mktemp("folder"))


def command(home, out, *options, model=None):
    return cli.main(["finetune", str(home / "films"), "--model", str(model or home / "model"), "--out", str(out),
                     "--dtype", "float32", "--device", "cpu", *map(str, options)])


@pytest.mark.parametrize("made", ["pipeline/model_index.json", FILE, "cats.safetensors", "finetune.jsonl",
                                  "finetuning.json", "first_frame.png"])
def test_a_folder_with_foreign_results_is_left_alone(home, tmp_path, capsys, monkeypatch, made):
    monkeypatch.setattr("minicogvx.data.films.folder.scan_folder", lambda *_, **__: pytest.fail("videos were read"))
    (tmp_path / made).parent.mkdir(exist_ok=True)
    (tmp_path / made).write_text("mine")
    assert command(home, tmp_path, "--steps", 1, "--image-to-video") == 2
    told = capsys.readouterr().err
    assert "which this run did not make and would write over; name another folder" in told and told.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / made]
    assert (tmp_path / made).read_text() == "mine"


def test_what_an_option_names_is_not_written_over(home, tmp_path, capsys):
    out = tmp_path / "run"
    assert command(home, out, "--steps", 1, "--lora", 2) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (tmp_path / "link.jsonl").symlink_to(out / "finetune.jsonl")
    for options in (("--lora-from", out), ("--lora", 2, "--list", tmp_path / "link.jsonl")):
        assert command(home, out, "--steps", 1, *options) == 2
        assert f"is to be written, and it is what {options[-2]} names" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_model_without_weights_and_a_folder_of_another_run_are_named_before_a_video_is_read(home, tmp_path, capsys,
                                                                                            monkeypatch):
    out = tmp_path / "run"
    assert command(home, out, "--steps", 1, "--lora", 2) == 0
    monkeypatch.setattr("minicogvx.data.films.folder.scan_folder", lambda *_, **__: pytest.fail("videos were read"))
    for model in ("micro", "5b"):
        assert command(home, tmp_path / "new", "--lora", 2, model=model) == 2
        assert f"the weights of {model!r} are not shipped" in capsys.readouterr().err
    assert command(home, out, "--steps", 1, "--lora", 4) == 2
    assert "was begun with lora_rank=2, not 4" in capsys.readouterr().err
