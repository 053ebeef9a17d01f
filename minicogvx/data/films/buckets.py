"""Aspect-ratio buckets: frame sizes of nearly equal area, so that videos of any shape lose little and cost the same.

All clips of a batch must have one shape. Cropping every video to one size discards much of some videos; a batch from
one bucket does not. CogVideoX packs clips of different sizes into one sequence instead (paper 3.1, frame pack); buckets
are the older way. Sizes are (height, width) in pixels, as everywhere in the package.
"""

import math
from collections.abc import Sequence

Size = tuple[int, int]

ASPECTS = (1 / 2, 9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 2.0)  # width / height: what cameras and videos have


def aspect_buckets(height: int, width: int, step: int = 16, aspects: Sequence[float] = ASPECTS) -> tuple[Size, ...]:
    """Sizes of about `height` x `width` pixels in area, one for each of `aspects` (width over height), tallest first.

    Both sides are multiples of `step`: the VAE's 8 pixels times the 2 latents of a patch. The nearest multiples are
    taken, so the areas differ, by under 3 % at 480x720. Raises ValueError for a side below `step`, or no aspects.
    """
    if min(height, width) < step:
        raise ValueError(f"the size is {height}x{width}; both sides must be at least {step}")
    if not aspects or min(aspects) <= 0:
        raise ValueError(f"aspects is {tuple(aspects)}; give at least one, all above 0")
    area, sizes = height * width, []
    for aspect in sorted(aspects):
        size = tuple(max(1, round(side / step)) * step for side in (math.sqrt(area / aspect), math.sqrt(area * aspect)))
        if size not in sizes:  # in small frames two aspects can round to one size
            sizes.append(size)
    return tuple(sizes)


def kept_share(height: int, width: int, bucket: Size) -> float:
    """Share (0..1) of the pixels of a `height` x `width` video that remain after resizing and cropping to `bucket`."""
    if min(height, width, *bucket) < 1:
        raise ValueError(f"the video is {height}x{width}, the bucket {bucket[0]}x{bucket[1]}; all must be at least 1")
    film, wanted = width / height, bucket[1] / bucket[0]
    return min(film, wanted) / max(film, wanted)  # the wider of the two loses columns, or the taller rows


def choose_bucket(height: int, width: int, buckets: Sequence[Size]) -> Size:
    """The bucket that keeps most of a `height` x `width` video. Raises ValueError if there are none."""
    if not buckets:
        raise ValueError("there are no buckets; give at least one (height, width)")
    return max(buckets, key=lambda bucket: kept_share(height, width, bucket))
