"""A rank is killed with -9 during training: torchrun stops at once, and the same command leads to the same bits."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from minicogvx import cli
from minicogvx.engine import ranks
from minicogvx.training import recipes as recipe
from minicogvx.training.loop import Run
from minicogvx.training.transformer import TransformerStage, TransformerTraining
from tests.test_finetune import films_and_model
from tests.test_training import GAN, STAGE, TINY

RECIPE = recipe.Recipe("micro", vae=(replace(STAGE, steps=2, loss=replace(GAN, gan_start=1)),), clips=8,
                       two_objects=0.0, transformer=TransformerTraining((TransformerStage(6, 4),), warmup=2))


def work(home: Path, wanted: list[str]) -> None:
    """What each rank does: `minicogvx train` and `minicogvx finetune`, as if typed one after the other.

    DIE=transformer:1:3 kills rank 1 at step 3 of the transformer, in the last command and only once.
    """
    recipe.RECIPES["micro"], recipe.preset = RECIPE, lambda name: TINY
    leave, ranks.leave = ranks.leave, lambda: None  # one process group for all
    name, rank, step = os.environ.get("DIE", "none:0:0").split(":")
    marker, record, begun = home / f"died_{name}_{rank}_{step}", Run.record, []

    def die_or_record(run, *arguments, **values):
        here = run.name, os.environ["RANK"], run.done
        if len(begun) == len(wanted) and here == (name, rank, int(step)) and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        record(run, *arguments, **values)

    Run.record = die_or_record
    common = ["--threads", "1", "--checkpoint-every", "2"]
    for what in wanted:
        begun.append(what)
        command, _, folder = what.partition(":")
        if command == "train":
            options = ["train", "micro", "--out", str(home / folder)]
        else:
            options = ["finetune", str(home / "films"), "--model", str(home / "model"), "--out",
                       str(home / folder / "mine"), "--set", "warmup=1", "--learning-rate", "0.001", "--steps", "6",
                       "--batch-size", "1"]
        assert cli.main([*options, *common]) == 0
    leave()


def start(home: Path, *wanted: str, die: str = "none:0:0", restarts: int = 0) -> tuple[int, float, str]:
    """The exit status of torchrun, the seconds from a rank's death to torchrun's end, and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         f"--max-restarts={restarts}", "-m", "tests.test_rank_dies", str(home), *wanted],
        capture_output=True, text=True, timeout=120, env=os.environ | {"DIE": die}, cwd=Path(__file__).parents[1])
    marker = home / f"died_{die.replace(':', '_')}"
    return done.returncode, time.time() - marker.stat().st_mtime if marker.exists() else 0.0, done.stderr[-3000:]


def files(home, folder):
    """The bytes of every model and of every checkpoint's newest state, below one folder."""
    return {str(path.relative_to(home / folder)): path.read_bytes() for path in (home / folder).rglob("*.safetensors")
            if "cache" not in path.parts}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Videos and a model to train further."""
    return films_and_model(tmp_path_factory.mktemp("dies"))


def test_a_killed_rank_ends_the_run_and_the_same_command_ends_in_the_same_bits(home):
    """`train` and `finetune` undisturbed in A; in B the one is killed and begun again, then the other twice."""
    status, seconds, said = start(home, "train:A", "finetune:A", "train:B", die="transformer:1:3")
    assert status != 0 and 0 < seconds < 30, said
    assert "Signal 9 (SIGKILL) received" in said
    whole = files(home, "A")
    assert {"pipeline/vae/diffusion_pytorch_model.safetensors", "checkpoints/transformer_00000006.safetensors",
            "mine/pipeline/transformer/diffusion_pytorch_model.safetensors"} <= whole.keys()
    newest = home / "B" / "checkpoints" / "transformer_00000002.safetensors"
    assert newest.exists() and not (home / "B" / "pipeline").exists()

    status, seconds, said = start(home, "train:B", "finetune:B", die="finetune:0:3")
    assert status != 0 and 0 < seconds < 30, said
    assert (home / "B" / "pipeline").exists() and not (home / "B" / "mine" / "pipeline").exists()

    status, _, said = start(home, "finetune:B", die="finetune:1:5", restarts=1)
    assert status == 0, said
    assert (home / "died_finetune_1_5").exists()  # torchrun began again by itself
    again = files(home, "B")
    assert again.keys() == whole.keys()
    assert [name for name in whole if again[name] != whole[name]] == []


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2:])
