"""How much memory generating a video needs on a GPU, worked out on the meta device from shapes.

Not counted: CUDA's own half gigabyte or so, and fragmentation.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from minicogvx.presets import Preset
from minicogvx.text import TextEncoder
from minicogvx.training.memory import PUBLISHED_DTYPE, Inputs, LiveBytes, empty_inputs, flash_attention, parameter_count
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE
from minicogvx.vae.tiling import tiled_decode


@dataclass(frozen=True)
class Part:
    """Bytes of a network's weights, and the peak of everything else while it computes."""

    weights: int
    work: int


@dataclass(frozen=True)
class Generating:
    """The three networks of a pipeline. The VAE decodes whole frames, or as `tiled` with `--tile`."""

    text: Part
    transformer: Part
    vae: Part
    tiled: Part

    def peak(self, tile: bool = False, offload: bool = False) -> int:
        """Peak bytes: all weights plus the network that needs most; with `offload`, one network at a time."""
        parts = (self.text, self.transformer, self.tiled if tile else self.vae)
        if offload:
            return max(part.weights + part.work for part in parts)
        return sum(part.weights for part in parts) + max(part.work for part in parts)


@functools.cache
def generating(preset: Preset, inputs: Inputs, dtype: torch.dtype = PUBLISHED_DTYPE) -> Generating:
    """Counted for `inputs.batch` videos with guidance, which doubles the batch of text encoder and transformer.

    If patches span two latent frames, the VAE also decodes the frame that only fills a patch.
    """
    with torch.device("meta"):
        text = TextEncoder.from_config(preset.text, (), inputs.text).encoder.to(dtype)
        transformer = ExpertTransformer(replace(preset.transformer, num_layers=2)).to(dtype)  # all blocks need the same
        vae = CausalVAE(preset.vae).to(dtype)
        ids = torch.empty(2 * inputs.batch, inputs.text, dtype=torch.int64)
        latents = torch.empty(inputs.batch, preset.vae.latent_channels, inputs.frames, inputs.height, inputs.width,
                              dtype=dtype)
    twice = replace(inputs, batch=2 * inputs.batch)
    with flash_attention():
        denoising = _work(transformer, lambda: transformer(*empty_inputs(preset.transformer, twice, dtype)))
    return Generating(
        Part(_weights(text), _work(text.eval(), lambda: text(ids).last_hidden_state)),
        Part(dtype.itemsize * parameter_count(preset.transformer), denoising),
        Part(_weights(vae), _work(vae, lambda: vae.decode(latents))),
        Part(_weights(vae), _work(vae, lambda: tiled_decode(vae, latents))))


def _weights(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


@torch.no_grad()
def _work(network: nn.Module, run: Callable[[], Tensor]) -> int:
    with LiveBytes(network) as live:
        run()
    return live.peak
