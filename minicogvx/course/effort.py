"""What a notebook asks of a learner, in minutes, by one rule for all of them.

Its text at 200 words a minute, 20 seconds for each code cell, the seconds that the cells took when the notebook was
built, and the minutes stated for its exercises; all together, rounded up to 5.
"""

import math
import re
from dataclasses import dataclass

from minicogvx.course.exercises import all_exercises

WORDS_PER_MINUTE, SECONDS_PER_CELL, STEP = 200, 20, 5
STATED = re.compile(r"\b(\d+)\s+minutes\b")


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
