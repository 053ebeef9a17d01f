"""What notebooks show: clips that play, pictures with words, source as it stands in its file."""

import base64
import copy
import io
import re

import av
import pytest
import torch
from PIL import Image

from minicogvx.course import clips, output, show
from minicogvx.transformer.patchify import patchify


@pytest.fixture
def shown(monkeypatch):
    """What would have been displayed: (data, metadata) of each output."""
    found = []
    monkeypatch.setattr(output, "display", lambda data, metadata: found.append((data, metadata)))
    return found


def frames_of(film) -> torch.Tensor:
    """The frames of an embedded mp4, t h w 3 in 0..1."""
    data = base64.b64decode(re.search(r"base64,([^\"]+)", film["text/html"]).group(1))
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.stack(list(map(torch.from_numpy, frames))) / 255


def picture_of(data) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data["image/png"])))


def test_a_clip_plays_and_has_a_strip_and_words(shown):
    clips.show_clip(torch.rand(17, 16, 16, 3), 'A "dot" & nothing else.', fps=8)
    (film, _), (strip, metadata), (words, _) = shown
    assert '<video autoplay loop muted controls' in film["text/html"] and "data:video/mp4;base64," in film["text/html"]
    assert 'aria-label="A &quot;dot&quot; &amp; nothing else."' in film["text/html"]
    assert len(film["text/html"]) < 1.4 * clips.MAX_CLIP_BYTES
    alt = metadata["image/png"]["alt"]
    assert alt == 'A "dot" & nothing else. (frames 0, 3, 6, 10, 13 and 16 of 17)'
    assert alt in words["text/markdown"]
    assert picture_of(strip).size == (6 * 96 + 5 * 4, 96)  # gaps between the frames, and none after the last


def test_a_strip_names_the_frames_that_it_shows(subtests):
    for length, count, said in ((1, 6, "frame 0"), (5, 6, "frames 0 to 4"), (5, 2, "first and last of 5 frames"),
                                (9, 3, "frames 0, 4 and 8 of 9")):
        with subtests.test(length=length):
            assert clips.frames_said(length, count) == said


def test_a_large_clip_is_made_smaller(shown, monkeypatch):
    monkeypatch.setattr(clips, "MAX_CLIP_BYTES", 20_000)
    clips.show_clip(torch.rand(5, 64, 64, 3), "Noise.")
    assert len(shown[0][0]["text/html"]) < 1.4 * 20_000


def test_noise_is_compressed_harder_and_stays_what_it_was(shown):
    noise = (0.25 + 0.5 * torch.rand(9, 96, 96, 1)).expand(-1, -1, -1, 3)
    flat = torch.full((9, 96, 96, 3), 0.3)
    for video, hard in ((flat, False), (noise, True)):
        shown.clear()
        clips.show_clip(video, "A clip.")
        best, film = clips._mp4(video, 8, clips.RATE_FACTORS[0]), frames_of(shown[0][0])
        embedded = base64.b64decode(re.search(r"base64,([^\"]+)", shown[0][0]["text/html"]).group(1))
        assert (len(best) > clips.GOOD_CLIP_BYTES) == hard == (len(embedded) < 0.8 * len(best))
        assert film.shape == video.shape and (film - video).abs().mean() < 0.04


def test_clips_side_by_side_have_gaps_and_labels_and_play_together(shown):
    grey = torch.linspace(0.2, 0.8, 5)[:, None, None, None].expand(5, 64, 64, 3)
    clips.compare_clips({"rises": grey, "<falls>": grey.flip(0), "short": grey[:2, :, :32]}, "Three squares.", fps=8)
    film, html = frames_of(shown[0][0]), shown[0][0]["text/html"]
    step = 64 + clips.GAP
    assert film.shape == (5, 128, 3 * 64 + 2 * clips.GAP, 3)  # the narrow one is 128 high and 64 wide
    middles = film[:, 96, [32, step + 32, 2 * step + 32], 0]  # t clips
    wanted = torch.stack([grey[:, 0, 0, 0], grey.flip(0)[:, 0, 0, 0], grey[[0, 1, 1, 1, 1], 0, 0, 0]], dim=1)
    assert (middles - wanted).abs().max() < 0.03  # the short one waits at its last frame
    assert film[:, :, [step - 2, 2 * step - 2]].min() > 0.9
    assert re.findall(r"<span [^>]*width: ([0-9.]+)%[^>]*>([^<]*)<", html) == [
        ("34.00", "rises"), ("34.00", "&lt;falls&gt;"), ("32.00", "short")]  # the last has no gap
    assert f'width="{3 * film.shape[2]}"' in html and f"max-width: {3 * film.shape[2]}px" in html
    assert shown[1][1]["image/png"]["alt"] == "Three squares."


def test_clips_of_several_sizes_are_shown_at_one(shown):
    clips.compare_clips({"small": torch.zeros(2, 64, 64, 3), "large": torch.zeros(2, 128, 128, 3)}, "Black.")
    assert frames_of(shown[0][0]).shape[1:3] == (128, 2 * 128 + clips.GAP)
    shown.clear()
    clips.compare_clips({"as in the paper": torch.zeros(2, 480, 720, 3)}, "Black.")
    assert frames_of(shown[0][0]).shape[1:3] == (160, 240)


def test_many_clips_stand_in_rows_and_a_large_sheet_gets_smaller(shown, monkeypatch):
    noise = torch.rand(3, 32, 32, 3)
    clips.compare_clips({str(i): noise for i in range(5)}, "Noise.")
    films = [frames_of(data) for data, _ in shown if "text/html" in data]
    assert [film.shape[2] for film in films] == [3 * 64 + 2 * clips.GAP, 2 * 64 + clips.GAP]
    monkeypatch.setattr(clips, "MAX_CLIP_BYTES", 5_000)
    shown.clear()
    clips.compare_clips({"a": noise, "b": noise}, "Noise.")
    film, html = frames_of(shown[0][0]), shown[0][0]["text/html"]
    assert film.shape[1] < 64 and f'height="{3 * 64}"' in html  # on the page it is as large as ever


def test_rows_are_one_labelled_picture(shown):
    clips.show_rows({"five frames": torch.rand(5, 16, 16, 3), "one": torch.rand(1, 16, 16, 3)}, "Noise, twice.")
    assert len(shown) == 2 and shown[0][1]["image/png"]["alt"] == "Noise, twice."


def test_figures_are_sharp_and_as_large_on_the_page_as_before(shown):
    figure, axes = show.new_figure(1, 2, width=7, height=3)
    axes[0, 0].plot([1, 2])
    axes[0, 1].imshow(torch.rand(4, 4).numpy())
    show.show_figure(figure, "A line, and a picture.")
    data, metadata = shown[0]
    assert picture_of(data).size == (7 * 150, 3 * 150) and metadata["image/png"]["width"] == 700
    spines = [[axes[0, i].spines[side].get_visible() for side in ("left", "bottom", "right", "top")] for i in (0, 1)]
    assert spines == [[True, True, False, False], [False] * 4]  # no picture stands in half a frame


def test_a_frame_that_was_asked_for_stays(shown):
    figure, axes = show.new_figure()
    axes[0, 0].imshow(torch.rand(4, 4).numpy())
    axes[0, 0].spines[:].set_visible(True)
    show.show_figure(figure, "A picture in a frame.")
    assert all(spine.get_visible() for spine in axes[0, 0].spines.values())


def test_pictures_keep_their_colours(shown):
    """With few colours exactly; with many nearly, as a photograph has smooth shades."""
    flat = torch.tensor([[0.1, 0.5, 0.9], [0.0, 0.447, 0.698]])[torch.tensor([[0, 1], [1, 0]])]
    smooth = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(smooth, (96, 96), mode="bilinear")[0].permute(1, 2, 0)
    for picture, error in ((flat, 0.5), (smooth, 8)):
        back = Image.open(io.BytesIO(output.png_of_picture(picture))).convert("RGB")
        apart = torch.frombuffer(bytearray(back.tobytes()), dtype=torch.uint8).view(picture.shape) - 255 * picture
        assert apart.square().mean().sqrt() < error


def test_source_is_the_files_own(shown):
    show.show_source(patchify)
    text = shown[0][0]["text/markdown"]
    assert "`minicogvx/transformer/patchify.py`" in text
    assert "(h p) (w q) -> b (t h w)" in text and text.endswith("```")
    with pytest.raises(ValueError, match="not part of minicogvx"):
        show.show_source(copy.deepcopy)


def test_a_picture_without_words_or_frames_is_refused(shown, subtests):
    for call, message in (
        (lambda: clips.show_clip(torch.rand(5, 16, 16, 3), " "), "alt is empty"),
        (lambda: clips.show_clip(torch.rand(0, 16, 16, 3), "Nothing."), r"\(0, 16, 16, 3\)"),
        (lambda: clips.show_rows({}, "Nothing."), "no rows"),
        (lambda: clips.compare_clips({}, "Nothing."), "no clips"),
        (lambda: clips.compare_clips({"a": torch.rand(0, 9, 9, 3)}, "Noise."), r"\(0, 9, 9, 3\)"),
        (lambda: show.show_figure(show.new_figure()[0], ""), "alt is empty"),
    ):
        with subtests.test(msg=message), pytest.raises(ValueError, match=message):
            call()
    assert shown == []
