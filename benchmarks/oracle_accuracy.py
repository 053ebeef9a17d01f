"""How often the oracle reads a true clip correctly, per property, over training and held-out scenes.

    python benchmarks/oracle_accuracy.py --clips 5000 --height 64 --frames 17 [--blur 0.7] [--noise 0.03]
"""

import argparse
import time
from collections import Counter

import torch
from torch import Tensor

from minicogvx.data.world.drawing import render
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import sample_scenes


def worsen(video: Tensor, blur: float, noise: float, generator: torch.Generator) -> Tensor:
    """Blur with a Gaussian (sigma in pixels) and add Gaussian noise (0..1 units) to a clip `t h w 3`."""
    if blur:
        steps = torch.arange(-4.0, 5.0)
        kernel = torch.exp(-0.5 * (steps / blur) ** 2)
        kernel = kernel / kernel.sum()
        frames = torch.nn.functional.pad(video.permute(3, 0, 1, 2), (4, 4, 4, 4), mode="replicate")
        frames = frames.flatten(0, 1)[:, None]
        frames = torch.nn.functional.conv2d(frames, kernel[None, None, :, None])
        frames = torch.nn.functional.conv2d(frames, kernel[None, None, None, :])
        video = frames.unflatten(0, (3, -1))[:, :, 0].permute(1, 2, 3, 0)
    if noise:
        video = video + noise * torch.randn(video.shape, generator=generator)
    return video.clamp(0, 1)


def main() -> None:
    """Draw clips, read them, print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=None, help="default: the height")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--blur", type=float, default=0.0, help="sigma in pixels")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation, of 1")
    parser.add_argument("--two-objects", type=float, default=0.15, help="share of scenes with two objects")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0, help="print this many wrong readings")
    args = parser.parse_args()
    half = args.clips // 2
    scenes = (sample_scenes(args.clips - half, args.seed, "train", args.two_objects)
              + sample_scenes(half, args.seed, "held_out", args.two_objects))
    generator = torch.Generator().manual_seed(args.seed)
    right, wrong, seconds, drawing = Counter(), [], 0.0, 0.0
    for scene in scenes:
        start = time.perf_counter()
        video = render(scene, args.frames, args.height, args.width or args.height)
        drawing += time.perf_counter() - start
        video = worsen(video, args.blur, args.noise, generator)
        start = time.perf_counter()
        reading = read(video)
        seconds += time.perf_counter() - start
        result = matches(reading, scene)
        right.update(key for key, value in result.items() if value)
        if not result["all"]:
            wrong.append((scene, reading))
    print(f"{args.clips} true clips, {args.height}x{args.width or args.height}, {args.frames} frames, "
          f"blur {args.blur} px, noise {args.noise}")
    for key in ("colour", "shape", "motion", "background", "count", "all"):
        print(f"  {key:10s} {100 * right[key] / args.clips:6.2f} %")
    print(f"  {1e3 * seconds / args.clips:.1f} ms to read a clip, {1e3 * drawing / args.clips:.1f} ms to draw it")
    for scene, reading in wrong[: args.show]:
        print(scene, "\n   ", reading)


if __name__ == "__main__":
    main()
