"""Every notebook with its solutions filled in: each exercise is right, and all cells run.

They run on the device "stand_in" (tests/stand_in.py), as they would on a GPU: a cell that hands a CPU tensor to the
model, or the model's answer to matplotlib, fails here. As learners open them, `nbval` runs them on the processor.
"""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from minicogvx.course import notebook_builder

ROOT = Path(__file__).resolve().parents[1]
CELL_SECONDS = 600  # on one thread, beside another test and on the stand-in; nbval holds a learner's cell to 120


def verdicts(notebook) -> dict[str, str]:
    """The verdict on each exercise, such as {"2.1": "right"}."""
    text = "".join(output.get("text", "") for cell in notebook.cells if cell.cell_type == "code"
                   for output in cell.outputs)
    return dict(re.findall(r"Exercise (\d+\.\d+): (?!this notebook )([a-z ]+)", text))


@pytest.fixture
def on_the_stand_in(monkeypatch):
    """Gives a notebook whose kernel knows the stand-in device, and computes on it."""
    monkeypatch.setenv("MINICOGVX_DEVICE", "stand_in")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))

    def prepared(notebook):
        notebook.cells.insert(0, nbformat.v4.new_code_cell("from tests.stand_in import StandInTensor"))
        notebook.cells.append(nbformat.v4.new_code_cell("print(StandInTensor.operations, 'operations')"))
        return notebook

    return prepared


@pytest.mark.parametrize("source", notebook_builder.sources(), ids=lambda source: source.stem)
def test_the_solutions_are_right_and_everything_runs_with_them(source, on_the_stand_in):
    asked = re.findall(r'= check\("(\d+\.\d+)"', source.read_text())
    notebook = on_the_stand_in(notebook_builder.build(source, solutions=True))
    notebook_builder.execute(notebook, cell_seconds=CELL_SECONDS)  # raises where a cell fails
    assert verdicts(notebook) == {number: "right" for number in asked} and len(asked) == len(set(asked)) >= 4
    wrong = [line for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
             for line in output.get("text", "").splitlines() if "not right yet" in line or "not tried" in line]
    assert wrong == []
    operations = int(notebook.cells[-1].outputs[0].text.split()[0])
    assert operations > 1000  # it did compute there


def test_a_cell_that_forgets_the_device_fails(on_the_stand_in):
    notebook = on_the_stand_in(nbformat.v4.new_notebook())
    notebook.cells.insert(1, nbformat.v4.new_code_cell(
        "import torch\nfrom minicogvx.course import notebook_device\n"
        "torch.nn.Linear(2, 2).to(notebook_device())(torch.ones(1, 2))"))
    with pytest.raises(CellExecutionError, match="expected all tensors to be on the same device"):
        notebook_builder.execute(notebook)
