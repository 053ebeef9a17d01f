"""`minicogvx ablate`: runs one study from scratch and writes its curves."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from minicogvx.ablation.comparing import comparison
from minicogvx.ablation.questions import QUESTIONS
from minicogvx.options import add_device_options, chosen
from minicogvx.parsing import THREADS, Parser, number, one_of, path_to, whole


def main(argv: list[str] | None = None) -> int:
    """Trains every variant for every seed.

    The file is written after each variant of each seed, so an interrupted run keeps those that are done.
    """
    arguments = _parser().parse_args(argv)
    from minicogvx.ablation.studies import STUDIES
    from minicogvx.files import check_writable, locked
    from minicogvx.training.command import use_threads

    study = _own(arguments.name) if _is_file(arguments.name) else STUDIES[arguments.name]
    timed = hasattr(study, "minutes")
    _check(arguments, timed, hasattr(study, "refined"))
    device, dtype = chosen(arguments, training=True, dtype=getattr(study, "dtype", None))
    use_threads(arguments.threads)
    # Not DATA: that would replace the course's own curves, or write into an installed package.
    out = Path(arguments.out or f"runs/ablate/{study.name}.json")
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
    parser.add_argument("name", type=_study_or_file, metavar="NAME",
                        help=f"one of {', '.join(QUESTIONS)}, or a file of your own, such as my_study.py")
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
    parser.add_argument("--vae", type=path_to(), metavar="FOLDER",
                        help="minutes-micro: the VAE of this model for all seeds (default: train one for each)")
    parser.add_argument("--out", type=path_to(".json"), metavar="FILE.json",
                        help="where to write (default: runs/ablate/NAME.json)")
    parser.add_argument("--plot", type=path_to(".png"), metavar="FILE.png",
                        help="also draw the curves, and the differences with intervals")
    parser.add_argument("--threads", type=THREADS, metavar="N", help="CPU threads (default: all cores)")
    add_device_options(parser, training=True)
    return parser


def _is_file(name: str) -> bool:
    return name.lower().endswith(".py")


def _study_or_file(text: str) -> str:
    """Reads the name of a study, or the path of a file with one; argparse shows the error."""
    return path_to(".py")(text) if _is_file(text) else one_of(QUESTIONS, "study", "studies")(text)


def _own(path: str):
    """The study of a file of one's own, called like the file."""
    from minicogvx.ablation.own_study import read_study

    return read_study(path).named(Path(path).stem)


def _check(arguments: argparse.Namespace, timed: bool, refines: bool) -> None:
    if timed and not refines and arguments.best_fifth is not None:
        raise ValueError(f"--best-fifth does not go with {arguments.name}, which trains on all clips")
    if timed and refines and arguments.vae is not None:
        raise ValueError(f"--vae does not go with {arguments.name}, which takes the VAE of the toy")
    for option in ("steps", "plot") if timed else ("minutes", "best_fifth", "only", "vae"):
        if getattr(arguments, option) not in (None, []):
            raise ValueError(f"--{option.replace('_', '-')} does not go with {arguments.name}, which counts "
                             f"{'minutes' if timed else 'steps'}")


def _run(study, arguments: argparse.Namespace, out: Path, device: str, dtype) -> None:
    from tqdm import tqdm

    from minicogvx.ablation.rows import begin, missing, train_missing
    from minicogvx.ablation.seeds import comparisons
    from minicogvx.ablation.tables import results_table

    if arguments.plot and len(_judged(study)) > 1:
        raise ValueError(f"--plot does not go with {study.name}, whose runs have several curves each")
    steps = study.steps if arguments.steps is None else arguments.steps
    called = shlex.quote(arguments.name)
    results = begin(study, arguments.seeds, steps, device, dtype, out if arguments.resume else None, called)
    left = missing(study, results, arguments.seeds)
    with tqdm(total=len(left) * len(getattr(study, "worlds", ("one",))) * steps, unit="step", mininterval=5) as bar:

        def on_step(name: str, done: int) -> None:
            bar.set_description(f"{study.name}: {name}", refresh=False)
            bar.update()

        if left:
            train_missing(study, results, left, comparison(study, device, dtype), out, on_step)
    for curve in results.curves:
        print(_line(curve))
    measure = "loss" if hasattr(results.curves[0], "loss") else "psnr"
    for behind in _judged(study):
        of_this = [curve for curve in results.curves if curve.name in {name + behind for name in study.variants}]
        print("", *results_table(of_this, of_this[0].name, measure), sep="\n")
    if arguments.plot:
        write_plot(results.curves, measure, arguments.plot)
    for behind in _judged(study):
        for sentence in comparisons(results.curves, [name + behind for name in study.variants]):
            print(sentence)
    print(out)


def write_plot(curves: Sequence, measure: str, path: str) -> None:
    """Writes the study's figure as a PNG. Raises ImportError, with what installs it, without matplotlib."""
    from minicogvx.ablation.figures import results_figure
    from minicogvx.files import written_whole

    figure = results_figure(curves, curves[0].name, measure)
    with written_whole(path) as part:
        figure.savefig(part, format="png", dpi=150)
    print(path)


def _judged(study) -> tuple[str, ...]:
    return tuple(getattr(study, "judged", ("",)))


def _line(curve) -> str:
    from minicogvx.ablation.schedules import SchedulesCurve
    from minicogvx.ablation.timesteps import TimestepsCurve, roughness
    from minicogvx.ablation.transformers import Curve

    head = f"{curve.name}, seed {curve.seed}, {curve.parameters:,} parameters, {curve.seconds:.0f} s: "
    if isinstance(curve, TimestepsCurve):
        return (f"{head}loss on validation clips {curve.loss[-1]:.4f}, noise of the curve "
                f"{roughness(curve.training):.4f}")
    if isinstance(curve, (Curve, SchedulesCurve)):
        obeyed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in curve.obeyed.items())
        return f"{head}loss on validation clips {curve.loss[-1]:.4f}" + (f"; obeyed: {obeyed}" if obeyed else "")
    return (f"{head}PSNR {curve.psnr[-1]:.2f} dB, LPIPS {curve.lpips[-1]:.3f}, flicker {curve.flicker[-1]:.2f} "
            f"(true clips {curve.flicker_of_true:.2f}), sharpness {curve.sharpness[-1]:.2f}, "
            f"KL {curve.kl_per_element[-1]:.2f} nats per latent element")
