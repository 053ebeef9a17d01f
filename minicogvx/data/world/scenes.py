"""Random scenes of the shapes world, and how their objects move; drawing.py renders them.

Whole combinations of shape, colour and motion (every green triangle that moves up, for example) are held out of the
training split, so a model that generates them has learnt to compose words, not memorised clips.
"""

import math
import random
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from minicogvx.data.world.vocabulary import BACKGROUNDS, COLOURS, DIRECTIONS, MOTIONS, SHAPES, Scene, ShapeObject

WORDS = {"shape": SHAPES, "colour": tuple(COLOURS), "motion": MOTIONS, "background": tuple(BACKGROUNDS)}

# Proportions in units of an object's radius, chosen such that the six look equally large.
TRIANGLE, CROSS_ARM, RING_HOLE, STAR, STAR_INNER, BAR = 1.25, 0.34, 0.52, 1.22, 0.42, (1.25, 0.42)
UNIT_AREA = {  # area at radius 1
    "circle": math.pi, "ring": math.pi * (1 - RING_HOLE**2), "bar": 4 * BAR[0] * BAR[1],
    "triangle": 0.75 * math.sqrt(3) * TRIANGLE**2, "cross": 8 * CROSS_ARM - 4 * CROSS_ARM**2,
    "star": 5 * STAR**2 * STAR_INNER * math.sin(math.pi / 5),
}
EXTENT = {  # half width and half height of the bounding box at radius 1
    "circle": (1.0, 1.0), "ring": (1.0, 1.0), "cross": (1.0, 1.0), "bar": BAR, "star": (1.17, STAR),
    "triangle": (1.09, TRIANGLE),
}
CIRCLE = "moves in a circle"
_MARGIN = 0.01  # between a shape and the frame's edge
_GAP = 0.05  # between two objects, at every moment
_CLOCK = np.linspace(0.0, 1.0, 33)  # moments at which the sampler checks that nothing leaves the frame or collides


# ---- motions


def hop(u: np.ndarray) -> np.ndarray:
    """Height, 0..1, of a ball that hops twice in a clip: two parabolas."""
    s = (2 * u) % 1.0
    return 4 * s * (1 - s)


def displacement(motion: str, u: np.ndarray, speed, phase=0.0) -> tuple[np.ndarray, np.ndarray]:
    """The centre's offset (dx, dy) from its start at clip time u in 0..1, broadcast over `speed` and `phase`."""
    if motion in DIRECTIONS:
        dx, dy = DIRECTIONS[motion]
        return dx * speed * u, dy * speed * u
    if motion == "bounces":
        return 0 * speed * u, -speed * hop(u)
    if motion == CIRCLE:  # once around, clockwise
        angle = phase + 2 * math.pi * u
        return speed / 2 * (np.cos(angle) - np.cos(phase)), speed / 2 * (np.sin(angle) - np.sin(phase))
    return 0 * speed * u, 0 * speed * u


def trajectory(thing: ShapeObject, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre x, centre y and radius at clip times u in 0..1, in frame sizes."""
    dx, dy = displacement(thing.motion, u, thing.speed, thing.phase)
    growth = {"grows": thing.speed, "shrinks": -thing.speed}.get(thing.motion, 0.0)
    return thing.x + dx, thing.y + dy, thing.radius + growth * u


# ---- sampling


def is_held_out(shape: str, colour: str, motion: str) -> bool:
    """Whether training never shows this combination: one in eight, spread as a Latin square.

    Every shape, colour and motion, and every pair of them, still occurs in training; green triangles that move up do
    not.
    """
    return (3 * SHAPES.index(shape) + 5 * list(COLOURS).index(colour) + MOTIONS.index(motion)) % 8 == 4


TRIPLES = tuple(product(SHAPES, COLOURS, MOTIONS))
SPLITS = {
    "train": tuple(triple for triple in TRIPLES if not is_held_out(*triple)),
    "held_out": tuple(triple for triple in TRIPLES if is_held_out(*triple)),
}


def sample_scenes(n: int, seed: int, split: str = "train", two_objects: float = 0.15,
                  choices: Mapping[str, Sequence[str]] | None = None, circling: float | None = None) -> list[Scene]:
    """n random scenes, determined by `seed`.

    `two_objects` is the share with two objects, of different colours, which never touch. In `split="held_out"` one
    object is a held-out combination, in "train" none is. `choices`: a smaller world, of these words only, such as
    {"shape": ("circle", "star"), "motion": ("moves left",)}; of a kind that it lacks, all occur. `circling`: the share
    of scenes with one object in which it moves in a circle; None: as often as it makes any other motion. Raises
    ValueError for an unknown split, a share not in 0..1, unknown kinds or words, and choices that leave no scene.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be 'train' or 'held_out'")
    for name, share in {"two_objects": two_objects, "circling": circling or 0}.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}; it must lie in 0..1")
    words = _checked_words(choices or {})
    own, train = (_triples(name, words) for name in (split, "train"))
    if not own or two_objects and (not train or len({colour for _, colour, _ in own + train}) < 2):
        raise ValueError(f"choices is {dict(choices or {})}; with split={split!r} and two_objects={two_objects} it "
                         f"leaves no scene")
    rng, backdrops = random.Random(f"{split} {seed}"), words["background"]
    rounds = [triple for triple in own if triple[2] == CIRCLE]
    others = [triple for triple in own if triple[2] != CIRCLE]
    if circling is not None and not (rounds and others):
        raise ValueError(f"choices is {dict(choices or {})}; with circling={circling} it must have scenes with "
                         f"{CIRCLE!r} and without")

    def single() -> Scene:
        if circling is None:
            return _one(rng, own, backdrops)
        return _one(rng, rounds if rng.random() < circling else others, backdrops)

    return [_two(rng, own, train, backdrops) if rng.random() < two_objects else single() for _ in range(n)]


def _checked_words(choices: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The words of each kind, in the order of the vocabulary."""
    for kind, words in choices.items():
        if kind not in WORDS:
            raise ValueError(f"choices has {kind!r}; the kinds of words are {', '.join(WORDS)}")
        if isinstance(words, str) or not words or not set(words) <= set(WORDS[kind]):
            raise ValueError(f"choices has {words!r} as {kind}; it must be a list of one or more of "
                             f"{', '.join(WORDS[kind])}")
    return {kind: tuple(word for word in every if word in choices.get(kind, every)) for kind, every in WORDS.items()}


def _triples(split: str, words: Mapping[str, Sequence[str]]) -> tuple[tuple[str, str, str], ...]:
    kinds = words["shape"], words["colour"], words["motion"]
    return tuple(triple for triple in SPLITS[split] if all(word in kind for word, kind in zip(triple, kinds)))


def crowded_scenes(n: int, seed: int, scenes: int) -> list[Scene]:
    """n scenes with the objects of so many scenes of the training split each, in front of the first one's background.

    Objects may cover one another, so no caption describes them. But a VAE learns from edges and motion, and in a scene
    of one object nine pixels in ten are background.
    """
    drawn = sample_scenes(n * scenes, seed)
    groups = [drawn[first:first + scenes] for first in range(0, n * scenes, scenes)]
    return [Scene(tuple(thing for scene in group for thing in scene.objects), group[0].background)
            for group in groups]


def _one(rng: random.Random, triples: Sequence[tuple], backdrops: Sequence[str]) -> Scene:
    shape, colour, motion = rng.choice(triples)
    size = None if motion in ("grows", "shrinks") else rng.choice(("small", "large"))
    radii = {"small": (0.165, 0.18), "large": (0.21, 0.235), None: (0.09, 0.11)}[size]
    thing = _place(rng, shape, colour, motion, radii, grown=(0.24, 0.27), speeds=(0.32, 0.45), size=size)
    return Scene((thing,), rng.choice(backdrops))


def _two(rng: random.Random, own: Sequence[tuple], train: Sequence[tuple], backdrops: Sequence[str]) -> Scene:
    background = rng.choice(backdrops)
    radii = {True: (0.08, 0.09), False: (0.125, 0.14)}
    while True:
        triples = [rng.choice(own), rng.choice(train)]
        if triples[0][1] == triples[1][1]:
            continue
        rng.shuffle(triples)
        for _ in range(40):  # then with other motions: some pairs hardly fit into one frame
            pair = [_place(rng, *triple, radii=radii[triple[2] in ("grows", "shrinks")], grown=(0.17, 0.185),
                           speeds=(0.30, 0.36)) for triple in triples]
            if _apart(*pair):
                return Scene(tuple(pair), background)


def _place(rng: random.Random, shape: str, colour: str, motion: str, radii: tuple, grown: tuple, speeds: tuple,
           size: str | None = None) -> ShapeObject:
    """Random parameters of one object such that it stays inside the frame."""
    radius, speed, phase, largest = rng.uniform(*radii), 0.0, 0.0, 0.0
    if motion in ("grows", "shrinks"):
        largest = rng.uniform(*grown)
        speed = largest - radius
        radius = radius if motion == "grows" else largest
    extent = [max(radius, largest) * share + _MARGIN for share in EXTENT[shape]]
    if motion not in ("grows", "shrinks", "stays still"):
        speed = rng.uniform(speeds[0], min(speeds[1], 1 - 2 * max(extent)))
    if motion == CIRCLE:
        phase = rng.uniform(0, 2 * math.pi)
    start = [rng.uniform(reach - float(d.min()), 1 - reach - float(d.max()))
             for reach, d in zip(extent, displacement(motion, _CLOCK, speed, phase))]
    return ShapeObject(shape, colour, motion, start[0], start[1], radius, speed, phase, size)


def _apart(first: ShapeObject, second: ShapeObject) -> bool:
    """Whether the bounding boxes keep a gap at every moment."""
    (x1, y1, r1), (x2, y2, r2) = trajectory(first, _CLOCK), trajectory(second, _CLOCK)
    (w1, h1), (w2, h2) = EXTENT[first.shape], EXTENT[second.shape]
    beside = np.abs(x1 - x2) > w1 * r1 + w2 * r2 + _GAP
    above = np.abs(y1 - y2) > h1 * r1 + h2 * r2 + _GAP
    return bool((beside | above).all())
