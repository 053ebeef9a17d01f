"""How much a caption says (paper 3.1 trains on dense captions): which scenes it fits, and what it leaves open."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minicogvx.data.world.captions import caption, parse_caption
from minicogvx.data.world.vocabulary import Scene

_PLACE = re.compile(r"(?:near|at) the ((?:top|bottom|left|right|middle)(?: left| right)?)")


@dataclass(frozen=True)
class LeftOpen:
    """What captions of one style leave open about the scenes of a collection, each of one object."""

    meanings: int  # different ones among the captions
    scenes_that_fit: float  # how many scenes of the collection a caption fits, on average
    error: dict[str, float]  # of the best guess of start and radius, root mean square in frame sizes
    measured_on: int  # scenes that share their meaning with another; one alone says nothing about an error


def meaning(text: str) -> tuple[str | None, ...]:
    """What a caption of one object says: shape, colour, motion, size, background, place; None for what it does not."""
    request, place = parse_caption(text), _PLACE.search(text)
    thing = request.objects[0]
    return thing.shape, thing.colour, thing.motion, thing.size, request.background, place and place[1]


def left_open(scenes: Sequence[Scene], style: str | None, seed: int = 0) -> LeftOpen:
    """What `style`, "short" or "dense", leaves open of these scenes; with None there is no caption at all.

    Scenes have one object each; `seed` chooses the phrasings. The best guess for a caption is the mean over all scenes
    with its meaning. Its squared error is that of a new scene of the same meaning: the variance with n - 1 below.
    Raises ValueError if no two scenes share a meaning.
    """
    words = random.Random(seed)
    said = [meaning(caption(scene, words, style)) if style else () for scene in scenes]
    whole = [meaning(caption(scene, words, "dense")) for scene in scenes]  # all that can be said of each
    start = torch.tensor([[scene.objects[0].x, scene.objects[0].y, scene.objects[0].radius] for scene in scenes])
    groups: dict[tuple, list[int]] = defaultdict(list)
    for i, one in enumerate(said):
        groups[one].append(i)
    shared = [group for group in groups.values() if len(group) > 1]
    if not shared:
        raise ValueError(f"no two of these {len(scenes)} scenes share a meaning; give more scenes")
    measured_on = sum(map(len, shared))
    squares = sum(len(group) * start[group].var(dim=0) for group in shared) / measured_on
    error = dict(zip(("left to right", "top to bottom", "radius"), squares.sqrt().tolist()))
    fits = sum(len(group) * fitting for group, fitting in zip(groups.values(), _fitting(groups, whole)))
    return LeftOpen(len(groups), fits / len(scenes), error, measured_on)


def _fitting(meanings, whole: list[tuple]) -> list[int]:
    """For each meaning the number of scenes of which all that it says is true."""
    counts: dict[tuple, Counter] = {}  # of scenes, by the places of a meaning that say something
    found = []
    for one in meanings:
        places = tuple(i for i, word in enumerate(one) if word)
        if places not in counts:
            counts[places] = Counter(tuple(scene[i] for i in places) for scene in whole)
        found.append(counts[places][tuple(one[i] for i in places)])
    return found
