"""`minicogvx evaluate`: how well a model obeys captions, what fine-tuning changed, or what its VAE preserves."""

import argparse
import copy
import dataclasses
import json
from pathlib import Path

from minicogvx.files import check_writable, written_whole
from minicogvx.options import (
    add_device_options,
    add_memory_options,
    add_sampling_options,
    check_names,
    chosen,
    load_model,
    tell_trained_steps,
)
from minicogvx.parsing import GUIDANCE, SEED, SHARE, Parser, one_of, path_to, whole

HELD_OUT_SEED = 1_000_003  # of the captions for the final figure
STEPS = 25  # of denoising
STRIP = 3  # rows of the picture: always the first captions, not the best


def main(argv: list[str] | None = None) -> int:
    """Prints a line of figures for each model; `--out` also writes them, with every failure, to a JSON file."""
    arguments = _parser().parse_args(argv)
    check_names(arguments)
    _check(arguments)
    where = chosen(arguments)
    from minicogvx.data.world.scenes import sample_scenes

    split = arguments.split or ("train" if arguments.image_to_video else "held_out")
    scenes = sample_scenes(arguments.clips, HELD_OUT_SEED + arguments.seed, split, arguments.two_objects)
    models = _open(arguments, *where)
    results = {}
    for label, pipe in models.items():
        results[label] = _measure(arguments, pipe, scenes)
        print(f"{label}, {split}: {results[label]}", flush=True)
    if arguments.out:  # first, so that they are not lost if the strip fails
        _write_figures(Path(arguments.out), results)
    if arguments.strip:
        print(_write_strip(arguments, models, scenes[:STRIP]))
    return 0


def _parser() -> Parser:
    parser = Parser(prog="minicogvx evaluate", description="Measure a model of the shapes world.")
    parser.add_argument("what", nargs="?", type=one_of(("captions", "vae")), default="captions",
                        metavar="captions|vae",
                        help="captions: does it obey them? vae: how good is a round trip through the VAE? "
                             "(default: captions)")
    parser.add_argument("--model", type=path_to(), default="toy", metavar="toy|FOLDER",
                        help="what to measure (default: toy)")
    parser.add_argument("--lora", type=path_to(), metavar="FILE",
                        help="measure the model without and with these adapters")
    parser.add_argument("--before", type=path_to(), metavar="toy|FOLDER",
                        help="first measure this model as well")
    parser.add_argument("--style", default="plain", metavar="plain|sepia|cyanotype",
                        help="count clips in this style that are right in what it leaves readable")
    parser.add_argument("--image-to-video", action="store_true",
                        help="start from the true first frame of scenes that were not in training")
    parser.add_argument("--strip", type=path_to(".png"), metavar="FILE.png",
                        help=f"also write frames of the first {STRIP} clips of each model and of the true ones")
    parser.add_argument("--clips", type=whole(1, 1_000_000), default=500, metavar="N", help="how many (default: 500)")
    parser.add_argument("--split", type=one_of(("held_out", "train")), metavar="held_out|train",
                        help="held_out (default): combinations of shape, colour and motion that training never showed; "
                             "train (default with --image-to-video): other scenes of those it did")
    parser.add_argument("--two-objects", type=SHARE, default=0.0, metavar="SHARE",
                        help="share of scenes with two objects")
    parser.add_argument("--steps", type=whole(1), metavar="N", help=f"denoising steps (default: {STEPS})")
    parser.add_argument("--guidance-scale", type=GUIDANCE, metavar="W", help="default: the model's own")
    add_sampling_options(parser)
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="same seed, same clips (default: 0)")
    parser.add_argument("--batch-size", type=whole(1, 65_536), default=16, metavar="N",
                        help="clips generated together; does not affect them (default: 16)")
    parser.add_argument("--out", type=path_to(".json"), metavar="FILE.json",
                        help="also write the figures, and every failure")
    add_device_options(parser)
    add_memory_options(parser)
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Everything that can be checked before a model is loaded. Raises ValueError or FileNotFoundError."""
    if arguments.what == "vae":
        _check_vae(arguments)
    from minicogvx.data.films.pictures import existing_file
    from minicogvx.data.world import styles

    if styles.style(arguments.style) and arguments.image_to_video:
        raise ValueError(f"style is {arguments.style!r}; with --image-to-video it must be 'plain'")
    if styles.style(arguments.style) and arguments.two_objects:
        raise ValueError(f"two-objects is {arguments.two_objects:g}; with --style {arguments.style} it must be 0: the "
                         f"oracle cannot tell two apart there")
    if arguments.before == arguments.model and not arguments.lora:
        raise ValueError(f"before is {arguments.before!r}, and so is model; it must be another one, or give --lora")
    for path in (arguments.strip, arguments.out):
        if path:
            check_writable(path)
    if arguments.lora:
        from minicogvx.training.lora import FILE

        existing_file(Path(arguments.lora) / FILE if Path(arguments.lora).is_dir() else arguments.lora)


def _check_vae(arguments: argparse.Namespace) -> None:
    """Raises ValueError for options that have no effect on a VAE."""
    if arguments.lora or arguments.image_to_video or arguments.strip:
        raise ValueError("vae goes with none of --lora, --image-to-video and --strip; leave them out")
    if arguments.tile or arguments.offload:
        raise ValueError("vae measures the VAE alone and whole; leave out --tile and --offload")
    for name in ("sampler", "guidance_scale", "steps", "cache"):
        if getattr(arguments, name) is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"vae measures the VAE alone, without a sampler; leave out {option}")


def _open(arguments: argparse.Namespace, device: str, dtype) -> dict:
    """The pipelines to measure, by label, in order."""
    models = {}
    if arguments.before:
        models[arguments.before] = load_model(arguments.before, arguments, device, dtype)
    pipe = load_model(arguments.model, arguments, device, dtype)
    if arguments.lora:
        from minicogvx.training.lora import use_lora

        finetuned = copy.copy(pipe)
        finetuned.transformer = copy.deepcopy(pipe.transformer)
        use_lora(finetuned.transformer, arguments.lora)  # before any measurement: the file may not fit
        tell_trained_steps(arguments.lora)
        models |= {} if arguments.before else {arguments.model: pipe}
        models[f"{arguments.model} with {arguments.lora}"] = finetuned
    else:
        models[arguments.model] = pipe
    for label, model in models.items():
        if arguments.what == "captions" and not arguments.image_to_video and model.image_to_video:
            raise ValueError(f"{label} makes videos from a picture; measure it with --image-to-video")
    return models


def _measure(arguments: argparse.Namespace, pipe, scenes: list):
    from minicogvx.data.world import styles
    from minicogvx.evaluation.adherence import measure_adherence
    from minicogvx.evaluation.finetuning import measure_image_to_video, measure_style
    from minicogvx.evaluation.reconstruction import measure_reconstruction

    style, batch = styles.style(arguments.style), arguments.batch_size
    how = (arguments.seed, arguments.steps or STEPS, arguments.guidance_scale, batch)
    if arguments.what == "vae":
        return measure_reconstruction(pipe.vae, scenes, pipe.video_size.num_frames, arguments.seed, batch, style=style)
    if arguments.image_to_video:
        return measure_image_to_video(pipe, scenes, *how)
    return measure_style(pipe, scenes, style, *how) if style else measure_adherence(pipe, scenes, *how)


def _write_strip(arguments: argparse.Namespace, models: dict, scenes: list) -> Path:
    from minicogvx.data.world.styles import render_styled, style
    from minicogvx.evaluation.adherence import generate
    from minicogvx.evaluation.comparison import write_comparison

    columns, captions = {}, []
    for label, pipe in models.items():
        made = list(generate(pipe, scenes, arguments.seed, arguments.steps or STEPS, arguments.guidance_scale,
                             arguments.batch_size, progress=False, from_picture=arguments.image_to_video))
        captions, columns[label] = [caption for _, caption, _ in made], [clip for _, _, clip in made]
    true = "true" if arguments.style == "plain" else f"true, in {arguments.style}"
    size = columns[label][0].shape[:3]
    columns[true] = list(render_styled(scenes, style(arguments.style), *size))
    return write_comparison(arguments.strip, columns, captions)


def _write_figures(out: Path, results: dict) -> None:
    """Writes the figures of one model, or those of several by label."""
    from minicogvx.evaluation.intervals import intervals

    figures = {label: dataclasses.asdict(result) | {"intervals": intervals(result.share, result.clips)}
               for label, result in results.items()}
    with written_whole(out) as part:
        shown = figures if len(figures) > 1 else next(iter(figures.values()))
        part.write_text(json.dumps(shown, indent=1, allow_nan=False))
