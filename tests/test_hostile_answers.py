"""Whatever a learner hands in, a check answers with a sentence: every exercise of the course, every kind of misfortune.

A loop without an end is not among them: it is the learner who stops that, with the notebook's own button.
"""

import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minicogvx.course import check
from minicogvx.course.exercises import all_exercises, checking, judge

EXERCISES = list(all_exercises())


# ---- functions that stop


class Speechless(Exception):
    """It cannot even say what went wrong."""

    def __str__(self):
        raise ValueError("no words")


class Beyond(BaseException):
    """No Exception, as SystemExit is none."""


def raises(error):
    def answer(*arguments, **named):
        raise error

    answer.__name__ = f"raises_{type(error).__name__}"
    return answer


def exits(*arguments, **named):
    sys.exit(3)


def never_returns(*arguments, **named):
    return never_returns(*arguments, **named)


def takes_nothing():
    return torch.zeros(3)


def opens_nothing(*arguments, **named):
    return open("/nothing/here")


STOPS = [raises(ValueError("no")), raises(Speechless()), raises(Beyond("gone")), raises(StopIteration()),
         raises(AssertionError()), raises(NotImplementedError("only for CUDA")), raises(UnicodeDecodeError(
             "utf-8", b"\xff", 0, 1, "broken")), raises(ValueError("a\ud800b\n" * 400)), exits, never_returns,
         takes_nothing, opens_nothing]


# ---- functions that give something else


class Prickly:
    """An object that objects to everything."""

    def __getattr__(self, name):
        raise ValueError(f"no {name}")

    def __eq__(self, other):
        raise ValueError("never equal")

    __hash__ = None

    def __repr__(self):
        raise ValueError("nothing to see")

    def __iter__(self):
        raise ValueError("no items")

    def __bool__(self):
        raise ValueError("neither")


class Mute:
    """An object of the learner's without any method."""

    def __init__(self, *arguments, **named):
        pass


def gives(name, make):
    def answer(*arguments, **named):
        return make()

    answer.__name__ = f"gives_{name}"
    return answer


def itself_in_itself():
    circle: list = []
    circle.append(circle)
    return circle


def generator(*arguments, **named):
    yield torch.zeros(3)
    yield torch.ones(3)


async def coroutine(*arguments, **named):
    return torch.zeros(3)


def first_argument(*arguments, **named):
    return arguments[0] if arguments else next(iter(named.values()), "nothing")


GIVES = [
    gives("None", lambda: None), gives("array", lambda: np.zeros((2, 3))),
    gives("objects", lambda: np.array([{}, None])),
    gives("text", lambda: "a tensor"), gives("bytes", lambda: b"\xff\x00"), gives("dict", lambda: {"x": 1}),
    gives("empty_list", list), gives("empty_tensor", lambda: torch.zeros(0)), gives("nan", lambda: float("nan")),
    gives("minus_infinity", lambda: torch.full((2, 3), -torch.inf)), gives("huge", lambda: 10 ** 400),
    gives("complex", lambda: torch.zeros(2, 3, dtype=torch.complex64)), gives("true", lambda: True),
    gives("bools", lambda: torch.zeros(2, 3, dtype=torch.bool)),
    gives("meta", lambda: torch.zeros(2, 3, device="meta")),
    gives("sparse", lambda: torch.zeros(2, 3).to_sparse()), gives("circle", itself_in_itself),
    gives("prickly", Prickly), gives("mute", Mute), gives("class", lambda: Mute),
    gives("module", lambda: nn.Linear(2, 2)),
    gives("function", lambda: len), gives("ellipsis", lambda: ...), gives("not_implemented", lambda: NotImplemented),
    gives("nested", lambda: ([torch.zeros(1)], {"y": (None, np.float32(1))})), gives("set", lambda: {1, 2}),
    generator, first_argument,
]


class OtherModule(nn.Module):
    """A module that takes anything and gives an array."""

    def __init__(self, *arguments, **named):
        super().__init__()

    def forward(self, *arguments, **named):
        return np.zeros(3)


OBJECTS = [Mute, Mute(), Prickly(), OtherModule, OtherModule(), nn.Linear, nn.Identity(), 3, "text", np.zeros(3),
           torch.zeros(2, 3), [len], {"f": len}, len, print, int, object(), coroutine]


# ---- the package's own answer, as something else


def converted(reference, name, convert):
    """The reference, its tensors and numbers changed by `convert`; of a class, those of its forward."""

    def changed(result):
        if isinstance(result, (tuple, list)):
            return type(result)(map(changed, result))
        return convert(result) if isinstance(result, Tensor | float | int) else result

    if isinstance(reference, type):
        def forward(self, *arguments, **named):
            return changed(reference.forward(self, *arguments, **named))

        return type(f"{name}_{reference.__name__}", (reference,), {"forward": forward})

    if not callable(reference):
        return changed(reference)

    def answer(*arguments, **named):
        return changed(reference(*arguments, **named))

    answer.__name__ = f"as_{name}"
    return answer


def of_tensors(convert):
    return lambda result: convert(result) if isinstance(result, Tensor) else result


CONVERSIONS = {
    "array": lambda x: x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x),
    "float64": of_tensors(Tensor.double), "float16": of_tensors(Tensor.half), "int": of_tensors(Tensor.int),
    "complex": of_tensors(lambda x: x.to(torch.complex64)), "list": of_tensors(Tensor.tolist),
    "bool": of_tensors(Tensor.bool), "pair": lambda x: (x, x), "tensor": lambda x: torch.as_tensor(x),
    "flat": of_tensors(lambda x: x.reshape(-1)), "one_more_axis": of_tensors(lambda x: x[None]), "text": str,
}


def complaints(exercise, answer, may_be_right: bool = False) -> list[str]:
    """What is wrong with the verdict on `answer`: none, if it is refused in a sentence."""
    name = getattr(answer, "__name__", None) if not isinstance(answer, Prickly) else None
    name = name or type(answer).__name__
    try:
        verdict = judge(exercise, answer)
    except BaseException as error:
        return [f"{name}: the check stops with {type(error).__name__}: {str(error)[:200]}"]
    if verdict.state == "right" and may_be_right:
        return []
    message = verdict.message
    if verdict.state not in ("wrong", "stopped"):
        return [f"{name} counts as {verdict.state}"]
    sentence = message and "\n" not in message and "Traceback" not in message and len(message) < 1500
    try:
        message.encode()
    except UnicodeEncodeError:
        sentence = False
    return [] if sentence and message.rstrip()[-1] in '.?!)"' else [f"{name} is refused with {message!r}"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.number)
def test_any_answer_gets_a_sentence(exercise):
    found = [each for answer in (*STOPS, *GIVES, *OBJECTS) for each in complaints(exercise, answer)]
    for name, convert in CONVERSIONS.items():
        answer = converted(exercise.reference, name, convert)
        found += complaints(exercise, answer, may_be_right=True)  # as where no number changes
    assert found == []


def test_the_learners_own_interruption_goes_through():
    with pytest.raises(KeyboardInterrupt):
        check("2.1", raises(KeyboardInterrupt()))


def test_what_is_said_fits_the_answer(capsys, monkeypatch, tmp_path, subtests):
    monkeypatch.setenv("MINICOGVX_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setattr(checking, "_verdicts", {})
    for answer, words in (
        (exits, "Your code stopped (line {exits}, sys.exit(3)) with SystemExit: 3. The call was pad_past("),
        (never_returns, "with RecursionError: maximum recursion depth exceeded"),
        (raises(Speechless()), "with Speechless. The call was"),
        (gives("array", lambda: np.zeros((2, 3))), "is a ndarray; it must be a tensor"),
    ):
        line = exits.__code__.co_firstlineno + 1
        with subtests.test(answer.__name__):
            check("2.1", answer)
            said = " ".join(capsys.readouterr().out.split())  # without its line ends
            assert words.replace("{exits}", str(line)) in said
