"""`minicogvx finetune FOLDER`: short for `minicogvx train finetune --data FOLDER --from toy`, with more options."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from minicogvx.options import add_device_options, check_names, chosen
from minicogvx.parsing import Parser, number, path_to, whole
from minicogvx.training.command import add_training_options, run, with_adapters


def main(argv: list[str] | None = None) -> int:
    """Trains a given model, or adapters for it, on a folder of films."""
    arguments = _parser().parse_args(argv)
    check_names(arguments, may_be_preset=True)
    device, dtype = chosen(arguments, training=True)
    arguments.encoders = None
    from minicogvx.engine.config import override

    recipe = override(_recipe(arguments), *map(_whole_path, arguments.set))
    if arguments.lora_from is not None:
        recipe = with_adapters(recipe, arguments.lora_from, arguments.model)
    return run(arguments, recipe, Path(arguments.out), device, dtype)


def _whole_path(assignment: str) -> str:
    """`warmup=20` means `transformer.warmup=20`, as nothing else is trained here."""
    from minicogvx.training.settings import TransformerTraining

    name = assignment.partition("=")[0].partition(".")[0]
    return f"transformer.{assignment}" if name in TransformerTraining.__dataclass_fields__ else assignment


def _recipe(arguments: argparse.Namespace):
    """The recipe "finetune", or of a published stage, changed by the options."""
    from minicogvx.training.recipes import load_recipe

    recipe = load_recipe("finetune")
    stage = recipe.transformer.stages[0]
    if arguments.stage is not None:
        stage = _published_stage(arguments)
    size = {"num_frames": arguments.num_frames, "height": arguments.height, "width": arguments.width,
            "steps": arguments.steps, "batch_size": arguments.batch_size}
    stage = replace(stage, **{name: value for name, value in size.items() if value is not None})
    training = {"lora_rank": arguments.lora, "learning_rate": arguments.learning_rate,
                "image_to_video": arguments.image_to_video or None, "stages": (stage,),
                "accumulate": max(1, stage.batch_size // _ranks()) if arguments.stage is not None else None}
    return replace(recipe, transformer=replace(recipe.transformer, **{name: value for name, value in training.items()
                                                                      if value is not None}))


def _published_stage(arguments: argparse.Namespace):
    """A stage of Table 5 for this model: as many seconds, its batch rounded up so that the ranks divide it."""
    from minicogvx.data.clips.plan import frame_step
    from minicogvx.interop import find_folder, shipped
    from minicogvx.interop.folder_configs import read_configs
    from minicogvx.presets import PRESETS, preset
    from minicogvx.training.recipes import load_recipe

    published = load_recipe("published")
    stage = published.transformer.stages[arguments.stage - 1]
    sizes = preset(arguments.model) if arguments.model in PRESETS and arguments.model not in shipped() else (
        read_configs(find_folder(arguments.model)))
    fps, step = sizes.fps if arguments.fps is None else arguments.fps, frame_step(sizes.vae)
    seconds = (stage.num_frames - 1) / published.model_sizes.fps
    return replace(stage, num_frames=int(seconds * fps) // step * step + 1,
                   batch_size=-(-stage.batch_size // _ranks()) * _ranks())


def _ranks() -> int:
    """The number of ranks that torchrun started; they join later."""
    from minicogvx.engine.ranks import environment_number

    return environment_number("WORLD_SIZE") if "RANK" in os.environ else 1


def _parser() -> Parser:
    parser = Parser(prog="minicogvx finetune",
                    description="Fine-tune a model on a folder of films with captions (NAME.txt beside each, or "
                                "metadata.jsonl). The same command again resumes an interrupted run; torchrun spreads "
                                "it over GPUs.")
    parser.add_argument("data", metavar="FOLDER", type=path_to(),
                        help="films and captions, or the output of `minicogvx data encode`")
    parser.add_argument("--model", type=path_to(), default="toy", metavar="toy|FOLDER",
                        help="what to start from (default: toy)")
    parser.add_argument("--out", type=path_to(), default="runs/finetune", metavar="FOLDER",
                        help="where to write (default: runs/finetune)")
    parser.add_argument("--stage", type=whole(1, 4), metavar="1-4",
                        help="size, length, steps and batch of a published stage (paper, Table 5); options change them")
    parser.add_argument("--steps", type=whole(1), metavar="N", help="default: 1000, or the stage's")
    parser.add_argument("--batch-size", type=whole(1, 65_536), metavar="N",
                        help="of all ranks together (default: 2, or the stage's)")
    parser.add_argument("--learning-rate", type=number(0.0), metavar="X", help="default: 2e-5, or 1e-3 with --lora")
    parser.add_argument("--num-frames", type=whole(), metavar="N", help="at most; default: the model's, or the stage's")
    parser.add_argument("--height", type=whole(), metavar="PIXELS")
    parser.add_argument("--width", type=whole(), metavar="PIXELS")
    add_training_options(parser)
    add_device_options(parser, training=True)
    return parser
