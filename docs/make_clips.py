"""The three moving clips at the top of the README, by the shipped model: `python docs/make_clips.py`."""

import sys
from pathlib import Path

import torch

import minicogvx
from minicogvx.media import write_gif

CLIPS = {  # file: caption and seed, the cleaner one of 0 and 1
    "clip_star": ("a yellow star moves right on a navy background", 1),
    "clip_ring": ("a cyan ring grows on a black background", 0),
    "clip_cross": ("a green cross shrinks on a brown background", 1),
}
STEPS = 50


def main() -> int:
    """Writes the clips beside this file. The same numbers on every machine, up to rounding: float32, on the CPU."""
    pipe = minicogvx.load("toy", device="cpu", dtype=torch.float32)
    for name, (caption, seed) in CLIPS.items():
        video = pipe(caption, num_inference_steps=STEPS, seed=seed)
        print(write_gif(Path(__file__).with_name(f"{name}.gif"), video, pipe.fps), caption, f"seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
