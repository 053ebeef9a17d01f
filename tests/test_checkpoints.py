"""A run's checkpoints in one process: written while training continues, replaced atomically, refused if damaged.

Several ranks: test_engine_ranks.py.
"""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

from minicogvx.engine import checkpoint_files
from minicogvx.engine.checkpoints import Checkpoints
from minicogvx.engine.optim import MuonAdamW


def checkpoints(folder: Path, **options) -> Checkpoints:
    return Checkpoints(folder, "run", **options)


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    """Of every kind: in 16 bits, with a stride, a scalar, whole numbers."""
    matrix = torch.arange(12.0).view(3, 4) + value
    return {"weights/net.weight": matrix.mT, "weights/net.bias": matrix[0].bfloat16(),
            "optimizer/net.weight/step": torch.tensor(value), "seen": torch.tensor([int(value), 2**40])}


def save(folder: Path, step: int, value: float | None = None, **options) -> Path:
    files = checkpoints(folder, **options)
    files.save(step, tensors(step if value is None else value))
    files.settle()
    return folder / f"run_{step:08d}"


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_tensor_and_note_is_restored_from_safetensors_and_json(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "FILE_BYTES", 60)  # so that one rank writes several files
    path = save(tmp_path, 500, value=7.0)
    found = tensors(0.0)
    assert checkpoints(tmp_path).load(found) == (500, [])
    assert same(found, tensors(7.0)) and found["weights/net.bias"].dtype == torch.bfloat16
    assert names(tmp_path) == ["run_00000500"]
    index = json.loads((path / "checkpoint.json").read_text())
    assert names(path) == ["checkpoint.json", *sorted(index["files"])] and len(index["files"]) > 1
    assert all(name.endswith(".safetensors") for name in index["files"])
    for name, (size, checksum) in index["files"].items():
        data = (path / name).read_bytes()
        assert (len(data), zlib.crc32(data)) == (size, checksum)


def test_what_is_written_is_the_state_at_the_step_although_training_continues(tmp_path, monkeypatch):
    real, go = checkpoint_files.dcp.save, threading.Event()
    monkeypatch.setattr(checkpoint_files.dcp, "save", lambda *args, **named: go.wait(60) and real(*args, **named))
    live, files = tensors(1.0), checkpoints(tmp_path)
    files.save(1, live)
    for tensor in live.values():
        tensor.zero_()
    assert not files.paths()
    go.set()
    files.settle()
    found = tensors(0.0)
    assert checkpoints(tmp_path).load(found)[0] == 1 and same(found, tensors(1.0))


def flip_a_bit(path: Path, file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


HARMS = {
    "a file is missing": lambda path, file: file.unlink(),
    "a file is cut short": lambda path, file: file.write_bytes(file.read_bytes()[:-4]),
    "a bit is flipped": flip_a_bit,
    "a file is empty": lambda path, file: file.write_bytes(b""),
    "no index": lambda path, file: (path / "checkpoint.json").unlink(),
    "an index that is no JSON": lambda path, file: (path / "checkpoint.json").write_text("{"),
    "an index without a step": lambda path, file: (path / "checkpoint.json").write_text('{"files": {}, "tensors": {}}'),
    "an empty folder": lambda path, file: (shutil.rmtree(path), path.mkdir()),
}


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, subtests):
    for harm, apply in HARMS.items():
        with subtests.test(msg=harm):
            folder = tmp_path / harm
            paths = [save(folder, step) for step in (1, 2)]
            apply(paths[1], next(paths[1].glob("*.safetensors")))
            found = tensors(0.0)
            step, (sentence,) = checkpoints(folder).load(found)
            assert step == 1 and same(found, tensors(1.0))
            assert str(paths[1]) in sentence and "\n" not in sentence

            apply(paths[0], next(paths[0].glob("*.safetensors")))  # none is left: nothing is changed
            found = tensors(0.0)
            step, sentences = checkpoints(folder).load(found)
            assert (step, len(sentences)) == (0, 2) and same(found, tensors(0.0))


def test_a_file_that_cannot_be_read_is_passed_over_too(tmp_path, monkeypatch):
    paths = [save(tmp_path, step) for step in (1, 2)]
    checksum = checkpoint_files._checksum

    def broken(path):
        if paths[1] in path.parents:
            raise OSError(5, "Input/output error")
        return checksum(path)

    monkeypatch.setattr(checkpoint_files, "_checksum", broken)
    step, *_, (sentence,) = checkpoints(tmp_path).load(tensors(0.0))
    assert step == 1 and "Input/output error" in sentence


def test_other_tensors_and_numbers_that_are_not_finite_are_refused(tmp_path, subtests):
    path = save(tmp_path, 1)
    for name, other in (("weights/net.bias", torch.zeros(5)), ("extra", torch.zeros(2)), ("seen", None)):
        with subtests.test(msg=name):
            wanted = tensors(0.0) | {name: other}
            wanted = {key: tensor for key, tensor in wanted.items() if tensor is not None}
            before = {key: tensor.clone() for key, tensor in wanted.items()}
            with pytest.raises(ValueError, match=f"^{name} in {path} is .* this run needs "):
                checkpoints(tmp_path).load(wanted)
            assert same(wanted, before)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="^weights/net.weight holds NaN or infinity"):
            checkpoints(tmp_path).save(2, tensors() | {"weights/net.weight": torch.full((4, 3), bad)})
    assert names(tmp_path) == ["run_00000001"]


def test_the_newest_are_kept_and_damaged_ones_of_later_steps_are_not(tmp_path):
    for step in (8, 9):
        (save(tmp_path, step) / "checkpoint.json").unlink()
    (tmp_path / "run_2").mkdir()  # of somebody else
    for step, kept in ((2, ["run_00000002"]), (4, ["run_00000002", "run_00000004"]),
                       (6, ["run_00000004", "run_00000006"])):
        save(tmp_path, step)
        assert names(tmp_path) == [*kept, "run_2"]
    save(tmp_path, 6, value=5.0)  # again: it takes the place of the first
    found = tensors(0.0)
    assert checkpoints(tmp_path).load(found)[0] == 6 and same(found, tensors(5.0))


def test_a_full_disk_costs_one_checkpoint_and_none_of_those_before(tmp_path, monkeypatch):
    files = checkpoints(tmp_path)
    save(tmp_path, 1)

    def full(*args, **named):
        raise OSError(28, "No space left on device")

    for step, (owner, function) in enumerate(((checkpoint_files.dcp, "save"), (checkpoint_files, "write_json"),
                                              (checkpoint_files.os, "replace")), 2):
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, full)
            files.save(step, tensors(2.0))
            with pytest.raises(OSError, match=f"run_{step:08d} could not be written: .*No space left"):
                files.settle()
        files.settle()  # it is reported once
        assert names(tmp_path) == ["run_00000001"]
    files.save(5, tensors(5.0))
    files.settle()
    assert names(tmp_path) == ["run_00000001", "run_00000005"]
    (tmp_path / "file").touch()
    files = Checkpoints(tmp_path / "file", "run")
    files.save(1, tensors())
    with pytest.raises(OSError, match="could not be written"):
        files.settle()


KILLED = """
import sys, torch
from pathlib import Path
from minicogvx.engine.checkpoints import Checkpoints
files, live = Checkpoints(Path(sys.argv[1]), "run"), {f"w{i}": torch.zeros(20_000) for i in range(8)}
step, _ = files.load(live)
while True:
    step += 1
    for tensor in live.values():
        tensor.fill_(step)
    files.save(step, live)
"""


def test_kill_minus_9_at_any_moment_leaves_the_newest_intact(tmp_path):
    newest = ""
    for pause in (0.0, 0.013, 0.031):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[1])
        deadline = time.monotonic() + 90
        while not (there := [path.name for path in checkpoints(tmp_path).paths()]) or there[0] <= newest:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.002)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        (tmp_path / ".run_00009999.part").mkdir(exist_ok=True)  # what such a run can leave
        found = {f"w{i}": torch.zeros(20_000) for i in range(8)}
        step, passed_over = checkpoints(tmp_path).load(found)
        assert not passed_over and f"run_{step:08d}" >= there[0]
        assert all(torch.equal(tensor, torch.full_like(tensor, step)) for tensor in found.values())
        assert not list(tmp_path.glob(".*"))
        newest = f"run_{step:08d}"


def nets(order: slice = slice(None)) -> tuple[nn.Module, MuonAdamW]:
    """A kernel and a matrix for Muon, the rest for AdamW, one of them frozen; named in any order."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 3), "linear": nn.Linear(3, 3), "frozen": nn.Linear(2, 2)})
    net["frozen"].requires_grad_(False)
    # No clipping: the norm would depend on the order in the last bit.
    return net, MuonAdamW([*net.named_parameters()][order], muon_lr=0.1, adamw_lr=0.1, weight_decay=0.01, clip=1e9)


def take_steps(net: nn.Module, optimizer: MuonAdamW, steps: range) -> None:
    for step in steps:
        for i, p in enumerate(net.parameters()):
            if p.requires_grad:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + i))
        optimizer.step(0.5)


def test_optimizer_state_goes_by_name_and_not_by_place(tmp_path):
    (through, whole), (net, optimizer) = nets(), nets()
    names_before = optimizer.state().keys()
    assert names_before == {"conv.weight/momentum_buffer", "linear.weight/momentum_buffer", *(
        f"{name}.bias/{slot}" for name in ("conv", "linear") for slot in ("step", "exp_avg", "exp_avg_sq"))}
    take_steps(through, whole, range(4))  # without its state having been asked for
    take_steps(net, optimizer, range(2))
    assert optimizer.state().keys() == names_before
    files = checkpoints(tmp_path)
    files.save(2, {**net.state_dict(), **optimizer.state()})
    files.settle()
    other, reordered = nets(order=slice(None, None, -1))
    for p in other.parameters():
        nn.init.zeros_(p)
    files.load({**other.state_dict(), **reordered.state()})
    take_steps(other, reordered, range(2, 4))
    assert same(dict(other.state_dict()), dict(through.state_dict()))
    assert same(reordered.state(), whole.state())
