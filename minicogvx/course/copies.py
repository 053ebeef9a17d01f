"""The learner's own copies of the notebooks, in `my_notebooks`, without outputs. `make lab` makes and opens them.

    python -m minicogvx.course.copies                      # makes what is missing; says what it did
    python -m minicogvx.course.copies --folder ~/mine      # elsewhere: many learners may share one clone

The repository's notebooks keep their outputs, for people who read them there; a learner's copy has none, so that
nothing answers a question before it is asked. A copy in which the learner has changed or added a cell is never written
again. One that was only run is brought up to date when the course's notebook has changed.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from minicogvx.files import written_whole

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS, MINE = ROOT / "notebooks", ROOT / "my_notebooks"
KEY = "copied"  # in the copy's own metadata: the fingerprint of the cells that were handed out


def copy_notebooks(source: Path, folder: Path) -> dict[str, list[str]]:
    """Makes a copy in `folder` of each notebook in `source`.

    Returns names of notebooks: those that are "new", "updated", "kept" as they are, and "outdated": the learner's own
    work, while the course's notebook has changed since. Raises OSError where a file cannot be read or written.
    """
    done: dict[str, list[str]] = {"new": [], "updated": [], "kept": [], "outdated": []}
    for path in sorted(source.glob("[0-9][0-9]_*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        wanted, mine = _fingerprint(notebook), folder / path.name
        state = _state_of(mine, wanted)
        done[state].append(path.name)
        if state in ("new", "updated"):
            _write(_without_outputs(notebook, wanted), mine)
    return done


def _fingerprint(notebook: dict[str, Any]) -> str:
    cells = [[cell["cell_type"], "".join(cell["source"])] for cell in notebook["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def _state_of(path: Path, wanted: str) -> str:
    if not path.exists():
        return "new"
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        now, handed_out = _fingerprint(notebook), notebook["metadata"]["minicogvx"][KEY]
    except (ValueError, KeyError, TypeError):  # broken, or no copy of ours: the learner's, at any rate
        return "kept"
    if handed_out == wanted:
        return "kept"
    return "updated" if now == handed_out else "outdated"


def _without_outputs(notebook: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    notebook["metadata"]["minicogvx"] = {KEY: fingerprint}
    return notebook


def _write(notebook: dict[str, Any], path: Path) -> None:
    with written_whole(path) as part:
        part.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Makes the copies and says, in at most three lines, what it did."""
    parser = argparse.ArgumentParser(prog="python -m minicogvx.course.copies",
                                     description="Make your own copies of the notebooks, in my_notebooks.")
    parser.add_argument("--folder", type=Path, default=MINE, help="where your copies lie (default: my_notebooks)")
    folder = parser.parse_args(argv).folder.expanduser()
    if not any(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        parser.error(f"there are no notebooks in {NOTEBOOKS}; the course is copied from a clone of its repository")
    done = copy_notebooks(NOTEBOOKS, folder)
    if done["new"] or done["updated"]:
        print(f"{folder.resolve().name}: {len(done['new'])} new, {len(done['updated'])} brought up to date.")
    if done["outdated"]:
        print(f"You have worked in {', '.join(done['outdated'])}, and the course has changed since. Your work stays as "
              f"it is; for the new version, rename your file and run this again.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
