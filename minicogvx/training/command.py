"""`minicogvx train`: makes a model anew from nothing, by its recipe."""

import argparse
from pathlib import Path

import torch


def main(argv: list[str] | None = None) -> int:
    """Trains the model called on the command line; what it writes is a diffusers folder."""
    from minicogvx.training.recipe import RECIPES, train_recipe

    parser = argparse.ArgumentParser(prog="minicogvx train",
                                     description="Train a model from nothing on the shapes world. "
                                                 "The same command again goes on where the last one was cut off.")
    parser.add_argument("recipe", choices=tuple(RECIPES), help="which model")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: runs/RECIPE)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: all cores)")
    arguments = parser.parse_args(argv)
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"threads is {arguments.threads}; it must be 1 or more")
        torch.set_num_threads(arguments.threads)
    out = Path(arguments.out or f"runs/{arguments.recipe}")
    train_recipe(RECIPES[arguments.recipe], out, arguments.seed)
    print(f"{out / 'pipeline'}: minicogvx generate \"a red circle moves right\" --model {out / 'pipeline'}")
    return 0
