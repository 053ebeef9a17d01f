"""Scenes to pixels: the shapes world rendered at any size and length, anti-aliased. Nothing is downloaded."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.data.world.scenes import (
    BACKGROUNDS,
    BAR,
    COLOURS,
    CROSS_ARM,
    EXTENT,
    RING_HOLE,
    STAR,
    STAR_INNER,
    TRIANGLE,
    Scene,
    trajectory,
)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, r) -> np.ndarray:
    """Distance to the outline, negative inside; x and y from the centre, r the radius, all in the same unit.

    Exact near straight and round outlines, a lower bound outside corners: enough for anti-aliasing.
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - r
    if shape == "ring":
        middle, half = (1 + RING_HOLE) / 2, (1 - RING_HOLE) / 2
        return np.abs(np.sqrt(x * x + y * y) - middle * r) - half * r
    x = np.abs(x)
    if shape == "triangle":  # three half-planes at the distance of the inscribed circle
        return np.maximum(y, 0.8660254 * x - 0.5 * y) - 0.5 * TRIANGLE * r
    if shape == "bar":
        return np.maximum(x - BAR[0] * r, np.abs(y) - BAR[1] * r)
    if shape == "cross":
        y, arm = np.abs(y), CROSS_ARM * r
        return np.maximum(np.maximum(x, y) - r, np.minimum(x, y) - arm)
    return _star_distance(x, -y, STAR * r)


def _star_distance(x: np.ndarray, y: np.ndarray, r) -> np.ndarray:
    """Five points, the first one up. Mirrors fold the plane onto one half-point, whose only edge is a line."""
    for turn in (0.2, 0.4):  # mirror lines between the points, as shares of pi from the upward axis
        a, b = math.sin(turn * math.pi), math.cos(turn * math.pi)
        for sign in (1, -1):
            fold = 2 * np.maximum(sign * b * x - a * y, 0.0)
            x, y = x - sign * b * fold, y + a * fold
    x = np.abs(x)
    inner_x, inner_y = STAR_INNER * math.sin(0.2 * math.pi), STAR_INNER * math.cos(0.2 * math.pi)
    normal_x, normal_y = 1 - inner_y, inner_x  # perpendicular to the edge from (0, 1) to the inner corner
    length = math.hypot(normal_x, normal_y)
    return (normal_x * x + normal_y * (y - r)) / length


def coverage(shape: str, x: np.ndarray, y: np.ndarray, r, softness: float = 1.0) -> np.ndarray:
    """Share of each pixel that the shape covers, 0..1; all lengths in pixels, `softness` the width of the edge."""
    return np.clip(0.5 - signed_distance(shape, x, y, r) / softness, 0.0, 1.0)


def _draw(scene: Scene, out: np.ndarray) -> None:
    """Fill `out` (t, h, w, 3): the background plus each object's coverage times its difference in colour."""
    frames, height, width, _ = out.shape
    u = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
    background = np.asarray(BACKGROUNDS[scene.background], np.float32)
    layers = np.zeros((1 + len(scene.objects), frames, height, width), np.float32)
    layers[0] = 1
    for layer, thing in zip(layers[1:], scene.objects):
        x, y, r = (v.astype(np.float32) for v in trajectory(thing, u))
        x, y, r = x * width, y * height, r * min(height, width)
        half_width, half_height = (math.ceil(share * float(r.max())) + 2 for share in EXTENT[thing.shape])
        left, top = x.astype(int) - half_width, y.astype(int) - half_height  # of a window around the object
        columns = left[:, None] + np.arange(2 * half_width + 1)
        rows = top[:, None] + np.arange(2 * half_height + 1)
        dx, dy = columns.astype(np.float32) + 0.5 - x[:, None], rows.astype(np.float32) + 0.5 - y[:, None]
        covered = coverage(thing.shape, dx[:, None, :], dy[:, :, None], r[:, None, None])
        for on, window, row, column in zip(layer, covered, top, left):  # the part of each window that is in the frame
            part = window[max(0, -row):max(0, height - row), max(0, -column):max(0, width - column)]
            row, column = max(0, row), max(0, column)
            on[row:row + part.shape[0], column:column + part.shape[1]] = part
    free = np.ones_like(layers[0])  # share of each pixel that no object further up covers; the last lies on top
    for layer in layers[:0:-1]:
        layer *= free
        free -= layer
    colours = np.stack([background, *(np.asarray(COLOURS[thing.colour], np.float32) - background
                                      for thing in scene.objects)])
    np.matmul(layers.reshape(len(layers), -1).T, colours, out=out.reshape(-1, 3))


def render_batch(scenes: list[Scene], num_frames: int, height: int, width: int) -> Float[Tensor, "b t h w 3"]:
    """Draw scenes as float32 clips in 0..1, anti-aliased. Raises ValueError for a size below one."""
    for name, value in (("num_frames", num_frames), ("height", height), ("width", width)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    out = np.empty((len(scenes), num_frames, height, width, 3), np.float32)
    for scene, clip in zip(scenes, out):
        _draw(scene, clip)
    return torch.from_numpy(out)


def render(scene: Scene, num_frames: int, height: int, width: int) -> Float[Tensor, "t h w 3"]:
    """Draw one scene as a float32 clip in 0..1."""
    return render_batch([scene], num_frames, height, width)[0]
