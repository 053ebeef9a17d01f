"""A live figure: drawn while something runs, in one place, and drawn once more at the end."""

import pytest

from minicogvx.course import notebook_builder, output, watch, watching

CELL = """# %%
import time
from minicogvx.course import new_figure, watch
losses = []
def training():
    for step in range(4):
        losses.append(1 / (1 + step))
        yield step
def drawn():
    figure, ((axis,),) = new_figure()
    axis.plot(losses)
    return figure
print("last step:", watch(training(), drawn, "Loss over steps.", seconds=0))
"""


@pytest.fixture
def shown(monkeypatch):
    """What was drawn, and the words at the end."""
    found = []
    monkeypatch.setattr(watching._Picture, "show", lambda self, figure: found.append(figure))
    monkeypatch.setattr(output, "display", lambda data, metadata: found.append(data["text/plain"]))
    return found


def counting(shown: list, steps: int, fails_at: int = -1):
    for step in range(steps):
        if step == fails_at:
            raise KeyboardInterrupt
        yield step


def test_it_is_drawn_at_the_beginning_now_and_then_and_at_the_end(shown):
    done = []
    assert watch((done.append(step) or step for step in range(5)), lambda: len(done), "Words.", seconds=0) == 4
    assert shown == [1, 2, 3, 4, 5, 5, "Words."]
    shown.clear(), done.clear()
    watch((done.append(step) for step in range(5)), lambda: len(done), "Words.", seconds=1000)
    assert shown == [1, 5, "Words."]


def test_a_slow_drawing_is_drawn_less_often(shown, monkeypatch):
    def slow(self, figure):
        shown.append(figure)
        self.took = 1000.0

    monkeypatch.setattr(watching._Picture, "show", slow)
    done = []
    watch((done.append(step) for step in range(5)), lambda: len(done), "Words.", seconds=0)
    assert shown == [1, 5, "Words."]


def test_what_there_is_is_drawn_when_it_stops_early(shown):
    with pytest.raises(KeyboardInterrupt):
        watch(counting(shown, 5, fails_at=2), lambda: "figure", "Words.", seconds=1000)
    assert shown == ["figure", "figure", "Words."]
    shown.clear()
    assert watch([], lambda: "figure", "Words.") is None and shown == ["figure", "Words."]
    with pytest.raises(ValueError, match="alt is empty"):
        watch([1], lambda: "figure", " ")


def test_outside_a_notebook_nothing_is_drawn(monkeypatch):
    monkeypatch.setattr(output, "display", lambda data, metadata: None)
    assert watch([1, 2], lambda: None, "Words.") == 2


def test_one_picture_remains_in_a_stored_notebook(tmp_path):
    source = tmp_path / "00_live.py"
    source.write_text(CELL)
    notebook = notebook_builder.build(source)
    notebook_builder.execute(notebook, tmp_path)
    outputs = notebook.cells[0].outputs
    pictures = [each for each in outputs if "image/png" in each.get("data", {})]
    assert len(pictures) == 1 and pictures[0].metadata["image/png"]["alt"] == "Loss over steps."
    assert [each.text for each in outputs if each.output_type == "stream"] == ["last step: 3\n"]
    assert outputs[-1].output_type == "stream" and outputs[-2].data["text/markdown"] == "*Loss over steps.*"
