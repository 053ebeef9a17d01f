"""`minicogvx ablate stages`: the study that counts minutes instead of steps."""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch


def run(study, arguments: argparse.Namespace, out: Path, device: str, dtype: torch.dtype) -> None:
    """Trains the variants. The file is written after each, so that --resume can train the remaining ones.

    The curves of the best fifth are written together with those of their variant.
    """
    from tqdm import tqdm

    from minicogvx.ablation.results import place, write_results
    from minicogvx.ablation.stages import compare_stages

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

    with tqdm(total=sum(_seconds(study, of_seed) for _, of_seed in left), unit="s", mininterval=5) as bar:

        def on_second(name: str) -> None:
            bar.set_description(f"{study.name}: {name}", refresh=False)
            bar.update()

        bench = make_bench(study, todo, on_second, device, dtype) if todo else None
        for seed, of_seed in left:
            if of_seed:
                compare_stages(bench, of_seed, seed, keep)
    for curve in results.curves:
        print(line(curve))
    print(out)


def _begin(study, arguments: argparse.Namespace, names: list[str], out: Path, here: str):
    """The results so far: none, or with --resume those in the file."""
    from minicogvx.ablation.results import Results

    threads = torch.get_num_threads()
    command = _command(study, arguments.seeds, names, threads, here)
    results = Results(study.name, command, [], None, torch.__version__, threads, 0.0, [], study.minutes,
                      study.best_fifth)
    if arguments.resume and out.exists():
        _keep_done(results, out, here)
        there = {curve.name for curve in results.curves} | set(names)
        seeds = max(arguments.seeds, 1 + max(results.seeds, default=0))  # the file also holds the kept ones
        results.command = _command(study, seeds, [name for name in study.variants if name in there], threads,
                                   here)
    return results


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
    return len(names) * int(60 * study.minutes) + 2 * int(60 * study.best_fifth) * (study.refined in names)


def _command(study, seeds: int, names: list[str], threads: int, here: str) -> str:
    only = "".join(f' --only "{name}"' for name in names) if len(names) < len(study.variants) else ""
    return (f"minicogvx ablate {study.name} --seeds {seeds} --minutes {study.minutes:g} "
            f"--best-fifth {study.best_fifth:g}{only} --threads {threads} {here}")


def _keep_done(results, out: Path, here: str) -> None:
    """Keeps the curves of the file; raises ValueError if they were made with other settings."""
    from minicogvx.ablation.results import check_place, read_results

    done = read_results(out)
    for name in ("name", "minutes_each", "best_fifth", "torch", "threads"):
        if getattr(done, name) != getattr(results, name):
            raise ValueError(f"{out} was made with {name}={getattr(done, name)!r}, this run has "
                             f"{getattr(results, name)!r}; name another file with --out to train all again")
    check_place(done.command, here, out)
    results.seeds, results.curves, results.minutes = done.seeds, done.curves, done.minutes
