"""How much the loss rises if two objects get wrong words (swap gain), or each other's (exchange gain).

    python benchmarks/word_gains.py --model toy --clips 256

A model that takes a caption for a bag of words has swap gains but no exchange gains: it cannot tell which object a word
belongs to. The interval is that of eight groups of clips, each with noise of its own.
"""

import argparse

import torch

import minicogvx
from minicogvx.data.clips.world import encode_world
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.evaluation.intervals import mean_interval
from minicogvx.training.validation import swap_gain

GROUPS = 8


def main() -> None:
    """Print two gains for each kind of word."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="toy", help="a model's name or folder")
    parser.add_argument("--clips", type=int, default=256, help=f"in {GROUPS} groups, all with two objects")
    parser.add_argument("--seed", type=int, default=5, help="of the scenes, from the training split")
    args = parser.parse_args()
    size = args.clips // GROUPS
    if size < 1:
        parser.error(f"--clips is {args.clips}; it must be {GROUPS} or more")
    pipe = minicogvx.load(args.model, dtype=torch.float32)
    frames, side, _ = pipe.video_size
    print(f"{args.model}, {GROUPS * size} clips with two objects; mean and 95 % interval")
    scenes = sample_scenes(GROUPS * size, args.seed, two_objects=1.0)
    groups = [scenes[first:first + size] for first in range(0, len(scenes), size)]
    clips = [encode_world(pipe.vae, scenes=group, num_frames=frames, side=side, progress=False) for group in groups]
    for kind in ("colour", "shape", "motion"):
        for exchange in (False, True):
            gains = [swap_gain(pipe.transformer, pipe.text, pipe.schedule, group, own, torch.float32, kind=kind,
                               exchange=exchange, seed=number)
                     for number, (group, own) in enumerate(zip(groups, clips))]
            mean, low, high = mean_interval(gains)
            print(f"{kind:7s} {'exchange' if exchange else 'swap':9s} {mean:+z.4f} ({low:+z.4f} to {high:+z.4f})",
                  flush=True)


if __name__ == "__main__":
    main()
