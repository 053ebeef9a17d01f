"""A checkpoint folder of one process: replaced atomically, rejected if damaged. Two ranks: test_distributed.py."""

import json
import zlib

import pytest
import torch

from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharded_checkpoints import load_sharded, save_sharded

ALONE = Ranks()


def test_a_checkpoint_replaces_the_last_and_is_no_pickle(tmp_path):
    for value in (1.0, 2.0):
        save_sharded(tmp_path / "c", {"w": torch.full((3,), value), "n": torch.tensor(value)}, ALONE, {"at": value})
    w, n = torch.zeros(3), torch.zeros(())
    assert load_sharded(tmp_path / "c", {"w": w, "n": n}, ALONE) == {"at": 2.0}
    assert w.tolist() == [2.0, 2.0, 2.0] and n.item() == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert sorted(path.suffix for path in (tmp_path / "c").iterdir()) == [".json", ".safetensors"]
    index = json.loads((tmp_path / "c" / "checkpoint.json").read_text())
    (name, (size, checksum)), = index["files"].items()
    data = (tmp_path / "c" / name).read_bytes()
    assert (size, checksum) == (len(data), zlib.crc32(data)) and index["tensors"] == {"w": [3], "n": []}


@pytest.mark.parametrize("harm, message", [
    (lambda file: file.unlink(), "is missing"), (lambda file: file.write_bytes(file.read_bytes()[:-4]), "is cut short"),
    (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x00"), "is damaged"),
])
def test_a_harmed_checkpoint_is_refused_and_changes_nothing(tmp_path, harm, message):
    save_sharded(tmp_path / "c", {"w": torch.ones(8)}, ALONE)
    harm(next((tmp_path / "c").glob("*.safetensors")))
    w = torch.zeros(8)
    with pytest.raises(ValueError, match=message):
        load_sharded(tmp_path / "c", {"w": w}, ALONE)
    assert w.sum() == 0


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save_sharded(tmp_path / "c", {"w": torch.ones(8)}, ALONE)
    for tensors, found in (({"w": torch.ones(4)}, r"\(8,\)"), ({"v": torch.ones(8)}, "missing")):
        with pytest.raises(ValueError, match=f"is {found}; this run needs"):
            load_sharded(tmp_path / "c", tensors, ALONE)
    with pytest.raises(FileNotFoundError, match="checkpoint.json"):
        load_sharded(tmp_path / "none", {}, ALONE)
