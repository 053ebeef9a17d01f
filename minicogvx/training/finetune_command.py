"""`minicogvx finetune`: a model trained further on a folder of your own clips, in one command."""

import argparse
import os
from pathlib import Path

from minicogvx.options import add_device_options, chosen


def main(argv: list[str] | None = None) -> int:
    """Reads and encodes the clips once, trains, and writes a LoRA file or a whole pipeline folder."""
    arguments = _parser().parse_args(argv)
    device, dtype = chosen(arguments, training=True)
    from minicogvx.training.command import use_threads
    from minicogvx.training.overrides import fields
    from minicogvx.training.run import Keep

    tuning = _tuning(arguments)
    of_stage = _fill_size(arguments) if arguments.stage is not None else {}
    if arguments.show:
        print("\n".join(f"{path}={value!r}" for path, value in (fields(tuning) | of_stage).items()))
        return 0
    keep = Keep(Path(arguments.out), tensorboard=arguments.tensorboard, checkpoint_every=arguments.checkpoint_every)
    use_threads(arguments.threads)
    return _train(arguments, tuning, keep, device, dtype)


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
    return override(FineTuning(**given), *arguments.set)


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
    import minicogvx
    from minicogvx.data.video_folder import scan_folder
    from minicogvx.training.cache_plan import module_fingerprint
    from minicogvx.training.distributed import leave, ranks
    from minicogvx.training.finetune import finetune
    from minicogvx.training.overrides import write_down

    _check(arguments, tuning, device)
    out, here = keep.folder, ranks(device, timeout=24 * 3600.0)  # seconds: the others wait while the first rank encodes
    if here.first and arguments.stage == 4 and not arguments.list:
        print("stage 4 is for the best 20 % of the films: minicogvx data curate --best 0.2 lists them for --list")
    found = scan_folder(arguments.folder, listing=arguments.list)
    if here.first:
        for problem in found.problems:
            print(f"left out {problem.name}: {problem.reason}")
    at_first = "cpu" if tuning.sharding == "fsdp" else here.device  # FSDP2 brings each rank's part to its device
    pipe = minicogvx.load(arguments.model, at_first, dtype)
    if here.first:
        write_down(out / "finetuning.json", tuning, arguments.seed,
                   {"weights of the model": module_fingerprint(pipe.transformer)})
    clips = _cache(arguments, pipe, found.clips, out / "cache", here, tuning)
    for problem in clips.problems if here.first else ():
        print(f"left out {problem.name}: {problem.reason}")
    model = finetune(pipe, clips, tuning, arguments.seed, keep, here)
    told = _write(pipe, model, tuning, out, arguments.model, arguments.fps, here)
    if here.first:
        print(told)
    leave()
    return 0


def _check(arguments, tuning, device: str) -> None:
    """Refuses what the model and the device cannot do before a film is opened."""
    import torch

    from minicogvx.training.distributed import check_sharding
    from minicogvx.training.finetune import check_model

    check_sharding(tuning.sharding, torch.device(device))
    vae, transformer, _ = _configs(arguments.model)
    check_model(transformer, tuning)
    _settings(arguments, tuning).check(vae)


def _settings(arguments, tuning):
    """How films are read, where the command line does not say as the model's own."""
    from minicogvx.training.cache import CacheSettings

    vae, transformer, fps = _configs(arguments.model)
    return CacheSettings(num_frames=arguments.num_frames or transformer.sample_frames,
                         height=arguments.height or transformer.sample_height * vae.spatial_compression_ratio,
                         width=arguments.width or transformer.sample_width * vae.spatial_compression_ratio,
                         fps=arguments.fps or fps, first_frame=tuning.image_to_video)


def _cache(arguments, pipe, clips, folder, here, tuning):
    """Encoded by the first rank; the others wait and read. What training has no use for then leaves the GPU."""
    from minicogvx.training.cache import CachedClips, cache_clips
    from minicogvx.training.distributed import barrier

    if here.first:
        for part in (pipe.vae, pipe.text):
            part.to(here.device)
        cache_clips(clips, folder, pipe.vae, pipe.text, _settings(arguments, tuning), next(pipe.vae.parameters()).dtype)
    barrier(here)
    pipe.text.to("cpu")
    pipe.vae.to(here.device if tuning.image_to_video else "cpu")  # pictures are noised and encoded anew in every step
    return CachedClips(folder)


def _write(pipe, model, tuning, out: Path, model_name: str, fps: int | None, here) -> str:
    """All ranks call it; the first one writes, and says what to do next. `fps`: of the films, if not the model's."""
    from minicogvx.interop import diffusers
    from minicogvx.pipeline import Pipeline
    from minicogvx.training.lora import lora_tensors, write_lora
    from minicogvx.training.sharded_checkpoints import whole_weights
    from minicogvx.transformer.model import ExpertTransformer

    weights = whole_weights(model, here)
    if not here.first:
        return ""
    if tuning.lora_rank:
        path = write_lora(out, lora_tensors(model, weights), tuning.lora_rank, tuning.alpha)
        return f'{path}: minicogvx generate "..." --model {model_name} --lora {path}'
    trained = ExpertTransformer(model.config).to(next(pipe.vae.parameters()).dtype)
    trained.load_state_dict(weights)
    whole = Pipeline(pipe.vae, trained, pipe.schedule_config, pipe.text, fps or pipe.fps, pipe.unconditional,
                     pipe.guidance_scale)
    diffusers.export(whole, out / "pipeline", overwrite=True)
    return f'{out / "pipeline"}: minicogvx generate "..." --model {out / "pipeline"}'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="minicogvx finetune",
                                     description="Train a model further on a folder of films with captions (NAME.txt "
                                                 "beside each, or metadata.jsonl). The same command again goes on "
                                                 "where the last one was cut off; torchrun spreads it over GPUs.")
    parser.add_argument("folder", help="films and captions")
    parser.add_argument("--model", default="toy", metavar="toy|FOLDER", help="what to start from (default: toy)")
    parser.add_argument("--out", default="runs/finetune", metavar="FOLDER")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="train adapters of this rank alone")
    parser.add_argument("--image-to-video", action="store_true", help="train it to begin with a picture")
    parser.add_argument("--stage", type=int, metavar="1-4",
                        help="size, length, steps and batch of a published stage (paper, Table 5); options change them")
    parser.add_argument("--list", metavar="FILE.jsonl", help="the films to take, as `minicogvx data curate` writes it")
    parser.add_argument("--steps", type=int, metavar="N", help="default: 1000, or the stage's")
    parser.add_argument("--batch-size", type=int, metavar="N",
                        help="of each rank; default: 2, or the stage's over all ranks, one clip a pass")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="default: 2e-5, or 1e-3 with --lora")
    parser.add_argument("--num-frames", type=int, metavar="N", help="at most; default: the model's, or the stage's")
    parser.add_argument("--height", type=int, metavar="PIXELS")
    parser.add_argument("--width", type=int, metavar="PIXELS")
    parser.add_argument("--fps", type=int, metavar="N", help="frames a second that films are read at")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any other number: see --show")
    parser.add_argument("--show", action="store_true", help="print every number, and stop")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N",
                        help="processor threads (default: all cores; under torchrun one a rank)")
    parser.add_argument("--checkpoint-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--tensorboard", action="store_true")
    add_device_options(parser, training=True)
    return parser
