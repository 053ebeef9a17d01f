"""A rank is killed with -9 during training: torchrun stops at once, or begins again and ends in the same bits.

With another number of ranks afterwards: test_train_ranks.py.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minicogvx import cli
from minicogvx.interop.safetensors_files import read_tensors
from minicogvx.training.run import Run
from minicogvx.training.stages import Stage
from tests.trained import RECIPE, recipe_file

SHORT = replace(RECIPE, clips=8, vae=replace(RECIPE.vae, stages=(replace(RECIPE.vae.stages[1], steps=4),)),
                transformer=replace(RECIPE.transformer, stages=(Stage(6, 4),)))


def work(home: Path, out: str, part: str, rank: str, step: str) -> None:
    """`minicogvx train` of one rank. Rank `rank` is killed at a step of a part, once; "none" is never."""
    marker, record = home / f"died_{part}_{step}", Run.record

    def die_or_record(run, *arguments, **values):
        if (run.name, os.environ["RANK"], str(run.done)) == (part, rank, step) and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        record(run, *arguments, **values)

    Run.record = die_or_record
    assert cli.main(["train", str(home / "mine.toml"), "--out", str(home / out), "--threads", "1",
                     "--checkpoint-every", "2", "--dtype", "float32"]) == 0


def start(home: Path, out: str, *die: str, restarts: int = 0) -> tuple[int, float, str]:
    """The exit status of torchrun, the seconds from a rank's death to torchrun's end, and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         f"--max-restarts={restarts}", "-m", "tests.test_rank_dies", str(home), out, *die],
        capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[1])
    marker = home / f"died_{die[0]}_{die[2]}"
    return done.returncode, time.time() - marker.stat().st_mtime if marker.exists() else 0.0, done.stderr[-3000:]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Those of the model and of the newest checkpoints."""
    return {f"{path.relative_to(folder)} {name}": tensor for path in folder.rglob("*.safetensors")
            for name, tensor in read_tensors(path).items()}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """With a run of two ranks that was not disturbed, in "whole"."""
    home = tmp_path_factory.mktemp("dies")
    recipe_file(home, SHORT)
    status, _, said = start(home, "whole", "none", "0", "0")
    assert status == 0, said
    return home


def test_a_killed_rank_ends_the_run_at_once_and_the_next_one_is_restarted_by_torchrun(home):
    """Killed in the VAE, then, after a restart by hand, in the transformer: the same bits as the undisturbed run's."""
    status, seconds, said = start(home, "killed", "vae_0", "1", "3")
    assert status != 0 and 0 < seconds < 30 and "Signal 9 (SIGKILL) received" in said, said
    assert not (home / "killed" / "vae.safetensors").exists()
    status, _, said = start(home, "killed", "transformer", "0", "3", restarts=1)
    assert status == 0 and (home / "died_transformer_3").exists(), said
    whole, killed = tensors(home / "whole"), tensors(home / "killed")
    assert whole.keys() == killed.keys() and {name.split("/")[0] for name in whole} >= {"checkpoints", "pipeline"}
    assert [name for name in whole if not torch.equal(killed[name], whole[name])] == []


if __name__ == "__main__":
    work(Path(sys.argv[1]), *sys.argv[2:])
