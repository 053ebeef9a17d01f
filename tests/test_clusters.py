"""docs/clusters.md: its table is what `minicogvx memory 5b` prints now, and the tests that it names are there."""

import re
from pathlib import Path

import torch

from minicogvx.presets import preset
from minicogvx.training import memory_command
from minicogvx.training.memory import SHARDINGS, inputs_for

PAGE = Path(__file__).resolve().parents[1] / "docs" / "clusters.md"
GPUS = [1, 2, 4, 8, 16, 64]


def test_the_table_has_the_numbers_of_the_command(capsys):
    sizes, page = preset("5b"), PAGE.read_text().splitlines()
    memory_command._print_training(sizes, inputs_for(sizes), GPUS, 8, torch.bfloat16)
    told = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert f"| GiB on each GPU | {' | '.join(map(str, GPUS))} |" in page
    for name in SHARDINGS:
        words = next(words for words in told if words[0] == name)  # of the first table
        assert len(words) == 1 + len(GPUS)
        assert f"| `{words[0]}` | {' | '.join(words[1:])} |" in page


def test_every_test_that_it_names_is_there():
    named = re.findall(r"\]\(\.\./(tests/\w+\.py)\)", PAGE.read_text())
    assert len(named) > 5 and all((PAGE.parents[1] / name).is_file() for name in named)
