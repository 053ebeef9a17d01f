"""Exercises: asked in a notebook, checked by properties, one module for each notebook (`notebook_NN.py`).

    pad_past = check("2.1", pad_past)  # right: your own function; otherwise the package's, so that you can read on
    hint("2.1")                        # one more hint at each call
    solution("2.1")                    # the source of a solution
    grade("2.1", pad_past)             # for a graded cell: raises unless it is right
    solved("2.1")                      # whether your own function is in use
    progress()                         # what you have solved so far
"""

from minicogvx.course.exercises.checking import Verdict, all_exercises, check, find, hint, judge, progress, solved
from minicogvx.course.exercises.exercise import Exercise, Wrong
from minicogvx.course.exercises.grading import grade
from minicogvx.course.exercises.solutions import solution, solution_source

__all__ = ["Exercise", "Verdict", "Wrong", "all_exercises", "check", "find", "grade", "hint", "judge", "progress",
           "solution", "solution_source", "solved"]
