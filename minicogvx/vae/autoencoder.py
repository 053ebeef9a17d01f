"""The 3D causal VAE (paper 2.1): video -> latents -> video, a quarter as long and an eighth as high and wide.

How many frames a clip has in latents, and again as a video, depends on the rule for the first frame
(`blocks.first_stays_single`): "start" takes 4k + 1 frames and returns as many; "parity", as published, takes any
number and returns 8k + 1 or 8k, 8 for 5.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.presets import VAEConfig
from minicogvx.vae.blocks import DownBlock, MidBlock, SpatialNormSiLU, UpBlock, stage_widths
from minicogvx.vae.causal_conv import CausalConv3d, ConvCache
from minicogvx.vae.checks import check_chunk, check_latents, check_pieces, check_video
from minicogvx.vae.layers import NormSiLU


class Encoder(nn.Module):
    """`b 3 t h w` -> `b 2c lt lh lw`: the mean and log-variance of each latent value, mean first."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, halvings = config.block_out_channels, int(math.log2(config.temporal_compression_ratio))
        self.conv_in = CausalConv3d(config.in_channels, widths[0], time_padding=config.time_padding)
        self.down_blocks = nn.ModuleList(
            DownBlock(of_stage, config, temporal=i < halvings, last=i == len(widths) - 1)
            for i, of_stage in enumerate(stage_widths(widths, config)))
        self.mid_block = MidBlock(widths[-1], config, conditioned=False)
        self.norm_out = NormSiLU(widths[-1], config)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.latent_channels, time_padding=config.time_padding)

    def forward(self, video: Float[Tensor, "b c t h w"],
                cache: ConvCache | None = None) -> Float[Tensor, "b c2 lt lh lw"]:
        """Mean and log-variance of the latents, concatenated on the channels."""
        x = self.conv_in(video, cache)
        for block in self.down_blocks:
            x = block(x, cache)
        x = self.mid_block(x, None, cache)
        return self.conv_out(self.norm_out(x), cache)


class Decoder(nn.Module):
    """`b c lt lh lw` -> `b 3 t h w`. Time doubles in the first stages, where frames are smallest."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, doublings = config.block_out_channels[::-1], int(math.log2(config.temporal_compression_ratio))
        self.conv_in = CausalConv3d(config.latent_channels, widths[0], time_padding=config.time_padding)
        self.mid_block = MidBlock(widths[0], config, conditioned=True)
        self.up_blocks = nn.ModuleList(
            UpBlock(of_stage, config, temporal=i < doublings, last=i == len(widths) - 1)
            for i, of_stage in enumerate(stage_widths(widths, config)))
        self.norm_out = SpatialNormSiLU(widths[-1], config)
        self.conv_out = CausalConv3d(widths[-1], config.out_channels, time_padding=config.time_padding)

    def forward(self, z: Float[Tensor, "b c lt lh lw"], cache: ConvCache | None = None) -> Float[Tensor, "b o t h w"]:
        """Video of unscaled latents, which every block reads again."""
        x = self.mid_block(self.conv_in(z, cache), z, cache)
        for block in self.up_blocks:
            x = block(x, z, cache)
        return self.conv_out(self.norm_out(x, z), cache)


class DiagonalGaussian:
    """The posterior q(z | video): an independent normal for each latent value. Log-variance is clamped to [-30, 20]."""

    def __init__(self, moments: Float[Tensor, "b c2 t h w"]):
        self.mean, logvar = moments.float().chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Float[Tensor, "b c t h w"]:
        """Standard deviation."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b c t h w"]:
        """mean + std * noise, which is drawn where the generator is: one on the CPU gives the same on every device."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def mode(self) -> Float[Tensor, "b c t h w"]:
        """The most likely latent: the mean."""
        return self.mean

    def kl(self) -> Float[Tensor, " b"]:
        """KL(q || N(0, 1)) of each clip in nats, summed over all its latent values."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).flatten(1).sum(1)


def chunk_sizes(length: int, chunk: int | None) -> list[int]:
    """How the published system cuts a clip: pieces of `chunk`, the remainder going into the first (17 -> 9, 8)."""
    pieces = max(length // chunk, 1) if chunk else 1
    return [length - (pieces - 1) * (chunk or 0)] + [chunk] * (pieces - 1)


class CausalVAE(nn.Module):
    """Encoder, posterior and decoder. Parameter names are those of `diffusers`' `AutoencoderKLCogVideoX`.

    It computes in the dtype of its input: float32 weights and a bfloat16 video is how it is trained.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, video: Float[Tensor, "b c t h w"], chunk_frames: int | None = 8) -> DiagonalGaussian:
        """The posterior of `video` (pixels in -1..1): latents `b c lt h/8 w/8`, not yet scaled; lt is (t-1)/4 + 1 for
        t = 4k + 1 frames.

        `chunk_frames`: frames encoded at a time, 8 as published, None for all; it bounds memory and, as group norms
        see one chunk, changes the numbers a little (not with `norm_over="frame"`).
        Raises ValueError for no frames, a count that is not 4k + 1 where `first_frame` is "start", a size that does not
        divide, or NaN.
        """
        check_chunk("chunk_frames", chunk_frames, self.config.temporal_compression_ratio, 8)
        check_video(self.config, video)
        pieces = video.split(chunk_sizes(video.shape[2], chunk_frames), dim=2)
        return DiagonalGaussian(torch.cat(list(_run(self.encoder, pieces)), dim=2))

    def decode(self, latents: Float[Tensor, "b c lt lh lw"],
               chunk_latents: int | None = 2) -> Float[Tensor, "b o t h w"]:
        """Video `b 3 t 8lh 8lw` in about -1..1 from unscaled latents; t is 4(lt - 1) + 1, or 4 lt where lt is even and
        `first_frame` is "parity".

        `chunk_latents`: latent frames decoded at a time, 2 as published, None for all; see `encode`.
        Raises ValueError for a chunk below 1, another number of channels, no frames, or NaN.
        """
        check_chunk("chunk_latents", chunk_latents, 1, 2)
        check_latents(self.config, latents)
        pieces = latents.split(chunk_sizes(latents.shape[2], chunk_latents), dim=2)
        return torch.cat(list(_run(self.decoder, pieces)), dim=2)

    def encode_stream(self, pieces: Iterable[Float[Tensor, "b c _ h w"]]) -> Iterator[DiagonalGaussian]:
        """Encodes a video of any length piece by piece at constant memory: 4k+1 frames first, then 4k each time."""
        return map(DiagonalGaussian, _run(self.encoder, check_pieces(self.config, pieces)))

    def decode_stream(self, pieces: Iterable[Float[Tensor, "b c _ lh lw"]]) -> Iterator[Float[Tensor, "b o _ h w"]]:
        """Decodes latents of any length piece by piece at constant memory."""
        return _run(self.decoder, (check_latents(self.config, piece) for piece in pieces))

    def forward(self, video: Float[Tensor, "b c t h w"], generator: torch.Generator | None = None,
                chunk_frames: int | None = 8) -> tuple[Float[Tensor, "b o t h w"], DiagonalGaussian]:
        """One round trip as in training: reconstruction from a sampled latent, and the posterior."""
        posterior = self.encode(video, chunk_frames)
        chunk_latents = chunk_frames and max(chunk_frames // self.config.temporal_compression_ratio, 1)
        return self.decode(posterior.sample(generator).to(video.dtype), chunk_latents), posterior


def _run(network: nn.Module, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    cache = ConvCache()
    for piece in pieces:
        yield network(piece, cache)
        cache.start = False
