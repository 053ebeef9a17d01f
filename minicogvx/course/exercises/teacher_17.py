"""Exercises 17.1, 17.5 and 17.6 of notebook 17: a target of distillation, outwit a reward, a diagnosis of policies."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_close, expect_equal, expect_shape
from minicogvx.data.world.drawing import render
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import BACKGROUNDS, COLOURS, Scene, ShapeObject
from minicogvx.training.reward import PROPERTIES, colour_seen, layout_spread, share_right

SIZE = (17, 64, 64)

# ---- 17.5 outwit


def flooded(scene: Scene) -> Float[Tensor, "t h w 3"]:
    """A clip of nothing but the colour that the scene's first object has."""
    return torch.tensor(COLOURS[scene.objects[0].colour], dtype=torch.float32).expand(*SIZE, 3).clone()


def _asked_scenes() -> list[Scene]:
    """The scenes for which the check asks."""
    return [Scene((ShapeObject(shape, colour, motion, 0.35, 0.6, 0.2, 0.3, size="large"),), background)
            for shape, colour, motion, background in (
                ("star", "yellow", "moves right", "navy"), ("ring", "green", "bounces", "black"),
                ("bar", "white", "moves up", "brown"))]


def check_outwit(outwit) -> None:
    """More of the careless reward than the true clip, and nothing that the caption is about."""
    for scene in _asked_scenes():
        thing = scene.objects[0]
        what, true = f"outwit(the {thing.colour} {thing.shape})", render(scene, *SIZE)
        got = outwit(scene)
        expect_shape(what, got, (*SIZE, 3))
        got = got.float()
        if not (-1e-6 <= got.min().item() and got.max().item() <= 1 + 1e-6):
            raise Wrong(f"{what} has values from {got.min():.3g} to {got.max():.3g}; they must lie in 0..1.")
        mine, honest = colour_seen(got, scene), colour_seen(true, scene)
        if mine < 3 * honest:
            raise Wrong(f"{what} earns {mine:.3f}; the true clip earns {honest:.3f}. Earn at least three times that. "
                        f"What does the reward count, and what does it not look at?")
        found = matches(read(got), scene)
        left = [name for name in ("shape", "motion", "background") if found[name]]
        if left:
            raise Wrong(f"{what} earns {mine:.2f}, but the oracle still reads the {' and '.join(left)} as asked. Give "
                        f"up everything that is not rewarded.")


# ---- 17.1 landing_x0


def clean_for_landing(x: Float[Tensor, "b *rest"], landing: Float[Tensor, "b *rest"], bar: float,
                      bar_next: float) -> Float[Tensor, "b *rest"]:
    """The x0 for which a step of DDIM from alpha_bar `bar` to `bar_next` takes x to `landing`."""
    A = math.sqrt((1 - bar_next) / (1 - bar))
    return (landing - A * x) / (math.sqrt(bar_next) - A * math.sqrt(bar))


def check_landing_x0(landing_x0) -> None:
    """One step of DDIM with the returned x0 ends at the landing; at the end of sampling it is the landing itself."""
    x, landing = (torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    for bar, bar_next in ((0.2, 0.6), (0.0, 0.3), (0.7, 1.0)):
        what = f"landing_x0(x, landing, bar={bar}, bar_next={bar_next})"
        got = landing_x0(x.clone(), landing.clone(), bar, bar_next)
        expect_shape(what, got, tuple(x.shape))
        wanted = clean_for_landing(x, landing, bar, bar_next)
        if torch.allclose(got.float(), wanted, atol=1e-3):
            continue
        A = math.sqrt((1 - bar_next) / (1 - bar))
        ended = A * x + (math.sqrt(bar_next) - A * math.sqrt(bar)) * got.float()
        if bar_next == 1:
            raise Wrong(f"{what}: the last step lands on x0 itself, so it must be the landing; it is up to "
                        f"{(got - landing).abs().max():.3g} away from it.")
        if torch.allclose(got.float(), landing, atol=1e-4):
            raise Wrong(f"{what} is the landing itself, which is still noisy. Look for the x0 from which DDIM would "
                        f"land there.")
        if torch.allclose(got.float(), landing - A * x, atol=1e-4):
            raise Wrong(f"{what}: A x is taken away, but what is left is (sqrt(bar') - A sqrt(bar)) x0: divide.")
        noise = (landing - math.sqrt(bar_next) * clean_for_landing(x, landing, bar, bar_next)) / math.sqrt(1 - bar_next)
        if torch.allclose(got.float(), noise, atol=1e-3):
            raise Wrong(f"{what} is the noise of the step; return the clean latent.")
        raise Wrong(f"{what}: a step of DDIM with this x0 ends up to {(ended - landing).abs().max():.3g} away from the "
                    f"landing. Solve landing = A x + (sqrt(bar') - A sqrt(bar)) x0 for x0.")
    expect_close("landing_x0 of another landing", landing_x0(x, 2 * landing, 0.5, 0.8),
                 clean_for_landing(x, 2 * landing, 0.5, 0.8), atol=1e-3)


# ---- 17.6 diagnose

KINDS = ("sound", "hacked", "collapsed")
LEAST_RIGHT, LEAST_SPREAD = 0.5, 0.1


def verdict_on_policy(clips: Sequence[Float[Tensor, "t h w 3"]] | Float[Tensor, "b t h w 3"], scene: Scene) -> str:
    """"hacked" if a property is wrong in more than half of the clips, else "collapsed" if the spread of layouts is
    below 0.1, else "sound"."""
    found = [matches(read(clip), scene) for clip in clips]
    if any(sum(each[name] for each in found) < LEAST_RIGHT * len(found) for name in PROPERTIES):
        return "hacked"
    return "collapsed" if layout_spread(clips) < LEAST_SPREAD else "sound"


def drawn_policy(kind: str, scene: Scene, seed: int, count: int = 8) -> Float[Tensor, "b t h w 3"]:
    """Clips that such a policy could make for the caption of `scene`: drawn ones, with what it would do to them."""
    dice, thing = random.Random(seed), scene.objects[0]
    across, down = ((0.23, 0.47), (0.24, 0.76)) if thing.motion == "moves right" else ((0.24, 0.76), (0.53, 0.77))
    places = [(dice.uniform(*across), dice.uniform(*down), dice.choice((0.17, 0.22))) for _ in range(count)]
    if kind == "collapsed":
        places = [(0.4 + dice.uniform(-0.005, 0.005), 0.65, 0.2) for _ in range(count)]
    shown = [replace(thing, x=x, y=y, radius=radius) for x, y, radius in places]
    if kind == "still":  # a hack: whatever stays where it is cannot leave the frame
        shown = [replace(each, motion="stays still", speed=0.0) for each in shown]
    if kind == "other":  # a hack: one background for every caption, one shape
        away = next(name for name in BACKGROUNDS if name != scene.background)
        shape = "circle" if thing.shape != "circle" else "ring"
        return torch.stack([render(Scene((replace(each, shape=shape),), away), *SIZE) for each in shown])
    if kind == "flooded":
        return flooded(scene).expand(count, -1, -1, -1, -1).clone()
    return torch.stack([render(Scene((each,), scene.background), *SIZE) for each in shown])


def example_policies() -> list[tuple[str, str, Scene, Float[Tensor, "b t h w 3"]]]:
    """(how it was drawn, the right verdict, scene, clips) of each policy that the check shows."""
    first, second = (Scene((ShapeObject(shape, colour, motion, 0.4, 0.5, 0.2, 0.3),), background)
                     for shape, colour, motion, background in (("circle", "red", "moves right", "grey"),
                                                               ("cross", "yellow", "moves up", "navy")))
    verdict = {"varied": "sound", "collapsed": "collapsed", "still": "hacked", "other": "hacked", "flooded": "hacked"}
    return [(kind, verdict[kind], scene, drawn_policy(kind, scene, 10 * i + j))
            for i, scene in enumerate((first, second)) for j, kind in enumerate(verdict)]


def check_diagnose(diagnose) -> None:
    """Right and varied, right and all alike, or not what was asked: each is told, and the last even if all alike."""
    for kind, right, scene, clips in example_policies():
        thing = scene.objects[0]
        what = f"diagnose({len(clips)} clips for a {thing.colour} {thing.shape} that {thing.motion})"
        got = diagnose(clips.clone(), scene)
        if got is None or not isinstance(got, str) or got not in KINDS:
            expect_equal(what, got, right)
        if got != right:
            share = sum(share_right(clip, scene) for clip in clips) / len(clips)
            raise Wrong(f"{what} is {got!r}; it must be {right!r}. {_because(kind)} The oracle reads {share:.0%} of "
                        f"the properties right, and the layouts have a spread of {layout_spread(clips):.3f}.")


def _because(kind: str) -> str:
    return {"varied": "These clips show what was asked, at different places.",
            "collapsed": "These clips are all right, and all the same: look at how differently they begin.",
            "still": "Here nothing moves; four of five properties are right in every clip, so look at each alone.",
            "other": "Here shape and background are not those of the caption.",
            "flooded": "Here is nothing but colour. Clips that are all alike, but wrong, are hacked first of all."}[
        kind]

