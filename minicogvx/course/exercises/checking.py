"""From the number of an exercise to a verdict on an answer. Prints plain text only, so that nbval can compare it."""

import importlib
import linecache
import pkgutil
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from minicogvx.course.exercises import exam, record
from minicogvx.course.exercises.answers import keep_answer
from minicogvx.course.exercises.calls import Calls
from minicogvx.course.exercises.exercise import STUB_MESSAGE, Exercise, Wrong

LINE = 100  # characters: a notebook breaks longer lines wherever they end, within a number, too
MAX_MESSAGE = 300  # characters of an error message from other code
MAX_SENTENCE = 900  # characters of what a check says, which may quote an answer
_hints_given: dict[str, int] = {}  # in this session
_verdicts: dict[str, "Verdict"] = {}  # in this session: on the last answer to each exercise
_answers: dict[str, Any] = {}  # those answers


@dataclass(frozen=True)
class Verdict:
    """The result of a check: `state` is "right", "wrong", "stopped" (another exception) or "not tried"."""

    state: str
    message: str = ""

    @property
    def said(self) -> str:
        """The verdict in a sentence or two."""
        if self.state in ("right", "not tried"):
            return {"right": "right.", "not tried": "not tried yet."}[self.state]
        return f"not right yet. {self.message}"


def check(number: str, answer: Any) -> Any:
    """Checks `answer`, the learner's function (or value), and prints the result.

    Returns the answer itself if it is right, and otherwise the package's version, so that a notebook always runs to its
    end; it then says that the name now holds that. Raises ValueError for an unknown number and nothing else, whatever
    the learner's code does.
    """
    exercise = exercise_of(number)
    kind = "class" if isinstance(exercise.reference, type) else "function" if callable(exercise.reference) else "value"
    package = f"the package's {kind}"
    given_back = f"The name {exercise.title} now holds {package}, so that you can read on"
    if is_the_packages(exercise, answer):  # the check's cell was run again after a failure
        if solved(number):
            _verdicts[exercise.number] = Verdict("not tried")
        _say(f"Exercise {exercise.number}: the name {exercise.title} holds {package}. Run the cell with your own, "
             f"then this one.")
        return answer
    verdict = _verdicts[exercise.number] = judge(exercise, answer)
    _answers[exercise.number] = answer
    if verdict.state == "right":
        print(f"Exercise {exercise.number}: {verdict.said}")
        record.save(exercise.number)
        keep_answer(exercise.number, exercise.title, answer)
        return answer
    if verdict.state == "not tried":
        _say(f"Exercise {exercise.number}: {verdict.said} {given_back}.")
    else:
        _say(f"Exercise {exercise.number}: {verdict.said}\n{given_back}"
             + ("." if exam.word() else f'; hint("{exercise.number}") helps.'))
    return exam.stand_in(exercise) if exam.word() else exercise.reference


def is_the_packages(exercise: Exercise, answer: Any) -> bool:
    """Whether `answer` is what `check` hands back in place of one that is not right."""
    return answer is exercise.reference or (bool(exam.word()) and answer is exam.stand_in(exercise))


def last_verdict(number: str) -> Verdict:
    """The verdict on the last answer to exercise `number` in this session. Raises ValueError for an unknown number."""
    return _verdicts.get(exercise_of(number).number, Verdict("not tried"))


def just_checked(number: str, answer: Any) -> bool:
    """Whether the last verdict on exercise `number` is on this very object. Raises ValueError for an unknown number."""
    number = exercise_of(number).number
    return number in _verdicts and number in _answers and _answers[number] is answer


def solved(number: str) -> bool:
    """Whether the last answer to exercise `number` in this session was right, so that the notebook computes with it.

    False where `check` handed back the package's version, or has not run. Raises ValueError for an unknown number.
    """
    return last_verdict(number).state == "right"


def judge(exercise: Exercise, answer: Any) -> Verdict:
    """The verdict on `answer`; prints and records nothing.

    An answer that gives NaN or infinity where the package's version gives none is wrong, whatever the check says.
    """
    if answer is None or answer is ...:
        return Verdict("not tried")
    calls = Calls(exercise.title)
    try:
        _run(exercise, answer, calls)
    except Wrong as wrong:
        said = _plain(wrong, MAX_SENTENCE)
        return Verdict("wrong", " ".join([*_odd_numbers(exercise, calls, said), said]))
    except KeyboardInterrupt:  # the learner's own wish
        raise
    except BaseException as error:  # of sys.exit(), too, which would end the notebook
        # By its message, as torch also raises NotImplementedError, for shapes that it cannot pad.
        if isinstance(error, NotImplementedError) and _plain(error) in ("", STUB_MESSAGE):
            return Verdict("not tried")
        return Verdict("stopped", " ".join([_in_a_sentence(error, answer, calls), *_odd_numbers(exercise, calls)]))
    odd = _odd_numbers(exercise, calls)
    return Verdict("wrong", " ".join(odd)) if odd else Verdict("right")


def _run(exercise: Exercise, answer: Any, calls: Calls) -> None:
    # The same numbers at each check, and the learner's own random state is preserved.
    taken = exam.running(exercise.number) if answer is not exercise.reference else nullcontext()
    with torch.random.fork_rng(devices=[]), taken, calls.modules(answer):
        torch.default_generator.manual_seed(exam.seed(exercise.number))
        exercise.check(calls.watched(answer))


def _odd_numbers(exercise: Exercise, calls: Calls, said: str = "") -> list[str]:
    """A sentence on NaN and infinity in the answer's results, unless `said` speaks of them; nothing if there are none.

    Where the package's version gives them too, they belong there.
    """
    if not calls.odd or "nan" in said.lower() or "inf" in said.lower():
        return []
    right = Calls(exercise.title)
    with suppress(Exception):  # of a check that errs; the tests find that, and a learner's notebook goes on
        _run(exercise, exercise.reference, right)
    return [f"{call} gives {kind}; every number must be finite." for kind, call in calls.odd.items()
            if kind not in right.odd][:1]


def find(number: str) -> Exercise:
    """The exercise of that number; in an exam, with a stand-in as its `reference`.

    Raises ValueError, with a list of all, for an unknown number.
    """
    return _shown(exercise_of(number))


def exercise_of(number: str) -> Exercise:
    """The exercise of that number with the package's own version, in an exam, too. Raises ValueError as `find`."""
    notebook = str(number).partition(".")[0]
    name = f"notebook_{notebook:0>2}"
    for exercise in _exercises_in(name) if name in _modules() else ():
        if exercise.number == str(number):
            return exercise
    there = ", ".join(exercise.number for exercise in all_exercises())
    raise ValueError(f"there is no exercise {number}; the exercises are {there}")


def all_exercises() -> Iterator[Exercise]:
    """Every exercise of the course, in order; in an exam, with stand-ins."""
    for name in _modules():
        yield from map(_shown, _exercises_in(name))


def _shown(exercise: Exercise) -> Exercise:
    return replace(exercise, reference=exam.stand_in(exercise)) if exam.word() else exercise


def hint(number: str) -> None:
    """Prints one more hint at each call, until there are no more; in an exam, that there are none now.

    Raises ValueError for an unknown number.
    """
    exercise = exercise_of(number)
    if exam.switched_off("Hints"):
        return
    given = _hints_given.get(exercise.number, 0)
    if given == len(exercise.hints):
        print(f'There are no more hints for exercise {exercise.number}; solution("{exercise.number}") shows one.')
        return
    _hints_given[exercise.number] = given + 1
    _say(f"Hint {given + 1} of {len(exercise.hints)}: {exercise.hints[given]}")


def progress() -> None:
    """Prints which exercises have been solved, and which comes next."""
    days, exercises = record.load(), list(all_exercises())
    done = [exercise for exercise in exercises if exercise.number in days]
    print(f"Solved: {len(done)} of {len(exercises)} exercises.")
    for exercise in done:
        print(f"  {exercise.number} {exercise.title} ({days[exercise.number]})")
    for exercise in exercises:
        if exercise.number not in days:
            print(f"Next: {exercise.number} {exercise.title} "
                  f"(difficulty {exercise.difficulty} of 3, about {exercise.minutes} minutes).")
            break


def _say(text: str) -> None:
    for line in text.splitlines():
        print(textwrap.fill(line, LINE, break_long_words=False, break_on_hyphens=False))


def _modules() -> list[str]:
    folder = Path(__file__).parent
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if module.name.startswith("notebook_"))


def _exercises_in(name: str) -> tuple[Exercise, ...]:
    return importlib.import_module(f"minicogvx.course.exercises.{name}").EXERCISES


def _in_a_sentence(error: BaseException, answer: Any, calls: Calls) -> str:
    message = _plain(error)
    said = f"{type(error).__name__}: {message}" if message else type(error).__name__
    said += "" if said.endswith(".") else "."
    # The innermost line of the learner's own code; deeper frames are torch's or the package's.
    try:
        home = getattr(answer, "__module__", None)
    except Exception:  # an object that cannot be asked
        home = None
    lines = [(frame.f_code.co_filename, line, frame.f_globals)
             for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_globals.get("__name__") == home]
    out_of_it = calls.stopped is not None and calls.stopped[0] is error
    call = calls.stopped[1] if out_of_it else calls.last
    if not lines:
        start = "The call stopped" if out_of_it else "Your answer could not be checked; the check stopped"
        after = f" The call was {call}." if out_of_it else f" The last call was {call}." if call else ""
        gave = f" It gave {calls.gave}." if calls.gave and not out_of_it else ""
        return f"{start} with {said}{after}{gave}"
    code = linecache.getline(*lines[-1]).strip()
    where = f"line {lines[-1][1]}" + (f", {code}" if code else "")
    return f"Your code stopped ({where}) with {said}" + (f" The call was {call}." if call else "")


def _plain(error: BaseException, longest: int = MAX_MESSAGE) -> str:
    """The message of an exception in one line, which any terminal can print; nothing where it has none to give."""
    try:
        message = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
    except Exception:  # an exception of the learner's that cannot say what it is
        return ""
    return message if len(message) <= longest else message[:longest] + " ..."
