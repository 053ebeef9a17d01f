"""Frame pack against bucketing and padding: training steps of the toy's transformer on one mixture of clips.

    python -m benchmarks.packing [--dtype float32] [--markdown] [--json FILE] [--seconds S]

Every way gets the same clips and `sequence_length` tokens per step, and covers whole epochs. Some of the steps of each
epoch are timed, selected evenly from those with few clips to those with many; all ways alternate. A step is forward,
v-prediction loss, backward and AdamW. Run nothing else meanwhile: it uses every core.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import difference
from benchmarks.mixtures import TOY_MIXTURE, ClipSize, Mixture, bucketed_batches, filled_share, padded_batches
from minicogvx.compat import choose_dtype
from minicogvx.data.clips.packs import Pack, frame_packs
from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.presets import preset
from minicogvx.training.packed import packed_diffusion_loss
from minicogvx.transformer.model import ExpertTransformer

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}  # relative, of a pack's losses
HEADER = ("way", "filled", "clips/step", "useful clips/s", "useful tokens/s", "steps/s", "against frame pack",
          "quartiles")


@dataclass(frozen=True)
class Way:
    """One way to group clips into steps. `loss`: the loss of a step, given the clips' indices."""

    name: str
    epoch: list[Pack]  # the steps of one pass over the clips
    timed: list[Pack]
    loss: Callable[[Pack], Tensor]


class Trainer:
    """A model with random weights, its optimizer, and the clips, whose tensors are created before timing."""

    def __init__(self, mixture: Mixture, sizes: Sequence[ClipSize], dtype: torch.dtype):
        self.model_preset, self.sizes, self.dtype = preset(mixture.preset), sizes, dtype
        self.tokens = mixture.tokens(sizes)
        self.model = ExpertTransformer(self.model_preset.transformer)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.model.parameters():
            if parameter.ndim > 1:  # also the modulations, whose zero gates would switch off the blocks
                parameter.data.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        self.model.to(dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.schedule = NoiseSchedule(self.model_preset.schedule)
        self.made: dict[tuple, tuple] = {}

    def inputs(self, i: int, like: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, text features, timestep and noise of clip `i`, at the size of clip `like` if that is given."""
        size = self.sizes[i if like is None else like]
        if (i, size) not in self.made:
            config, generator = self.model_preset.transformer, torch.Generator().manual_seed(i)
            shape = (config.in_channels, *size.latent_size(self.model_preset))
            latents, noise = (torch.randn(shape, generator=generator) for _ in range(2))
            text = torch.randn(config.max_text_seq_length, config.text_embed_dim, generator=generator).to(self.dtype)
            self.made[i, size] = latents, text, torch.randint(1000, (), generator=generator), noise
        return self.made[i, size]

    def packed(self, pack: Pack) -> Tensor:
        """The packed loss of every clip."""
        latents, texts, t, noises = zip(*(self.inputs(i) for i in pack.indices))
        return packed_diffusion_loss(self.model, self.schedule, latents, texts, torch.stack(t), noises)

    def one_by_one(self, pack: Pack) -> Tensor:
        """The losses of the same clips, each in its own forward pass."""
        return torch.cat([self._batch([self.inputs(i)]) for i in pack.indices])

    def batched(self, pack: Pack) -> Tensor:
        """The losses of clips of one size, in an ordinary batch."""
        return self._batch([self.inputs(i) for i in pack.indices])

    def padded(self, pack: Pack) -> Tensor:
        """A batch in which every clip is as large as the longest: the work of a padded batch, without its mask."""
        longest = max(pack.indices, key=lambda i: self.tokens[i])
        return self._batch([self.inputs(i, like=longest) for i in pack.indices])

    def _batch(self, inputs: list[tuple]) -> Tensor:
        latents, texts, t, noises = map(torch.stack, zip(*inputs))
        noisy = self.schedule.add_noise(latents, noises, t).to(self.dtype)
        return diffusion_loss(self.model(noisy, t, texts), latents, noises, t, self.schedule)

    def step(self, way: Way, pack: Pack) -> float:
        """One training step; returns its seconds."""
        start = time.perf_counter()
        way.loss(pack).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def ways(trainer: Trainer, room: int, steps: int, seed: int = 0) -> list[Way]:
    """Frame pack first. Incomplete buckets at the end of the epoch are dropped; in a long one they are few.

    Raises ValueError if the clips fill no bucket.
    """
    tokens = trainer.tokens
    packs = list(frame_packs(tokens, room, seed))
    buckets = [batch for batch in bucketed_batches(tokens, trainer.sizes, room, seed)
               if (len(batch.indices) + 1) * tokens[batch.indices[0]] > room]
    if not buckets:
        raise ValueError(f"{len(tokens)} clips fill no bucket of {room} tokens; take more clips")
    padded = list(padded_batches(tokens, room, seed))
    plan = (("frame pack", packs, trainer.packed), ("bucketing", buckets, trainer.batched),
            ("padding", padded, trainer.padded), ("one clip at a time", packs, trainer.one_by_one))
    return [Way(name, epoch, spread(epoch, steps), loss) for name, epoch, loss in plan]


def spread(epoch: list[Pack], steps: int) -> list[Pack]:
    """`steps` of the epoch, evenly selected from those with the fewest clips to those with the most."""
    ranked = sorted(epoch, key=lambda pack: (len(pack.indices), pack.indices))
    steps = min(steps, len(ranked))
    return [ranked[int((j + 0.5) * len(ranked) / steps)] for j in range(steps)]


def agreement(trainer: Trainer, pack: Pack) -> float:
    """The relative difference between packed losses and those of the clips one by one."""
    with torch.no_grad():
        return difference([trainer.packed(pack)], [trainer.one_by_one(pack)])


def measure(trainer: Trainer, plan: list[Way], seconds: float) -> dict[str, list[float]]:
    """Seconds of every round of each way; a round is all its timed steps. Ways alternate step by step."""
    for way in plan:
        for pack in way.timed:  # creates the tensors and loads the kernels
            trainer.step(way, pack)
    rounds = {way.name: [] for way in plan}
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        while len(rounds[plan[0].name]) < 3 or time.perf_counter() - start < seconds:
            spent = dict.fromkeys(rounds, 0.0)
            for j in range(max(len(way.timed) for way in plan)):
                for way in plan:
                    spent[way.name] += trainer.step(way, way.timed[j]) if j < len(way.timed) else 0.0
            for name, total in spent.items():
                rounds[name].append(total)
    finally:
        gc.enable()
    return rounds


def figures(trainer: Trainer, plan: list[Way], rounds: dict[str, list[float]]) -> list[dict]:
    """The rows to print, one per way.

    Useful tokens per second are measured; useful clips per second are these tokens over the mixture's mean clip, so
    that the selection of timed steps does not favour short clips.
    """
    mean_clip = sum(trainer.tokens) / len(trainer.tokens)
    reference = [sum(pack.tokens for pack in plan[0].timed) / s for s in rounds[plan[0].name]]
    rows = []
    for way in plan:
        useful, spent = sum(pack.tokens for pack in way.timed), rounds[way.name]
        rate = useful / statistics.median(spent)
        ratios = [useful / s / base for s, base in zip(spent, reference)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows.append({"way": way.name, "filled": filled_share(way.epoch),
                     "clips_per_step": sum(len(pack.indices) for pack in way.epoch) / len(way.epoch),
                     "useful_clips_per_second": rate / mean_clip, "useful_tokens_per_second": rate,
                     "steps_per_second": len(way.timed) / statistics.median(spent),
                     "against_frame_pack": statistics.median(ratios), "quartiles": (low, high), "seconds": spent})
    return rows


def cells(row: dict) -> tuple[str, ...]:
    """One line of the table."""
    low, high = row["quartiles"]
    return (row["way"], f"{100 * row['filled']:.1f} %", f"{row['clips_per_step']:.1f}",
            f"{row['useful_clips_per_second']:.1f}", f"{row['useful_tokens_per_second']:.0f}",
            f"{row['steps_per_second']:.2f}", f"{row['against_frame_pack']:.2f}", f"{low:.2f}-{high:.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, print, write. Returns 1 if the packed loss differs from that of the clips one by one."""
    options = _parse(arguments)
    dtype, mixture = getattr(torch, options.dtype), TOY_MIXTURE
    trainer = Trainer(mixture, mixture.draw(options.clips, seed=0), dtype)
    plan = ways(trainer, mixture.sequence_length, options.steps)
    apart = agreement(trainer, plan[0].timed[0])
    if not apart <= TOLERANCE[dtype]:
        print(f"DISAGREE: the packed loss differs by {apart:.1e}, allowed is {TOLERANCE[dtype]:.0e}")
        return 1
    from benchmarks import table  # imports diffusers
    rows = figures(trainer, plan, measure(trainer, plan, options.seconds))
    machine = {**table.machine(), **table.versions()}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"\n{mixture.preset} transformer, {options.dtype}, {mixture.sequence_length} tokens a step, "
          f"{options.clips} clips of {sum(trainer.tokens) / len(trainer.tokens):.0f} tokens in the mean, "
          f"{len(plan[0].timed)} steps timed, {len(rows[0]['seconds'])} rounds; "
          f"packed and separate losses differ by {apart:.0e}\n")
    print(table.render(HEADER, [cells(row) for row in rows], options.markdown))
    if options.json:
        beside = options.json.with_name(options.json.name + ".part")
        beside.write_text(json.dumps({"machine": machine, "numbers": options.dtype, "difference": apart, "ways": rows},
                                     indent=1) + "\n")
        os.replace(beside, options.json)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__.splitlines()[0])
    fastest = str(choose_dtype("cpu")).removeprefix("torch.")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=fastest,
                        help="of weights and activations (default: this CPU's fastest)")
    parser.add_argument("--clips", type=int, default=4000, help="clips of the epoch that is packed (default 4000)")
    parser.add_argument("--steps", type=int, default=8, help="steps timed of each way (default 8)")
    parser.add_argument("--seconds", type=float, default=30.0, help="time spent, three rounds at least (default 30)")
    parser.add_argument("--markdown", action="store_true", help="print the table as GitHub markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to this file")
    options = parser.parse_args(arguments)
    for name in ("clips", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"there is no folder {options.json.parent} to write {options.json.name} into")
    return options


if __name__ == "__main__":
    sys.exit(main())
