"""What `minicogvx finetune` tells about films, words, sizes and steps, and what it writes before its end."""

import json
import shlex
import signal
from collections import Counter

import pytest

from minicogvx import cli
from minicogvx.data.clips.clips import sizes_sentence
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.interop.lora import trained_steps
from minicogvx.interop.safetensors_files import read_tensors
from minicogvx.media import write_mp4
from minicogvx.training.lora import FILE
from minicogvx.training.run import Run


@pytest.fixture
def wide(tmp_path):
    """Two films that are wide, and one that is high."""
    for i, scene in enumerate(sample_scenes(3, 0, "train", 0.0)):
        height, width = (64, 32) if i == 2 else (32, 64)
        write_mp4(tmp_path / "films" / f"{i}.mp4", render(scene, 9, height, width), 8)
        (tmp_path / "films" / f"{i}.txt").write_text("a red circle moves right")
    return tmp_path / "films"


@pytest.fixture
def finetune(wide, tiny_folder, tmp_path, capsys):
    """`minicogvx finetune` of the tiny model on these films into one folder; returns what it printed and its errors."""
    def run(*options, status=0):
        capsys.readouterr()
        assert cli.main(["finetune", str(wide), "--model", str(tiny_folder), "--out", str(tmp_path / "run"), "--dtype",
                         "float32", "--device", "cpu", "--threads", "1", *map(str, options)]) == status
        told = capsys.readouterr()
        return told.out.splitlines(), told.err

    return run


@pytest.fixture
def stopped_after(monkeypatch):
    """Ctrl-C in a step of the next run."""
    record = Run.record

    def stop(step):
        def interrupted(run, *arguments, **values):
            if run.done == step - 1:
                signal.raise_signal(signal.SIGINT)
            record(run, *arguments, **values)

        monkeypatch.setattr(Run, "record", interrupted)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield stop
    signal.signal(signal.SIGINT, before)


def test_the_sizes_of_films_are_told_and_taken_over_by_the_command_that_is_printed(finetune, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, _ = finetune("--lora", 2, "--steps", 1)
    assert "3 films, 9 frames each: 2 at 24x48, 1 at 48x24 (height x width)" in out
    assert out[-4:-1] == ["Done: 1 step.", str(tmp_path / "run" / FILE), "Try it:"]
    words = shlex.split(out[-1])
    assert words[-4:] == ["--height", "24", "--width", "48"]
    assert cli.main([*words[1:], "--steps", "1", "--out", "made.mp4"]) == 0
    again, _ = finetune("--lora", 2, "--steps", 1)
    assert again[-4:] == ["Already done: 1 step.", *out[-3:]]
    shorter, _ = finetune("--lora", 2, "--steps", 1, "--num-frames", 5, "--out", tmp_path / "short")
    assert shorter[-1].endswith("--height 24 --width 48 --num-frames 5")


def test_pictures_are_counted_apart_and_rare_sizes_together():
    assert sizes_sentence(Counter({(9, 16, 48): 2, (1, 32, 32): 1})) == (
        "2 clips and 1 picture: 2 of 9 frames at 16x48, 1 of 1 frame at 32x32 (height x width)")
    assert sizes_sentence(Counter({(9, 16, 16 * i): 10 - i for i in range(1, 5)}), "film", most=2) == (
        "30 films, 9 frames each: 9 at 16x16, 8 at 16x32, 13 of other sizes (height x width)")


def test_words_that_the_model_does_not_know_are_told_once(finetune, wide, tiny_folder, tmp_path, capsys):
    (wide / "1.txt").write_text("a cup of coffee moves right")
    told = "words that this model does not know, in 1 caption: coffee, cup (1.mp4)"
    out, err = finetune("--steps", 2, "--set", "sample_every=1")
    assert out.count(told) == 1 and "coffee" not in err
    captions = {path.stem: path.read_text() for path in (tmp_path / "run" / "samples").glob("*.txt")}
    assert captions["step_00000002_0"] == "a red circle moves right\n" and len(captions) == 6
    encode = ["data", "encode", str(wide), "--model", str(tiny_folder), "--out", str(tmp_path / "cache"), "--dtype",
              "float32", "--device", "cpu"]
    assert cli.main(encode) == 0 and told in capsys.readouterr().out
    assert told in finetune("--steps", 1, "--out", tmp_path / "encoded")[0]


def test_a_stop_leaves_the_adapters_of_its_step(finetune, stopped_after, tmp_path, tiny_folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lora, file = ("--lora", 2, "--learning-rate", 0.01), tmp_path / "run" / FILE
    finetune(*lora, "--steps", 1)
    before = read_tensors(file)
    stopped_after(3)
    finetune(*lora, "--steps", 6, status=130)
    assert trained_steps(file) == "3" and any((before[name] != one).any() for name, one in read_tensors(file).items())
    for command in (["generate", "a red circle", "--steps", "1"], ["evaluate", "--clips", "1", "--steps", "1"]):
        capsys.readouterr()
        assert cli.main([*command, "--model", str(tiny_folder), "--lora", str(tmp_path / "run")]) == 0
        assert f"LoRA of step 3: {tmp_path / 'run'}\n" in capsys.readouterr().out
    _, err = finetune(*lora, "--steps", 6)
    assert "transformer: resuming at step 3 of 6\n" in err and trained_steps(file) == "6"


def test_a_stop_tells_that_a_model_is_of_fewer_steps(finetune, stopped_after, tmp_path):
    finetune("--steps", 1)
    stopped_after(2)
    _, err = finetune("--steps", 3, status=130)
    assert err.endswith(f"run the same command again to resume; until it ends, {tmp_path / 'run' / 'pipeline'} is that "
                        f"of fewer steps\n")


def test_what_has_changed_about_the_films_is_told(finetune, wide, tmp_path):
    finetune("--steps", 1)
    (wide / "0.txt").write_text("a blue circle moves right")
    for ending in ("mp4", "txt"):
        (wide / f"2.{ending}").rename(wide / f"3.{ending}")
    told = "films since the last checkpoint: 1 new, 1 removed, 1 caption changed"
    assert finetune("--steps", 1)[0][0] == told, "nothing was left to do, so they are not trained on yet"
    assert finetune("--steps", 2)[0][0] == told
    assert not any("since the last" in line for line in finetune("--steps", 3)[0])
    write_mp4(wide / "1.mp4", render(sample_scenes(1, 5, "train", 0.0)[0], 9, 32, 64), 8)
    assert finetune("--steps", 4)[0][0] == "films since the last checkpoint: 1 replaced"
    assert len(json.loads((tmp_path / "run" / "films.json").read_text())) == 3


def test_a_full_disk_costs_adapters_and_not_the_run(finetune, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(f"{tmp_path / 'run' / FILE} cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("minicogvx.training.result.write_lora", full)
        _, err = finetune("--lora", 2, "--steps", 2, "--checkpoint-every", 1, status=2)
        assert err.count("No space left on device; the file before it is kept") == 2
    assert finetune("--lora", 2, "--steps", 2)[0][-1].startswith("minicogvx generate")
