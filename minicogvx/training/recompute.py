"""Activation checkpointing of the VAE: what a residual block computed is thrown away and computed again when needed."""

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
    """While open, every residual block of `vae` keeps its input alone for the backward pass. Same numbers.

    Not for ranks that share clips: they would speak to each other amid the backward pass, each in its own order.
    """
    blocks = [block for block in vae.modules() if isinstance(block, ResnetBlock)] if wanted else []
    for block in blocks:
        block.forward = partial(_recomputed, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own shows again


def _recomputed(forward, x: Tensor, z: Tensor | None = None, cache: ConvCache | None = None) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x, z, cache)
    before = _copy(cache)  # `forward` leaves its own frames in the cache
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
