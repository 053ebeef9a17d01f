"""Exercise 14.6 of notebook 14: pairs whose sides nobody can guess."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong

Pair = tuple[Any, Any]
_ROUNDS, _CLIPS = 200, 8


def pairs_with_key(ours: Sequence, theirs: Sequence, generator: torch.Generator) -> tuple[list[Pair], list[bool]]:
    """Pairs (left, right) in the order of the captions, and for each whether the left clip is one of `ours`."""
    key = (torch.rand(len(ours), generator=generator) < 0.5).tolist()
    return [(a, b) if left else (b, a) for a, b, left in zip(ours, theirs, key)], key


def check_blind_pairs(blind_pairs) -> None:
    """Each pair is one caption's, the key is true, and sides are tossed for each pair by the generator given."""
    ours, theirs = ([torch.full((1,), float(sign * i)) for i in range(1, _CLIPS + 1)] for sign in (1, -1))
    generator, lefts = torch.Generator().manual_seed(7), []
    for _ in range(_ROUNDS):
        pairs, key = _taken_apart(blind_pairs(list(ours), list(theirs), generator))
        lefts.append(_checked(pairs, key))
    share = torch.tensor(lefts).float()  # rounds clips
    if len({tuple(each) for each in lefts}) == 1:
        raise Wrong("The sides are the same at each call; they must be tossed anew.")
    if (share.mean(dim=1) % 1 == 0).all():
        raise Wrong("In each call all of ours stand on one side; toss for every pair by itself.")
    if (share.mean(dim=1) == 0.5).all():
        raise Wrong("In each call exactly half of ours stand on the left; whoever has seen the others knows the last "
                    "one. Toss for every pair by itself.")
    if (share.mean(dim=0) - 0.5).abs().max() > 0.15:
        place = int((share.mean(dim=0) - 0.5).abs().argmax())
        raise Wrong(f"In pair {place} ours stands on the left in {share[:, place].mean():.0%} of {_ROUNDS} calls; it "
                    f"must be half of them.")
    again = [_taken_apart(blind_pairs(list(ours), list(theirs), torch.Generator().manual_seed(3)))[1]
             for _ in range(8)]
    if any(each != again[0] for each in again):
        raise Wrong("With the same generator the sides differ; take the random numbers from the generator given, so "
                    "that the test can be repeated.")


def _taken_apart(got: Any) -> tuple[list, list[bool]]:
    if got is None:
        raise Wrong("blind_pairs(ours, theirs, generator) is None; does your function end in return?")
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong("blind_pairs must return two things, (pairs, key): what is shown, and apart from it, the key.")
    pairs, key = got
    try:
        pairs, key = list(pairs), [bool(each) for each in key]
    except (TypeError, RuntimeError, ValueError):
        raise Wrong("pairs and key must be lists, with one entry for each pair; the key's are True or False.") from None
    if len(pairs) != _CLIPS or len(key) != _CLIPS:
        raise Wrong(f"Of {_CLIPS} captions there are {len(pairs)} pairs and a key of {len(key)}; it must be "
                    f"{_CLIPS} each.")
    return pairs, key


def _checked(pairs: list, key: list[bool]) -> list[bool]:
    for i, (pair, left) in enumerate(zip(pairs, key)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(x, Tensor) for x in pair):
            raise Wrong(f"pair {i} is not (left, right), two clips and nothing else: whatever else stands there may "
                        f"give the key away.")
        first, second = (x.reshape(-1)[0].item() for x in pair)
        if first + second or abs(first) != i + 1:
            raise Wrong(f"pair {i} does not hold the two clips of caption {i}; a pair compares clips of one caption.")
        if left != (first > 0):
            raise Wrong(f"The key says of pair {i} that ours stands on the {'left' if left else 'right'}; it does not.")
    return key
