"""What every exercise must satisfy: a check that accepts a wrong answer teaches the wrong thing."""

from collections.abc import Iterator, Sequence
from typing import Any

from minicogvx.course.exercises.checking import find, judge
from minicogvx.course.exercises.exercise import STUB_MESSAGE, Exercise


def guard(exercise: Exercise | str, solution: Any, wrong_answers: Sequence[tuple[str, Any]]) -> None:
    """Raises AssertionError, naming every answer that it misjudges, unless the check of `exercise` tells all apart.

    The untouched stub counts as not tried; `solution` and the package's version are right; each of at least three
    `wrong_answers`, pairs of a fragment and an answer, is rejected with a message that contains the fragment.
    """
    exercise = find(exercise) if isinstance(exercise, str) else exercise
    misjudged = [f"exercise {exercise.number}: {problem}" for problem in _misjudged(exercise, solution, wrong_answers)]
    if misjudged:
        raise AssertionError("\n".join(misjudged))


def _misjudged(exercise: Exercise, solution: Any, wrong_answers: Sequence[tuple[str, Any]]) -> Iterator[str]:
    for name, answer, state in (("the stub", _stub, "not tried"), ("the solution", solution, "right"),
                                ("the package's version", exercise.reference, "right")):
        verdict = judge(exercise, answer)
        if verdict.state != state:
            yield f"{name} counts as {verdict.state}, not as {state}; {verdict.message}"
    if len(wrong_answers) < 3:
        yield f"it has {len(wrong_answers)} wrong answers; it needs at least 3"
    for fragment, answer in wrong_answers:
        name, verdict = f"the wrong answer {getattr(answer, '__name__', answer)}", judge(exercise, answer)
        if verdict.state not in ("wrong", "stopped"):
            yield f"{name} counts as {verdict.state}, not as wrong"
        elif not fragment.strip() or fragment not in verdict.message:
            yield f"{name} was refused with {verdict.message!r}, which does not name its mistake, {fragment!r}"


def _stub(*arguments, **named):
    raise NotImplementedError(STUB_MESSAGE)
