"""The vocabulary of the shapes world, and what a scene is: words and numbers, no pixels.

A `Scene` is in units of the frame and of the clip, so it can be rendered at any resolution and with any number of
frames.
"""

from dataclasses import dataclass

SHAPES = ("circle", "triangle", "cross", "ring", "star", "bar")
COLOURS = {  # RGB in 0..1
    "red": (0.88, 0.10, 0.16), "orange": (1.00, 0.53, 0.00), "yellow": (0.98, 0.92, 0.16),
    "green": (0.12, 0.73, 0.24), "cyan": (0.20, 0.88, 0.92), "blue": (0.16, 0.37, 1.00),
    "purple": (0.75, 0.18, 0.86), "white": (0.98, 0.98, 0.98),
}
BACKGROUNDS = {
    "black": (0.03, 0.03, 0.04), "grey": (0.44, 0.44, 0.455), "navy": (0.07, 0.10, 0.43), "brown": (0.39, 0.235, 0.10),
}
DIRECTIONS = {  # (x, y); y points down, as rows of pixels do
    "moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1),
    "moves up and left": (-1, -1), "moves up and right": (1, -1),
    "moves down and left": (-1, 1), "moves down and right": (1, 1),
}
MOTIONS = (*DIRECTIONS, "bounces", "grows", "shrinks", "moves in a circle", "stays still")


@dataclass(frozen=True)
class ShapeObject:
    """One moving thing. Lengths are in frame sizes: x in widths, y in heights, radius in the shorter of the two."""

    shape: str
    colour: str
    motion: str
    x: float  # where the centre is in the first frame
    y: float
    radius: float  # in the first frame
    speed: float = 0.0  # change over the clip: distance (diagonal: on each axis), hop height, orbit width, radius
    phase: float = 0.0  # where on its circle it starts, in radians
    size: str | None = None  # "small" or "large" if a caption may mention it

    def __post_init__(self):
        for field, valid in (("shape", SHAPES), ("colour", tuple(COLOURS)), ("motion", MOTIONS)):
            if getattr(self, field) not in valid:
                raise ValueError(f"{field} is {getattr(self, field)!r}; it must be one of {', '.join(valid)}")


@dataclass(frozen=True)
class Scene:
    """Objects before a plain background: one or two where a caption describes them."""

    objects: tuple[ShapeObject, ...]
    background: str

    def __post_init__(self):
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background is {self.background!r}; it must be one of {', '.join(BACKGROUNDS)}")
        if not self.objects:
            raise ValueError("a scene has 0 objects; it must have at least one")
