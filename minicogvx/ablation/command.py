"""`minicogvx ablate`: runs one study from scratch and writes its curves."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from minicogvx.ablation.questions import QUESTIONS
from minicogvx.options import add_device_options, chosen
from minicogvx.parsing import THREADS, Parser, number, one_of, path_to, whole


def main(argv: list[str] | None = None) -> int:
    """Trains every variant for every seed.

    The file is written after each seed (stages, latents: after each variant), so an interrupted run keeps those done.
    """
    arguments = _parser().parse_args(argv)
    from minicogvx.ablation.studies import STUDIES
    from minicogvx.files import check_writable, locked
    from minicogvx.training.command import use_threads

    study = STUDIES[arguments.name]
    timed = hasattr(study, "minutes")
    _check(arguments, timed, hasattr(study, "refined"))
    device, dtype = chosen(arguments, training=True, dtype=getattr(study, "dtype", None))
    use_threads(arguments.threads)
    # Not DATA: that would replace the course's own curves, or write into an installed package.
    out = Path(arguments.out or f"runs/ablate/{arguments.name}.json")
    check_writable(out)
    if timed:
        from minicogvx.ablation.stages_command import run
    else:
        run = _run
    with locked(out.with_name(f".{out.name}.run"), instead="name another file with --out"):
        if out.exists() and not arguments.resume:
            raise ValueError(f"{out} already exists; add --resume, or name another file with --out")
        run(study, arguments, out, device, dtype)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="minicogvx ablate", formatter_class=argparse.RawDescriptionHelpFormatter,
                    description="Train the variants of one study on the same data.",
                    epilog="\n".join(f"{name}: {question}" for name, question in QUESTIONS.items()))
    parser.add_argument("name", type=one_of(QUESTIONS, "study", "studies"), metavar="NAME",
                        help=f"one of {', '.join(QUESTIONS)}")
    parser.add_argument("--seeds", type=whole(1, 1000), default=1, metavar="N",
                        help="how many: 0 to N - 1 (default: 1)")
    parser.add_argument("--steps", type=whole(1), metavar="N", help="of each variant (default: the study's own)")
    parser.add_argument("--resume", action="store_true",
                        help="keep what the file holds (made by this code), and train the rest")
    parser.add_argument("--minutes", type=number(), metavar="X",
                        help="stages, latents: training of each transformer (default: 6, and 10)")
    parser.add_argument("--best-fifth", type=number(), metavar="X",
                        help="stages: additional minutes on the best fifth of the clips; 0: none (default: 1)")
    parser.add_argument("--only", action="append", default=[], metavar="VARIANT",
                        help="stages, latents: train this variant, may be repeated (default: all); combine with "
                             "--resume")
    parser.add_argument("--out", type=path_to(".json"), metavar="FILE.json",
                        help="where to write (default: runs/ablate/NAME.json)")
    parser.add_argument("--threads", type=THREADS, metavar="N", help="CPU threads (default: all cores)")
    add_device_options(parser, training=True)
    return parser


def _check(arguments: argparse.Namespace, timed: bool, refines: bool) -> None:
    if timed and not refines and arguments.best_fifth is not None:
        raise ValueError(f"--best-fifth does not go with {arguments.name}, which trains on all clips")
    for option in ("steps",) if timed else ("minutes", "best_fifth", "only"):
        if getattr(arguments, option) not in (None, []):
            raise ValueError(f"--{option.replace('_', '-')} does not go with {arguments.name}, which counts "
                             f"{'minutes' if timed else 'steps'}")


def _run(study, arguments: argparse.Namespace, out: Path, device: str, dtype) -> None:
    import torch
    from tqdm import tqdm

    from minicogvx.ablation.results import Results, place, write_results
    from minicogvx.ablation.seeds import comparisons

    seeds, steps = arguments.seeds, study.steps if arguments.steps is None else arguments.steps
    results = Results(study.name, "", [], steps, torch.__version__, torch.get_num_threads(), 0.0, [])
    if arguments.resume and out.exists():
        _keep_done(results, study, out, place(device, dtype))
    all_seeds = max(seeds, 1 + max(results.seeds, default=0))  # the file also holds the kept ones
    results.command = (f"minicogvx ablate {study.name} --seeds {all_seeds} --steps {steps} --threads {results.threads} "
                       f"{place(device, dtype)}")
    minutes, left = results.minutes, [seed for seed in range(seeds) if seed not in results.seeds]
    start, compare = time.perf_counter(), comparison(study, device, dtype)
    trainings = len(left) * len(study.variants) * len(getattr(study, "worlds", ("one",)))
    with tqdm(total=trainings * steps, unit="step", mininterval=5) as bar:

        def on_step(name: str, done: int) -> None:
            bar.set_description(f"{study.name}: {name}", refresh=False)
            bar.update()

        for seed in left:
            results.curves += compare(steps, seed, on_step).values()
            results.seeds.append(seed)
            results.minutes = round(minutes + (time.perf_counter() - start) / 60, 2)
            write_results(out, results)
    for curve in results.curves:
        print(_line(curve))
    for behind in getattr(study, "judged", ("",)):
        for sentence in comparisons(results.curves, [name + behind for name in study.variants]):
            print(sentence)
    print(out)


def _keep_done(results, study, out: Path, here: str) -> None:
    """Keeps the seeds of the file; raises ValueError if they were made with other settings."""
    from minicogvx.ablation.results import check_place, read_results

    done = read_results(out)
    for name in ("name", "steps", "torch", "threads"):
        if getattr(done, name) != getattr(results, name):
            raise ValueError(f"{out} was made with {name}={getattr(done, name)!r}, this run has "
                             f"{getattr(results, name)!r}; name another file with --out to train all seeds again")
    check_place(done.command, here, out)
    variants = list(dict.fromkeys(curve.name for curve in done.curves))
    if variants != [name + behind for name in study.variants for behind in getattr(study, "judged", ("",))]:
        raise ValueError(f"{out} has the variants {', '.join(variants)}, this study {', '.join(study.variants)}; name "
                         f"another file with --out to train all seeds again")
    results.seeds, results.curves, results.minutes = done.seeds, done.curves, done.minutes


def comparison(study, device: str = "cpu", dtype=None) -> Callable[
        [int, int, Callable[[str, int], None] | None], dict]:
    """`compare(steps, seed, on_step)` of a study; for a study of transformers, encodes its clips first.

    `dtype`: of all passes; None is the fastest of `device`.
    """
    from minicogvx.ablation.studies import VAEStagesStudy, VAEStudy
    from minicogvx.ablation.timesteps import TimestepsStudy
    from minicogvx.ablation.twins_study import TwinStudy
    from minicogvx.ablation.vaes import compare_vae_stages, compare_vaes

    if isinstance(study, TwinStudy):
        from minicogvx.ablation.twins import compare_twins

        return lambda steps, seed, on_step=None: compare_twins(
            study.variants, study.worlds, steps, seed, study.batch_size, study.every, dtype, device, on_step)
    if isinstance(study, VAEStudy):
        return lambda steps, seed, on_step=None: compare_vaes(
            study.variants, steps, seed, study.batch_size, study.num_frames, study.height, study.width, study.every,
            dtype, device, on_step)
    if isinstance(study, VAEStagesStudy):
        return lambda steps, seed, on_step=None: compare_vae_stages(
            study.config, study.loss, study.variants, study.judged, steps, seed, study.every, dtype=dtype,
            device=device, on_step=on_step)
    if isinstance(study, TimestepsStudy):
        return _timesteps_comparison(study, device, dtype)
    return _transformer_comparison(study, device, dtype)


def _timesteps_comparison(study, device: str, dtype) -> Callable[
        [int, int, Callable[[str, int], None] | None], dict]:
    from minicogvx.ablation.timesteps import compare_timesteps

    latents = study_latents(study, device, dtype)
    return lambda steps, seed, on_step=None: compare_timesteps(
        study.variants, study.config, latents, steps, seed, study.batch_size, study.every, dtype, device=device,
        on_step=on_step)


def _transformer_comparison(study, device: str, dtype) -> Callable[
        [int, int, Callable[[str, int], None] | None], dict]:
    import torch

    import minicogvx
    from minicogvx.ablation.obeyed import Obeyed
    from minicogvx.ablation.transformers import compare_transformers

    latents = study_latents(study, device, dtype)
    judge = Obeyed(minicogvx.load("toy", device, torch.float32), latents.scenes, study.captions)
    return lambda steps, seed, on_step=None: compare_transformers(
        study.variants, latents, steps, seed, study.batch_size, study.every, dtype=dtype, device=device,
        on_step=on_step, judge=judge)


def study_latents(study, device: str = "cpu", dtype=None):
    """The clips of a study of transformers, encoded by the shipped VAE."""
    import torch

    import minicogvx
    from minicogvx.data.clips.world import encode_world

    pipe = minicogvx.load("toy", device, torch.float32)
    return encode_world(pipe.vae, study.clips, study.clips_seed, pipe.video_size.num_frames, dtype=dtype)


def _line(curve) -> str:
    from minicogvx.ablation.timesteps import TimestepsCurve, roughness
    from minicogvx.ablation.transformers import Curve

    head = f"{curve.name}, seed {curve.seed}, {curve.parameters:,} parameters, {curve.seconds:.0f} s: "
    if isinstance(curve, TimestepsCurve):
        return (f"{head}loss on validation clips {curve.loss[-1]:.4f}, noise of the curve "
                f"{roughness(curve.training):.4f}")
    if isinstance(curve, Curve):
        obeyed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in curve.obeyed.items())
        return f"{head}loss on validation clips {curve.loss[-1]:.4f}" + (f"; obeyed: {obeyed}" if obeyed else "")
    return (f"{head}PSNR {curve.psnr[-1]:.2f} dB, LPIPS {curve.lpips[-1]:.3f}, flicker {curve.flicker[-1]:.2f} "
            f"(true clips {curve.flicker_of_true:.2f}), sharpness {curve.sharpness[-1]:.2f}, "
            f"KL {curve.kl_per_element[-1]:.2f} nats per latent element")
