"""What a graded cell of nbgrader asks: it fails unless the answer is right (`course/assignment.py`)."""

from typing import Any

from minicogvx.course.exercises.checking import (
    Verdict,
    exercise_of,
    is_the_packages,
    judge,
    just_checked,
    last_verdict,
)


def grade(number: str, answer: Any) -> None:
    """Prints that `answer` to exercise `number` is right, or raises AssertionError that says what is wrong with it.

    The package's version, which `check` hands back in place of an answer that is not right, earns nothing: then the
    message is that of the last check. An answer that `check` has just judged is not judged again, which may take
    seconds. Raises ValueError for an unknown number.
    """
    exercise = exercise_of(number)
    if not is_the_packages(exercise, answer):
        verdict = last_verdict(number) if just_checked(number, answer) else judge(exercise, answer)
    else:
        verdict = Verdict("not tried") if last_verdict(number).state == "right" else last_verdict(number)
    if verdict.state != "right":
        raise AssertionError(f"Exercise {exercise.number}: {verdict.said}")
    print(f"Exercise {exercise.number}: {verdict.said}")
