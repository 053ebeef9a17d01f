"""The training loop and a run: figures, checkpoints, resuming, interruptions, steps whose gradient is not finite."""

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

from minicogvx.engine import checkpoints
from minicogvx.engine.checkpoints import Checkpoints
from minicogvx.engine.optim import MuonAdamW, warmup_cosine
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.weights import Weights, update_average
from minicogvx.training.loop import fit
from minicogvx.training.run import BAD_STEPS, Keep, Run


class Line:
    """A task: learns y = 2 x - 1 by a network in 16 bits, with a moving average."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, bad: frozenset[int] = frozenset()):
        torch.manual_seed(0)
        self.net, self.bad = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)), bad
        self.weights = Weights({"net": self.net}, {"net": dtype})
        self.optimizer = MuonAdamW(self.weights.named(), 0.1, 0.05)
        self.average, self.dtype, self.done = self.weights.copies(), dtype, 0

    def backward(self, batch, progress, last=True):
        loss = (self.net(batch.to(self.dtype)).float() - (2 * batch - 1)).square().mean() / 2
        (loss * (float("nan") if self.done in self.bad else 1.0)).backward()
        return {"loss": loss.detach()}

    def update(self, step, rate):
        self.weights.take_gradients()
        norm = self.optimizer.step(rate)
        self.weights.write_back()
        update_average(self.average, self.weights.tensors(), 0.9, step)
        self.done = step + 1
        return norm

    def state(self):
        parts = {"weights": self.weights.tensors(), "average": self.average, "optimizer": self.optimizer.state()}
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def restored(self):
        self.weights.write_back()


class Points(torch.utils.data.Dataset):
    """Two passes a step."""

    def __len__(self):
        return 10**9

    def __getitem__(self, step):
        return list(torch.randn(2, 16, 1, generator=torch.Generator().manual_seed(step)))


def train(folder: Path | None, steps: int = 30, task: Line | None = None, watchers=(), workers=0, **keep) -> Line:
    task = task or Line()
    run = Run("line", steps, Keep(folder, **{"checkpoint_every": 10, "log_every": 5, "progress": False} | keep))
    fit(task, Points(), run, lambda step: warmup_cosine(step, steps, 3), watchers, workers)
    return task


def same(a: Line, b: Line) -> bool:
    return all(torch.equal(tensor, b.state()[name]) for name, tensor in a.state().items())


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "line.jsonl").read_text().splitlines()]


def test_it_learns_logs_and_keeps_the_newest_checkpoints(tmp_path):
    task = train(tmp_path)
    log = rows(tmp_path)
    assert [row["step"] for row in log] == [0, 5, 10, 15, 20, 25, 29]
    assert {"loss", "grad_norm", "seconds", "waiting"} <= log[0].keys() and 0 <= log[0]["waiting"] <= 1
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["line_00000020", "line_00000030"]
    assert task.net[0].weight.dtype == torch.bfloat16 and task.weights.learning["net.0.weight"].dtype == torch.float32
    assert not same(task, train(None, 29)) and same(task, train(None))


def test_a_killed_run_ends_in_the_same_bits(tmp_path):
    """The log has no row twice, also those of the steps that are done again."""
    whole = train(tmp_path / "whole")
    code = ("import sys; from pathlib import Path; from tests.test_loop import Line, train\n"
            "class Dies(Line):\n"
            "    def update(self, step, rate):\n"
            "        if step == 17: import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
            "        return super().update(step, rate)\n"
            "train(Path(sys.argv[1]), task=Dies())\n")
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed")], cwd=Path(__file__).parents[1])
    assert died.returncode == -signal.SIGKILL
    assert same(whole, train(tmp_path / "killed"))
    assert [row["step"] for row in rows(tmp_path / "killed")] == [row["step"] for row in rows(tmp_path / "whole")]


def test_data_read_ahead_in_other_processes_is_the_same():
    assert same(train(None, 8), train(None, 8, workers=2))


def test_a_run_that_is_done_does_nothing_and_a_longer_one_goes_on(tmp_path):
    train(tmp_path, 10)
    begun = []
    assert train(tmp_path, 10, keep_on := Line(), on_resume=lambda: begun.append(True)) is keep_on and begun == [True]
    with pytest.raises(ValueError, match="after 10 steps; ask for at least as many, not 5"):
        train(tmp_path, 5)
    train(tmp_path, 20)
    assert rows(tmp_path)[-1]["step"] == 19


def test_the_bar_shows_a_running_mean_of_the_loss_in_every_step(monkeypatch):
    shown, losses = [], []

    class Watched(Line):
        def backward(self, *batch):
            found = super().backward(*batch)
            losses.append(found["loss"].item())
            return found

    monkeypatch.setattr("minicogvx.training.run.tqdm.set_postfix", lambda bar, values, refresh: shown.append(values))
    train(None, 8, Watched(), progress=True)
    steps = [sum(losses[i:i + 2]) for i in range(0, 16, 2)]
    assert shown == [{"mean loss": f"{sum(steps[max(0, i - 4):i + 1]) / min(5, i + 1):.3f}"} for i in range(8)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_takes_effect_after_the_step_with_a_checkpoint(tmp_path, number):
    class Interrupted(Line):
        def update(self, step, rate):
            if step == 12:
                signal.raise_signal(number)
            return super().update(step, rate)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 13; run the same command again"):
        train(tmp_path, task=Interrupted())
    assert signal.getsignal(number) == before
    assert (tmp_path / "checkpoints" / "line_00000013").is_dir()
    assert same(train(tmp_path), train(None))


def test_a_signal_to_the_whole_group_leaves_processes_that_read_ahead_to_the_run(tmp_path):
    """As Ctrl-C in a terminal, and a scheduler's SIGTERM, reach them as well."""
    code = ("import os, signal, sys; from pathlib import Path; from tests.test_loop import Line, train\n"
            "class Interrupted(Line):\n"
            "    def update(self, step, rate):\n"
            "        if step == 12: os.killpg(0, int(sys.argv[2]))\n"
            "        return super().update(step, rate)\n"
            "train(Path(sys.argv[1]), task=Interrupted(), workers=2)\n")
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path / number.name
        process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(int(number))], text=True,
                                   cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, start_new_session=True)
        assert "stopped after step 13" in process.communicate(timeout=60)[1]
        assert (folder / "checkpoints" / "line_00000013").is_dir()
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)


def test_steps_without_a_finite_gradient_change_nothing_and_too_many_end_the_run(tmp_path, capsys):
    few = train(tmp_path / "few", task=Line(bad=frozenset({3, 4, 19})))
    assert all(torch.isfinite(tensor).all() for tensor in few.state().values())
    assert "step 3 is not finite" in capsys.readouterr().err
    names = [path.name for path in (tmp_path / "few" / "checkpoints").iterdir()]
    assert sorted(names) == ["line_00000010", "line_00000030"], "none is written right after a bad step"
    with pytest.raises(FloatingPointError, match=f"the {BAD_STEPS} steps up to 24 are not finite: lower"):
        train(tmp_path / "many", task=Line(bad=frozenset(range(5, 40))))


def test_a_full_disk_costs_figures_or_a_checkpoint_but_not_the_run(tmp_path, monkeypatch, capsys):
    write, lost = checkpoints.write_folder, []

    def full(path, *arguments):
        if path.name in lost:
            raise OSError(f"{path} could not be written: No space left on device")
        write(path, *arguments)

    monkeypatch.setattr(checkpoints, "write_folder", full)
    for lost in (["line_00000010"], ["line_00000020"]):  # the second fails while the last step is being taken
        folder = tmp_path / lost[0]
        assert same(train(folder), train(None))
        assert f"{lost[0]} could not be written" in capsys.readouterr().err
        assert (folder / "checkpoints" / "line_00000030").is_dir()
    lost = ["line_00000009"]
    with pytest.raises(OSError, match="line_00000009 could not be written"):
        train(tmp_path / "last", 9)  # the last one is the result


def test_watchers_are_called_when_they_are_due_and_their_figures_logged_without_their_time(tmp_path):
    class Watch:
        every = 7

        def __call__(self, step, task):
            time.sleep(1.0 if step == 28 else 0.0)
            return {"seen": float(step)}

    train(tmp_path, watchers=[Watch()])
    seen = [row for row in rows(tmp_path) if "seen" in row]
    assert [(row["step"], row["seen"]) for row in seen] == [(6, 7), (13, 14), (20, 21), (27, 28)]
    assert seen[-1]["seconds"] < 1.0


def test_a_log_of_somebody_else_is_not_written_over(tmp_path):
    (tmp_path / "line.jsonl").write_text('{"file_name": "a.mp4", "text": "mine"}\n')
    with pytest.raises(ValueError, match="line.jsonl, which this run did not make"):
        train(tmp_path)
    assert "mine" in (tmp_path / "line.jsonl").read_text()


def test_settings_of_what_is_kept_are_checked(monkeypatch):
    for field, value in (("checkpoint_every", 0), ("checkpoints", 0), ("log_every", -1)):
        with pytest.raises(ValueError, match=f"{field} is {value}"):
            Keep(**{field: value})
    monkeypatch.setattr("minicogvx.training.run.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="tensorboard is not installed"):
        Keep(tensorboard=True)


def test_tensorboard_holds_the_figures_too(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "line"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (row["step"], pytest.approx(row["loss"])) for row in rows(tmp_path)]


def test_of_many_ranks_that_stop_the_first_one_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("minicogvx.training.run.any_rank", lambda noted: True)
    monkeypatch.setattr(Checkpoints, "save", lambda *_: None)
    monkeypatch.setattr(Checkpoints, "settle", lambda *_: None)
    for rank, stop, told in ((0, KeyboardInterrupt, "stopped after step 1"), (1, SystemExit, "130")):
        with pytest.raises(stop, match=told):
            list(Run("line", 2, Keep(tmp_path, progress=False), Ranks(rank, 2)))


def test_checkpoints_are_written_while_training_continues(tmp_path, monkeypatch):
    """A slow disk: the loop does not wait for it, but for the one before."""
    write, taken = Checkpoints._write, []

    def slow(self, *arguments):
        time.sleep(0.3)
        taken.append(time.perf_counter())
        write(self, *arguments)

    monkeypatch.setattr(Checkpoints, "_write", slow)
    start = time.perf_counter()
    task = train(tmp_path, 12, checkpoint_every=6)
    assert len(taken) == 2 and taken[0] - start > 0.3 and same(task, train(tmp_path, 12))
