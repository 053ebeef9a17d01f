"""The folder of a run: nothing in it that is not its own is written over, and whatever ended a run, the next one works.

How runs are resumed, bit for bit: test_loop.py, test_train.py, test_train_ranks.py.
"""

import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minicogvx import cli
from minicogvx.engine.run_folder import has_begun
from minicogvx.files import locked
from minicogvx.training.lora import FILE
from minicogvx.training.run import Keep, Run
from minicogvx.training.settings import VAEStage
from minicogvx.training.stages import Stage
from tests.trained import LOSS, RECIPE, recipe_file

LIST = '{"file_name": "a.mp4", "text": "a red circle"}\n'
ROW = '{"step": 0, "loss": 1.0, "grad_norm": 1.0, "seconds": 0.1}\n'
RECORD = json.dumps({"steps": 1, "seed": 0, "device": "cpu", "torch": "2"})
SHORT = replace(RECIPE, clips=4, vae=replace(RECIPE.vae, stages=(VAEStage(1, 2, num_frames=5, loss=LOSS),)),
                transformer=replace(RECIPE.transformer, sample_every=2,
                                    stages=(Stage(1, 2, num_frames=5, height=16, width=16), Stage(1, 2))))


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- the rule


def test_what_lies_in_a_new_folder_under_the_names_of_a_run_is_left_alone(tmp_path, subtests):
    for name, content in (("a.jsonl", LIST), ("a.jsonl", ROW), ("run.json", '{"steps": 1, "seed": 0}'),
                          ("run.json", "my notes"), ("run.json", ""), ("first.png", "mine"),
                          ("pipeline", "mine"), ("cats.safetensors", "mine")):
        with subtests.test(name=name, content=content):
            (tmp_path / name).write_text(content)
            with pytest.raises(ValueError, match=f"holds {name}, which this run did not make"):
                has_begun(tmp_path / "run.json", ["*.jsonl"], ["first.png"])
            assert (tmp_path / name).read_text() == content
            (tmp_path / name).unlink()


def test_of_logs_only_those_of_runs_are_forgotten(tmp_path, subtests):
    record, log = tmp_path / "run.json", tmp_path / "transformer.jsonl"
    for content, ours in ((ROW, True), (ROW + ROW[:20], True), (ROW[:5], True), ("", True),
                          (ROW[:20] + ROW + "\0" * 9, True), (LIST, False), (ROW + LIST, False), ("my notes", False),
                          ('{"step": 1, "file_name": "a.mp4"}\n', False), ("[1]\n7\n", False)):
        with subtests.test(content=content):
            record.write_text(RECORD)
            log.write_text(content)
            if ours:
                assert not has_begun(record, ["*.jsonl"])
                assert list(tmp_path.iterdir()) == [record]
                continue
            with pytest.raises(ValueError, match="holds transformer.jsonl, which this run did not make"):
                has_begun(record, ["*.jsonl"])
            assert log.read_text() == content and record.exists()


def test_a_start_that_came_to_nothing_does_not_count_and_another_does(tmp_path, subtests):
    for left in (None, "checkpoints/transformer_00000002/a", "vae.safetensors", FILE, "pipeline/model_index.json"):
        with subtests.test(left=left):
            folder = tmp_path / str(left).replace("/", "_")
            (folder / "cache").mkdir(parents=True)
            (folder / "cache" / "clips-00000.safetensors").touch()
            (folder / "run.json").write_text(RECORD)
            if left:
                (folder / left).parent.mkdir(parents=True, exist_ok=True)
                (folder / left).touch()
            assert has_begun(folder / "run.json") == bool(left) and (folder / "run.json").exists()


# ---- by the command


@pytest.fixture(scope="module")
def finetune(clips, tiny_folder):
    """`minicogvx finetune` of the tiny model on `clips`, with a status that is asserted."""
    def run(out, *options, status=0, data=None, model=None):
        assert cli.main(["finetune", str(data or clips.folder), "--model", str(model or tiny_folder), "--out", str(out),
                         "--dtype", "float32", "--device", "cpu", *map(str, options)]) == status

    return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> str:
    """A short training on the shapes world, as a file."""
    return recipe_file(tmp_path_factory.mktemp("recipe"), SHORT)


@pytest.fixture(scope="module")
def home(tmp_path_factory, finetune, films, recipe) -> Path:
    """One run of each kind."""
    home = tmp_path_factory.mktemp("home")
    assert cli.main(["train", recipe, "--out", str(home / "world"), "--threads", "1"]) == 0
    finetune(home / "lora", "--steps", 1, "--lora", 2)
    finetune(home / "image", "--steps", 1, "--image-to-video", data=films)
    return home


def test_of_all_that_a_run_writes_nothing_is_written_over(home, finetune, films, recipe, tmp_path, capsys, monkeypatch,
                                                          subtests):
    names = {path.name for kind in home.iterdir() for path in kind.iterdir()}
    assert names == {"recipe.json", "minutes.json", "vae_0.jsonl", "transformer.jsonl", "vae.safetensors", "cache",
                     "checkpoints", "samples", "pipeline", FILE, "first_frame.png", "films.json"}
    with monkeypatch.context() as patch:
        patch.setattr("minicogvx.training.train._train", lambda *_: pytest.fail("work has begun"))
        for name in sorted(names - {"cache"} | {"vae_11.jsonl", "cats.safetensors"}):
            for kind in ("films", "world"):
                if (name, kind) == ("first_frame.png", "world"):  # which such a run does not write
                    continue
                with subtests.test(name=name, kind=kind):
                    out = tmp_path / f"{kind} {name}"
                    made = out / name / "mine" if any((run / name).is_dir() for run in home.iterdir()) else out / name
                    made.parent.mkdir(parents=True)
                    made.write_text("mine")
                    if kind == "films":
                        finetune(out, "--steps", 1, "--image-to-video", data=films, status=2)
                    else:
                        assert cli.main(["train", recipe, "--out", str(out)]) == 2
                    assert "which this run did not make" in capsys.readouterr().err
                    assert files(out) == {made: b"mine"}
    mine = tmp_path / "run" / "cache" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    finetune(tmp_path / "run", "--steps", 1, data=films)
    assert mine.read_text() == "mine", "clips are added beside it"


def test_what_an_option_names_is_not_written_over(home, finetune, recipe, tmp_path, capsys, subtests):
    out = tmp_path / "run"
    shutil.copytree(home / "lora", out)
    shutil.copytree(home / "world", tmp_path / "world")
    before = files(tmp_path)
    (tmp_path / "link.jsonl").symlink_to(out / "transformer.jsonl")
    train = ["train", recipe, "--out", str(tmp_path / "world")]
    for option, value, words in (
            ("--lora-from", out, None), ("--list", tmp_path / "link.jsonl", None),
            ("--from", tmp_path / "world" / "pipeline", train), ("--encoders", tmp_path / "world" / "pipeline", train)):
        with subtests.test(option):
            if words:
                assert cli.main([*words, option, str(value)]) == 2
            else:
                finetune(out, "--steps", 1, option, value, status=2)
            assert f"is to be written, and it is what {option} names" in capsys.readouterr().err
    assert {path: data for path, data in files(tmp_path).items() if not path.is_symlink()} == before


def test_a_run_knows_the_model_the_seed_and_the_sizes_it_was_begun_with(home, finetune, recipe, capsys, tmp_path,
                                                                       monkeypatch):
    monkeypatch.setattr("minicogvx.training.train._train", lambda *_: pytest.fail("work has begun"))
    finetune(home / "lora", "--steps", 1, "--lora", 2, model=home / "image" / "pipeline", status=2)
    assert capsys.readouterr().err.count("\n") == 1
    finetune(home / "lora", "--steps", 1, "--lora", 2, model=home / "world" / "pipeline", status=2)
    assert "was begun with weights of the model=" in capsys.readouterr().err
    deeper = recipe_file(tmp_path, replace(SHORT, sizes=replace(SHORT.sizes, transformer=replace(
        SHORT.sizes.transformer, num_layers=3))))
    for words, told in (([recipe, "--seed", "1"], "was begun with seed=0, not 1"),
                        ([deeper], "was begun with sizes.transformer.num_layers=2, not 3")):
        assert cli.main(["train", *words, "--out", str(home / "world")]) == 2
        assert told in capsys.readouterr().err


def test_places_that_cannot_be_written_and_a_folder_in_use(finetune, recipe, tmp_path, capsys, monkeypatch, subtests):
    monkeypatch.setattr("minicogvx.training.train._train", lambda *_: pytest.fail("work has begun"))
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with subtests.test(place=place.name[:9]):
            finetune(place, "--steps", 1, status=2)
            told = capsys.readouterr().err
            assert f"{place} cannot be written" in told and told.count("\n") == 1
    with locked(tmp_path / "run"):
        finetune(tmp_path / "run", status=2)
        assert f"{tmp_path / 'run'} is in use by another run" in capsys.readouterr().err
        assert cli.main(["train", recipe, "--out", str(tmp_path / "run")]) == 2
        assert "is in use by another run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_mistakes_that_are_found_before_anything_is_made(films, tiny_folder, recipe, tmp_path, capsys, monkeypatch,
                                                         subtests):
    """Whatever kind of error it is, the process group is left, too."""
    left, out = [], tmp_path / "run"
    monkeypatch.setattr("minicogvx.engine.ranks.leave", lambda: left.append(True))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("minicogvx.training.train._train", lambda *_: pytest.fail("work has begun"))
    for words, told in (
            (["train", recipe, "--seed", str(2**32)], "--seed is 4294967296; it must be from 0 to 4294967295"),
            (["train", recipe, "--device", "cuda"], "device is 'cuda'"),
            (["train", recipe, "--set", "transformer.max_text_seq_length=3"], "max_text_seq_length"),
            (["train", recipe, "--set", "sizes.transformer.max_text_seq_length=20"], "max_text_seq_length is 20; "),
            (["train", recipe, "--set", "sizes.text.d_model=64"], "64 wide"),
            (["train", recipe, "--set", "sizes.vae.latent_channels=5"], "cannot be trained"),
            (["train", recipe, "--set", "vae.stages.0.frame_rates=(12,)"], "frame_rates is (12,)"),
            (["train", recipe, "--set", "transformer.accumulate=65"], "accumulate is 65; it must be from 1 to 2"),
            (["train", recipe, "--set", "transformer.stages.0.height=48"], "48x16"),
            (["finetune", films, "--set", "accumulate=3"], "accumulate is 3; it must be from 1 to 2"),
            (["finetune", films, "--num-frames", "10"], "num_frames is 10"),
            (["finetune", films, "--set", "stages.0.pack=79"], "pack is 79; it must be at least 80"),
            (["finetune", films, "--set", "offload=True"], "offload is True"),
            (["finetune", films, "--stage", "5"], "--stage is 5")):
        with subtests.test(words=words[2:]):
            options = ["--model", str(tiny_folder)] if words[0] == "finetune" else []
            assert cli.main([*map(str, words), *options, "--out", str(out)]) == 2
            error = capsys.readouterr().err
            assert re.search(re.escape(told), error) and error.count("\n") == 1 and not out.exists()
    assert len(left) > 5


def test_a_start_that_failed_does_not_block_the_next(finetune, films, tmp_path, capsys, monkeypatch):
    (tmp_path / "bare").mkdir()
    shutil.copy(films / "0.mp4", tmp_path / "bare")
    out = tmp_path / "cats.safetensors"  # a folder may be called as files are
    finetune(out, data=tmp_path / "bare", status=2)
    assert "0.mp4: has no caption" in capsys.readouterr().err and not out.exists()

    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    for work in ("vae.CausalVAE.encode", "training.transformer.TransformerTask.backward", "vae.CausalVAE.encode"):
        shutil.rmtree(out / "cache", ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(f"minicogvx.{work}", no_memory)
            finetune(out, "--steps", 2, "--batch-size", 3, data=films, status=2)
            assert "there is not enough memory" in capsys.readouterr().err
    finetune(out, "--steps", 1, "--lora", 2, data=films)
    assert "resuming" not in capsys.readouterr().out and (out / FILE).is_file()
    out = tmp_path / "killed"
    left = [out / name for name in ("checkpoints/.tmpAb12Cd", "checkpoints/.transformer_00000001.part/a.safetensors",
                                    "cache/.clips-00000.0123abcd.part.safetensors")]
    for path in left:  # by runs that were killed
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    finetune(out, "--steps", 1, data=films)
    assert not any(path.exists() for path in left)


def test_a_signal_ends_a_run_with_a_checkpoint_and_a_second_one_at_once(finetune, tmp_path, capsys, monkeypatch):
    real, before = Run.record, signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(run, *arguments, **values):
        if run.done == 1:
            signal.raise_signal(signal.SIGTERM if run.keep.folder.name == "term" else signal.SIGINT)
        real(run, *arguments, **values)

    def twice(run, *arguments, **values):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was not heard")

    try:
        for name in ("int", "term", "twice"):
            monkeypatch.setattr(Run, "record", twice if name == "twice" else interrupted)
            finetune(tmp_path / name, "--steps", 4, status=130)
            last = "stopped" if name == "twice" else "stopped after step 2; run the same command again to resume"
            assert capsys.readouterr().err.splitlines()[-1] == f"minicogvx: {last}"
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert not (tmp_path / name / ".lock").exists()
            found = sorted(path.name for path in (tmp_path / name).glob("checkpoints/*"))
            assert found == ([] if name == "twice" else ["transformer_00000002"])
        run = Run("none", 2, Keep(progress=False))
        run.resume({})
        found = [signal.getsignal(signal.SIGINT) for _ in run]
        assert found == [signal.default_int_handler] * 2, "a run without a folder has no use for it"
    finally:
        signal.signal(signal.SIGINT, before)
