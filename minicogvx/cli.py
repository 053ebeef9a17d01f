"""The command `minicogvx`: generate, data, train, finetune, memory, evaluate, ablate, export, doctor.

Heavy modules are imported inside the commands, so that `--help` and a misspelt option answer at once.
"""

import argparse
import importlib
import math
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from minicogvx import __version__
from minicogvx.options import DTYPES, add_device_options, add_memory_options

# These read their own options; `minicogvx train --help` shows them.
_FORWARDED = {"data": "minicogvx.data.command", "train": "minicogvx.training.command",
              "finetune": "minicogvx.training.finetune_command", "memory": "minicogvx.training.memory_command",
              "evaluate": "minicogvx.evaluation.command", "ablate": "minicogvx.ablation.command"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 where `doctor` finds something broken, 2 for a user's mistake.

    A mistake (ValueError or OSError) and too little memory are told in one line; `--traceback` before the command shows
    where it came from.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    show_traceback = argv[:1] == ["--traceback"]
    argv = argv[show_traceback:]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(argv)
    except KeyboardInterrupt:
        print("minicogvx: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if show_traceback:
            raise
        print(f"minicogvx: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        from minicogvx.room import is_out_of_memory, out_of_memory_sentence

        if show_traceback or not is_out_of_memory(error):
            raise
        print(f"minicogvx: {out_of_memory_sentence(error, argv)}", file=sys.stderr)
        return 2


def _run(argv: list[str]) -> int:
    if argv and argv[0] in _FORWARDED:
        return importlib.import_module(_FORWARDED[argv[0]]).main(argv[1:]) or 0
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"minicogvx: note: {' '.join(str(message).split())}", file=sys.stderr)


# ---- options


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as every other error of the command."""

    def error(self, message: str):
        print(f"minicogvx: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="minicogvx", description="A caption becomes a video.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"minicogvx {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from (give it first)")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_generate(commands)
    commands.add_parser("data", help="films: draw, scan, curate, caption, encode once (minicogvx data --help)")
    commands.add_parser("train", help="train a VAE, a transformer or a whole model (minicogvx train --help)")
    commands.add_parser("finetune", help="train a model further on your own films (minicogvx finetune --help)")
    commands.add_parser("memory", help="what training takes on each GPU, by sharding (minicogvx memory --help)")
    commands.add_parser("evaluate", help="how often a model obeys its captions (minicogvx evaluate --help)")
    commands.add_parser("ablate", help="train variants on the same data and compare them (minicogvx ablate --help)")
    export = commands.add_parser("export", help="write a folder that diffusers opens")
    export.add_argument("folder", metavar="FOLDER", help="a new or empty folder")
    export.add_argument("--model", default="toy", metavar="toy|FOLDER", help="what to export (default: toy)")
    export.add_argument("--dtype", choices=DTYPES, help="number format in the files (default: that of the model's)")
    export.set_defaults(run=_export)
    commands.add_parser("doctor", help="what this machine has, and what to mend").set_defaults(run=_doctor)
    return parser


def _add_generate(commands) -> None:
    generate = commands.add_parser("generate", help="make a video from a caption", allow_abbrev=False)
    generate.add_argument("prompt", metavar="PROMPT", help='for example "a red circle moves right"')
    generate.add_argument("--model", default="toy", metavar="toy|FOLDER",
                          help="the shipped model or a diffusers pipeline folder (default: toy)")
    source = generate.add_mutually_exclusive_group()
    source.add_argument("--image", metavar="FILE", help="a picture to start from")
    source.add_argument("--video", metavar="FILE", help="a film to change")
    generate.add_argument("--strength", type=_number("strength", above=0.0, most=1.0), metavar="S",
                          help="with --video: how much to change, above 0 up to 1 (default: 0.8)")
    generate.add_argument("--seed", type=_whole("seed", least=0), default=0, metavar="N",
                          help="same seed, same video (default: 0)")
    generate.add_argument("--steps", type=_whole("steps", least=1), default=50, metavar="N",
                          help="denoising steps (default: 50)")
    generate.add_argument("--guidance-scale", type=_number("guidance scale", least=0.0), metavar="W",
                          help="how hard to follow the caption; 1 is no guidance (default: the model's own, 3 for toy)")
    generate.add_argument("--lora", metavar="FILE", help="adapters to add to the model: a file or its folder")
    generate.add_argument("--negative-prompt", default="", metavar="TEXT", help="what not to show")
    generate.add_argument("--num-frames", type=_whole("num_frames", least=1), metavar="N",
                          help="4k + 1 frames (default: the model's own)")
    generate.add_argument("--height", type=_whole("height", least=1), metavar="PIXELS")
    generate.add_argument("--width", type=_whole("width", least=1), metavar="PIXELS")
    generate.add_argument("--out", metavar="FILE.mp4",
                          help="where to write; a gif and a png strip of the same name appear beside it")
    add_device_options(generate)
    add_memory_options(generate)
    generate.set_defaults(run=_generate)


def _whole(name: str, least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text) or int(text) < least or int(text) >= 2**63:
            raise argparse.ArgumentTypeError(f"{name} is {text!r}; it must be a whole number, {least} or more")
        return int(text)

    return read


def _number(name: str, least: float = -math.inf, above: float = -math.inf,
            most: float = sys.float_info.max) -> Callable[[str], float]:
    def read(text: str) -> float:
        """The number in `text`; argparse shows what is raised."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (value >= least and value > above and value <= most):
            lower = f"above {above:g}" if above > -math.inf else f"{least:g} or more"
            upper = f", at most {most:g}" if most < sys.float_info.max else ""
            raise argparse.ArgumentTypeError(f"{name} is {text!r}; it must be a number {lower}{upper}")
        return value

    return read


# ---- commands


def _generate(arguments: argparse.Namespace) -> int:
    out = _check_generate(arguments)
    from minicogvx.options import chosen, load_model

    device, dtype = chosen(arguments)
    _refuse_giants(arguments, device, dtype)
    pipe = load_model(arguments.model, arguments, device, dtype)
    if arguments.lora:
        from minicogvx.training.lora import merge_lora

        merge_lora(pipe.transformer, arguments.lora)
    video = _sample(pipe, arguments)
    for path in _write_all(out, video, pipe.fps):
        print(path)
    _tell_what_it_shows(arguments.prompt, video)
    return 0


def _check_generate(arguments: argparse.Namespace) -> Path:
    """Everything that can be checked before the model is loaded. Returns the mp4 to write."""
    if not arguments.prompt.strip():
        raise ValueError('the prompt is empty; say what to show, such as "a red circle moves right"')
    if arguments.strength is not None and not arguments.video:
        raise ValueError("--strength belongs to --video, which is not given; leave it out or name a film")
    from minicogvx.data import video_files

    out = video_files.output_file(arguments.out or _default_out(arguments), (".mp4",))
    if arguments.image:
        video_files.read_image(arguments.image, 8, 8)
    if arguments.video:
        video_files.read_video(arguments.video, 1, 8, 8, fps=1)
    return out


def _refuse_giants(arguments: argparse.Namespace, device: str, dtype) -> None:
    """Raises ValueError, before the weights are read, for a video that no memory of this machine could hold."""
    from minicogvx.interop import diffusers, find_folder
    from minicogvx.room import refuse_giants

    configs, _ = diffusers.read_configs(find_folder(arguments.model))
    vae, transformer = configs["vae"], configs["transformer"]
    space = vae.spatial_compression_ratio
    size = (1, arguments.num_frames or transformer.sample_frames,
            arguments.height or transformer.sample_height * space, arguments.width or transformer.sample_width * space)
    refuse_giants(vae, transformer, size, device, dtype, arguments.tile)


def _default_out(arguments: argparse.Namespace) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", arguments.prompt.lower()).strip("-")[:60].strip("-")
    return Path("outputs") / f"{words or 'video'}-{arguments.seed}.mp4"


def _sample(pipe, arguments: argparse.Namespace):
    from tqdm import tqdm

    from minicogvx.data import video_files

    frames, height, width = (arguments.num_frames or pipe.num_frames, arguments.height or pipe.height,
                             arguments.width or pipe.width)
    image = video_files.read_image(arguments.image, height, width) if arguments.image else None
    film = video_files.read_video(arguments.video, frames, height, width, pipe.fps) if arguments.video else None
    with tqdm(total=arguments.steps, desc="denoising", unit="step") as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total  # video to video takes fewer steps than were asked for
            bar.update(done - bar.n)

        return pipe(arguments.prompt, image=image, video=film,
                    strength=0.8 if arguments.strength is None else arguments.strength,
                    negative_prompt=arguments.negative_prompt, num_frames=frames, height=height, width=width,
                    num_inference_steps=arguments.steps, guidance_scale=arguments.guidance_scale,
                    seed=arguments.seed, on_step=on_step)


def _write_all(out: Path, video, fps: int) -> list[Path]:
    from minicogvx.data import video_files

    return [video_files.write_mp4(out, video, fps), video_files.write_gif(out.with_suffix(".gif"), video, fps),
            video_files.write_strip(out.with_suffix(".png"), video)]


def _tell_what_it_shows(prompt: str, video) -> None:
    """For a caption of the shapes world: what the oracle reads from the pixels, and whether that was asked for."""
    from minicogvx.data import captions, oracle

    wanted = captions.parse_caption(prompt)
    if not wanted.objects or len(video) < 2 or min(video.shape[1:3]) > 256:
        return  # not about the shapes world, or not from a model of it
    seen = oracle.read(video)
    verdict = oracle.matches(seen, wanted)
    wrong = [part for part, right in verdict.items() if not right and part != "all"]
    print(f"the oracle sees {_describe(seen)}: {'not as asked (' + ', '.join(wrong) + ')' if wrong else 'as asked'}")


def _describe(seen) -> str:
    """One phrase for an oracle's reading; a question mark where it could not tell."""
    things = [f"a {thing.colour or '?'} {thing.shape or '?'} that {thing.motion or '?'}" for thing in seen.objects]
    return f"{' and '.join(things) or 'no object'} on {seen.background or '?'}"


def _export(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and is not an empty folder; name a new one")
    import torch

    from minicogvx.interop import diffusers, find_folder

    pipe = diffusers.load_pipeline(find_folder(arguments.model))  # on the CPU, in the number format of the files
    diffusers.export(pipe, folder, getattr(torch, arguments.dtype) if arguments.dtype else None)
    print(folder)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from minicogvx.doctor import doctor

    return doctor()
