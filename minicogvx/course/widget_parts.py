"""What every widget of the course is made of: sliders, and a picture with words that follows them.

A widget is displayed only as a widget view, without plain text: programs without widgets show nothing, nbval compares
nothing, and the notebook builder removes the view. ipywidgets' Image has no text alternative, so the picture is an
`<img>` with `alt` in an HTML widget.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from minicogvx.course import output

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def explorer(sliders: list, draw: Callable[..., tuple]):
    """A box of sliders and a picture that follows them.

    draw(*values) returns a PNG or GIF, its words, and where it is not the picture's own, its width on the page.
    """
    widgets = ipywidgets_module()
    drawn = lru_cache(maxsize=128)(draw)
    picture = widgets.HTML()

    def follow(change=None) -> None:
        picture.value = output.figure_html(*drawn(*(slider.value for slider in sliders)))

    for slider in sliders:
        slider.observe(follow, names="value")
    follow()
    return widgets.VBox([*sliders, picture])


def int_slider(name: str, first: int, last: int, value: int | None = None, step: int = 1):
    """A slider over whole numbers."""
    return ipywidgets_module().IntSlider(value=first if value is None else value, min=first, max=last, step=step,
                                         description=name)


def choice_slider(name: str, labels: list[str], place: int = 0, wait: bool = False):
    """A slider over labels; its value is the index in the list. `wait`: it updates only when released."""
    options = [(label, index) for index, label in enumerate(labels)]
    return ipywidgets_module().SelectionSlider(options=options, value=place, description=name,
                                               continuous_update=not wait, style={"description_width": "initial"})


def ipywidgets_module():
    """The module. Raises ImportError, with the command that installs it, if it is missing."""
    try:
        import ipywidgets
    except ImportError as error:
        raise ImportError("ipywidgets is missing; install it with: pip install -e '.[notebooks]'") from error
    return ipywidgets


def view_of(widget) -> dict[str, Any]:
    """The widget as an output's data."""
    return {WIDGET_VIEW: {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}}


def display_widget(widget) -> None:
    """Displays `widget`, where there are widgets."""
    output.display(view_of(widget), {})


def display_made(make: Callable[[], Any]) -> None:
    """Displays what `make` gives; says what is missing where there are no widgets, and the notebook goes on."""
    try:
        widget = make()
    except ImportError as error:
        print(f"The picture above does not move: {error}")
        return
    display_widget(widget)


def value_text(value: Any) -> str:
    """A slider's value as it is written beside it."""
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def without_stop(sentence: str) -> str:
    """`sentence` without its full stop, for words that follow."""
    return sentence.strip().rstrip(".")
