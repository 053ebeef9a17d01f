"""Pictures as a viewer shows them: upright, on white, in eight bits, and animated if they are.

Pillow reads them, and leaves the rest to its caller: the orientation that a phone recorded, transparency, and pixels of
more than eight bits.
"""

import errno
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

MOST_PIXELS = 178_956_970  # of a picture or frame: above it, Pillow suspects a decompression bomb

# Endings of common picture files that Pillow reads.
IMAGES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".jp2", ".tif", ".tiff", ".bmp")

_MOVING = ("PNG", "WEBP", "AVIF")  # formats whose pages form an animation, unlike those of TIFF or MPO
_QUICKEST, _USUAL = 0.011, 0.1  # seconds: browsers show frames that claim less than the first value for the second
# What Pillow's readers raise on damaged files, whose lengths and numbers they trust.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, MemoryError,
            RuntimeError, struct.error, zlib.error, Image.DecompressionBombError)

# Errors of a disk or a network, never of a file's content. Without EPERM, which FFmpeg also reports for damaged videos.
_AWAY = (errno.EIO, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ESTALE, errno.ENOENT, errno.ENXIO,
         errno.ENODEV, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH)


class UnusableFile(ValueError):
    """A file that cannot be used. `reason` is a sentence whose subject is the file; the message adds its path."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path} {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Moment:
    """A frame of a video, the second at which it appears, and for how many seconds it stays if it is the last."""

    second: float
    length: float
    pixels: Callable[[int | None], UInt8[Tensor, "h w 3"]]  # argument: the shorter side to shrink to, or None


def existing_file(path: str | Path) -> Path:
    """`path`, if it is a file that is not empty. Raises FileNotFoundError, PermissionError or UnusableFile."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise UnusableFile(path, f"is a {'folder' if path.is_dir() else 'device or a pipe'}; give a file")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} cannot be read: you have no permission")
    if path.stat().st_size == 0:
        raise UnusableFile(path, "is empty; give a file with something in it")
    return path


def check_at_hand(path: Path, error: Exception) -> None:
    """Raises OSError if `error` is a failure of the disk, not of the file, which may be readable later."""
    if isinstance(error, OSError) and error.errno in _AWAY:
        raise OSError(f"{path} cannot be read: {os.strerror(error.errno)}") from error


def check_size(path: Path, height: int, width: int) -> None:
    """Raises UnusableFile for more than MOST_PIXELS: a small file can claim a picture that fits in no memory."""
    if height * width > MOST_PIXELS:
        raise UnusableFile(path, f"has pictures of {width}x{height} pixels; at most {MOST_PIXELS:,} are read, such as "
                                 f"15360x8640")


def shrunk_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """(height, width) with the shorter side at `short_side`, if it is longer than that."""
    scale = min(1.0, (short_side or min(height, width)) / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


@contextmanager
def opened_picture(path: Path) -> Iterator[Image.Image]:
    """The picture at `path`, its pixels not yet decoded.

    Raises UnusableFile, also for errors within the block, and OSError if the disk fails.
    """
    try:
        with Image.open(path) as image:
            check_size(path, image.height, image.width)
            yield image
    except UnusableFile:
        raise
    except _DAMAGED as error:
        check_at_hand(path, error)
        raise UnusableFile(path, "is not a picture, or it is cut off; give a whole PNG or JPEG file") from error


def upright_picture(image: Image.Image, path: Path) -> Image.Image:
    """RGB, upright by the camera's metadata, transparency on white. Raises UnusableFile for values without a range."""
    image.load()
    image = _eight_bits(ImageOps.exif_transpose(image), path)
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    # `convert` puts transparency on black; viewers show cut-outs on white.
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def to_tensor(image: Image.Image) -> UInt8[Tensor, "h w 3"]:
    """The bytes of an RGB picture."""
    return torch.from_numpy(np.array(image))


def moves(path: Path) -> bool:
    """Whether the picture file at `path` is a video: an animated PNG, WebP or AVIF."""
    with opened_picture(path) as image:
        return image.format in _MOVING and _last_page(image) > _first_page(image)


def animation_moments(path: Path) -> Iterator[Moment]:
    """The frames of an animated picture, each composed with those before it as the file specifies."""
    with opened_picture(path) as image:
        second = 0.0
        for page in range(_first_page(image), _last_page(image) + 1):
            image.seek(page)
            picture = upright_picture(image, path)
            length = image.info.get("duration", 0) / 1000
            length = length if length >= _QUICKEST else _USUAL
            yield Moment(second, length, partial(_shrunk, picture))
            second += length


def _first_page(image: Image.Image) -> int:
    # A PNG may begin with a still picture for programs that cannot animate it.
    return int(getattr(image, "default_image", False))


def _last_page(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) - 1


def _shrunk(picture: Image.Image, short_side: int | None) -> UInt8[Tensor, "h w 3"]:
    height, width = shrunk_size(picture.height, picture.width, short_side)
    return to_tensor(picture.resize((width, height), Image.Resampling.BOX))


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """A picture of 16 or 32 bits or of floats as bytes; others unchanged. `convert` would clip at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise UnusableFile(path, "has NaN or infinite pixels; they must be numbers")
    white = _white(image.mode, values.max())
    if white is None:
        raise UnusableFile(path, f"has pixels up to {values.max():g}; floats must be in 0..1, 0..255 or 0..65535")
    return Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))


def _white(mode: str, brightest: float) -> float | None:
    """The value of white: known for 16 bits; otherwise the smallest usual one that covers the brightest pixel."""
    if mode.startswith("I;16"):
        return 65535.0
    if mode == "I":
        return next((white for white in (255.0, 65535.0) if brightest <= white), 2.0**31 - 1)
    if brightest < 2.0:  # lamps and the sun may exceed white
        return 1.0
    return next((white for white in (255.0, 65535.0) if brightest <= white), None)
