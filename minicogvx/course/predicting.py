"""Predictions: asked before an experiment, answered by the learner, judged after it, counted at the end of a notebook.

    predict("6.3", "it falls", "it stays", "it rises")              # a cell of its own; the question stands above it
    outcome("6.3", "it rises" if after > before else "it falls")    # in the experiment's cell, or after it
    predictions("6")                                                # right predictions: 3 of 4

`predict` shows radio buttons where there are widgets, and elsewhere (GitHub, nbval) its options as plain text. No cell
needs an answer. Answers lie beside the learner's solved exercises (`record.py`). An answer that an outcome has judged
counts, and can no longer be changed.
"""

import html
import string
from typing import Any

from minicogvx.course import output
from minicogvx.course.exercises import record
from minicogvx.course.widget_parts import view_of

_offered: dict[str, tuple[str, ...]] = {}  # in this session: the options of each prediction
_displayed: dict[str, Any] = {}  # in this session: the radio buttons of each prediction, with the line below


def predict(number: str, *options: str, answer: str | None = None) -> None:
    """Asks for a prediction; the question stands in the text above. `number` is "N.k", of notebook N.

    Nothing is selected beforehand. `answer`: without buttons, answer here, by letter or in full. Raises ValueError for
    a number of another form, fewer than two options, equal ones, or an answer that is no option.
    """
    number = _checked(number)
    if not all(isinstance(option, str) and option.strip() for option in options) or not 2 <= len(set(options)) == len(
            options):
        raise ValueError(f"prediction {number} has the options {options}; give at least two different ones, as text")
    letters = dict(zip(string.ascii_lowercase, options))
    if answer is not None:
        chosen = answer if answer in options else letters.get(str(answer).strip().lower())
        if chosen is None:
            raise ValueError(f"the answer to prediction {number} is {answer!r}; it must be one of "
                             f"{', '.join(map(repr, letters))}, or an option in full")
        _keep_answer(number, chosen)
    _offered[number] = options
    kept = record.load()
    given = _answer(number, kept)
    text = "\n".join(f"{letter}) {option}" for letter, option in letters.items())
    buttons = _buttons(number, given, judged=_outcome(number) in kept)
    last = f"\nYou predicted: {given}." if given else ""
    if buttons is None and not given:
        last = f'\nThere are no buttons here; add your answer to the call: predict("{number}", ..., answer="a").'
    data = {"text/plain": text + last}
    output.display(data | ({} if buttons is None else view_of(buttons)), {})


def outcome(number: str, option: str) -> None:
    """Says that `option` is what happened, and whether the learner predicted it.

    Raises ValueError for an option that `predict` did not offer.
    """
    number = _checked(number)
    if not isinstance(option, str):  # an array, say, which would be no answer either
        raise ValueError(f"the outcome of prediction {number} is a {type(option).__name__}; it must be one of its "
                         f"options, as text")
    offered = _offered.get(number, (option,))
    if option not in offered:
        raise ValueError(f"{option!r} is no option of prediction {number}; those are {', '.join(map(repr, offered))}")
    given = _answer(number, record.load())
    if given is None:
        print(f"Prediction {number}: {option}. You made no prediction.")
        return
    record.keep_text(_outcome(number), option)
    _close(number, given)
    print(f"Prediction {number}: {option}. " + ("You predicted it." if given == option else f"You predicted: {given}."))


def predictions(notebook: str) -> None:
    """Prints how many predictions of `notebook`, such as "6", were right, and each of them."""
    if not str(notebook).strip().isdecimal():
        raise ValueError(f"the notebook is {notebook!r}; it must be a number such as \"6\"")
    kept, begin, notebook = record.load(), _prediction(""), int(notebook)
    asked = {*_offered, *(key.removeprefix(begin) for key in kept if key.startswith(begin))}
    places = sorted(int(place) for start, _, place in (number.partition(".") for number in asked)
                    if start == str(notebook) and place.isdecimal())  # the file may hold anything
    lines, right = [], 0
    for number in (f"{notebook}.{place}" for place in places):
        given, happened = _answer(number, kept), kept.get(_outcome(number))
        right += given is not None and given == happened
        lines.append(f"  {number} " + _in_words(given, happened))
    print("\n".join([f"Right predictions: {right} of {len(places)}.", *lines]))


# ---- helpers


def _prediction(number: str) -> str:
    return f"prediction {number}"  # in the record, whose keys for exercises are bare numbers


def _outcome(number: str) -> str:
    return f"outcome {number}"


def _in_words(given: str | None, happened: str | None) -> str:
    if given is None:
        return "not answered"
    if happened is None:
        return f"you said: {given}; the experiment has not run since"
    return f"right: {given}" if given == happened else f"you said: {given}; it was: {happened}"


def _answer(number: str, kept: dict[str, str]) -> str | None:
    # None without one, or if the options have changed since.
    given = kept.get(_prediction(number))
    return given if given in _offered.get(number, (given,)) else None


def _checked(number: str) -> str:
    notebook, _, place = str(number).partition(".")
    if not (notebook.isdecimal() and place.isdecimal()):
        raise ValueError(f"the prediction's number is {number!r}; it must be like \"6.3\", the third of notebook 6")
    return str(number)


def _keep_answer(number: str, option: str) -> bool:
    """Keeps the answer, unless an outcome has judged one; returns whether it did."""
    kept = record.load()
    if _outcome(number) in kept and _answer(number, kept) is not None:
        return False
    record.keep_text(_prediction(number), option)
    return True


def _buttons(number: str, given: str | None, judged: bool):
    """Radio buttons that keep what is chosen, and a line below that says so; None without ipywidgets."""
    try:
        import ipywidgets
    except ImportError:
        return None
    fixed = given is not None and judged
    buttons = ipywidgets.RadioButtons(options=list(_offered[number]), value=given, disabled=fixed,
                                      layout={"width": "max-content"})
    said = ipywidgets.HTML(_advice(given, fixed))

    def follow(change) -> None:
        if change["new"] is not None:
            said.value = _advice(change["new"], fixed=not _keep_answer(number, change["new"]))

    buttons.observe(follow, names="value")
    _displayed[number] = ipywidgets.VBox([buttons, said])
    return _displayed[number]


def _close(number: str, given: str) -> None:
    """The buttons as they are from now on, and as a notebook that is saved now shows them when it is opened again."""
    if number in _displayed:
        buttons, said = _displayed[number].children
        buttons.value, buttons.disabled, said.value = given, True, _advice(given, fixed=True)


def _advice(given: str | None, fixed: bool) -> str:
    if given is None:
        return "Choose one before you go on."
    if fixed:
        return "The experiment has run since you answered, so your answer stays."
    return f"Kept: <b>{html.escape(given)}</b> (can be changed until the experiment has run)."
