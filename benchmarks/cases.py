"""What is compared: parts, sizes, operations and number formats.

A case has a `part` and a `tolerance` (relative), and `side(who)` builds one of the two programs for it.
"""

from dataclasses import dataclass, replace

import torch

from benchmarks.sides import SamplingSide, TransformerSide, VAESide
from minicogvx.compat import fastest_dtype
from minicogvx.presets import Preset, TransformerConfig, VAEConfig, preset

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # relative; bfloat16 has 8 significant bits


@dataclass(frozen=True)
class VAECase:
    """One operation of a VAE on square clips."""

    label: str
    config: VAEConfig
    operation: str  # "encode", "decode", "training step"
    dtype: torch.dtype
    batch: int
    frames: int
    size: int  # pixels
    float32_weights: bool = False

    @property
    def part(self) -> str:
        return f"VAE {self.label}, {self.size}x{self.size}x{self.frames}, batch {self.batch}"

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype]

    def side(self, who: str) -> VAESide:
        operation = self.operation.split(",")[0]
        return VAESide(who, self.config, operation, self.dtype, self.batch, self.frames, self.size,
                       self.float32_weights)


@dataclass(frozen=True)
class TransformerCase:
    """One operation of a transformer at its own clip size."""

    label: str
    config: TransformerConfig
    operation: str  # "forward", "training step"
    dtype: torch.dtype
    batch: int

    @property
    def part(self) -> str:
        return f"transformer {self.label}, batch {self.batch}"

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype]

    def side(self, who: str) -> TransformerSide:
        return TransformerSide(who, self.config, self.operation, self.dtype, self.batch)


@dataclass(frozen=True)
class SamplingCase:
    """A whole sampling run."""

    preset: Preset
    dtype: torch.dtype
    steps: int
    operation: str = "caption to pixels"

    @property
    def part(self) -> str:
        return f"sampling {self.preset.name}, {self.steps} steps"

    @property
    def tolerance(self) -> float:
        # Many steps with guidance amplify rounding errors in bfloat16; unrelated videos differ by about 1.
        return 0.3 if self.dtype == torch.bfloat16 else TOLERANCE[self.dtype]

    def side(self, who: str) -> SamplingSide:
        return SamplingSide(who, self.preset, self.dtype, self.steps)


Case = VAECase | TransformerCase | SamplingCase


def formats() -> tuple[torch.dtype, ...]:
    """The dtypes for this CPU: the fastest, then float32 if that is another."""
    return tuple(dict.fromkeys((fastest_dtype("cpu")[0], torch.float32)))


def cases(quick: bool = False, dtypes: tuple[torch.dtype, ...] | None = None) -> list[Case]:
    """Every case, in the order of the table. `quick`: only the toy, one clip at a time, fewer sampling steps.

    `dtypes`: the first is that of the larger cases; None: `formats()`, which leaves out an emulated bfloat16.
    """
    toy, small, dtypes = preset("toy"), preset("small"), dtypes or formats()
    fast, double = dtypes[0], replace(toy.vae, block_out_channels=(32, 64, 64, 128))
    three = ("encode", "decode", "training step")
    found = [VAECase("toy", toy.vae, op, dtype, 1, 17, 64) for op in three for dtype in dtypes]
    if not quick:
        found += [VAECase("toy", toy.vae, op, fast, 8, 17, 64) for op in three]
        if fast != torch.float32:
            found += [VAECase("toy", toy.vae, "training step, float32 weights", fast, 8, 17, 64, True),
                      VAECase("toy", toy.vae, "decode", torch.float32, 8, 17, 64)]
        found += [VAECase("toy, twice as wide", double, op, fast, 1, 17, 64) for op in three]
        found += [VAECase("small", small.vae, op, fast, 1, 9, 128) for op in three]
    found += [TransformerCase("toy", toy.transformer, op, dtype, 32)
              for op in ("forward", "training step") for dtype in dtypes]
    return found + [SamplingCase(toy, dtype, 10 if quick else 50) for dtype in dtypes]
