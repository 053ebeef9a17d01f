"""`minicogvx train`: makes a model anew from nothing, by its recipe."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from minicogvx.options import add_device_options, chosen


def main(argv: list[str] | None = None) -> int:
    """Trains the model called on the command line; what it writes is a diffusers folder.

    Under torchrun every rank calls it, and they train one model together. The recipes and their minutes are those of
    a processor, so a GPU is taken only where --device or MINICOGVX_DEVICE asks for it.
    """
    from minicogvx.presets import preset
    from minicogvx.training.distributed import leave, ranks
    from minicogvx.training.overrides import fields, override
    from minicogvx.training.recipe import RECIPES, train_recipe
    from minicogvx.training.run import Keep

    arguments = _parser(tuple(RECIPES)).parse_args(argv)
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
    out, here = Path(arguments.out or f"runs/{arguments.recipe}"), ranks(device)
    train_recipe(recipe, out, arguments.seed, dtype, keep, here)
    if here.first:
        print(f"{out / 'pipeline'}: minicogvx generate \"a red circle moves right\" --model {out / 'pipeline'}")
    leave()
    return 0


def _parser(recipes: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="minicogvx train",
                                     description="Train a model from nothing on the shapes world. "
                                                 "The same command again goes on where the last one was cut off; "
                                                 "torchrun spreads it over GPUs or processes.")
    parser.add_argument("recipe", choices=recipes, help="which model")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: runs/RECIPE)")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE",
                        help="change one number, such as transformer.stages.1.steps=200 or "
                             "sizes.transformer.num_layers=4; may be repeated")
    parser.add_argument("--show", action="store_true", help="print every number of the recipe by its path, and stop")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N",
                        help="processor threads (default: all cores; under torchrun one a rank)")
    add_device_options(parser, "cpu, which the recipes and their minutes are made for", training=True)
    parser.add_argument("--checkpoint-every", type=int, default=500, metavar="STEPS")
    parser.add_argument("--log-every", type=int, default=20, metavar="STEPS")
    parser.add_argument("--tensorboard", action="store_true", help="write figures for TensorBoard, too")
    return parser


def use_threads(threads: int | None) -> None:
    """So many processor threads; None leaves it at all cores. Raises ValueError for fewer than one."""
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"threads is {threads}; it must be 1 or more")
    torch.set_num_threads(threads)
