"""Predictions: asked without an answer chosen, kept beside the solved exercises, judged once, counted at the end."""

import json
import subprocess
import sys

import pytest

from minicogvx.course import outcome, output, predict, predicting, predictions
from minicogvx.course.exercises import record
from minicogvx.course.widget_parts import WIDGET_VIEW


@pytest.fixture(autouse=True)
def record_file(tmp_path, monkeypatch):
    """A new learner in a new session."""
    path = tmp_path / "progress.json"
    monkeypatch.setenv("MINICOGVX_PROGRESS", str(path))
    new_session(monkeypatch)
    return path


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr(output, "display", lambda data, metadata: found.append(data))
    return found


@pytest.fixture
def buttons(monkeypatch):
    """The boxes of radio buttons that were made, newest last."""
    made, make = [], predicting._buttons
    monkeypatch.setattr(predicting, "_buttons", lambda *a, **k: made.append(make(*a, **k)) or made[-1])
    return made


def said(capsys) -> str:
    return capsys.readouterr().out


def new_session(monkeypatch):
    monkeypatch.setattr(predicting, "_offered", {})
    monkeypatch.setattr(predicting, "_displayed", {})


def test_without_an_answer_everything_runs_and_nothing_is_noted(shown, capsys, record_file):
    predict("6.3", "it falls", "it rises")
    outcome("6.3", "it rises")
    predictions("6")
    assert shown[0]["text/plain"] == "a) it falls\nb) it rises" and WIDGET_VIEW in shown[0]
    assert said(capsys) == ("Prediction 6.3: it rises. You made no prediction.\n"
                            "Right predictions: 0 of 1.\n  6.3 not answered\n")
    assert not record_file.exists()


def test_a_click_is_kept_and_judged(shown, buttons, capsys, record_file):
    predict("6.1", "it falls", "it rises")
    choice, words = buttons[0].children
    assert choice.value is None and list(choice.options) == ["it falls", "it rises"]
    choice.value = "it falls"
    choice.value = "it rises"  # second thoughts
    assert "it rises" in words.value
    predict("6.2", "more", "less <i>"), predict("6.10", "yes", "no")
    buttons[1].children[0].value = "less <i>"
    assert "less &lt;i&gt;" in buttons[1].children[1].value
    outcome("6.1", "it rises"), outcome("6.2", "more"), outcome("6.10", "no")
    assert said(capsys) == ("Prediction 6.1: it rises. You predicted it.\n"
                            "Prediction 6.2: more. You predicted: less <i>.\n"
                            "Prediction 6.10: no. You made no prediction.\n")
    predictions("6")
    assert said(capsys) == ("Right predictions: 1 of 3.\n  6.1 right: it rises\n"
                            "  6.2 you said: less <i>; it was: more\n  6.10 not answered\n")
    assert json.loads(record_file.read_text()) == {
        "prediction 6.1": "it rises", "outcome 6.1": "it rises", "prediction 6.2": "less <i>", "outcome 6.2": "more"}


def test_a_judged_answer_stays(shown, buttons, capsys, monkeypatch):
    predict("6.1", "a", "b")
    buttons[0].children[0].value = "a"
    assert "can be changed until" in buttons[0].children[1].value
    outcome("6.1", "b")
    assert buttons[0].children[0].disabled and "stays" in buttons[0].children[1].value  # as the notebook is saved
    buttons[0].children[0].value = "b"
    assert "stays" in buttons[0].children[1].value
    new_session(monkeypatch)
    predict("6.1", "a", "b", answer="b")
    assert buttons[1].children[0].disabled and buttons[1].children[0].value == "a"
    assert shown[-1]["text/plain"].endswith("You predicted: a.")
    said(capsys), predictions("6")
    assert said(capsys) == "Right predictions: 0 of 1.\n  6.1 you said: a; it was: b\n"


def test_another_session_remembers_and_counts_other_notebooks_apart(shown, capsys, monkeypatch):
    predict("6.1", "a", "b", answer="a"), outcome("6.1", "a")
    predict("7.1", "a", "b", answer="B"), predict("16.1", "a", "b", answer="a")
    new_session(monkeypatch), said(capsys)
    predictions("6"), predictions("07")
    assert said(capsys) == ("Right predictions: 1 of 1.\n  6.1 right: a\n"
                            "Right predictions: 0 of 1.\n  7.1 you said: b; the experiment has not run since\n")


def test_an_answer_to_other_options_does_not_count(shown, capsys, monkeypatch, buttons):
    predict("6.1", "a", "b", answer="a"), outcome("6.1", "a")
    new_session(monkeypatch), said(capsys)
    predict("6.1", "one", "two")  # the question was rewritten
    assert buttons[-1].children[0].value is None
    outcome("6.1", "two"), predictions("6")
    assert said(capsys).splitlines()[:2] == ["Prediction 6.1: two. You made no prediction.",
                                             "Right predictions: 0 of 1."]
    buttons[-1].children[0].value = "two"
    outcome("6.1", "two")
    assert said(capsys).endswith("You predicted it.\n")


def test_what_nobody_could_answer_is_refused(shown, subtests):
    predict("6.1", "a", "b")
    for call, message in (
        (lambda: predict("six", "a", "b"), "'six'; it must be like"),
        (lambda: predict("6", "a", "b"), "'6'; it must be like"),
        (lambda: predict("6.2", "a"), "at least two different"),
        (lambda: predict("6.2", "a", "a"), "at least two different"),
        (lambda: predict("6.2", "a", " "), "at least two different"),
        (lambda: predict("6.2", "a", "b", answer="c"), "'c'; it must be one of 'a', 'b'"),
        (lambda: outcome("6.1", "c"), "'c' is no option of prediction 6.1; those are 'a', 'b'"),
        (lambda: predictions("six"), "the notebook is 'six'; it must be a number"),
        (lambda: predictions("6.1"), "the notebook is '6.1'; it must be a number"),
    ):
        with subtests.test(msg=message), pytest.raises(ValueError, match=message):
            call()
    assert len(shown) == 1


def test_the_experiment_runs_although_the_question_was_passed_over(capsys):
    outcome("6.1", "whatever")
    assert said(capsys) == "Prediction 6.1: whatever. You made no prediction.\n"


def test_without_widgets_the_options_are_text(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    predict("6.1", "a", "b")
    predict("6.1", "a", "b", answer="b")
    assert shown == [{"text/plain": 'a) a\nb) b\nThere are no buttons here; add your answer to the call: '
                                    'predict("6.1", ..., answer="a").'},
                     {"text/plain": "a) a\nb) b\nYou predicted: b."}]


def test_whatever_the_file_holds_it_is_counted_without_stopping(shown, capsys, record_file):
    record_file.write_text(json.dumps({"prediction 6.x": "a", "prediction": "b", "prediction 6.": "c", "": "",
                                       "outcome 6.1": "d", "prediction 6.2": "e", "prediction 16.1": "f"}))
    predictions("6")
    assert said(capsys) == "Right predictions: 0 of 1.\n  6.2 you said: e; the experiment has not run since\n"
    record_file.write_text("[" * 100_000)
    predict("6.1", "a", "b", answer="b")
    assert "is broken" in said(capsys) and json.loads(record_file.read_text()) == {"prediction 6.1": "b"}


HAMMER = """
import sys
from minicogvx.course.exercises import record
sys.stdin.readline()
for i in range(40):
    record.keep_text(f"prediction {sys.argv[1]}.{i}", "a")
"""


def test_two_notebooks_at_once_lose_nothing(record_file):
    open_ones = [subprocess.Popen([sys.executable, "-c", HAMMER, str(number)], stdin=subprocess.PIPE, text=True)
                 for number in (6, 7)]
    for each in open_ones:
        each.stdin.write("\n"), each.stdin.flush()
    assert [each.wait(timeout=60) for each in open_ones] == [0, 0]
    assert len(json.loads(record_file.read_text())) == 80
    assert [path.name for path in record_file.parent.iterdir()] == [record_file.name]


def test_a_learner_without_a_home_folder_has_a_record(monkeypatch, tmp_path):
    def no_home(*arguments):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(record.Path, "expanduser", no_home)
    monkeypatch.setattr(record.Path, "home", no_home)
    for named in ("~nobody/progress.json", ""):
        monkeypatch.setenv("MINICOGVX_PROGRESS", named)
        assert record.record_path() == record.Path(".minicogvx") / "progress.json"


def test_solved_exercises_stay_beside_it(shown, record_file):
    record.save("6.1")
    predict("6.1", "a", "b", answer="a")
    assert list(json.loads(record_file.read_text())) == ["6.1", "prediction 6.1"]


def test_a_full_disk_stops_nothing(shown, monkeypatch, capsys):
    def full_disk(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.os, "replace", full_disk)
    predict("6.1", "a", "b", answer="a")
    outcome("6.1", "a")
    assert "could not be saved" in said(capsys)
