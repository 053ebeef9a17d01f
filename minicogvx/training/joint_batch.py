"""One joint batch of all ranks: every rank draws the same one and computes on its own part."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minicogvx.engine.ranks import Ranks


@dataclass(frozen=True)
class Batch:
    """The inputs of one step, or of one rank or one pass of it."""

    x0: Float[Tensor, "b c t h w"]
    captions: list[str]
    features: Float[Tensor, "b t h w k"]  # to align with
    noise: Float[Tensor, "b c t h w"]
    t: Int[Tensor, " b"]

    def __getitem__(self, index: slice | Int[Tensor, " _"]) -> "Batch":
        captions = [self.captions[i] for i in torch.arange(len(self.t))[index].tolist()]
        return Batch(self.x0[index], captions, self.features[index], self.noise[index], self.t[index])

    def variance(self, kinds: list[int]) -> float:
        """The variance of the features of these kinds; at least 1e-6."""
        return self.features[..., kinds].float().var().clamp(min=1e-6).item()


def own_part(joint: Batch, here: Ranks) -> Batch:
    """This rank's clips: those whose timesteps lie in its own interval (explicit uniform sampling, paper 3.3).

    There is one timestep from each of b equal parts of 0 .. T-1, so sorting them sorts the clips into intervals (up to
    one timestep if the ranks do not divide T).
    """
    return joint[joint.t.argsort(stable=True)[here.part(len(joint.t))]] if here.world_size > 1 else joint


def parts(length: int, count: int) -> list[slice]:
    """`count` slices of a batch, as equal as possible, for gradient accumulation."""
    bounds = [length * i // count for i in range(count + 1)]
    return [slice(low, high) for low, high in zip(bounds, bounds[1:]) if high > low]


