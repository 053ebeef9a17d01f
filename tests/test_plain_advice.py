"""The package's advice in a notebook: one line without a path, once in each run of a cell; elsewhere, a warning."""

import warnings
from types import SimpleNamespace

import pytest

from minicogvx.advice import Advice
from minicogvx.course import plain_advice


def test_advice_is_a_line_once_in_each_run_of_a_cell(monkeypatch, capsys):
    shell = SimpleNamespace(execution_count=1)
    monkeypatch.setattr(plain_advice, "_shell", lambda: shell)
    monkeypatch.setattr(plain_advice, "_printed", set())
    with warnings.catch_warnings():
        warnings.showwarning = said_by_python = lambda *a, **k: print("python:", a[0])
        plain_advice.print_advice_plainly()
        assert warnings.showwarning is not said_by_python
        for _ in range(3):  # the same line of code, as in a loop over clips
            warnings.warn("the word 'dog' is new", Advice, stacklevel=1)
        warnings.warn("the word 'cat' is new.", Advice, stacklevel=1)
        assert capsys.readouterr() == ("Note: the word 'dog' is new.\nNote: the word 'cat' is new.\n", "")
        shell.execution_count = 2
        warnings.warn("the word 'dog' is new", Advice, stacklevel=1)
        assert capsys.readouterr().out == "Note: the word 'dog' is new.\n"
        warnings.warn("of another library", UserWarning, stacklevel=1)
        assert capsys.readouterr().out == "python: of another library\n"


def test_a_cell_may_still_collect_advice(monkeypatch, capsys):
    monkeypatch.setattr(plain_advice, "_shell", lambda: SimpleNamespace(execution_count=1))
    with warnings.catch_warnings():
        plain_advice.print_advice_plainly()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            warnings.warn("this", Advice, stacklevel=1)
    assert [str(each.message) for each in found] == ["this"] and capsys.readouterr().out == ""


def test_outside_notebooks_warnings_stay_pythons(monkeypatch):
    before = warnings.showwarning
    plain_advice.print_advice_plainly()  # pytest is no notebook
    assert warnings.showwarning is before
    with pytest.warns(UserWarning, match="as ever"):
        warnings.warn("as ever", Advice, stacklevel=1)
