"""`minicogvx generate`: a video from a caption, optionally with a picture, a video, or first frames."""

import argparse
import re
import warnings
from pathlib import Path

from minicogvx.advice import Advice
from minicogvx.options import (
    add_device_options,
    add_memory_options,
    add_sampling_options,
    check_names,
    chosen,
    load_model,
    tell_trained_steps,
)
from minicogvx.parsing import GUIDANCE, SEED, Parser, number, path_to, whole


def main(argv: list[str] | None = None) -> int:
    """Writes an mp4, a gif and a strip of frames, and prints the oracle's reading. Raises ValueError or OSError."""
    arguments = _parser().parse_args(argv)
    check_names(arguments)
    arguments.prompt = _one_caption(arguments.prompt)
    out = _check(arguments)
    device, dtype = chosen(arguments)
    size = _check_model(arguments, device, dtype)
    pipe = load_model(arguments.model, arguments, device, dtype, arguments.lora)
    if arguments.lora:
        tell_trained_steps(arguments.lora)
    _note_two_objects(arguments.prompt, pipe)
    video = _sample(pipe, arguments, size)
    for path in _write_all(out, video, pipe.fps):
        print(path)
    from minicogvx.data.world.captions import parse_caption
    from minicogvx.data.world.oracle_sentence import oracle_sentence

    if told := oracle_sentence(arguments.prompt, video):
        print(told)
    elif _knows_shapes(pipe) and len(video) > 1 and not parse_caption(arguments.prompt).objects:
        print("the oracle has nothing to judge: the caption names no shape of this world; `minicogvx words` lists them")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="minicogvx generate", description="Make a video from a caption.")
    parser.gathers = "prompt"
    parser.add_argument("prompt", nargs="+", metavar="PROMPT",
                        help='the caption, for example "a red circle moves right"; its words need no quotation marks')
    parser.add_argument("--model", type=path_to(), default="toy", metavar="toy|toy-prefix|FOLDER",
                        help="a shipped model or a diffusers pipeline folder (default: toy; toy-prefix continues an "
                             "image or a prefix)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--image", type=path_to(), metavar="FILE", help="a picture to start from")
    source.add_argument("--video", type=path_to(), metavar="FILE", help="a video to change")
    source.add_argument("--prefix", type=path_to(), metavar="FILE", help="a video with whose frames this one begins")
    parser.add_argument("--prefix-frames", type=whole(1), metavar="N",
                        help="with --prefix: how many, 4k + 1 (default: 9)")
    parser.add_argument("--strength", type=number(above=0.0, most=1.0), metavar="S",
                        help="with --video: how much to change, above 0 up to 1 (default: 0.8)")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="same seed, same video (default: 0)")
    parser.add_argument("--steps", type=whole(1), default=50, metavar="N", help="denoising steps (default: 50)")
    parser.add_argument("--guidance-scale", type=GUIDANCE, metavar="W",
                        help="how closely to follow the caption; 1: no guidance, 0: ignores the caption (default: the "
                             "model's own, 3 for toy)")
    add_sampling_options(parser)
    parser.add_argument("--lora", type=path_to(), metavar="FILE",
                        help="adapters to add to the model: a file or its folder")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what not to show")
    parser.add_argument("--num-frames", type=whole(1), metavar="N", help="4k + 1 frames (default: the model's own)")
    parser.add_argument("--height", type=whole(1), metavar="PIXELS", help="default: the model's own")
    parser.add_argument("--width", type=whole(1), metavar="PIXELS", help="default: the model's own")
    parser.add_argument("--out", type=path_to(".mp4"), metavar="FILE.mp4",
                        help="where to write; a gif and a png strip of the same name appear beside it "
                             "(default: the caption's words and the seed, in outputs)")
    add_device_options(parser)
    add_memory_options(parser)
    return parser


def _one_caption(words: list[str]) -> str:
    """The caption, whose words are separate arguments if it was not quoted."""
    if len(words) > 1 and any(" " in word.strip() for word in words):
        raise ValueError(f"{len(words)} captions are given, the second of them {words[1]!r}; give one, in quotation "
                         f"marks")
    from minicogvx.data.films.listing import one_line

    caption = " ".join(words)
    if not one_line(caption):
        raise ValueError('the prompt is empty; say what to show, such as "a red circle moves right"')
    return caption


def _check(arguments: argparse.Namespace) -> Path:
    """Checks everything that does not depend on the model. Returns the mp4 to write."""
    if arguments.strength is not None and not arguments.video:
        raise ValueError("--strength belongs to --video, which is not given; leave it out or name a video")
    if arguments.prefix_frames is not None and not arguments.prefix:
        raise ValueError("--prefix-frames belongs to --prefix, which is not given; leave it out or name a video")
    from minicogvx.data.films.decode import read_image, read_video
    from minicogvx.files import check_writable
    from minicogvx.media import made_here

    if arguments.image:
        read_image(arguments.image, 8, 8)
    for film in filter(None, (arguments.video, arguments.prefix)):
        read_video(film, 1, 8, 8, fps=1)
    out = Path(arguments.out or _default_out(arguments))
    for path in (out, out.with_suffix(".gif"), out.with_suffix(".png")):
        check_writable(path)
        for given in filter(None, (arguments.image, arguments.video, arguments.prefix)):
            if path.exists() and path.samefile(given):
                option = "--prefix" if arguments.prefix else "--image or --video"
                raise ValueError(f"{path} is to be written, and it is what {option} names; name another file with "
                                 f"--out")
        named = arguments.out is not None and path == out
        if path.exists() and not named and not made_here(path):
            raise ValueError(f"{path} would be written over, and minicogvx did not make it; name another file with "
                             f"--out")
    return out


def _check_model(arguments: argparse.Namespace, device: str, dtype) -> tuple[int, int, int]:
    """Frames, height and width of the video.

    Raises ValueError, before weights are read, for what the model cannot make or no memory here could hold.
    """
    from minicogvx.interop import find_folder
    from minicogvx.interop.folder_configs import read_configs
    from minicogvx.presets import video_size
    from minicogvx.request import check_prefix_frames, check_size
    from minicogvx.room import refuse_giants

    configs = read_configs(find_folder(arguments.model))
    vae, transformer = configs.vae, configs.transformer
    if transformer.image_to_video and not (arguments.image or arguments.prefix):
        raise ValueError(f"{arguments.model} makes videos from a picture; name one with --image")
    size = video_size(vae, transformer, arguments.num_frames, arguments.height, arguments.width)
    check_size(vae, transformer, *size)
    if arguments.prefix:
        check_prefix_frames(vae, _prefix_frames(arguments), size.num_frames)
    refuse_giants(vae, transformer, (1, *size), device, dtype, arguments.tile)
    return size


def _prefix_frames(arguments: argparse.Namespace) -> int:
    return 9 if arguments.prefix_frames is None else arguments.prefix_frames


def _default_out(arguments: argparse.Namespace) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", arguments.prompt.lower()).strip("-")[:60].strip("-")
    return Path("outputs") / f"{words or 'video'}-{arguments.seed}.mp4"


def _knows_shapes(pipe) -> bool:
    """Whether the vocabulary is that of the shapes world, not that of somebody's films, nor sub-words."""
    from minicogvx.data.world.vocabulary import SHAPES

    return pipe.text.whole_words and pipe.text.vocabulary.issuperset(SHAPES)


def _note_two_objects(prompt: str, pipe) -> None:
    """Warns if a model of the shapes world is asked for two objects, which it seldom gets right."""
    from minicogvx.data.world.captions import parse_caption

    if _knows_shapes(pipe) and len(parse_caption(prompt).objects) > 1:
        warnings.warn("the caption names more than one object, which models this small hardly ever get right: shapes "
                      "and colours melt into each other", Advice, stacklevel=2)


def _sample(pipe, arguments: argparse.Namespace, size: tuple[int, int, int]):
    from tqdm import tqdm

    from minicogvx.data.films.decode import read_image, read_video
    from minicogvx.request import STRENGTH

    frames, height, width = size
    image = read_image(arguments.image, height, width) if arguments.image else None
    video = read_video(arguments.video, *size, pipe.fps) if arguments.video else None
    prefix = None
    if arguments.prefix:
        prefix = read_video(arguments.prefix, _prefix_frames(arguments), height, width, pipe.fps)
    with tqdm(total=arguments.steps, desc="denoising", unit="step") as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total  # video to video takes fewer steps
            bar.update(done - bar.n)

        return pipe(arguments.prompt, image=image, video=video, prefix=prefix,
                    strength=STRENGTH if arguments.strength is None else arguments.strength,
                    negative_prompt=arguments.negative_prompt, num_frames=frames, height=height, width=width,
                    num_inference_steps=arguments.steps, guidance_scale=arguments.guidance_scale,
                    seed=arguments.seed, on_step=on_step)


def _write_all(out: Path, video, fps: int) -> list[Path]:
    from minicogvx.media import MAKER, write_gif, write_mp4, write_strip

    return [write_mp4(out, video, fps, MAKER),
            write_gif(out.with_suffix(".gif"), video, fps),
            write_strip(out.with_suffix(".png"), video)]
