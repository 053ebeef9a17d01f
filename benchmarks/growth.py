"""How cost grows: seconds and peak memory of the VAE and of the transformer against frames and size of a clip.

    python -m benchmarks.growth [--preset toy|small] [--limit 30] [--memory-limit 8] [--out FOLDER]

Random weights, one clip. VAE: encode and decode, in the published chunks, as in sampling. Transformer: one denoising
step under guidance, a batch of two. The clips have 17 to 161 frames at the smallest and at the largest size, and 64 to
256 pixels at the fewest frames. FOLDER gets growth-PRESET.json and growth-PRESET.png. A point that could take longer,
or more memory, than the limits is left out, and the file says why. Run nothing else meanwhile: it uses every core.

The exponent p of a curve means cost ~ pixels^p, with the pixels of all frames. Attention grows with the square of the
tokens and the matrix products with their number: from the seconds of both at one number of tokens follows where
attention overtakes them.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import table
from benchmarks.growth_figure import draw
from benchmarks.growth_points import OPERATIONS, Curve, Limits, Point, measure_all
from minicogvx.compat import choose_dtype
from minicogvx.presets import preset
from minicogvx.speedrun.machine import ceiling

FRAMES, SIZES = (17, 33, 49, 81, 121, 161), (64, 96, 128, 160, 192, 256)  # pixel frames, pixels
COSTS = ("seconds", "peak_bytes")
HEADER = ("clips", "operation", "seconds ~ pixels^p", "95 % interval", "memory ~ pixels^p", "95 % interval ",
          "largest measured", "s", "MB")


def curves(frames: Sequence[int] = FRAMES, sizes: Sequence[int] = SIZES) -> list[Curve]:
    """More frames at the smallest size, larger frames of the shortest clip, more frames at the largest size."""
    small, large = sizes[0], sizes[-1]
    found = [Curve(f"more frames of {small}x{small}", "frames", tuple((n, small) for n in frames)),
             Curve(f"larger, {frames[0]} frames", "size", tuple((frames[0], size) for size in sizes)),
             Curve(f"more frames of {large}x{large}", "frames", tuple((n, large) for n in frames))]
    return found[:2 if small == large else 3]


def crossing(rows: Sequence[dict]) -> dict | None:
    """Tokens at which attention takes as long as the matrix products, by the measured point closest to that.

    "tokens_at_equal_rates" is where both have as many floating-point operations: 6 d in a plain transformer.
    """
    steps = [row for row in rows if "attention_seconds" in row]
    if not steps:
        return None
    near = min(steps, key=lambda row: abs(1 - row["attention_seconds"] / row["matrix_seconds"]))
    return {"tokens": near["tokens"] * near["matrix_seconds"] / near["attention_seconds"],
            "tokens_at_equal_rates": near["tokens"] * near["matrix_flops"] / near["attention_flops"],
            "measured_at_tokens": near["tokens"],
            "flops_per_second": {part: near[f"{part}_flops"] / near[f"{part}_seconds"]
                                 for part in ("attention", "matrix")}}


def frames_of(tokens: float, size: int, name: str) -> float:
    """Pixel frames of a clip of `size` x `size` pixels that has so many tokens."""
    sizes = preset(name)
    c, (_, *side) = sizes.transformer, sizes.vae.latent_size(1, size, size)
    latent_frames = (tokens - c.max_text_seq_length) / c.num_patches((c.patch[0], *side)) * c.patch[0]
    return (latent_frames - 1) * sizes.vae.temporal_compression_ratio + 1


def say_crossing(found: dict, size: int, name: str) -> str:
    """In tokens, and in frames of `size` x `size` pixels."""
    rates = found["flops_per_second"]
    return (f"Attention takes as long as the matrix products at {found['tokens']:.0f} tokens, which are "
            f"{frames_of(found['tokens'], size, name):.0f} frames of {size}x{size}: at {found['measured_at_tokens']} "
            f"tokens it reaches {rates['attention'] / 1e9:.0f} GFLOP/s, and they {rates['matrix'] / 1e9:.0f}. Their "
            f"operations are equal at {found['tokens_at_equal_rates']:.0f} tokens.")


def cells(curve: Curve, rows: Sequence[dict], operation: str) -> tuple[str, ...]:
    """One line of the table."""
    shown, points = [curve.name, operation], curve.of(rows, operation)
    for cost in COSTS:
        fitted = curve.exponent(rows, operation, cost)
        shown += ["-", "-"] if fitted is None else [f"{fitted[0]:.2f}", f"{fitted[1]:.2f}-{fitted[2]:.2f}"]
    if not points:
        return *shown, "-", "-", "-"
    last = points[-1]
    memory = "-" if last["peak_bytes"] is None else f"{last['peak_bytes'] / 1e6:.0f}"
    return *shown, f"{last['frames']} x {last['size']}x{last['size']}", f"{last['seconds']:.3g}", memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, draw."""
    options = _parse(arguments)
    dtype, plan = choose_dtype("cpu", options.dtype), curves(options.frames, options.sizes)
    points = {Point(options.preset, operation, *clip, dtype)
              for operation in OPERATIONS for curve in plan for clip in curve.clips}
    rows = measure_all(points, Limits(options.limit, options.memory_limit, options.seconds))
    where, best = crossing(rows), ceiling(dtype)
    machine = {**table.machine(), **table.versions()}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"\n{options.preset}, {dtype}, best matrix product (2048 x 2048) {best / 1e9:.0f} GFLOP/s\n")
    lines = [(curve, operation) for curve in plan for operation in OPERATIONS]
    print(table.render(HEADER, [cells(curve, rows, operation) for curve, operation in lines], options.markdown))
    if where:
        print(f"\n{say_crossing(where, options.sizes[-1], options.preset)}")
    fits = [{"clips": curve.name, "operation": operation, "cost": cost,
             "exponent": curve.exponent(rows, operation, cost)} for curve, operation in lines for cost in COSTS]
    result = {"machine": machine, "preset": options.preset, "numbers": str(dtype), "ceiling_flops_per_second": best,
              "points": rows, "exponents": fits, "crossing": where}
    path = options.out / f"growth-{options.preset}.json"
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(beside, path)
    print(f"\n{path}\n{draw(plan, rows, where, options.preset, path.with_suffix('.png'))}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=("micro", "toy", "small"), default="toy", help="default: toy")
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES, metavar="N", help="pixel frames, 4k + 1 each")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="height and width in pixels")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: this CPU's fastest")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on the runs of each point (default 1)")
    parser.add_argument("--limit", type=float, default=30.0, metavar="S", help="longest run, in seconds (default 30)")
    parser.add_argument("--memory-limit", type=float, default=8.0, metavar="GB", help="most memory (default 8)")
    parser.add_argument("--out", type=Path, default=Path("outputs"), metavar="FOLDER", help="default: outputs")
    parser.add_argument("--markdown", action="store_true", help="print the table as GitHub markdown")
    options = parser.parse_args(arguments)
    sizes = preset(options.preset)
    step = sizes.vae.temporal_compression_ratio
    unit = sizes.vae.spatial_compression_ratio * sizes.transformer.patch_size
    options.frames, options.sizes = sorted(set(options.frames)), sorted(set(options.sizes))
    if any(n < 1 or (n - 1) % step for n in options.frames):
        parser.error(f"--frames is {options.frames}; each must be {step}k + 1")
    if any(n < unit or n % unit for n in options.sizes):
        parser.error(f"--sizes is {options.sizes}; each must be a multiple of {unit}")
    for name in ("seconds", "limit", "memory_limit"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be above 0")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out is {options.out}, which is a file; it must be a folder")
    options.out.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
