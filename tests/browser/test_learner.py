"""A learner's whole way through a notebook of each half of the course, and every widget, in JupyterLab in a browser."""

import json
import re

import nbformat
import pytest

from minicogvx.course import notebook_builder
from minicogvx.course.exercises.exercise import STUB_MESSAGE

pytestmark = pytest.mark.browser  # not in `make test`; `make test-browser` asks for them

NOTEBOOK = "04_diffusion"
LATER_NOTEBOOK = "11_frame_pack"
RUN_SECONDS = 200  # for all cells of a notebook
WIDGET = """from minicogvx.course import explore_frames

explore_frames(pipe("a red circle moves right", num_inference_steps=4), "A red circle moves right.")"""

SET_UP = """import torch
from minicogvx.course import (
    explore_attention, explore_figure, explore_frames, explore_grid, explore_noise, explore_rope, explore_sweep,
    explore_wipe, new_figure,
)
from minicogvx.diffusion import NoiseSchedule
from minicogvx.presets import ScheduleConfig

ramp = torch.linspace(0, 1, 16)
one = torch.stack([ramp.roll(i) for i in range(5)])[:, None, :, None].expand(5, 16, 16, 3)
two = one.flip(2) * torch.tensor([1.0, 0.5, 0.0])
latents = (one * 2 - 1).permute(3, 0, 1, 2)[None]


def curve(power):
    figure, axes = new_figure(width=4, height=2)
    axes[0, 0].plot(ramp ** power)
    return figure"""
WIDGETS = {  # the cell, and how many sliders it has
    'explore_frames(one, "A ramp moves right.")': 1,
    'explore_wipe({"grey": one, "orange": two}, "Two ramps.")': 2,
    'explore_sweep({1: one, 2: two}, "scale", "A ramp.")': 1,
    'explore_noise(latents, NoiseSchedule(ScheduleConfig()), '
    'lambda x: (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1), "A ramp.")': 1,
    'explore_rope()': 2,
    'explore_grid(lambda shade, count: shade * one[:count], "A ramp.", first=[0.2, 0.5, 1], second=[1, 2, 5])': 2,
    'explore_figure(curve, "A curve.", power=[1, 2, 3])': 1,
}
ATTENTION = 'explore_attention(torch.eye(4).roll(1, 1), ["a", "red", "star", "moves"], "Each word looks at the next")'
PREDICTING = ["from minicogvx.course import outcome, predict, predictions", 'predict("9.1", "it falls", "it rises")',
              'outcome("9.1", "it rises")', 'predictions("9")']


class Lab:
    """JupyterLab with one notebook open, and what a learner does there."""

    def __init__(self, page, jupyter, name: str, count: int):
        self.page = page
        page.goto(jupyter.address(name), timeout=60_000)
        self.cells = page.locator(".jp-NotebookPanel:visible .jp-Cell")
        page.wait_for_function("count => document.querySelectorAll('.jp-NotebookPanel .jp-Cell').length >= count",
                               arg=count, timeout=60_000)
        # the kernel has started: its name is in the toolbar, and its circle is empty
        page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(timeout=60_000)

    def run_all(self, last: int, seconds: float) -> None:
        """Run > Run All Cells, and the wait until cell `last` has its number.

        JupyterLab may lose the request while it is still connecting: no cell then waits ([*]). As a learner would, we
        ask again.
        """
        self.run_menu("Run All Cells")
        self.page.wait_for_timeout(5000)
        if re.fullmatch(r"\[ \]:?", self.cells.nth(last).locator(".jp-InputPrompt").inner_text().strip()):
            self.run_menu("Run All Cells")
        self.wait_for_number(last, seconds)

    def run_menu(self, name: str) -> None:
        """One entry of the menu Run."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name=name, exact=True).click()

    def run(self, place: int) -> None:
        """Shift+Enter in a cell as it stands."""
        self.cells.nth(place).locator(".cm-content").click()
        self.page.keyboard.press("Shift+Enter")

    def wait_for_number(self, place: int, seconds: float) -> None:
        prompt = self.cells.nth(place).locator(".jp-InputPrompt")
        prompt.filter(has_text=re.compile(r"\[\d+\]")).wait_for(state="attached", timeout=1000 * seconds)

    def write_and_run(self, place: int, source: str) -> None:
        """Replaces a cell's text by hand and presses Shift+Enter."""
        editor = self.cells.nth(place).locator(".cm-content")
        editor.click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(source)
        self.page.keyboard.press("Shift+Enter")

    def output(self, place: int):
        return self.cells.nth(place).locator(".jp-OutputArea").first

    def says(self, place: int, text: str, seconds: float = 30) -> str:
        """The output of a cell, as soon as it holds `text`."""
        self.output(place).filter(has_text=text).wait_for(timeout=1000 * seconds)
        return self.output(place).inner_text()

    def errors(self) -> list[str]:
        return self.page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()


def picture_of(output):
    """The widget's picture: its text alternative, its source, and whether the browser could draw it."""
    image = output.locator(".jupyter-widgets img").last
    image.wait_for()
    return tuple(image.evaluate("image => image.decode().then(() => [image.alt, image.src, image.naturalWidth > 0])"))


def new_picture(page, output, before):
    """What the picture became after a slider was moved."""
    page.wait_for_function("([image, old]) => image.isConnected ? image.alt !== old : true",
                           arg=[output.locator(".jupyter-widgets img").last.element_handle(), before[0]])
    return picture_of(output)


def source_of(name: str):
    return next(source for source in notebook_builder.sources() if source.stem == name)


@pytest.fixture(scope="module")
def notebook(jupyter):
    """The notebook as a learner gets it, without outputs, and with one more cell at its end, for a widget."""
    built = notebook_builder.build(source_of(NOTEBOOK))
    built.cells.append(nbformat.v4.new_code_cell(WIDGET, id="widget"))
    notebook_builder.write(built, jupyter.folder / f"{NOTEBOOK}.ipynb")
    return built


def test_a_learners_way_through_one_notebook(page, jupyter, notebook):
    sources = [cell.source for cell in notebook.cells]
    last = len(sources) - 1
    exercise = next(i for i, source in enumerate(sources) if STUB_MESSAGE in source and "= check(" in source)
    name, number = re.search(r'^(\w+) = check\("(\d+\.\d+)"', sources[exercise], re.MULTILINE).groups()
    right = notebook_builder.build(source_of(NOTEBOOK), solutions=True).cells[exercise].source
    wrong = f'{name} = check("{number}", lambda *arguments, **named: arguments[99])'

    lab = Lab(page, jupyter, f"{NOTEBOOK}.ipynb", len(sources))
    lab.run_all(last, RUN_SECONDS)
    assert lab.errors() == []

    # the outputs: a playing video, pictures that load, an exercise that is not tried yet
    film = page.locator(".jp-OutputArea video").first
    film.scroll_into_view_if_needed()
    page.wait_for_function("film => film.readyState >= 2 && film.videoWidth > 0", arg=film.element_handle())
    assert film.get_attribute("aria-label")
    assert page.locator(".jp-OutputArea .jp-RenderedImage img").count() >= 6
    assert page.evaluate("[...document.querySelectorAll('.jp-OutputArea img')].every(i => i.naturalWidth > 0)")
    assert f"Exercise {number}: not tried yet" in lab.output(exercise).inner_text()
    assert not jupyter.progress.exists()

    # wrong: the message says what is wrong, and nothing counts as solved
    lab.write_and_run(exercise, wrong)
    said = lab.says(exercise, f"Exercise {number}: not right yet")
    assert f"The call was {name}(" in said and f"The name {name} now holds the package's" in said
    assert not jupyter.progress.exists()

    # right
    lab.write_and_run(exercise, right)
    assert "not right" not in lab.says(exercise, f"Exercise {number}: right.")
    assert list(json.loads(jupyter.progress.read_text())) == [number]

    # the widget: the mouse takes the slider from the first frame to a later one
    output = lab.output(last)
    before = picture_of(output)
    assert before[0].startswith("A red circle moves right: frame 0 of 0 to 16") and before[2]
    track = output.locator(".noUi-base")
    track.scroll_into_view_if_needed()
    track.click(position={"x": 0.75 * track.bounding_box()["width"], "y": 2})
    alt, source, drawn = new_picture(page, output, before)
    assert int(re.search(r"frame (\d+) of 0 to 16", alt).group(1)) > 8
    assert source != before[1] and drawn


def test_a_learners_way_through_a_notebook_of_the_second_half(page, jupyter):
    jupyter.progress.unlink(missing_ok=True)
    built = notebook_builder.build(source_of(LATER_NOTEBOOK))
    notebook_builder.write(built, jupyter.folder / f"{LATER_NOTEBOOK}.ipynb")
    sources = [cell.source for cell in built.cells]

    def place_of(text: str) -> int:
        return next(i for i, source in enumerate(sources) if source.startswith(text))

    last, exercise, turned = len(sources) - 1, place_of("def pack_mask"), place_of("explore_packs(")
    early, late = place_of('predict("11.1"'), place_of('predict("11.3"')
    lab = Lab(page, jupyter, f"{LATER_NOTEBOOK}.ipynb", len(sources))

    # step by step to the first prediction, an answer, then all the rest: the prediction is judged, the exercise is not
    lab.cells.nth(early).locator(".cm-content").click()
    lab.run_menu("Run All Above Selected Cell")
    lab.wait_for_number(exercise, RUN_SECONDS)
    lab.run(early)
    lab.output(early).get_by_label("nearly the same film twice").check(timeout=30_000)
    lab.says(early, "Kept: nearly the same film twice")
    lab.cells.nth(early + 1).locator(".cm-content").click()
    lab.run_menu("Run Selected Cell and All Below")
    lab.wait_for_number(last, RUN_SECONDS)
    assert lab.errors() == []
    assert "You predicted it." in lab.says(early + 1, "Prediction 11.1: nearly the same film twice.")
    assert "Exercise 11.1: not tried yet" in lab.output(exercise).inner_text()
    assert page.evaluate("[...document.querySelectorAll('.jp-OutputArea img')].every(i => i.naturalWidth > 0)")

    # the exercise, with a mask that lets everything through, then with the right one
    stub = next(line for line in sources[exercise].splitlines() if STUB_MESSAGE in line)
    lab.write_and_run(exercise, sources[exercise].replace(
        stub, "    n = sum(words + video for words, video in clips)\n    return torch.ones(n, n, dtype=torch.bool)"))
    lab.says(exercise, "Exercise 11.1: not right yet")
    assert list(json.loads(jupyter.progress.read_text())) == ["prediction 11.1", "outcome 11.1"]
    right = notebook_builder.build(source_of(LATER_NOTEBOOK), solutions=True).cells[exercise].source
    lab.write_and_run(exercise, right)
    lab.says(exercise, "Exercise 11.1: right.")
    lab.says(exercise, "allowed: 42,737 of 106,929 pairs")  # with the learner's own mask

    # another prediction, wrong; what it was stays when the cells run again
    lab.output(late).get_by_label("not at all (rounding)").check()
    lab.says(late, "Kept: not at all (rounding)")
    lab.run(late + 1)
    lab.says(late + 1, "You predicted: not at all (rounding).")
    lab.run(late)
    lab.says(late, "so your answer stays")
    assert lab.output(late).get_by_label("by less than a tenth").is_disabled()

    # the widget, by keyboard
    output = lab.output(turned)
    before = picture_of(output)
    assert before[0].startswith("With a look-ahead of 16 and room for 2,048 tokens") and before[2]
    for handle, said in zip(output.get_by_role("slider").all(), ("look-ahead of 32 ", "room for 4,096 tokens")):
        handle.focus()
        page.keyboard.press("ArrowRight")
        after = new_picture(page, output, before)
        assert said in after[0] and after[1] != before[1] and after[2]
        before = after

    # the end of the notebook tells all of it
    lab.run(last)
    said = lab.says(last, "11.1 pack_mask")
    assert "Right predictions: 1 of 4." in said and "11.1 right: nearly the same film twice" in said
    assert "11.3 you said: not at all (rounding); it was: by more than a tenth" in said
    assert "Solved: 1 of " in said and lab.errors() == []


def test_every_widget_follows_its_sliders(page, jupyter):
    cells = [SET_UP, *WIDGETS]
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": dict(notebook_builder.KERNEL)})
    notebook.cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(cells)]
    notebook_builder.write(notebook, jupyter.folder / "widgets.ipynb")
    lab = Lab(page, jupyter, "widgets.ipynb", len(cells))
    lab.run_all(len(cells) - 1, 60)
    assert lab.errors() == []
    for place, count in enumerate(WIDGETS.values(), start=1):
        output = lab.output(place)
        assert output.locator(".jp-RenderedImage img").count() == 1, "the still picture stands above the widget"
        before = picture_of(output)
        handles = output.get_by_role("slider")
        assert handles.count() == count and before[2]
        for i in range(count):
            handles.nth(i).focus()
            page.keyboard.press("ArrowRight")  # by keyboard, without a mouse
            after = new_picture(page, output, before)
            assert after[0] != before[0] and after[1] != before[1] and after[2], cells[place]
            before = after


def test_a_click_on_a_token_shows_where_it_looks(page, jupyter):
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": dict(notebook_builder.KERNEL)})
    notebook.cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate([SET_UP, ATTENTION])]
    notebook_builder.write(notebook, jupyter.folder / "attention.ipynb")
    lab = Lab(page, jupyter, "attention.ipynb", 2)
    lab.run_all(1, RUN_SECONDS)
    assert lab.errors() == []
    output = lab.output(1)
    before = picture_of(output)
    output.get_by_role("button", name="star").click()
    alt, _, drawn = new_picture(page, output, before)
    assert "star takes most from moves (1.00)" in alt and drawn


def test_a_prediction_is_kept_and_what_answers_it_is_folded(page, jupyter):
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": dict(notebook_builder.KERNEL)})
    notebook.cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(PREDICTING)]
    stored = nbformat.v4.new_output("stream", text="the stored answer\n")
    notebook.cells[2].update(outputs=[stored], metadata={"jupyter": {"outputs_hidden": True}})
    notebook_builder.cover(notebook.cells[2])
    notebook_builder.write(notebook, jupyter.folder / "predicting.ipynb")
    lab = Lab(page, jupyter, "predicting.ipynb", len(PREDICTING))
    folded = lab.cells.nth(2).locator(".jp-OutputPlaceholder")
    assert folded.count() == 1 and page.get_by_text("the stored answer").count() == 0
    folded.locator(".jp-Placeholder-content").click()
    lab.says(2, "the stored answer")
    assert lab.errors() == []

    lab.write_and_run(0, PREDICTING[0])
    lab.write_and_run(1, PREDICTING[1])
    radio = lab.output(1).get_by_label("it rises")
    radio.wait_for(timeout=30_000)
    assert lab.output(1).locator("input[type=radio]:checked").count() == 0  # nothing is chosen beforehand
    radio.check()
    lab.says(1, "Kept: it rises")
    assert json.loads(jupyter.progress.read_text())["prediction 9.1"] == "it rises"
    lab.write_and_run(2, PREDICTING[2])
    assert "You predicted it." in lab.says(2, "Prediction 9.1: it rises.")  # unfolded by running
    lab.write_and_run(3, PREDICTING[3])
    assert "9.1 right: it rises" in lab.says(3, "Right predictions: 1 of 1.")
