"""The study of twins: full and factorised attention in worlds that stand still, move by half, and move altogether."""

from dataclasses import dataclass, replace
from typing import ClassVar

from minicogvx.ablation.questions import QUESTIONS
from minicogvx.ablation.twins import CHANNELS, SIDE
from minicogvx.presets import TransformerConfig


@dataclass(frozen=True)
class TwinStudy:
    """Transformers on clips of twins; see ablation/twins.py."""

    name: str
    question: str
    variants: dict[str, TransformerConfig]
    worlds: tuple[int, ...] = (0, 8, 16)  # of 16 tokens, how many have moved
    steps: int = 400
    batch_size: int = 32
    every: int = 10
    settings: str | None = None  # of a study of one's own
    dtype: ClassVar[str] = "float32"  # by default: with products this small, 16 bits gain nothing

    @property
    def judged(self) -> tuple[str, ...]:
        """What follows a variant's name in the name of a curve, for each world."""
        return tuple(f", {moved} moved" for moved in self.worlds)


# Two heads of 32. With as many blocks, factorised has more parameters: it has two attentions in each.
TWIN_TRANSFORMER = TransformerConfig(
    num_attention_heads=2, attention_head_dim=32, num_layers=2, in_channels=2 * CHANNELS, out_channels=CHANNELS,
    patch_size=1, text_embed_dim=16, max_text_seq_length=1, time_embed_dim=16, sample_height=SIDE, sample_width=SIDE,
    sample_frames=5)

TWINS = TwinStudy("twins", QUESTIONS["twins"], {
    "full": TWIN_TRANSFORMER,
    "factorised": replace(TWIN_TRANSFORMER, attention="factorised"),
    "full, 1 block": replace(TWIN_TRANSFORMER, num_layers=1),
    "factorised, 1 block": replace(TWIN_TRANSFORMER, attention="factorised", num_layers=1),
})
