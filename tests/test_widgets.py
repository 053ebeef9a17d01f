"""Widgets: each shows a still picture first; its own picture and the words for it follow the sliders."""

import base64
import html
import io
import re
import subprocess
import sys

import nbformat
import pytest
import torch
from PIL import Image

from minicogvx.course import notebook_builder, show, widgets
from minicogvx.diffusion import NoiseSchedule
from minicogvx.presets import ScheduleConfig

WORDS = 'A "square" & its shadow move.'


@pytest.fixture
def shown(monkeypatch):
    """What would have been displayed: still pictures and words as (data, metadata), widgets as themselves."""
    found = []
    monkeypatch.setattr(show, "_display", lambda data, metadata: found.append((data, metadata)))
    monkeypatch.setattr(widgets, "_display_widget", found.append)
    return found


def moving_square(frames: int = 5, brightness: float = 1.0):
    """A white square on black that moves right, t h w 3."""
    video = torch.zeros(frames, 32, 32, 3)
    for i in range(frames):
        video[i, 12:20, 4 * i:4 * i + 8] = brightness
    return video


def picture_of(box):
    """The widget's picture, as colours, and its text alternative."""
    text = box.children[-1].value
    data = re.search(r"base64,([^\"]+)", text).group(1)
    words = html.unescape(re.search(r'alt="([^"]*)"', text).group(1))
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), words


def white_columns(picture):
    """First and last column that hold a bright pixel."""
    bright = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(picture.height, picture.width, 3)
    columns = (bright > 200).all(dim=-1).any(dim=0).nonzero()
    return int(columns[0]), int(columns[-1])


def frames_widget():
    widgets.explore_frames(moving_square(), WORDS)


def compare_widget():
    widgets.compare_clips({"bright": moving_square(), "dark": moving_square(brightness=0.3)}, WORDS)


def sweep_widget():
    widgets.explore_sweep({1: moving_square(), 3.5: moving_square(brightness=0.5), "most": 0 * moving_square()},
                          "scale", WORDS)


def decode(latents):
    """b 3 t h w to b t h w 3, as if a VAE did nothing."""
    return (latents / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1)


def noise_widget():
    latents = (moving_square() * 2 - 1).permute(3, 0, 1, 2)[None]
    widgets.explore_noise(latents, NoiseSchedule(ScheduleConfig()), decode, WORDS)


def rope_widget():
    widgets.explore_rope(head_dim=32, frames=6)


EVERY = [frames_widget, compare_widget, sweep_widget, noise_widget, rope_widget]


def test_below_a_still_picture_the_widgets_own_and_its_words_follow_every_slider(shown, subtests):
    for make in EVERY:
        with subtests.test(msg=make.__name__):
            shown.clear()
            make()
            (still, metadata), (caption, _), box = shown
            assert still["image/png"].startswith("iVBOR") and len(metadata["image/png"]["alt"]) > 20
            assert caption["text/plain"] == metadata["image/png"]["alt"]
            assert "widget" not in "".join(still) and picture_of(box)[1]
            for slider in box.children[:-1]:
                before, value = picture_of(box), slider.value
                slider.value = value + 5 if slider.description == "line" else value + 1
                after = picture_of(box)
                assert after[0].tobytes() != before[0].tobytes() and after[1] != before[1]
                slider.value = value
                again = picture_of(box)
                assert again[0].tobytes() == before[0].tobytes() and again[1] == before[1]


def test_the_frame_that_is_asked_for_is_shown(shown):
    frames_widget()
    slider, _ = shown[-1].children
    assert (slider.min, slider.max) == (1, 5)
    slider.value = 3
    picture, words = picture_of(shown[-1])
    assert picture.size == (widgets.SIDE, widgets.SIDE)
    assert white_columns(picture) == (8 * 8, 16 * 8 - 1)  # third frame, enlarged eight times
    assert words == 'A "square" & its shadow move: frame 3 of 5, after 0.25 s.'


def test_the_wipe_shows_the_first_clip_left_of_the_line(shown):
    compare_widget()
    line, frame, _ = shown[-1].children
    frame.value = 3
    for percent, bright in ((100, 64), (0, 0), (25, 0)):
        line.value = percent
        columns = [c for c in white_columns_all(picture_of(shown[-1])[0]) if abs(c - 2.56 * percent) > 4]
        assert len(columns) == bright  # the bright square; white is otherwise only the line
    assert "bright in the left 25 %, dark in the rest" in picture_of(shown[-1])[1]
    assert f"differ by {0.7 * 64 / 1024:.3f} on average" in picture_of(shown[-1])[1]


def white_columns_all(picture):
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(picture.height, -1, 3)
    return (pixels > 200).all(dim=-1).any(dim=0).nonzero().flatten().tolist()


def test_a_sweep_names_its_values_and_shows_their_clips(shown):
    sweep_widget()
    slider, _ = shown[-1].children
    assert [label for label, _ in slider.options] == ["1", "3.5", "most"]
    for place, words, brightest in ((0, "scale 1, frames 1 to 5", 255), (1, "scale 3.5,", 128), (2, "scale most,", 0)):
        slider.value = place
        picture, said = picture_of(shown[-1])
        assert words in said
        first = picture.crop((0, 0, 96, 96))  # between the frames it is white
        assert all(abs(high - brightest) < 8 for _, high in first.getextrema())


def test_noise_grows_with_the_timestep_and_nothing_is_decoded_twice(shown):
    calls, schedule = [], NoiseSchedule(ScheduleConfig())
    latents = (moving_square() * 2 - 1).permute(3, 0, 1, 2)[None].requires_grad_()
    widgets.explore_noise(latents, schedule, lambda x: calls.append(x) or decode(x), WORDS)
    slider, _ = shown[-1].children
    assert [label for label, _ in slider.options][::5] == ["0", "500", "999"]
    still = len(calls)
    for place in (5, 10, 0, 1, 1, 0):
        slider.value = place
    assert len(calls) == still + 1 and not calls[-1].requires_grad
    slider.value = 10
    assert "timestep 999, 0.00 times the signal plus 1.00 times the noise" in picture_of(shown[-1])[1]
    assert calls[0].var() < calls[1].var() < calls[2].var() and calls[4].mean().abs() < 0.1


def test_the_score_of_rope_depends_on_the_distance_alone(shown):
    rope_widget()
    query, key, _ = shown[-1].children

    def score(m, n):
        query.value, key.value = m, n
        return re.search(r"score is (\S+)\. ", picture_of(shown[-1])[1]).group(1)

    assert score(0, 2) == score(3, 5) == score(2, 0) != score(0, 3)
    assert score(4, 4) == "1.000"
    assert score(0, 2) == f"{sum(torch.cos(torch.tensor(2 / 10000 ** (i / 4))) for i in range(4)) / 4:.3f}"


def test_what_cannot_be_shown_is_refused_before_anything_is(shown, subtests):
    for call, message in (
        (lambda: widgets.explore_frames(torch.rand(0, 16, 16, 3), WORDS), r"\(0, 16, 16, 3\)"),
        (lambda: widgets.explore_frames(moving_square(), " "), "alt is empty"),
        (lambda: widgets.compare_clips({"one": moving_square()}, WORDS), "there are 1 clips"),
        (lambda: widgets.compare_clips({"a": moving_square(5), "b": moving_square(3)}, WORDS), r"\(5, 32.*\(3, 32"),
        (lambda: widgets.explore_sweep({}, "scale", WORDS), "no rows"),
        (lambda: widgets.explore_noise(torch.rand(2, 3, 5, 8, 8), NoiseSchedule(ScheduleConfig()), decode, WORDS),
         r"\(2, 3, 5, 8, 8\)"),
        (lambda: widgets.explore_rope(head_dim=40), "head_dim is 40"),
        (lambda: widgets.explore_rope(frames=3), "frames 3"),
    ):
        with subtests.test(msg=message), pytest.raises(ValueError, match=message):
            call()
    assert shown == []


def test_a_missing_ipywidgets_is_named_with_the_line_that_mends_it(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[notebooks\]'"):
        frames_widget()
    assert len(shown) == 2  # the still picture and its caption


# ---- in a notebook

CELL = """import torch
from minicogvx.course import explore_frames

print("before")
explore_frames(torch.rand(5, 16, 16, 3, generator=torch.Generator().manual_seed(0)), "Noise flickers.")"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A notebook of one cell, with a widget, built and run; its path."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "00_noise.py").write_text(f"# %%\n{CELL}\n")
    notebook = notebook_builder.build(folder / "00_noise.py")
    notebook_builder.execute(notebook, folder)
    notebook_builder.write(notebook, folder / "00_noise.ipynb")
    return folder / "00_noise.ipynb"


def test_a_built_notebook_holds_the_still_picture_and_no_widget(built):
    notebook = nbformat.read(built, as_version=nbformat.NO_CONVERT)
    kinds = [sorted(output.get("data", {"stream": 0})) for output in notebook.cells[0].outputs]
    assert kinds == [["stream"], ["image/png", "text/plain"], ["text/markdown", "text/plain"]]
    assert "widgets" not in notebook.metadata and "widget-view" not in built.read_text()


def test_nbval_finds_no_difference(built):
    """nbval shows no widgets either: it must not miss the view that the builder took out."""
    run = subprocess.run([sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-p",
                          "no:cacheprovider", "-c", "/dev/null", str(built)],
                         capture_output=True, text=True, timeout=120, cwd=built.parent)
    assert run.returncode == 0 and "1 passed" in run.stdout, run.stdout[-2000:]
