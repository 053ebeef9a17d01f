"""What notebooks show: clips that play, pictures with words, source as it stands in its file."""

import copy

import pytest
import torch

from minicogvx.course import show
from minicogvx.transformer.patchify import patchify


@pytest.fixture
def shown(monkeypatch):
    """What would have been displayed: (data, metadata) of each output."""
    found = []
    monkeypatch.setattr(show, "_display", lambda data, metadata: found.append((data, metadata)))
    return found


def test_a_clip_plays_and_has_a_strip_and_words(shown):
    show.show_clip(torch.rand(5, 16, 16, 3), 'A "dot" & nothing else.', fps=8)
    (film, _), (strip, metadata), (words, _) = shown
    assert '<video autoplay loop muted controls' in film["text/html"] and "data:video/mp4;base64," in film["text/html"]
    assert 'aria-label="A &quot;dot&quot; &amp; nothing else."' in film["text/html"]
    assert len(film["text/html"]) < 1.4 * show.MAX_CLIP_BYTES
    assert strip["image/png"].startswith("iVBOR") and metadata["image/png"]["alt"].startswith('A "dot"')
    assert 'A "dot"' in words["text/markdown"]


def test_a_large_clip_is_made_smaller(shown, monkeypatch):
    monkeypatch.setattr(show, "MAX_CLIP_BYTES", 20_000)
    show.show_clip(torch.rand(5, 64, 64, 3), "Noise.")
    assert len(shown[0][0]["text/html"]) < 1.4 * 20_000


def test_rows_are_one_labelled_picture(shown):
    show.show_rows({"five frames": torch.rand(5, 16, 16, 3), "one": torch.rand(1, 16, 16, 3)}, "Noise, twice.")
    assert len(shown) == 2 and shown[0][1]["image/png"]["alt"] == "Noise, twice."


def test_source_is_the_files_own(shown):
    show.show_source(patchify)
    text = shown[0][0]["text/markdown"]
    assert "`minicogvx/transformer/patchify.py`" in text
    assert "(h p) (w q) -> b (t h w)" in text and text.endswith("```")
    with pytest.raises(ValueError, match="not part of minicogvx"):
        show.show_source(copy.deepcopy)


def test_a_picture_without_words_or_frames_is_refused(shown, subtests):
    for call, message in (
        (lambda: show.show_clip(torch.rand(5, 16, 16, 3), " "), "alt is empty"),
        (lambda: show.show_clip(torch.rand(0, 16, 16, 3), "Nothing."), r"\(0, 16, 16, 3\)"),
        (lambda: show.show_rows({}, "Nothing."), "no rows"),
        (lambda: show.show_figure(show.new_figure()[0], ""), "alt is empty"),
    ):
        with subtests.test(msg=message), pytest.raises(ValueError, match=message):
            call()
    assert shown == []
