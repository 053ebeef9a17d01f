"""Exercises distinguish right from wrong, explain why, keep a record, and never stop a notebook."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicogvx.course import check, hint, notebook_builder, progress, solution
from minicogvx.course.exercises import (
    Exercise,
    Wrong,
    all_exercises,
    checking,
    find,
    judge,
    record,
    solution_source,
    solutions,
)
from minicogvx.course.exercises.exercise import expect_close, expect_equal, expect_raises, expect_shape
from tests.guards import guard

THIS_FILE_LINES = Path(__file__).read_text(encoding="utf-8").splitlines()


@pytest.fixture(autouse=True)
def record_file(tmp_path, monkeypatch):
    """A new learner: nothing solved, no hint used."""
    path = tmp_path / "home" / "progress.json"
    monkeypatch.setenv("MINICOGVX_PROGRESS", str(path))
    monkeypatch.setattr(checking, "_hints_given", {})
    return path


# ---- right answers, and plausible wrong ones


def right_pad_past(x, kernel_size, dilation=1):
    return torch.cat([x[:, :, :1]] * ((kernel_size - 1) * dilation) + [x], dim=2)


def right_latent_frames(num_frames, ratio=4):
    if num_frames < 1 or (num_frames - 1) % ratio:
        raise ValueError(f"{num_frames} frames")
    return 1 + (num_frames - 1) // ratio


def right_stream(conv, x, chunk, pad=right_pad_past):
    padded, more = pad(x, conv.kernel_size[0]), conv.kernel_size[0] - 1
    pieces = [conv(padded[:, :, start:start + chunk + more]) for start in range(0, x.shape[2], chunk)]
    return torch.cat(pieces, dim=2)


def with_zeros(x, kernel_size, dilation=1):
    return F.pad(x, (0, 0, 0, 0, (kernel_size - 1) * dilation, 0))


def on_both_sides(x, kernel_size, dilation=1):
    missing = (kernel_size - 1) * dilation
    return torch.cat([x[:, :, :1]] * (missing - missing // 2) + [x] + [x[:, :, -1:]] * (missing // 2), dim=2)


def behind(x, kernel_size, dilation=1):
    return torch.cat([x] + [x[:, :, -1:]] * ((kernel_size - 1) * dilation), dim=2)


def the_last_frame(x, kernel_size, dilation=1):
    return torch.cat([x[:, :, -1:]] * ((kernel_size - 1) * dilation) + [x], dim=2)


def mirrored(x, kernel_size, dilation=1):
    missing = (kernel_size - 1) * dilation
    return torch.cat([x[:, :, 1:1 + missing].flip(2), x], dim=2)


def one_frame_too_many(x, kernel_size, dilation=1):
    return torch.cat([x[:, :, :1]] * kernel_size + [x], dim=2)


def without_dilation(x, kernel_size, dilation=1):
    return right_pad_past(x, kernel_size)


def backwards(x, kernel_size, dilation=1):
    return right_pad_past(x.flip(3), kernel_size, dilation)


def in_place(x, kernel_size, dilation=1):
    out = right_pad_past(x, kernel_size, dilation)
    x.mul_(0.5)
    return out


def without_return(*arguments, **named):
    right_pad_past(*arguments, **named)


def with_torch_pad(x, kernel_size, dilation=1):
    return F.pad(x, ((kernel_size - 1) * dilation, 0), mode="replicate")


def test_pad_past():
    guard("2.1", right_pad_past, [
        ("does not stay constant: the mean over the kernel at frame 0 is 0.33 (kernel_size=3)", with_zeros),
        ("The future leaks into the past: frame 1 was changed", on_both_sides),
        ("changed with it (kernel_size=3). All padding belongs in front", behind),
        ("The future leaks into the past: frame 4 was changed", the_last_frame),
        ("The future leaks into the past: frame 1 was changed", mirrored),
        ("of 5 frames has shape (2, 3, 8, 2, 4); it must be (2, 3, 7, 2, 4)", one_frame_too_many),
        ("dilation=2) of 5 frames has shape (2, 3, 7, 2, 4); it must be (2, 3, 9, 2, 4)", without_dilation),
        ("after the padding, differs in", backwards),
        ("is None; does your function end in return?", without_return),
        ("changes its input x", in_place),
        ("NotImplementedError", with_torch_pad),  # torch's own: it was tried
    ])


def rounded_down(num_frames, ratio=4):
    return num_frames // ratio


def never_refuses(num_frames, ratio=4):
    return (num_frames - 1) // ratio + 1


def true_division(num_frames, ratio=4):
    return (num_frames - 1) / ratio + 1


def always_four(num_frames, ratio=4):
    return right_latent_frames(num_frames, 4)


def forgets_the_negative(num_frames, ratio=4):
    if (num_frames - 1) % ratio:
        raise ValueError(num_frames)
    return (num_frames - 1) // ratio + 1


def test_latent_frames():
    guard("2.2", right_latent_frames, [
        ("latent_frames(17) is 4; it must be 5", rounded_down),
        ("latent_frames(16) gives 4; it must raise ValueError", never_refuses),
        ("latent_frames(17) is 5.0, of type float", true_division),
        ("latent_frames(17, ratio=8) is 5; it must be 3", always_four),
        ("latent_frames(-3) gives 0; it must raise ValueError", forgets_the_negative),
    ])


def without_a_cache(conv, x, chunk):
    return torch.cat([conv(right_pad_past(piece, conv.kernel_size[0])) for piece in x.split(chunk, dim=2)], dim=2)


def all_at_once(conv, x, chunk):
    return conv(right_pad_past(x, conv.kernel_size[0]))


def without_a_start(conv, x, chunk):
    return torch.cat([conv(piece) for piece in x.split(chunk, dim=2) if piece.shape[2] >= conv.kernel_size[0]], dim=2)


def the_past_of_the_piece(conv, x, chunk):
    past, out = right_pad_past(x[:, :, :1], conv.kernel_size[0])[:, :, 1:], []
    for piece in x.split(chunk, dim=2):
        out.append(conv(torch.cat([past, piece], dim=2)))
        past = right_pad_past(piece, conv.kernel_size[0])[:, :, 1 - conv.kernel_size[0]:]
    return torch.cat(out, dim=2)


def zeros_at_the_start(conv, x, chunk):
    return right_stream(conv, x, chunk, pad=with_zeros)


def without_the_rest(conv, x, chunk):
    return right_stream(conv, x[:, :, :x.shape[2] // chunk * chunk], chunk)


def remembers_the_last_clip(conv, x, chunk, cache={}):
    first, out = cache.get("past", x[:, :, :1]), right_stream(conv, x, chunk)
    cache["past"] = x[:, :, -1:]
    return out + (first - x[:, :, :1]).abs().mean()


def test_stream():
    guard("2.3", right_stream, [
        ("first differs from the whole clip at frame 4, frame 0 of piece 1", without_a_cache),
        ("gives the convolution 11 frames at once; with its past, a piece has at most 6", all_at_once),
        ("of 9 frames, has shape (1, 3, 4, 4, 4); it must be (1, 3, 9, 4, 4)", without_a_start),
        ("chunk=1) with a kernel of 3 frames first differs from the whole clip at frame 2", the_past_of_the_piece),
        ("at frame 0, the start of the clip", zeros_at_the_start),
        ("of 9 frames, has shape (1, 3, 8, 4, 4)", without_the_rest),
        ("at frame 0, the start of the clip", remembers_the_last_clip),
    ])


def test_the_references_are_what_the_package_computes():
    from minicogvx.vae.causal_conv import CausalConv3d

    causal, x = CausalConv3d(2, 3, 3), torch.randn(1, 2, 5, 4, 4)
    plain = nn.Conv3d(2, 3, 3, padding=(0, 1, 1))
    plain.load_state_dict(causal.conv.state_dict())
    torch.testing.assert_close(plain(find("2.1").reference(x, 3)), causal(x))
    torch.testing.assert_close(find("2.3").reference(plain, x, 2), causal(x))
    with pytest.raises(ValueError, match="num_frames is 16; it must be 4k . 1, such as 5 or 9"):
        find("2.2").reference(16)


# ---- the guard itself can fail


def test_the_guard_finds_a_lax_check():
    lax = Exercise("9.9", "double", ("a", "b", "c"), lambda x: 2 * x, lambda f: expect_equal("f(2)", f(2), 4))
    wrong = [("f(2) is 3", lambda x: x + 1), ("f(2) is 0", lambda x: 0), ("f(2) is '22'", lambda x: str(x) * 2)]
    guard(lax, lambda x: x + x, wrong)
    square = ("f(2) is", lambda x: x * x)  # 4, too: the check is too weak for it
    with pytest.raises(AssertionError, match="lambda. counts as right, not as wrong"):
        guard(lax, lambda x: x + x, [*wrong, square])
    with pytest.raises(AssertionError, match="has 2 wrong answers; it needs at least 3"):
        guard(lax, lambda x: x + x, wrong[:2])
    with pytest.raises(AssertionError, match="does not name its mistake, 'too large'"):
        guard(lax, lambda x: x + x, [*wrong, ("too large", lambda x: 9)])
    with pytest.raises(AssertionError, match="does not name its mistake, ''"):
        guard(lax, lambda x: x + x, [*wrong, ("", lambda x: 9)])
    with pytest.raises(AssertionError, match="the solution counts as wrong, not as right; f.2. is 3"):
        guard(lax, lambda x: x + 1, wrong)
    with pytest.raises(AssertionError, match="the package's version counts as wrong"):
        guard(Exercise("9.9", "double", lax.hints, lambda x: x, lax.check), lambda x: x + x, wrong)
    with pytest.raises(AssertionError, match="the stub counts as right, not as not tried"):
        guard(Exercise("9.9", "nothing", lax.hints, lax.reference, lambda f: None), lambda x: x + x, wrong)


# ---- check


def test_an_exercise_not_tried_returns_the_package(capsys, record_file):
    def pad_past(x, kernel_size, dilation=1):
        raise NotImplementedError("write this")

    reference = find("2.1").reference
    for untouched in (pad_past, reference, ..., None):
        assert check("2.1", untouched) is reference
        assert capsys.readouterr().out == \
            "Exercise 2.1: not tried yet. Here is the package's version, so that you can read on.\n"
    assert not record_file.exists()


def test_a_right_answer_is_the_learners_own_and_is_noted(capsys, record_file):
    assert check("2.2", right_latent_frames) is right_latent_frames
    assert capsys.readouterr().out == "Exercise 2.2: right.\n"
    assert list(json.loads(record_file.read_text())) == ["2.2"]


def test_a_wrong_answer_is_explained_and_the_notebook_continues(capsys, record_file):
    assert check("2.2", rounded_down) is find("2.2").reference
    assert capsys.readouterr().out == (
        "Exercise 2.2: not right yet. latent_frames(17) is 4; it must be 5.\n"
        'Here is the package\'s version, so that you can read on; hint("2.2") helps.\n')
    assert not record_file.exists()


def test_an_exception_is_one_sentence_with_its_line(capsys):
    def helper(num_frames):
        return num_frames.shape[0]  # this line

    def latent_frames(num_frames, ratio=4):
        return helper(num_frames)

    line = next(i for i, text in enumerate(THIS_FILE_LINES, 1) if "num_frames.shape[0]  # this line" in text)
    assert check("2.2", latent_frames) is find("2.2").reference
    out = capsys.readouterr().out
    said = f"Your code stopped (line {line}, return num_frames.shape[0]  # this line) with AttributeError: 'int' obj"
    assert said in out
    assert "Traceback" not in out and len(out.splitlines()) == 2


def test_an_exception_deep_in_torch_names_the_learners_line(capsys):
    def pad_past(x, kernel_size, dilation=1):
        return torch.nn.functional.pad(x, (1, 0), mode="replicate")

    check("2.1", pad_past)
    out = capsys.readouterr().out
    assert 'return torch.nn.functional.pad(x, (1, 0), mode="replicate")) with NotImplementedError: ' in out


def test_what_cannot_be_called_is_reported(capsys):
    assert check("2.2", 5) is find("2.2").reference
    assert "could not be checked; that ended with TypeError: 'int' object is not callable." in capsys.readouterr().out


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


@pytest.mark.parametrize("call, message", [
    (lambda: expect_shape("it", [1], (1,)), "it is a list; it must be a tensor."),
    (lambda: expect_shape("it", torch.zeros(2, 3), (3, 2)), "it has shape (2, 3); it must be (3, 2)."),
    (lambda: expect_close("it", torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])),
     "it differs in 1 of 2 numbers: at (1,) it is 2.5; it must be 2."),
    (lambda: expect_close("it", torch.tensor([float("nan")]), torch.zeros(1)), "at (0,) it is nan; it must be 0."),
    (lambda: expect_equal("it", 2, 3), "it is 2; it must be 3."),
    (lambda: expect_equal("it", True, 1), "it is True, of type bool; it must be 1, of type int."),
    (lambda: expect_raises("it", ValueError, lambda: torch.zeros(2)), "it gives a tensor of shape (2,); it must raise"),
])
def test_messages_of_properties(call, message):
    with pytest.raises(Wrong) as caught:
        call()
    assert message in str(caught.value)


def test_properties_that_hold_are_silent():
    expect_close("it", torch.tensor([1.00001]), torch.ones(1))
    expect_equal("it", (1, 2), (1, 2))
    expect_raises("it", KeyError, lambda: {}["x"])
    with pytest.raises(NotImplementedError):  # so a stub stays a stub
        expect_raises("it", ValueError, lambda: judge_nothing())


def judge_nothing():
    raise NotImplementedError("write this")


# ---- hint and solution


def test_one_more_hint_at_each_call(capsys):
    hints = find("2.1").hints
    for i in range(3):
        hint("2.1")
        assert capsys.readouterr().out == f"Hint {i + 1} of 3: {hints[i]}\n"
    for _ in range(2):
        hint("2.1")
        assert capsys.readouterr().out == 'There are no more hints for exercise 2.1; solution("2.1") shows one.\n'
    hint("2.2")
    assert capsys.readouterr().out.startswith("Hint 1 of 3: The first frame")


SOURCE = '''# %% [markdown]
# # Test
# In text, check("2.1", pad_past) is not a check.

# %%
import torch

# %%
def pad_past(x, kernel_size, dilation=1):
    """Repeats the first frame."""
    ### BEGIN SOLUTION
    missing = (kernel_size - 1) * dilation
    return torch.cat([x[:, :, :1]] * missing + [x], dim=2)
    ### END SOLUTION


pad_past = check("2.1", pad_past)

# %%
def stream(conv, x, chunk):
    ### BEGIN SOLUTION
    return "streamed"
    ### END SOLUTION

# %% [markdown]
# Between an exercise and its check there may be text.

# %%
stream = check('2.3', stream)

# %%
latent_frames = check("2.2", len)
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "02_test.py").write_text(SOURCE)
    return tmp_path


def test_a_solution_is_found_in_the_notebooks_source(folder):
    text = solution_source("2.1", folder)
    assert text.startswith("def pad_past(x") and text.endswith("dim=2)") and "###" not in text
    space = {"torch": torch}
    exec(text, space)
    assert judge(find("2.1"), space["pad_past"]).state == "right"
    assert solution_source("2.3", folder) == 'def stream(conv, x, chunk):\n    return "streamed"'
    assert solution_source("2.2", folder) is None  # the nearest solution belongs to 2.3
    assert solution_source("3.1", folder) is None


def test_solution_prints_it_or_the_packages_own(folder, monkeypatch, capsys):
    monkeypatch.setattr(solutions, "_source_folder", lambda: folder)
    solution("2.1")
    out = capsys.readouterr().out
    assert out.startswith("# Exercise 2.1, pad_past: a solution\ndef pad_past(") and "BEGIN SOLUTION" not in out
    monkeypatch.setattr(solutions, "_source_folder", lambda: None)
    solution("2.1")
    out = capsys.readouterr().out
    assert out.startswith("# Exercise 2.1, pad_past: the package's version\n") and "pad_with_first_frame(x" in out


def test_the_sources_are_looked_for_above_the_package(tmp_path, monkeypatch):
    package = tmp_path / "minicogvx" / "course" / "exercises"
    monkeypatch.setattr(solutions, "__file__", str(package / "solutions.py"))
    assert solutions._source_folder() is None
    sources = tmp_path / "notebooks" / "source"
    sources.mkdir(parents=True)
    assert solutions._source_folder() == sources
    (sources / "02_test.py").write_text(SOURCE)
    assert solution_source("2.3") == 'def stream(conv, x, chunk):\n    return "streamed"'


# ---- progress


def test_progress_counts_and_keeps_the_first_day(capsys, record_file):
    progress()
    assert capsys.readouterr().out.startswith("Solved: 0 of ")
    record.save("2.1")
    days = {"2.1": "2020-02-02", "99.9": "2020-02-03"}  # one of a later version of the course, too
    record_file.write_text(json.dumps(days))
    check("2.1", right_pad_past), check("2.2", right_latent_frames)
    capsys.readouterr()
    progress()
    out = capsys.readouterr().out
    assert out.startswith("Solved: 2 of ") and "  2.1 pad_past (2020-02-02)\n  2.2 latent_frames (20" in out
    assert json.loads(record_file.read_text()).keys() == {"2.1", "99.9", "2.2"}
    assert [path.name for path in record_file.parent.iterdir()] == ["progress.json"]


@pytest.mark.parametrize("text", ["{\"2.1\":", "[1, 2]", "{\"2.1\": 3}", "\udcff"])
def test_a_broken_file_is_set_aside(text, capsys, record_file):
    record_file.parent.mkdir()
    broken = text.encode("utf-8", "surrogateescape")
    record_file.write_bytes(broken)
    assert check("2.2", right_latent_frames) is right_latent_frames
    out = capsys.readouterr().out
    assert out.count("is broken") == 1 and "set aside as progress.json.broken" in out and "Traceback" not in out
    assert record_file.with_name("progress.json.broken").read_bytes() == broken
    assert list(json.loads(record_file.read_text())) == ["2.2"]


def test_a_file_that_cannot_be_read_or_written_stops_nothing(capsys, record_file, monkeypatch, tmp_path):
    record_file.mkdir(parents=True)  # a folder where the file should be
    assert check("2.2", right_latent_frames) is right_latent_frames
    assert "could not be read" in capsys.readouterr().out and record_file.is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINICOGVX_PROGRESS", str(tmp_path / "file" / "below" / "progress.json"))
    assert check("2.2", right_latent_frames) is right_latent_frames
    assert capsys.readouterr().out.startswith("Exercise 2.2: right.\nYour progress in ")
    monkeypatch.setenv("MINICOGVX_PROGRESS", str(tmp_path / "full" / "progress.json"))
    monkeypatch.setattr(record.os, "replace", full_disk)
    assert check("2.2", right_latent_frames) is right_latent_frames
    assert "could not be saved" in capsys.readouterr().out


def full_disk(*paths):
    raise OSError(28, "No space left on device")


def test_the_file_lies_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("MINICOGVX_PROGRESS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert record.record_path() == tmp_path / ".minicogvx" / "progress.json"


# ---- the learner's notebook


def test_the_learners_notebook_has_stubs_and_the_other_has_solutions(folder):
    learners = notebook_builder.build(folder / "02_test.py")
    exercise = learners.cells[2].source
    assert exercise == ('def pad_past(x, kernel_size, dilation=1):\n    """Repeats the first frame."""\n'
                        '    raise NotImplementedError("write this")\n\n\npad_past = check("2.1", pad_past)')
    assert "SOLUTION" not in nbformat.writes(learners)
    nbformat.validate(learners)
    solved = notebook_builder.build(folder / "02_test.py", solutions=True)
    assert "missing = (kernel_size - 1) * dilation" in solved.cells[2].source
    assert "NotImplementedError" not in nbformat.writes(solved)
    for cell, other in zip(learners.cells, solved.cells, strict=True):
        assert (cell.id, cell.metadata) == (other.id, other.metadata)
        assert cell.source == other.source or "BEGIN SOLUTION" in other.source


def test_the_stub_in_the_notebook_counts_as_not_tried(folder, capsys):
    cell = notebook_builder.build(folder / "02_test.py").cells[2].source
    space = {"check": check}
    exec(cell, space)
    assert "Exercise 2.1: not tried yet" in capsys.readouterr().out
    assert space["pad_past"] is find("2.1").reference


def test_without_nbgrader_only_exercises_need_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "nbgrader.preprocessors", None)
    with pytest.raises(ImportError, match="nbgrader is missing; install it with"):
        notebook_builder.build(folder / "02_test.py")
    (folder / "03_plain.py").write_text("# %%\nprint(1)\n")
    assert notebook_builder.build(folder / "03_plain.py").cells[0].source == "print(1)"


def test_a_solution_without_an_end_is_refused(folder):
    path = folder / "02_test.py"
    path.write_text(SOURCE.replace("### END SOLUTION", "", 1))
    with pytest.raises(RuntimeError, match="no end solution statement"):
        notebook_builder.build(path)
