"""Activation checkpointing of the VAE: the activations of a residual block are recomputed in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minicogvx.vae import CausalVAE
from minicogvx.vae.blocks import ResnetBlock
from minicogvx.vae.causal_conv import ConvCache


@contextmanager
def recomputed_blocks(vae: CausalVAE, wanted: bool = True) -> Iterator[None]:
    """Within this context, every residual block of `vae` saves only its input for the backward pass. Same results.

    Not for ranks that share clips: their collectives would run in the backward pass, in another order on each rank.
    """
    blocks = [block for block in vae.modules() if isinstance(block, ResnetBlock)] if wanted else []
    for block in blocks:
        block.forward = partial(_recomputed, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # restores the class's method


def _recomputed(forward, x: Tensor, z: Tensor | None = None, cache: ConvCache | None = None) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x, z, cache)
    before = _copy(cache)  # `forward` overwrites the frames in the cache
    caches = [cache]

    def run(x, z):
        return forward(x, z, caches.pop() if caches else _copy(before))

    return checkpoint(run, x, z, use_reentrant=False, preserve_rng_state=False)


def _copy(cache: ConvCache | None) -> ConvCache | None:
    if cache is None:
        return None
    copy = ConvCache()
    copy.start, copy.past = cache.start, dict(cache.past)
    return copy
