"""How much work the VAE is: its convolutions, counted from the config (paper 2.1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from minicogvx.presets import VAEConfig
from minicogvx.vae.blocks import stage_widths


@dataclass(frozen=True)
class Convolution:
    """A convolution with `taps` (27 for 3 x 3 x 3) that gives `places` pixels of all frames together.

    `normed`: a norm and a SiLU come before it, which read and write its input once more.
    """

    inputs: int  # channels
    outputs: int
    taps: int
    places: int
    normed: bool = False

    @property
    def flops(self) -> int:
        """Two for each multiply and add."""
        return 2 * self.inputs * self.outputs * self.taps * self.places

    @property
    def values_moved(self) -> int:
        """Values read and written, each layer's input and output once; weights are few, and not counted."""
        return self.places * ((3 if self.normed else 1) * self.inputs + self.outputs)


def encoder_convolutions(config: VAEConfig, size: tuple[int, int, int]) -> Iterator[Convolution]:
    """Of encoding one video of `size` (frames, height, width) in pixels."""
    (t, h, w), widths = size, config.block_out_channels
    yield Convolution(config.in_channels, widths[0], 27, t * h * w)
    for stage, (before, width, after) in enumerate(stage_widths(widths, config)):
        for block in range(config.layers_per_block):
            yield from _residual_block(width if block else before, width, t * h * w)
        if stage < len(widths) - 1:
            t, h, w = (t + t % 2) // 2 if _temporal(config, stage) else t, h // 2, w // 2
            yield Convolution(width, after, 9, t * h * w)
    for _ in range(2):
        yield from _residual_block(widths[-1], widths[-1], t * h * w)
    yield Convolution(widths[-1], 2 * config.latent_channels, 27, t * h * w, normed=True)


def decoder_convolutions(config: VAEConfig, latent_size: tuple[int, int, int]) -> Iterator[Convolution]:
    """Of decoding one video of `latent_size` (frames, height, width) in latents."""
    (t, h, w), widths = latent_size, config.block_out_channels[::-1]
    latents = config.latent_channels, t * h * w  # which every norm reads
    yield Convolution(config.latent_channels, widths[0], 27, t * h * w)
    for _ in range(2):
        yield from _residual_block(widths[0], widths[0], t * h * w, latents)
    for stage, (before, width, after) in enumerate(stage_widths(widths, config)):
        for block in range(config.layers_per_block + 1):
            yield from _residual_block(width if block else before, width, t * h * w, latents)
        if stage < len(widths) - 1:
            h, w = 2 * h, 2 * w
            yield Convolution(width, after, 9, t * h * w)  # before the frames are repeated
            if _temporal(config, stage):
                t = 2 * t - (config.first_frame == "start" or t % 2)
    yield from _of_the_norm(widths[-1], latents)
    yield Convolution(widths[-1], config.out_channels, 27, t * h * w, normed=True)


def encode_flops(config: VAEConfig, size: tuple[int, int, int]) -> int:
    """Floating-point operations of the convolutions that encode one video of `size`, in pixels."""
    return sum(each.flops for each in encoder_convolutions(config, size))


def decode_flops(config: VAEConfig, latent_size: tuple[int, int, int]) -> int:
    """Floating-point operations of the convolutions that decode latents of `latent_size` (frames, height, width)."""
    return sum(each.flops for each in decoder_convolutions(config, latent_size))


def _residual_block(before: int, width: int, places: int,
                    latents: tuple[int, int] | None = None) -> Iterator[Convolution]:
    for one, other in pairwise((before, width, width)):
        if latents:
            yield from _of_the_norm(one, latents)
        yield Convolution(one, other, 27, places, normed=True)
    if before != width:
        yield Convolution(before, width, 1, places)


def _of_the_norm(channels: int, latents: tuple[int, int]) -> Iterator[Convolution]:
    """Scale and shift of a norm of the decoder, read off the latents, at their size."""
    yield from [Convolution(latents[0], channels, 1, latents[1])] * 2


def _temporal(config: VAEConfig, stage: int) -> bool:
    return 2 ** (stage + 1) <= config.temporal_compression_ratio
