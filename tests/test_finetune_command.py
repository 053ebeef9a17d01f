"""`minicogvx finetune`: from a folder of videos to a model, and what it rejects before a video is read."""

import shutil

import pytest
import torch
import torch.distributed as dist

import minicogvx
from minicogvx import cli
from minicogvx.interop.safetensors_files import read_sharded
from minicogvx.training.lora import FILE
from tests.test_finetune import CAPTIONS, tiny_pipe


@pytest.mark.parametrize(("options", "message"), [
    (["--lora", "2", "--image-to-video"], "this model takes no image yet; train all its weights"),
    (["--lora", "5000"], "the rank of LoRA is 5000; it must be from 1 to 32"),
    (["--num-frames", "10"], "num_frames is 10; it must be 4k + 1"),
    (["--set", "compile=True", "--set", "sequence_length=200"], "packing does not go with image_to_video"),
    (["--set", "compile=True", "--set", "sharding=fsdp"], "it goes with optimizer='adamw', ema_decay=0 and compile"),
    (["--device", "mps", "--set", "sharding=fsdp"], "sharding is 'fsdp'; it goes with the device 'cpu' or 'cuda', not"),
    (["--set", "offload=True"], "offload is True; it goes with sharding='fsdp', not 'replicate'"),
])
def test_the_command_refuses_before_a_video_is_read(films, tmp_path, capsys, monkeypatch, options, message):
    tiny_pipe().save(tmp_path / "model")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("MINICOGVX_DEVICE", "cpu")
    monkeypatch.setattr("minicogvx.data.films.folder.scan_folder", lambda *_, **__: pytest.fail("videos were read"))
    assert cli.main(["finetune", str(films), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"),
                     *options]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


def test_one_command_from_videos_to_a_model(films, tmp_path, capsys):
    tiny_pipe().save(tmp_path / "model")
    base = ["finetune", str(films), "--model", str(tmp_path / "model"), "--steps", "2"]
    assert cli.main([*base, "--out", str(tmp_path / "all")]) == 0
    assert minicogvx.load(tmp_path / "all" / "pipeline").video_size.num_frames == 9
    assert cli.main([*base, "--out", str(tmp_path / "lora"), "--lora", "2"]) == 0
    assert (tmp_path / "lora" / FILE).exists()
    assert cli.main(["generate", CAPTIONS[0], "--model", str(tmp_path / "model"), "--lora", str(tmp_path / "lora"),
                     "--steps", "1", "--out", str(tmp_path / "a.mp4")]) == 0
    assert cli.main([*base, "--out", str(tmp_path / "image"), "--image-to-video"]) == 0
    assert minicogvx.load(tmp_path / "image" / "pipeline").image_to_video
    capsys.readouterr()
    assert cli.main([*base, "--out", str(tmp_path / "all"), "--set", "warmup=7"]) == 2
    assert "was begun with warmup=100, not 7" in capsys.readouterr().err
    shutil.copytree(tmp_path / "all" / "pipeline", tmp_path / "copy")  # same VAE and text encoder
    for model, message in ((tmp_path / "copy", "was begun with weights of the model="),
                           (tmp_path / "all" / "pipeline", "pipeline is to be written, and it is what --model names")):
        base[base.index("--model") + 1] = str(model)
        assert cli.main([*base, "--out", str(tmp_path / "all")]) == 2
        assert message in capsys.readouterr().err


def test_it_trains_where_and_in_the_format_that_is_asked_for(films, tmp_path, capsys, monkeypatch):
    tiny_pipe().save(tmp_path / "model")
    seen = []

    def watched(pipe, clips, tuning, seed, keep, ranks):
        seen.append((pipe.transformer.proj_out.weight.dtype, str(ranks.device)))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("minicogvx.training.finetune.finetune", watched)
    for dtype in ("float32", "bfloat16"):
        assert cli.main(["finetune", str(films), "--model", str(tmp_path / "model"), "--out", str(tmp_path / dtype),
                         "--device", "cpu", "--dtype", dtype]) == 2
        assert seen.pop() == (getattr(torch, dtype), "cpu")
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("minicogvx: there is not enough memory on the GPU (20.00 MiB more were needed); what "
                           "helps: a smaller --batch-size, --set gradient_checkpointing=True, fewer frames")


def test_offload_on_one_gpu_is_done_and_not_passed_over(films, tmp_path):
    """FSDP2 on a process alone: its checkpoints are folders, and its model is that of an ordinary run."""
    tiny_pipe().save(tmp_path / "model")
    base = ["finetune", str(films), "--model", str(tmp_path / "model"), "--steps", "2", "--device", "cpu", "--dtype",
            "float32", "--learning-rate", "0.001", "--set", "warmup=0"]
    assert cli.main([*base, "--out", str(tmp_path / "whole")]) == 0
    assert cli.main([*base, "--out", str(tmp_path / "parts"), "--set", "sharding=fsdp", "--set", "offload=True"]) == 0
    assert not dist.is_initialized()
    assert (tmp_path / "parts" / "checkpoints" / "finetune_00000002").is_dir()
    whole, parts = (read_sharded(tmp_path / name / "pipeline" / "transformer") for name in ("whole", "parts"))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


def test_the_command_reports_what_it_leaves_out_and_keeps_the_videos_rate(films, tmp_path, capsys):
    tiny_pipe().save(tmp_path / "model")
    folder = tmp_path / "films"
    shutil.copytree(films, folder)
    (folder / "1.txt").write_text("a red circle " * 40)
    assert cli.main(["finetune", str(folder), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"),
                     "--steps", "1", "--fps", "4", "--num-frames", "5"]) == 0
    assert "left out 1.mp4: the caption 'a red circle" in capsys.readouterr().out
    assert minicogvx.load(tmp_path / "out" / "pipeline").fps == 4
