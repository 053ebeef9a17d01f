"""`minicogvx train`: trains a model by a recipe, on the shapes world or on films, from random weights or further."""

import argparse
from dataclasses import replace
from pathlib import Path

from minicogvx.options import add_device_options, check_names, chosen
from minicogvx.parsing import THREADS, TRAINING_SEED, Parser, path_to, whole


def main(argv: list[str] | None = None) -> int:
    """Trains what the command line asks for, and prints the result and a command to try it.

    Under torchrun every rank calls it, and they train one model together. The small recipes were tuned and timed on a
    CPU, so on the shapes world a GPU is used only if --device or MINICOGVX_DEVICE asks for it.
    """
    arguments = _parser().parse_args(argv)
    check_names(arguments)
    device, dtype = chosen(arguments, training=True, device="cpu" if arguments.data == "world" else None)
    from minicogvx.engine.config import override
    from minicogvx.training.recipes import load_recipe

    recipe = load_recipe(arguments.recipe)
    if presets := [one for one in arguments.set if one.startswith("preset=")]:
        recipe = replace(override(recipe, *presets), sizes=None)
    training = recipe.transformer.from_image() if arguments.image_to_video else recipe.transformer
    if arguments.lora is not None:
        training = replace(training, lora_rank=arguments.lora)
    recipe = replace(recipe, transformer=training, sizes=recipe.model_sizes)
    recipe = override(recipe, *arguments.set)
    if arguments.lora_from is not None:
        recipe = with_adapters(recipe, arguments.lora_from, arguments.model)
    out = Path(f"runs/{Path(arguments.recipe).stem}" if arguments.out is None else arguments.out)
    films = None if arguments.data == "world" else arguments.data
    for option, value in {"--list": arguments.list, "--fps": arguments.fps}.items() if films is None else ():
        if value is not None:
            raise ValueError(f"{option} is {value}; it says how films are read, so name their folder with --data, or "
                             f"leave it out")
    return run(arguments, recipe, films, out, device, dtype)


def run(arguments: argparse.Namespace, recipe, films: str | None, out: Path, device: str, dtype) -> int:
    """Trains by `recipe`, whatever command line it came from, on a folder of films or on the shapes world."""
    from minicogvx.engine.config import to_toml
    from minicogvx.engine.ranks import leave, ranks
    from minicogvx.training.checks import check_job
    from minicogvx.training.film_data import FilmData
    from minicogvx.training.recipes import without_world
    from minicogvx.training.run import Keep
    from minicogvx.training.train import Job, train

    if arguments.show:
        print(to_toml(recipe))
        return 0
    use_threads(arguments.threads)
    keep = Keep(checkpoint_every=arguments.checkpoint_every, log_every=arguments.log_every,
                tensorboard=arguments.tensorboard)
    data = None if films is None else FilmData(Path(films), arguments.list, arguments.fps)
    job = Job(recipe, out, data, arguments.model, arguments.encoders, arguments.seed, dtype, keep)
    recipe, told = without_world(recipe, films=data is not None, given=job.model is not None)
    job = replace(job, recipe=recipe)
    here = ranks(device)
    try:
        for line in told if here.first else ():
            print(line)
        check_job(job, here)
        made = train(job, here)
    finally:
        leave()
    if here.first:
        print(made)
    return 0


def with_adapters(recipe, file: str, model: str):
    """The recipe, with path, rank and alpha of the adapters in a LoRA file.

    Raises ValueError if the model, or a rank that was given, does not agree, and for a model of random weights.
    """
    if model == "random":
        raise ValueError(f"--lora-from is {file}; adapters are for a trained model: name it with --from")
    import torch

    from minicogvx.interop import find_folder
    from minicogvx.interop.folder_configs import read_configs
    from minicogvx.training.lora import read_lora
    from minicogvx.transformer.model import ExpertTransformer

    with torch.device("meta"):
        transformer = ExpertTransformer(read_configs(find_folder(model)).transformer)
    _, rank, alpha = read_lora(transformer, file)
    if recipe.transformer.lora_rank not in (0, rank):
        raise ValueError(f"--lora is {recipe.transformer.lora_rank}, and the adapters in {file} have rank {rank}; "
                         f"leave --lora out")
    given = recipe.transformer.lora_alpha  # if the file has another, `checks.check_job` says so
    return replace(recipe, transformer=replace(recipe.transformer, lora_from=str(Path(file)), lora_rank=rank,
                                               lora_alpha=alpha if given is None else given))


def add_training_options(parser: Parser) -> None:
    """The options that `train` and `finetune` share."""
    parser.add_argument("--list", type=path_to(), metavar="FILE.jsonl",
                        help="use only these films: a list that `minicogvx data curate` wrote")
    parser.add_argument("--fps", type=whole(1), metavar="N", help="frames per second at which films are read")
    parser.add_argument("--lora", type=whole(0), metavar="RANK", help="train only adapters, of this rank")
    parser.add_argument("--lora-from", type=path_to(), metavar="FILE",
                        help="start from the adapters of this LoRA file, at their rank")
    parser.add_argument("--image-to-video", action="store_true",
                        help="train it to continue an image, in all stages on whole clips (images=0)")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE",
                        help="change one number, such as transformer.stages.0.steps=200; may be repeated")
    parser.add_argument("--show", action="store_true", help="print every number as a recipe file, and stop")
    parser.add_argument("--seed", type=TRAINING_SEED, default=0, metavar="N")
    parser.add_argument("--threads", type=THREADS, metavar="N",
                        help="CPU threads (default: all cores; under torchrun one per rank)")
    parser.add_argument("--checkpoint-every", type=whole(1), default=500, metavar="STEPS")
    parser.add_argument("--log-every", type=whole(1), default=20, metavar="STEPS")
    parser.add_argument("--tensorboard", action="store_true", help="also log to TensorBoard")


def _parser() -> Parser:
    parser = Parser(prog="minicogvx train",
                    description="Train a model by a recipe. The same command again resumes an interrupted run; "
                                "torchrun spreads it over GPUs or processes.")
    parser.add_argument("recipe", metavar="RECIPE",
                        help="micro, toy, small, published, finetune, or a file such as --show prints")
    parser.add_argument("--data", type=path_to(), default="world", metavar="world|FOLDER",
                        help="the shapes world; or films with captions (NAME.txt beside each, or metadata.jsonl), or "
                             "the output of `minicogvx data encode` (default: world)")
    parser.add_argument("--from", dest="model", type=path_to(), default="random", metavar="random|toy|FOLDER",
                        help="the transformer's first weights (default: random)")
    parser.add_argument("--encoders", type=path_to(), metavar="toy|FOLDER",
                        help="the model whose VAE and text encoder are used, not trained (default: that of --from)")
    parser.add_argument("--out", type=path_to(), metavar="FOLDER", help="where to write (default: runs/RECIPE)")
    add_training_options(parser)
    add_device_options(parser, "cpu on the shapes world, for which the recipes were tuned and timed", training=True)
    return parser


def use_threads(threads: int | None) -> None:
    """Limits PyTorch to `threads` CPU threads; None: all cores."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
