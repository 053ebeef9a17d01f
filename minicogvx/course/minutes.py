"""The minutes of each notebook, by the rule of `effort.py`.

    python -m minicogvx.course.minutes              # prints the minutes of each source file
    python -m minicogvx.course.minutes --readme     # writes them into the README's table, with seconds and exercises
"""

import argparse
import sys
from pathlib import Path

from minicogvx.course import notebook_builder
from minicogvx.course.effort import Effort, effort_of, stated_minutes

README = notebook_builder.ROOT.parent / "README.md"


def stored_seconds(source: Path) -> int:
    """The seconds of the stored run of a source's notebook; 60 if there is none yet."""
    import nbformat

    path = notebook_builder.notebook_path(source)
    if not path.exists():
        return 60
    return nbformat.read(path, as_version=nbformat.NO_CONVERT).metadata["minicogvx"]["seconds"]


def readme_line(line: str, effort: Effort) -> str:
    """A line of the README's table, with the numbers of `effort`."""
    cells = line.split("|")  # "", notebook, what you build, minutes, runs in, exercises, paper, ""
    cells[3:6] = [f" {effort.minutes} min ", f" {effort.seconds} s ",
                  f" {effort.exercises} ({effort.exercise_minutes} min) " if effort.exercises else " none "]
    return "|".join(cells)


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each notebook; with --readme, writes the README's."""
    parser = argparse.ArgumentParser(prog="python -m minicogvx.course.minutes",
                                     description="Minutes of each notebook: reading, running and exercises together.")
    parser.add_argument("--readme", action="store_true", help="write them into the README's table")
    write = parser.parse_args(argv).readme
    readme = README.read_text(encoding="utf-8").splitlines()
    for source in notebook_builder.sources():
        notebook = notebook_builder.build(source)
        effort = effort_of(notebook, int(source.stem[:2]), stored_seconds(source))
        stated = stated_minutes(notebook)
        note = "" if stated == [effort.minutes] else f"; its opening says {stated or 'nothing'}"
        print(f"{source.stem}: {effort.minutes} minutes ({effort.words} words, {effort.code_cells} code cells, "
              f"{effort.seconds} s, exercises {effort.exercise_minutes} minutes){note}")
        readme = [readme_line(line, effort) if f"](notebooks/{source.stem}.ipynb) |" in line else line
                  for line in readme]
    if write:
        README.write_text("\n".join(readme) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
