"""Figures in one style, and source code from its own file."""

import inspect
import logging
import textwrap
from collections.abc import Callable
from pathlib import Path

from minicogvx.course import output
from minicogvx.course.exercises import exam

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")  # Okabe and Ito's
STYLE = {
    "font.size": 10, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 2,
    "axes.formatter.min_exponent": 3,  # on a logarithmic axis 0.6, not 6 x 10^-1
    "legend.frameon": False, "figure.facecolor": "white", "savefig.facecolor": "white",
}


def new_figure(rows: int = 1, columns: int = 1, width: int | float = 7.0, height: int | float = 2.6) -> tuple:
    """A matplotlib figure in the course's style and its axes, an array of rows x columns. Sizes in inches.

    Raises ImportError, with the command that installs it, if matplotlib is missing.
    """
    # The first import builds a font cache, with a message on stderr that would end up in the notebook.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    try:
        import matplotlib
        from cycler import cycler
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is missing; install it with: pip install -e '.[notebooks]'") from error
    matplotlib.rcParams.update(STYLE | {"axes.prop_cycle": cycler(color=PALETTE)})  # also for a learner's own plots
    # Not pyplot, which keeps a list of open figures and prints stray objects.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def show_figure(figure, alt: str) -> None:
    """Shows a matplotlib figure once, as a small PNG, with `alt` as its text alternative and its caption.

    Pictures in it (imshow, pcolormesh) lose their grid, and the style's two spines. Raises ValueError for no `alt`.
    """
    if not alt.strip():
        raise ValueError("alt is empty; say in a sentence what the picture shows")
    output.display_png(output.png_of_figure(figure), alt, output.width_on_screen(figure))


def show_source(thing: Callable) -> None:
    """Shows the source of a function, method or class of the package, with the name of its file; not in an exam.

    Raises ValueError for anything that is not part of minicogvx, such as a copy in a notebook.
    """
    module = inspect.getmodule(thing)
    if module is None or not module.__name__.startswith("minicogvx"):
        raise ValueError(f"{getattr(thing, '__qualname__', thing)} is not part of minicogvx; "
                         f"show something of the package")
    if exam.switched_off("Sources of the package"):
        return
    path = Path(*module.__name__.split(".")).with_suffix(".py")
    source = textwrap.dedent(inspect.getsource(thing)).rstrip()
    markdown = f"`{path.as_posix()}`: `{thing.__qualname__}`\n\n```python\n{source}\n```"
    output.display({"text/markdown": markdown, "text/plain": f"{path.as_posix()}\n\n{source}"}, {})
