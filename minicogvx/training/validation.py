"""The loss on clips that are held back, by timestep (paper Table 9). It falls where samples still show nothing."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from minicogvx.data.clips.clips import Clips
from minicogvx.data.clips.order import number_of
from minicogvx.data.world.captions import caption
from minicogvx.data.world.scenes import SHAPES, Scene
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharding import mean_over_ranks
from minicogvx.training.batches import Example, Pass, whole_patches
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.transformer import TransformerTask

TIMESTEPS = (100, 300, 500, 700, 900)


class Validation:
    """A watcher of a transformer: `loss_100` to `loss_900`, and their mean `validation`, with fixed noise and captions.

    Every rank measures its part of the clips, one at a time, so that all sizes will do.
    """

    def __init__(self, clips: Clips, every: int, ranks: Ranks = Ranks(), most: int = 64):
        """`most`: of the clips, the first so many. Raises ValueError if there are fewer than ranks."""
        self.clips, self.every, self.ranks = clips, every, ranks
        count = min(most, len(clips)) // ranks.world_size  # as many on every rank, as FSDP needs
        if not count:
            raise ValueError(f"{len(clips)} clips are held back; there must be at least one a rank")
        self.own = range(ranks.rank * count, (ranks.rank + 1) * count)

    @torch.no_grad()
    def __call__(self, step: int, task: TransformerTask) -> dict[str, float]:
        """The losses of the moving average, if there is one, or of the weights."""
        with task.averaged():
            losses = {f"loss_{t}": self.loss_at(task, t) for t in TIMESTEPS}
        losses["validation"] = sum(losses.values()) / len(losses)
        return mean_over_ranks(losses, self.ranks)

    def loss_at(self, task: TransformerTask, t: int) -> float:
        """The mean loss of this rank's clips at one timestep."""
        patch_t = task.model.config.patch_size_t
        examples = [fixed_example(self.clips, i, t, task.training, patch_t) for i in self.own]
        return sum(task.losses(Pass([one], False, 1.0)).item() for one in examples) / len(examples)


def fixed_example(clips: Clips, i: int, t: int, training: TransformerTraining, patch_t: int | None = None) -> Example:
    """Clip `i` at one timestep, always with the same noise and phrasing, from the posterior's mean."""
    generator = torch.Generator().manual_seed(number_of("validation", i))
    latents = whole_patches(clips.latents(i), patch_t)
    noise = torch.randn(latents.shape, generator=generator)
    text = clips.text(i) if clips.has_text else None
    picture = clips.first_pixels(i) if training.image_to_video else None
    return Example(latents, noise, t, clips.caption(i, random.Random(i), training.caption_style), text, None, picture,
                   torch.zeros_like(latents[:, :1]))


def held_back_loss(task: TransformerTask, clips: Clips) -> float:
    """The mean loss on clips of one size, in one pass: each at a timestep of its own, evenly spread over all."""
    places = random.Random(0).sample(range(len(clips)), len(clips))
    examples = [fixed_example(clips, i, (2 * place + 1) * 1000 // (2 * len(clips)), task.training)
                for i, place in enumerate(places)]
    with torch.no_grad(), task.averaged():
        return task.losses(Pass(examples, False, 1.0)).mean().item()


class SwapGain:
    """A watcher: how much the loss rises when each caption names the wrong shape, near 0 if the word is not learnt.

    It reveals a model that ignores shapes long before samples do.
    """

    def __init__(self, scenes: Sequence[Scene], clips: Clips, every: int, most: int = 64):
        self.scenes, self.clips, self.every = list(scenes[:most]), clips, every

    @torch.no_grad()
    def __call__(self, step: int, task: TransformerTask) -> dict[str, float]:
        """The difference of the two mean losses, on every rank the same."""
        right, wrong = (self._loss(task, scenes) for scenes in (self.scenes, [_other_shapes(s) for s in self.scenes]))
        return {"swap_gain": wrong - right}

    def _loss(self, task: TransformerTask, scenes: list[Scene]) -> float:
        examples, words, count = [], random.Random(0), len(scenes)  # the same phrasing, noise and timesteps for both
        for i, scene in enumerate(scenes):
            latents, generator = self.clips.latents(i), torch.Generator().manual_seed(number_of("swap", i))
            noise = torch.randn(latents.shape, generator=generator)
            examples.append(Example(latents, noise, (2 * i + 1) * 1000 // (2 * count), caption(scene, words, "short"),
                                    None, None, None, None))
        return task.losses(Pass(examples, False, 1.0)).mean().item()


def _other_shapes(scene: Scene) -> Scene:
    return replace(scene, objects=tuple(
        replace(thing, shape=SHAPES[(SHAPES.index(thing.shape) + 1 + i) % len(SHAPES)])
        for i, thing in enumerate(scene.objects)))
