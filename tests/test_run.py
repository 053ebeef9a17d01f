"""A run that is killed, or meets a full disk, a damaged file or a NaN, loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from minicogvx.engine import checkpoints as checkpoints_module
from minicogvx.engine.optim import MuonAdamW
from minicogvx.training.loop import BAD_STEPS, Keep, Run


def quiet(folder, **fields):
    return Keep(folder, **({"checkpoint_every": 2, "log_every": 1, "progress": False} | fields))


def train(keep, steps=6, stop_after=None, poison=()):
    """A linear layer fitted to noise from each step's own seed."""
    torch.manual_seed(0)
    net = nn.Linear(4, 4)
    optimizer = MuonAdamW(net.named_parameters())
    run = Run("linear", steps, keep)
    run.resume({"net": net}, {"optimizer": optimizer})
    for step in run:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = (net(x) - x.flip(1)).square().mean() * (float("nan") if step in poison else 1.0)
        loss.backward()
        run.record(optimizer.step(1.0), loss=loss.detach())
        if step == stop_after:
            raise KeyboardInterrupt
    return net


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def files(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_an_interrupted_run_ends_in_the_same_bits(tmp_path):
    whole = train(Keep(progress=False))
    with pytest.raises(KeyboardInterrupt):
        train(quiet(tmp_path), stop_after=4)
    assert files(tmp_path) == ["linear_00000002.safetensors", "linear_00000004.safetensors"]
    assert same(train(quiet(tmp_path)), whole)
    assert files(tmp_path) == ["linear_00000004.safetensors", "linear_00000006.safetensors"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "linear.jsonl").open()]
    assert steps == [0, 1, 2, 3, 4, 5]  # step 4 was taken twice and is logged once


def test_a_finished_run_takes_no_step(tmp_path):
    first = train(quiet(tmp_path))
    before = (tmp_path / "linear.jsonl").read_text()
    assert same(train(quiet(tmp_path)), first) and (tmp_path / "linear.jsonl").read_text() == before


@pytest.mark.parametrize("content", ['{"file_name": "a.mp4", "text": "a red circle"}', "notes", '{"step": 3}'])
def test_a_file_with_the_name_of_the_log_is_not_written_over(tmp_path, content):
    (tmp_path / "linear.jsonl").write_text(content)
    with pytest.raises(ValueError, match="holds linear.jsonl, which this run did not make and would write over"):
        train(quiet(tmp_path))
    assert (tmp_path / "linear.jsonl").read_text() == content and not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("leader, stop", [(True, KeyboardInterrupt), (False, SystemExit)])
def test_of_many_ranks_that_stop_the_first_one_says_so(tmp_path, monkeypatch, leader, stop):
    monkeypatch.setattr("minicogvx.training.loop.any_rank", lambda noted: True)
    run = Run("linear", 2, quiet(tmp_path), leader)
    run.resume({}, {})
    with pytest.raises(stop, match="stopped after step 1" if leader else "130"):
        list(run)


def test_a_full_disk_costs_one_checkpoint_and_no_step(tmp_path, capsys, monkeypatch):
    whole, real = train(Keep(progress=False)), checkpoints_module.write_tensors

    def full(path, tensors, *rest):
        if "00000004" in path.name:
            raise OSError(f"{path} cannot be written: I/O error: No space left on device (os error 28)")
        return real(path, tensors, *rest)

    monkeypatch.setattr(checkpoints_module, "write_tensors", full)
    assert same(train(quiet(tmp_path)), whole)
    assert files(tmp_path) == ["linear_00000002.safetensors", "linear_00000006.safetensors"]
    assert "no checkpoint at step 4" in capsys.readouterr().err


def test_a_full_disk_costs_figures_and_no_step(tmp_path, capsys, monkeypatch):
    whole, real = train(Keep(progress=False)), Path.open

    def full(self, *arguments, **options):
        if self.suffix == ".jsonl":
            raise OSError(28, "No space left on device")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    assert same(train(quiet(tmp_path)), whole)
    assert capsys.readouterr().err.count("figures are missing from step 0 on: [Errno 28]") == 1


def test_a_full_disk_at_the_last_step_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    def full(path, tensors, *rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints_module, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        train(quiet(tmp_path))


def test_one_nan_is_left_out_and_many_end_the_run_with_what_was_good(tmp_path, capsys):
    skipped = train(quiet(tmp_path / "one"), poison=(3,))
    assert all(torch.isfinite(p).all() for p in skipped.parameters())
    assert "the gradient of step 3 is not finite" in capsys.readouterr().err
    assert json.loads((tmp_path / "one" / "linear.jsonl").read_text().splitlines()[3])["loss"] == "nan"
    with pytest.raises(FloatingPointError, match="lower the learning rate; the checkpoints in .* are from before"):
        train(quiet(tmp_path / "many"), steps=50, poison=range(6, 50))
    assert files(tmp_path / "many") == ["linear_00000004.safetensors", "linear_00000006.safetensors"]
    assert BAD_STEPS == 20


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_run
real = test_run.Run.record
def slow(self, *values, **named):
    real(self, *values, **named)
    time.sleep(0.02)
test_run.Run.record = slow
test_run.train(test_run.quiet(Path({folder!r})), steps=200)
"""


def test_kill_minus_9_at_any_moment(tmp_path):
    """Killed twice at random moments, then resumed: the same bits as an uninterrupted run."""
    script = SCRIPT.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    newest = ""
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (there := sorted(path.name for path in tmp_path.glob("checkpoints/linear_*"))) or there[-1] <= newest:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        newest = files(tmp_path)[-1]
    assert "linear_00000000" < newest < "linear_00000200"
    assert same(train(quiet(tmp_path), steps=200), train(Keep(progress=False), steps=200))


def test_tensorboard_holds_the_figures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(quiet(tmp_path, tensorboard=True))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "linear"))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "linear.jsonl").open()]
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2, 3, 4, 5]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


@pytest.mark.parametrize(("fields", "message"), [
    ({"checkpoint_every": 0}, "checkpoint_every is 0; it must be 1 or more"), ({"log_every": -1}, "log_every is -1"),
    ({"checkpoints": 0}, "checkpoints is 0"), ({"tensorboard": True}, "tensorboard is not installed"),
])
def test_what_cannot_be_kept_is_refused_at_once(monkeypatch, fields, message):
    monkeypatch.setattr("minicogvx.training.loop.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        Keep(**fields)


def test_only_the_leader_writes(tmp_path):
    run = Run("linear", 2, quiet(tmp_path), leader=False)
    net = nn.Linear(2, 2)
    run.resume({"net": net}, {})
    for _ in run:
        run.record(torch.tensor(1.0), loss=1.0)
    assert not list(tmp_path.rglob("*"))
