"""The points of `benchmarks.growth`, each one operation on one clip, and the curves on which they lie."""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import sdpa_flop_count

from benchmarks.measure import peak_memory
from benchmarks.sides import OURS
from minicogvx.evaluation.intervals import exponent
from minicogvx.presets import preset
from minicogvx.room import is_out_of_memory
from minicogvx.transformer.attention import attention
from minicogvx.transformer.block import Block
from minicogvx.transformer.model import ExpertTransformer, flops
from minicogvx.vae import CausalVAE

ENCODE, DECODE, STEP = "VAE encode", "VAE decode", "transformer step"
OPERATIONS = (ENCODE, DECODE, STEP)
BATCH = 2  # of a step under guidance: without the caption, and with it


@dataclass(frozen=True)
class Limits:
    """Of one run. `seconds`: the longest; `gigabytes`: the most memory; `spent`: on the runs of each point."""

    seconds: float
    gigabytes: float
    spent: float


@dataclass(frozen=True)
class Curve:
    """Clips of which `along`, "frames" or "size", grows while the other stays."""

    name: str
    along: str
    clips: tuple[tuple[int, int], ...]  # frames, size in pixels

    def of(self, rows: Sequence[dict], operation: str) -> list[dict]:
        """The measured points of an operation on the curve, in order."""
        found = [row for row in rows if row["operation"] == operation and (row["frames"], row["size"]) in self.clips]
        return sorted((row for row in found if "seconds" in row), key=lambda row: row[self.along])

    def exponent(self, rows: Sequence[dict], operation: str, cost: str) -> tuple[float, float, float] | None:
        """p of cost ~ pixels^p and its interval; None for fewer than three points."""
        points = [row for row in self.of(rows, operation) if row[cost]]
        return exponent([row["frames"] * row["size"]**2 for row in points], [row[cost] for row in points])


@dataclass(frozen=True)
class Point:
    """One operation on one square clip: a case for `measure.peak_memory`."""

    preset: str
    operation: str
    frames: int
    size: int  # pixels
    dtype: torch.dtype

    @property
    def part(self) -> str:
        return f"{self.operation} of {self.frames} frames of {self.size}x{self.size}"

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        return preset(self.preset).vae.latent_size(self.frames, self.size, self.size)

    @property
    def tokens(self) -> int:
        """Of text and video, for the transformer."""
        config = preset(self.preset).transformer
        return config.max_text_seq_length + config.num_patches(self.latent_size)

    @property
    def work(self) -> int:
        """What the seconds should be proportional to: of a step its floating-point operations, of the VAE pixels."""
        if self.operation != STEP:
            return self.frames * self.size**2
        config = preset(self.preset).transformer
        return flops(config, self.latent_size, config.max_text_seq_length, BATCH)

    def side(self, who: str) -> "Side":
        return Side(self)  # there is one program only


class Side:
    """The network with random weights, on which the cost does not depend."""

    def __init__(self, point: Point):
        self.point, sizes = point, preset(point.preset)
        torch.manual_seed(0)
        network = ExpertTransformer(sizes.transformer) if point.operation == STEP else CausalVAE(sizes.vae)
        self.network, self.config = network.to(point.dtype).eval(), network.config

    def inputs(self, small: bool = False) -> tuple[Tensor, ...]:
        point, c = self.point, self.config
        frames, size = (9, 32) if small else (point.frames, point.size)
        if point.operation == ENCODE:
            return (torch.rand(1, c.in_channels, frames, size, size).to(point.dtype) * 2 - 1,)
        latents = preset(point.preset).vae.latent_size(frames, size, size)
        if point.operation == DECODE:
            return (torch.randn(1, c.latent_channels, *latents).to(point.dtype),)
        return (torch.randn(BATCH, c.in_channels, *latents).to(point.dtype), torch.full((BATCH,), 500),
                torch.randn(BATCH, c.max_text_seq_length, c.text_embed_dim).to(point.dtype))

    @torch.no_grad()
    def run(self, inputs: tuple[Tensor, ...]) -> None:
        runs = {ENCODE: "encode", DECODE: "decode", STEP: "forward"}
        getattr(self.network, runs[self.point.operation])(*inputs)


def measure_all(points: Iterable[Point], limits: Limits) -> list[dict]:
    """A row for each point, from little work to much; one that could exceed the limits has a reason in "skipped"."""
    rows: dict[Point, dict] = {}
    for point in sorted(points, key=lambda point: (point.operation, point.work)):
        reason = beyond(point, rows, limits)
        found = {"skipped": reason} if reason else measure(point, limits)
        rows[point] = {"operation": point.operation, "frames": point.frames, "size": point.size, **found}
        said = found.get("skipped") or f"{found['seconds']:.3g} s"
        print(f"{point.part}: {said}", file=sys.stderr, flush=True)
        gc.collect()
    return list(rows.values())


def beyond(point: Point, rows: dict[Point, dict], limits: Limits) -> str | None:
    """Why a point could exceed a limit; None for one that should not.

    Judged by the largest measured point of the same operation with as many frames or of the same size: seconds and
    memory are taken to grow with the work.
    """
    alike = [other for other in rows if other.operation == point.operation]
    if any("skipped" in rows[other] and other.frames <= point.frames and other.size <= point.size for other in alike):
        return "a smaller clip was left out already"
    near = [other for other in alike if "seconds" in rows[other]
            and (other.frames == point.frames or other.size == point.size)]
    if not near:
        return None
    largest = max(near, key=lambda other: other.work)
    times, measured = point.work / largest.work, rows[largest]
    seconds, gigabytes = times * measured["seconds"], times * (measured["peak_bytes"] or 0) / 1e9
    if seconds > limits.seconds:
        return f"it would take about {seconds:.0f} s, and the limit is {limits.seconds:g} s"
    if gigabytes > limits.gigabytes:
        return f"it could need {gigabytes:.1f} GB, and the limit is {limits.gigabytes:g} GB"
    return None


def measure(point: Point, limits: Limits) -> dict:
    """Seconds and peak bytes, None where the system does not tell; of a step also the seconds of its parts."""
    try:
        memory = peak_memory(point, OURS)
        side = point.side(OURS)
        inputs = side.inputs()
        found = {"seconds": median_seconds(lambda: side.run(inputs), limits.spent), "peak_bytes": memory}
        return found | (parts_of_a_step(point, limits.spent / 2) if point.operation == STEP else {})
    except RuntimeError as error:  # the process that measures the memory raises one if the system ends it
        if not (is_out_of_memory(error) or str(error).startswith("measuring the memory")):
            raise
        return {"skipped": f"there was not enough memory: {str(error).splitlines()[0]}"}


@torch.no_grad()
def parts_of_a_step(point: Point, spent: float) -> dict:
    """Seconds and floating-point operations of the attention and of the matrix products of all blocks."""
    config, tokens, d = preset(point.preset).transformer, point.tokens, preset(point.preset).transformer.width
    q, k, v = (torch.randn(BATCH, config.num_attention_heads, tokens, config.attention_head_dim).to(point.dtype)
               for _ in range(3))
    x, wide = (torch.randn(BATCH, tokens, width).to(point.dtype) for width in (d, 4 * d))
    block = Block(config).to(point.dtype)
    attn, (up, _, down) = block.attn1, block.ff.net

    def products() -> None:
        for linear in (attn.to_q, attn.to_k, attn.to_v, attn.to_out[0], up.proj):
            linear(x)
        down(wide)

    of_attention = config.num_layers * sdpa_flop_count(q.shape, k.shape, v.shape)
    return {"tokens": tokens, "attention_flops": of_attention, "matrix_flops": point.work - of_attention,
            "attention_seconds": config.num_layers * median_seconds(lambda: attention(q, k, v), spent),
            "matrix_seconds": config.num_layers * median_seconds(products, spent)}


def median_seconds(run: Callable[[], object], spent: float) -> float:
    """Of at least two runs, and as many as fit into `spent` seconds, after one that loads kernels."""
    times = []
    while len(times) < 3 or sum(times) < spent and len(times) < 30:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
