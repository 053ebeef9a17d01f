"""Token routing: in training, a random share of the video tokens skips the middle blocks (TREAD, arXiv 2501.04765).

    block                 0 1 2   3 4   5
    text                  - - -   - -   -
    kept video tokens     - - -   - -   -   others in every step, and of every clip
    routed video tokens   - - - . . . . -   in block 5 they are what they were after block 2

The middle blocks have fewer tokens to compute. Those that skipped them meet the others again in the last blocks, and
the loss is that of all tokens. Nothing is added to the model: where it is sampled or measured, all tokens take all
blocks. `routed` is a field of a stage, as the model may need a last stage without it to get used to that: SPRINT (arXiv
2510.21986) ends with one. No token is left out before an aligned block: in SR-DiT's runs (arXiv 2512.12386) that cost
more than routing gained.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minicogvx.presets import TransformerConfig
from minicogvx.training.alignment import aligned_blocks
from minicogvx.training.settings import TransformerTraining
from minicogvx.transformer.layout import keep_video
from minicogvx.transformer.model import ExpertTransformer


def skipped_blocks(training: TransformerTraining, config: TransformerConfig) -> range:
    """The blocks that routed tokens skip: by default those after the aligned ones (or the middle one), but the last.

    Raises ValueError for blocks that are not there, or not after those that are aligned, and for a config whose blocks
    need the whole grid of tokens.
    """
    aligned, last = max(aligned_blocks(training.alignment_blocks, config.num_layers)), config.num_layers - 2
    blocks, least = training.routed_blocks or (aligned + 1, last), aligned + 1 if training.alignment_weight else 1
    if len(blocks) != 2 or not least <= blocks[0] <= blocks[1] <= last:
        raise ValueError(f"routed_blocks is {blocks}; it must be the first and the last block that tokens skip, from "
                         f"{least} (after what is aligned) to {last} (before the last one)")
    if config.attention != "full" or config.modulation == "separate":
        raise ValueError(f"attention is {config.attention!r} and modulation {config.modulation!r}; tokens are routed "
                         f"only with 'full', and 'expert' or 'shared'")
    return range(blocks[0], blocks[1] + 1)


def kept_tokens(tokens: int, routed: float, generator: torch.Generator) -> Int[Tensor, " kept"]:
    """Which of a clip's video tokens take all blocks; `routed` is the share of the others."""
    return torch.randperm(tokens, generator=generator)[:tokens - int(routed * tokens)].sort().values


class Routing:
    """Hooks on the blocks that tokens skip. They act within `with routing.keeping(tokens)` alone.

    In these blocks the tokens of all clips lie in one pack, as each clip keeps others.
    """

    def __init__(self, model: ExpertTransformer, blocks: range):
        self.kept = self.whole = self.layout = self.rows = None
        for block in blocks:
            model.transformer_blocks[block].register_forward_pre_hook(self._leave_out if block == blocks[0] else
                                                                      self._few)
        model.transformer_blocks[blocks[-1]].register_forward_hook(self._put_back)

    @contextmanager
    def keeping(self, kept: Int[Tensor, "b kept"]) -> Iterator[None]:
        """For a forward pass and its backward pass: only these of the video tokens take the middle blocks."""
        self.kept = kept
        try:
            yield
        finally:
            self.kept = self.whole = self.layout = self.rows = None

    def _leave_out(self, block: nn.Module, inputs: tuple) -> tuple | None:
        """Before the first: the kept tokens instead of all, which are put aside."""
        if self.kept is None:
            return None
        self.whole, t_emb, layout = inputs
        self.layout, self.rows = keep_video(layout, self.kept)
        return _each(self._take, self.whole), t_emb, self.layout

    def _few(self, block: nn.Module, inputs: tuple) -> tuple | None:
        """Before the others: where the kept tokens lie."""
        return None if self.kept is None else (*inputs[:2], self.layout)

    def _put_back(self, block: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
        """After the last: all tokens, of which the kept ones are new."""
        if self.kept is None:
            return None
        return _each(self._replace, self.whole, output)

    def _take(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "1 m d"]:
        return x.flatten(0, 1).index_select(0, self.rows)[None]

    def _replace(self, x: Float[Tensor, "b n d"], few: Float[Tensor, "1 m d"]) -> Float[Tensor, "b n d"]:
        return x.flatten(0, 1).index_copy(0, self.rows, few[0]).view_as(x)


def _each(change, *x: Tensor | tuple) -> Tensor | tuple:
    """`change` of the tokens, or of tokens and values, which `ValueResidualBlock` hands on as a pair."""
    return tuple(map(change, *x)) if isinstance(x[0], tuple) else change(*x)
