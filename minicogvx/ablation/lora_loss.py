"""What the loss of a LoRA shows, and what it does not.

    python -m minicogvx.ablation.lora_loss      # data/results/lora-loss.json and docs/lora_loss.png

The toy learns a style from 192 clips in sepia, as in docs/results.md but shorter. Every so many steps two things are
measured: the loss on clips held back, at five timesteps, and the share of generated clips that show the style.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange

from minicogvx.ablation.compare import Measuring
from minicogvx.ablation.rounding import short_numbers
from minicogvx.ablation.timesteps import NotingRun, roughness
from minicogvx.compat import choose_dtype
from minicogvx.data.clips.clips import Selected
from minicogvx.data.clips.world import STORED, WorldClips
from minicogvx.data.world.scenes import Scene, sample_scenes
from minicogvx.data.world.styles import Style, render_styled, style
from minicogvx.engine.ranks import Ranks
from minicogvx.evaluation.finetuning import measure_style
from minicogvx.evaluation.intervals import wilson
from minicogvx.files import written_whole
from minicogvx.interop import DATA
from minicogvx.pipeline import Pipeline
from minicogvx.training.batches import Steps
from minicogvx.training.loop import fit
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.stages import Stage
from minicogvx.training.start import prepared_transformer, with_transformer
from minicogvx.training.transformer import TransformerTask
from minicogvx.training.validation import TIMESTEPS, Validation
from minicogvx.vae import CausalVAE

LORA_LOSS = DATA / "results" / "lora-loss.json"
FIGURE = DATA.parent / "docs" / "lora_loss.png"
LEARNT, HELD_BACK, ASKED = 192, 32, 48
MEASURED = (0, 10, 25, 50, 100, 150)  # steps


@torch.no_grad()
def styled_clips(vae: CausalVAE, scenes: list[Scene], look: Style, num_frames: int, side: int) -> WorldClips:
    """Scenes drawn in a style and encoded; their captions do not mention it."""
    weight, means, stds = next(vae.parameters()), [], []
    for i in range(0, len(scenes), 16):
        video = render_styled(scenes[i:i + 16], look, num_frames, side, side)
        posterior = vae.encode((rearrange(video, "b t h w c -> b c t h w") * 2 - 1).to(weight))
        means.append(posterior.mean.to(STORED))
        stds.append(posterior.std.to(STORED))
    mean, std = torch.cat(means), torch.cat(stds)
    covered = torch.zeros(len(scenes), *mean.shape[2:], 0)  # what only an alignment loss asks for
    return WorldClips(scenes, mean, std, vae.config.scaling_factor, covered, side)


def watched_lora(steps: int, seed: int = 0, measured: Sequence[int] = MEASURED, asked: int = ASKED) -> dict:
    """A LoRA of rank 16 on the toy: the loss of each step, and at the steps `measured` the losses on clips held back,
    by timestep, and the shares of `asked` generated clips that show the style and that keep their shape and motion."""
    started, dtype, look = time.perf_counter(), choose_dtype("cpu", training=True), style("sepia")
    toy = Pipeline.load("toy", "cpu", torch.float32)
    toy.vae.to(dtype)
    scenes = sample_scenes(LEARNT + HELD_BACK, 11, two_objects=0.0)
    clips = styled_clips(toy.vae, scenes, look, toy.video_size.num_frames, toy.video_size.height)
    training = TransformerTraining((Stage(steps, batch_size=16),), learning_rate=3e-3, warmup=min(20, steps),
                                   lora_rank=16, lora_alpha=16.0, timesteps="stratified")
    model = prepared_transformer(copy.deepcopy(toy.transformer), training)
    task = TransformerTask(model, toy.text, toy.schedule_config, training, Ranks(), dtype)
    validation = Validation(Selected(clips, range(LEARNT, len(clips))), 1, most=HELD_BACK)
    questions = sample_scenes(asked, 78, two_objects=0.0)
    found = {"seed": seed, "steps": [], "style": [], "kept": [], **{f"loss_{t}": [] for t in TIMESTEPS}, "training": []}

    def measure(done: int) -> None:
        if done not in measured and done != steps:
            return
        losses = validation(done, task)
        with task.averaged_weights():
            score = measure_style(with_transformer(toy, task.model), questions, look, 1, 10, progress=False)
        values = {"steps": done, "style": score.share["style"], "kept": score.share["kept"], **losses}
        for name in found.keys() & values.keys():
            found[name].append(values[name])
        print({name: round(value, 4) for name, value in values.items()}, flush=True)

    measure(0)
    with torch.enable_grad():
        fit(task, Steps(Selected(clips, range(LEARNT)), training, model.config, seed=seed),
            NotingRun("lora", steps, found["training"]),
            lambda step: training.schedule_at(step, steps, training.warmup), [Measuring("lora", steps, 1, measure)])
    return found | {"seconds": round(time.perf_counter() - started)}


def say_lora_loss(run: dict, asked: int = ASKED) -> str:
    """The measurements as a table, and how far the loss of one step is from that of the next."""
    lines = ["steps  " + "  ".join(f"t={t}" for t in TIMESTEPS) + "   mean   style (95 % interval)   kept"]
    for i, step in enumerate(run["steps"]):
        losses = [run[f"loss_{t}"][i] for t in TIMESTEPS]
        low, high = wilson(run["style"][i], asked)
        lines.append(f"{step:5d}  " + "  ".join(f"{loss:.3f}" for loss in losses)
                     + f"  {statistics.fmean(losses):.3f}   {run['style'][i]:4.0%} ({low:.0%} to {high:.0%})"
                     + f"          {run['kept'][i]:.0%}")
    tail = run["training"][len(run["training"]) // 3:]
    lines.append(f"training loss of one step, the last two thirds: mean {statistics.fmean(tail):.3f}, noise "
                 f"{roughness(tail):.3f} (standard deviation)")
    return "\n".join(lines)


def lora_loss_figure(run: dict):
    """Two panels over the steps: the losses, and the share of clips in the style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(range(1, len(run["training"]) + 1), run["training"], color="#BBBBBB", linewidth=0.8,
              label="training, each step")
    for t, colour, mark in zip(TIMESTEPS, ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00"), "os^Dv"):
        left.plot(run["steps"], run[f"loss_{t}"], color=colour, marker=mark, markersize=4, label=f"held back, t = {t}")
    left.set(xlabel="steps", ylabel="loss", ylim=(0, None))
    left.legend(fontsize=7)
    bounds = [wilson(share, ASKED) for share in run["style"]]
    shares = [100 * share for share in run["style"]]
    right.errorbar(run["steps"], shares, [[max(0.0, share - 100 * low) for share, (low, _) in zip(shares, bounds)],
                                          [max(0.0, 100 * high - share) for share, (_, high) in zip(shares, bounds)]],
                   color="#0072B2", marker="o", markersize=4, capsize=3, label="in sepia")
    right.plot(run["steps"], [100 * share for share in run["kept"]], "s--", color="#D55E00", markersize=4,
               label="shape, motion and count right")
    right.set(xlabel="steps", ylabel=f"% of {ASKED} generated clips", ylim=(-4, 104))
    right.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0.02, 0.85))
    return figure


def main(argv: list[str] | None = None) -> int:
    """Trains, measures and writes; about four minutes on one core."""
    parser = argparse.ArgumentParser(prog="python -m minicogvx.ablation.lora_loss", description=main.__doc__)
    parser.add_argument("--steps", type=int, default=MEASURED[-1])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=LORA_LOSS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args(argv)
    run = watched_lora(options.steps, options.seed)
    content = {"command": f"python -m minicogvx.ablation.lora_loss --steps {options.steps} --seed {options.seed}",
               "asked": ASKED, "torch": torch.__version__, "threads": torch.get_num_threads()}
    with written_whole(options.out) as part:
        part.write_text(json.dumps(content | short_numbers(run)) + "\n", encoding="utf-8")
    with written_whole(options.figure) as part:
        lora_loss_figure(run).savefig(part, format="png", dpi=130)
    print(say_lora_loss(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
