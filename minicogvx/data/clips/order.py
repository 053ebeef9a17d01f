"""Which clips a step trains on: each of them once an epoch, and the same ones on any number of ranks.

The clips stand in an endless line: all of them in random order, then all of them in another, and so on. A step takes
the next `batch_size` of the line, of whatever sizes they are, and the ranks divide them. So the place in the line,
which is all that a resumed run needs to know, is a number of clips: steps times `batch_size`.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch

from minicogvx.data.clips.packs import Pack, frame_packs
from minicogvx.engine.ranks import Ranks

Size = tuple[int, int, int]  # latent frames, height, width


@dataclass(frozen=True)
class Order:
    """The line of `count` clips that `seed` determines."""

    count: int
    seed: int

    def take(self, start: int, number: int) -> list[int]:
        """The clips at places start, start + 1, .. of the line."""
        return [int(_shuffled(self.count, self.seed, place // self.count)[place % self.count])
                for place in range(start, start + number)]


class PackOrder:
    """The same for frame packs (paper 3.1): an endless line of packs, in every epoch of which each clip is packed once.

    `tokens`: of each clip, text and patches. Raises ValueError for a clip that does not fit into `sequence_length`.
    """

    def __init__(self, tokens: Sequence[int], sequence_length: int, seed: int):
        self.tokens, self.sequence_length, self.seed = tokens, sequence_length, seed
        self._ends: list[int] = []  # of the epochs counted so far: places in the line
        self._packs: tuple[int, list[Pack]] = (-1, [])  # of the epoch used last
        self.clips_a_pack = len(tokens) / len(self._epoch(0))  # on average, in the first epoch

    def take(self, start: int, number: int) -> list[Pack]:
        """The packs at places start, start + 1, .. of the line."""
        return [self._at(place) for place in range(start, start + number)]

    def _at(self, place: int) -> Pack:
        while not self._ends or self._ends[-1] <= place:
            self._ends.append((self._ends or [0])[-1] + len(self._epoch(len(self._ends))))
        epoch = bisect_right(self._ends, place)
        return self._epoch(epoch)[place - ([0, *self._ends])[epoch]]

    def _epoch(self, number: int) -> list[Pack]:
        if self._packs[0] != number:
            seed = number_of("packs", self.seed, number)
            self._packs = number, list(frame_packs(self.tokens, self.sequence_length, seed))
        return self._packs[1]


def number_of(*parts: str | int) -> int:
    """A seed of 32 bits, all that PyTorch's CPU generator keeps, for anything named by words and numbers."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(number_of("epoch", seed, epoch)))


def own_passes(sizes: Sequence[Size], ranks: Ranks, at_least: int = 1) -> list[list[int]]:
    """This rank's forward passes of a step: places in the joint batch, in one pass only those of one size.

    `sizes`: of all clips of the joint batch. Clips of one size are dealt out to the ranks in turn, so all ranks compute
    about the same. All have the same number of passes, as FSDP needs, and at least `at_least` (gradient accumulation).
    Raises ValueError for a batch that the ranks do not divide, or with fewer clips a rank than `at_least`.
    """
    ranks.part(len(sizes))
    dealt = sorted(range(len(sizes)), key=lambda place: (sizes[place], place))
    team, teams = ranks.rank // ranks.context, ranks.teams
    shares = [[list(run) for _, run in groupby(dealt[first::teams], lambda place: sizes[place])]
              for first in range(teams)]
    wanted = max(at_least, *map(len, shares))
    if wanted > len(sizes) // teams:
        raise ValueError(f"accumulate is {at_least}; it must be at most {len(sizes) // teams}, the clips of a batch on "
                         f"each rank")
    return _cut(shares[team], wanted)


def _cut(runs: list[list[int]], wanted: int) -> list[list[int]]:
    """`runs`, the longest of which are halved until there are `wanted`."""
    while len(runs) < wanted:
        longest = max(range(len(runs)), key=lambda i: len(runs[i]))
        run = runs[longest]
        runs = [*runs[:longest], run[:len(run) // 2], run[len(run) // 2:], *runs[longest + 1:]]
    return runs
