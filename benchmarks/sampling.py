"""Ways to sample the same clips: more or fewer steps, skipped blocks, guidance in one batch or in two passes.

    python -m benchmarks.sampling [--model toy|FOLDER] [--clips 200] [--rounds 7] [--markdown] [--json FILE]

Seconds are those of one clip alone, from caption to pixels; all ways make it in turn, round by round. Then every way
makes a clip for each of `--clips` captions of the training split, from the same noise. Each clip is compared with that
of the reference, pixel by pixel and by what the oracle reads: a way that skips blocks or has two passes with the same
number of steps without either, and fewer steps with the most. Run nothing else meanwhile: it uses every core.
"""

import argparse
import copy
import gc
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import minicogvx
from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.scenes import Scene, sample_scenes
from minicogvx.evaluation.adherence import generate, judge
from minicogvx.evaluation.intervals import paired_difference, wilson
from minicogvx.evaluation.reconstruction import psnr
from minicogvx.options import add_device_options, chosen
from minicogvx.pipeline import Pipeline
from minicogvx.speedrun.machine import ceiling
from minicogvx.transformer.model import ExpertTransformer, flops

SCENES_SEED = 6_000_011  # of the captions; those of trainings and of the final figure have other seeds
HEADER = ("way", "s/clip", "quartiles", "blocks skipped", "PSNR", "reference", "obeyed", "95 % interval",
          "against reference, points", "95 % interval of it")


@dataclass(frozen=True)
class Way:
    """How to sample. `cache`: the threshold of `transformer/caching.py`. `two_passes`: guidance without one batch."""

    steps: int
    cache: float = 0.0
    two_passes: bool = False

    @property
    def name(self) -> str:
        return f"{self.steps} steps" + (f", cache {self.cache:g}" if self.cache else "") + (
            ", two passes" if self.two_passes else "")

    def of(self, pipe: Pipeline) -> Pipeline:
        """The pipeline that samples in this way, on the same weights."""
        other = copy.copy(pipe)
        other.cache = self.cache
        if self.two_passes:
            other.transformer = in_two_passes(pipe.transformer)
        return other


def ways(steps: Sequence[int], thresholds: Sequence[float]) -> dict[Way, Way | None]:
    """Every way and its reference, references first."""
    most, *fewer = sorted(set(steps), reverse=True)
    plain = {Way(most): None} | {Way(n): Way(most) for n in fewer}
    passes = Way(min(steps), two_passes=True)
    return plain | {passes: Way(passes.steps)} | {Way(way.steps, cache): way for way in plain for cache in thresholds}


def in_two_passes(transformer: ExpertTransformer) -> ExpertTransformer:
    """The same network, which runs once for each half of a batch: without captions, then with."""
    def forward(latents, t, text, ofs=None):
        halves = zip(*((None, None) if x is None else x.chunk(2) for x in (latents, t, text, ofs)))
        return torch.cat([transformer(*half) for half in halves])

    split = copy.copy(transformer)
    split.forward = forward
    return split


# ---- seconds


def seconds(pipe: Pipeline, plan: Sequence[Way], captions: Sequence[str]) -> dict[Way, list[float]]:
    """One clip of each caption by each way, in turn; the first caption is a warm-up and counts for nothing."""
    pipes, spent = {way: way.of(pipe) for way in plan}, {way: [] for way in plan}
    gc.collect()
    gc.disable()  # no garbage collection during a run
    try:
        for caption in captions:
            for way in plan:
                spent[way].append(timed(lambda: pipes[way](caption, num_inference_steps=way.steps)))
    finally:
        gc.enable()
    return {way: times[1:] for way, times in spent.items()}


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.no_grad()
def parts_of_a_clip(pipe: Pipeline, steps: int, repeats: int = 7) -> dict[str, float]:
    """Median seconds of captions, of all steps and of decoding, and of the steps' matrix products at the ceiling."""
    config, (frames, height, width) = pipe.transformer.config, pipe.vae.config.latent_size(*pipe.video_size)
    size = config.whole_patches(frames), height, width
    words = ["", "a red circle moves right"]
    text = pipe.text.encode(words).to(pipe.device, pipe.dtype)
    latents = torch.randn(2, config.in_channels, *size, device=pipe.device, dtype=pipe.dtype)
    times = torch.full((2,), 500, device=pipe.device)
    ofs = torch.full_like(times, 2, dtype=pipe.dtype) if config.ofs_embed_dim else None
    runs = {"captions": lambda: pipe.text.encode(words).cpu(),
            "steps": lambda: pipe.transformer(latents, times, text, ofs).cpu(),
            "decoding": lambda: pipe.decode(latents[:1, :config.out_channels, :frames])}
    median = {name: statistics.median([timed(run) for _ in range(repeats + 1)][1:]) for name, run in runs.items()}
    found = median | {"steps": steps * median["steps"]}
    if pipe.device.type == "cpu":
        bound = flops(config, size, text.shape[1], 2) / ceiling(pipe.dtype)
        found["the steps' matrix products at the ceiling"] = steps * bound
    return found


# ---- quality


@dataclass(frozen=True)
class Quality:
    """Of the clips of one way: the captions that each obeys, the mean PSNR in dB, and the share of blocks skipped."""

    obeyed: list[bool]
    psnr: float | None
    skipped: float


def quality(pipe: Pipeline, plan: dict[Way, Way | None], scenes: list[Scene], seed: int,
            batch_size: int) -> dict[Way, Quality]:
    """Every clip of every way against its reference."""
    found, kept, blocks = {}, {}, pipe.transformer.transformer_blocks
    for way, reference in plan.items():
        obeyed, distances, clips = [], [], []
        with counted(blocks) as rows:
            for i, (scene, _, clip) in enumerate(generate(way.of(pipe), scenes, seed, way.steps, None, batch_size)):
                obeyed.append(judge(clip, scene)[0]["all"])
                clips.append(clip.half())
                if reference:
                    distances.append(psnr(kept[reference][i].float(), clip))
        if way in plan.values():
            kept[way] = clips
        found[way] = Quality(obeyed, statistics.mean(distances) if distances else None,
                             1 - rows[blocks[-1]] / rows[blocks[0]])
    return found


@contextmanager
def counted(blocks: nn.ModuleList) -> Iterator[Counter]:
    """While open, counts the rows of all batches that the first block sees, and the last."""
    rows = Counter()
    hooks = [block.register_forward_pre_hook(lambda module, inputs: rows.update({module: len(inputs[0])}))
             for block in (blocks[0], blocks[-1])]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


# ---- the command


def cells(way: Way, reference: Way | None, times: list[float], found: Quality | None,
          of_reference: Quality | None) -> tuple[str, ...]:
    """One line of the table."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    line = way.name, f"{middle:.3f}", f"{low:.3f}-{high:.3f}"
    if found is None:
        return *line, *7 * ("-",)
    right, count = sum(found.obeyed), len(found.obeyed)
    line += (f"{100 * found.skipped:.0f} %", "-" if found.psnr is None else f"{found.psnr:.1f} dB",
             "-" if reference is None else reference.name, f"{100 * right / count:.1f} %",
             "{:.1f}-{:.1f} %".format(*(100 * end for end in wilson(right / count, count))))
    if of_reference is None:
        return *line, "-", "-"
    difference, *ends = (100 * value for value in paired_difference(found.obeyed, of_reference.obeyed))
    return *line, f"{difference:+.1f}", "{:+.1f} to {:+.1f}".format(*ends)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = _parse(arguments)
    pipe = minicogvx.load(options.model, *chosen(options))
    if pipe.image_to_video:
        raise SystemExit(f"{options.model} makes videos from a picture; give a model that needs none")
    plan, words = ways(options.steps, options.cache), random.Random(options.seed)
    scenes = sample_scenes(max(options.clips, options.rounds + 1), SCENES_SEED + options.seed, "train", 0.0)
    times = seconds(pipe, list(plan), [evaluation_caption(scene, words) for scene in scenes[:options.rounds + 1]])
    parts = parts_of_a_clip(pipe, min(options.steps))
    found = quality(pipe, plan, scenes[:options.clips], options.seed, options.batch_size) if options.clips else {}
    from benchmarks import table  # imports diffusers
    machine = {**table.machine(), **table.versions()}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"\n{options.model}, {pipe.device}, {pipe.dtype}, guidance {pipe.guidance_scale:g}, {options.rounds} rounds")
    print(f"one clip with {min(options.steps)} steps:", ", ".join(f"{name} {s:.3f} s" for name, s in parts.items()))
    print()
    print(table.render(HEADER, [cells(way, other, times[way], found.get(way), found.get(other))
                                for way, other in plan.items()], options.markdown))
    if options.json:
        rows = [{"way": way.name, "seconds": times[way], **(vars(found[way]) if found else {}),
                 "reference": other and other.name} for way, other in plan.items()]
        beside = options.json.with_name(options.json.name + ".part")
        beside.write_text(json.dumps({"machine": machine, "model": options.model, "device": str(pipe.device),
                                      "numbers": str(pipe.dtype), "parts": parts, "ways": rows}, indent=1) + "\n")
        os.replace(beside, options.json)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="toy", help="toy (default) or a folder")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 25], help="numbers of steps (default 50 25)")
    parser.add_argument("--cache", type=float, nargs="*", default=[0.05, 0.1, 0.2, 0.3],
                        help="thresholds below which blocks are skipped (default 0.05 0.1 0.2 0.3)")
    parser.add_argument("--clips", type=int, default=200, help="captions for the quality, 0 for none (default 200)")
    parser.add_argument("--rounds", type=int, default=7, help="clips timed of each way (default 7)")
    parser.add_argument("--batch-size", type=int, default=16, help="clips at once where none is timed (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="of captions and noise (default 0)")
    parser.add_argument("--markdown", action="store_true", help="print the table as GitHub markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to this file")
    add_device_options(parser)
    options = parser.parse_args(arguments)
    for name, least in (("clips", 0), ("rounds", 2), ("batch_size", 1), ("seed", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least {least}")
    if not all(1 <= n <= 1000 for n in options.steps):
        parser.error(f"--steps is {options.steps}; each must be from 1 to 1000")
    if not all(0 < threshold <= 1 for threshold in options.cache):
        parser.error(f"--cache is {options.cache}; each threshold must be above 0, at most 1")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"there is no folder {options.json.parent} to write {options.json.name} into")
    return options


if __name__ == "__main__":
    sys.exit(main())
