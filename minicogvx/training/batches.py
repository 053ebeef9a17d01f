"""The random half of a step of the transformer: which clips, captions, noise and timesteps. The rest is computation.

Everything that is drawn for a clip comes from a generator of its own, seeded by the run, the step and the clip's place
in the joint batch. So a step is the same on any number of ranks, in any number of passes, and after any interruption.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from minicogvx.data.clips.clips import Clips, Selected
from minicogvx.data.clips.order import Order, PackOrder, number_of, passes
from minicogvx.diffusion.timesteps import rank_interval
from minicogvx.engine.ranks import Ranks
from minicogvx.presets import TransformerConfig
from minicogvx.training.image_condition import noised_picture
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.stages import Stage, stage_of


@dataclass(frozen=True)
class Example:
    """One clip as a step sees it."""

    latents: Float[Tensor, "c t h w"]  # clean and scaled
    noise: Float[Tensor, "c t h w"]
    timestep: int
    caption: str  # empty if it was dropped
    text: Float[Tensor, "n d"] | None  # stored features of the caption; None: it is encoded in the step
    features: Float[Tensor, "t h w k"] | None  # what the alignment head is asked for
    picture: Float[Tensor, "3 1 h2 w2"] | None  # the noised first frame, for image to video
    picture_noise: Float[Tensor, "c_image 1 h w"]  # of the posterior of the picture's latent; else without channels


@dataclass(frozen=True)
class Pass:
    """The clips of one forward pass: all of one size, or packed into one sequence."""

    examples: list[Example]
    packed: bool
    total: float  # by which the sum of the clips' losses is divided
    shows_pictures: bool = True  # false where the picture of image to video is dropped, once for a whole batch
    tokens: int = 0  # text and patches
    room: int = 0  # of a pack: tokens that it could hold

    @property
    def captions(self) -> list[str]:
        """The captions of all clips."""
        return [example.caption for example in self.examples]

    def stack(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """A field of all examples as one tensor."""
        return torch.stack(self.each(name, device))

    def each(self, name: str, device: torch.device | str = "cpu") -> list[Tensor]:
        """A field of every example."""
        return [getattr(example, name).to(device) for example in self.examples]

    def one_by_one(self) -> list["Pass"]:
        """A pass for each clip."""
        return [replace(self, examples=[example]) for example in self.examples]

    def timesteps(self, device: torch.device | str = "cpu") -> Int[Tensor, " b"]:
        """The timestep of each clip."""
        return torch.tensor([example.timestep for example in self.examples], device=device)


class Steps(Dataset):
    """Step k of a training as the forward passes of this rank: `steps[k]`, a list of `Pass`."""

    def __init__(self, clips: Clips | Sequence[Clips], training: TransformerTraining, config: TransformerConfig,
                 ranks: Ranks = Ranks(), seed: int = 0, zero_text: bool = False, T: int = 1000):
        """`clips`: one set for all stages, or one for each. `zero_text`: a dropped caption has features of zeros.
        `T`: the number of timesteps. Raises ValueError for another number of sets, and if no clip can be used.
        """
        self.training, self.config, self.ranks, self.seed = training, config, ranks, seed
        self.zero_text, self.T = zero_text, T
        self.sets = list(clips) if isinstance(clips, (list, tuple)) else [clips] * len(training.stages)
        if len(self.sets) != len(training.stages):
            raise ValueError(f"there are {len(self.sets)} sets of clips for {len(training.stages)} stages; give one, "
                             f"or one for each")
        if training.image_to_video:  # a picture would be its own answer
            self.sets = [Selected(one, [i for i in range(len(one)) if one.latent_size(i)[0] > 1]) for one in self.sets]
        if not all(map(len, self.sets)):
            raise ValueError("no clip can be used" + (": all have one frame, and from an image a model learns to make "
                                                      "the frames after it" if training.image_to_video else ""))
        self.orders = [self._order(number) for number in range(len(self.sets))]

    def __len__(self) -> int:
        return sum(stage.steps for stage in self.training.stages)

    def __getitem__(self, step: int) -> list[Pass]:
        number, within = stage_of(self.training.stages, step)
        return self.passes(number, within, step)

    def passes(self, number: int, within: int, step: int) -> list[Pass]:
        """The passes of step `within` of stage `number`; `step` seeds what is drawn."""
        stage, order = self.training.stages[number], self.orders[number]
        joint = order.take(within * stage.batch_size, stage.batch_size)
        if stage.pack:
            own = joint[self.ranks.part(stage.batch_size)]
            places = [place for pack in joint for place in pack.indices]
            first = sum(len(pack.indices) for pack in joint[:self.ranks.part(stage.batch_size).start])
            total = order.clips_a_pack * stage.batch_size / self.ranks.teams
            return list(self._packed(own, first, len(places), total, number, step))
        images = _images(stage, self.seed, step)
        sizes = [self._size(number, i, place in images) for place, i in enumerate(joint)]
        total = stage.batch_size / self.ranks.teams
        strata = _strata(len(joint), self.seed, step)
        return [self._pass([self.example(number, joint[place], place, strata[place] / len(joint), len(joint), step,
                                          place in images) for place in group], False, total, step)
                for group in passes(sizes, self.ranks, self.training.accumulate)]

    def _packed(self, packs, first: int, count: int, total: float, number: int, step: int) -> Iterator[Pass]:
        """The packs of this rank, whose first clip has place `first` among the `count` clips of the joint batch."""
        strata = _strata(count, self.seed, step)
        for pack in packs:
            examples = [self.example(number, i, place, strata[place] / count, count, step, self._is_image(number, i))
                        for place, i in enumerate(pack.indices, first)]
            first += len(pack.indices)
            yield replace(self._pass(examples, True, total, step), room=pack.sequence_length)

    def _pass(self, examples: list[Example], packed: bool, total: float, step: int) -> Pass:
        shows = random.Random(f"picture {self.seed} {step}").random() >= self.training.image.dropout
        tokens = sum(self._tokens(tuple(example.latents.shape[1:])) for example in examples)
        return Pass(examples, packed, total, shows, tokens)

    def example(self, number: int, index: int, place: int, low: float, count: int, step: int, image: bool) -> Example:
        """Clip `index` of the stage's set, at this place of the joint batch of `count` clips."""
        clips, training = self.sets[number], self.training
        words = random.Random(f"clip {self.seed} {step} {place}")
        generator = torch.Generator().manual_seed(number_of("clip", self.seed, step, place))
        dropped = words.random() < training.text_dropout
        caption = clips.caption(index, words, training.caption_style)
        latents = clips.latents(index, generator if training.posterior == "sample" else None)
        latents = whole_patches(latents[:, :1] if image else latents, self.config.patch_size_t)
        noise = torch.randn(latents.shape, generator=generator)
        u = torch.rand((), generator=generator).item()
        text = features = picture = None
        picture_noise = latents[:0, :1]
        if clips.has_text:
            text = clips.text(index) if not dropped else clips.empty_text() * (not self.zero_text)
        if training.alignment_weight:
            features = clips.features(index)[:latents.shape[1]]
        if training.image_to_video:
            picture = noised_picture(clips.first_pixels(index), training.image, generator)
            picture_noise = torch.randn(latents[:, :1].shape, generator=generator)
        return Example(latents, noise, self._timestep(low, u, count), "" if dropped else caption, text, features,
                       picture, picture_noise)

    def _timestep(self, low: float, u: float, count: int) -> int:
        """From this clip's own part of 0 .. T-1, from this rank's, or from all of it (paper 3.3)."""
        if self.training.timesteps == "stratified":
            return min(int((low + u / count) * self.T), self.T - 1)
        first, end = 0, self.T
        if self.training.timesteps == "rank":
            first, end = rank_interval(self.T, self.ranks.rank // self.ranks.context, self.ranks.teams)
        return min(first + int(u * (end - first)), end - 1)

    def _order(self, number: int) -> Order | PackOrder:
        stage, seed = self.training.stages[number], number_of("stage", self.seed, number)
        if not stage.pack:
            return Order(len(self.sets[number]), seed)
        sizes = [self._size(number, i, self._is_image(number, i)) for i in range(len(self.sets[number]))]
        return PackOrder([self._tokens(size) for size in sizes], stage.pack, seed)

    def _is_image(self, number: int, index: int) -> bool:
        """Whether only the first latent frame of a packed clip is taken: always the same, as packs go by tokens."""
        return number_of("image", self.seed, index) < self.training.stages[number].images * 2**32

    def _size(self, number: int, index: int, image: bool = False) -> tuple[int, int, int]:
        t, h, w = self.sets[number].latent_size(index)
        return 1 if image else t, h, w

    def _tokens(self, size: tuple[int, int, int]) -> int:
        return self.config.max_text_seq_length + self.config.num_patches(size)


def _images(stage: Stage, seed: int, step: int) -> set[int]:
    """The places of the joint batch at which only the first latent frame is taken."""
    chosen = round(stage.images * stage.batch_size)
    return set(random.Random(f"images {seed} {step}").sample(range(stage.batch_size), chosen))


def _strata(count: int, seed: int, step: int) -> list[int]:
    """Which of `count` equal parts of 0 .. T-1 each clip of the joint batch has its timestep from."""
    return random.Random(f"timesteps {seed} {step}").sample(range(count), count)


def whole_patches(latents: Float[Tensor, "c t h w"], patch_t: int | None) -> Float[Tensor, "c t2 h w"]:
    """Repeats the first latent frame until the patches divide the frames, as sampling does (1.5 models)."""
    front = -latents.shape[1] % (patch_t or 1)
    return torch.cat([latents[:, :1].expand(-1, front, -1, -1), latents], dim=1)
