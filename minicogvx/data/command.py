"""`minicogvx data`: scan, curate, caption and encode a folder of videos.

`minicogvx data shapes` makes such a folder.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from minicogvx.data.films.thresholds import CurationThresholds
from minicogvx.files import check_folder
from minicogvx.options import add_device_options, check_names, chosen
from minicogvx.parsing import SEED, SHARE, Parser, choose_command, number, path_to, whole
from minicogvx.ranges import RANGES
from minicogvx.visible import first_few, many

LISTED = 20  # clips that `scan` prints; problems are always printed
_SIDE, _FRAMES = RANGES["sample_height"][1], RANGES["sample_frames"][1]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the commands on a folder. Raises ValueError or OSError for mistakes of the user."""
    commands = {name: words for name, (words, _, _) in COMMANDS.items()}
    if argv and argv[0] == "cache":  # of earlier versions
        raise ValueError("there is no command 'cache'; did you mean encode? (see minicogvx data --help)")
    chosen_command = choose_command("minicogvx data", "Turn videos into training data.", commands, argv or ())
    if chosen_command is None:
        return 0
    name, rest = chosen_command
    arguments = _parser(name).parse_args(rest)
    if name != "shapes":  # which makes its folder
        check_names(arguments)
        check_folder(arguments.folder, arguments.list)
    return COMMANDS[name][2](arguments)


def _parser(name: str) -> Parser:
    """The parser of one of the commands."""
    words, add_arguments, _ = COMMANDS[name]
    parser = Parser(prog=f"minicogvx data {name}", description=words[0].upper() + words[1:] + ".")
    add_arguments(parser)
    return parser


def _add_folder(parser: Parser) -> None:
    parser.add_argument("folder", type=path_to(), metavar="FOLDER",
                        help="videos and pictures, with NAME.txt or metadata.jsonl")
    parser.add_argument("--list", type=path_to(), metavar="FILE.jsonl",
                        help="only the clips of this file, such as kept.jsonl")


def _add_shapes(parser: Parser) -> None:
    parser.add_argument("folder", type=path_to(), metavar="FOLDER", help="a new or empty folder")
    parser.add_argument("--clips", type=whole(1, 1_000_000), required=True, metavar="N", help="how many videos")
    parser.add_argument("--style", default="plain", metavar="plain|sepia|cyanotype",
                        help="plain: the world's own colours; or photographs in brown or blue ink (default: plain)")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="same seed, same videos (default: 0)")
    parser.add_argument("--side", type=whole(16, _SIDE), default=128, metavar="PIXELS",
                        help="height and width (default: 128, twice the toy's, because mp4 files blur colours)")
    parser.add_argument("--frames", type=whole(9, _FRAMES), default=17, metavar="N", help="of each video (default: 17)")
    parser.add_argument("--two-objects", type=SHARE, default=0.0, metavar="SHARE",
                        help="share of videos with two objects (default: 0)")


def _add_scan(parser: Parser) -> None:
    _add_folder(parser)
    parser.add_argument("--min-seconds", type=number(0.0), default=1.0, metavar="S",
                        help="refuse shorter videos (default: 1)")


def _add_curate(parser: Parser) -> None:
    _add_folder(parser)
    parser.add_argument("--out", type=path_to(), required=True, metavar="FOLDER", help="where to write")
    parser.add_argument("--aesthetic", type=path_to(), metavar="FOLDER",
                        help="an aesthetics predictor, as transformers saves it (default: that score is not measured)")
    parser.add_argument("--best", type=number(above=0.0, most=1.0), metavar="SHARE",
                        help="also write best.jsonl with this share of the kept shots")
    for name, value in vars(CurationThresholds()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=number(), default=value, metavar="X",
                            help=f"default: {value:g}")
    add_device_options(parser, dtype_default="float32, so that scores do not depend on the machine")


def _add_caption(parser: Parser) -> None:
    _add_folder(parser)
    parser.add_argument("--captioner", type=path_to(), required=True, metavar="shapes|FOLDER",
                        help="shapes: reads the shapes world from its pixels; or a transformers folder")
    parser.add_argument("--summary", type=path_to(), metavar="FOLDER",
                        help="a transformers folder to summarise the descriptions (default: they are joined)")
    parser.add_argument("--every", type=number(above=0.0), metavar="S",
                        help="one frame every S seconds (default: 2)")
    parser.add_argument("--overwrite", action="store_true", help="also caption clips that have a caption")
    parser.add_argument("--out", type=path_to(), metavar="FILE.jsonl",
                        help="default: the list, or metadata.jsonl in the folder")
    add_device_options(parser)


def _add_encode(parser: Parser) -> None:
    _add_folder(parser)
    parser.add_argument("--out", type=path_to(), required=True, metavar="FOLDER", help="where to write")
    parser.add_argument("--model", type=path_to(), default="toy", metavar="toy|FOLDER",
                        help="whose VAE and text encoder (default: toy)")
    for name, words, reader in (("num-frames", "frames at most, 4k + 1", whole()), ("height", "pixels", whole()),
                                ("width", "pixels", whole()), ("fps", "frames per second", number())):
        parser.add_argument(f"--{name}", type=reader, metavar="N", help=f"{words} (default: the model's own)")
    parser.add_argument("--one-size", action="store_true", help="crop every clip to height x width, without buckets")
    parser.add_argument("--one-length", action="store_true", help="leave out videos that are shorter than num-frames")
    parser.add_argument("--windows", type=whole(1, 65_536), default=1, metavar="N",
                        help="at most this many pieces of one clip (default: 1)")
    parser.add_argument("--first-frame", action="store_true",
                        help="also store the clean first frame, for image to video")
    parser.add_argument("--batch-size", type=whole(1, 65_536), default=4, metavar="N",
                        help="clips encoded together (default: 4)")
    add_device_options(parser)


def _shapes(arguments: argparse.Namespace) -> int:
    from minicogvx.data.world.films import ShapeFilms, write_shape_films

    films = ShapeFilms(arguments.clips, arguments.style, arguments.seed, arguments.side, arguments.frames,
                       arguments.two_objects)
    written = write_shape_films(arguments.folder, films)
    print(f"{arguments.folder}: {films.clips} videos and captions"
          + (f", {films.clips - written} of them already present" if written < films.clips else ""))
    return 0


def _scan(arguments: argparse.Namespace) -> int:
    from minicogvx.data.films.folder import how_many, scan_folder

    found = scan_folder(arguments.folder, arguments.min_seconds, arguments.list, progress=True)
    for clip in found.clips[:LISTED]:
        length = "picture" if clip.is_image else f"{clip.seconds:.2f} s, {clip.fps:.3g} fps"
        size = f"{clip.width} wide, {clip.height} high"
        notes = [f"turned by {clip.rotation} degrees"] * bool(clip.rotation) + ["variable rate"] * clip.variable_rate
        print(f"{clip.name}: {', '.join([size, length, *notes])}: {clip.caption[:60]}")
    if len(found.clips) > LISTED:
        print(f"... and {len(found.clips) - LISTED} more")
    _print_left_out(found)
    seconds = sum(clip.seconds for clip in found.clips)
    print(f"{how_many(found.clips)} can be used, {seconds:.1f} s in all; {many(len(found.problems), 'problem')}")
    return 0


def _curate(arguments: argparse.Namespace) -> int:
    device, dtype = chosen(arguments, dtype="float32")
    from minicogvx.data.films.curate import BEST, KEPT, REPORT, check_place, curate, write_best

    thresholds = CurationThresholds(**{name: getattr(arguments, name) for name in vars(CurationThresholds())})
    if thresholds.min_aesthetic != CurationThresholds().min_aesthetic and not arguments.aesthetic:
        raise ValueError(f"min-aesthetic is {thresholds.min_aesthetic}, and nothing measures it; name a predictor with "
                         f"--aesthetic")
    check_place(arguments.out, arguments.best is not None)
    scorer = None
    if arguments.aesthetic:
        from minicogvx.data.films.aesthetics import AestheticScorer

        scorer = AestheticScorer(arguments.aesthetic, device, dtype)
    result = curate(arguments.folder, arguments.out, thresholds, scorer, arguments.list)
    reasons = Counter(reason for shot in result.dropped for reason in shot.reasons)
    told = f" ({', '.join(f'{reason} {number}' for reason, number in reasons.most_common())})" if reasons else ""
    print(f"{many(len(result.kept), 'shot')} kept, {len(result.dropped)} dropped{told}, "
          f"{many(len(result.problems), 'problem')}")
    if result.passed_over:
        print(result.passed_over)
    if bare := list(dict.fromkeys(shot.clip.name for shot in result.kept if not shot.clip.caption)):
        print(f"{many(len(bare), 'kept file')} without a caption, which training needs: {first_few(bare, 3)}")
    out = Path(arguments.out)
    print(out / KEPT)
    if arguments.best is not None:
        print(write_best(out / BEST, result.kept, arguments.best))
    print(out / REPORT)
    return 0


def _caption(arguments: argparse.Namespace) -> int:
    device, dtype = chosen(arguments)
    from minicogvx.data.films.captioning import EVERY_SECONDS, DenseCaptioner, caption_clips, caption_shapes
    from minicogvx.data.films.folder import scan_folder
    from minicogvx.data.films.listing import METADATA, writable_list

    given = [f"--{name}" for name in ("summary", "every") if getattr(arguments, name) is not None]
    if given and arguments.captioner == "shapes":
        raise ValueError(f"{given[0]} is for a captioner in a folder; --captioner shapes takes none")
    every = EVERY_SECONDS if arguments.every is None else arguments.every
    out = writable_list(arguments.out or arguments.list or Path(arguments.folder) / METADATA)
    captioner = caption_shapes if arguments.captioner == "shapes" else DenseCaptioner.from_folder(
        arguments.captioner, arguments.summary, every, device, dtype)
    found = scan_folder(arguments.folder, 0.0, arguments.list, need_captions=False, progress=True)
    found.need_clips()
    by = f"{arguments.captioner} {arguments.summary} {every:g}"
    _print_left_out(found, caption_clips(found.clips, captioner, out, arguments.overwrite, by=by))
    print(out)
    return 0


def _encode(arguments: argparse.Namespace) -> int:
    device, dtype = chosen(arguments)
    from minicogvx.data.clips.plan import CacheSettings
    from minicogvx.engine.ranks import leave, ranks
    from minicogvx.files import check_writable
    from minicogvx.interop import find_folder
    from minicogvx.interop.folder_configs import read_configs
    from minicogvx.presets import video_size

    configs = read_configs(find_folder(arguments.model))
    settings = CacheSettings(
        *video_size(configs.vae, configs.transformer, arguments.num_frames, arguments.height, arguments.width),
        configs.fps if arguments.fps is None else arguments.fps, not arguments.one_size, not arguments.one_length,
        arguments.windows, arguments.first_frame)
    settings.check(configs.vae)
    check_writable(arguments.out, folder=True)
    here = ranks(device)
    try:
        _encode_on(here, arguments, configs, settings, dtype)
    finally:
        leave()
    return 0


def _encode_on(here, arguments: argparse.Namespace, configs, settings, dtype) -> None:
    """Scans on the first rank, encodes on all of them, and prints what was made."""
    from minicogvx.data.clips.cache import CachedClips
    from minicogvx.data.clips.clips import pixel_sizes, sizes_sentence
    from minicogvx.data.clips.encode import encode_clips
    from minicogvx.data.films.folder import scan_folder
    from minicogvx.engine.ranks import by_first
    from minicogvx.text import unknown_sentence

    vae, text = _open_models(arguments.model, configs.transformer.max_text_seq_length, here.device, dtype)
    found = by_first(lambda: scan_folder(arguments.folder, 0.0, arguments.list, progress=True), here)
    found.need_clips()
    captions = ((clip.name, clip.caption) for clip in found.clips)
    if here.first and (unknown := unknown_sentence(text, captions)):
        print(unknown, flush=True)
    clips, problems = encode_clips(found.clips, arguments.out, vae, text, settings, dtype, arguments.batch_size,
                                   ranks=here)
    if not here.first:
        return
    _print_left_out(found, problems)
    print(sizes_sentence(pixel_sizes(clips, vae.config)))
    others = len(CachedClips(arguments.out)) - len(clips)
    print(f"{arguments.out}: {len(clips)} clips" + (f", and {others} of earlier runs" if others else ""))


def _open_models(name: str, text_length: int, device, dtype):
    """VAE and text encoder of a pipeline folder, without its transformer, the largest part.

    The VAE has float32 weights and computes in `dtype`; the text encoder's weights are in `dtype`, as T5-XXL would take
    19 GB in float32. `text_length`: tokens of a caption.
    """
    import torch

    from minicogvx.interop import find_folder
    from minicogvx.interop.diffusers_folder import load_vae
    from minicogvx.interop.text_folder import read_text

    folder = find_folder(name)
    return load_vae(folder, device, torch.float32), read_text(folder, text_length, dtype).to(device)


def _print_left_out(found, problems=()) -> None:
    for problem in (*found.problems, *problems):
        print(f"not used: {problem}")
    if found.passed_over:
        print(found.passed_over_sentence())


COMMANDS = {  # name -> (description, adds its arguments, runs it)
    "shapes": ("write videos of the shapes world, with captions, as an example of your own folder", _add_shapes,
               _shapes),
    "scan": ("list what a folder holds, and which files cannot be used", _add_scan, _scan),
    "curate": ("cut videos into shots, drop the bad ones, write kept.jsonl and report.html", _add_curate, _curate),
    "caption": ("write captions for the clips that have none", _add_caption, _caption),
    "encode": ("encode every clip and caption once, on all ranks; run it again to resume or to add films", _add_encode,
               _encode),
}
