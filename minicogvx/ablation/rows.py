"""A study one run at a time: each variant of each seed is a row of the file, written as soon as it is trained.

So an interrupted study keeps every run that is done, also those of a seed that is not complete.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from minicogvx.ablation.compare import OnStep
from minicogvx.ablation.comparing import Compare
from minicogvx.ablation.results import Results, check_place, place, read_results, write_results


def begin(study, seeds: int, steps: int, device: str, dtype: torch.dtype, kept: Path | None = None,
          called: str | None = None) -> Results:
    """The results so far: none, or those in the file `kept`.

    called: how the command names the study, if not by its own name. Raises ValueError, in one sentence, if the file was
    made with other settings.
    """
    here, settings = place(device, dtype), getattr(study, "settings", None)
    results = Results(study.name, "", [], steps, torch.__version__, torch.get_num_threads(), 0.0, [], settings=settings)
    if kept is not None and kept.exists():
        _keep_done(results, study, kept, here)
    all_seeds = max(seeds, 1 + max(results.seeds, default=0))  # the file also holds the kept ones
    results.command = (f"minicogvx ablate {called or study.name} --seeds {all_seeds} --steps {steps} --threads "
                       f"{results.threads} {here}")
    return results


def missing(study, results: Results, seeds: int) -> list[tuple[int, str]]:
    """(seed, variant) of each run that the results lack, in order."""
    done = {(curve.name, curve.seed) for curve in results.curves}
    return [(seed, name) for seed in range(seeds) for name in study.variants
            if any((name + behind, seed) not in done for behind in _judged(study))]


def train_missing(study, results: Results, left: Sequence[tuple[int, str]], compare: Compare, out: Path | None,
                  on_step: OnStep | None = None) -> None:
    """Trains the runs in `left`, adds their curves to `results` and writes `out`, if any, after each of them."""
    order = {name + behind: place for place, name in enumerate(study.variants) for behind in _judged(study)}
    minutes, start = results.minutes, time.perf_counter()
    for seed, name in left:
        results.curves += compare(results.steps, seed, on_step, (name,)).values()
        results.curves.sort(key=lambda curve: (curve.seed, order[curve.name]))  # a resumed run may fill a gap
        results.seeds = sorted({curve.seed for curve in results.curves})
        results.minutes = round(minutes + (time.perf_counter() - start) / 60, 2)
        if out is not None:
            write_results(out, results)


def _judged(study) -> tuple[str, ...]:
    """What follows a variant's name in the names of its curves."""
    return tuple(getattr(study, "judged", ("",)))


def _keep_done(results: Results, study, out: Path, here: str) -> None:
    """Keeps the curves of the file; raises ValueError if they were made with other settings."""
    done = read_results(out)
    if done.settings != results.settings:
        raise ValueError(f"{out} was made by a study with other variants or settings; name another file with --out to "
                         f"train all seeds again")
    for name in ("name", "steps", "torch", "threads"):
        if getattr(done, name) != getattr(results, name):
            raise ValueError(f"{out} was made with {name}={getattr(done, name)!r}, this run has "
                             f"{getattr(results, name)!r}; name another file with --out to train all seeds again")
    check_place(done.command, here, out)
    known = {name + behind for name in study.variants for behind in _judged(study)}
    there = list(dict.fromkeys(curve.name for curve in done.curves))
    if not known.issuperset(there):
        raise ValueError(f"{out} has the variants {', '.join(there)}, this study {', '.join(study.variants)}; name "
                         f"another file with --out to train all seeds again")
    results.seeds, results.curves, results.minutes = done.seeds, done.curves, done.minutes
