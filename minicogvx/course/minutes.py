"""How many minutes a notebook takes a learner, by one rule for all of them.

    python -m minicogvx.course.minutes              # prints the minutes of each source file
    python -m minicogvx.course.minutes --readme     # writes them into the README's table, with seconds and exercises

Its text at 200 words a minute, 20 seconds for each code cell, the seconds that the cells took when the notebook was
built, and the minutes stated for its exercises; all together, rounded up to 5.
"""

import argparse
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from minicogvx.course import notebook_builder
from minicogvx.course.exercises import all_exercises

WORDS_PER_MINUTE, SECONDS_PER_CELL, STEP = 200, 20, 5
STATED = re.compile(r"\b(\d+)\s+minutes\b")
README = notebook_builder.ROOT.parent / "README.md"


@dataclass(frozen=True)
class Effort:
    """What a notebook asks of a learner."""

    words: int
    code_cells: int
    seconds: int  # of all cells, measured when the notebook was built
    exercises: int
    exercise_minutes: int

    @property
    def minutes(self) -> int:
        """All of it, by the rule."""
        whole = (self.words / WORDS_PER_MINUTE + (self.code_cells * SECONDS_PER_CELL + self.seconds) / 60
                 + self.exercise_minutes)
        return STEP * math.ceil(whole / STEP)


def effort_of(notebook, number: int, seconds: int) -> Effort:
    """The effort of a notebook that `notebook_builder.build` gave; `number` is that of the course."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    exercises = [each for each in all_exercises() if each.number.partition(".")[0] == str(number)]
    return Effort(sum(len(text.split()) for text in texts), len(notebook.cells) - len(texts), seconds,
                  len(exercises), sum(each.minutes for each in exercises))


def stated_minutes(notebook) -> list[int]:
    """Every "N minutes" in the notebook's opening, which ends at its first section."""
    found = []
    for cell in notebook.cells:
        opening, section, _ = cell.source.partition("\n## ") if not cell.source.startswith("## ") else ("", "## ", "")
        found += map(int, STATED.findall(opening)) if cell.cell_type == "markdown" else []
        if section and cell.cell_type == "markdown":
            break
    return found


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
