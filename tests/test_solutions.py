"""From an author's source with solutions: what `solution` prints, and the notebook that a learner opens."""

import sys

import nbformat
import pytest
import torch

from minicogvx.course import check, notebook_builder, solution
from minicogvx.course.exercises import find, judge, solution_source, solutions

SOURCE = '''# %% [markdown]
# # Test
# In text, check("2.1", pad_past) is not a check.

# %%
import torch

# %%
def pad_past(x, kernel_size, dilation=1):
    """Repeats the first frame."""
    ### BEGIN SOLUTION
    missing = (kernel_size - 1) * dilation
    return torch.cat([x[:, :, :1]] * missing + [x], dim=2)
    ### END SOLUTION


pad_past = check("2.1", pad_past)

# %%
def stream(conv, x, chunk):
    ### BEGIN SOLUTION
    return "streamed"
    ### END SOLUTION

# %% [markdown]
# Between an exercise and its check there may be text.

# %%
stream = check('2.3', stream)

# %%
latent_frames = check("2.2", len)
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "02_test.py").write_text(SOURCE)
    return tmp_path


def test_a_solution_is_found_in_the_notebooks_source(folder):
    text = solution_source("2.1", folder)
    assert text.startswith("def pad_past(x") and text.endswith("dim=2)") and "###" not in text
    space = {"torch": torch}
    exec(text, space)
    assert judge(find("2.1"), space["pad_past"]).state == "right"
    assert solution_source("2.3", folder) == 'def stream(conv, x, chunk):\n    return "streamed"'
    assert solution_source("2.2", folder) is None  # the nearest solution belongs to 2.3
    assert solution_source("3.1", folder) is None


def test_solution_prints_it_or_the_packages_own(folder, monkeypatch, capsys):
    monkeypatch.setattr(solutions, "_source_folder", lambda: folder)
    solution("2.1")
    out = capsys.readouterr().out
    assert out.startswith("# Exercise 2.1, pad_past: a solution\ndef pad_past(") and "BEGIN SOLUTION" not in out
    monkeypatch.setattr(solutions, "_source_folder", lambda: None)
    solution("2.1")
    out = capsys.readouterr().out
    assert out.startswith("# Exercise 2.1, pad_past: the package's version\n") and "pad_with_first_frame(x" in out


def test_the_sources_are_looked_for_above_the_package(tmp_path, monkeypatch):
    package = tmp_path / "minicogvx" / "course" / "exercises"
    monkeypatch.setattr(solutions, "__file__", str(package / "solutions.py"))
    assert solutions._source_folder() is None
    sources = tmp_path / "notebooks" / "source"
    sources.mkdir(parents=True)
    assert solutions._source_folder() == sources
    (sources / "02_test.py").write_text(SOURCE)
    assert solution_source("2.3") == 'def stream(conv, x, chunk):\n    return "streamed"'


def test_the_learners_notebook_has_stubs_and_the_other_has_solutions(folder):
    learners = notebook_builder.build(folder / "02_test.py")
    exercise = learners.cells[2].source
    assert exercise == ('def pad_past(x, kernel_size, dilation=1):\n    """Repeats the first frame."""\n'
                        '    raise NotImplementedError("write this")\n\n\npad_past = check("2.1", pad_past)')
    assert "SOLUTION" not in nbformat.writes(learners)
    nbformat.validate(learners)
    solved = notebook_builder.build(folder / "02_test.py", solutions=True)
    assert "missing = (kernel_size - 1) * dilation" in solved.cells[2].source
    assert "NotImplementedError" not in nbformat.writes(solved)
    for cell, other in zip(learners.cells, solved.cells, strict=True):
        assert (cell.id, cell.metadata) == (other.id, other.metadata)
        assert cell.source == other.source or "BEGIN SOLUTION" in other.source


def test_the_stub_in_the_notebook_counts_as_not_tried(folder, capsys):
    cell = notebook_builder.build(folder / "02_test.py").cells[2].source
    space = {"check": check}
    exec(cell, space)
    assert "Exercise 2.1: not tried yet" in capsys.readouterr().out
    assert space["pad_past"] is find("2.1").reference


def test_without_nbgrader_only_exercises_need_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "nbgrader.preprocessors", None)
    with pytest.raises(ImportError, match="nbgrader is missing; install it with"):
        notebook_builder.build(folder / "02_test.py")
    (folder / "03_plain.py").write_text("# %%\nprint(1)\n")
    assert notebook_builder.build(folder / "03_plain.py").cells[0].source == "print(1)"


def test_a_solution_without_an_end_is_refused(folder):
    path = folder / "02_test.py"
    path.write_text(SOURCE.replace("### END SOLUTION", "", 1))
    with pytest.raises(RuntimeError, match="no end solution statement"):
        notebook_builder.build(path)
