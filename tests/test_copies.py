"""The learner's copies of the notebooks: without outputs, and nothing that a learner wrote is ever lost."""

import json

import nbformat
import pytest

from minicogvx.course import copies


@pytest.fixture
def course(tmp_path):
    """A folder with one notebook, as it was built."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write(folder, "print(1)")
    return folder


def write(folder, source: str) -> None:
    output = nbformat.v4.new_output("stream", text="1\n")
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"},
                                                  "minicogvx": {"seconds": 3}})
    notebook.cells = [nbformat.v4.new_markdown_cell("# One", id="cell-00"),
                      nbformat.v4.new_code_cell(source, execution_count=1, outputs=[output], id="cell-01",
                                                metadata={"tags": ["folded"], "jupyter": {"outputs_hidden": True}})]
    nbformat.write(notebook, folder / "00_one.ipynb")


def copied(course) -> dict[str, list[str]]:
    """What was done, without the states of no notebook."""
    return {state: names for state, names in copies.copy_notebooks(course, mine(course).parent).items() if names}


def mine(course):
    return course.parent / "my_notebooks" / "00_one.ipynb"


def open_and_save(course, **fields) -> None:
    """As JupyterLab does: `fields` of the code cell are changed."""
    notebook = nbformat.read(mine(course), as_version=nbformat.NO_CONVERT)
    notebook.cells[1].update(fields)
    nbformat.write(notebook, mine(course))


def test_a_copy_is_the_notebook_without_its_outputs(course):
    before = (course / "00_one.ipynb").read_bytes()
    assert copied(course) == {"new": ["00_one.ipynb"]}
    copy, original = (nbformat.read(path, as_version=nbformat.NO_CONVERT) for path in
                      (mine(course), course / "00_one.ipynb"))
    nbformat.validate(copy)
    assert [cell.source for cell in copy.cells] == [cell.source for cell in original.cells]
    assert copy.cells[1].outputs == [] and copy.cells[1].execution_count is None
    assert copy.cells[1].metadata == original.cells[1].metadata
    assert (course / "00_one.ipynb").read_bytes() == before
    assert copied(course) == {"kept": ["00_one.ipynb"]}


def test_what_a_learner_wrote_is_never_written_over(course, subtests):
    output = nbformat.v4.new_output("stream", text="mine\n")
    for fields, state in (({"source": "print('mine')"}, "outdated"), ({"outputs": [output]}, "updated")):
        with subtests.test(state):
            mine(course).unlink(missing_ok=True)
            write(course, "print(1)")
            copied(course)
            open_and_save(course, **fields)
            saved = mine(course).read_bytes()
            assert copied(course) == {"kept": ["00_one.ipynb"]} and mine(course).read_bytes() == saved
            write(course, "print(2)")  # the course goes on
            assert copied(course) == {state: ["00_one.ipynb"]}
            assert (mine(course).read_bytes() == saved) == (state == "outdated")
    assert "print(2)" in mine(course).read_text()


def test_a_file_of_another_kind_stays(course, subtests):
    mine(course).parent.mkdir()
    for text in ("", "no notebook", "[]", "{}", json.dumps({"cells": [], "metadata": {}})):
        with subtests.test(text):
            mine(course).write_text(text)
            assert copied(course) == {"kept": ["00_one.ipynb"]} and mine(course).read_text() == text


def test_what_was_done_is_said(course, monkeypatch, capsys):
    monkeypatch.setattr(copies, "NOTEBOOKS", course)
    monkeypatch.setattr(copies, "MINE", mine(course).parent)
    assert copies.main([]) == 0
    assert capsys.readouterr().out == "my_notebooks: 1 new, 0 brought up to date.\n"
    assert copies.main([]) == 0 and capsys.readouterr().out == ""
    open_and_save(course, source="mine")
    write(course, "print(2)")
    copies.main([])
    assert "You have worked in 00_one.ipynb, and the course has changed since." in capsys.readouterr().out


def test_many_learners_may_share_a_clone(course, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(copies, "NOTEBOOKS", course)
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "ada"))  # Windows' name for it
    assert copies.main(["--folder", "~/course"]) == 0
    assert capsys.readouterr().out == "course: 1 new, 0 brought up to date.\n"
    assert (tmp_path / "ada" / "course" / "00_one.ipynb").exists() and not mine(course).exists()


def test_without_notebooks_that_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(copies, "NOTEBOOKS", tmp_path)  # as where the package was installed from a wheel
    with pytest.raises(SystemExit):
        copies.main([])
    assert "there are no notebooks in" in capsys.readouterr().err
