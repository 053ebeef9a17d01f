"""Predictions: asked before an experiment, answered by the learner, judged after it, counted at the end of a notebook.

    predict("6.3", "it falls", "it stays", "it rises")              # a cell of its own; the question stands above it
    outcome("6.3", "it rises" if after > before else "it falls")    # in the experiment's cell, or after it
    predictions("6")                                                # you predicted 3 of 4

`predict` shows radio buttons where there are widgets, and elsewhere (GitHub, nbval) its options as plain text. No cell
needs an answer. Answers lie beside the learner's solved exercises (`record.py`). The first answer that an outcome has
judged counts: it can no longer be changed.
"""

import html
import string

from minicogvx.course import show
from minicogvx.course.exercises import record
from minicogvx.course.widget_parts import view_of

_offered: dict[str, tuple[str, ...]] = {}  # in this session: the options of each prediction, in the order asked


def predict(number: str, *options: str, answer: str | None = None) -> None:
    """Asks for a prediction; the question stands in the text above. `number` is "N.k", of notebook N.

    Nothing is selected beforehand. `answer`: without buttons, answer here, by letter or by option. Raises ValueError
    for a number of another form, fewer than two options, equal ones, or an answer that is no option.
    """
    number = _checked(number)
    if len(options) < 2 or len(set(options)) < len(options) or not all(option.strip() for option in options):
        raise ValueError(f"prediction {number} has the options {options}; give at least two different ones")
    _offered[number] = options
    if answer is not None:
        _keep(number, _option(number, answer))
    given = guess(number)
    text = "\n".join(f"{letter}) {option}" for letter, option in zip(string.ascii_lowercase, options))
    data = {"text/plain": text + (f"\nYou predicted: {given}." if given else "")}
    buttons = _buttons(number, options, given)
    if buttons is not None:
        data |= view_of(buttons)
    show._display(data, {})


def outcome(number: str, option: str) -> None:
    """Says that `option` is what happened, and whether the learner predicted it.

    Raises ValueError for an option that `predict` did not offer.
    """
    number = _checked(number)
    offered = _offered.get(number)
    if offered is not None and option not in offered:
        raise ValueError(f"{option!r} is no option of prediction {number}; those are {', '.join(map(repr, offered))}")
    said, given = f"Prediction {number}: {option}.", guess(number)
    if given is None:
        print(f"{said} You had not predicted.")
        return
    record.keep(_outcome_key(number), option)
    print(f"{said} " + ("You predicted it." if given == option else f"You predicted: {given}."))


def predictions(notebook: str) -> None:
    """Prints how many predictions of `notebook`, such as "6", were right, and each of them."""
    kept, prefix = record.load(), f"{int(notebook)}."
    asked = {number: None for number in _offered if number.startswith(prefix)}
    asked |= {key.removeprefix(_KEY): None for key in kept if key.startswith(_KEY + prefix)}
    numbers = sorted(asked, key=lambda number: int(number.partition(".")[2]))
    right = sum(guess(number) is not None and guess(number) == kept.get(_outcome_key(number)) for number in numbers)
    print(f"You predicted {right} of {len(numbers)}.")
    for number in numbers:
        given, happened = guess(number), kept.get(_outcome_key(number))
        if given is None:
            print(f"  {number} not answered")
        elif happened is None:
            print(f"  {number} you said: {given}; its experiment has not run since")
        elif given == happened:
            print(f"  {number} right: {given}")
        else:
            print(f"  {number} you said: {given}; it was: {happened}")


def guess(number: str) -> str | None:
    """The learner's answer, an option; None without one, or if the options have changed since."""
    given = record.load().get(_KEY + number)
    return given if given in _offered.get(number, (given,)) else None


# ---- helpers

_KEY = "prediction "  # in the record, followed by the number; the keys of exercises are bare numbers


def _outcome_key(number: str) -> str:
    return f"outcome {number}"


def _checked(number: str) -> str:
    notebook, _, place = str(number).partition(".")
    if not (notebook.isdecimal() and place.isdecimal()):
        raise ValueError(f"the prediction's number is {number!r}; it must be like \"6.3\", the third of notebook 6")
    return str(number)


def _option(number: str, answer: str) -> str:
    options = _offered[number]
    by_letter = dict(zip(string.ascii_lowercase, options))
    option = answer if answer in options else by_letter.get(answer.strip().lower())
    if option is None:
        raise ValueError(f"the answer to prediction {number} is {answer!r}; it must be an option or its letter, "
                         f"{', '.join(by_letter)[:-3]} or {list(by_letter)[len(options) - 1]}")
    return option


def _keep(number: str, option: str) -> bool:
    # An answer that was judged stays.
    if record.load().get(_outcome_key(number)) is not None and guess(number) is not None:
        return False
    record.keep(_KEY + number, option)
    return True


def _buttons(number: str, options: tuple[str, ...], given: str | None):
    """Radio buttons that keep what is chosen, and a line below that says so; None without ipywidgets."""
    try:
        import ipywidgets
    except ImportError:
        return None
    judged = given is not None and record.load().get(_outcome_key(number)) is not None
    buttons = ipywidgets.RadioButtons(options=list(options), value=given, disabled=judged,
                                      layout={"width": "max-content"})
    said = ipywidgets.HTML(_said(given, judged))

    def kept(change) -> None:
        if change["new"] is not None:
            said.value = _said(change["new"], not _keep(number, change["new"]))

    buttons.observe(kept, names="value")
    return ipywidgets.VBox([buttons, said])


def _said(given: str | None, judged: bool) -> str:
    if given is None:
        return "Choose before you read on."
    if judged:
        return "Your answer was judged already; it stays as it is."
    return f"Kept: <b>{html.escape(given)}</b>. You can change it until the experiment has run."
