"""Accepted answers are kept as source, and given back in later notebooks as functions of their own."""

import linecache
import sys
import types

import pytest
import torch

from minicogvx.course import check, yours
from minicogvx.course.exercises import checking, find
from minicogvx.course.exercises.answers import answer_path, as_source

CELL = """
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import nn

EPS, table = 1e-5, torch.zeros(3)
unused = torch.zeros(3)

def centred(x: Float[torch.Tensor, "*rows d"]):
    unused = x.mean(dim=-1, keepdim=True)  # a name of its own, though the notebook has it, too
    return x - unused

def normalise(x, weight, bias, eps=EPS):
    x = centred(x)
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight + bias

def with_a_table(x, weight, bias, eps=1e-5):
    return F.layer_norm(x + table.sum(), x.shape[-1:], weight, bias, eps)

def again(x, weight, bias, eps=1e-5):
    return normalise(x, weight, bias, eps)

def factory():
    def normalise(x, weight, bias, eps=1e-5):
        return inner(x, weight, bias, eps)
    inner = again
    return normalise

class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x
"""


@pytest.fixture(autouse=True)
def record_file(tmp_path, monkeypatch):
    path = tmp_path / "home" / "progress.json"
    monkeypatch.setenv("MINICOGVX_PROGRESS", str(path))
    monkeypatch.setattr(checking, "_verdicts", {})
    return path


@pytest.fixture
def cell(monkeypatch):
    """What a notebook's cell defines; its source is known to linecache alone, as in Jupyter."""
    module = types.ModuleType("a_notebook")
    monkeypatch.setitem(sys.modules, "a_notebook", module)
    linecache.cache["<cell 1>"] = (len(CELL), None, CELL.splitlines(keepends=True), "<cell 1>")
    exec(compile(CELL, "<cell 1>", "exec"), vars(module))
    return module


def test_an_answer_comes_back_with_its_helpers_and_constants(cell, capsys, record_file):
    assert check("7.1", cell.normalise) is cell.normalise
    text = answer_path("7.1").read_text()
    assert answer_path("7.1") == record_file.with_name("progress_answers") / "exercise_7_1.py"
    assert "EPS = 1e-05" in text and "def centred" in text and "from jaxtyping import Float" in text
    assert "unused = tensor" not in text and "rearrange" not in text
    capsys.readouterr()
    mine = yours("7.1")
    assert capsys.readouterr().out == "Exercise 7.1: this notebook computes with your own normalise.\n"
    x, one = torch.randn(2, 3, 4), torch.ones(4)
    assert mine is not cell.normalise and torch.equal(mine(x, one, one), cell.normalise(x, one, one))
    assert check("7.1", mine) is mine and yours("7.1") is not None, "what came back can be checked and kept again"
    assert answer_path("7.1").read_text() == text


def test_an_answer_under_another_name_comes_back(cell, capsys):
    assert as_source("mine", cell.again).endswith("mine = again\n")
    check("7.1", cell.again)  # which calls a function that has the exercise's name
    assert yours("7.1") is find("7.1").reference
    assert "two functions, again and normalise" in capsys.readouterr().out


def test_without_an_answer_the_package_s_version_comes_back(capsys):
    assert yours("7.1") is find("7.1").reference
    assert capsys.readouterr().out == ("Exercise 7.1: this notebook computes with the package's function as normalise; "
                                       "yours is not there yet.\n")
    with pytest.raises(ValueError, match="99.1"):
        yours("99.1")


def test_what_only_its_notebook_has_is_named(cell, capsys):
    check("7.1", cell.with_a_table)
    assert yours("7.1") is find("7.1").reference
    assert "needs something that only its notebook has: table" in capsys.readouterr().out
    check("7.1", cell.factory())
    yours("7.1")
    assert "variables of the function around normalise" in capsys.readouterr().out
    check("7.1", lambda x, weight, bias, eps=1e-5: cell.normalise(x, weight, bias, eps))
    assert yours("7.1") is find("7.1").reference


def test_an_edited_file_never_stops_a_notebook(cell, capsys):
    check("7.1", cell.normalise)
    path = answer_path("7.1")
    for text, said in (("def normalise(", "SyntaxError"), ("1 / 0", "ZeroDivisionError"), ("x = 1", "defines no"),
                       ("def normalise(x, weight, bias, eps=0.0):\n    return x", "no longer passes")):
        path.write_text(text)
        capsys.readouterr()
        assert yours("7.1") is find("7.1").reference
        assert said in capsys.readouterr().out
    path.write_bytes(b"\xff\xff")
    assert yours("7.1") is find("7.1").reference


def test_a_wrong_answer_leaves_the_kept_one(cell):
    check("7.1", cell.normalise)
    before = answer_path("7.1").read_text()
    check("7.1", lambda x, weight, bias, eps=1e-5: x)
    assert answer_path("7.1").read_text() == before


def test_classes_values_and_what_the_package_gave(cell):
    around = {}
    exec(as_source("Doubled", cell.Doubled), around)
    assert torch.equal(around["Doubled"]()(torch.ones(2)), torch.full((2,), 2.0))
    assert as_source("two_places", (1, "a")) == "two_places = (1, 'a')\n"
    with pytest.raises(LookupError, match="value"):
        as_source("value", torch.ones(2))
    from minicogvx.transformer.expert_norm import modulate
    cell.centred = modulate  # as if `check` had handed back the package's version
    assert "from minicogvx.transformer.expert_norm import modulate as centred" in as_source("it", cell.normalise)


def test_a_folder_that_cannot_be_written_is_said(cell, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINICOGVX_PROGRESS", str(tmp_path / "file" / "progress.json"))
    assert check("7.1", cell.normalise) is cell.normalise
    assert "could not be kept" in capsys.readouterr().out
