"""The exam switch, the environment variable MINICOGVX_EXAM. Its value is a word of the teacher's; empty or 0 is off.

While it is on, `solution`, `hint` and `show_source` print one sentence. `check` hands back a stand-in, which computes
what the package's version does, but not for the check of its own exercise; `find(...).reference` is that stand-in, too.
And the word decides which random numbers the checks draw. It makes cheating more work, no more: the package is
importable, so somebody who reads its files finds everything.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minicogvx.course.exercises.exercise import Exercise, Wrong

VARIABLE = "MINICOGVX_EXAM"
_stand_ins: dict[str, Any] = {}  # in this session
_running: list[str] = []  # the exercises whose checks run now


def word() -> str:
    """The teacher's word; empty where there is no exam."""
    value = os.environ.get(VARIABLE, "").strip()
    return "" if value == "0" else value


def switched_off(what: str) -> bool:
    """Whether there is an exam; if so, prints that `what`, such as "Hints", must wait."""
    if word():
        print(f"{what} are switched off: this is an exam.")
    return bool(word())


def seed(number: str) -> int:
    """The seed of exercise `number`: 0, or in an exam one that the teacher's word decides."""
    return zlib.crc32(f"{word()} {number}".encode()) if word() else 0


@contextmanager
def running(number: str) -> Iterator[None]:
    """While it lasts, the stand-in of exercise `number` refuses to work."""
    _running.append(number)
    try:
        yield
    finally:
        _running.remove(number)


def stand_in(exercise: Exercise) -> Any:
    """What a learner gets in place of `exercise.reference` in an exam: always the same one. A value stays a value."""
    if exercise.number not in _stand_ins:
        _stand_ins[exercise.number] = _made(exercise.number, exercise.title, exercise.reference)
    return _stand_ins[exercise.number]


def _made(number: str, title: str, reference: Any) -> Any:
    def works() -> None:
        if number in _running:
            raise Wrong(f"This is the package's {title}, not yours.")

    if isinstance(reference, type):
        class Replacement(reference):
            """The package's version."""

            def __init__(self, *arguments, **named):
                works()
                super().__init__(*arguments, **named)

        return Replacement
    if not callable(reference):
        return reference

    def replacement(*arguments, **named):
        """The package's version."""
        works()
        return reference(*arguments, **named)

    return replacement
