"""Rewards: a clip and what its caption asked for, as one number. And what no reward here asks for: variety.

Public work has networks as judges (Flow-GRPO, arXiv 2505.05470; DanceGRPO, arXiv 2505.07818). In the shapes world the
oracle reads a clip's contents exactly, and at no cost.
"""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import COLOURS, Scene

PROPERTIES = ("colour", "shape", "motion", "background", "count")
_NEAR = 0.35  # distance from a palette colour, where black to white is 1 per channel, within which a pixel counts
_FOREGROUND = 0.20  # as the oracle's: a pixel this far from the background belongs to an object
Reward = Callable[[Float[Tensor, "t h w 3"], Scene], float]


def share_right(clip: Float[Tensor, "t h w 3"], scene: Scene) -> float:
    """The share of `PROPERTIES` that the oracle reads as the scene has them: 0, 0.2 .. 1."""
    found = matches(read(clip), scene)
    return sum(found[name] for name in PROPERTIES) / len(PROPERTIES)


def all_right(clip: Float[Tensor, "t h w 3"], scene: Scene) -> float:
    """1 if the oracle reads every property as the scene has it, else 0."""
    return float(matches(read(clip), scene)["all"])


def colour_seen(clip: Float[Tensor, "t h w 3"], scene: Scene) -> float:
    """A careless reward: the share of all pixels, 0..1, that have about the colour of the scene's first object."""
    wanted = torch.tensor(COLOURS[scene.objects[0].colour], dtype=torch.float32)
    return float(((clip.float().cpu() - wanted).norm(dim=-1) < _NEAR).float().mean())


REWARDS: dict[str, Reward] = {"share": share_right, "all": all_right, "colour": colour_seen}


def first_layout(clip: Float[Tensor, "t h w 3"]) -> tuple[float, float, float] | None:
    """Where the first frame's object is, x and y, and its size (the root of its area), in frame sizes; None: nowhere.

    An object is whatever differs from the median colour of the frame's edge.
    """
    frame = clip[0].float().cpu()
    rim = torch.cat([frame[0], frame[-1], frame[1:-1, 0], frame[1:-1, -1]])
    solid = (frame - rim.median(dim=0).values).norm(dim=-1) > _FOREGROUND  # h w
    if not solid.any():
        return None
    places = solid.nonzero().float() + 0.5
    height, width = solid.shape
    return (float(places[:, 1].mean()) / width, float(places[:, 0].mean()) / height,
            float(solid.float().mean().sqrt()))


def layout_spread(clips: Sequence[Float[Tensor, "t h w 3"]] | Float[Tensor, "b t h w 3"]) -> float:
    """How differently clips of one caption begin: the root of the summed variances of x, y and size.

    0 if all begin alike. Clips without an object are left out; of fewer than two others nothing can be said, and the
    spread is 0.
    """
    found = [layout for layout in map(first_layout, clips) if layout is not None]
    return float(torch.tensor(found).var(dim=0).sum().sqrt()) if len(found) > 1 else 0.0


def group_advantages(rewards: Float[Tensor, "groups members"]) -> Float[Tensor, "groups members"]:
    """How much better a clip is than the others of its caption: (reward - mean) / standard deviation of its group.

    Where all rewards of a group are equal nothing can be learned from it: 0. (GRPO, arXiv 2402.03300, eq. 3.)
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    spread = rewards.std(dim=1, keepdim=True, correction=0)
    return torch.where(spread > 1e-6, centred / spread.clamp(min=1e-6), torch.zeros_like(rewards))


def rewards_of(reward: Reward, clips: Float[Tensor, "n t h w 3"], scenes: Sequence[Scene],
               members: int) -> Float[Tensor, "groups members"]:
    """The reward of each clip: first all `members` of the first scene, then those of the second, and so on."""
    values = torch.tensor([reward(clip, scenes[i // members]) for i, clip in enumerate(clips)])
    return rearrange(values, "(groups members) -> groups members", members=members)
