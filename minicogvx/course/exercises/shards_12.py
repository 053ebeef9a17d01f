"""Exercises 12.5 and 12.6 of notebook 12: what a sharded model costs each GPU, and tokens exchanged for heads."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_close, expect_shape
from minicogvx.presets import preset
from minicogvx.training.memory import inputs_for, memory, parameter_count

# ---- 12.5 memory_a_gpu


def bytes_a_gpu(block: int, blocks: int, rest: int, activations: int | float, gpus: int,
                sharding: str) -> int | float:
    """Bytes on each GPU at the peak of a training step, as `training.memory` counts them.

    `block`: parameters of one of `blocks` blocks; `rest`: those outside them. `sharding`: "replicate" or "fsdp".
    """
    count = block * blocks + rest
    if sharding == "replicate":
        return (4 + 2 + 4 + 8) * count + activations
    return (4 + 4 + 8) * count / gpus + 2 * rest + (2 * 2 + 2 + 4) * block + activations


def sizes_of(name: str) -> tuple[int, int, int]:
    """Parameters of a block, number of blocks, parameters outside them, of a published transformer."""
    config = preset(name).transformer
    one, two = (parameter_count(replace(config, num_layers=layers)) for layers in (1, 2))
    return two - one, config.num_layers, 2 * one - two


def check_memory_a_gpu(memory_a_gpu) -> None:
    """The package's own count for two published sizes, within one per cent; each part named where it is off."""
    for name in ("2b", "5b"):
        config, (block, blocks, rest) = preset(name).transformer, sizes_of(name)
        count = block * blocks + rest
        for sharding in ("replicate", "fsdp"):
            for gpus in (1, 8, 64):
                right = memory(config, inputs_for(preset(name)), gpus, f"{sharding}+checkpoint")
                what = f'memory_a_gpu of the {name} on {gpus} GPUs, "{sharding}",'
                got = memory_a_gpu(block, blocks, rest, right.activations, gpus, sharding)
                if isinstance(got, bool) or not isinstance(got, (int, float, Tensor)) or (
                        isinstance(got, Tensor) and got.numel() != 1):
                    raise Wrong(f"{what} is {'None' if got is None else f'a {type(got).__name__}'}; it must be a "
                                f"number of bytes.")
                _compare(what, float(got), right, count, gpus, sharding)


def _compare(what: str, got: float, right, count: int, gpus: int, sharding: str) -> None:
    whole = right.total
    if abs(got - whole) <= 0.01 * whole:
        return
    off, shared = got - whole, 1 if sharding == "replicate" else gpus
    told = f"{what} is {got / 1e9:.1f} GB; it must be {whole / 1e9:.1f}"
    guesses = (
        (right.activations / gpus - right.activations, "activations are divided by the GPUs, but each has clips of its "
                                                       "own"),
        (-right.activations, "activations are missing"),
        (8 * count - 8 * count / shared, "AdamW's two averages are not cut"),
        (4 * count - 4 * count / shared, "one of weights and gradients is not cut"),
        (-right.gathered, "what is gathered while a block computes is missing"),
        (-2 * count, "the 16-bit copy of the weights is missing"),
        (-4 * count / shared, "AdamW keeps two averages, 8 bytes"),
        (2 * count / shared, "there is a 16-bit copy too many: sharded, only what is gathered exists in 16 bits"),
        ((18 * count) / gpus - 18 * count, "replicated, every GPU holds everything: nothing is divided"),
    )
    near = [why for amount, why in guesses if amount and abs(off - amount) <= 0.02 * abs(amount) + 0.002 * whole]
    raise Wrong(f"{told}: {near[0]}." if near else f"{told} (weights {right.parameters / 1e9:.1f}, gradients "
                f"{right.gradients / 1e9:.1f}, AdamW {right.optimizer / 1e9:.1f}, gathered {right.gathered / 1e9:.1f}, "
                f"activations {right.activations / 1e9:.1f}).")


# ---- 12.6 tokens_for_heads


def heads_of_all_tokens(parts: Sequence[Float[Tensor, "heads _n d"]]) -> list[Float[Tensor, "_heads n d"]]:
    """From some tokens with all heads on each rank to all tokens with some heads: what the first all-to-all does."""
    return list(torch.cat(tuple(parts), dim=1).chunk(len(parts), dim=0))


def check_tokens_for_heads(tokens_for_heads) -> None:
    """All tokens in order, its own share of the heads, on each rank, and slices of tokens that differ in length."""
    for ranks, lengths in ((2, (3, 4)), (4, (2, 2, 3, 2)), (1, (5,))):
        whole = torch.randn(8, sum(lengths), 3)
        parts, share = list(whole.split(lengths, dim=1)), 8 // ranks
        what = f"tokens_for_heads of {ranks} ranks with {', '.join(map(str, lengths))} tokens and 8 heads"
        got = tokens_for_heads(parts)
        if not isinstance(got, (list, tuple)) or len(got) != ranks:
            raise Wrong(f"{what} gives {'None' if got is None else f'a {type(got).__name__}'}; it must be a list with "
                        f"a tensor for each rank.")
        for rank, own in enumerate(got):
            told, wanted = f"{what}: rank {rank}", whole[rank * share:(rank + 1) * share]
            if isinstance(own, Tensor) and ranks > 1 and tuple(own.shape) == tuple(whole.shape):
                raise Wrong(f"{told} gets all heads of all tokens: that is an all-gather, and each rank would attend "
                            f"with every head. Its share is {share} heads.")
            expect_shape(told, own, tuple(wanted.shape))
            if torch.equal(own.float(), whole[rank::ranks]) and ranks > 1:
                raise Wrong(f"{told} gets heads {', '.join(map(str, range(rank, 8, ranks)))}. Neighbouring heads stay "
                            f"together: rank {rank} has heads {rank * share} to {(rank + 1) * share - 1}.")
            reordered = torch.equal(own.float().sort(dim=1).values, wanted.sort(dim=1).values)
            if reordered and not torch.equal(own.float(), wanted):
                raise Wrong(f"{told} gets the right heads, but its tokens are in another order. Rank 0's tokens come "
                            f"first, then rank 1's, or every token turns by the wrong position.")
            expect_close(told, own, wanted)
