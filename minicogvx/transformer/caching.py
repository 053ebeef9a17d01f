"""First-block cache: where a sampling step changes the first block little, the other blocks are not computed.

Neighbouring steps ask the network almost the same question. The first block always runs; what it adds to the video's
tokens is compared with what it added when all blocks last ran. Where the difference is small, all other blocks together
add what they added then. With a threshold of 0 nothing is skipped.

An approximation that needs no training, and a departure: the published system runs every block at every step. Caches by
how much an input has changed are TeaCache's (arXiv 2411.19108); the first block as the measure is ParaAttention's
(github.com/chengzeyi/ParaAttention), and `FirstBlockCacheConfig` in diffusers. For one clip it computes the same here.
"""

import copy

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minicogvx.ranges import check_number
from minicogvx.transformer.layout import Layout
from minicogvx.transformer.model import ExpertTransformer


def check_cache(threshold: float, transformer: nn.Module) -> None:
    """Raises ValueError for a threshold that is not in 0..1, and unless it is 0 for a network that has to run whole."""
    check_number("cache", threshold, whole=False)
    if threshold and len(transformer.transformer_blocks) == 1:
        raise ValueError(f"cache is {threshold}; it must be 0 for this model, whose only block always runs")
    if threshold and (hasattr(transformer, "_orig_mod") or transformer._compiled_call_impl is not None):
        raise ValueError(f"cache is {threshold}; it must be 0 for a transformer that is compiled as a whole, as no "
                         f"block of it can be skipped: compile each of its transformer_blocks instead")


def with_cache(transformer: ExpertTransformer, threshold: float, clips: int) -> ExpertTransformer:
    """The same network on the same weights for the steps of one sampling run; `transformer` itself stays as it is.

    Args:
        threshold: the mean absolute difference of what the first block adds, relative to the mean absolute value of
            what it added before, below which a clip skips the other blocks. diffusers' default is 0.05.
        clips: how many are sampled. A batch has each once, or under guidance twice: all without caption, then all with.
    """
    cached = copy.copy(transformer)  # shares everything; a dictionary of its own lets it have other blocks
    cached._modules = {**transformer._modules, "transformer_blocks": nn.ModuleList(
        [FirstBlockCache(transformer.transformer_blocks, threshold, clips)])}
    return cached


class FirstBlockCache(nn.Module):
    """Stands for all blocks of a network. It remembers what they added to each row when they last ran.

    Each clip is judged by itself, with and without its caption together: whether it skips blocks does not depend on
    the other clips of its batch.
    """

    def __init__(self, blocks: nn.ModuleList, threshold: float, clips: int):
        super().__init__()
        self.first, self.others = blocks[0], blocks[1:]
        self.threshold, self.clips = threshold, clips
        self.before = self.by_others = None  # added by the first block (to the video), and by all others

    def forward(self, x: Float[Tensor, "b n d"], t_emb: Float[Tensor, "b d_time"],
                layout: Layout) -> Float[Tensor, "b n d"]:
        """As `Block`."""
        y = self.first(x, t_emb, layout)                        # b n d
        y, *values = y if isinstance(y, tuple) else (y,)        # and those of the value residual, if the model has it
        added = layout.video(y - x)                             # b n_video d
        if self.before is None or self.before.shape != added.shape:  # the first step, or the first under guidance
            self.before, self.by_others = torch.full_like(added, torch.inf), torch.zeros_like(y)  # far from anything
        rows = self.to_compute(added)                           # b
        out = y + self.by_others                                # b n d
        if rows.any():
            y = y[rows]                                         # rows n d
            z = (y, values[0][rows]) if values else y
            for block in self.others:
                z = block(z, t_emb[rows], layout)               # rows n d
            self.before[rows], self.by_others[rows] = added[rows], z - y
            out[rows] = z                                       # and not y + (z - y), which is rounded
        return out

    def to_compute(self, added: Float[Tensor, "b n_video d"]) -> Bool[Tensor, " b"]:
        """Which rows have to be computed: those of clips to which the first block adds something else than before."""
        difference, size = (each.abs().mean((1, 2), dtype=torch.float32).view(-1, self.clips).mean(0)
                            for each in (added - self.before, self.before))
        skipped = difference < self.threshold * size            # clips; never with a threshold of 0
        return ~skipped.repeat(len(added) // self.clips)
