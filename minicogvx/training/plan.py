"""How long a video, or a step of fine-tuning, takes on a device, and whether it fits: worked out before anything runs.

A device has two limits: operations a second, and bytes a second from its memory. A layer cannot be quicker than either
(the roofline model, Williams and others 2009). No real program reaches that; which share it does reach is read off the
paper's Tables 7 and 8.
"""

from dataclasses import dataclass

from minicogvx.presets import Preset, TextConfig, TransformerConfig
from minicogvx.training.devices import Device
from minicogvx.training.memory import Inputs, memory_of_lora, parameter_count
from minicogvx.training.memory_generating import generating
from minicogvx.transformer.model import flops
from minicogvx.vae.flops import decoder_convolutions

# Shares of the H800's peak. A guided step of the 5B at 480x720x49 takes 2.11 s (Table 8: two passes), and of the 113 s
# of Table 7 fifty such steps leave 7.5 s, mostly for decoding. Other GPUs may do better: the authors' README states
# about 180 s for the 5B on an A100, which is 59 % of its peak.
SHARE_OF_PASS, SHARE_OF_DECODING = 0.318, 0.042
SPARE = 2**30  # bytes for CUDA itself and for fragmentation, which no count from shapes sees
WAYS = {"whole": (False, False), "--tile": (True, False), "--offload": (False, True), "--tile --offload": (True, True)}


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and bytes that pass between a chip and its memory."""

    flops: int
    bytes: int

    def seconds(self, device: Device, share: int | float = 1.0) -> float:
        """The roofline: the slower of arithmetic and memory, if the device reaches this share of its peaks."""
        return max(self.flops / device.flops, self.bytes / device.bandwidth) / share


def text_work(config: TextConfig, tokens: int, texts: int = 1, itemsize: int = 2) -> Work:
    """The text encoder on `texts` texts of so many tokens: weights are read once, and activations are few."""
    matrices = 3 if config.feed_forward_proj.startswith("gated") else 2
    heads = config.num_heads * config.d_kv
    layer = 4 * config.d_model * heads + matrices * config.d_model * config.d_ff
    weights, n = config.num_layers * layer, texts * tokens
    return Work(2 * n * weights + 4 * n * tokens * heads * config.num_layers, itemsize * weights)


def pass_work(config: TransformerConfig, latent_size: tuple[int, int, int], num_text: int, batch: int = 1,
              itemsize: int = 2) -> Work:
    """One evaluation of the transformer. Weights are read once. In each block, 42 vectors of the model's width are read
    and written for each token: two norms 4, q k v 4, their norms and turns 4, attention (fused) 4, out 2, feed-forward
    18, gates 6.
    """
    n = batch * (num_text + config.num_patches(latent_size))
    moved = parameter_count(config) + 42 * n * config.width * config.num_layers
    return Work(flops(config, latent_size, num_text, batch), itemsize * moved)


def decode_work(preset: Preset, latent_size: tuple[int, int, int], itemsize: int = 2) -> Work:
    """The VAE's decoding of one video: every layer reads its input and writes its output once."""
    layers = list(decoder_convolutions(preset.vae, latent_size))
    return Work(sum(each.flops for each in layers), itemsize * sum(each.values_moved for each in layers))


@dataclass(frozen=True)
class Plan:
    """What one video costs on a device. `way`: the first of WAYS that fits, None if none does."""

    device: Device
    text: float  # seconds
    denoising: float
    decoding: float
    memory: int  # bytes at the peak of `way`; of the leanest where none fits
    way: str | None

    @property
    def seconds(self) -> float:
        """From caption to pixels, with the weights already on the device."""
        return self.text + self.denoising + self.decoding

    @property
    def kilowatt_hours(self) -> float:
        """At the device's full power."""
        return self.seconds * self.device.watts / 3.6e6


def plan(preset: Preset, inputs: Inputs, device: Device, steps: int = 50, guided: bool = True) -> Plan:
    """A video of the size of `inputs` on `device`, at the shares of its peak that the paper's tables show.

    Moving weights for --offload, and tiles that overlap, take time of their own, which is not counted. Raises
    ValueError for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be 1 or more")
    size, passes = (inputs.frames, inputs.height, inputs.width), 2 if guided else 1
    need = generating(preset, inputs)
    way = next((name for name, (tile, offload) in WAYS.items() if _fits(need.peak(tile, offload), device)), None)
    return Plan(
        device,
        text_work(preset.text, inputs.text, passes * inputs.batch).seconds(device, SHARE_OF_PASS),
        steps * pass_work(preset.transformer, size, inputs.text, passes * inputs.batch).seconds(device, SHARE_OF_PASS),
        inputs.batch * decode_work(preset, size).seconds(device, SHARE_OF_DECODING),
        need.peak(*WAYS[way or "--tile --offload"]), way)


def lora_step(preset: Preset, inputs: Inputs, device: Device, rank: int = 64) -> tuple[float, int, bool]:
    """Seconds, bytes and whether it fits: one step of training adapters of this rank, recomputing activations.

    Three passes' work: forward, again in the backward pass, and the gradients of activations. Frozen weights have none.
    """
    size = inputs.frames, inputs.height, inputs.width
    work = pass_work(preset.transformer, size, inputs.text, inputs.batch)
    need = memory_of_lora(preset.transformer, inputs, rank, True).total
    return 3 * work.seconds(device, SHARE_OF_PASS), need, _fits(need, device)


def _fits(need: int, device: Device) -> bool:
    return not device.memory or need + SPARE <= device.memory
