"""The oracle of the shapes world: reads colour, shape, motion, background and count back from the pixels alone.

It inverts the drawing. The background is the palette colour of the frame's border; an object is whatever differs from
it, its colour the palette colour in whose direction it differs, its motion the model that its centre and area follow,
its shape the one that overlaps most when drawn with the same centre and area.

The rules and the tolerances below were fixed on true clips (sharp, blurred, noisy) before any generated clip was seen.
They must never be changed to raise a score. For an ambiguous clip the answer is None, which matches nothing.
"""

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from minicogvx.data.world.captions import Request
from minicogvx.data.world.drawing import coverage
from minicogvx.data.world.scenes import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, UNIT_AREA, Scene, hop

# Colours, in units where black to white is 1 per channel.
_BACKGROUND_TOLERANCE = 0.15  # distance from the palette's background
_FOREGROUND = 0.20  # a pixel this far from the background belongs to an object
_RUNNER_UP = 0.75  # a palette colour is read only if it is this much closer than the next one
_COLOUR_ANGLE = math.radians(20)  # between the object's difference from the background and the palette's
_COLOUR_STRENGTH = 0.5  # the least length of that difference, as a share of the palette's
_AGREED = 0.6  # share of the object's pixels that vote for the same palette colour
_SAME_STRENGTH = (0.65, 1.15)  # within these shares of the palette's length it counts as the palette's
# Objects.
_LEAST_SHARE = 0.08  # a second colour below this share of all foreground is noise
_LEAST_RADIUS = 0.04  # of a disc of the same area, in frame sizes: below it a frame shows no object
_SEEN = 0.8  # share of the frames that must show the object
_TOO_FULL = 0.5  # share of the frame above which the foreground is no object
# Shapes.
_BLURS = 3  # candidates are drawn sharp, and blurred (1, 2, 1) / 4 once and twice
_OVERLAP = 0.60  # soft intersection over union with the best candidate, over all frames
_NO_OBJECT = 0.35  # an overlap below this: something is there that cannot be counted
_OVERLAP_LEAD = 0.03  # over the second candidate
_SIZE_SPLIT = 0.195  # radius that separates small from large
# Motions.
_GROWTH = math.log(1.5)  # of the radius in a clip
_NO_GROWTH = math.log(1.3)
_STILL = 0.02  # root mean square distance from the mean position, in frame sizes
_MOVED = 0.06
_UNEXPLAINED = 0.15  # share of the path's variance that a model may leave
_DIRECTION_ANGLE = math.radians(15)  # of the 22.5 degrees between neighbours


@dataclass(frozen=True)
class ObjectReading:
    """The properties of one object; None if ambiguous."""

    shape: str | None
    colour: str | None
    motion: str | None
    size: str | None  # "small" or "large"; of an object that grows or shrinks: None


@dataclass(frozen=True)
class Reading:
    """The content of a clip."""

    background: str | None
    objects: tuple[ObjectReading, ...]
    count: int | None  # None: something is not an object of this world
    confidence: float | None  # the worst object's overlap with its redrawn shape, 0..1; None without objects


def read(video: Float[Tensor, "t h w 3"]) -> Reading:
    """Read a clip with values in 0..1. Raises ValueError for another shape or a value that is not finite."""
    if video.ndim != 4 or video.shape[-1] != 3:
        raise ValueError(f"the video has shape {tuple(video.shape)}; it must be (frames, height, width, 3)")
    pixels = video.detach().float().cpu().numpy()
    if not np.isfinite(pixels).all():
        raise ValueError("the video holds values that are not finite; all must be numbers in 0..1")
    backdrop = _border_median(pixels)
    background = _nearest(backdrop, BACKGROUNDS, _BACKGROUND_TOLERANCE)
    difference = pixels - backdrop
    solid = (difference * difference).sum(-1) > _FOREGROUND**2
    if solid.mean() > _TOO_FULL:
        return Reading(background, (), None, None)
    found = _segment(difference, solid, backdrop) if solid.any() else []
    if not found:
        return Reading(background, (), 0, None)
    objects, overlaps = zip(*(_read_object(mask, colour) for mask, colour in found))
    count = len(objects) if min(overlaps) >= _NO_OBJECT else None
    return Reading(background, objects, count, round(float(min(overlaps)), 3))


def matches(reading: Reading, wanted: Scene | Request) -> dict[str, bool]:
    """Whether the reading agrees with a scene or a caption, in colour, shape, motion, background, count, and all.

    What the caption does not mention counts as right. Two objects are matched in the order that fits better.
    """
    asked = wanted.objects
    seen = list(reading.objects) + [None] * (len(asked) - len(reading.objects))
    best = {"colour": True, "shape": True, "motion": True}
    if asked:
        best = max((_compare(order, asked) for order in permutations(seen, len(asked))), key=lambda d: sum(d.values()))
    best["background"] = wanted.background in (None, reading.background)
    best["count"] = not asked or reading.count == len(asked)
    return best | {"all": all(best.values())}


def _compare(seen: tuple, asked: tuple) -> dict[str, bool]:
    return {key: all(getattr(b, key) in (None, getattr(a, key, "")) for a, b in zip(seen, asked))
            for key in ("colour", "shape", "motion")}


# ---- background and objects


def _border_median(pixels: np.ndarray) -> np.ndarray:
    rim = [pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1]]
    return np.median(np.concatenate([part.reshape(-1, 3) for part in rim]), axis=0)


def _nearest(colour: np.ndarray, palette: dict, tolerance: float) -> str | None:
    distances = sorted((float(np.linalg.norm(colour - value)), name) for name, value in palette.items())
    (first, name), (second, _) = distances[:2]
    return name if first < tolerance and first < _RUNNER_UP * second else None


def _segment(difference: np.ndarray, solid: np.ndarray, backdrop: np.ndarray) -> list[tuple[np.ndarray, str | None]]:
    """For each object its soft mask (t, h, w), about 0..1, and its colour.

    `difference` (t, h, w, 3) from the background, `solid` (t, h, w) where it is strong.
    """
    rays = np.asarray(list(COLOURS.values()), np.float32) - backdrop
    lengths = np.linalg.norm(rays, axis=1)
    rays /= lengths[:, None]
    vectors = difference[solid]
    votes = np.argmax(vectors @ rays.T, axis=1)
    weight = np.bincount(votes, np.linalg.norm(vectors, axis=1) / lengths[votes], minlength=len(rays))
    kept = [int(c) for c in np.argsort(-weight) if weight[c] > _LEAST_SHARE * weight.sum()]
    found = []
    groups = _merge([np.flatnonzero(votes == colour) for colour in kept], solid)
    for members in groups:
        part = np.zeros(solid.shape, bool)
        part.reshape(-1)[np.flatnonzero(solid)[members]] = True
        full = _full_strength(vectors[members], rays, lengths)
        mask = np.zeros(solid.shape, np.float32)
        near = _dilate(part)
        if len(groups) > 1:
            near &= ~_dilate(solid & ~part) | part  # leave out the neighbour's edge
        mask[near] = np.clip(difference[near] @ (full / (full @ full)), 0, 1.2)
        if mask.sum() > 0.5 * math.pi * _LEAST_RADIUS**2 * mask.size:
            found.append((mask, _colour(full, votes[members], rays, lengths)))
    return found


def _merge(colours: list[np.ndarray], solid: np.ndarray) -> list[np.ndarray]:
    """Merge colours, given as indices of solid pixels, that have the same centres: they are one object."""
    time, row, column = np.nonzero(solid)
    groups: list[tuple[np.ndarray, np.ndarray]] = []  # the pixels; per frame row, column and radius
    for members in colours:
        mass = np.bincount(time[members], minlength=len(solid))
        sums = [np.bincount(time[members], axis[members], minlength=len(solid)) for axis in (row, column)]
        track = np.stack([*(total / np.maximum(mass, 1) for total in sums), np.sqrt(mass / math.pi)])
        for i, (others, track2) in enumerate(groups):
            both = (track[2] > 0) & (track2[2] > 0)
            gap = np.hypot(*(track[:2] - track2[:2])) / np.maximum(np.maximum(track[2], track2[2]), 1)
            if both.any() and gap[both].mean() < 1:
                groups[i] = (np.concatenate([others, members]), track2)
                break
        else:
            groups.append((members, track))
    return [members for members, _ in groups]


def _full_strength(vectors: np.ndarray, rays: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The difference of fully covered pixels, from all pixels of an object.

    Blur dims the peak of a thin shape and preserves its mass, so a colour near the palette's counts as the palette's.
    """
    direction = (vectors * (vectors * vectors).sum(1, keepdims=True)).mean(0)
    direction /= np.linalg.norm(direction)
    strength = float(np.quantile(vectors @ direction, 0.9))
    cosines = rays @ direction
    palette = float(cosines.max() * lengths[cosines.argmax()])
    return direction * (palette if _SAME_STRENGTH[0] < strength / palette < _SAME_STRENGTH[1] else strength)


def _colour(full: np.ndarray, votes: np.ndarray, rays: np.ndarray, lengths: np.ndarray) -> str | None:
    """The palette's colour in whose direction an object differs from the background, if most of its pixels agree."""
    strength = float(np.linalg.norm(full))
    angles = np.arccos(np.clip(rays @ full / strength, -1, 1))
    first, second = np.argsort(angles)[:2]
    clear = angles[first] < min(_COLOUR_ANGLE, _RUNNER_UP * angles[second])
    agreed = (votes == first).mean() > _AGREED and strength > _COLOUR_STRENGTH * lengths[first]
    return list(COLOURS)[first] if clear and agreed else None


def _dilate(mask: np.ndarray) -> np.ndarray:
    """Grow a mask by one pixel in each of eight directions."""
    for axis in (1, 2):
        out, (before, after) = mask.copy(), _shifted(axis)
        out[after] |= mask[before]
        out[before] |= mask[after]
        mask = out
    return mask


def _shifted(axis: int) -> tuple[tuple, tuple]:
    """Indices of all but the last, and of all but the first, along an axis of three."""
    before, after = [slice(None)] * 3, [slice(None)] * 3
    before[axis], after[axis] = slice(None, -1), slice(1, None)
    return tuple(before), tuple(after)


# ---- one object


def _read_object(mask: np.ndarray, colour: str | None) -> tuple[ObjectReading, float]:
    frames, height, width = mask.shape
    unit = min(height, width)
    area = mask.sum((1, 2))
    seen = np.flatnonzero(area > math.pi * (_LEAST_RADIUS * unit) ** 2)
    if len(seen) < max(1, _SEEN * frames):
        return ObjectReading(None, colour, None, None), 0.0
    area = area[seen]
    y = (mask[seen].sum(2) @ (np.arange(height) + 0.5)) / area
    x = (mask[seen].sum(1) @ (np.arange(width) + 0.5)) / area
    shape, overlap = _shape(mask[seen], x, y, area)
    u = seen / max(frames - 1, 1)
    motion = _motion(u, x / width, y / height, np.sqrt(area))
    size = None
    if shape and motion not in ("grows", "shrinks", None):
        radius = math.sqrt(float(area.mean()) / UNIT_AREA[shape]) / unit
        size = "small" if radius < _SIZE_SPLIT else "large"
    return ObjectReading(shape, colour, motion, size), overlap


def _shape(mask: np.ndarray, x: np.ndarray, y: np.ndarray, area: np.ndarray) -> tuple[str | None, float]:
    """The shape that overlaps most when drawn with each frame's centre and area, and its overlap."""
    half = int(1.6 * math.sqrt(float(area.max()) / min(UNIT_AREA.values()))) + 2
    padded = np.pad(mask, ((0, 0), (half, half), (half, half)))
    patch = np.stack([padded[i, int(b):int(b) + 2 * half + 1, int(a):int(a) + 2 * half + 1]
                      for i, (a, b) in enumerate(zip(x, y))])
    steps = np.arange(-half, half + 1, dtype=np.float32) + 0.5
    dx = steps[None, None, :] - (x % 1).astype(np.float32)[:, None, None]
    dy = steps[None, :, None] - (y % 1).astype(np.float32)[:, None, None]
    overlaps = {}
    for shape in SHAPES:
        drawn = coverage(shape, dx, dy, np.sqrt(area / UNIT_AREA[shape]).astype(np.float32)[:, None, None])
        tries = [drawn := _blur(drawn) if i else drawn for i in range(_BLURS)]
        common = [float(np.minimum(patch, candidate).sum()) for candidate in tries]
        overlaps[shape] = max(c / (float(patch.sum() + d.sum()) - c) for c, d in zip(common, tries))
    (first, name), (second, _) = sorted(((v, k) for k, v in overlaps.items()), reverse=True)[:2]
    return (name if first > _OVERLAP and first - second > _OVERLAP_LEAD else None), first


def _blur(frames: np.ndarray) -> np.ndarray:
    """(1, 2, 1) / 4 along rows and columns."""
    for axis in (1, 2):
        out, (before, after) = 0.5 * frames, _shifted(axis)
        out[after] += 0.25 * frames[before]
        out[before] += 0.25 * frames[after]
        frames = out
    return frames


def _motion(u: np.ndarray, x: np.ndarray, y: np.ndarray, size: np.ndarray) -> str | None:
    """The motion whose path, with fitted start, length and phase, explains the centres and sizes; u in 0..1."""
    if len(u) < 5:
        return None
    path = np.stack([x, y], 1)
    spread = math.sqrt(float(path.var(0).sum()))
    growth = float(np.polyfit(u, np.log(size), 1)[0])
    if abs(growth) > _GROWTH:
        return ("grows" if growth > 0 else "shrinks") if spread < _MOVED else None
    if spread < _STILL:
        return "stays still" if abs(growth) < _NO_GROWTH else None
    if spread < _MOVED or abs(growth) > _NO_GROWTH:
        return None
    models = {"line": [u], "bounces": [hop(u)], "moves in a circle": [np.cos(2 * np.pi * u), np.sin(2 * np.pi * u)]}
    (rest, step), name = min(((_fit(path, basis), name) for name, basis in models.items()), key=lambda fit: fit[0][0])
    if rest > _UNEXPLAINED * spread**2:
        return None
    if name == "line":
        return _direction(step[0])
    if name == "bounces":
        return name if -step[0, 1] > abs(step[0, 0]) / math.tan(_DIRECTION_ANGLE) else None
    (a, b), (c, d) = step  # x = a cos + c sin, y = b cos + d sin: a circle has d = +-a, c = -+b
    round_ = max(math.hypot(a + d, c - b), math.hypot(a - d, c + b)) / 2
    return name if round_**2 > 0.8 * float((step**2).sum()) / 2 else None


def _fit(path: np.ndarray, basis: list[np.ndarray]) -> tuple[float, np.ndarray]:
    """Least squares of a path on basis functions and a constant: mean squared residual, and the coefficients."""
    design = np.stack([*basis, np.ones(len(path))], 1)
    coefficients = np.linalg.lstsq(design, path, rcond=None)[0]
    return float(((path - design @ coefficients) ** 2).sum(1).mean()), coefficients[:-1]


def _direction(step: np.ndarray) -> str | None:
    cosines = {name: float(step @ way) / math.hypot(*step) / math.hypot(*way) for name, way in DIRECTIONS.items()}
    best = max(cosines, key=cosines.get)
    return best if cosines[best] > math.cos(_DIRECTION_ANGLE) else None
