"""The learner's own functions in later notebooks: `model_forward = yours("9.1")`."""

import linecache
from typing import Any

from minicogvx.course.exercises.answers import GIVEN_BACK, MISSING, answer_path, kept_answer
from minicogvx.course.exercises.checking import find, judge


def yours(number: str) -> Any:
    """The learner's own answer to exercise `number`, of any earlier notebook, else the package's version.

        model_forward = yours("9.1")    # Exercise 9.1: this notebook computes with your own model_forward.

    `check` keeps an answer when it accepts it, as source in the learner's own folder (exercises/answers.py). Here the
    source is run, and the answer checked once more; so the result behaves as the exercise demands, whoever wrote it,
    and has the arguments of the function in its notebook. One printed sentence says whose it is. It never stops a
    notebook: where nothing is kept, or what is kept does not run or no longer passes, the package's version is given.
    Raises ValueError for an unknown number, and nothing else.
    """
    exercise = find(number)
    kind = "class" if isinstance(exercise.reference, type) else "function" if callable(exercise.reference) else "value"
    source = kept_answer(exercise.number)
    if source is None:
        why = "yours is not there yet"
    elif source.startswith(MISSING):
        why = f"yours needs something that only its notebook has: {source.removeprefix(MISSING).strip()}"
    else:
        answer, why = _run(exercise.title, source, str(answer_path(exercise.number)))
        if why is None:
            verdict = judge(exercise, answer)
            if verdict.state == "right":
                print(f"Exercise {exercise.number}: this notebook computes with your own {exercise.title}.")
                return answer
            why = f"yours no longer passes its check ({verdict.message or verdict.state})"
    print(f"Exercise {exercise.number}: this notebook computes with the package's {kind} as {exercise.title}; {why}.")
    return exercise.reference


def _run(title: str, source: str, path: str) -> tuple[Any, str | None]:
    """What `source` defines as `title`, or the reason why it does not."""
    around = {"__name__": f"{GIVEN_BACK}{title}"}
    try:
        exec(compile(source, path, "exec"), around)
    except Exception as error:  # the learner may have edited the file
        return None, f"yours, in {path}, stops with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if title not in around:
        return None, f"{path} defines no {title}"
    linecache.checkcache(path)
    return around[title], None
