"""Which clips a step trains on: each once an epoch, in the same order on any number of ranks."""

from collections import Counter

import pytest

from minicogvx.data.clips.order import Order, PackOrder, own_passes
from minicogvx.engine.ranks import Ranks

SIZES = [(1, 8, 8)] * 5 + [(3, 8, 8)] * 9 + [(3, 6, 10)] * 2 + [(5, 8, 8)] * 16


def test_every_clip_comes_once_an_epoch_however_large_the_batches():
    for count, batch in ((10, 4), (7, 7), (3, 8), (1000, 128)):
        line = [i for step in range(3 * count // batch + 2) for i in Order(count, 5).take(step * batch, batch)]
        for epoch in range(3):
            assert sorted(line[epoch * count:(epoch + 1) * count]) == list(range(count))
    epochs = [Order(50, 5).take(50 * epoch, 50) for epoch in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3 and epochs[0] != Order(50, 6).take(0, 50)


def test_a_resumed_run_goes_on_in_the_line_with_another_number_of_ranks():
    """Eight ranks for 6 steps, then two: of 1,000 clips none is repeated, and none is left out."""
    order, seen = Order(1000, 1), Counter()
    for step in range(10):
        joint, world = order.take(step * 104, 104), 8 if step < 6 else 2
        for rank in range(world):
            seen.update(joint[place] for one in own_passes([SIZES[0]] * 104, Ranks(rank, world)) for place in one)
    assert seen - Counter(range(1000)) == Counter(order.take(1000, 40)), "40 clips of the next epoch, and no others"
    assert len(seen) == 1000


def test_ranks_share_a_batch_of_many_sizes():
    for world in (1, 2, 4, 8):
        own = [own_passes(SIZES, Ranks(rank, world)) for rank in range(world)]
        assert sorted(place for ones in own for one in ones for place in one) == list(range(32))
        assert len({len(ones) for ones in own}) == 1, "FSDP needs as many passes on every rank"
        assert len({sum(map(len, ones)) for ones in own}) == 1, "and ranks have equally many clips"
        for one in (one for ones in own for one in ones):
            assert one and len({SIZES[place] for place in one}) == 1
        tokens = [sum(SIZES[place][0] for one in ones for place in one) for ones in own]
        assert max(tokens) - min(tokens) <= 8, "and about the same work"


def test_accumulation_cuts_the_longest_passes_and_teams_share_theirs():
    assert [len(one) for one in own_passes([(1, 1, 1)] * 8, Ranks(), 3)] == [2, 2, 4]
    assert len(own_passes([(1, 1, 1)] * 8, Ranks(), 8)) == 8
    teams = [own_passes(SIZES, Ranks(rank, 4, context=2)) for rank in range(4)]
    assert teams[0] == teams[1] != teams[2] == teams[3]
    with pytest.raises(ValueError, match="accumulate is 9; .* at most 8"):
        own_passes([(1, 1, 1)] * 8, Ranks(), 9)
    with pytest.raises(ValueError, match="batch_size is 9"):
        own_passes([(1, 1, 1)] * 9, Ranks(0, 2))


def test_packs_hold_every_clip_once_an_epoch_and_are_found_again_after_an_interruption():
    tokens = [3 + i % 17 for i in range(200)]
    order = PackOrder(tokens, 40, seed=2)
    line = order.take(0, 400)
    seen, epoch = [], []
    for pack in line:
        assert sum(tokens[i] for i in pack.indices) <= 40
        epoch += pack.indices
        if len(epoch) == 200:
            assert sorted(epoch) == list(range(200))
            seen, epoch = [*seen, tuple(epoch)], []
    assert len(seen) >= 3 and len(set(seen)) == len(seen), "every epoch is packed anew"
    assert PackOrder(tokens, 40, seed=2).take(151, 7) == line[151:158]
    assert order.take(3, 2) == line[3:5], "also backwards"
    first = next(k for k in range(400) if sum(len(pack.indices) for pack in line[:k]) == 200)
    assert order.clips_a_pack == 200 / first
    with pytest.raises(ValueError, match="clip 5"):
        PackOrder([3, 3, 3, 3, 3, 41], 40, seed=0)
