"""From `notebooks/source/NN_topic.py`, which an author edits, to `notebooks/NN_topic.ipynb`, which a learner opens.

    python -m minicogvx.course.notebook_builder [NN_topic ...]     # default: all

Builds, runs every cell and stores the outputs. A notebook is written only if all of its cells ran.
Code between `### BEGIN SOLUTION` and `### END SOLUTION` becomes a stub in the learner's notebook. The output of a cell
with the tag "folded", which answers a prediction, is collapsed in JupyterLab until a click.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from minicogvx.course.effort import effort_of
from minicogvx.course.exercises.exercise import STUB_MESSAGE
from minicogvx.course.exercises.solutions import BEGIN
from minicogvx.course.widget_parts import WIDGET_VIEW
from minicogvx.files import written_whole

ROOT = Path(__file__).resolve().parents[2] / "notebooks"
SOURCES = ROOT / "source"
CELL_SECONDS = 120
FOLDED = "folded"  # the tag of a cell whose output answers a prediction
STUB = f'raise NotImplementedError("{STUB_MESSAGE}")'
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def sources() -> list[Path]:
    """Every notebook's source, in the order of the course."""
    return sorted(SOURCES.glob("[0-9][0-9]_*.py"))


def notebook_path(source: Path) -> Path:
    """The path of the notebook of `source`."""
    return ROOT / f"{source.stem}.ipynb"


def build(source: Path, solutions: bool = False):
    """The notebook that `source` (jupytext py:percent) describes, without outputs.

    Solutions become stubs; `solutions=True` leaves them in, for tests. Cell ids are numbers, so that building twice
    gives the same file. Returns an nbformat NotebookNode. Raises ImportError if there are solutions but no nbgrader,
    and RuntimeError for a solution without an end.
    """
    import jupytext

    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata.clear()
    notebook.metadata.update(kernelspec=dict(KERNEL), language_info={"name": "python"})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop("lines_to_next_cell", None)  # spacing of the source, irrelevant here
        if FOLDED in cell.metadata.get("tags", ()):
            cell.metadata["jupyter"] = {"outputs_hidden": True}  # until a click, or until the cell runs
    if not solutions and any(BEGIN in cell.source for cell in notebook.cells):
        _clear_solutions(notebook)
    return notebook


def _clear_solutions(notebook) -> None:
    # nbgrader's own preprocessor, so that a teacher who uses nbgrader releases the same notebook.
    try:
        from nbgrader.preprocessors import ClearSolutions
    except ImportError as error:
        raise ImportError("nbgrader is missing; install it with: pip install -e '.[dev]'") from error
    clear = ClearSolutions(code_stub={"python": STUB}, enforce_metadata=False)  # the cells carry no nbgrader marks
    clear.preprocess(notebook, {})


def execute(notebook, folder: Path = ROOT, cell_seconds: int = CELL_SECONDS) -> float:
    """Runs every cell in `folder`, in place; returns the seconds. No cell may take longer than `cell_seconds`.

    Outputs that change from run to run (time stamps, widgets and their state) are removed; the static picture of a
    widget is kept. Solved exercises do not count as the author's own progress. Raises nbclient's CellExecutionError if
    a cell fails.
    """
    from nbclient import NotebookClient

    start = time.perf_counter()
    client = NotebookClient(notebook, timeout=cell_seconds, kernel_name=KERNEL["name"], record_timing=False,
                            store_widget_state=False, coalesce_streams=True,
                            resources={"metadata": {"path": str(folder)}})
    with tempfile.TemporaryDirectory() as nowhere:
        client.execute(env=os.environ | {"MINICOGVX_PROGRESS": str(Path(nowhere) / "progress.json")})
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_without_widget, cell.outputs) if output.get("data", True)]
            if FOLDED in cell.metadata.get("tags", ()):
                cover(cell)
    return time.perf_counter() - start


def cover(cell) -> None:
    """Puts an output without any data before the cell's others, which JupyterLab is to collapse.

    Of what it has collapsed, JupyterLab still shows the first line of the first output; of this one there is none.
    """
    from nbformat.v4 import new_output

    cell.outputs.insert(0, new_output("display_data"))


def _without_widget(output):
    # What stands beside a widget in the same output, such as the options of a prediction, stays.
    if "data" in output:
        output.data.pop(WIDGET_VIEW, None)
    return output


def write(notebook, path: Path) -> None:
    """Writes `notebook`, by way of a temporary file."""
    import nbformat

    nbformat.validate(notebook)
    with written_whole(path) as part:
        part.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Builds and runs the named notebooks, or all."""
    parser = argparse.ArgumentParser(prog="python -m minicogvx.course.notebook_builder",
                                     description="Build and run the notebooks from notebooks/source.")
    parser.add_argument("names", nargs="*", metavar="NN_topic", help="which ones (default: all)")
    names = parser.parse_args(argv).names
    there = {source.stem: source for source in sources()}
    for name in names:
        if name not in there:
            parser.error(f"there is no notebook {name!r}; the notebooks are {', '.join(there)}")
    for name in names or there:
        notebook = build(there[name])
        seconds = execute(notebook)
        minutes = effort_of(notebook, int(name[:2]), round(seconds)).minutes
        notebook.metadata["minicogvx"] = {"seconds": round(seconds), "minutes": minutes}
        path = notebook_path(there[name])
        write(notebook, path)
        print(f"{path}: {len(notebook.cells)} cells, {seconds:.0f} s, {minutes} minutes for a learner, "
              f"{path.stat().st_size // 1000} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
