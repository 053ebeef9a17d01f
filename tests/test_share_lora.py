"""The section "Share it" of docs/own_films.md: its Python runs as it stands there, with a LoRA of the toy."""

import re
from pathlib import Path

import pytest
import torch

from minicogvx import cli
from minicogvx.interop import find_folder
from minicogvx.interop.folder_configs import read_configs
from minicogvx.training.lora import add_lora, lora_tensors, write_lora
from minicogvx.transformer.model import ExpertTransformer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own_films.md"


@pytest.fixture
def shared(tmp_path, monkeypatch) -> Path:
    """Where `runs/mine` is a LoRA of the toy at rank 16; it is the current folder."""
    model = ExpertTransformer(read_configs(find_folder("toy")).transformer)
    add_lora(model, 16, 16.0)
    monkeypatch.chdir(tmp_path)
    write_lora("runs/mine", {name: torch.full_like(one, 0.01) for name, one in lora_tensors(model).items()}, 16, 16.0)
    return tmp_path


def test_its_lines_in_python_and_in_diffusers_run_as_they_stand(shared, capsys):
    section = re.search(r"^## 4\. Share it\n(.*?)^## ", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[1]
    size = (shared / "runs/mine/pytorch_lora_weights.safetensors").stat().st_size
    assert f"{size / 1e6:.1f} MB at rank 16" in section
    assert cli.main(re.search(r"minicogvx (export [\w/]+)", section)[1].split()) == 0
    assert "max_sequence_length=32, guidance_scale=3.0, height=64, width=64" in capsys.readouterr().err
    ours, theirs = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    few = "num_inference_steps=2"
    for code, call in ((ours, 'right"'), (theirs, "guidance_scale=3.0")):
        assert code.count(call) == 1
        exec(code.replace(call, f"{call}, {few}"), {})
    for name in ("shared.mp4", "shared.gif"):
        assert (shared / "outputs" / name).stat().st_size > 1000
