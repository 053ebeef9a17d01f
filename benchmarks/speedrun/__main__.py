"""The board of speedruns, from rows that `minicogvx speedrun` wrote.

    python -m benchmarks.speedrun [FILE.json ...]   prints the table of these rows, or of those in rows/
    python -m benchmarks.speedrun --write           puts the table of those in rows/ into the README
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from minicogvx.files import written_whole
from minicogvx.speedrun.board import read_row, table

FOLDER = Path(__file__).parent
MARKS = ("<!-- board -->\n", "\n<!-- /board -->")


def board() -> str:
    """The table of the committed rows."""
    paths = sorted((FOLDER / "rows").glob("*.json"))
    return table(map(read_row, paths)) if paths else "No row yet."


def with_board(text: str) -> str:
    """The README with the table between its marks. Raises ValueError if they are not there."""
    before, mark, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (mark and end):
        raise ValueError(f"README.md lacks {MARKS[0].strip()} or {MARKS[1].strip()}; the table stands between them")
    return before + mark + board() + end + after


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, or writes it into the README."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speedrun", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.json", help="rows (default: those in rows/)")
    parser.add_argument("--write", action="store_true", help="put the table of rows/ into the README instead")
    options = parser.parse_args(arguments)
    if options.write and options.files:
        parser.error("--write takes the rows in rows/; copy the files there, or leave --write out")
    try:
        if options.write:
            readme = FOLDER / "README.md"
            text = with_board(readme.read_text(encoding="utf-8"))
            with written_whole(readme) as part:
                part.write_text(text, encoding="utf-8")
        else:
            print(table(map(read_row, options.files)) if options.files else board())
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
