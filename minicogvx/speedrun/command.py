"""`minicogvx speedrun`: trains a recipe from nothing with several seeds, and judges it by the rules of the board."""

import argparse
import os
import sys
from pathlib import Path

from minicogvx.options import chosen
from minicogvx.parsing import THREADS, Parser, one_of, path_to, whole

BEST = {"toy": "toy", "micro": "micro"}  # the recipes that lead the board


def main(argv: list[str] | None = None) -> int:
    """Trains and judges what is not done yet, writes every figure at once, and prints the row of the board."""
    arguments = _parser().parse_args(argv)
    _, dtype = chosen(arguments, training=True)
    from minicogvx.files import check_writable, locked
    from minicogvx.speedrun.board import table
    from minicogvx.speedrun.entry import ROW, Entry, check_recipe
    from minicogvx.speedrun.machine import commit
    from minicogvx.training.command import use_threads
    from minicogvx.training.recipes import load_recipe

    if "RANK" in os.environ:
        raise ValueError(f"RANK is {os.environ['RANK']!r}; a speedrun is one process, so call it without torchrun")
    name = arguments.recipe or BEST[arguments.size]
    recipe = load_recipe(name)
    check_recipe(recipe, arguments.size)
    use_threads(arguments.threads)
    out = Path(arguments.out or f"runs/speedrun/{arguments.size}-{Path(name).stem}")
    check_writable(out, folder=True)
    with locked(out, instead="name another folder with --out"):
        entry = Entry(out, _row(arguments, Path(name).stem, recipe, dtype), recipe, dtype, arguments.seeds)
        if (commit() or "").endswith("-dirty"):
            print("this code is not that of its commit; commit it first, or the row will not count", file=sys.stderr)
        for seed in range(arguments.seeds):
            entry.train(seed)
            entry.judge(seed, "train", arguments.clips)
        for seed in range(arguments.seeds if arguments.confirm else 0):
            entry.judge(seed, "held_out", arguments.clips)
    print(table([entry.row]))
    print(out / ROW)
    return 0


def _row(arguments: argparse.Namespace, name: str, recipe, dtype):
    """The row that the command line asks for, without trainings."""
    import torch

    from minicogvx.speedrun.board import Row, recipe_hash
    from minicogvx.speedrun.machine import processor

    return Row(arguments.size, name, recipe_hash(recipe), " ".join(arguments.idea.split()), processor(),
               torch.get_num_threads(), str(dtype).removeprefix("torch."), str(torch.__version__))


def _parser() -> Parser:
    parser = Parser(prog="minicogvx speedrun",
                    description="Minutes on two cores from nothing to a model that obeys its captions: trains a "
                                "recipe with several seeds and judges the results. The same command again resumes an "
                                "interrupted run. The rules and the board are in benchmarks/speedrun/README.md of the "
                                "repository.")
    parser.add_argument("--size", type=one_of(("toy", "micro")), default="micro", metavar="toy|micro",
                        help="toy: 17 frames of 64x64, 90 %% of captions; micro: 9 of 32x32, 75 %% (default: micro)")
    parser.add_argument("--recipe", type=path_to(), metavar="RECIPE",
                        help="a recipe as for `minicogvx train` (default: the one that leads the board)")
    parser.add_argument("--idea", default="", metavar="TEXT", help="what is new in it, for the board")
    parser.add_argument("--seeds", type=whole(1, 100), default=3, metavar="N",
                        help="how many: 0 to N - 1 (default: 3, which is the least that counts)")
    parser.add_argument("--clips", type=whole(1, 1_000_000), default=2000, metavar="N",
                        help="captions that judge each seed (default: 2000, which is the least that counts)")
    parser.add_argument("--confirm", action="store_true",
                        help="at the end also judge by held-out captions: once, when nothing will be changed any more")
    parser.add_argument("--out", type=path_to(), metavar="FOLDER",
                        help="where to write (default: runs/speedrun/SIZE-RECIPE)")
    parser.add_argument("--threads", type=THREADS, default=2, metavar="N", help="CPU threads (default: 2, the rule)")
    parser.add_argument("--dtype", metavar="float32|bfloat16",
                        help="dtype to compute in (default: MINICOGVX_DTYPE, else the fastest of the CPU)")
    parser.set_defaults(device="cpu")
    return parser
