"""The widget of frame packs: a static picture, two sliders, and words with the numbers that the packing gives."""

import random
import re

import pytest

from minicogvx.course import explore_packs, output, pack_bars, widget_parts
from minicogvx.data.clips.packs import frame_packs

CHANCE = random.Random(0)
TOKENS = CHANCE.choices((48, 112, 200, 600), (3, 4, 2, 1), k=400)
KINDS = ["image" if count == 48 else "video" for count in TOKENS]


@pytest.fixture
def shown(monkeypatch):
    """What would have been displayed: pictures and words as (data, metadata), widgets as themselves."""
    found = []
    monkeypatch.setattr(output, "display", lambda data, metadata: found.append((data, metadata)))
    monkeypatch.setattr(widget_parts, "display_widget", found.append)
    return found


def words_of(box) -> str:
    return re.search(r'alt="([^"]*)"', box.children[-1].value).group(1)


def test_the_words_say_what_the_packing_gives_at_every_stop(shown):
    aheads, rooms = (1, 8, 64), (700, 1400, 2800)
    explore_packs(TOKENS, rooms, KINDS, aheads)
    (still, metadata), _, box = shown
    ahead, room, _ = box.children
    assert still["image/png"] and "look-ahead of 8 and room for 1,400" in metadata["image/png"]["alt"]
    for i, each in enumerate(aheads):
        for j, tokens in enumerate(rooms):
            ahead.value, room.value = i, j
            packs = list(frame_packs(TOKENS, tokens, 0, each))
            share = sum(pack.tokens for pack in packs) / (tokens * len(packs))
            assert f"400 clips fill {len(packs):,} packs to {share:.1%}" in words_of(box)


def test_the_share_that_is_filled():
    packs = list(frame_packs([6, 3, 6], 10, 0, 3))
    assert pack_bars.filled(packs) == 15 / (10 * len(packs)) == 0.75


def test_what_cannot_be_drawn_is_refused(shown):
    for arguments, told in ((([], [10]), "there are 0 clips and 0 kinds"),
                            (([5, 5], [10], ["image"]), "there are 2 clips and 1 kinds"),
                            (([1] * 7, [10], list("abcdefg")), "there are 7 kinds of clips; at most 6"),
                            (([5, 11], [10, 20]), "clip 1 has 11 tokens")):
        with pytest.raises(ValueError, match=told):
            explore_packs(*arguments)
    assert not shown
