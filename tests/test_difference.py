"""A model stored as its difference from another one: small, nearly exact, and refused where it does not fit."""

import pytest
import torch
from torch import nn

from minicogvx.interop.difference import add_difference, rounded_rows, write_difference
from minicogvx.interop.safetensors_files import read_tensors


def model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Conv2d(5, 4, 2))


def test_what_differs_comes_back_nearly_exactly(tmp_path):
    old, new = model(0), model(1)
    new[0].weight.data.copy_(old[0].weight)  # equal
    new[1].weight.data[2] = old[1].weight[2]  # a row without a difference
    path = write_difference(tmp_path / "one.safetensors", old.state_dict(), new.state_dict(), {"made": "here"})
    tensors = read_tensors(path)
    assert "0.weight" not in tensors and tensors["1.weight"].dtype == torch.int8
    assert sorted(add_difference(old, path)) == ["0.bias", "1.bias", "1.weight"]
    for name, wanted in new.state_dict().items():
        step = wanted - model(0).state_dict()[name]
        assert (old.state_dict()[name] - wanted).abs().max() <= 0.006 * step.abs().max() + 1e-6  # 1 / 254, and float16
    assert torch.equal(old[1].weight[2], new[1].weight[2])
    low = model(0).bfloat16()
    add_difference(low, path)
    assert torch.allclose(low[1].weight.float(), new[1].weight, atol=0.01)


def test_rows_have_their_own_scale():
    step = torch.tensor([[1.0, -0.5], [1e-3, 5e-4], [0.0, 0.0]])
    whole, scale = rounded_rows(step)
    assert whole.dtype == torch.int8 and whole[:, 0].tolist() == [127, 127, 0] and not whole[2].any()
    assert torch.allclose(whole * scale.float()[:, None], step, rtol=0.02)


def test_what_does_not_fit_is_refused(tmp_path):
    old, new = model(0).state_dict(), model(1).state_dict()
    with pytest.raises(ValueError, match="the two models are equal"):
        write_difference(tmp_path / "none.safetensors", old, old)
    with pytest.raises(ValueError, match="tensors of other names or shapes"):
        write_difference(tmp_path / "none.safetensors", old, {"0.weight": new["0.weight"]})
    path, other = write_difference(tmp_path / "one.safetensors", old, new), nn.Sequential(nn.Linear(6, 5))
    with pytest.raises(ValueError, match="changes 1.* which this model does not have"):
        add_difference(other, path)
    with pytest.raises(FileNotFoundError):
        add_difference(other, tmp_path / "nowhere.safetensors")
