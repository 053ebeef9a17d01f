"""Multi-Resolution Frame Pack (paper 3.1): images and clips of any length and size fill one fixed-length sequence.

The paper adopts Patch'n Pack (Dehghani et al. 2023, NaViT) because a fixed clip length splits training into two modes
with different numbers of tokens, discards short clips and truncates long ones. How clips are chosen was not published;
the rule below is ours. `transformer/packed.py` runs the model on packs; `benchmarks/packing.py` compares with padding
and bucketing.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

LOOK_AHEAD = 64  # clips that wait; on both of benchmarks/mixtures.py, 256 fill packs no better, and the last ones less


@dataclass(frozen=True)
class Pack:
    """The indices of the clips of one sequence, and how much of it they fill."""

    indices: tuple[int, ...]
    tokens: int  # of the clips themselves
    sequence_length: int  # capacity


def frame_packs(tokens: Sequence[int], sequence_length: int, seed: int, look_ahead: int = LOOK_AHEAD) -> Iterator[Pack]:
    """One pass over all clips in random order, determined by `seed`; each clip is whole and in exactly one pack.

    A pack takes waiting clips in order of arrival until one does not fit, then repeatedly the longest of `look_ahead`
    waiting clips that fits (best fit). The first part preserves the distribution of the data, the second fills the
    pack. The clip that has waited longest comes first, so none waits for more than `look_ahead` packs.
    With several ranks, each draws the same packs, and of those of a step computes consecutive ones (`Ranks.part`).

    Args:
        tokens: of each clip, text and patches.
        sequence_length: tokens in a pack.

    Raises:
        ValueError: at once, if a clip has no token or does not fit a pack alone, or if `look_ahead` is below 1.
    """
    check_tokens(tokens, sequence_length)
    if look_ahead < 1:
        raise ValueError(f"look_ahead is {look_ahead}; at least 1 clip must wait for a place")
    return packs_in_order(tokens, sequence_length, shuffled(len(tokens), seed), look_ahead)


def packs_in_order(tokens: Sequence[int], sequence_length: int, order: Sequence[int],
                   look_ahead: int) -> Iterator[Pack]:
    """The packs of `frame_packs`, for clips that arrive in this order, of which `look_ahead` are in sight."""
    arriving = iter(order)
    waiting = list(islice(arriving, look_ahead))
    while waiting:
        pack, room, in_order = [], sequence_length, True
        while fitting := [i for i in waiting if tokens[i] <= room]:
            in_order = in_order and fitting[0] == waiting[0]
            taken = fitting[0] if in_order else max(fitting, key=lambda i: tokens[i])  # the first of equals
            waiting.remove(taken)
            waiting.extend(islice(arriving, 1))
            pack.append(taken)
            room -= tokens[taken]
        yield Pack(tuple(pack), sequence_length - room, sequence_length)


def shuffled(clips: int, seed: int) -> list[int]:
    """The indices of so many clips in random order."""
    return random.Random(seed).sample(range(clips), clips)


def check_tokens(tokens: Sequence[int], sequence_length: int) -> None:
    """Raises ValueError for a clip without tokens, or with more than a pack holds."""
    for i, count in enumerate(tokens):
        if not 1 <= count <= sequence_length:
            raise ValueError(f"clip {i} has {count} tokens; a clip is packed whole, so it must have 1 to "
                             f"{sequence_length}, the sequence length")
