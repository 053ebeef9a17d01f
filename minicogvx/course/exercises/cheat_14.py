"""Exercise 14.2 of notebook 14: a clip that stands still and counts as dynamic."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_shape
from minicogvx.data.world.drawing import render
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import Scene, ShapeObject
from minicogvx.evaluation.dynamics import flow_peaks
from minicogvx.evaluation.reconstruction import flicker

JUMP = 3  # pixels
_LEAST, _PAIRS = 1.5, 4  # what the rule asks of 17 frames of 64 x 64


def few_jumps(video: Float[Tensor, "t h w 3"]) -> Float[Tensor, "t h w 3"]:
    """The first frame for the whole clip, moved aside and back in the last four frames."""
    still = video[:1].repeat(len(video), 1, 1, 1)
    still[-4::2] = still[-4::2].roll(JUMP, dims=2)
    return still


def true_clips() -> Iterator[tuple[str, Scene, Float[Tensor, "t h w 3"]]]:
    """The clips that the check cheats with: name, scene, and 17 frames of 64 x 64."""
    for thing, background in (
        (ShapeObject("cross", "white", "moves right", 0.28, 0.5, 0.22, 0.43, size="large"), "black"),
        (ShapeObject("circle", "orange", "moves up", 0.5, 0.72, 0.22, 0.43, size="large"), "navy"),
        (ShapeObject("star", "yellow", "moves down and left", 0.72, 0.28, 0.22, 0.40, size="large"), "brown"),
    ):
        scene = Scene((thing,), background)
        yield f"the {thing.shape} that {thing.motion}", scene, render(scene, 17, 64, 64)


def check_cheat(cheat) -> None:
    """Dynamic by the rule, half the flicker, every frame as asked, and not the motion."""
    for name, scene, video in true_clips():
        what, got = f"cheat({name})", cheat(video.clone())
        expect_shape(what, got, tuple(video.shape))
        got = got.float()
        low, high = got.min().item(), got.max().item()
        if not (-1e-6 <= low and high <= 1 + 1e-6):
            raise Wrong(f"{what} has values from {low:.3g} to {high:.3g}; they must lie in 0..1.")
        fast = flow_peaks(got)
        moving = int((fast > _LEAST).sum())
        if moving < _PAIRS:
            raise Wrong(f"{what} does not count as dynamic: in {moving} of 16 pairs of frames the fastest 5 % move by "
                        f"more than {_LEAST} pixels (at most {fast.max():.2f}), and it must be {_PAIRS}.")
        found = matches(read(got), scene)
        if found["motion"]:
            raise Wrong(f"{what} is no cheat: the oracle still reads that it {scene.objects[0].motion}.")
        now, before = flicker(got), flicker(video)
        if now > before / 2:
            raise Wrong(f"{what} counts as dynamic, but its flicker is {now:.2f}; the true clip has {before:.2f}, and "
                        f"half of that is allowed. How many pairs have to move?")
        wrong = [each for each in ("colour", "shape", "background") if not found[each]]
        if wrong:
            raise Wrong(f"{what}: the oracle no longer reads the {' and '.join(wrong)} as asked. Only the motion may "
                        f"be lost.")
