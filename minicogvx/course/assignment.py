"""A notebook of the course as an assignment for nbgrader. `make assignment` makes all of them.

    python -m minicogvx.course.assignment [NN_topic ...] [--folder assignments] [--force]

Below the folder: `source/NN_topic/` with solutions, as a teacher may edit it, `release/NN_topic/`, which students get,
`gradebook.db` and `nbgrader_config.py`. After the check of each exercise stands a graded cell, which asks for the
verdict and is worth as many points as the exercise is difficult; at the end, a question whose answer is graded by hand.
A source that was edited, and the configuration, are never written over unless --force says so.
"""

import argparse
import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

from minicogvx.course import notebook_builder
from minicogvx.course.exercises import find
from minicogvx.course.exercises.solutions import BEGIN, END
from minicogvx.files import written_whole

FOLDER = notebook_builder.ROOT.parent / "assignments"
EXPLAIN_POINTS = 3
CHECK = re.compile(r"^(\w+)\s*=\s*check\(\s*[\"'](\d+\.\d+)[\"']", re.MULTILINE)
OPENING = re.compile(r"\*\*(.+?)\*\*", re.DOTALL)  # of a notebook, its question
NO_ANSWER = "*Your answer, in place of this line.*"
CONFIG = f'''"""The configuration of nbgrader for the course; yours to change."""
import os

c = get_config()
c.CourseDirectory.course_id = "minicogvx"
c.ClearSolutions.code_stub = {{"python": {notebook_builder.STUB!r}}}  # which counts as not tried
c.ClearSolutions.text_stub = {NO_ANSWER!r}
c.ExecutePreprocessor.timeout = c.Execute.timeout = 300  # seconds for a cell
c.OverwriteCells.add_missing_cells = True  # a graded cell that was deleted costs its points and no more
c.IgnorePattern.enabled, c.IgnorePattern.pattern = True, "."  # a warning on stderr costs no points

# Beside each graded copy: neither the progress of whoever grades, nor that of the student before.
os.environ["MINICOGVX_PROGRESS"] = "progress.json"
'''


def assignment_of(source: Path):
    """The notebook of `source` with solutions and nbgrader's marks, an nbformat NotebookNode.

    Raises ValueError where a solution has no `name = check("N.k", name)` in its cell or a later one.
    """
    notebook = notebook_builder.build(source, solutions=True)
    question = _question(notebook.cells[0].source)
    cells, unchecked = [], None
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type != "code":
            continue
        if BEGIN in cell.source:
            if unchecked is not None:
                break
            unchecked = cell
        for name, number in CHECK.findall(cell.source):
            if unchecked is not None:
                _mark(unchecked, f"exercise-{_hyphens(number)}", solution=True)
            unchecked = None
            cells.append(_graded(name, number))
    if unchecked is not None:
        raise ValueError(f"{source.name}: the solution that begins with {unchecked.source.splitlines()[0]!r} "
                         f"is not checked below it")
    notebook.cells = [*cells, *_explain(source.stem[:2], question)]
    return notebook


def _graded(name: str, number: str):
    from nbformat.v4 import new_code_cell

    cell = new_code_cell(f'from minicogvx.course import grade\n\ngrade("{number}", {name})')
    return _mark(cell, f"grade-{_hyphens(number)}", grade=True, locked=True, points=find(number).difficulty)


def _explain(notebook: str, question: str) -> list:
    """The question that is graded by hand, and the cell for its answer, which holds the rubric in the source."""
    from nbformat.v4 import new_markdown_cell

    asked = new_markdown_cell(
        f"## Explain ({EXPLAIN_POINTS} points, graded by a person)\n\n"
        f"This notebook began with a question: *{question}* Answer it in 80 to 150 words for somebody who has not "
        f"taken the course. Use two numbers from your own run, and say what this notebook's experiments cannot tell.")
    rubric = new_markdown_cell(
        f"### {BEGIN}\nOne point each: the cause, not only what was seen; two numbers that this copy prints, each used "
        f"for what it shows; a limit that is really one (seeds, size, one model, the drawn world).\n### {END}")
    return [_mark(asked, f"question-{notebook}", locked=True),
            _mark(rubric, f"explain-{notebook}", grade=True, solution=True, points=EXPLAIN_POINTS)]


def _mark(cell, grade_id: str, grade: bool = False, solution: bool = False, locked: bool = False,
          points: int | None = None):
    cell.metadata["nbgrader"] = {"schema_version": 3, "grade_id": grade_id, "grade": grade, "solution": solution,
                                 "locked": locked, "task": False} | ({} if points is None else {"points": points})
    if not grade_id.startswith("exercise"):
        cell.id = grade_id
    return cell


def _question(opening: str) -> str:
    found = OPENING.search(opening)
    return " ".join((found[1] if found else opening.splitlines()[0].lstrip("# ")).split())


def _hyphens(number: str) -> str:
    return number.replace(".", "-")  # nbgrader allows no dots in names of cells


def make_assignment(source: Path, folder: Path = FOLDER, force: bool = False) -> str:
    """Writes source and release of one notebook below `folder`; returns what it did, in a sentence.

    Raises ImportError without nbgrader, RuntimeError with nbgrader's own words where it refuses, and OSError.
    """
    import nbformat

    name = source.stem
    path = folder / "source" / name / f"{name}.ipynb"
    if not (folder / "nbgrader_config.py").exists() or force:
        with written_whole(folder / "nbgrader_config.py") as part:
            part.write_text(CONFIG, encoding="utf-8")
    notebook = assignment_of(source)
    wanted = nbformat.writes(notebook) + "\n"
    kept = path.exists() and path.read_text(encoding="utf-8") != wanted and not force
    if not kept:
        notebook_builder.write(notebook, path)
    result = nbgrader_of(folder).generate_assignment(name, force=True)
    if not result["success"]:
        raise RuntimeError(f"nbgrader could not release {name}: {_last_line(result)}")
    points = [cell.metadata.nbgrader.points for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
              if cell.metadata.get("nbgrader", {}).get("grade")]
    return (f"{name}: {len(points)} graded cells, {sum(points)} points"
            + ("; its source differs from the course's and was kept (--force writes it anew)" if kept else ""))


def nbgrader_of(folder: Path) -> Any:
    """nbgrader's own interface to the course in `folder`. Raises ImportError if nbgrader is missing."""
    try:
        from nbgrader.apps import NbGraderAPI
        from traitlets.config import PyFileConfigLoader
    except ImportError as error:
        raise ImportError("nbgrader is missing; install it with: pip install -e '.[dev]'") from error
    scripts, path = sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)
    if scripts not in path.split(os.pathsep):
        os.environ["PATH"] = f"{scripts}{os.pathsep}{path}"  # nbgrader starts alembic by its name
    config = PyFileConfigLoader("nbgrader_config.py", path=str(folder)).load_config()
    config.CourseDirectory.root = str(folder.resolve())
    return NbGraderAPI(config=config)


def _last_line(result: dict[str, Any]) -> str:
    lines = f"{result.get('log', '')}\n{result.get('error', '')}".strip().splitlines()
    return next((line for line in reversed(lines) if line.strip()), "it gave no reason")


def main(argv: list[str] | None = None) -> int:
    """Makes the named assignments, or all, with a line for each."""
    parser = argparse.ArgumentParser(prog="python -m minicogvx.course.assignment",
                                     description="The course's notebooks as assignments for nbgrader.")
    parser.add_argument("names", nargs="*", metavar="NN_topic", help="which ones (default: all)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="nbgrader's folder of the course")
    parser.add_argument("--force", action="store_true", help="write over what was edited")
    chosen = parser.parse_args(argv)
    there = {source.stem: source for source in notebook_builder.sources()}
    for name in chosen.names:
        if name not in there:
            parser.error(f"there is no notebook {name!r}; the notebooks are {', '.join(there)}")
    for name in chosen.names or there:
        print(make_assignment(there[name], chosen.folder, chosen.force))
    print(f"Students get {chosen.folder / 'release'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
