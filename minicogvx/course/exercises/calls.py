"""The calls that a check makes of a learner's answer: which one it was that stopped, and which gave NaN or infinity.

`Calls` stands between the two. The answer of a check is `calls.watched(answer)`: a function that does the same.
"""

import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MAX_VALUE = 40  # characters of an argument that is no tensor


class Calls:
    """What is noted about the calls of one answer, which is called `name` in sentences."""

    def __init__(self, name: str):
        self.name = name
        self.last: str | None = None  # the call made last, in words
        self.gave: str | None = None  # what that call gave, where checks seldom expect it, such as "a list of 3"
        self.stopped: tuple[BaseException, str] | None = None  # an exception, and the call that it came out of
        self.odd: dict[str, str] = {}  # "NaN" and "infinity": the first call that gave it

    def watched(self, answer: Any) -> Any:
        """`answer`, each call of it noted: a function becomes another that does the same; anything else stays."""
        if not callable(answer) or isinstance(answer, (type, nn.Module)):
            self._look_at(answer, self.name)
            return answer

        @functools.wraps(answer, updated=())
        def call(*arguments, **named):
            self.last = said = f"{self.name}({arguments_said(answer, arguments, named)})"
            self.gave = None
            try:
                result = answer(*arguments, **named)
            except BaseException as error:  # sys.exit() is no Exception
                self.stopped = (error, said)
                raise
            self.gave = result_said(result)
            self._look_at(result, said)
            return result

        return call

    @contextmanager
    def modules(self, answer: Any) -> Iterator[None]:
        """Notes also what modules of the learner give, where the answer is one, or a class of them."""
        if not isinstance(answer, (type, nn.Module)):
            yield
            return

        def entered(module, inputs):
            if module is answer or type(module) is answer:
                self.last = f"{self.name} of {', '.join(map(value_said, inputs))}"

        def left(module, inputs, result):
            if module is answer or type(module) is answer:
                self._look_at(result, f"{self.name} of {', '.join(map(value_said, inputs))}")

        hooks = (nn.modules.module.register_module_forward_pre_hook(entered),
                 nn.modules.module.register_module_forward_hook(left))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _look_at(self, result: Any, said: str) -> None:
        for kind in kinds_of_odd_numbers(result):
            self.odd.setdefault(kind, said)


def kinds_of_odd_numbers(result: Any) -> list[str]:
    """What a result holds of "NaN" and "infinity"; it may be numbers, tensors, or tuples, lists and dicts of them."""
    if isinstance(result, Tensor):
        if not (result.is_floating_point() or result.is_complex()) or result.is_meta:
            return []
        try:
            return [kind for kind, found in (("NaN", result.isnan()), ("infinity", result.isinf())) if found.any()]
        except RuntimeError:  # inside torch.func, which lets nobody look
            return []
    if isinstance(result, float):
        return kinds_of_odd_numbers(torch.tensor(result, dtype=torch.float64))
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, (tuple, list)):
        found = {kind for each in result for kind in kinds_of_odd_numbers(each)}
        return [kind for kind in ("NaN", "infinity") if kind in found]
    return []


def arguments_said(function: Any, arguments: tuple, named: Mapping[str, Any]) -> str:
    """The arguments of a call in words, by name where the function can be asked: "x of shape (1, 2, 3), size=4"."""
    try:
        bound = inspect.signature(function).bind(*arguments, **named)
        parameters = bound.signature.parameters
    except (TypeError, ValueError):  # they do not fit, or it cannot be asked
        words = [f"{name}={value_said(value)}" for name, value in named.items()]
        return ", ".join([*map(value_said, arguments), *words])
    words = []
    for name, value in bound.arguments.items():
        if parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            words += map(value_said, value)
        elif parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            words += [f"{key}={value_said(each)}" for key, each in value.items()]
        else:
            shape = isinstance(value, Tensor) and value.numel() > 4
            words.append(f"{name} of shape {tuple(value.shape)}" if shape else f"{name}={value_said(value)}")
    return ", ".join(words)


def result_said(result: Any) -> str:
    """What kind of thing a call gave: "a tensor of shape (2, 3) and dtype float64", "a numpy array of shape (2, 3)"."""
    if isinstance(result, Tensor):
        return f"a tensor of shape {tuple(result.shape)} and dtype {str(result.dtype).removeprefix('torch.')}"
    if isinstance(result, np.ndarray):
        return f"a numpy array of shape {result.shape}"
    if result is None:
        return "None (does your function end in return?)"
    kind = f"{'an' if type(result).__name__[0] in 'aeiouAEIOU' else 'a'} {type(result).__name__}"
    return f"{kind} of {len(result)}" if isinstance(result, (tuple, list, dict, str)) else kind


def value_said(value: Any) -> str:
    """One argument in words: a tensor by its shape, or by its numbers if there are at most four."""
    if isinstance(value, Tensor):
        if value.numel() > 4 or value.is_meta:
            return f"a tensor of shape {tuple(value.shape)}"
        return f"tensor({_numbers(value.tolist())})"
    if isinstance(value, (tuple, list)) and any(isinstance(each, Tensor) for each in value):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, functools.partial)):
        return getattr(value, "__name__", "a function")
    if isinstance(value, nn.Module):
        return f"a {type(value).__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


def _numbers(values: Any) -> str:
    if isinstance(values, list):
        return f"[{', '.join(map(_numbers, values))}]"
    return f"{values:.4g}" if isinstance(values, float) else str(values)
