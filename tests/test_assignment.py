"""Assignments for nbgrader: the same exercises, and nbgrader's own autograder gives each copy what it deserves."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from minicogvx.course import assignment, notebook_builder
from minicogvx.course.exercises import all_exercises
from minicogvx.course.exercises.solutions import BEGIN

ROOT = Path(__file__).resolve().parents[1]
NAME = "02_small"
SMALL = '''# %% [markdown]
# # Small
#
# **What does a convolution
# see?** And **more**.

# %%
import torch

from minicogvx.course import check

# %% [markdown]
# ### Exercise 2.1: pad_past (difficulty 1 of 3, 10 minutes)

# %%
def pad_past(x, kernel_size, dilation=1):
    ### BEGIN SOLUTION
    return torch.cat([x[:, :, :1]] * ((kernel_size - 1) * dilation) + [x], dim=2)
    ### END SOLUTION


pad_past = check("2.1", pad_past)
print(pad_past(torch.zeros(1, 1, 4, 2, 2), 3).shape)

# %%
def sequence_length(frames, height, width, text, patch_t=1):
    ### BEGIN SOLUTION
    latent_frames = (frames - 1) // 4 + 1
    return text + (latent_frames + patch_t - 1) // patch_t * (height // 16) * (width // 16)
    ### END SOLUTION

# %%
sequence_length = check("0.5", sequence_length)

# %%
def stretch(z, frames):
    ### BEGIN SOLUTION
    times = (frames - 1) // max(z.shape[2] - 1, 1)
    return torch.cat([z[:, :, :1], z[:, :, 1:].repeat_interleave(times, dim=2)], dim=2)
    ### END SOLUTION


stretch = check("2.3", stretch)
'''


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / f"{NAME}.py"
    path.write_text(SMALL)
    return path


def marked(notebook) -> dict:
    """The cells with nbgrader's marks, by their names."""
    return {cell.metadata["nbgrader"]["grade_id"]: cell for cell in notebook.cells if "nbgrader" in cell.metadata}


def test_graded_cells_ask_for_the_verdict_and_points_are_the_difficulty(source):
    from nbgrader.nbgraderformat import MetadataValidator

    notebook = assignment.assignment_of(source)
    nbformat.validate(notebook)
    MetadataValidator().validate_nb(notebook)
    cells = marked(notebook)
    assert list(cells) == ["exercise-2-1", "grade-2-1", "exercise-0-5", "grade-0-5", "exercise-2-3", "grade-2-3",
                           "question-02", "explain-02"]
    assert cells["grade-0-5"].source == 'from minicogvx.course import grade\n\ngrade("0.5", sequence_length)'
    assert [cells[f"grade-{each}"].metadata.nbgrader.points for each in ("2-1", "0-5", "2-3")] == [1, 2, 1]
    places = {id(cell): i for i, cell in enumerate(notebook.cells)}
    assert 'check("0.5"' in notebook.cells[places[id(cells["grade-0-5"])] - 1].source  # not between it and its check
    assert "*What does a convolution see?*" in cells["question-02"].source and BEGIN in cells["explain-02"].source


def test_every_exercise_of_the_course_is_graded_once(subtests):
    for path in notebook_builder.sources():
        with subtests.test(path.stem):
            cells = marked(assignment.assignment_of(path))
            mine = [each for each in all_exercises() if each.number.partition(".")[0] == str(int(path.stem[:2]))]
            points = {name: cell.metadata.nbgrader.points for name, cell in cells.items() if name.startswith("grade-")}
            assert points == {f"grade-{each.number.replace('.', '-')}": each.difficulty for each in mine}
            assert sum(name.startswith("exercise-") for name in cells) == len(mine)
            assert cells[f"question-{path.stem[:2]}"].source.count("?*") == 1  # the notebook's own question


def test_a_solution_that_nothing_checks_is_refused(source, subtests):
    for line in ('stretch = check("2.3", stretch)\n', 'sequence_length = check("0.5", sequence_length)\n'):
        with subtests.test(line):
            source.write_text(SMALL.replace(line, ""))
            with pytest.raises(ValueError, match=r"02_small.py: the solution that begins with 'def .*' is not checked"):
                assignment.assignment_of(source)


def test_what_a_teacher_edited_is_kept(source, tmp_path):
    folder = tmp_path / "class"
    assert assignment.make_assignment(source, folder) == "02_small: 4 graded cells, 7 points"
    mine, config = folder / "source" / NAME / f"{NAME}.ipynb", folder / "nbgrader_config.py"
    edited = mine.read_text().replace("graded by a person", "graded by Ada").replace('"points": 3', '"points": 5')
    mine.write_text(edited)
    config.write_text(config.read_text() + "# mine\n")
    assert assignment.make_assignment(source, folder) == (
        "02_small: 4 graded cells, 9 points; its source differs from the course's and was kept "
        "(--force writes it anew)")
    released = folder / "release" / NAME / f"{NAME}.ipynb"
    assert mine.read_text() == edited and "graded by Ada" in released.read_text() and "# mine" in config.read_text()
    assert assignment.make_assignment(source, folder, force=True) == "02_small: 4 graded cells, 7 points"
    assert "# mine" not in config.read_text() and "Ada" not in released.read_text()
    with pytest.raises(SystemExit):
        assignment.main(["99_nothing"])


# ---- nbgrader grades


def submitted(folder: Path, student: str, answers: dict[str, str], without: str = "") -> None:
    """A copy of the release in which cells have other sources, and one is missing."""
    notebook = nbformat.read(folder / "release" / NAME / f"{NAME}.ipynb", as_version=nbformat.NO_CONVERT)
    for name, text in answers.items():
        marked(notebook)[name].source = text
    notebook.cells = [cell for cell in notebook.cells if cell is not marked(notebook).get(without)]
    path = folder / "submitted" / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)


def scores(folder: Path, student: str) -> dict[str, float]:
    gradebook = assignment.nbgrader_of(folder).gradebook
    with gradebook:
        notebook = gradebook.find_submission_notebook(NAME, NAME, student)
        return {grade.name: None if grade.needs_manual_grade else grade.score for grade in notebook.grades}


def test_nbgrader_gives_nothing_all_and_a_part(source, tmp_path):
    folder, progress = tmp_path / "class", tmp_path / "teacher.json"
    assignment.make_assignment(source, folder)
    released = (folder / "release" / NAME / f"{NAME}.ipynb").read_text()
    assert BEGIN not in released and released.count("NotImplementedError") == 3 and "repeat_interleave" not in released
    assert "One point each" not in released and assignment.NO_ANSWER in released

    solutions = {name: cell.source for name, cell in marked(assignment.assignment_of(source)).items()
                 if name.startswith("exercise")}
    wrong = solutions["exercise-0-5"].replace("(frames - 1) // 4 + 1", "frames // 4")
    leaves = solutions["exercise-2-3"].replace("times =", "import sys; sys.exit(1)\n    times =")
    chatty = solutions["exercise-2-1"].replace("return", "import sys; print('careful', file=sys.stderr); return")
    submitted(folder, "untouched", {})
    submitted(folder, "solved", solutions | {"exercise-2-1": chatty, "explain-02": "Because it looks back."})
    submitted(folder, "partly", solutions | {"exercise-0-5": wrong, "exercise-2-3": leaves}, without="grade-0-5")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
                                "MINICOGVX_PROGRESS": str(progress), "http_proxy": "http://127.0.0.1:9",
                                "https_proxy": "http://127.0.0.1:9"}  # no network is needed
    done = subprocess.run([sys.executable, "-m", "nbgrader", "autograde", NAME], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert scores(folder, "untouched") == {"grade-2-1": 0, "grade-0-5": 0, "grade-2-3": 0, "explain-02": 0}
    assert scores(folder, "solved") == {"grade-2-1": 1, "grade-0-5": 2, "grade-2-3": 1, "explain-02": None}
    assert scores(folder, "partly") == {"grade-2-1": 1, "grade-0-5": 0, "grade-2-3": 0, "explain-02": 0}
    assert not progress.exists()  # grading is not the teacher's own progress
    assert list(json.loads((folder / "autograded" / "solved" / NAME / "progress.json").read_text())) == [
        "2.1", "0.5", "2.3"]
    assert "2.3" not in (folder / "autograded" / "partly" / NAME / "progress.json").read_text()
    graded = (folder / "autograded" / "partly" / NAME / f"{NAME}.ipynb").read_text()
    assert "it must be 112. The first frame stays alone" in graded and "SystemExit: 1" in graded
    shutil.rmtree(folder)
