"""`minicogvx finetune`: fine-tunes a model on a folder of your own clips, in one command."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from minicogvx.options import add_device_options, check_names, chosen
from minicogvx.parsing import THREADS, TRAINING_SEED, Parser, number, path_to, whole


def main(argv: list[str] | None = None) -> int:
    """Reads and encodes the clips once, trains, and writes a LoRA file or a whole pipeline folder."""
    arguments = _parser().parse_args(argv)
    check_names(arguments, may_be_preset=True)
    device, dtype = chosen(arguments, training=True)
    from minicogvx.engine.config import fields
    from minicogvx.training.command import use_threads
    from minicogvx.training.loop import Keep

    _check_cache_options(arguments)
    tuning = _tuning(arguments)
    of_stage = _fill_size(arguments) if arguments.stage is not None else {}
    if arguments.show:
        print("\n".join(f"{path}={value!r}" for path, value in (fields(tuning) | of_stage).items()))
        return 0
    keep = Keep(Path(arguments.out), tensorboard=arguments.tensorboard, checkpoint_every=arguments.checkpoint_every)
    use_threads(arguments.threads)
    return _train(arguments, tuning, keep, device, dtype)


def _check_cache_options(arguments: argparse.Namespace) -> None:
    """Raises ValueError for options on how videos are read if the clips are encoded already."""
    from minicogvx.data.clips.cache_files import is_cache

    for name in ("list", "num_frames", "height", "width", "fps"):
        if getattr(arguments, name) is not None and is_cache(arguments.folder):
            raise ValueError(f"--{name.replace('_', '-')} says how videos are read, and the clips in "
                             f"{arguments.folder} are encoded already; leave it out")


def _tuning(arguments: argparse.Namespace):
    """The settings of the published stage, if one is given, overridden by the command line."""
    from minicogvx.engine.config import override
    from minicogvx.training.finetune import FineTuning
    from minicogvx.training.stages import published_stage, rank_batch

    given = {"lora_rank": arguments.lora, "image_to_video": arguments.image_to_video,
             "learning_rate": arguments.learning_rate}
    if arguments.stage is not None:
        stage = published_stage(arguments.stage)
        clips = rank_batch(stage, _world_size())
        given |= {"steps": stage.steps, "batch_size": clips, "accumulate": clips}  # one clip per pass
    if arguments.steps is not None:
        given["steps"] = arguments.steps
    if arguments.batch_size is not None:
        given |= {"batch_size": arguments.batch_size, "accumulate": 1}
    if arguments.lora_from is not None:
        given |= _of_lora_file(arguments)
    return override(FineTuning(**given), *arguments.set)


def _of_lora_file(arguments: argparse.Namespace) -> dict:
    """Path, rank and alpha of the adapters of --lora-from. Raises ValueError if the model or --lora do not agree."""
    import torch

    from minicogvx.training.lora import read_lora
    from minicogvx.transformer.model import ExpertTransformer

    with torch.device("meta"):
        model = ExpertTransformer(_configs(arguments.model)[1])
    _, rank, alpha = read_lora(model, arguments.lora_from)
    if arguments.lora not in (0, rank):
        raise ValueError(f"--lora is {arguments.lora}, and the adapters in {arguments.lora_from} have rank {rank}; "
                         f"leave --lora out")
    return {"lora_from": str(Path(arguments.lora_from)), "lora_rank": rank, "lora_alpha": alpha}


def _fill_size(arguments: argparse.Namespace) -> dict:
    """Sets the clip size, if not given, to that of the stage and the model; returns the numbers for --show."""
    from minicogvx.training.stages import StageSize, clip_tokens, published_stage, stage_size

    stage = published_stage(arguments.stage)
    vae, transformer, fps = _configs(arguments.model)
    size = stage_size(stage, vae, fps if arguments.fps is None else arguments.fps)
    for name, value in vars(size).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    size = StageSize(arguments.num_frames, arguments.height, arguments.width, arguments.fps)
    return vars(size) | {"tokens_a_clip": clip_tokens(size, vae, transformer), "ranks": _world_size(),
                         "published_batch_size": stage.batch_size, "published_sequence_length": stage.sequence_length,
                         "best_share": stage.best_share}


def _configs(model: str):
    """VAE config, transformer config and fps of a folder, or of a preset whose weights are not installed."""
    from minicogvx.interop import find_folder, shipped
    from minicogvx.interop.folder_configs import read_configs
    from minicogvx.presets import PRESETS, preset

    if model in PRESETS and model not in shipped() and not Path(model).is_dir():
        sizes = preset(model)
        return sizes.vae, sizes.transformer, sizes.fps
    configs = read_configs(find_folder(model))
    return configs.vae, configs.transformer, configs.fps


def _world_size() -> int:
    """The number of ranks that torchrun started; they join later."""
    from minicogvx.engine.ranks import environment_number

    return environment_number("WORLD_SIZE") if "RANK" in os.environ else 1


def _train(arguments: argparse.Namespace, tuning, keep, device: str, dtype) -> int:
    from minicogvx.engine.ranks import leave, ranks
    from minicogvx.files import check_writable, locked

    _check(arguments, tuning, device)
    here = ranks(device, timeout=24 * 3600.0)  # seconds: the others wait while the first rank encodes
    try:
        if here.first:
            check_writable(keep.folder, folder=True)
            with locked(keep.folder):
                print(_run(arguments, tuning, keep, dtype, here))
        else:
            _run(arguments, tuning, keep, dtype, here)
    finally:
        leave()
    return 0


def _run(arguments: argparse.Namespace, tuning, keep, dtype, here) -> str:
    """Trains on the videos and writes the result; returns the line that says how to try it."""
    import minicogvx
    from minicogvx.data.clips.encoded import clips_encoded_before, encoded_clips
    from minicogvx.training.finetune import finetune
    from minicogvx.training.finetune_record import compare_with_before
    from minicogvx.training.finetune_result import write_result

    if here.first:
        keep = replace(keep, on_resume=compare_with_before(arguments, tuning, keep.folder, dtype, here))
    films = _scan(arguments, tuning, here)
    if tuning.sequence_length and films is not None:
        _check_sequence(arguments, tuning, films)
    at_first = "cpu" if tuning.sharding == "fsdp" else here.device  # FSDP2 moves each rank's shard to its device
    pipe = minicogvx.load(arguments.model, at_first, dtype)
    clips, problems = (clips_encoded_before(pipe, Path(arguments.folder), here), []) if films is None else (
        encoded_clips(pipe, arguments.model, films, keep.folder / "cache", _settings(arguments, tuning), here))
    pipe.text.to("cpu")  # not used in training
    pipe.vae.to(here.device if tuning.image_to_video else "cpu")  # images are noised and encoded again in every step
    for problem in problems if here.first else ():
        print(f"left out {problem.name}: {problem.reason}")
    model = finetune(pipe, clips, tuning, arguments.seed, keep, here)
    return write_result(pipe, model, tuning, clips, keep.folder, arguments.model, here)


def _scan(arguments, tuning, here):
    """The usable videos, with a line about each other one; None if they are encoded already."""
    from minicogvx.data.clips.cache_files import is_cache
    from minicogvx.data.films.folder import scan_folder
    from minicogvx.engine.ranks import by_first

    if is_cache(arguments.folder):
        return None
    if here.first and arguments.stage == 4 and not arguments.list:
        print("stage 4 is for the best 20 % of the videos: minicogvx data curate --best 0.2 lists them for --list")
    found = by_first(lambda: scan_folder(arguments.folder, listing=arguments.list), here)
    only_films = tuning.image_to_video or not _settings(arguments, tuning).mixed_lengths
    left_out = [clip for clip in found.clips if clip.is_image and only_films]
    if here.first:
        for problem in found.problems:
            print(f"left out {problem.name}: {problem.reason}")
        for clip in left_out:
            print(f"left out {clip.name}: a picture, and this model is trained only on videos")
        if found.passed_over:
            print(found.passed_over_sentence())
    found.need_clips()
    kept = [clip for clip in found.clips if not (clip.is_image and only_films)]
    if not kept:
        raise ValueError(f"{arguments.folder} holds only pictures, and this model is trained only on videos")
    return kept


def _check_sequence(arguments, tuning, films) -> None:
    """Raises ValueError if the longest clip does not fit into a packed sequence."""
    from minicogvx.data.clips.plan import plan_items
    from minicogvx.training.stages import StageSize, clip_tokens

    vae, transformer, _ = _configs(arguments.model)
    settings = _settings(arguments, tuning)
    sizes = (StageSize(item.frames, item.height, item.width, settings.fps)
             for item in plan_items(films, settings, vae)[0])
    most = max((clip_tokens(size, vae, transformer) for size in sizes), default=0)
    if tuning.sequence_length < most:
        raise ValueError(f"sequence_length is {tuning.sequence_length}; it must be at least {most}, the tokens of the "
                         f"longest clip with its caption")


def _check(arguments, tuning, device: str) -> None:
    """Raises ValueError for what the model or the device cannot do, before a video is opened."""
    import torch

    from minicogvx.engine.sharding import check_sharding
    from minicogvx.interop import find_folder
    from minicogvx.presets import video_size
    from minicogvx.training.finetune import check_model

    find_folder(arguments.model)  # a preset has sizes, and not always weights
    check_sharding(tuning.sharding, torch.device(device))
    vae, transformer, _ = _configs(arguments.model)
    check_model(transformer, tuning)
    settings = _settings(arguments, tuning)
    settings.check(vae)
    if tuning.image_to_video and settings.num_frames == 1:
        raise ValueError("num_frames is 1; to learn videos from an image, clips must be longer")
    own, asked = video_size(vae, transformer), (settings.num_frames, settings.height, settings.width)
    if "learned" in transformer.position and asked != own:
        raise ValueError(f"{asked[0]} frames of {asked[1]}x{asked[2]} are asked for; the learned position table of "
                         f"this model fits only {own[0]} frames of {own[1]}x{own[2]}")


def _settings(arguments, tuning):
    """How videos are read; the model's own size and rate unless the command line says otherwise.

    A learned table of positions fits one size and length: videos are cropped to it, and shorter ones left out.
    """
    from minicogvx.data.clips.plan import CacheSettings
    from minicogvx.presets import video_size

    vae, transformer, fps = _configs(arguments.model)
    frames, height, width = video_size(vae, transformer, arguments.num_frames, arguments.height, arguments.width)
    any_size = "learned" not in transformer.position
    return CacheSettings(frames, height, width, fps if arguments.fps is None else arguments.fps, any_size, any_size,
                         first_frame=tuning.image_to_video)


def _parser() -> Parser:
    parser = Parser(prog="minicogvx finetune",
                    description="Fine-tune a model on a folder of videos with captions (NAME.txt beside each, or "
                                "metadata.jsonl). The same command again resumes an interrupted run; torchrun spreads "
                                "it over GPUs.")
    parser.add_argument("folder", metavar="FOLDER", type=path_to(),
                        help="videos and captions, or the output of `minicogvx data encode`")
    parser.add_argument("--model", type=path_to(), default="toy", metavar="toy|FOLDER",
                        help="what to start from (default: toy)")
    parser.add_argument("--out", type=path_to(), default="runs/finetune", metavar="FOLDER",
                        help="where to write (default: runs/finetune)")
    parser.add_argument("--lora", type=whole(0), default=0, metavar="RANK", help="train only adapters, of this rank")
    parser.add_argument("--lora-from", type=path_to(), metavar="FILE",
                        help="start from the adapters of this LoRA file, at their rank")
    parser.add_argument("--image-to-video", action="store_true", help="train it to continue an image")
    parser.add_argument("--stage", type=whole(1, 4), metavar="1-4",
                        help="size, length, steps and batch of a published stage (paper, Table 5); options change them")
    parser.add_argument("--list", type=path_to(), metavar="FILE.jsonl",
                        help="use only these videos: a list that `minicogvx data curate` wrote")
    parser.add_argument("--steps", type=whole(1), metavar="N", help="default: 1000, or the stage's")
    parser.add_argument("--batch-size", type=whole(1, 65_536), metavar="N",
                        help="per rank; default: 2, or the stage's over all ranks, one clip per pass")
    parser.add_argument("--learning-rate", type=number(0.0), metavar="X", help="default: 2e-5, or 1e-3 with --lora")
    parser.add_argument("--num-frames", type=whole(), metavar="N", help="at most; default: the model's, or the stage's")
    parser.add_argument("--height", type=whole(), metavar="PIXELS")
    parser.add_argument("--width", type=whole(), metavar="PIXELS")
    parser.add_argument("--fps", type=whole(), metavar="N", help="frames per second at which videos are read")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any other number: see --show")
    parser.add_argument("--show", action="store_true", help="print every number, and stop")
    parser.add_argument("--seed", type=TRAINING_SEED, default=0, metavar="N")
    parser.add_argument("--threads", type=THREADS, metavar="N",
                        help="CPU threads (default: all cores; under torchrun one per rank)")
    parser.add_argument("--checkpoint-every", type=whole(1), default=200, metavar="STEPS")
    parser.add_argument("--tensorboard", action="store_true")
    add_device_options(parser, training=True)
    return parser
