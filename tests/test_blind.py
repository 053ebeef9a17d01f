"""The blind comparison: sides are drawn, the key stays hidden until the last answer, and the result is in words."""

import pytest
import torch

from minicogvx.course import blind, output, widget_parts

WORDS = "Two clips for each caption."
CAPTIONS = [f"caption {i}" for i in range(6)]


def clips_of(brightness: float, count: int = 6):
    return [torch.full((3, 32, 32, 3), brightness)] * count


MODELS = {"dark": clips_of(0.1), "bright": clips_of(0.9)}


@pytest.fixture
def shown(monkeypatch):
    """What would have been displayed: still pictures and words as (data, metadata), widgets as themselves."""
    found = []
    monkeypatch.setattr(output, "display", lambda data, metadata: found.append((data, metadata)))
    monkeypatch.setattr(widget_parts, "display_widget", found.append)
    return found


def test_sides_are_fair_and_drawn_anew_with_each_seed():
    lefts = torch.tensor([blind.drawn_sides(10, seed)[1] for seed in range(300)]).float()
    assert 0.4 < lefts.mean() < 0.6 and (lefts.mean(dim=0) - 0.5).abs().max() < 0.15
    assert sorted(blind.drawn_sides(10, 1)[0]) == list(range(10)) != blind.drawn_sides(10, 1)[0]
    assert blind.drawn_sides(10, 1) == blind.drawn_sides(10, 1) != blind.drawn_sides(10, 2)


def test_the_names_are_told_only_after_the_last_click(shown, capsys):
    blind.explore_blind(MODELS, CAPTIONS, WORDS, seed=3)
    box, said = shown[-1], capsys.readouterr().out
    assert all(f"pair {i}: caption {place}" in shown[0][1]["image/png"]["alt"]
               for i, place in enumerate(blind.drawn_sides(6, 3)[0][:blind.SHOWN]))
    assert "6 pairs in all" in said and "dark" not in said and "bright" not in said
    picture, row = box.children
    order, flipped = blind.drawn_sides(6, 3)
    for i in range(6):
        assert f"Pair {i} of 6: caption {order[i]}" in picture.value and "bright" not in picture.value
        row.children[0 if flipped[i] else 1].click()  # always for the bright one
    assert "dark was better in 0 of 6 answers (0%, 95 % interval 0% to 39%), bright in the others" in picture.value
    assert row.layout.display == "none"
    row.children[0].click()  # a click too many changes nothing
    assert "0 of 6" in picture.value


def test_answers_as_text_give_the_same_verdict(shown, capsys):
    flipped = blind.drawn_sides(6, 0)[1]
    letters = "".join("r" if flip else "l" for flip in flipped[:5]) + "t"
    blind.explore_blind(MODELS, CAPTIONS, WORDS, answers=letters)
    said = capsys.readouterr().out
    assert "dark was better in 5 of 5 answers" in said and "ties left out: 1" in said and "p = 0.062" in said
    assert "that is enough to tell them apart" in said and not shown
    for wrong in ("lr", "lrtlrx"):
        with pytest.raises(ValueError, match="6 letters"):
            blind.explore_blind(MODELS, CAPTIONS, WORDS, answers=wrong)


def test_the_verdict_says_how_many_answers_it_takes():
    sides = [False] * 12
    assert "if this share stays, 35 answers tell them apart" in blind.told_apart(["a", "b"], sides, "llllllllrrrr")
    assert "no number of answers" in blind.told_apart(["a", "b"], sides, "llllllrrrrrr")
    assert blind.told_apart(["a", "b"], sides, "t" * 12) == "12 of 12 answers were ties: nothing can be said."


def test_what_makes_no_pairs_is_refused():
    for clips, captions in (({"a": clips_of(1.0)}, CAPTIONS), ({**MODELS, "c": clips_of(0.5)}, CAPTIONS),
                            (MODELS, CAPTIONS[:3]), ({"a": [], "b": []}, []),
                            ({"a": clips_of(1.0), "b": [torch.zeros(2, 32, 32, 3)] * 6}, CAPTIONS)):
        with pytest.raises(ValueError):
            blind.explore_blind(clips, captions, WORDS)
