"""docs/one-gpu.md: its numbers are those that `minicogvx memory` prints now."""

import re
from pathlib import Path

import pytest
import torch

from minicogvx.presets import preset
from minicogvx.training import memory_command
from minicogvx.training.memory import inputs_for, memory_of_lora

PAGE = Path(__file__).resolve().parents[1] / "docs" / "one-gpu.md"
MODELS = ("2b", "5b", "1.5-5b")
GPUS = ("RTX 3090, 24 GB", "L4, 24 GB", "RTX 4090, 24 GB")
LARGER = ("A100, 80 GB", "H800, 80 GB", "H200, 141 GB")  # on the page for the 5b only


def rows_of(told: str, model: str) -> list[str]:
    """The lines of the page's two tables that follow from the command's output for one model."""
    cells = {line[:25].strip(): line[25:].split() for line in told.splitlines()}
    whole, tile = cells["all on the GPU"]
    offload, both = cells["--offload"]
    rows = [f"| {model} | {whole} | {tile} | {offload} | {both} | {cells['lora+checkpoint'][0]} |"]
    for gpu in GPUS + LARGER * (model == "5b"):
        words = [each.strip() for each in re.split(r" {2,}", next(
            line for line in told.splitlines() if line.startswith(gpu)))[1:]]
        rows.append(f"| {model} | {gpu.partition(',')[0]} | {' | '.join(words)} |")
    return rows


@pytest.mark.parametrize("model", MODELS)
def test_the_page_has_the_numbers_of_the_command(model, capsys):
    sizes, page = preset(model), PAGE.read_text().splitlines()
    inputs, arguments = inputs_for(sizes), memory_command._parser().parse_args([model])
    need = memory_of_lora(sizes.transformer, inputs, arguments.lora, True, torch.bfloat16)
    print(f"{'lora+checkpoint':25}{memory_command._gib(need.total)}")  # as _print_lora does, without its other row
    memory_command._print_generating(sizes, inputs, torch.bfloat16)
    memory_command._print_devices(sizes, inputs, arguments)
    for row in rows_of(capsys.readouterr().out, model):
        assert row in page


def test_another_number_would_be_missed():
    told = "\n".join(("all on the GPU                   28.3        21.9",
                      "--offload                        12.6        12.6",
                      "lora+checkpoint                       18.0        11.4",
                      *(f"{gpu:25}{'11 min':>12}{'--tile':>19}{'35 s':>18}" for gpu in GPUS + LARGER)))
    rows = rows_of(told, "5b")
    assert rows[0] == "| 5b | 28.3 | 21.9 | 12.6 | 12.6 | 18.0 |"
    assert rows[3] == "| 5b | RTX 4090 | 11 min | --tile | 35 s |"
    assert rows_of(told.replace("28.3", "28.4"), "5b")[0] not in rows
