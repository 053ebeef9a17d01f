"""Tests curation and the exact captioner on videos with known content: the shapes world in mp4 files.

    python -m benchmarks.films [--clips 60] [--side 128]

Each scene is written without a flaw, and with one: frozen, black, out of focus, only half a second long, or with
another scene appended. Curation should keep the good ones, drop the next three for the right reason, report the short
ones as too short, and locate the cut to within a frame. The captioner should give each good video exactly the caption
of its scene.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.oracle_accuracy import worsen
from minicogvx.data.films.captioning import caption_shapes
from minicogvx.data.films.curate import curate
from minicogvx.data.films.folder import scan_folder
from minicogvx.data.films.report import Curation
from minicogvx.data.films.shots import Shot
from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import Scene, sample_scenes
from minicogvx.media import write_mp4

FPS, FRAMES = 8, 17
REASONS = {"frozen": "static", "black": "black", "unsharp": "blurred"}


def films(scene: Scene, other: Scene, side: int) -> dict[str, Float[Tensor, "t h w 3"]]:
    """The good video and those with a flaw."""
    whole, behind = render_batch([scene, other], FRAMES, side, side)
    return {"whole": whole, "frozen": whole[:1].expand(FRAMES, -1, -1, -1), "black": torch.zeros_like(whole),
            "unsharp": worsen(whole, side / 32, 0.0, torch.Generator()), "short": whole[:FPS // 2],
            "cut": torch.cat([whole, behind])}


def as_meant(kind: str, shots: list[Shot]) -> bool:
    """Whether curation judged a video correctly."""
    if kind == "whole":
        return len(shots) == 1 and not shots[0].reasons
    if kind == "cut":
        return len(shots) == 2 and abs(shots[1].clip.start - FRAMES / FPS) < 1.5 / FPS
    return len(shots) == 1 and REASONS[kind] in shots[0].reasons


def report(result: Curation, films_a_kind: int) -> None:
    """One line for each kind, with the wrong decisions."""
    for kind in ("whole", *REASONS, "cut"):
        mine = {}
        for shot in result.shots:
            if shot.clip.name.startswith(kind):
                mine.setdefault(shot.clip.name, []).append(shot)
        wrong = [shots for shots in mine.values() if not as_meant(kind, shots)]
        instead = Counter(f"{len(shots)} shots, {'+'.join(sum((shot.reasons for shot in shots), ())) or 'kept'}"
                          for shots in wrong)
        told = "; ".join(f"{count} x {what}" for what, count in instead.items())
        print(f"{kind}: {len(mine) - len(wrong)} of {len(mine)} as meant" + (f" ({told})" if wrong else ""))
    short = [problem for problem in result.problems if problem.name.startswith("short") and "short" in problem.reason]
    print(f"short: {len(short)} of {films_a_kind} as meant; other problems: {len(result.problems) - len(short)}")


def main() -> None:
    """Writes the videos to a temporary folder, and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--side", type=int, default=128, help="pixels")
    arguments = parser.parse_args()
    moving = [scene for scene in sample_scenes(3 * arguments.clips, 0, "train", 0.0)
              if scene.objects[0].motion != "stays still"][:arguments.clips]
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "films"
        folder.mkdir()
        for i, (scene, other) in enumerate(zip(moving, [*moving[1:], moving[0]])):
            for kind, film in films(scene, other, arguments.side).items():
                write_mp4(folder / f"{kind}-{i:04d}.mp4", film, FPS)
        start = time.perf_counter()
        result = curate(folder, Path(home) / "out", progress=False)
        seconds = time.perf_counter() - start
        report(result, len(moving))
        print(f"curation: {seconds / (6 * len(moving)):.2f} s a video of {arguments.side}x{arguments.side}")
        captions(folder, moving)


def captions(folder: Path, scenes: list[Scene]) -> None:
    """Prints how many good videos get the caption of their scene."""
    right, clips = 0, [clip for clip in scan_folder(folder, 0.0, need_captions=False).clips
                       if clip.name.startswith("whole")]
    for clip, scene in zip(clips, scenes, strict=True):
        try:
            right += caption_shapes(clip, seed=0) == evaluation_caption(scene, random.Random(0))
        except ValueError:
            pass  # ambiguous: no caption, which counts as wrong here
    print(f"captions: {right} of {len(clips)} word for word")


if __name__ == "__main__":
    main()
