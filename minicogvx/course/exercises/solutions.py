"""A solution is written once: in `notebooks/source/NN_topic.py`, from `### BEGIN SOLUTION` to `### END SOLUTION`."""

import inspect
import re
from pathlib import Path

from minicogvx.course.exercises import exam
from minicogvx.course.exercises.checking import find

BEGIN, END = "BEGIN SOLUTION", "END SOLUTION"  # what nbgrader looks for


def solution(number: str) -> None:
    """Prints the source of a solution, or of the package's version where the notebooks' sources are not at hand.

    In an exam it prints that there is none now. Raises ValueError for an unknown number.
    """
    exercise = find(number)
    if exam.switched_off("Solutions"):
        return
    source = solution_source(number)
    print(f"# Exercise {exercise.number}, {exercise.title}: " + ("a solution" if source else "the package's version"))
    print(source or _own_source(exercise.reference))


def solution_source(number: str, folder: Path | None = None) -> str | None:
    """The cell that solves exercise `number`, without its marks and its check; None where there is none, or in an exam.

    `folder`: where the sources lie; left out, `notebooks/source` above the package. It runs as it stands after the
    notebook's imports. One exercise a cell; `check(...)` may stand in the same cell or in a later one.
    """
    folder = None if exam.word() else folder or _source_folder()
    for path in sorted(folder.glob(f"{str(number).partition('.')[0]:0>2}_*.py")) if folder else ():
        source = _solution_in(path.read_text(encoding="utf-8"), str(number))
        if source is not None:
            return source
    return None


def _solution_in(text: str, number: str) -> str | None:
    asked = re.search(rf"^[^#\n]*\bcheck\(\s*[\"']{re.escape(number)}[\"']", text, re.MULTILINE)
    if asked is None:
        return None
    cells = re.split(r"^# %%.*\n", text[:asked.start()], flags=re.MULTILINE)
    for cell in reversed(cells):
        if BEGIN in cell:
            return "\n".join(line for line in cell.splitlines() if BEGIN not in line and END not in line).strip()
        if re.search(r"^[^#\n]*\bcheck\(", cell, re.MULTILINE):
            return None  # another exercise's
    return None


def _source_folder() -> Path | None:
    folders = (parent / "notebooks" / "source" for parent in Path(__file__).resolve().parents)
    return next((folder for folder in folders if folder.is_dir()), None)


def _own_source(reference) -> str:
    try:
        return inspect.getsource(reference).rstrip()
    except (TypeError, OSError):  # a value, or no file
        return repr(reference)
