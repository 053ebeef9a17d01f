"""What every exercise must satisfy: a check that accepts a wrong answer teaches the wrong thing."""

from collections.abc import Sequence
from typing import Any

from minicogvx.course.exercises.checking import find, judge
from minicogvx.course.exercises.exercise import STUB_MESSAGE, Exercise


def guard(exercise: Exercise | str, solution: Any, wrong_answers: Sequence[tuple[str, Any]]) -> None:
    """Raises AssertionError unless the check of `exercise` (or its number) distinguishes all answers.

    The untouched stub counts as not tried; `solution` and the package's version are right; each of at least three
    `wrong_answers`, pairs of a fragment and an answer, is rejected with a message that contains the fragment.
    """
    exercise = find(exercise) if isinstance(exercise, str) else exercise
    _expect(exercise, "the stub", _stub, "not tried")
    _expect(exercise, "the solution", solution, "right")
    _expect(exercise, "the package's version", exercise.reference, "right")
    if len(wrong_answers) < 3:
        raise AssertionError(f"exercise {exercise.number} has {len(wrong_answers)} wrong answers; it needs at least 3")
    for fragment, answer in wrong_answers:
        name = f"the wrong answer {getattr(answer, '__name__', answer)}"
        message = _expect(exercise, name, answer, "wrong", "stopped")
        if not fragment.strip() or fragment not in message:
            raise AssertionError(f"exercise {exercise.number}: {name} was refused with {message!r}, "
                                 f"which does not name its mistake, {fragment!r}")


def _stub(*arguments, **named):
    raise NotImplementedError(STUB_MESSAGE)


def _expect(exercise: Exercise, name: str, answer: Any, *states: str) -> str:
    verdict = judge(exercise, answer)
    if verdict.state not in states:
        raise AssertionError(f"exercise {exercise.number}: {name} counts as {verdict.state}, not as {states[0]}; "
                             f"{verdict.message}")
    return verdict.message
