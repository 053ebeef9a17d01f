"""`minicogvx evaluate`: how well a model obeys its captions, or what its VAE keeps of a clip."""

import argparse
import dataclasses
import json
import os
from pathlib import Path

HELD_OUT_SEED = 1_000_003  # of the captions that the final figure is measured on


def main(argv: list[str] | None = None) -> int:
    """Prints one line of figures; `--out` also writes them, with every failure, to a JSON file."""
    parser = argparse.ArgumentParser(prog="minicogvx evaluate", description="Measure a model of the shapes world.")
    parser.add_argument("what", nargs="?", choices=("captions", "vae"), default="captions",
                        help="captions: does it obey them? vae: what is left of a clip after a round trip? (default: captions)")
    parser.add_argument("--model", default="toy", metavar="toy|FOLDER")
    parser.add_argument("--clips", type=int, default=500, metavar="N")
    parser.add_argument("--split", choices=("held_out", "train"), default="held_out",
                        help="held_out: combinations of shape, colour and motion that training never showed")
    parser.add_argument("--two-objects", type=float, default=0.0, metavar="SHARE", help="of scenes with two objects")
    parser.add_argument("--steps", type=int, default=25, metavar="N")
    parser.add_argument("--guidance-scale", type=float, metavar="W",
                        help="default: the model's own")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--out", metavar="FILE.json")
    arguments = parser.parse_args(argv)
    if arguments.clips < 1:
        raise ValueError(f"clips is {arguments.clips}; it must be 1 or more")
    if not 0 <= arguments.two_objects <= 1:
        raise ValueError(f"two-objects is {arguments.two_objects}; it must be from 0 to 1")
    result = _measure(arguments)
    print(f"{arguments.model}, {arguments.split}: {result}")
    if arguments.out:
        beside = Path(arguments.out + ".part")
        beside.write_text(json.dumps(dataclasses.asdict(result), indent=1))
        os.replace(beside, arguments.out)
    return 0


def _measure(arguments: argparse.Namespace):
    import minicogvx
    from minicogvx.data.shapes import sample_scenes
    from minicogvx.evaluation.adherence import measure_adherence
    from minicogvx.evaluation.reconstruction import measure_reconstruction

    scenes = sample_scenes(arguments.clips, HELD_OUT_SEED + arguments.seed, arguments.split, arguments.two_objects)
    pipe = minicogvx.load(arguments.model)
    if arguments.what == "vae":
        return measure_reconstruction(pipe.vae, scenes, pipe.num_frames, arguments.seed)
    return measure_adherence(pipe, scenes, arguments.seed, arguments.steps, arguments.guidance_scale)
