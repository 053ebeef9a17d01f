"""What somebody probably meant who wrote a name that there is not."""

import difflib
from collections.abc import Iterable


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The end of a sentence about `wrong`, such as "; did you mean toy?"; empty where no known name is like it."""
    names = {_plain(name): name for name in known}
    wrong = _plain(wrong)
    begun = [name for name in names if len(wrong) > 1 and name.startswith(wrong)]
    # Of three letters one may be another by chance: a gpu is no cpu.
    close = begun or difflib.get_close_matches(wrong, names, n=1, cutoff=0.6 if len(wrong) > 3 else 0.7)
    return f"; did you mean {names[close[0]]}?" if close else ""


def _plain(name: str) -> str:
    return name.lower().lstrip("-").replace("_", "-")
