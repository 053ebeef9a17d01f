"""A figure that is redrawn while something runs: a loss that falls, samples that sharpen.

Nothing of it is a widget: the picture is one output of the cell, and each new one takes its place. JupyterLab, VS Code
and Colab show it at once; where a program runs the cells (nbval, the notebook builder), only the last picture remains.
"""

import base64
import time
from collections.abc import Callable, Iterable
from typing import Any

from minicogvx.course import output

BUSY = 10  # drawing takes at most one part in so many of the time


def watch(steps: Iterable[Any], draw: Callable[[], Any], alt: str, seconds: int | float = 3.0) -> Any:
    """Runs `steps` to its end and shows the figure that `draw()` gives, again and again, as one picture.

        losses = []

        def training():                # a generator: what it does between two yields is a step
            for step in range(100):
                losses.append(one_step())
                yield step

        watch(training(), lambda: drawn(losses), "Loss over steps.")

    It is drawn after the first step, then again whenever `seconds` have passed (more, if drawing is slow), and at the
    end. `draw` gives a matplotlib figure, such as one of `new_figure`. `alt`: the text alternative; it also stands
    under the picture in the end. Returns what `steps` yielded last, or None. If a step raises, or the learner stops
    the cell, what there is so far is drawn first. Outside a notebook nothing is drawn. Raises ValueError for no `alt`.
    """
    if not alt.strip():
        raise ValueError("alt is empty; say in a sentence what the picture shows")
    picture, last = _Picture(alt), None
    drawn_at, pause = time.perf_counter(), 0.0
    try:
        for last in steps:
            now = time.perf_counter()
            if now - drawn_at >= max(pause, BUSY * picture.took):
                picture.show(draw())
                drawn_at, pause = time.perf_counter(), seconds
    finally:
        picture.show(draw())
        output.display({"text/markdown": f"*{alt}*", "text/plain": alt}, {})
    return last


class _Picture:
    """One output of a cell, shown again and again; `took` is the seconds of the last time."""

    def __init__(self, alt: str):
        self.alt, self.handle, self.took = alt, None, 0.0

    def show(self, figure) -> None:
        from IPython import get_ipython
        from IPython.display import display as display_in_ipython

        if get_ipython() is None:
            return
        start = time.perf_counter()
        data = {"image/png": base64.b64encode(output.png_of_figure(figure)).decode(), "text/plain": self.alt}
        metadata = {"image/png": {"alt": self.alt, "width": output.width_on_screen(figure)}}
        if self.handle is None:
            self.handle = display_in_ipython(data, metadata=metadata, raw=True, display_id=True)
        else:
            self.handle.update(data, metadata=metadata, raw=True)
        self.took = time.perf_counter() - start
