"""`minicogvx train`: trains a model from scratch, by its recipe."""

import shlex
from dataclasses import replace
from pathlib import Path

from minicogvx.options import add_device_options, chosen
from minicogvx.parsing import THREADS, TRAINING_SEED, Parser, one_of, path_to, whole

RECIPE_NAMES = ("micro", "toy")  # of recipes.py, which is too slow to import for `--help`


def main(argv: list[str] | None = None) -> int:
    """Trains the model named on the command line and writes a diffusers folder.

    Under torchrun every rank calls it, and they train one model together. The recipes were tuned and timed on a CPU, so
    a GPU is used only if --device or MINICOGVX_DEVICE asks for it.
    """
    arguments = _parser().parse_args(argv)
    from minicogvx.engine.config import fields, override
    from minicogvx.engine.ranks import leave, ranks
    from minicogvx.presets import preset
    from minicogvx.training.loop import Keep
    from minicogvx.training.recipes import RECIPES, train_recipe

    device, dtype = chosen(arguments, training=True, device="cpu")
    own = preset(RECIPES[arguments.recipe].preset)
    recipe = override(replace(RECIPES[arguments.recipe], sizes=own), *arguments.set)
    if arguments.show:
        print("\n".join(f"{path}={value!r}" for path, value in fields(recipe).items()))
        return 0
    recipe = replace(recipe, sizes=None) if recipe.sizes == own else recipe
    keep = Keep(checkpoint_every=arguments.checkpoint_every, log_every=arguments.log_every,
                tensorboard=arguments.tensorboard)
    use_threads(arguments.threads)
    out = Path(f"runs/{arguments.recipe}" if arguments.out is None else arguments.out)
    here = ranks(device)
    try:
        train_recipe(recipe, out, arguments.seed, dtype, keep, here)
    finally:
        leave()
    if here.first:
        made = out / "pipeline"
        print(f'{made}: minicogvx generate "a red circle moves right" --model {shlex.quote(str(made))}')
    return 0


def _parser() -> Parser:
    parser = Parser(prog="minicogvx train",
                    description="Train a model from scratch on the shapes world. The same command again resumes an "
                                "interrupted run; torchrun spreads it over GPUs or processes.")
    parser.add_argument("recipe", type=one_of(RECIPE_NAMES, "recipe", "recipes"), metavar="|".join(RECIPE_NAMES),
                        help="which model")
    parser.add_argument("--out", type=path_to(), metavar="FOLDER", help="where to write (default: runs/RECIPE)")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE",
                        help="change one number, such as transformer.stages.1.steps=200 or "
                             "sizes.transformer.num_layers=4; may be repeated")
    parser.add_argument("--show", action="store_true", help="print every number of the recipe by its path, and stop")
    parser.add_argument("--seed", type=TRAINING_SEED, default=0, metavar="N")
    parser.add_argument("--threads", type=THREADS, metavar="N",
                        help="CPU threads (default: all cores; under torchrun one per rank)")
    add_device_options(parser, "cpu, for which the recipes were tuned and timed", training=True)
    parser.add_argument("--checkpoint-every", type=whole(1), default=500, metavar="STEPS")
    parser.add_argument("--log-every", type=whole(1), default=20, metavar="STEPS")
    parser.add_argument("--tensorboard", action="store_true", help="also log to TensorBoard")
    return parser


def use_threads(threads: int | None) -> None:
    """Limits PyTorch to `threads` CPU threads; None: all cores."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
