"""`minicogvx finetune` run again: resumed, made longer, on another device; and starts that fail."""

import json
import os
import shlex
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from minicogvx import cli
from minicogvx.data.clips.cache import CachedClips
from minicogvx.files import locked
from minicogvx.interop.safetensors_files import read_json, read_sharded, read_tensors
from minicogvx.media import write_mp4
from minicogvx.pipeline import Pipeline
from minicogvx.training.loop import Run
from minicogvx.training.lora import FILE, lora_tensors, write_lora
from minicogvx.transformer.model import ExpertTransformer
from tests.test_finetune import TINY, films_and_model, tiny_pipe


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Videos and a model."""
    return films_and_model(tmp_path_factory.mktemp("again"))


def command(home, out, *options, films=None, model=None):
    return cli.main(["finetune", str(films or home / "films"), "--model", str(model or home / "model"), "--out",
                     str(out), "--dtype", "float32", "--device", "cpu", *map(str, options)])


def resumed(capsys):
    """The line about changed settings of a resumed run, if there is one, and the other output."""
    told = capsys.readouterr()
    lines = [line for line in told.out.splitlines() if line.startswith("resuming with")]
    assert len(lines) < 2
    return lines[0] if lines else "", told.err


def test_a_run_is_made_longer_and_computed_in_other_ways(home, tmp_path, capsys):
    out = tmp_path / "run"
    assert command(home, out, "--steps", 2) == 0
    assert command(home, out, "--steps", 2) == 0
    assert resumed(capsys)[0] == ""
    assert command(home, out, "--steps", 4, "--dtype", "bfloat16", "--set", "gradient_checkpointing=True", "--set",
                   "accumulate=2") == 0
    line, _ = resumed(capsys)
    for change in ("steps=4 (was 2)", "dtype='bfloat16' (was 'float32')", "accumulate=2 (was 1)",
                   "gradient_checkpointing=True (was None)"):
        assert change in line
    assert [json.loads(row)["step"] for row in (out / "finetune.jsonl").open()] == [0, 1, 3]
    assert read_json(out / "finetuning.json")["dtype"] == "bfloat16"
    written = (out / "finetuning.json").read_text()
    assert command(home, out, "--steps", 3) == 2
    line, told = resumed(capsys)
    assert "after 4 steps; ask for at least as many, not 3" in told and not line
    assert (out / "finetuning.json").read_text() == written
    assert command(home, out, "--steps", 4, "--batch-size", 1) == 2
    assert "was begun with batch_size=2, not 1" in resumed(capsys)[1]


def test_a_start_that_failed_does_not_block_the_next(home, tmp_path, capsys, monkeypatch):
    (tmp_path / "bare").mkdir()
    shutil.copy(home / "films" / "0.mp4", tmp_path / "bare")
    out = tmp_path / "out"
    assert command(home, out, "--steps", 2, films=tmp_path / "bare") == 2
    assert "0.mp4: has no caption" in capsys.readouterr().err and not out.exists()

    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for stage in ("minicogvx.vae.CausalVAE.encode", "minicogvx.training.draws.Draw.backward"):
        with monkeypatch.context() as patch:
            patch.setattr(stage, no_memory)
            assert command(home, out, "--steps", 2, "--num-frames", 9, "--batch-size", 3) == 2
            assert "there is not enough memory" in capsys.readouterr().err
    assert command(home, out, "--steps", 3, "--batch-size", 1, "--lora", 2) == 0
    assert "resuming" not in capsys.readouterr().out


@pytest.mark.parametrize("number, options", [
    (signal.SIGINT, ()), (signal.SIGINT, ("--set", "sharding=fsdp", "--set", "offload=True")), (signal.SIGTERM, ())],
    ids=["whole", "parts", "sigterm"])
def test_a_signal_ends_with_a_checkpoint_at_the_end_of_the_step(home, tmp_path, capsys, monkeypatch, number, options):
    before = signal.signal(number, signal.default_int_handler)
    real = Run.record

    def interrupted(self, *arguments, **values):
        if self.done == 1:
            signal.raise_signal(number)
        real(self, *arguments, **values)

    options = "--steps", 4, "--set", "warmup=0", "--learning-rate", 1e-3, *options
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Run, "record", interrupted)
            assert command(home, tmp_path / "cut", *options) == 130
        assert "minicogvx: stopped after step 2; run the same command again to resume" in capsys.readouterr().err
        assert signal.getsignal(number) is signal.default_int_handler
        left = os.listdir(tmp_path / "cut" / "checkpoints")
        assert left in (["finetune_00000002.safetensors"], ["finetune_00000002"])
        assert not (tmp_path / "cut" / ".lock").exists()
    finally:
        signal.signal(number, before)
    assert command(home, tmp_path / "cut", *options) == 0
    assert resumed(capsys)[0] == ""
    assert command(home, tmp_path / "whole", *options) == 0
    cut, whole = (read_sharded(tmp_path / name / "pipeline" / "transformer") for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_a_second_ctrl_c_ends_at_once(home, tmp_path, capsys, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def twice(self, *arguments, **values):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was not heard")

    monkeypatch.setattr(Run, "record", twice)
    try:
        assert command(home, tmp_path / "run", "--steps", 2) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1] == "minicogvx: stopped"


def test_two_runs_in_one_folder_and_places_that_cannot_be_written(home, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    with locked(out):
        assert command(home, out, "--steps", 1) == 2
        assert f"{out} is in use by another run" in capsys.readouterr().err
    monkeypatch.setattr("minicogvx.data.films.folder.scan_folder", lambda *_, **__: pytest.fail("videos were read"))
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        assert command(home, place, "--steps", 1) == 2
        told = capsys.readouterr().err
        assert f"{place} cannot be written" in told and told.count("\n") == 1


def test_what_a_killed_run_left_is_cleared(home, tmp_path):
    out = tmp_path / "run"
    left = [out / "checkpoints" / ".tmpAb12Cd", out / "cache" / ".clips-00000.0123abcd.part.safetensors",
            out / "checkpoints" / ".finetune_00000001.part" / "shard.safetensors",
            out / "checkpoints" / ".finetune_00000001.01234567.part.safetensors"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (out / "cache" / "notes.txt").touch()
    assert command(home, out, "--steps", 1, "--set", "sharding=fsdp", "--set", "offload=True") == 0
    assert not any(path.exists() for path in left) and (out / "cache" / "notes.txt").exists()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["finetune_00000001"]


# ---- adapters trained further


def test_adapters_are_trained_further_under_another_name(home, tmp_path, capsys):
    assert command(home, tmp_path / "one", "--steps", 2, "--lora", 2, "--learning-rate", 1e-2) == 0
    first = read_tensors(tmp_path / "one" / FILE)
    assert command(home, tmp_path / "two", "--steps", 1, "--lora-from", tmp_path / "one", "--learning-rate", 0) == 0
    same = read_tensors(tmp_path / "two" / FILE)
    assert first.keys() == same.keys() and all(torch.equal(first[name], same[name]) for name in first)
    assert read_json(tmp_path / "two" / "finetuning.json")["lora_rank"] == 2
    further = "--steps", 2, "--lora-from", tmp_path / "one" / FILE, "--learning-rate", 1e-2
    assert command(home, tmp_path / "three", *further) == 0
    assert any(not torch.equal(first[name], one) for name, one in read_tensors(tmp_path / "three" / FILE).items())
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    capsys.readouterr()
    moved = [tmp_path / "moved" if value == tmp_path / "one" / FILE else value for value in further]
    assert command(home, tmp_path / "three", *moved) == 0 and "resuming with lora_from=" in capsys.readouterr().out
    write_lora(tmp_path / "moved", {name: 2 * value for name, value in first.items()}, 2, 1.0)
    assert command(home, tmp_path / "three", *moved) == 2
    assert "was begun with other adapters: lora_from was " in capsys.readouterr().err
    assert command(home, tmp_path / "three", "--steps", 2, "--lora", 2, "--learning-rate", 1e-2, "--set",
                   "lora_alpha=1.0") == 2
    assert "was begun with other adapters: lora_from was " in capsys.readouterr().err


def test_adapters_that_cannot_be_trained_further_are_refused_before_a_video_is_read(home, tmp_path, capsys,
                                                                                   monkeypatch):
    from minicogvx.training.lora import add_lora

    monkeypatch.setattr("minicogvx.data.films.folder.scan_folder", lambda *_, **__: pytest.fail("videos were read"))
    model = tiny_pipe().transformer
    add_lora(model, 2, 3.0)
    tensors = lora_tensors(model)
    some = {name: value for name, value in tensors.items() if "to_k" not in name}
    for path, message in ((write_lora(tmp_path / "some", some, 2, 3.0), "cannot be trained further"),
                          (tmp_path / "none.safetensors", "there is no file"),
                          (write_lora(tmp_path / "all", tensors, 2, 3.0), "have rank 2; leave --lora out")):
        assert command(home, tmp_path / "out", "--lora-from", path, "--lora", 4) == 2
        assert message in capsys.readouterr().err
    assert command(home, tmp_path / "out", "--lora-from", path, "--set", "lora_alpha=1.0") == 2
    assert "lora_alpha 1.0; the adapters in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- what is printed, and what is left out


@pytest.mark.parametrize("options", [("--lora", 2), ("--image-to-video",), ()], ids=["lora", "image", "all"])
def test_the_command_that_is_printed_runs(home, tmp_path, capsys, monkeypatch, options):
    out = tmp_path / "a folder's name"
    assert command(home, out, "--steps", 1, *options) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    program, *words = shlex.split(told[told.index("minicogvx generate"):])
    assert program == "minicogvx" and words[1].startswith("a ")
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words, "--steps", "1", "--dtype", "float32", "--device", "cpu"]) == 0
    assert list(tmp_path.glob("outputs/*.mp4"))


@pytest.fixture(scope="module")
def one_size(tmp_path_factory):
    """A model from images whose positions are a table for 9 frames of 32 x 48."""
    torch.manual_seed(0)
    pipe, folder = tiny_pipe(), tmp_path_factory.mktemp("learned") / "model"
    config = replace(TINY.transformer, in_channels=8, position="rope+learned", sample_width=12)
    pipe = Pipeline(pipe.vae, ExpertTransformer(config), pipe.schedule_config, pipe.text)
    pipe.save(folder, allow_departures=True)
    return folder


def test_videos_are_cropped_to_the_one_size_of_a_learned_table(home, one_size, tmp_path, capsys):
    films = tmp_path / "films"
    for name, frames, height, width in (("portrait", 9, 64, 48), ("square", 20, 40, 40), ("short", 6, 32, 48)):
        write_mp4(films / f"{name}.mp4", torch.rand(frames, height, width, 3), 8)
        (films / f"{name}.txt").write_text("a red circle")
    shutil.copy(next(home.glob("films/*.mp4")), films / "landscape.mp4")
    (films / "landscape.txt").write_text("a red circle")
    assert command(home, tmp_path / "run", "--image-to-video", "--steps", 2, films=films, model=one_size) == 0
    told = capsys.readouterr().out
    assert "left out short.mp4" in told and told.count("left out") == 1
    assert CachedClips(tmp_path / "run" / "cache").sizes.tolist() == [[3, 8, 12]] * 3  # 9 frames of 32x48


@pytest.mark.parametrize("options", [("--num-frames", 5), ("--height", 64), ("--width", 32, "--height", 48)])
def test_other_sizes_than_that_of_a_learned_table_are_refused_before_a_video_is_read(
        home, one_size, tmp_path, capsys, monkeypatch, options):
    monkeypatch.setattr("minicogvx.data.films.folder.scan_folder", lambda *_, **__: pytest.fail("videos were read"))
    assert command(home, tmp_path / "run", "--image-to-video", *options, model=one_size) == 2
    assert "fits only 9 frames of 32x48" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_pictures_are_left_out_by_name_where_the_image_is_given(home, tmp_path, capsys):
    from PIL import Image

    films = tmp_path / "films"
    shutil.copytree(home / "films", films)
    Image.new("RGB", (32, 32), "red").save(films / "a.png")
    (films / "a.txt").write_text("a red circle")
    assert command(home, tmp_path / "image", "--image-to-video", "--steps", 1, films=films) == 0
    assert "left out a.png: a picture" in capsys.readouterr().out
    assert command(home, tmp_path / "text", "--steps", 1, films=films) == 0
    assert "left out" not in capsys.readouterr().out
    assert command(home, tmp_path / "one", "--image-to-video", "--num-frames", 1, films=films) == 2
    assert "num_frames is 1; to learn videos from an image" in capsys.readouterr().err
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("a.png", "a.txt"):
        shutil.copy(films / name, alone)
    assert command(home, tmp_path / "none", "--image-to-video", "--steps", 1, films=alone) == 2
    assert "holds only pictures, and this model is trained only on videos" in capsys.readouterr().err


# ---- where it writes, and what it refuses before anything is encoded


def test_a_folder_may_be_called_as_files_are(home, tmp_path, capsys):
    out = tmp_path / "cats.safetensors"
    for _ in range(2):
        assert command(home, out, "--steps", 1, "--lora", 4) == 0
        assert (out / FILE).is_file() and f"--lora {out / FILE}" in capsys.readouterr().out


def test_sequences_too_short_for_a_clip_are_refused_before_one_is_encoded(home, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("minicogvx.vae.CausalVAE.encode", lambda *_, **__: pytest.fail("a video was encoded"))
        assert command(home, tmp_path / "run", "--set", "sequence_length=67", "--steps", 1) == 2
    told = capsys.readouterr().err
    assert "sequence_length is 67; it must be at least 68, the tokens of the longest clip" in told
    assert told.count("\n") == 1 and not (tmp_path / "run").exists()
    assert command(home, tmp_path / "run", "--set", "sequence_length=68", "--steps", 1) == 0
