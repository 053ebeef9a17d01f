"""The package's advice in a notebook: a line of plain text, without a path, once in each run of a cell.

Python's own way would be a red box that names a file of torch, and nothing when the cell runs again.
"""

import sys
import warnings

from minicogvx.advice import Advice

_printed: set[tuple[int, str]] = set()  # number of the cell's run, and the sentence


def print_advice_plainly() -> None:
    """From now on, where IPython runs this: a notebook or its terminal."""
    shell = _shell()
    if shell is None:
        return
    before = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if not issubclass(category, Advice) or file is not None:
            before(message, category, filename, lineno, file, line)
        elif (said := (shell.execution_count, str(message))) not in _printed:
            _printed.add(said)
            print(f"Note: {str(message).rstrip('.')}.")

    warnings.filterwarnings("always", category=Advice)
    warnings.showwarning = show


def _shell():
    # Without IPython there is no notebook, and no reason to import it.
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None
