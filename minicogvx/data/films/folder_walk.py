"""Lists the files in a folder and its subfolders, linked ones too, and counts everything that it skips."""

import errno
import os
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from minicogvx.data.films.list_kinds import NAME_FILES, TABLE, pair_of
from minicogvx.data.films.listing import METADATA, Problem
from minicogvx.files import is_leftover

HIDDEN, HIDDEN_FOLDERS, NO_ENDING = "hidden", "hidden folder(s)", "without an ending"


@dataclass
class Walk:
    """What was found, as paths inside the folder, with slashes."""

    files: list[str] = field(default_factory=list)  # with one of the wanted endings
    lists: list[str] = field(default_factory=list)  # lists of captions; those of outer folders first
    passed_over: Counter[str] = field(default_factory=Counter)  # files by ending, and hidden folders
    problems: list[Problem] = field(default_factory=list)


def walk_folder(folder: Path, endings: Collection[str]) -> Walk:
    """Walks `folder` and everything below it; each real folder once, however many links point to it.

    Names that begin with a dot are skipped and counted. Broken links, links back to a folder that contains them, and
    folders that cannot be opened are problems. Raises OSError if `folder` itself cannot be opened.
    """
    found, seen = Walk(), {}
    # Links come last: a folder that is also reached by its own name is listed under that.
    own, linked = deque([""]), deque[str]()
    while own or linked:
        inside = own.popleft() if own else linked.popleft()
        try:
            if _is_new(folder, inside, seen, found):
                _look_into(folder, inside, endings, found, own, linked)
        except OSError as error:
            if not inside:
                raise
            found.problems.append(Problem(inside, f"is a folder that cannot be opened: {error.strerror}"))
    found.files.sort()
    return found


def _is_new(folder: Path, inside: str, seen: dict[str, str], found: Walk) -> bool:
    """Whether the folder was not visited before under another name; if it was, adds a problem."""
    real = os.path.realpath(folder / inside)
    here = os.path.realpath((folder / inside).parent) if inside else ""
    if here and Path(here).is_relative_to(real):
        found.problems.append(Problem(inside, "is a link to a folder that it lies in; not followed"))
        return False
    if real in seen:
        found.problems.append(Problem(inside, f"is the same folder as {seen[real] or folder}; used once"))
        return False
    seen[real] = inside
    return True


def _look_into(folder: Path, inside: str, endings: Collection[str], found: Walk, own: deque[str],
               linked: deque[str]) -> None:
    others = []
    with os.scandir(folder / inside) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    if not os.access(folder / inside, os.X_OK):  # it can be listed, but not entered
        raise PermissionError(errno.EACCES, "you have no permission to enter it", str(folder / inside))
    stems = {os.path.splitext(entry.name)[0] for entry in listed if _ending(entry.name) in endings}
    for entry in listed:
        name = f"{inside}/{entry.name}" if inside else entry.name
        if is_leftover(entry.name):
            continue
        if entry.name.startswith("."):
            if os.path.isdir(entry.path):
                found.passed_over[HIDDEN_FOLDERS] += 1
            elif _ending(entry.name) in endings:
                found.passed_over[HIDDEN] += 1
        elif os.path.isdir(entry.path):  # entry.is_dir() raises for a link to itself
            (linked if entry.is_symlink() else own).append(name)
        elif not os.path.isfile(entry.path):
            found.problems.append(Problem(name, _no_file(folder / name)))
        elif _ending(entry.name) in endings:
            found.files.append(name)
        else:
            others.append(entry.name)
    lists, used = _lists(folder / inside, others)
    used |= {name for name in others if _ending(name) == ".txt" and os.path.splitext(name)[0] in stems}
    found.lists += [f"{inside}/{name}" if inside else name for name in lists]
    found.passed_over.update(_ending(name) or NO_ENDING for name in others if name not in used)


def _lists(here: Path, names: Collection[str]) -> tuple[list[str], set[str]]:
    """The lists of captions in a folder, the most important first, and all files that belong to them."""
    lists = [name for name in (METADATA, TABLE) if name in names]
    pairs = {name: pair_of(here / name) for name in NAME_FILES if name in names}
    whole = {name: beside.name for name, beside in pairs.items() if beside is not None and beside.name in names}
    return lists + list(whole), {*lists, *whole, *whole.values()}


def _no_file(path: Path) -> str:
    if not path.is_symlink():
        return "is a device or a pipe; it must be a file"
    try:
        path.stat()
    except FileNotFoundError:
        return f"is a link to {os.readlink(path)}, which does not exist"
    except OSError as error:
        return f"is a link that cannot be followed: {error.strerror}"
    return "is a link to a device or a pipe; it must lead to a file"


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
