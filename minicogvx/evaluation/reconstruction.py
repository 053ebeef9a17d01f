"""The quality of a VAE's round trip: PSNR, flicker (paper Table 1), and what the oracle still reads correctly."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.data.world.scenes import Scene
from minicogvx.data.world.styles import Style, render_styled
from minicogvx.diffusion.samplers import check_finite, randn
from minicogvx.evaluation.adherence import check_scenes, clip_generators, judge, say_parts
from minicogvx.evaluation.intervals import say_interval
from minicogvx.presets import VAEConfig
from minicogvx.ranges import valid_frames
from minicogvx.vae import CausalVAE


@dataclass(frozen=True)
class Reconstruction:
    """Averages over clips. PSNR in dB; flicker in 8-bit grey levels; shares 0..1 of correct readings of the oracle."""

    psnr: float
    flicker: float
    flicker_of_true: float
    share: dict[str, float]
    clips: int

    def __str__(self) -> str:
        return (f"PSNR {self.psnr:.2f} dB, flicker {self.flicker:.2f} (true clips {self.flicker_of_true:.2f}); after "
                f"the round trip the oracle reads {100 * self.share['all']:.2f} % of {self.clips} clips correctly, "
                f"{say_interval(self.share['all'], self.clips)} ({say_parts(self.share)})")


def flicker(video: Float[Tensor, "t h w 3"]) -> float:
    """Mean absolute difference of neighbouring frames, in 8-bit grey levels; 0 for a single frame.

    Paper Table 1 measures this too, in a unit that it does not give: only the order of its numbers can be compared.
    """
    if len(video) < 2:
        return 0.0
    return 255 * (video[1:] - video[:-1]).abs().mean().item()


def psnr(true: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> float:
    """Peak signal to noise ratio in dB, of values in 0..1; 100 for equal tensors."""
    return -10 * torch.log10((true - other).square().mean().clamp(min=1e-10)).item()


@torch.no_grad()
def measure_reconstruction(vae: CausalVAE, scenes: list[Scene], num_frames: int, seed: int = 0, batch_size: int = 16,
                           progress: bool = True, style: Style | None = None) -> Reconstruction:
    """Sends true clips of the shapes world through encoder, sampled posterior and decoder, in the VAE's own dtype.

    Each clip's noise is drawn on the CPU from `seed` and the clip's index, so that it is the same on every device and
    in any batch. `style`: draw the clips in this style; the oracle then reads what is still readable.
    Raises ValueError for no scenes, for clips that the VAE decodes to another number of frames, and for NaN.
    """
    check_scenes(scenes)
    _check_frames(vae.config, num_frames)
    config, weight = vae.config, next(vae.parameters())
    total, flickers, flickers_of_true, right = 0.0, 0.0, 0.0, {}
    for i in tqdm(range(0, len(scenes), batch_size), desc="round trips", disable=not progress, mininterval=5):
        true = render_styled(scenes[i:i + batch_size], style, num_frames, config.sample_height, config.sample_width)
        video = rearrange(true, "b t h w c -> b c t h w") * 2 - 1
        posterior = vae.encode(video.to(weight.device, weight.dtype))
        noise = randn(posterior.mean.shape, clip_generators(seed, i, len(true)), posterior.mean.dtype, weight.device)
        decoded = vae.decode((posterior.mean + posterior.std * noise).to(weight.dtype)).float().cpu()
        check_finite(decoded, "the VAE's video")
        back = (rearrange(decoded, "b c t h w -> b t h w c") / 2 + 0.5).clamp(0, 1)
        for scene, clip, again in zip(scenes[i:i + batch_size], true, back):
            total += psnr(clip, again)
            flickers += flicker(again)
            flickers_of_true += flicker(clip)
            for name, ok in judge(again, scene, style)[0].items():
                right[name] = right.get(name, 0) + bool(ok)
    n = len(scenes)
    return Reconstruction(total / n, flickers / n, flickers_of_true / n, {k: v / n for k, v in right.items()}, n)


def _check_frames(config: VAEConfig, num_frames: int) -> None:
    """Raises ValueError if the decoded clip would not be as long as the true one."""
    pair = 2 * config.temporal_compression_ratio
    if config.first_frame == "parity" and pair > 2 and num_frames % pair not in (0, 1):
        raise ValueError(f"num_frames is {num_frames}, and a VAE with first_frame='parity' gives back another number; "
                         f"it must be {valid_frames(num_frames, pair)}")
