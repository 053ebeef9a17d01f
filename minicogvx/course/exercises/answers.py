"""The learner's accepted answers, kept as source: one Python file for each exercise, in the learner's own folder.

The folder lies beside the record of solved exercises (`record.py`) and has its name: `~/.minicogvx/progress_answers`.
A file holds the answer, the imports and constants that it uses, and other functions of the notebook that it calls.
It is plain text to read, copy and edit; it is run only by `yours`.
"""

import ast
import inspect
import linecache
import symtable
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

from minicogvx.course.exercises import record
from minicogvx.files import written_whole

MOST = 2000  # characters of a constant
GIVEN_BACK = "answers."  # begins the module's name of what `yours` gives back
MISSING = "# needs: "  # in place of an answer that cannot be kept: the names of what only its notebook has


def answer_path(number: str) -> Path:
    """Where the answer to exercise `number` lies."""
    there = record.record_path()
    return there.with_name(f"{there.stem}_answers") / f"exercise_{number.replace('.', '_')}.py"


def keep_answer(number: str, title: str, answer: Any) -> None:
    """Keeps an accepted answer under the name `title`, in place of an earlier one.

    What cannot be kept as text (it needs a tensor or a model of its notebook, say) is noted with the reason. Nothing
    stops a notebook: a file that cannot be written is said in a sentence.
    """
    try:
        source = as_source(title, answer)
    except Exception as reason:  # whatever the learner's code is made of, its check has passed
        source = f"{MISSING}{' '.join(str(reason).split())}\n"
    try:
        with written_whole(answer_path(number)) as part:
            part.write_text(source, encoding="utf-8")
    except OSError as error:
        print(f"Your answer could not be kept for later notebooks: {error}. The exercise is right all the same.")


def kept_answer(number: str) -> str | None:
    """The source that was kept for exercise `number`; None if there is none, or if it cannot be read."""
    try:
        return answer_path(number).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def as_source(title: str, answer: Any) -> str:
    """A program that defines `answer` under the name `title`, with everything it needs.

    Raises LookupError, with the names, for what cannot be written down, and OSError where there is no source.
    """
    if not isinstance(answer, (types.FunctionType, type)):
        return f"{title} = {_literal(title, answer)}\n"
    imports, parts, seen, own = [], [], set(), answer.__name__
    _gather(answer, imports, parts, seen)
    if own != title and title in seen:
        raise LookupError(f"two functions, {own} and {title}; give the answer the exercise's name")
    renamed = [f"{title} = {own}"] if own != title else []
    return "\n\n\n".join(["\n".join(imports)] * bool(imports) + parts + renamed) + "\n"


# ---- helpers


def _gather(thing: types.FunctionType | type, imports: list[str], parts: list[str], seen: set[str]) -> None:
    """Adds the imports of `thing`, then the source of what it needs, then its own."""
    seen.add(thing.__name__)
    if isinstance(thing, types.FunctionType) and thing.__closure__:
        raise LookupError(f"variables of the function around {thing.__name__}")
    source = source_of(thing)
    around = _globals_of(thing)
    constants, missing = [], []
    for name in _names_used(source):
        if name in seen or name not in around:
            continue
        value = around[name]
        line = _import_of(name, value, thing.__module__)
        if line:
            imports += [line] if line not in imports else []
        elif isinstance(value, (types.FunctionType, type)) and _is_learners(value, thing.__module__):
            if value.__name__ not in seen:
                _gather(value, imports, parts, seen)
            if value.__name__ != name:
                constants.append(f"{name} = {value.__name__}")
        else:
            try:
                constants.append(f"{name} = {_literal(name, value)}")
            except LookupError:
                missing.append(name)
        seen.add(name)
    if missing:
        raise LookupError(", ".join(missing))
    parts += (["\n".join(constants)] if constants else []) + [source]


def source_of(thing: types.FunctionType | type) -> str:
    """The source of a function or class, also of a class that a notebook defines. Raises OSError if there is none."""
    if isinstance(thing, types.FunctionType):
        source = textwrap.dedent(inspect.getsource(thing)).rstrip()
        if not isinstance(ast.parse(source).body[0], (ast.FunctionDef, ast.ClassDef)):
            raise LookupError("a name of its own: def, not lambda")
        return source
    methods = [method for method in vars(thing).values() if isinstance(method, types.FunctionType)]
    for file in dict.fromkeys(method.__code__.co_filename for method in methods):
        text = "".join(linecache.getlines(file))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name == thing.__name__:
                lines = text.splitlines()[min([node, *node.decorator_list], key=lambda one: one.lineno).lineno - 1:]
                return textwrap.dedent("\n".join(lines[:node.end_lineno - len(text.splitlines()) + len(lines)]))
    raise OSError(f"the source of {thing.__name__}")


def _names_used(source: str) -> list[str]:
    """The names that a definition takes from its module, in order of the alphabet; builtins, too."""
    top = symtable.symtable(source, "answer", "exec")
    found = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced() and not symbol.is_assigned()}
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        tables += table.get_children()
        found |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return sorted(found)


def _globals_of(thing: types.FunctionType | type) -> dict[str, Any]:
    if isinstance(thing, types.FunctionType):
        return thing.__globals__
    methods = [method for method in vars(thing).values() if isinstance(method, types.FunctionType)]
    return methods[0].__globals__ if methods else vars(sys.modules[thing.__module__])


def _is_learners(value: types.FunctionType | type, home: str) -> bool:
    return value.__module__ == home or value.__module__.startswith(GIVEN_BACK)


def _import_of(name: str, value: Any, home: str) -> str | None:
    """The line that imports `value` under `name`; None if it is not to be imported, but was made in module `home`."""
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__}" + (f" as {name}" if value.__name__ != name else "")
    module, own = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    there = getattr(sys.modules.get(module or ""), own, None)
    if module in (None, home, "__main__") or there is not value:
        return None
    return f"from {module} import {own}" + (f" as {name}" if own != name else "")


def _literal(name: str, value: Any) -> str:
    """A constant as source. Raises LookupError, with the name, for anything but numbers, text and lists of them."""
    text = repr(value)
    try:
        if len(text) <= MOST and ast.literal_eval(text) == value and type(ast.literal_eval(text)) is type(value):
            return text
    except (ValueError, SyntaxError, TypeError, RuntimeError, MemoryError):
        pass
    raise LookupError(name)
