"""`minicogvx ablate stages`, and `latents`: the studies that count minutes instead of steps."""

import argparse
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch


def run(study, arguments: argparse.Namespace, out: Path, device: str, dtype: torch.dtype) -> None:
    """Trains the variants. The file is written after each, so that --resume can train the remaining ones.

    The curves of the best fifth are written together with those of their variant.
    """
    from tqdm import tqdm

    from minicogvx.ablation.results import place, write_results

    given = {name: getattr(arguments, name) for name in ("minutes", "best_fifth")}
    study = replace(study, **{name: value for name, value in given.items() if value is not None})
    names = _chosen(study, arguments.only)
    results = _begin(study, arguments, names, out, place(device, dtype))
    done = {(curve.name, curve.seed) for curve in results.curves}
    left = [(seed, [name for name in names if (name, seed) not in done]) for seed in range(arguments.seeds)]
    todo = tuple(name for name in names if any(name in of_seed for _, of_seed in left))
    minutes, start = results.minutes, time.perf_counter()

    def keep(curves: list) -> None:
        results.curves += curves
        results.seeds = sorted({curve.seed for curve in results.curves})
        results.minutes = round(minutes + (time.perf_counter() - start) / 60, 2)
        write_results(out, results)

    vae = _given_vae(arguments, device) if todo else None
    with tqdm(total=sum(_seconds(study, of_seed) for _, of_seed in left), unit="s", mininterval=5) as bar:

        def on_second(name: str) -> None:
            bar.set_description(f"{study.name}: {name}", refresh=False)
            bar.update()

        compare = comparison(study, todo, on_second, device, dtype, vae) if todo else None
        for seed, of_seed in left:
            if of_seed:
                compare(of_seed, seed, keep)
    for curve in results.curves:
        print(line(curve))
    print(out)


def _begin(study, arguments: argparse.Namespace, names: list[str], out: Path, here: str):
    """The results so far: none, or with --resume those in the file."""
    from minicogvx.ablation.results import Results

    threads = torch.get_num_threads()
    command = _command(study, arguments, arguments.seeds, names, threads, here)
    results = Results(study.name, command, [], None, torch.__version__, threads, 0.0, [], study.minutes,
                      getattr(study, "best_fifth", None), arguments.vae)
    if arguments.resume and out.exists():
        _keep_done(results, out, here)
        there = {curve.name for curve in results.curves} | set(names)
        seeds = max(arguments.seeds, 1 + max(results.seeds, default=0))  # the file also holds the kept ones
        results.command = _command(study, arguments, seeds, [name for name in study.variants if name in there],
                                   threads, here)
    return results


def _given_vae(arguments: argparse.Namespace, device: str):
    """The VAE of the model that --vae names, as training leaves it: in float32; without the option None."""
    if arguments.vae is None:
        return None
    import minicogvx

    return minicogvx.load(arguments.vae, device, torch.float32).vae


def comparison(study, names: tuple[str, ...], on_second=None, device: str = "cpu", dtype: torch.dtype | None = None,
               vae=None) -> Callable[[list[str], int, Callable[[list], None]], list]:
    """`compare(names, seed, on_curves)` of a study; for stages, encodes the clips first.

    `vae`: of a study of latents, for all variants and seeds; None: trained from scratch.
    """
    from minicogvx.ablation.latents import LatentsBench, compare_latents
    from minicogvx.ablation.latents_study import LatentsStudy
    from minicogvx.ablation.stages import compare_stages

    if isinstance(study, LatentsStudy):
        return partial(compare_latents, LatentsBench(study, device, dtype, vae=vae, on_second=on_second,
                                                     progress=True))
    return partial(compare_stages, make_bench(study, names, on_second, device, dtype))


def make_bench(study, names: tuple[str, ...], on_second=None, device: str = "cpu", dtype: torch.dtype | None = None):
    """The shipped model, whose VAE is used, and the study's clips at the sizes of these variants.

    `dtype`: of all passes; None is the fastest of `device`.
    """
    import minicogvx
    from minicogvx.ablation.stage_clips import encode_clips
    from minicogvx.ablation.stages import Bench

    pipe = minicogvx.load("toy", device, dtype)
    dtype = next(pipe.vae.parameters()).dtype
    clips = encode_clips(pipe.vae, study, study.sizes(names), dtype)
    sharp, best = ~clips.flawed, clips.best()
    print(f"of the best fifth, picked by steepness, {100 * sharp[best].float().mean():.1f} % are in focus; of all "
          f"clips {100 * sharp.float().mean():.1f} %")
    return Bench(study, clips, pipe, dtype=dtype, on_second=on_second)


def line(curve) -> str:
    """One run in a sentence."""
    from minicogvx.ablation.latents import LatentsCurve, say

    if isinstance(curve, LatentsCurve):
        return say(curve)
    shares = ", ".join(f"{name} {100 * value:.1f}" for name, value in curve.adherence.items() if name != "all")
    return (f"{curve.name}, seed {curve.seed}, {curve.seconds[-1]:.0f} s, {curve.steps[-1]:,} steps, "
            f"{curve.clips[-1]:,} clips, {curve.tokens[-1]:,} tokens: loss on validation clips {curve.loss[-1]:.4f} "
            f"(sharp ones {curve.loss_of_sharp[-1]:.4f}); {100 * curve.adherence['all']:.1f} % of {curve.measured} "
            f"captions obeyed ({shares}); sharpness {curve.sharpness:.3f} of true sharp clips")


def _chosen(study, only: list[str]) -> list[str]:
    for name in only:
        if name not in study.variants:
            raise ValueError(f"only is {name!r}; the variants of {study.name} are {'; '.join(study.variants)}")
    return [name for name in study.variants if name in only or not only]


def _seconds(study, names: list[str]) -> int:
    refined = 2 * int(60 * study.best_fifth) * (study.refined in names) if hasattr(study, "refined") else 0
    return len(names) * int(60 * study.minutes) + refined


def _command(study, arguments: argparse.Namespace, seeds: int, names: list[str], threads: int, here: str) -> str:
    only = "".join(f' --only "{name}"' for name in names) if len(names) < len(study.variants) else ""
    refined = f" --best-fifth {study.best_fifth:g}" if hasattr(study, "refined") else ""
    vae = f" --vae {shlex.quote(arguments.vae)}" if arguments.vae else ""
    return (f"minicogvx ablate {study.name} --seeds {seeds} --minutes {study.minutes:g}{refined}{vae}{only} --threads "
            f"{threads} {here}")


def _keep_done(results, out: Path, here: str) -> None:
    """Keeps the curves of the file; raises ValueError if they were made with other settings."""
    from minicogvx.ablation.results import check_place, read_results

    done = read_results(out)
    for name in ("name", "minutes_each", "best_fifth", "vae", "torch", "threads"):
        if getattr(done, name) != getattr(results, name):
            raise ValueError(f"{out} was made with {name}={getattr(done, name)!r}, this run has "
                             f"{getattr(results, name)!r}; name another file with --out to train all again")
    check_place(done.command, here, out)
    results.seeds, results.curves, results.minutes = done.seeds, done.curves, done.minutes
