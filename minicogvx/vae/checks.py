"""What the VAE refuses, before any work: each ValueError names the value and what would be valid."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.presets import VAEConfig


def check_video(config: VAEConfig, video: Tensor) -> None:
    """ValueError unless `video` is one that the VAE encodes, of a number of frames that comes back."""
    config.check_video(video.shape)
    _check_pixels(video)


def check_piece(config: VAEConfig, video: Tensor) -> None:
    """ValueError unless `video` is a piece of one that the VAE encodes: any number of frames."""
    config.check_video(video.shape, whole=False)
    _check_pixels(video)


def check_pieces(config: VAEConfig, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """The pieces of one video; ValueError at the first that is not of whole groups of frames."""
    ratio, start = config.temporal_compression_ratio, 1
    for piece in pieces:
        check_piece(config, piece)
        if (piece.shape[2] - start) % ratio:
            raise ValueError(f"a piece has {piece.shape[2]} frames; the first must have {ratio}k + 1 and the later "
                             f"ones {ratio}k")
        start = 0
        yield piece


def check_latents(config: VAEConfig, latents: Tensor) -> Float[Tensor, "b c lt lh lw"]:
    """`latents`; ValueError unless the VAE decodes them."""
    config.check_latents(latents.shape)
    _check_values(latents, "the latents have",
                  "the latents hold NaN or infinite values; the sampler that made them has diverged")
    return latents


def check_chunk(name: str, chunk: object, multiple: int, usual: int) -> None:
    """ValueError unless `chunk` is None or a positive multiple of `multiple`."""
    if chunk is None or isinstance(chunk, int) and chunk > 0 and chunk % multiple == 0:
        return
    least = f"a multiple of {multiple}" if multiple > 1 else "a whole number of at least 1"
    raise ValueError(f"{name} is {chunk!r}; it must be {least}, such as {max(multiple, usual)}, or None")


def _check_pixels(video: Tensor) -> None:
    _check_values(video, "the video has", "the video holds NaN or infinite values; pixels must be numbers in -1..1")


def _check_values(x: Tensor, they_have: str, not_finite: str) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{they_have} the number format {x.dtype}; it must be floating point, such as torch.float32")
    if not x.is_meta and not torch.isfinite(x).all():  # the meta device has shapes and no values
        raise ValueError(not_finite)
