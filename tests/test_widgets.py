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

from minicogvx.course import (
    attention_map,
    explore,
    notebook_builder,
    output,
    show,
    widget_parts,
    widgets,
)
from minicogvx.diffusion import NoiseSchedule
from minicogvx.presets import ScheduleConfig

WORDS = 'A "square" & its shadow move.'


@pytest.fixture
def shown(monkeypatch):
    """What would have been displayed: still pictures and words as (data, metadata), widgets as themselves."""
    found = []
    monkeypatch.setattr(output, "display", lambda data, metadata: found.append((data, metadata)))
    monkeypatch.setattr(widget_parts, "display_widget", found.append)
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


def wipe_widget():
    widgets.explore_wipe({"bright": moving_square(), "dark": moving_square(brightness=0.3)}, WORDS)


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


def grid_widget():
    explore.explore_grid(lambda shade, count: moving_square(count, shade), WORDS, first=[0.3, 0.6, 1], second=[2, 4, 5])


def curve(power, scale=1):
    """x to a power."""
    figure, axes = show.new_figure(1, 1, 4, 2)
    axes[0, 0].plot([scale * (i / 10) ** power for i in range(11)])
    return figure


def figure_widget():
    explore.explore_figure(curve, power=range(1, 4), scale=[1, 2, 5])


def attention_widget():
    weights = torch.eye(4).roll(1, 1)  # each token looks at the next one
    attention_map.explore_attention(weights, ["a", "red", "square", "moves"], WORDS)


EVERY = [frames_widget, wipe_widget, sweep_widget, noise_widget, rope_widget, grid_widget, figure_widget,
         attention_widget]


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
                before, value = (box.children[-1].value, picture_of(box)[1]), slider.value
                slider.value = value + 5 if slider.description == "line" else value + 1
                after = box.children[-1].value, picture_of(box)[1]
                assert after[0] != before[0] and after[1] != before[1]
                slider.value = value
                assert (box.children[-1].value, picture_of(box)[1]) == before


def test_the_frame_that_is_asked_for_is_shown(shown):
    frames_widget()
    slider, _ = shown[-1].children
    assert (slider.min, slider.max) == (0, 4)
    slider.value = 2
    picture, words = picture_of(shown[-1])
    assert picture.size == (widgets.SIDE, widgets.SIDE)
    assert white_columns(picture) == (8 * 8, 16 * 8 - 1)  # third frame, enlarged eight times
    assert words == 'A "square" & its shadow move: frame 2 of 0 to 4, after 0.25 s.'


def test_the_wipe_shows_the_first_clip_left_of_the_line(shown):
    wipe_widget()
    line, frame, _ = shown[-1].children
    frame.value = 2
    for percent, bright in ((100, 64), (0, 0), (25, 0)):
        line.value = percent
        columns = [c for c in white_columns_all(picture_of(shown[-1])[0]) if abs(c - 2.56 * percent) > 4]
        assert len(columns) == bright  # the bright square; white is otherwise only the line
    assert "bright in the left 25 %, dark in the rest" in picture_of(shown[-1])[1]
    assert f"differ by {0.7 * 64 / 1024:.3f} on average" in picture_of(shown[-1])[1]


def white_columns_all(picture):
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(picture.height, -1, 3)
    return (pixels > 200).all(dim=-1).any(dim=0).nonzero().flatten().tolist()


def test_a_sweep_names_its_values_and_plays_their_clips(shown):
    sweep_widget()
    slider, _ = shown[-1].children
    assert [label for label, _ in slider.options] == ["1", "3.5", "most"]
    for place, words, brightest in ((0, "scale 1, 5 frames", 255), (1, "scale 3.5,", 128), (2, "scale most,", 0)):
        slider.value = place
        picture, said = picture_of(shown[-1])
        assert words in said
        assert all(abs(high - brightest) < 8 for _, high in picture.getextrema())
        if brightest:
            assert film_of(shown[-1]).n_frames == 5


def film_of(box):
    """The widget's picture as it is, with all of its frames."""
    return Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", box.children[-1].value).group(1))))


def test_a_grid_calls_its_function_once_for_each_pair_and_names_its_parameters(shown, subtests):
    calls = []

    def made(shade, length):
        calls.append((shade, length))
        return moving_square(length, shade)

    explore.explore_grid(made, WORDS, first=[0.2, 0.5, 0.7, 1], second=[2, 5])
    assert len(calls) == len(set(calls)) == 6  # first, middle and last by both
    assert shown[0][1]["image/png"]["alt"].endswith(
        "The picture shows 3 of the 4 values of shade; the sliders have all of them.")
    shade, length, _ = shown[-1].children
    assert (shade.description, length.description) == ("shade", "length")
    assert picture_of(shown[-1])[1] == 'A "square" & its shadow move: shade 0.7, length 5.'  # the middle
    shade.value = 1
    assert calls[-1] == (0.5, 5) and len(calls) == 7 and film_of(shown[-1]).n_frames == 5
    shade.value, length.value = 3, 0
    assert picture_of(shown[-1])[1].endswith("shade 1, length 2.") and film_of(shown[-1]).n_frames == 2
    with subtests.test("by name, in any order; a picture"):
        explore.explore_grid(lambda x, y: torch.full((8, 8, 3), x / y), "Grey.", y=[2, 4], x=[1, 2])
        assert picture_of(shown[-1])[0].getpixel((0, 0)) == (128, 128, 128)
        assert picture_of(shown[-1])[1] == "Grey: y 4, x 2."


def test_a_figure_is_drawn_anew_with_the_values_that_are_chosen(shown):
    figure_widget()
    power, scale, _ = shown[-1].children
    still = shown[0][1]["image/png"]
    assert still["alt"] == picture_of(shown[-1])[1] == "x to a power: power 2, scale 2." and still["width"] == 400
    power.value, scale.value = 0, 2
    assert picture_of(shown[-1])[1] == "x to a power: power 1, scale 5."
    shown.clear()
    explore.explore_figure(lambda a: (curve(a), f"It ends at {a}."), WORDS, a=[2, 3])
    assert picture_of(shown[-1])[1] == "It ends at 3."


def test_attention_shows_where_the_token_that_was_clicked_looks(shown):
    attention_widget()
    buttons, _ = shown[-1].children
    buttons.value = 1
    assert picture_of(shown[-1])[1].startswith('A "square" & its shadow move: red takes most from square (1.00)')
    shown.clear()
    weights = torch.rand(2, 10, 10, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    weights[1, 9] = torch.eye(10)[1]  # head 1: the last place looks at the second word
    weights[1, 1] = torch.eye(10)[5]  # the second word looks at frame 0, row 1, column 1
    attention_map.explore_attention(weights, ["red", "star"], grid=(2, 2, 2))
    head, words, frame, place, _ = shown[-1].children
    head.value = 1
    words.value = 1
    assert "head 1: star takes most from frame 0, row 1, column 1 (1.00)" in picture_of(shown[-1])[1]
    place.value = 3
    assert words.value is None and "head 1: frame 0, row 1, column 1 takes most" in picture_of(shown[-1])[1]
    frame.value = 1
    assert "frame 1, row 1, column 1 takes most from star (1.00)" in picture_of(shown[-1])[1]
    words.value = 0
    assert place.value is None and "head 1: red takes most from" in picture_of(shown[-1])[1]


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
    assert calls[0].var() < calls[1].var() < calls[2].var() and calls[3].mean().abs() < 0.1


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
        (lambda: widgets.explore_wipe({"one": moving_square()}, WORDS), "there are 1 clips"),
        (lambda: widgets.explore_wipe({"a": moving_square(5), "b": moving_square(3)}, WORDS), r"\(5, 32.*\(3, 32"),
        (lambda: widgets.explore_sweep({}, "scale", WORDS), "no rows"),
        (lambda: explore.explore_grid(curve, "A curve.", power=[1]), "it was given 1"),
        (lambda: explore.explore_grid(lambda a, b: a, first=[1], second=[2]), "alt is empty"),
        (lambda: explore.explore_figure(curve), "at least one slider"),
        (lambda: explore.explore_figure(curve, power=[]), "the slider power has no values"),
        (lambda: attention_map.explore_attention(torch.rand(2, 3), ["a", "b"]), r"\(2, 3\)"),
        (lambda: attention_map.explore_attention(torch.rand(3, 3), ["a", "b"]), "2 labels for 3 tokens"),
        (lambda: attention_map.explore_attention(torch.rand(9, 9), ["a", "b"], grid=(1, 2, 2)), "and 4 places"),
        (lambda: attention_map.explore_attention(-torch.ones(2, 2), ["a", "b"]), "negative or NaN"),
        (lambda: widgets.explore_noise(torch.rand(2, 3, 5, 8, 8), NoiseSchedule(ScheduleConfig()), decode, WORDS),
         r"\(2, 3, 5, 8, 8\)"),
        (lambda: widgets.explore_rope(head_dim=40), "head_dim is 40"),
        (lambda: widgets.explore_rope(frames=3), "frames 3"),
    ):
        with subtests.test(msg=message), pytest.raises(ValueError, match=message):
            call()
    assert shown == []


def test_a_missing_ipywidgets_is_named_with_the_line_that_mends_it_and_the_notebook_goes_on(shown, monkeypatch, capsys,
                                                                                           subtests):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    two = {"a": moving_square(), "b": moving_square().flip(2)}
    for call in (
        lambda: widgets.explore_frames(moving_square(), WORDS),
        lambda: widgets.explore_wipe(two, WORDS),
        lambda: widgets.explore_sweep(two, "scale", WORDS),
        lambda: widgets.explore_rope(),
        lambda: explore.explore_figure(curve, "A curve.", power=[1, 2]),
        lambda: attention_map.explore_attention(torch.eye(2), ["a", "b"]),
    ):
        shown.clear()
        call()
        with subtests.test(shown[-1][0]["text/plain"]):
            assert len(shown) == 2  # the still picture and its caption
            assert capsys.readouterr().out == ("The picture above does not move: ipywidgets is missing; install it "
                                               "with: pip install -e '.[notebooks]'\n")


# ---- in a notebook

CELL = """import torch
from minicogvx.course import explore_frames

print("before")
explore_frames(torch.rand(5, 16, 16, 3, generator=torch.Generator().manual_seed(0)), "Noise flickers.")"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A notebook of two cells, one with a widget and one that is folded, built and run; its path."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "00_noise.py").write_text(f'# %%\n{CELL}\n\n# %% tags=["folded"]\nprint("an answer")\n')
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
    """nbval shows no widgets either: it must not miss the view that the builder took out, nor mind what it put in."""
    run = subprocess.run([sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-p",
                          "no:cacheprovider", "-c", "/dev/null", str(built)],
                         capture_output=True, text=True, timeout=120, cwd=built.parent)
    assert run.returncode == 0 and "2 passed" in run.stdout, run.stdout[-2000:]
