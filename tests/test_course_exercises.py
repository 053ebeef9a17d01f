"""Checks say what is wrong, keep a record and never stop a notebook; every exercise has a guard of wrong answers."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minicogvx.course import check, hint, progress, solution, solved
from minicogvx.course.exercises import (
    Exercise,
    Wrong,
    all_exercises,
    checking,
    find,
    judge,
    record,
)
from minicogvx.course.exercises.calls import arguments_said
from minicogvx.course.exercises.exercise import expect_close, expect_equal, expect_raises, expect_shape
from tests.guards import guard

THIS_FILE_LINES = Path(__file__).read_text(encoding="utf-8").splitlines()


@pytest.fixture(autouse=True)
def record_file(tmp_path, monkeypatch):
    """A new learner: nothing solved, no hint used."""
    path = tmp_path / "home" / "progress.json"
    monkeypatch.setenv("MINICOGVX_PROGRESS", str(path))
    monkeypatch.setattr(checking, "_hints_given", {})
    monkeypatch.setattr(checking, "_verdicts", {})
    monkeypatch.setattr(checking, "LINE", 10_000)  # sentences are compared whole
    return path


def right_pad_past(x, kernel_size, dilation=1):
    return torch.cat([x[:, :, :1]] * ((kernel_size - 1) * dilation) + [x], dim=2)


def right_sequence_length(frames, height, width, text, patch_t=1):
    latent_frames = (frames - 1) // 4 + 1
    return text + (latent_frames + patch_t - 1) // patch_t * (height // 16) * (width // 16)


def rounded_down(frames, height, width, text, patch_t=1):
    return text + frames // 4 // patch_t * (height // 16) * (width // 16)


# ---- the guard itself can fail


def test_the_guard_finds_a_lax_check(subtests):
    lax = Exercise("9.9", "double", ("a", "b", "c"), lambda x: 2 * x, lambda f: expect_equal("f(2)", f(2), 4))
    wrong = [("f(2) is 3", lambda x: x + 1), ("f(2) is 0", lambda x: 0), ("f(2) is '22'", lambda x: str(x) * 2)]
    def double(x):
        return x + x

    def square(x):  # of 2 it is 4, too: the check is too weak for it
        return x * x

    guard(lax, double, wrong)
    for exercise, solution_, answers, words in (
        (lax, double, [*wrong, ("f(2) is", square)], "square counts as right, not as wrong"),
        (lax, double, wrong[:2], "has 2 wrong answers; it needs at least 3"),
        (lax, double, [*wrong, ("too large", lambda x: 9)], "does not name its mistake, 'too large'"),
        (lax, double, [*wrong, ("", lambda x: 9)], "does not name its mistake, ''"),
        (lax, lambda x: x + 1, wrong, "the solution counts as wrong, not as right; f.2. is 3"),
        (replace(lax, reference=lambda x: x), double, wrong, "the package's version counts as wrong"),
        (replace(lax, check=lambda f: None), double, wrong, "the stub counts as right, not as not tried"),
        (lax, square, [("f(2) is", square), ("f(2) is", double)], "square .*\n.*double .*"),  # all are named
    ):
        with subtests.test(msg=words), pytest.raises(AssertionError, match=words):
            guard(exercise, solution_, answers)


def test_every_exercise_has_its_guard():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_exercises_*.py"))
    assert sorted(re.findall(r'guard\("(\d+\.\d+)", ', tests)) == sorted(each.number for each in all_exercises())


# ---- check


def test_an_exercise_not_tried_returns_the_package(capsys, record_file):
    reference = find("2.1").reference
    for untouched in (not_written, ..., None):
        assert check("2.1", untouched) is reference
        assert capsys.readouterr().out == ("Exercise 2.1: not tried yet. The name pad_past now holds the package's "
                                           "function, so that you can read on.\n")
    assert not record_file.exists() and not solved("2.1")


def test_a_check_that_is_run_again_alone_says_whose_function_it_saw(capsys, record_file):
    reference = find("2.1").reference
    assert check("2.1", check("2.1", lambda x: x)) is reference
    assert capsys.readouterr().out.endswith("Exercise 2.1: the name pad_past holds the package's function. "
                                            "Run the cell with your own, then this one.\n")
    assert not record_file.exists() and not solved("2.1")


def test_solved_is_whether_the_learners_own_is_in_use():
    assert not solved("0.5")
    check("0.5", right_sequence_length)
    assert solved("0.5") and not solved("2.1")
    check("0.5", rounded_down)  # taken back
    assert not solved("0.5")


def test_a_right_answer_is_the_learners_own_and_is_noted(capsys, record_file):
    assert check("0.5", right_sequence_length) is right_sequence_length
    assert capsys.readouterr().out == "Exercise 0.5: right.\n"
    assert list(json.loads(record_file.read_text())) == ["0.5"]


def test_a_wrong_answer_is_explained_and_the_notebook_continues(capsys, record_file):
    assert check("0.5", rounded_down) is find("0.5").reference
    assert capsys.readouterr().out == (
        "Exercise 0.5: not right yet. sequence_length(17, 64, 64, 32) is 96; it must be 112. The first "
        "frame stays alone, and the others go in fours: 17 frames become 5, not 4.\n"
        'The name sequence_length now holds the package\'s function, so that you can read on; hint("0.5") helps.\n')
    assert not record_file.exists()


def test_an_exception_is_one_sentence_with_its_line(capsys):
    def helper(frames):
        return frames.shape[0]  # this line

    def sequence_length(frames, height, width, text, patch_t=1):
        return helper(frames)

    line = next(i for i, text in enumerate(THIS_FILE_LINES, 1) if "frames.shape[0]  # this line" in text)
    assert check("0.5", sequence_length) is find("0.5").reference
    out = capsys.readouterr().out
    said = f"Your code stopped (line {line}, return frames.shape[0]  # this line) with AttributeError: 'int' obj"
    assert said in out
    assert "The call was sequence_length(frames=17, height=64, width=64, text=32).\n" in out  # not the helper's
    assert "Traceback" not in out and len(out.splitlines()) == 2


def test_an_exception_deep_in_torch_names_the_learners_line(capsys):
    def pad_past(x, kernel_size, dilation=1):
        return torch.nn.functional.pad(x, (1, 0), mode="replicate")

    check("2.1", pad_past)
    out = capsys.readouterr().out
    assert 'return torch.nn.functional.pad(x, (1, 0), mode="replicate")) with NotImplementedError: ' in out


def test_the_call_that_stopped_is_shown_with_shapes(capsys, subtests):
    def reshaped(x, kernel_size, dilation=1):
        x = x[:, :, :1]  # what was given is shown, not this
        return x.view(7, 7)

    for answer, words in (
        (reshaped, r"with RuntimeError: .* The call was pad_past\(x of shape \((\d+, ){4}\d+\), kernel_size=3"),
        (lambda x: x, r"The call stopped with TypeError: .* The call was pad_past\(a tensor of shape \("),
        (lambda *x, **y: 1 / 0, r"with ZeroDivisionError: .* The call was pad_past\(a tensor of shape \("),
    ):
        with subtests.test(words):
            check("2.1", answer)
            assert re.search(words, capsys.readouterr().out)


def test_a_check_that_stumbles_over_a_result_names_the_last_call():
    elsewhere = {"__name__": "elsewhere"}  # not the learner's module, which this is
    exec("def look(f): return [each for each in f(2)]", elsewhere)
    exercise = Exercise("9.9", "pair", ("a", "b", "c"), None, elsewhere["look"])
    verdict = judge(exercise, lambda x: x)
    assert verdict.state == "stopped" and verdict.message == (
        "Your answer could not be checked; the check stopped with TypeError: 'int' object is not iterable. The last "
        "call was pair(x=2). It gave an int.")


def test_arguments_are_said_shortly(subtests):
    def called(x, size=4, *rest, mode="a", **others):
        pass

    long, module = torch.zeros(2, 3), torch.nn.Linear(2, 2)
    for arguments, named, said in (
        ((long, 5), {}, "x of shape (2, 3), size=5"),
        ((torch.tensor([1.0, 0.25]),), {"mode": "b" * 60}, "x=tensor([1, 0.25]), mode='" + "b" * 39 + "..."),
        ((long, 1, long, 2), {"more": module}, "x of shape (2, 3), size=1, a tensor of shape (2, 3), 2, more=a Linear"),
        (([long, long], called), {}, "x=a list of 2, size=called"),
        ((), {"mode": 3}, "mode=3"),  # x is missing
    ):
        with subtests.test(said):
            assert arguments_said(called, arguments, named) == said
    assert arguments_said(max, (2, 3), {}) == "2, 3"  # has no signature to ask


def lax(reference, answer, call=lambda f: f(torch.ones(2, 3))):
    """The verdict of a check that looks at nothing."""
    return judge(Exercise("9.9", "halve", ("a", "b", "c"), reference, call), answer)


def test_nan_and_infinity_are_refused_by_every_check(subtests):
    def half(x):
        return x / 2

    assert lax(half, lambda x: x).state == "right"
    for answer, words in (
        (lambda x: x / 0, "halve(x of shape (2, 3)) gives infinity; every number must be finite."),
        (lambda x: (x, {"y": [x.log().log() * 0]}), "halve(x of shape (2, 3)) gives NaN; every"),
        (lambda x: float("nan"), "halve(x of shape (2, 3)) gives NaN; every"),
    ):
        with subtests.test(words):
            verdict = lax(half, answer)
            assert verdict.state == "wrong" and verdict.message.startswith(words)
    with subtests.test("where the package gives infinity too, it belongs there; NaN does not"):
        assert lax(lambda x: x / 0, lambda x: 2 * x / 0).state == "right"
        assert lax(lambda x: x / 0, lambda x: 0 * x / 0).state == "wrong"
    with subtests.test("a value"):
        assert lax(0.5, float("inf"), lambda value: None).message.startswith("halve gives infinity; every number must")
    with subtests.test("a class of modules, and a module"):
        class Spoilt(torch.nn.Module):
            def forward(self, x):
                return x * float("nan")

        assert "gives NaN" in lax(torch.nn.Identity, Spoilt, lambda kind: kind()(torch.ones(2, 3))).message
        assert "gives NaN" in lax(torch.nn.Identity(), Spoilt(), lambda net: net(torch.ones(2, 3))).message
    with subtests.test("before what the check says, unless that speaks of it"):
        def strict(f):
            expect_equal("the sum", float(f(torch.ones(2, 3)).sum().nan_to_num()), 3.0)

        assert lax(half, lambda x: x * float("nan"), strict).message == (
            "halve(x of shape (2, 3)) gives NaN; every number must be finite. the sum is 0.0; it must be 3.0.")
        spoken = lax(half, lambda x: x * float("nan"), lambda f: expect_close("it", f(torch.ones(2)), torch.ones(2)))
        assert spoken.message.startswith("it differs") and "every number" not in spoken.message


def test_what_cannot_be_called_is_reported(capsys):
    assert check("0.5", 5) is find("0.5").reference
    said = capsys.readouterr().out
    assert "could not be checked; the check stopped with TypeError: 'int' object is not callable." in said


def test_checks_are_seeded_and_leave_the_learners_random_numbers_alone():
    seen = []
    exercise = Exercise("9.9", "draw", ("a", "b", "c"), None, lambda f: seen.append(torch.rand(3)))
    torch.manual_seed(7)
    judge(exercise, "mine"), judge(exercise, "mine")
    assert torch.equal(seen[0], seen[1])
    after = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(3))


def test_an_unknown_number_is_one_sentence_with_what_there_is():
    for call in (find, hint, solution, lambda number: check(number, None)):
        for number in ("2.9", "77.1", "two"):
            message = rf"there is no exercise {number}; the exercises are .*2\.1, 2\.2, 2\.3"
            with pytest.raises(ValueError, match=message):
                call(number)


def test_every_exercise_is_found_by_its_number():
    exercises = list(all_exercises())
    assert [find(exercise.number) for exercise in exercises] == exercises
    assert len({exercise.number for exercise in exercises}) == len(exercises) >= 3
    with pytest.raises(ValueError, match="2 hints; it must have 3"):
        Exercise("9.9", "x", ("a", "b"), None, print)
    with pytest.raises(ValueError, match="difficulty 4; it must be 1, 2 or 3"):
        Exercise("9.9", "x", ("a", "b", "c"), None, print, difficulty=4)


def test_properties_that_fail_are_named_and_those_that_hold_are_silent(subtests):
    for call, message in (
        (lambda: expect_shape("it", [1], (1,)), "it is a list; it must be a tensor."),
        (lambda: expect_shape("it", torch.zeros(2, 3), (3, 2)), "it has shape (2, 3); it must be (3, 2)."),
        (lambda: expect_close("it", torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])),
         "it differs in 1 of 2 numbers: at (1,) it is 2.5; it must be 2."),
        (lambda: expect_close("it", torch.tensor([float("nan")]), torch.zeros(1)), "at (0,) it is nan; it must be 0."),
        (lambda: expect_equal("it", 2, 3), "it is 2; it must be 3."),
        (lambda: expect_equal("it", True, 1), "it is True, of type bool; it must be 1, of type int."),
        (lambda: expect_raises("it", ValueError, lambda: torch.zeros(2)), "it gives a tensor of shape (2,); it must"),
    ):
        with subtests.test(msg=message), pytest.raises(Wrong, match=re.escape(message)):
            call()
    expect_close("it", torch.tensor([1.00001]), torch.ones(1))
    expect_equal("it", (1, 2), (1, 2))
    expect_raises("it", KeyError, lambda: {}["x"])
    with pytest.raises(NotImplementedError):  # so a stub stays a stub
        expect_raises("it", ValueError, not_written)


def not_written(*arguments, **named):
    raise NotImplementedError("write this")


# ---- hint


def test_messages_and_hints_break_between_words(capsys, monkeypatch):
    monkeypatch.setattr(checking, "LINE", 100)
    said = judge(find("0.5"), rounded_down).message
    check("0.5", rounded_down), hint("0.6")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100 < len(said)
    assert f"Exercise 0.5: not right yet. {said} The name" in out.replace("\n", " ")


def test_one_more_hint_at_each_call(capsys):
    hints = find("2.1").hints
    for i in range(3):
        hint("2.1")
        assert capsys.readouterr().out == f"Hint {i + 1} of 3: {hints[i]}\n"
    for _ in range(2):
        hint("2.1")
        assert capsys.readouterr().out == 'There are no more hints for exercise 2.1; solution("2.1") shows one.\n'
    hint("0.5")
    assert capsys.readouterr().out.startswith("Hint 1 of 3: Begin with the latents")


# ---- progress


def test_progress_counts_and_keeps_the_first_day(capsys, record_file):
    progress()
    assert capsys.readouterr().out.startswith("Solved: 0 of ")
    record.save("2.1")
    days = {"2.1": "2020-02-02", "99.9": "2020-02-03"}  # one of a later version of the course, too
    record_file.write_text(json.dumps(days))
    check("2.1", right_pad_past), check("0.5", right_sequence_length)
    capsys.readouterr()
    progress()
    out = capsys.readouterr().out
    assert out.startswith("Solved: 2 of ")
    assert "  2.1 pad_past (2020-02-02)\n" in out and "  0.5 sequence_length (20" in out
    assert json.loads(record_file.read_text()).keys() == {"2.1", "99.9", "0.5"}
    assert sorted(path.name for path in record_file.parent.iterdir()) == ["progress.json", "progress_answers"]


def test_a_broken_file_is_set_aside(capsys, record_file, subtests):
    record_file.parent.mkdir()
    for broken in (b'{"2.1":', b"[1, 2]", b'{"2.1": 3}', b"\xff"):
        with subtests.test(msg=str(broken)):
            record_file.write_bytes(broken)
            assert check("0.5", right_sequence_length) is right_sequence_length
            out = capsys.readouterr().out
            assert out.count("is broken") == 1 and "set aside as progress.json.broken" in out and "Trace" not in out
            assert record_file.with_name("progress.json.broken").read_bytes() == broken
            assert list(json.loads(record_file.read_text())) == ["0.5"]


def test_a_file_that_cannot_be_read_or_written_stops_nothing(capsys, record_file, monkeypatch, tmp_path):
    record_file.mkdir(parents=True)  # a folder where the file should be
    assert check("0.5", right_sequence_length) is right_sequence_length
    assert "could not be read" in capsys.readouterr().out and record_file.is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINICOGVX_PROGRESS", str(tmp_path / "file" / "below" / "progress.json"))
    assert check("0.5", right_sequence_length) is right_sequence_length
    assert capsys.readouterr().out.startswith("Exercise 0.5: right.\nYour progress in ")
    monkeypatch.setenv("MINICOGVX_PROGRESS", str(tmp_path / "full" / "progress.json"))
    monkeypatch.setattr(record.os, "replace", full_disk)
    assert check("0.5", right_sequence_length) is right_sequence_length
    assert "could not be saved" in capsys.readouterr().out


def full_disk(*paths):
    raise OSError(28, "No space left on device")


def test_the_file_lies_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("MINICOGVX_PROGRESS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert record.record_path() == tmp_path / ".minicogvx" / "progress.json"
