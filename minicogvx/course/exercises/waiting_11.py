"""Exercise 11.4 of notebook 11: packs from a line of clips of which only the first few are in sight."""

import random
from collections.abc import Sequence

from minicogvx.course.exercises.exercise import Wrong
from minicogvx.course.exercises.whole_packs import whole_packs
from minicogvx.data.clips.packs import packs_in_order

ROOM, FULL = 2048, 0.93  # tokens of a pack; the least share of all packs that must be filled
LENGTHS, OFTEN = (48, 112, 192, 247, 352, 515, 662, 1088), (20, 18, 15, 14, 12, 10, 7, 4)  # of clips, tokens


def packs_in_sight(tokens: Sequence[int], room: int, ahead: int) -> list[list[int]]:
    """Clip numbers of each pack, as the package's frame pack fills them, for clips in this order."""
    return [list(pack.indices) for pack in packs_in_order(tokens, room, range(len(tokens)), ahead)]


def check_pack_line(pack_line) -> None:
    """Each clip once and whole; none from out of sight; the first of the line goes first; packs are full."""
    for seed, ahead in ((0, 32), (1, 16), (2, 64)):
        tokens = random.Random(seed).choices(LENGTHS, OFTEN, k=300)
        what = f"pack_line of {len(tokens)} clips, room={ROOM:,}, ahead={ahead}"
        packs = whole_packs(what, lambda given: pack_line(given, ROOM, ahead), tokens, ROOM)
        _check_line(what, packs, ahead)
        share = sum(tokens) / (len(packs) * ROOM)
        if share < FULL:
            raise Wrong(f"{what} needs {len(packs)} packs, which are {share:.0%} full; at least {FULL:.0%} is "
                        f"possible. Before you close a pack, look at every waiting clip: does one still fit?")
    alone = pack_line([5, 5, 5], 5, 8)
    if [list(pack) for pack in alone] != [[0], [1], [2]]:
        raise Wrong(f"pack_line([5, 5, 5], 5, 8) is {alone!r}; each clip fills a pack, so it must be [[0], [1], [2]].")


def _check_line(what: str, packs: list[list[int]], ahead: int) -> None:
    """Nobody is taken from out of sight, and nobody at the head of the line is passed over."""
    waiting = sorted(i for pack in packs for i in pack)
    for number, pack in enumerate(packs):
        in_sight = waiting[:ahead + len(pack) - 1]  # whenever one is taken, the next comes into sight
        if far := [i for i in pack if i not in in_sight]:
            raise Wrong(f"{what}: pack {number} (counted from 0) holds clip {far[0]}, which was not in sight: "
                        f"{len(waiting)} clips were waiting, and it was number {waiting.index(far[0])} of them. The "
                        f"line has no end, so it cannot be sorted as a whole.")
        if waiting[0] not in pack:
            raise Wrong(f"{what}: pack {number} (counted from 0) passes over clip {waiting[0]}, which stands first in "
                        f"the line. It could wait for ever; each pack begins with the first of the line.")
        waiting = [i for i in waiting if i not in pack]
