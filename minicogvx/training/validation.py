"""The loss on clips that are held back, by timestep (paper Table 9). It falls where samples still show nothing."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from minicogvx.data.clips.clips import Clips, stack_latents
from minicogvx.data.clips.order import number_of
from minicogvx.data.world.captions import caption, evaluation_caption
from minicogvx.data.world.scenes import WORDS
from minicogvx.data.world.vocabulary import Scene
from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.diffusion.timesteps import stratified_timesteps
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharding import mean_over_ranks
from minicogvx.text import TextEncoder
from minicogvx.training.batches import Example, Pass, whole_patches
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.transformer import TransformerTask
from minicogvx.visible import many

TIMESTEPS = (100, 300, 500, 700, 900)
AT_ONCE = 32  # clips whose swap gain is measured in one pass


class Validation:
    """A watcher of a transformer: `loss_100` to `loss_900`, and their mean `validation`, with fixed noise and captions.

    Every rank, or team of ranks, measures its part of the clips, one at a time, so that all sizes will do.
    """

    def __init__(self, clips: Clips, every: int, ranks: Ranks = Ranks(), most: int = 64):
        """`most`: of the clips, the first so many. Raises ValueError if there are fewer than ranks."""
        self.clips, self.every, self.ranks = clips, every, ranks
        count = min(most, len(clips)) // ranks.teams  # as many on every rank, as FSDP needs
        if not count:
            raise ValueError(f"{len(clips)} clips are held back; there must be at least one a rank")
        team = ranks.rank // ranks.context
        self.own = range(team * count, (team + 1) * count)

    @torch.no_grad()
    def __call__(self, step: int, task: TransformerTask) -> dict[str, float]:
        """The losses of the moving average, if there is one, or of the weights."""
        with task.averaged_weights():
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
    picture_noise = torch.zeros_like(latents[:, :1])[:None if training.image_to_video else 0]
    return Example(latents, noise, t, clips.caption(i, random.Random(i), training.caption_style), text, None, picture,
                   picture_noise)


def held_back_loss(task: TransformerTask, clips: Clips) -> float:
    """The mean loss on clips of one size, in one pass: each at a timestep of its own, evenly spread over all."""
    places = random.Random(0).sample(range(len(clips)), len(clips))
    examples = [fixed_example(clips, i, (2 * place + 1) * 1000 // (2 * len(clips)), task.training)
                for i, place in enumerate(places)]
    with torch.no_grad(), task.averaged_weights():
        return task.losses(Pass(examples, False, 1.0)).mean().item()


class SwapGain:
    """A watcher of a transformer on the shapes world: see `swap_gain`."""

    def __init__(self, scenes: Sequence[Scene], clips: Clips, every: int, most: int = 192):
        self.scenes, self.clips, self.every = list(scenes[:most]), clips, every

    def __call__(self, step: int, task: TransformerTask) -> dict[str, float]:
        """The gain of the weights, on every rank the same."""
        return {"swap_gain": swap_gain(task.model, task.text, task.schedule, self.scenes, self.clips, task.dtype,
                                       task.ranks.device)}


@torch.no_grad()
def swap_gain(model: nn.Module, text: TextEncoder, schedule: NoiseSchedule, scenes: Sequence[Scene], clips: Clips,
              dtype: torch.dtype, device: torch.device | None = None, kind: str = "shape",
              choices: Mapping[str, Sequence[str]] | None = None, exchange: bool = False, seed: int = 0) -> float:
    """How much the loss rises when each caption names the wrong shape: near 0 if the model has not learnt the word.

    It reveals a model that ignores shapes long before samples do. `scenes` are those of the first clips. `device`:
    where the model computes; None: where the text encoder's weights are. `kind`, `choices`: another kind of word, and
    the words of a smaller world, see `with_other_words`. `exchange`: the exchange gain instead, for scenes with two
    objects, see `with_exchanged_words`. `seed`: of the noise. Captions are short; for the background, they name it.
    """
    say = evaluation_caption if kind == "background" else partial(caption, style="short")
    device, generator = device or text.encoder.device, torch.Generator().manual_seed(1 + seed)
    x0 = stack_latents(clips, range(len(scenes)), torch.Generator().manual_seed(0))
    noise = torch.randn(x0.shape, generator=generator)
    t = stratified_timesteps(len(x0), schedule.num_train_timesteps, generator)

    def loss(scenes: Sequence[Scene]) -> float:
        total = 0.0
        captions = [say(scene, random.Random(i)) for i, scene in enumerate(scenes)]  # phrased alike
        for first in range(0, len(scenes), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            own, own_noise, own_t = (tensor[part].to(device) for tensor in (x0, noise, t))
            noisy, features = schedule.add_noise(own, own_noise, own_t), text.encode(captions[part])
            total += diffusion_loss(model(noisy.to(dtype), own_t, features.to(dtype)), own, own_noise, own_t,
                                    schedule).sum().item()
        return total / len(scenes)

    wrong = [with_exchanged_words(scene, kind) if exchange else with_other_words(scene, kind, choices)
             for scene in scenes]
    return loss(wrong) - loss(scenes)


def with_other_words(scene: Scene, kind: str, choices: Mapping[str, Sequence[str]] | None = None) -> Scene:
    """The scene, for its caption, with the wrong "shape", "colour" or "motion" of each object, or "background".

    The wrong word is the next one of the vocabulary, or of the words that `choices` has of this kind, as in
    `sample_scenes`: a model of a smaller world knows no others. Raises ValueError for another kind, for fewer than two
    words, and for a scene with a word that is not among them.
    """
    if kind not in WORDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(WORDS)}")
    words = list((choices or {}).get(kind, WORDS[kind]))
    if len(words) < 2:
        raise ValueError(f"choices has {words} as {kind}; a wrong word takes at least two")
    if kind == "background":
        return replace(scene, background=_next(words, scene.background, 1))
    return replace(scene, objects=tuple(replace(thing, **{kind: _next(words, getattr(thing, kind), 1 + i)})
                                        for i, thing in enumerate(scene.objects)))


def with_exchanged_words(scene: Scene, kind: str) -> Scene:
    """The scene, for its caption, with the "shape", "colour" or "motion" of its two objects exchanged.

    The caption keeps its words and has some of them in other places (a motion may get another of its phrases): a model
    that takes it for a bag of words cannot tell. Raises ValueError for another kind, and for a scene that does not have
    two objects.
    """
    if kind not in ("shape", "colour", "motion"):
        raise ValueError(f"kind is {kind!r}; objects can exchange shape, colour or motion")
    if len(scene.objects) != 2:
        raise ValueError(f"the scene has {many(len(scene.objects), 'object')}; it takes two to exchange words")
    one, other = scene.objects
    return replace(scene, objects=(replace(one, **{kind: getattr(other, kind)}),
                                   replace(other, **{kind: getattr(one, kind)})))


def _next(words: list[str], word: str, steps: int) -> str:
    if word not in words:
        raise ValueError(f"the scene has {word!r}, which is not among {', '.join(words)}")
    return words[(words.index(word) + steps) % len(words)]
