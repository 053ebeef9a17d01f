"""`minicogvx data`: what is in a folder of films, which of it is worth training on, its captions, and its latents.

`minicogvx data shapes` makes such a folder.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from minicogvx.options import add_device_options, chosen

LISTED = 20  # clips that `scan` prints; problems are always printed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the commands on a folder. Raises ValueError or OSError for a user's mistake."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="minicogvx data", description="From films to what training reads.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_shapes(commands)
    scan = _command(commands, "scan", "what a folder holds, and which files cannot be used", _scan)
    scan.add_argument("--min-seconds", type=float, default=1.0, metavar="S", help="refuse shorter films (default: 1)")
    _add_curate(commands)
    caption = _command(commands, "caption", "write captions for the clips that have none", _caption)
    caption.add_argument("--captioner", required=True, metavar="shapes|FOLDER",
                         help="shapes: read the shapes world from its pixels; or a transformers folder")
    caption.add_argument("--summary", metavar="FOLDER", help="a transformers folder that sums the descriptions up "
                                                             "(default: they are joined plainly)")
    caption.add_argument("--every", type=float, default=2.0, metavar="S", help="one frame every S seconds (default: 2)")
    caption.add_argument("--overwrite", action="store_true", help="also clips that have a caption")
    caption.add_argument("--out", metavar="FILE.jsonl", help="default: the list, or metadata.jsonl in the folder")
    add_device_options(caption)
    _add_cache(commands)
    return parser


def _command(commands, name: str, words: str, run) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    parser.add_argument("folder", metavar="FOLDER", help="films and pictures, with NAME.txt or metadata.jsonl")
    parser.add_argument("--list", metavar="FILE.jsonl", help="only the clips of this file, such as kept.jsonl")
    parser.set_defaults(run=run)
    return parser


def _add_shapes(commands) -> None:
    words = "films of the shapes world, with captions, as a folder of your own clips would look"
    shapes = commands.add_parser("shapes", help=words, description=words[0].upper() + words[1:] + ".")
    shapes.add_argument("folder", metavar="FOLDER", help="a new or empty folder")
    shapes.add_argument("--clips", type=int, required=True, metavar="N", help="how many films")
    shapes.add_argument("--style", default="plain", metavar="plain|sepia|cyanotype",
                        help="the world's own colours, or photographs in brown or blue ink (default: plain)")
    shapes.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same films (default: 0)")
    shapes.add_argument("--side", type=int, default=128, metavar="PIXELS",
                        help="height and width (default: 128, twice the toy's, because mp4 files blur colours)")
    shapes.add_argument("--frames", type=int, default=17, metavar="N", help="of each film (default: 17)")
    shapes.add_argument("--two-objects", type=float, default=0.0, metavar="SHARE",
                        help="share of films with two objects (default: 0)")
    shapes.set_defaults(run=_shapes)


def _add_curate(commands) -> None:
    from minicogvx.data.shots import CurationThresholds

    words = "cut films into shots, drop the bad ones, write kept.jsonl and report.html"
    curate = _command(commands, "curate", words, _curate)
    curate.add_argument("--out", required=True, metavar="FOLDER", help="where to write")
    curate.add_argument("--aesthetic", metavar="FOLDER", help="an aesthetics predictor, as transformers saves it "
                                                              "(default: that score is not measured)")
    curate.add_argument("--best", type=float, metavar="SHARE", help="also write best.jsonl, this share of the kept")
    for name, value in vars(CurationThresholds()).items():
        option = "--" + name.replace("_", "-")
        curate.add_argument(option, type=float, default=value, metavar="X", help=f"default: {value:g}")
    add_device_options(curate, dtype_default="float32, so that scores do not depend on the machine")


def _add_cache(commands) -> None:
    cache = _command(commands, "cache", "encode every clip and caption once; the same command again goes on", _cache)
    cache.add_argument("--out", required=True, metavar="FOLDER", help="where to write")
    cache.add_argument("--model", default="toy", metavar="toy|FOLDER", help="whose VAE and text encoder (default: toy)")
    for name, words in (("num-frames", "frames at most, 4k + 1"), ("height", "pixels"), ("width", "pixels"),
                        ("fps", "frames a second")):
        cache.add_argument(f"--{name}", type=float if name == "fps" else int, metavar="N",
                           help=f"{words} (default: the model's own)")
    cache.add_argument("--one-size", action="store_true", help="crop every clip to height x width, without buckets")
    cache.add_argument("--one-length", action="store_true", help="leave out films that are shorter than num-frames")
    cache.add_argument("--windows", type=int, default=1, metavar="N", help="pieces of one clip at most (default: 1)")
    cache.add_argument("--first-frame", action="store_true", help="also the clean first frame, for image to video")
    cache.add_argument("--no-text", action="store_true", help="captions alone: the text encoder will be trained, too")
    cache.add_argument("--batch-size", type=int, default=4, metavar="N", help="clips at a time (default: 4)")
    add_device_options(cache)


def _shapes(arguments: argparse.Namespace) -> int:
    from minicogvx.data.shape_films import ShapeFilms, write_shape_films

    films = ShapeFilms(arguments.clips, arguments.style, arguments.seed, arguments.side, arguments.frames,
                       arguments.two_objects)
    written = write_shape_films(arguments.folder, films)
    print(f"{arguments.folder}: {films.clips} films and captions"
          + (f", {films.clips - written} of them there before" if written < films.clips else ""))
    return 0


def _scan(arguments: argparse.Namespace) -> int:
    from minicogvx.data.video_folder import scan_folder

    found = scan_folder(arguments.folder, arguments.min_seconds, arguments.list, progress=True)
    for clip in found.clips[:LISTED]:
        length = "picture" if clip.is_image else f"{clip.seconds:.2f} s, {clip.fps:.3g} fps"
        notes = [f"turned by {clip.rotation} degrees"] * bool(clip.rotation) + ["variable rate"] * clip.variable_rate
        print(f"{clip.name}: {clip.height}x{clip.width}, {', '.join([length, *notes])}: {clip.caption[:60]}")
    if len(found.clips) > LISTED:
        print(f"... and {len(found.clips) - LISTED} more")
    _print_problems(found.problems)
    seconds = sum(clip.seconds for clip in found.clips)
    print(f"{len(found.clips)} clips of {seconds:.1f} s can be used; {len(found.problems)} problems")
    return 0


def _curate(arguments: argparse.Namespace) -> int:
    device, dtype = chosen(arguments, dtype="float32")
    from minicogvx.data.curation import KEPT, REPORT, curate, write_best
    from minicogvx.data.shots import CurationThresholds

    thresholds = CurationThresholds(**{name: getattr(arguments, name) for name in vars(CurationThresholds())})
    if thresholds.min_aesthetic != CurationThresholds().min_aesthetic and not arguments.aesthetic:
        raise ValueError(f"min-aesthetic is {thresholds.min_aesthetic}, and nothing measures it; name a predictor with "
                         f"--aesthetic")
    if arguments.best is not None and not 0 < arguments.best <= 1:
        raise ValueError(f"best is {arguments.best}; it must be above 0 and at most 1")
    scorer = None
    if arguments.aesthetic:
        from minicogvx.data.aesthetics import AestheticScorer

        scorer = AestheticScorer(arguments.aesthetic, device, dtype)
    result = curate(arguments.folder, arguments.out, thresholds, scorer, arguments.list)
    reasons = Counter(reason for shot in result.dropped for reason in shot.reasons)
    told = f" ({', '.join(f'{reason} {number}' for reason, number in reasons.most_common())})" if reasons else ""
    print(f"{len(result.kept)} shots kept, {len(result.dropped)} dropped{told}, {len(result.problems)} problems")
    out = Path(arguments.out)
    print(out / KEPT)
    if arguments.best is not None:
        print(write_best(out / "best.jsonl", result.kept, arguments.best))
    print(out / REPORT)
    return 0


def _caption(arguments: argparse.Namespace) -> int:
    device, dtype = chosen(arguments)
    from minicogvx.data.video_captions import DenseCaptioner, caption_clips, caption_shapes
    from minicogvx.data.video_folder import METADATA, scan_folder

    found = scan_folder(arguments.folder, 0.0, arguments.list, need_captions=False, progress=True)
    if not found.clips:
        raise ValueError(f"{arguments.folder} holds no clip that can be used")
    captioner = caption_shapes if arguments.captioner == "shapes" else DenseCaptioner.from_folder(
        arguments.captioner, arguments.summary, arguments.every, device, dtype)
    out = Path(arguments.out or arguments.list or Path(arguments.folder) / METADATA)
    by = f"{arguments.captioner} {arguments.summary} {arguments.every:g}"
    problems = found.problems + caption_clips(found.clips, captioner, out, arguments.overwrite, by=by)
    _print_problems(problems)
    print(out)
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    device, dtype = chosen(arguments)
    from minicogvx.data.video_folder import scan_folder
    from minicogvx.interop import diffusers, find_folder
    from minicogvx.training.cache import CacheSettings, cache_clips

    if arguments.batch_size < 1:
        raise ValueError(f"batch-size is {arguments.batch_size}; it must be 1 or more")
    folder = find_folder(arguments.model)
    configs, own = diffusers.read_configs(folder)
    vae, transformer = configs["vae"], configs["transformer"]
    settings = CacheSettings(
        _given(arguments.num_frames, transformer.sample_frames), _given(arguments.height, vae.sample_height),
        _given(arguments.width, vae.sample_width), _given(arguments.fps, own["fps"]), not arguments.one_size,
        not arguments.one_length, arguments.windows, arguments.first_frame)
    settings.check(vae)
    found = scan_folder(arguments.folder, 0.0, arguments.list, progress=True)
    if not found.clips:
        raise ValueError(f"{arguments.folder} holds no clip that can be used"
                         + (f"; {found.problems[0]}" if found.problems else ""))
    encoder, text = _open_models(folder, configs, device, dtype, not arguments.no_text)
    cached = cache_clips(found.clips, arguments.out, encoder, text, settings, dtype, arguments.batch_size)
    _print_problems(found.problems + cached.problems)
    for (frames, height, width), index in cached.buckets().items():
        print(f"{frames} frames of {height}x{width}: {len(index)}")
    print(f"{arguments.out}: {len(cached)} clips, {len(set(cached.captions))} captions")
    return 0


def _given(value, default):
    return default if value is None else value


def _open_models(folder: Path, configs: dict, device: str, dtype, with_text: bool):
    """VAE and text encoder of a pipeline folder, without its transformer, which is the largest part.

    The VAE keeps float32 weights and computes in `dtype`; T5-XXL would take 19 GB so, and has its weights in `dtype`.
    """
    from minicogvx.interop.safetensors_files import load_into, read_sharded
    from minicogvx.vae import CausalVAE

    vae = CausalVAE(configs["vae"])
    load_into(vae, read_sharded(folder / "vae"), folder / "vae")
    text = None
    if with_text:
        from minicogvx.text import TextEncoder

        text = TextEncoder.from_folder(folder, configs["transformer"].max_text_seq_length, dtype).to(device)
    return vae.eval().to(device), text


def _print_problems(problems) -> None:
    for problem in problems:
        print(f"not used: {problem}")
