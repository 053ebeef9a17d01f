"""The study of twins: full and factorised attention in a world that stands still, moves by half, or moves altogether.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from minicogvx.ablation.questions import QUESTIONS
from minicogvx.ablation.twins import CHANNELS, SIDE, Twins
from minicogvx.presets import TransformerConfig


@dataclass(frozen=True)
class TwinStudy:
    """Transformers on clips of twins; see ablation/twins.py."""

    name: str
    question: str
    variants: dict[str, Twins]
    steps: int = 400
    batch_size: int = 32
    every: int = 10
    dtype: ClassVar[str] = "float32"  # by default: with products this small, 16 bits gain nothing


# Two heads of 32. With as many blocks, factorised has more parameters: it has two attentions in each.
TWIN_TRANSFORMER = TransformerConfig(
    num_attention_heads=2, attention_head_dim=32, num_layers=2, in_channels=2 * CHANNELS, out_channels=CHANNELS,
    patch_size=1, text_embed_dim=16, max_text_seq_length=1, time_embed_dim=16, sample_height=SIDE, sample_width=SIDE,
    sample_frames=5)


def _twins(moved: int, blocks: int = 2) -> dict[str, Twins]:
    name = f"{moved} moved" + ("" if blocks == 2 else f", {blocks} block")
    return {f"{kind}, {name}": Twins(replace(TWIN_TRANSFORMER, attention=kind, num_layers=blocks), moved)
            for kind in ("full", "factorised")}


TWINS = TwinStudy("twins", QUESTIONS["twins"], _twins(0) | _twins(8) | _twins(16) | _twins(16, blocks=1))
