"""The exam switch gives nothing away by the ordinary way, and the notebook runs on; grade() asks for the verdict."""

import inspect

import pytest
import torch

from minicogvx.course import check, grade, hint, show_source, solution, solved
from minicogvx.course.exercises import Exercise, all_exercises, checking, exam, find, grading, judge, solution_source
from minicogvx.transformer.patchify import patchify

EXERCISES = list(all_exercises())


@pytest.fixture(autouse=True)
def a_new_session(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICOGVX_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.delenv(exam.VARIABLE, raising=False)
    monkeypatch.setattr(checking, "_verdicts", {})
    monkeypatch.setattr(checking, "_hints_given", {})
    monkeypatch.setattr(exam, "_stand_ins", {})


@pytest.fixture
def in_an_exam(monkeypatch):
    monkeypatch.setenv(exam.VARIABLE, "spring")


def right(x, kernel_size, dilation=1):
    return torch.cat([x[:, :, :1]] * ((kernel_size - 1) * dilation) + [x], dim=2)


def stub(x, kernel_size, dilation=1):
    raise NotImplementedError("write this")


def unchanged(x, kernel_size, dilation=1):
    return x


# ---- the switch


def test_solutions_hints_and_sources_are_one_sentence(in_an_exam, capsys):
    solution("2.1"), hint("2.1"), show_source(patchify)
    assert capsys.readouterr().out == ("Solutions are switched off: this is an exam.\n"
                                       "Hints are switched off: this is an exam.\n"
                                       "Sources of the package are switched off: this is an exam.\n")
    assert solution_source("2.1") is None
    with pytest.raises(ValueError, match="there is no exercise 2.9"):
        hint("2.9")


def test_empty_and_zero_are_off(monkeypatch, capsys, subtests):
    for value in ("", " ", "0"):
        with subtests.test(value):
            monkeypatch.setenv(exam.VARIABLE, value)
            hint("2.1")
            assert capsys.readouterr().out.startswith("Hint ") and exam.seed("2.1") == 0
            assert find("2.1").reference(torch.zeros(1, 1, 2, 1, 1), 3).shape[2] == 4


def test_a_failed_check_hands_back_what_computes_but_is_no_answer(in_an_exam, capsys):
    given = check("2.1", unchanged)
    assert capsys.readouterr().out.endswith("now holds the package's function, so that you can read on.\n")  # no hint
    x = torch.randn(1, 2, 3, 2, 2)
    assert torch.equal(given(x, 3), right(x, 3))
    assert check("2.1", given) is given and "holds the package's function" in capsys.readouterr().out
    hidden = check("2.1", lambda *arguments, **named: given(*arguments, **named))
    assert hidden is given and "not right yet. This is the package's pad_past, not yours." in capsys.readouterr().out
    assert not solved("2.1") and torch.equal(given(x, 3), right(x, 3))  # after the check it works again
    assert check("2.1", right) is right and solved("2.1")


def test_the_reference_is_not_reached_by_the_ordinary_way(in_an_exam, subtests):
    theirs = {each.number: each.reference for name in checking._modules() for each in checking._exercises_in(name)}
    for exercise in (*all_exercises(), *(find(each.number) for each in EXERCISES)):
        with subtests.test(exercise.number):
            hidden = theirs[exercise.number]
            assert exercise.reference is not hidden or not callable(hidden)  # a value is what it is
            if inspect.isfunction(hidden):
                assert inspect.getsource(hidden).strip() not in inspect.getsource(inspect.unwrap(exercise.reference))
            assert find(exercise.number).reference is exercise.reference


def test_a_class_is_handed_back_as_a_class(in_an_exam):
    class Nothing(torch.nn.Module):
        pass

    given = check("2.2", Nothing)
    assert isinstance(given, type) and given is not checking.exercise_of("2.2").reference
    assert check("2.2", given) is given
    assert "not yours" in judge(checking.exercise_of("2.2"), type("Mine", (given,), {})).message


def test_a_value_is_handed_back_as_it_is(in_an_exam):
    assert exam.stand_in(Exercise("9.9", "x", ("a", "b", "c"), 0.5, print)) == 0.5


def test_the_word_decides_the_random_numbers(monkeypatch):
    drawn = []
    exercise = Exercise("9.9", "draw", ("a", "b", "c"), None, lambda f: drawn.append(torch.rand(3)))
    for word in ("", "spring", "spring", "autumn"):
        monkeypatch.setenv(exam.VARIABLE, word)
        judge(exercise, "mine")
    plain, first, again, other = drawn
    assert torch.equal(first, again) and not torch.equal(first, plain) and not torch.equal(first, other)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.number)
def test_the_packages_version_is_right_whatever_the_word(exercise, monkeypatch, subtests):
    for word in ("spring", "autumn", "b7"):
        with subtests.test(word):
            monkeypatch.setenv(exam.VARIABLE, word)
            verdict = judge(exercise, exercise.reference)
            assert verdict.state == "right", verdict.message


# ---- grade


def failure(number, answer) -> str:
    with pytest.raises(AssertionError) as caught:
        grade(number, answer)
    return str(caught.value)


@pytest.mark.parametrize("word", ["", "spring"])
def test_a_grade_is_the_verdict(word, monkeypatch, capsys):
    monkeypatch.setenv(exam.VARIABLE, word)
    assert failure("2.1", stub) == "Exercise 2.1: not tried yet." == failure("2.1", None)
    assert failure("2.1", check("2.1", stub)) == "Exercise 2.1: not tried yet."
    refused = failure("2.1", unchanged)
    assert refused.startswith("Exercise 2.1: not right yet. pad_past") and "shape" in refused
    assert failure("2.1", check("2.1", unchanged)) == refused  # of the name that holds the package's now
    assert failure("2.1", find("2.1").reference) == refused
    check("2.1", right)
    assert failure("2.1", find("2.1").reference) == "Exercise 2.1: not tried yet."
    capsys.readouterr()
    assert grade("2.1", right) is None and capsys.readouterr().out == "Exercise 2.1: right.\n"
    with pytest.raises(ValueError, match="there is no exercise 2.9"):
        grade("2.9", right)


def test_what_was_just_checked_is_not_judged_again(monkeypatch):
    judged = []
    monkeypatch.setattr(checking, "_answers", {})
    for module in (checking, grading):
        monkeypatch.setattr(module, "judge", lambda exercise, answer: judged.append(answer) or judge(exercise, answer))

    def mine(x, kernel_size, dilation=1):
        return right(x, kernel_size, dilation)

    check("2.1", right), grade("2.1", right), grade("2.1", right)
    assert judged == [right]
    grade("2.1", mine)  # another object, which no check has seen
    assert judged == [right, mine]
    check("2.1", unchanged)
    assert failure("2.1", unchanged).startswith("Exercise 2.1: not right yet.") and judged == [right, mine, unchanged]
    grade("2.1", right)  # it was right, but is not what was checked last
    assert judged == [right, mine, unchanged, right]
