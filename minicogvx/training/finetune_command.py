"""`minicogvx finetune`: a model trained further on a folder of your own clips, in one command."""

import argparse
import hashlib
import os
from dataclasses import replace
from pathlib import Path

from minicogvx.options import add_device_options, chosen
from minicogvx.parsing import THREADS, TRAINING_SEED, Parser, number, path_to, whole


def main(argv: list[str] | None = None) -> int:
    """Reads and encodes the clips once, trains, and writes a LoRA file or a whole pipeline folder."""
    arguments = _parser().parse_args(argv)
    device, dtype = chosen(arguments, training=True)
    from minicogvx.training.command import use_threads
    from minicogvx.training.overrides import fields
    from minicogvx.training.run import Keep

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
    """Raises ValueError where clips that are encoded already are to be read in another way."""
    from minicogvx.training.cache import is_cache

    for name in ("list", "num_frames", "height", "width", "fps"):
        if getattr(arguments, name) is not None and is_cache(arguments.folder):
            raise ValueError(f"--{name.replace('_', '-')} says how films are read, and the clips in {arguments.folder} "
                             f"are encoded already; leave it out")


def _tuning(arguments: argparse.Namespace):
    """The published stage's numbers, if there is one, under what the command line says."""
    from minicogvx.training.finetune import FineTuning
    from minicogvx.training.overrides import override
    from minicogvx.training.stages import published_stage, rank_batch

    given = {"lora_rank": arguments.lora, "image_to_video": arguments.image_to_video,
             "learning_rate": arguments.learning_rate}
    if arguments.stage is not None:
        stage = published_stage(arguments.stage)
        clips = rank_batch(stage, _world_size())
        given |= {"steps": stage.steps, "batch_size": clips, "accumulate": clips}  # one clip a pass
    if arguments.steps is not None:
        given["steps"] = arguments.steps
    if arguments.batch_size is not None:
        given |= {"batch_size": arguments.batch_size, "accumulate": 1}
    if arguments.lora_from is not None:
        given |= _of_lora_file(arguments)
    return override(FineTuning(**given), *arguments.set)


def _of_lora_file(arguments: argparse.Namespace) -> dict:
    """Path, rank and alpha of the adapters to train further. Raises ValueError where the model or --lora differ."""
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
    """Sets the size that the stage and the model ask for where the command line has none; the numbers for --show."""
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
    """VAE config, transformer config and frames a second of a folder, or of a preset whose weights are not here."""
    from minicogvx.interop import diffusers, find_folder, shipped
    from minicogvx.presets import PRESETS, preset

    if model in PRESETS and model not in shipped() and not Path(model).is_dir():
        sizes = preset(model)
        return sizes.vae, sizes.transformer, sizes.fps
    configs, own = diffusers.read_configs(find_folder(model))
    return configs["vae"], configs["transformer"], own["fps"]


def _world_size() -> int:
    """How many ranks torchrun started; they join later."""
    from minicogvx.training.distributed import environment_number

    return environment_number("WORLD_SIZE") if "RANK" in os.environ else 1


def _train(arguments: argparse.Namespace, tuning, keep, device: str, dtype) -> int:
    from minicogvx.files import check_writable, locked
    from minicogvx.training.distributed import leave, ranks

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
    """From films to the result; what to do next."""
    import minicogvx
    from minicogvx.training.finetune import finetune
    from minicogvx.training.finetune_clips import clips_encoded_before, encoded_clips
    from minicogvx.training.finetune_result import write_result

    films = _scan(arguments, tuning, here)
    if tuning.sequence_length and films is not None:
        _check_sequence(arguments, tuning, films)
    at_first = "cpu" if tuning.sharding == "fsdp" else here.device  # FSDP2 brings each rank's part to its device
    pipe = minicogvx.load(arguments.model, at_first, dtype)
    if here.first:
        keep = replace(keep, on_resume=_compare(arguments, tuning, keep.folder, dtype, here))
    clips = (clips_encoded_before(pipe, arguments.model, Path(arguments.folder)) if films is None else
             encoded_clips(pipe, arguments.model, films, keep.folder / "cache", _settings(arguments, tuning), here))
    pipe.text.to("cpu")  # what training has no use for leaves the GPU
    pipe.vae.to(here.device if tuning.image_to_video else "cpu")  # pictures are noised and encoded anew in every step
    for problem in clips.problems if here.first else ():
        print(f"left out {problem.name}: {problem.reason}")
    model = finetune(pipe, clips, tuning, arguments.seed, keep, here)
    return write_result(pipe, model, tuning, clips, keep.folder, arguments.model, here)


def _scan(arguments, tuning, here):
    """The films that can be used, with a line about each other one; None where they are encoded already."""
    from minicogvx.data.video_folder import scan_folder
    from minicogvx.training.cache import is_cache

    if is_cache(arguments.folder):
        return None
    if here.first and arguments.stage == 4 and not arguments.list:
        print("stage 4 is for the best 20 % of the films: minicogvx data curate --best 0.2 lists them for --list")
    found = scan_folder(arguments.folder, listing=arguments.list)
    only_films = tuning.image_to_video or not _settings(arguments, tuning).mixed_lengths
    left_out = [clip for clip in found.clips if clip.is_image and only_films]
    if here.first:
        for problem in found.problems:
            print(f"left out {problem.name}: {problem.reason}")
        for clip in left_out:
            print(f"left out {clip.name}: a picture, and this model is trained on films alone")
        if found.passed_over:
            print(found.passed_over_sentence())
    found.need_clips()
    kept = [clip for clip in found.clips if not (clip.is_image and only_films)]
    if not kept:
        raise ValueError(f"{arguments.folder} holds pictures alone, and this model is trained on films alone")
    return kept


def _check_sequence(arguments, tuning, films) -> None:
    """Raises ValueError where the longest clip of the films would not fit into a packed sequence."""
    from minicogvx.training.cache_plan import plan_items
    from minicogvx.training.stages import StageSize, clip_tokens

    vae, transformer, _ = _configs(arguments.model)
    settings = _settings(arguments, tuning)
    sizes = (StageSize(item.frames, item.height, item.width, settings.fps)
             for item in plan_items(films, settings, vae)[0])
    most = max((clip_tokens(size, vae, transformer) for size in sizes), default=0)
    if tuning.sequence_length < most:
        raise ValueError(f"sequence_length is {tuning.sequence_length}; it must be at least {most}, the tokens of the "
                         f"longest clip with its caption")


def _compare(arguments, tuning, out: Path, dtype, here):
    """What writes down what is trained, and of what; ValueError where the folder was begun with something else."""
    from minicogvx.interop import find_folder
    from minicogvx.interop.lora import FILE
    from minicogvx.training.overrides import ADAPTERS, JOINT, compare, forget_failed_start, surroundings

    adapters = Path(tuning.lora_from or ".")
    files = {"weights of the model": sorted((find_folder(arguments.model) / "transformer").glob("*.safetensors")),
             ADAPTERS: [adapters / FILE if adapters.is_dir() else adapters] if tuning.lora_from else []}
    forget_failed_start(out / "finetuning.json")
    also = {name: _digest(paths) for name, paths in files.items()} | surroundings(here, dtype)
    return compare(out / "finetuning.json", tuning, arguments.seed,
                   also | {JOINT: tuning.batch_size * here.world_size})


def _digest(paths: list[Path]) -> str:
    """A short hash of what is in the files; in whatever number format they are then opened, it is the same."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _check(arguments, tuning, device: str) -> None:
    """Refuses what the model and the device cannot do before a film is opened."""
    import torch

    from minicogvx.presets import video_size
    from minicogvx.training.distributed import check_sharding
    from minicogvx.training.finetune import check_model

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
    """How films are read, where the command line does not say as the model's own.

    A learned table of positions fits one size and length: films are cropped to it, and shorter ones left out.
    """
    from minicogvx.presets import video_size
    from minicogvx.training.cache import CacheSettings

    vae, transformer, fps = _configs(arguments.model)
    frames, height, width = video_size(vae, transformer, arguments.num_frames, arguments.height, arguments.width)
    any_size = "learned" not in transformer.position
    return CacheSettings(frames, height, width, fps if arguments.fps is None else arguments.fps, any_size, any_size,
                         first_frame=tuning.image_to_video)


def _parser() -> Parser:
    parser = Parser(prog="minicogvx finetune",
                    description="Train a model further on a folder of films with captions (NAME.txt beside each, or "
                                "metadata.jsonl). The same command again resumes a run that was cut off; torchrun "
                                "spreads it over GPUs.")
    parser.add_argument("folder", metavar="FOLDER", type=path_to(),
                        help="films and captions, or what `minicogvx data cache` made of them")
    parser.add_argument("--model", type=path_to(), default="toy", metavar="toy|FOLDER",
                        help="what to start from (default: toy)")
    parser.add_argument("--out", type=path_to(), default="runs/finetune", metavar="FOLDER",
                        help="where to write (default: runs/finetune)")
    parser.add_argument("--lora", type=whole(0), default=0, metavar="RANK", help="train only adapters, of this rank")
    parser.add_argument("--lora-from", type=path_to(), metavar="FILE",
                        help="train the adapters of this LoRA file further; they bring their rank")
    parser.add_argument("--image-to-video", action="store_true", help="train it to begin with a picture")
    parser.add_argument("--stage", type=whole(1, 4), metavar="1-4",
                        help="size, length, steps and batch of a published stage (paper, Table 5); options change them")
    parser.add_argument("--list", type=path_to(), metavar="FILE.jsonl",
                        help="the films to take, as `minicogvx data curate` writes it")
    parser.add_argument("--steps", type=whole(1), metavar="N", help="default: 1000, or the stage's")
    parser.add_argument("--batch-size", type=whole(1, 65_536), metavar="N",
                        help="of each rank; default: 2, or the stage's over all ranks, one clip a pass")
    parser.add_argument("--learning-rate", type=number(0.0), metavar="X", help="default: 2e-5, or 1e-3 with --lora")
    parser.add_argument("--num-frames", type=whole(), metavar="N", help="at most; default: the model's, or the stage's")
    parser.add_argument("--height", type=whole(), metavar="PIXELS")
    parser.add_argument("--width", type=whole(), metavar="PIXELS")
    parser.add_argument("--fps", type=whole(), metavar="N", help="frames a second that films are read at")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any other number: see --show")
    parser.add_argument("--show", action="store_true", help="print every number, and stop")
    parser.add_argument("--seed", type=TRAINING_SEED, default=0, metavar="N")
    parser.add_argument("--threads", type=THREADS, metavar="N",
                        help="processor threads (default: all cores; under torchrun one a rank)")
    parser.add_argument("--checkpoint-every", type=whole(1), default=200, metavar="STEPS")
    parser.add_argument("--tensorboard", action="store_true")
    add_device_options(parser, training=True)
    return parser
