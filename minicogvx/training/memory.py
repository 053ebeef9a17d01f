"""How much memory a training step of the transformer needs on each GPU, worked out on the meta device from shapes.

What making a video needs is in training/memory_generating.py.

Weights are float32 and so are AdamW's two averages; forward and backward run in bfloat16 (paper, Table 6). Clips and
captions are taken as encoded beforehand, so neither the VAE nor the text encoder is on the GPU. Not counted: CUDA's own
half gigabyte or so, what a fragmented allocator wastes, messages under way, and an optimizer's temporaries, which fall
where the activations have gone (AdamW with fused=True has none).
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

from minicogvx.presets import Preset, TransformerConfig
from minicogvx.training.lora import add_lora
from minicogvx.transformer.model import ExpertTransformer

SHARDINGS = ("replicate", "replicate+checkpoint", "fsdp", "fsdp+checkpoint", "fsdp+checkpoint+offload")


@dataclass(frozen=True)
class Memory:
    """Bytes at the highest point of a training step. `host`: of this rank, in the memory of the CPU."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int  # under FSDP2: whole weights and gradients of the blocks at work
    activations: int
    host: int = 0

    @property
    def total(self) -> int:
        """On the GPU."""
        return self.parameters + self.gradients + self.optimizer + self.gathered + self.activations


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass leaves for the backward pass, and the most that lives during the latter."""

    kept: int
    peak: int


@dataclass(frozen=True)
class Inputs:
    """What one GPU trains on: latents `batch x frames x height x width`, and `text` tokens beside each."""

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
    height, width, frames = (own if given is None else given for given, own in (
        (height, preset.height), (width, preset.width), (frames, preset.num_frames)))
    config, vae = preset.transformer, preset.vae
    time, space = vae.temporal_compression_ratio, vae.spatial_compression_ratio
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be 1 or more")
    if frames < 1 or frames % time != 1 % time:
        low = max((frames - 1) // time * time + 1, 1)
        raise ValueError(f"frames is {frames}; it must be {time}k + 1, such as {low} or {low + time}")
    for name, size in (("height", height), ("width", width)):
        if size < 1 or size % (space * config.patch_size):
            raise ValueError(f"{name} is {size}; it must be a multiple of {space * config.patch_size}")
    latents, patch = (frames - 1) // time + 1, config.patch_size_t or 1
    return Inputs(batch, -(-latents // patch) * patch, height // space, width // space, config.max_text_seq_length)


def memory(config: TransformerConfig, inputs: Inputs, gpus: int, sharding: str,
           dtype: torch.dtype = torch.bfloat16) -> Memory:
    """Of one of `gpus` GPUs, each with `inputs`, under one of SHARDINGS; `dtype` is what forward and backward run in.

    replicate: every GPU has all weights, and in 16 bits a copy of them. fsdp: FSDP2 cuts weights, gradients and
    optimizer state (`distributed.wrap`), and while a block is at work its weights are whole in `dtype`, those of the
    next one, too, and its gradients both in `dtype` and, on their way to the other GPUs, in float32. +checkpoint: each
    block keeps its input alone and is computed again in the backward pass. +offload: the shards lie on the CPU.
    """
    if sharding not in SHARDINGS:
        raise ValueError(f"sharding is {sharding!r}; it must be one of {', '.join(SHARDINGS)}")
    if gpus < 1:
        raise ValueError(f"gpus is {gpus}; it must be 1 or more")
    shapes, blocks, buffers = _weights(config)
    activations, low = activations_of(config, inputs, "checkpoint" in sharding, dtype).peak, dtype.itemsize
    copy = low if low < 4 else 0  # bytes of a weight in 16 bits beside its float32
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


def memory_of_lora(config: TransformerConfig, inputs: Inputs, rank: int, checkpointing: bool,
                   dtype: torch.dtype = torch.bfloat16) -> Memory:
    """Of a GPU that trains adapters of this rank, on one GPU or replicated on many; `dtype` is that of frozen weights.

    Adapters are there in `dtype`, where they compute, and in float32, where they learn: only they have gradients and
    AdamW's averages. Raises ValueError for a rank that does not fit the model, and without the peft package.
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
    """Parameters of a transformer, without making one."""
    return sum(shape.numel() for shape in _weights(config)[0])


@functools.cache
def _weights(config: TransformerConfig) -> tuple[list[torch.Size], list[torch.Size], int]:
    """The shapes of all parameters, of those in blocks, and the bytes of buffers, which are never cut."""
    with torch.device("meta"):
        model = ExpertTransformer(config)
    parameters, blocks = ([p.shape for p in part.parameters()] for part in (model, model.transformer_blocks))
    return parameters, blocks, sum(buffer.nbytes for buffer in model.buffers())


def _rows_of_first_rank(shape: torch.Size, ranks: int) -> int:
    """FSDP2 cuts the first axis into `ranks` pieces, rounded up: the first rank has one of full size."""
    return -(-shape[0] // ranks) * (shape.numel() // shape[0])


# ---- activations, counted


@functools.cache
def activations_of(config: TransformerConfig, inputs: Inputs, checkpointing: bool = False,
                   dtype: torch.dtype = torch.bfloat16, lora_rank: int = 0) -> Activations:
    """Counted on the meta device in models of two and three blocks; each further block adds what the third did."""
    two, three = (count_activations(replace(config, num_layers=layers), inputs, checkpointing, dtype,
                                    lora_rank) for layers in (2, 3))
    more = config.num_layers - 2
    return Activations(*(a + more * (b - a) for a, b in ((two.kept, three.kept), (two.peak, three.peak))))


def count_activations(config: TransformerConfig, inputs: Inputs, checkpointing: bool, dtype: torch.dtype,
                      lora_rank: int = 0) -> Activations:
    """One forward and backward pass on the meta device, with all layers; every tensor is counted while it lives.

    With a `lora_rank` only adapters learn: a frozen layer need not keep what came in. Gradients of weights are counted
    elsewhere and dropped here as soon as they are there, which under FSDP2 they are.
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
    with flash_attention(), LiveBytes(model) as live:
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
    """Counts the storages that operations make on the meta device and that are still alive."""

    def __init__(self, model: nn.Module):
        super().__init__()
        gc.collect()
        self.weights = {StorageWeakRef(p.untyped_storage()) for p in (*model.parameters(), *model.buffers())}
        self.sizes: dict[StorageWeakRef, int] = {}
        self.most = self.peak = 0  # bytes: what would be alive if nothing had died since the last look; the most so far

    def __torch_dispatch__(self, func: Callable, types, args=(), kwargs=None):
        """Runs the operation and looks at what it returned; a view shares a storage that is known already."""
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
        """Bytes alive at this moment."""
        self.sizes = {reference: size for reference, size in self.sizes.items() if not reference.expired()}
        self.most = sum(self.sizes.values())
        return self.most


@contextlib.contextmanager
def flash_attention() -> Iterator[None]:
    """Has attention keep what a GPU's fused kernels keep: q, k, v, the output and one number a row, no scores.

    A TorchFunctionMode would not do: it is off inside `backward`, where checkpointing runs the blocks again.
    """
    real = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real
