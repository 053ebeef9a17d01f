"""Parsing of arguments for every command: a mistake is one sentence, with a suggestion.

Nothing heavy is imported here, so that `--help` and a misspelt option answer at once.
"""

import argparse
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from minicogvx.ranges import RANGES
from minicogvx.suggest import did_you_mean
from minicogvx.visible import listed

_INT64 = 2**63 - 1  # PyTorch's limit


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises ValueErrors of one sentence, and accepts no abbreviated options.

    `gathers` may name a positional argument of several words, which then also gets words after or between options.
    """

    gathers: str | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """Like argparse's, but raises ValueError for unknown arguments instead of returning them."""
        arguments, extra = super().parse_known_args(args, namespace)
        options = [word for word in extra if word.startswith("-") and len(word) > 1]
        if options:
            name = options[0].partition("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            self.error(f"there is no option {name}{did_you_mean(name, known)}")
        if extra and not self.gathers:
            self.error(f"{extra[0]!r} is one word too many")
        if extra:
            getattr(arguments, self.gathers).extend(extra)
        return arguments, []

    def error(self, message: str):
        """Raises ValueError with the message of argparse, or of a reader below."""
        message = re.sub(r"^argument ([^:]+): (?=is )", r"\1 ", message)
        message = re.sub(r"^argument [^:]+: (?=there is no )", "", message)
        raise ValueError(f"{message} (see {self.prog} --help)")


def choose_command(prog: str, about: str, commands: Mapping[str, str],
                   argv: Sequence[str]) -> tuple[str, list[str]] | None:
    """(command, its arguments); None for a request for help, which is then printed.

    `commands`: descriptions by name. `help COMMAND` is `COMMAND --help`. Raises ValueError for any other command.
    """
    first, *rest = argv or ["--help"]
    while first == "help":
        first, *rest = [*rest, "--help"]
    if first in ("-h", "--help"):
        lines = [f"  {name:<10} {words}" for name, words in commands.items()]
        print("\n".join([f"usage: {prog} COMMAND ...", "", about, "", *lines, "",
                         f"{prog} COMMAND --help explains one of them."]))
        return None
    if first.startswith("-"):
        raise ValueError(f"{first} comes before the command; write {prog} COMMAND {first} (see {prog} --help)")
    if first not in commands:
        meant = did_you_mean(first, commands) or f"; the commands are {', '.join(commands)}"
        raise ValueError(f"there is no command {first!r}{meant} (see {prog} --help)")
    return first, rest


# ---- readers of one value, for `type=`


def whole(least: int = -_INT64, most: int = _INT64) -> Callable[[str], int]:
    """Reads a whole number from `least` to `most`."""
    behind = f" from {least} to {most}" if most < _INT64 else f", {least} or more" if least > -_INT64 else ""

    def read(text: str) -> int:
        """The number in `text`; argparse shows the error."""
        if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", text):
            raise argparse.ArgumentTypeError(f"is {text!r}; it must be a whole number{behind}")
        # Python converts only some thousand digits, and more than twenty are out of range anyway.
        value = int(text) if len(text) <= 40 else -_INT64 - 1 if text.lstrip().startswith("-") else _INT64 + 1
        if value < least or value > most:
            shown = text.strip() if len(text) <= 40 else f"a number of {len(text)} digits"
            rule = f"from {least} to {most}" if value > most or most - least < 100 else f"{least} or more"
            raise argparse.ArgumentTypeError(f"is {shown}; it must be {rule}")
        return value

    return read


def number(least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    """Reads a finite number of at least `least`, above `above`, and at most `most`."""
    if above > -math.inf:
        rule = f"above {above:g}" + (f", at most {most:g}" if most < math.inf else "")
    elif most < math.inf:
        rule = f"from {least:g} to {most:g}"
    else:
        rule = f"{least:g} or more" if least > -math.inf else ""

    def read(text: str) -> float:
        """The number in `text`; argparse shows the error."""
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {text!r}; it must be a number {rule}".rstrip()) from None
        if not (math.isfinite(value) and value >= least and value > above and value <= most):
            raise argparse.ArgumentTypeError(f"is {text}; it must be {rule or 'a finite number'}")
        return value

    return read


def one_of(names: Iterable[str], kind: str = "", plural: str = "") -> Callable[[str], str]:
    """Reads one of `names`; `kind`: of what, such as "study"."""
    known = tuple(names)

    def read(text: str) -> str:
        """`text`, if it is one of the names."""
        if text in known:
            return text
        if not kind:
            raise argparse.ArgumentTypeError(f"is {text!r}; it must be {listed(known, 'or')}")
        raise argparse.ArgumentTypeError(f"there is no {kind} {text!r}; the {plural} are {', '.join(known)}"
                                         f"{did_you_mean(text, known)}")

    return read


def path_to(*endings: str) -> Callable[[str], str]:
    """Reads the path of a file or folder, `~` included; with `endings` a file whose name has one of them."""

    def read(text: str) -> str:
        """The path, with `~` expanded."""
        path = os.path.expanduser(text)
        if not path.strip():
            raise argparse.ArgumentTypeError("is empty; it must name a file or a folder")
        if path.startswith("~"):
            raise argparse.ArgumentTypeError(f"is {text!r}, and no user of that name is known here; a file whose own "
                                             f"name begins so is ./{text}")
        if endings and Path(path).suffix.lower() not in endings:
            raise argparse.ArgumentTypeError(f"is {text!r}; it must end in {' or '.join(endings)}")
        return path

    return read


SEED = whole(0)
TRAINING_SEED = whole(0, 2**32 - 1)  # steps derive their seeds from it
THREADS = whole(1, 1024)
SHARE = number(0.0, most=1.0)
GUIDANCE = number(RANGES["guidance_scale"][0], most=float(RANGES["guidance_scale"][1]))
