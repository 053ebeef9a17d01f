"""What is compared: parts, sizes, operations and number formats."""

from dataclasses import dataclass, replace

import torch

from benchmarks.sides import SamplingSide, TransformerSide, VAESide
from minicogvx.presets import Preset, TransformerConfig, VAEConfig, preset

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # relative; bfloat16 keeps 8 bits of each number


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
        # Many steps under guidance enlarge the rounding of bfloat16; two unrelated videos differ by about 1.
        return 0.3 if self.dtype == torch.bfloat16 else TOLERANCE[self.dtype]

    def side(self, who: str) -> SamplingSide:
        return SamplingSide(who, self.preset, self.dtype, self.steps)


Case = VAECase | TransformerCase | SamplingCase


def cases(quick: bool = False) -> list[Case]:
    """Every case, in the order of the table. `quick`: only the toy, one clip at a time, fewer sampling steps."""
    toy, small, both = preset("toy"), preset("small"), (torch.bfloat16, torch.float32)
    double = replace(toy.vae, block_out_channels=(32, 64, 64, 128))
    three = ("encode", "decode", "training step")
    found = [VAECase("toy", toy.vae, op, dtype, 1, 17, 64) for op in three for dtype in both]
    if not quick:
        found += [VAECase("toy", toy.vae, op, torch.bfloat16, 8, 17, 64) for op in three]
        found += [VAECase("toy", toy.vae, "training step, float32 weights", torch.bfloat16, 8, 17, 64, True)]
        # float32 at eight clips: decode alone, as the slowest of the others takes diffusers most of a minute
        found += [VAECase("toy", toy.vae, "decode", torch.float32, 8, 17, 64)]
        found += [VAECase("toy, twice as wide", double, op, torch.bfloat16, 1, 17, 64) for op in three]
        found += [VAECase("small", small.vae, op, torch.bfloat16, 1, 9, 128) for op in three]
    found += [TransformerCase("toy", toy.transformer, op, dtype, 32)
              for op in ("forward", "training step") for dtype in both]
    return found + [SamplingCase(toy, dtype, 10 if quick else 50) for dtype in both]
