"""The thresholds of curation, in a module without heavy imports, for the command's help."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class CurationThresholds:
    """What a shot must have to be kept. Only `min_aesthetic` was published (Table 6); the others are ours."""

    fps: float = 8.0  # frames per second that are examined; cuts are located to one of these frames
    # This and `cut_ratio` are close to the defaults of PySceneDetect's adaptive detector (15 of 255, and 3).
    cut_content: float = 0.06  # a cut changes the colour channels (0..1) by at least this on average ...
    cut_histogram: float = 0.5  # ... and either this share of the colour histogram
    cut_ratio: float = 3.0  # ... or this many times the change between the frames around it
    min_seconds: float = 1.0
    max_black: float = 0.2  # share of black frames
    # Frozen videos have 0; the slowest of 14 clips of the shapes world had 0.006, three seconds of a real video 0.06.
    min_motion: float = 0.005  # mean motion over the frame, in shorter sides per second
    # The same video has 0.13; blurred by 1, 2 and 4 of its 180 pixels 0.037, 0.018 and 0.013.
    min_sharpness: float = 0.05  # change of brightness from pixel to pixel, relative to its contrast
    min_aesthetic: float = 4.5

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            if not 0 <= value < float("inf") or (each.name == "fps" and not 0 < value <= 240):
                right = "above 0, at most 240" if each.name == "fps" else "0 or more"
                raise ValueError(f"{each.name} is {value}; it must be a number {right}")
