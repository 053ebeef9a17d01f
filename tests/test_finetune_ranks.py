"""`torchrun -m minicogvx finetune`: two processes, replicated and under FSDP2, killed and resumed."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from minicogvx.interop.safetensors_files import read_sharded, read_tensors
from minicogvx.training.lora import FILE
from tests.test_finetune import films_and_model


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Videos and a model."""
    return films_and_model(tmp_path_factory.mktemp("ranks"))


def run(home, out, *options, ranks=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] * (ranks > 1)
    command = command or [sys.executable]
    done = subprocess.run([*command, "-m", "minicogvx", "finetune", str(home / "films"), "--model", str(home / "model"),
                           "--out", str(home / out), "--threads", "1", "--set", "warmup=1", "--learning-rate", "0.001",
                           "--checkpoint-every", "2", *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def weights(home, out):
    return read_sharded(home / out / "pipeline" / "transformer")


def test_sharded_training_learns_what_replicated_training_learns_and_resumes_after_a_loss(home):
    start = read_sharded(home / "model" / "transformer")
    told = run(home, "replicated", "--steps", "4", "--set", "sharding=replicate")
    assert told.count("pipeline: minicogvx generate") == 1  # one of the two writes
    run(home, "sharded", "--steps", "4", "--set", "sharding=fsdp")
    replicated, sharded = weights(home, "replicated"), weights(home, "sharded")
    assert any((replicated[name] - start[name]).abs().max() > 1e-4 for name in start)
    apart = {}
    for name in start:
        if not name.endswith("to_k.bias"):  # softmax does not see it: its gradient is rounding alone
            learnt = (replicated[name] - start[name]).norm().clamp(min=1e-9)
            apart[name] = ((replicated[name] - sharded[name]).norm() / learnt).item()
    assert max(apart.values()) < 0.05, max(apart.items(), key=lambda item: item[1])
    checkpoints = home / "sharded" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["finetune_00000002", "finetune_00000004"]
    damaged = next((checkpoints / "finetune_00000004").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-5])
    shutil.rmtree(home / "sharded" / "pipeline")
    run(home, "sharded", "--steps", "4", "--set", "sharding=fsdp")
    again = weights(home, "sharded")
    assert all(torch.equal(sharded[name], again[name]) for name in start)
    run(home, "offloaded", "--steps", "4", "--set", "sharding=fsdp", "--set", "offload=True")
    offloaded = weights(home, "offloaded")
    assert all(torch.equal(sharded[name], offloaded[name]) for name in start)


def test_adapters_learn_the_same_under_fsdp(home):
    for out, sharding in (("lora", "fsdp"), ("lora_replicated", "replicate")):
        run(home, out, "--steps", "3", "--lora", "2", "--set", f"sharding={sharding}")
        assert not (home / out / "pipeline").exists()
    sharded, replicated = (read_tensors(home / out / FILE) for out in ("lora", "lora_replicated"))
    assert sharded.keys() == replicated.keys() and any("to_v.lora_B" in name for name in sharded)
    for name in sharded:
        if "lora_B" in name and "to_k" not in name and "to_q" not in name:  # from zero: all of it was learnt
            assert (sharded[name] - replicated[name]).norm() <= 0.05 * replicated[name].norm() > 0, name
    told = run(home, "lora", "--steps", "4", "--lora", "2", ranks=1)
    for change in ("ranks=1 (was 2)", "sharding='replicate' (was 'fsdp')", "batch_size of all ranks=2 (was 4)"):
        assert change in told
    assert [json.loads(row)["step"] for row in (home / "lora" / "finetune.jsonl").open()] == [0, 2, 3]
