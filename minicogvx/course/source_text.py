"""A function of a notebook as the text of a program, for other processes: what a notebook defines cannot be pickled."""

import ast
import builtins
import dis
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any


def program_of(function: Callable) -> str:
    """The text of a program that defines `function`, and before it everything of the notebook that it uses.

    These are modules and functions that were imported, other functions of the notebook, and plain values (numbers,
    text, and lists, tuples and dicts of them). Raises ValueError, in one sentence, for a function without a source,
    one that was made inside another and uses its variables, and for anything else that it uses.
    """
    parts: dict[str, str] = {}
    _add(function, getattr(function, "__name__", "function"), parts)
    return "\n\n".join(parts.values()) + "\n"


def _add(function: Callable, name: str, parts: dict[str, str]) -> None:
    if not inspect.isfunction(function) or function.__name__ == "<lambda>":
        raise ValueError(f"{name} is {_kind(function)}; give a function that was written with def, or a program as "
                         f"text")
    if function.__code__.co_freevars:
        raise ValueError(f"{name} uses {', '.join(function.__code__.co_freevars)} of the function around it; write "
                         f"it at the top of a cell")
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise ValueError(f"the source of {name} cannot be found; give its text instead") from None
    parts.setdefault(name, "")  # a function may use itself
    for used in dict.fromkeys(_globals_of(function.__code__)):
        if used not in parts and used in function.__globals__:
            _add_used(used, function.__globals__[used], function, parts)
    if function.__name__ != name:
        text += f"\n{name} = {function.__name__}\n"
    del parts[name]  # after what it uses
    parts[name] = text.rstrip()


def _add_used(name: str, value: Any, user: Callable, parts: dict[str, str]) -> None:
    if isinstance(value, types.ModuleType):
        parts[name] = f"import {value.__name__} as {name}"
    elif getattr(value, "__module__", None) not in (None, user.__module__, builtins.__name__) and (
            inspect.isfunction(value) or inspect.isbuiltin(value) or inspect.isclass(value)):
        parts[name] = f"from {value.__module__} import {value.__qualname__} as {name}"
    elif inspect.isfunction(value):
        _add(value, name, parts)
    elif _is_plain(value):
        parts[name] = f"{name} = {value!r}"
    else:
        raise ValueError(f"{user.__name__} uses {name}, {_kind(value)}, which another process does not have; make it "
                         f"inside the function")


def _globals_of(code: types.CodeType) -> Iterator[str]:
    """The names that a function looks up outside itself, also in functions and comprehensions inside it."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_of(constant)


def _is_plain(value: Any) -> bool:
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError, TypeError, RuntimeError):
        return False


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if not inspect.isclass(value) else f"the class {value.__name__}"
