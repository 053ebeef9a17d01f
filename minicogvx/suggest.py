"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The end of a sentence about `wrong`, such as "; did you mean toy?"; empty if no known name is similar."""
    names = {_plain(name): name for name in known}
    wrong = _plain(wrong)
    begun = [name for name in names if len(wrong) > 1 and name.startswith(wrong)]
    # Short names need to be more similar: gpu is not a misspelt cpu.
    close = begun or difflib.get_close_matches(wrong, names, n=1, cutoff=0.6 if len(wrong) > 3 else 0.7)
    alike = [name for name in names if name[:1] == wrong[:1] and len(name) == len(wrong)]
    close = close or difflib.get_close_matches(wrong, alike, n=1)
    return f"; did you mean {names[close[0]]}?" if close else ""


def _plain(name: str) -> str:
    return name.lower().lstrip("-").replace("_", "-")
