"""Text as it is printed: control characters, which file names and captions may hold, are shown instead of obeyed.

And parts of sentences: numbers of things, and lists of names.
"""

from collections.abc import Sequence
from typing import Any

_KEPT = "\t\n\r"
_HIDDEN = (*range(0x20), *range(0x7f, 0xa0), *range(0x202a, 0x202f), *range(0x2066, 0x206a))  # control, direction
_SHOWN = {code: ascii(chr(code))[1:-1] for code in _HIDDEN if chr(code) not in _KEPT}


def visible(text: str) -> str:
    """`text` with every control character but tabs and ends of lines as an escape sequence, such as \\x1b."""
    return text.translate(_SHOWN)


def many(number: int, what: str) -> str:
    """Such as "1 film" or "3 films"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], word: str = "and") -> str:
    """Such as "a", "a and b" or "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def first_few(names: Sequence[str], most: int) -> str:
    """The first `most` of the names, with commas; "..." stands for the others."""
    return ", ".join([*names[:most], *["..."] * (len(names) > most)])


class Visible:
    """A text stream that writes what `visible` returns; otherwise it is `stream`."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes `text`, made visible."""
        return self._stream.write(visible(text))

    def write_codes(self, text: str) -> int:
        """Writes `text` as it is, for the program's own colours and cursor moves; never for words of a user."""
        return self._stream.write(text)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
