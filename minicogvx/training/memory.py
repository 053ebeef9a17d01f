"""How much memory a training step of the transformer needs on each GPU, worked out on the meta device from shapes.

For generating a video see training/memory_generating.py.

Weights are float32 and so are AdamW's two averages; forward and backward run in bfloat16 (paper, Table 6). Clips and
captions are assumed to be encoded already, so neither the VAE nor the text encoder is on the GPU. Not counted: CUDA's
own half gigabyte or so, fragmentation, communication buffers, and the optimizer's temporaries, which live after the
activations are freed (AdamW with fused=True has none).
"""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minicogvx.presets import Preset, TransformerConfig, video_size
from minicogvx.ranges import valid_frames
from minicogvx.training.lora import add_lora
from minicogvx.transformer.model import ExpertTransformer

PUBLISHED_DTYPE = torch.bfloat16  # of forward and backward passes (paper, Table 6)
SHARDINGS = ("replicate", "replicate+checkpoint", "fsdp", "fsdp+checkpoint", "fsdp+checkpoint+offload")


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step. `host`: this rank's CPU memory."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int  # under FSDP2: gathered weights and gradients of the blocks that compute
    activations: int
    host: int = 0

    @property
    def total(self) -> int:
        """On the GPU."""
        return self.parameters + self.gradients + self.optimizer + self.gathered + self.activations


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass saves for the backward pass, and the peak during the latter."""

    kept: int
    peak: int


@dataclass(frozen=True)
class Inputs:
    """The batch of one GPU: latents `batch x frames x height x width`, and `text` tokens for each clip."""

    batch: int
    frames: int
    height: int
    width: int
    text: int


def inputs_for(preset: Preset, height: int | None = None, width: int | None = None, frames: int | None = None,
               batch: int = 1) -> Inputs:
    """The latents of a clip of `height` x `width` pixels and `frames` frames; None takes the preset's own.

    Raises ValueError for a size that the VAE or the patches do not divide.
    """
    config, vae = preset.transformer, preset.vae
    frames, height, width = video_size(vae, config, frames, height, width)
    time, pixels = vae.temporal_compression_ratio, vae.spatial_compression_ratio * config.patch_size
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be 1 or more")
    if frames < 1 or frames % time != 1 % time:
        raise ValueError(f"frames is {frames}; it must be {valid_frames(frames, time)}")
    for name, size in (("height", height), ("width", width)):
        if size < 1 or size % pixels:
            raise ValueError(f"{name} is {size}; it must be a multiple of {pixels}")
    latent_frames, *size = vae.latent_size(frames, height, width)
    return Inputs(batch, config.whole_patches(latent_frames), *size, config.max_text_seq_length)


def memory(config: TransformerConfig, inputs: Inputs, gpus: int, sharding: str,
           dtype: torch.dtype = PUBLISHED_DTYPE) -> Memory:
    """The memory of one of `gpus` GPUs, each with `inputs`, under one of SHARDINGS; `dtype`: of forward and backward.

    replicate: every GPU has all weights, and for a 16-bit `dtype` also a 16-bit copy. fsdp: FSDP2 shards weights,
    gradients and optimizer state (`sharding.wrap`); while a block computes, its weights and those of the next one
    are gathered in `dtype`, and its gradients exist in `dtype` and, for the reduce-scatter, in float32. +checkpoint:
    each block saves only its input and is recomputed in the backward pass. +offload: the shards are in CPU memory.
    """
    if sharding not in SHARDINGS:
        raise ValueError(f"sharding is {sharding!r}; it must be one of {', '.join(SHARDINGS)}")
    if gpus < 1:
        raise ValueError(f"gpus is {gpus}; it must be 1 or more")
    shapes, blocks, buffers = _weights(config)
    activations, low = activations_of(config, inputs, "checkpoint" in sharding, dtype).peak, dtype.itemsize
    copy = low if low < 4 else 0  # bytes per weight of the 16-bit copy
    if sharding.startswith("replicate"):
        count = sum(shape.numel() for shape in shapes)
        return Memory((4 + copy) * count + buffers, 4 * count, 8 * count, 0, activations)
    shard = sum(_rows_of_first_rank(shape, gpus) for shape in shapes)
    block = sum(shape.numel() for shape in blocks) // config.num_layers
    ends = sum(shape.numel() for shape in shapes) - block * config.num_layers
    gathered = low * ends + (2 * low + low + (4 if copy else 0)) * block
    if "offload" in sharding:
        return Memory(buffers, 0, 0, gathered, activations, host=16 * shard)
    return Memory(4 * shard + buffers, 4 * shard, 8 * shard, gathered, activations)


@functools.cache
def memory_of_lora(config: TransformerConfig, inputs: Inputs, rank: int, checkpointing: bool,
                   dtype: torch.dtype = PUBLISHED_DTYPE) -> Memory:
    """The memory of a GPU that trains adapters of this rank, alone or replicated; `dtype` is that of frozen weights.

    Adapters exist in `dtype`, to compute, and as float32 master weights; only they have gradients and AdamW state.
    Raises ValueError for a rank that does not fit the model, and without the peft package.
    """
    frozen, buffers = parameter_count(config), _weights(config)[2]
    with torch.device("meta"):
        model = ExpertTransformer(config)
    add_lora(model, rank, rank / 2)
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    activations = activations_of(config, inputs, checkpointing, dtype, rank).peak
    return Memory(dtype.itemsize * (frozen + adapters) + 4 * adapters + buffers, 4 * adapters, 8 * adapters, 0,
                  activations)


def parameter_count(config: TransformerConfig) -> int:
    """The number of parameters of a transformer, without allocating one."""
    return sum(shape.numel() for shape in _weights(config)[0])


@functools.cache
def _weights(config: TransformerConfig) -> tuple[list[torch.Size], list[torch.Size], int]:
    """The shapes of all parameters, of those in blocks, and the bytes of buffers, which are never sharded."""
    with torch.device("meta"):
        model = ExpertTransformer(config)
    parameters, blocks = ([p.shape for p in part.parameters()] for part in (model, model.transformer_blocks))
    return parameters, blocks, sum(buffer.nbytes for buffer in model.buffers())


def _rows_of_first_rank(shape: torch.Size, ranks: int) -> int:
    """FSDP2 cuts the first axis into `ranks` pieces, rounded up: the first rank has the largest."""
    return -(-shape[0] // ranks) * (shape.numel() // shape[0])


# ---- activations, counted


@functools.cache
def activations_of(config: TransformerConfig, inputs: Inputs, checkpointing: bool = False,
                   dtype: torch.dtype = PUBLISHED_DTYPE, lora_rank: int = 0) -> Activations:
    """Counted on the meta device in models of two and three blocks; each further block adds as much as the third."""
    two, three = (count_activations(replace(config, num_layers=layers), inputs, checkpointing, dtype,
                                    lora_rank) for layers in (2, 3))
    more = config.num_layers - 2
    return Activations(*(a + more * (b - a) for a, b in ((two.kept, three.kept), (two.peak, three.peak))))


def count_activations(config: TransformerConfig, inputs: Inputs, checkpointing: bool, dtype: torch.dtype,
                      lora_rank: int = 0) -> Activations:
    """One forward and backward pass on the meta device, with all layers; counts every tensor while it is alive.

    With a `lora_rank` only adapters are trained: a frozen layer need not save its input. Gradients of weights are
    counted elsewhere, and freed here as soon as they are computed, as FSDP2 does.
    """
    with torch.device("meta"):
        model = ExpertTransformer(config)
    if lora_rank:
        add_lora(model, lora_rank, lora_rank / 2)
    model = model.to(dtype)
    model.gradient_checkpointing = checkpointing
    for p in model.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(_drop)
    with torch.enable_grad(), flash_attention(), LiveBytes(model) as live:
        loss = model(*empty_inputs(config, inputs, dtype)).float().square().mean()
        kept = live.now()
        loss.backward()
    return Activations(kept, live.peak)


def empty_inputs(config: TransformerConfig, inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """Latents, timesteps, text features and `ofs` on the meta device."""
    with torch.device("meta"):
        latents = torch.empty(inputs.batch, config.in_channels, inputs.frames, inputs.height, inputs.width, dtype=dtype)
        text = torch.empty(inputs.batch, inputs.text, config.text_embed_dim, dtype=dtype)
        time = torch.empty(inputs.batch, dtype=torch.int64)
        ofs = torch.empty(inputs.batch, dtype=dtype) if config.ofs_embed_dim else None
    return latents, time, text, ofs


def _drop(p: nn.Parameter) -> None:
    p.grad = None


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations create on the meta device, for as long as they are alive."""

    def __init__(self, model: nn.Module):
        super().__init__()
        gc.collect()
        self.weights = {StorageWeakRef(p.untyped_storage()) for p in (*model.parameters(), *model.buffers())}
        self.sizes: dict[StorageWeakRef, int] = {}
        self.most = self.peak = 0  # bytes: alive if nothing was freed since the last count; the maximum so far

    def __torch_dispatch__(self, func: Callable, types, args=(), kwargs=None):
        """Runs the operation and counts its outputs; the storage of a view is known already."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                reference = StorageWeakRef(tensor.untyped_storage())
                if reference not in self.weights and reference not in self.sizes:
                    self.sizes[reference] = tensor.untyped_storage().nbytes()
                    self.most += self.sizes[reference]
        if self.most > self.peak:
            self.peak = max(self.peak, self.now())
        return result

    def now(self) -> int:
        """Bytes alive now."""
        self.sizes = {reference: size for reference, size in self.sizes.items() if not reference.expired()}
        self.most = sum(self.sizes.values())
        return self.most


@contextlib.contextmanager
def flash_attention() -> Iterator[None]:
    """Makes attention save what a GPU's fused kernels save: q, k, v, the output and one number per row, no scores.

    A TorchFunctionMode would not do: it is off inside `backward`, where checkpointing runs the blocks again.
    """
    real = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real
