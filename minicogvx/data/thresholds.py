"""What curation keeps, as plain numbers: the command reads them before anything heavy is imported."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class CurationThresholds:
    """What a shot must have to be kept. Only `min_aesthetic` was published (Table 6); the others are ours."""

    fps: float = 8.0  # frames a second that are looked at; a cut is found to within one of them
    # The next and `cut_ratio` are about what PySceneDetect's adaptive detector takes (15 of 255, and 3).
    cut_content: float = 0.06  # a cut changes the colour channels by at least this on average, of 0..1 ...
    cut_histogram: float = 0.5  # ... and either this share of the colour histogram
    cut_ratio: float = 3.0  # ... or is this many times what changes between the frames around it
    min_seconds: float = 1.0
    max_black: float = 0.2  # share of black frames
    # Frozen films have 0; the slowest of 14 clips of the shapes world had 0.006, three seconds of a real film 0.06.
    min_motion: float = 0.005  # shorter sides that a pixel moves in a second, on average over the frame
    # The same film has 0.13; blurred by 1, 2 and 4 of its 180 pixels 0.037, 0.018 and 0.013.
    min_sharpness: float = 0.05  # of the brightness' contrast, what changes from one pixel to the next
    min_aesthetic: float = 4.5

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            if not 0 <= value < float("inf") or (each.name == "fps" and not 0 < value <= 240):
                right = "above 0, at most 240" if each.name == "fps" else "0 or more"
                raise ValueError(f"{each.name} is {value}; it must be a number {right}")
