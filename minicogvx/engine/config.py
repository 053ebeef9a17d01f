"""Configs as frozen dataclasses: read from TOML files, changed on the command line (`transformer.stages.1.steps=200`),
printed, and compared with those that a run was begun with."""

import ast
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from minicogvx import __version__
from minicogvx.engine.ranks import Ranks
from minicogvx.interop.safetensors_files import read_json, write_json
from minicogvx.ranges import shown
from minicogvx.suggest import did_you_mean

# Fields that may differ when a run is resumed, by the last name of their path: how a step is computed, not what is
# learnt. The number of steps of the last stage may also change (see `_last_steps`).
ADAPTERS = "weights of lora_from"  # a hash, which is not shown
HOW = frozenset({"accumulate", "gradient_checkpointing", "compile", "sharding", "offload", "context_ranks", "workers",
                 "sample_every", "validate_every", "guidance_scale", "dtype", "device", "ranks", "torch", "minicogvx",
                 "lora_from"})  # a path; its weights must be the same

Change = tuple[list[str], Any, str]  # path, value, and the path as it was written


def override(config: Any, *assignments: str) -> Any:
    """A copy of `config` with some fields replaced. A path consists of names of fields and indices of tuples.

    All are replaced together, so order does not matter; of two values for one path the last wins. Raises ValueError, in
    one sentence, for an unknown path, a value of the wrong type, and whatever the dataclasses reject.
    """
    changes = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r} sets nothing; write it as PATH=VALUE, such as transformer.warmup=20")
        changes.append((path.split("."), _literal(text), path))
    return _replaced(config, changes)


def fields(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every value in `config`, by its path as in `override`."""
    if dataclasses.is_dataclass(config):
        parts = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    elif isinstance(config, tuple) and any(map(dataclasses.is_dataclass, config)):
        parts = {str(i): part for i, part in enumerate(config)}
    else:
        return {prefix: config}
    return {path: value for name, part in parts.items()
            for path, value in fields(part, f"{prefix}.{name}" if prefix else name).items()}


def compare(path: Path, config: Any, seed: int, also: Mapping[str, Any] = {}, unrecorded: Mapping[str, Any] = {},
            begun: bool = True) -> Callable[[], None]:
    """Compares the settings of a run with those recorded at `path`; returns a function that records them.

    Call it once the run is accepted; it writes only once. Fields in `HOW` may have changed; such changes are printed on
    one line. A field that did not exist when the run was begun counts as its default, or its value in `unrecorded`.
    `also`: further values that must not change, unless they are in `HOW`. `begun`: whether a record counts.
    Raises ValueError, with the first value that differs and must not.
    """
    numbers = json.loads(json.dumps({"seed": seed} | fields(config) | dict(also)))
    before = json.loads(json.dumps(_defaults(config) | dict(also) | dict(unrecorded)))
    before |= read_json(path) if begun and path.exists() else numbers
    changed = [name for name in {**before, **numbers} if before.get(name) != numbers.get(name)]
    free = HOW | {_last_steps(numbers)}
    for name in changed:
        if name.rpartition(".")[2] not in free and name not in free:
            raise ValueError(f"{path.parent} was begun with {_difference(name, before, numbers)}; name another folder, "
                             f"or remove this one to start again")

    @functools.cache
    def write() -> None:
        write_json(path, numbers)
        if changed:
            told = (f"{name}={numbers.get(name)!r} (was {before.get(name)!r})" for name in changed)
            print(f"resuming with {', '.join(told)}")

    return write


def _difference(name: str, before: Mapping[str, Any], numbers: Mapping[str, Any]) -> str:
    if name == ADAPTERS:
        path = next(path for path in numbers if path.rpartition(".")[2] == "lora_from")
        return f"other adapters: {path} was {before.get(path)!r} and is now {numbers.get(path)!r}"
    return f"{name}={before.get(name)!r}, not {numbers.get(name)!r}"


def surroundings(ranks: Ranks, dtype: torch.dtype) -> dict[str, Any]:
    """The software and hardware of a run, for `compare`: they matter if two runs with the same settings differ."""
    return {"dtype": str(dtype).removeprefix("torch."), "device": ranks.device.type, "ranks": ranks.world_size,
            "torch": str(torch.__version__), "minicogvx": __version__}


def _last_steps(numbers: Mapping[str, Any]) -> str:
    """The path of the number of steps that may grow: that of the last stage."""
    stages = [path for path in numbers if re.fullmatch(r"transformer\.stages\.\d+\.steps", path)]
    return max(stages, key=lambda path: int(path.split(".")[2]), default="steps")


def from_table(kind: type, table: Mapping[str, Any], base: Any = None, path: str = "") -> Any:
    """A dataclass of this kind from what a TOML file holds; "none" stands for None, which TOML does not have.

    `base`: an instance whose values are taken where the table has none, instead of the defaults. Raises ValueError,
    in one sentence, for an unknown field, a missing one, a value of the wrong type, and whatever the dataclass rejects.
    """
    hints, names = get_type_hints(kind), [f.name for f in dataclasses.fields(kind)]
    values = {}
    for name, value in table.items():
        whole = f"{path}.{name}" if path else name
        if name not in names:
            raise ValueError(f"{whole} leads nowhere: {name!r} must be one of {', '.join(names)}"
                             f"{did_you_mean(name, names)}")
        values[name] = _from_toml(hints[name], value, getattr(base, name, None), whole)
    missing = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING
               and f.default_factory is dataclasses.MISSING and f.name not in values and base is None]
    if missing:
        raise ValueError(f"{path}.{missing[0]} is missing; it must be given".lstrip("."))
    try:
        return dataclasses.replace(base, **values) if base is not None else kind(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if path else str(error)) from error


def _from_toml(wanted: Any, value: Any, base: Any, path: str) -> Any:
    """A value as its field wants it: tables as dataclasses, lists as tuples."""
    kinds = [wanted, *get_args(wanted)]
    config = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    if config and isinstance(value, dict):
        return from_table(config, value, base, path)
    if config and isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return tuple(from_table(config, one, None, f"{path}.{i}") for i, one in enumerate(value))
    value = None if value == "none" and NoneType in kinds else tuple(value) if isinstance(value, list) else value
    return _checked(wanted, value, path)


def to_toml(config: Any, prefix: str = "") -> str:
    """The text of a TOML file from which `from_table` makes `config` again: every value, tables after values."""
    plain, tables, hints = [], [], get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        whole = f"{prefix}.{name}" if prefix else name
        if dataclasses.is_dataclass(value):
            tables.append(f"[{whole}]\n{to_toml(value, whole)}")
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            tables += [f"[[{whole}]]\n{to_toml(one, whole)}" for one in value]
        elif value is not None or not any(map(dataclasses.is_dataclass, get_args(hints[name]))):
            plain.append(f"{name} = {_toml(value)}")
    return "\n".join([*plain, *("\n" + table for table in tables)])


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


def _defaults(config: Any, prefix: str = "") -> dict[str, Any]:
    """The default of every field in `config` that has one, by its path."""
    if isinstance(config, tuple):
        parts = {str(i): part for i, part in enumerate(config)}
    else:
        parts = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    found = {}
    for name, part in parts.items():
        path = f"{prefix}.{name}" if prefix else name
        if dataclasses.is_dataclass(part) or isinstance(part, tuple) and any(map(dataclasses.is_dataclass, part)):
            found |= _defaults(part, path)
        elif not isinstance(config, tuple):
            default = next(f.default for f in dataclasses.fields(config) if f.name == name)
            found |= {} if default is dataclasses.MISSING else {path: default}
    return found


def _replaced(config: Any, changes: list[Change]) -> Any:
    """One new object on each level, built once: a dataclass is checked with all its changes in place."""
    new, deeper = {}, {}
    for (head, *rest), value, whole in changes:
        name = _name(config, head, whole)
        if rest:
            deeper.setdefault(name, []).append((rest, value, whole))
        else:
            new[name] = value if isinstance(config, tuple) else _fitting(config, name, value, whole)
    for name, below in deeper.items():
        part = new[name] if name in new else config[name] if isinstance(config, tuple) else getattr(config, name)
        new[name] = _replaced(part, below)
    if isinstance(config, tuple):
        return tuple(new.get(i, part) for i, part in enumerate(config))
    return dataclasses.replace(config, **new) if new else config


def _name(config: Any, head: str, whole: str) -> str | int:
    """The field name, or the index in a tuple, that `head` refers to."""
    if isinstance(config, tuple):
        if not head.isdigit() or int(head) >= len(config):
            raise ValueError(f"{whole} leads nowhere: {head!r} must be from 0 to {len(config) - 1}")
        return int(head)
    if not dataclasses.is_dataclass(config):
        raise ValueError(f"{whole} leads nowhere: there is nothing below {type(config).__name__} {config!r}")
    names = [f.name for f in dataclasses.fields(config)]
    if head not in names:
        raise ValueError(f"{whole} leads nowhere: {head!r} must be one of {', '.join(names)}"
                         f"{did_you_mean(head, names)}")
    return head


def _fitting(config: Any, name: str, value: Any, whole: str) -> Any:
    return _checked(get_type_hints(type(config))[name], value, whole)


def _checked(wanted: Any, value: Any, whole: str) -> Any:
    if type(value) is int and not _fits(value, wanted) and _fits(0.0, wanted) and abs(value) < 2**63:
        value = float(value)
    if not _fits(value, wanted):
        raise ValueError(f"{whole} is {shown(value)}; it must be {_said(wanted)}")
    return value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _fits(value: Any, wanted: Any) -> bool:
    kind, parts = get_origin(wanted), get_args(wanted)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is tuple:
        return isinstance(value, tuple) and (parts[-1] is not ... or all(_fits(one, parts[0]) for one in value))
    return type(value) is (wanted if wanted is not None else NoneType)


def _said(wanted: Any) -> str:
    kind, parts = get_origin(wanted), get_args(wanted)
    if kind in (Union, UnionType):
        return " or ".join(map(_said, parts))
    if kind is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if kind is tuple:
        return "a tuple such as (1, 2)"
    names = {int: "a whole number", float: "a number", str: "a word", bool: "True or False", NoneType: "None"}
    return names.get(wanted, f"a {getattr(wanted, '__name__', wanted)}")
