"""The random half of a step of the transformer: which clips, captions, noise and timesteps. The rest is computation.

Everything that is drawn for a clip comes from a generator of its own, seeded by the run, the step and the clip's place
in the joint batch. So a step is the same in any number of passes, after any interruption, and on any number of ranks;
but with `timesteps` "rank", as published, each rank draws timesteps from an interval of its own.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from minicogvx.data.clips.clips import BriefCaptions, Clips, Selected
from minicogvx.data.clips.order import Order, PackOrder, number_of, own_passes
from minicogvx.diffusion.timesteps import rank_interval
from minicogvx.engine.ranks import Ranks
from minicogvx.presets import TransformerConfig
from minicogvx.training.image_condition import noised_picture
from minicogvx.training.routing import kept_tokens
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.stages import stage_of


@dataclass(frozen=True)
class Example:
    """One clip as a step sees it."""

    latents: Float[Tensor, "c t h w"]  # clean and scaled
    noise: Float[Tensor, "c t h w"]
    timestep: int
    caption: str  # empty if it was dropped
    text: Float[Tensor, "n d"] | None  # stored features of the caption; None: it is encoded in the step
    features: Float[Tensor, "t h w k"] | None  # what the alignment head must predict
    picture: Float[Tensor, "3 1 h2 w2"] | None  # the noised first frame, for image to video
    picture_noise: Float[Tensor, "c_image 1 h w"]  # of the picture's posterior; without a picture no channels
    kept: Int[Tensor, " kept"] | None = None  # the video tokens that take all blocks; None: all do


@dataclass(frozen=True)
class Pass:
    """The clips of one forward pass: all of one size, or packed into one sequence."""

    examples: list[Example]
    packed: bool
    total: float  # by which the sum of the clips' losses is divided
    shows_pictures: bool = True  # false where the picture of image to video is dropped, once for a whole batch
    tokens: int = 0  # text and patches
    room: int = 0  # of a pack: tokens that it could hold
    text_slots: int | None = None  # see `Stage`

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


@dataclass(frozen=True)
class _Batch:
    """The joint batch of a step: its clips in order, and which of them this rank computes."""

    clips: list[tuple[int, bool]]  # of each: its number, and whether only the first latent frame is taken, a picture
    own: list[list[int]]  # places in `clips`, a list for each forward pass
    packed: bool
    total: float  # see `Pass`


class Steps(Dataset):
    """`steps[k]` is step k of a training: the forward passes of this rank, a list of `Pass`."""

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
        self.sets = [BriefCaptions(one, range(len(one)), stage.text_slots) if stage.text_slots else one
                     for one, stage in zip(self.sets, training.stages)]
        self.orders = [self._order(number) for number in range(len(self.sets))]

    def __len__(self) -> int:
        return sum(stage.steps for stage in self.training.stages)

    def __getitem__(self, step: int) -> list[Pass]:
        number, within = stage_of(self.training.stages, step)
        return self.of_stage(number, within, step)

    def of_stage(self, number: int, within: int, step: int) -> list[Pass]:
        """The passes of step `within` of stage `number`; `step` seeds what is drawn."""
        stage = self.training.stages[number]
        batch = self._packed(number, within) if stage.pack else self._batch(number, within, step)
        count = len(batch.clips)
        parts = random.Random(f"timesteps {self.seed} {step}").sample(range(count), count)  # of 0 .. T-1, for each clip
        shows = random.Random(f"picture {self.seed} {step}").random() >= self.training.image.dropout
        passes = []
        for places in batch.own:
            examples = [self.example(number, *batch.clips[place], step, place, parts[place], count) for place in places]
            tokens = sum(self._tokens(tuple(example.latents.shape[1:]), stage.text_slots) for example in examples)
            passes.append(Pass(examples, batch.packed, batch.total, shows, tokens, stage.pack, stage.text_slots))
        return passes

    def _batch(self, number: int, within: int, step: int) -> _Batch:
        """The next `batch_size` clips, of which each rank computes those of one size together."""
        stage, chance = self.training.stages[number], random.Random(f"images {self.seed} {step}")
        indices = self.orders[number].take(within * stage.batch_size, stage.batch_size)
        extra = random.Random(f"share {self.seed} {step}").random()  # half a clip is one in every other step
        images = set(chance.sample(range(stage.batch_size), int(stage.images * stage.batch_size + extra)))
        clips = [(i, place in images) for place, i in enumerate(indices)]
        own = own_passes([self._size(number, *clip) for clip in clips], self.ranks, self.training.accumulate,
                         number_of("turn", self.seed, step))
        return _Batch(clips, own, False, stage.batch_size / self.ranks.teams)

    def _packed(self, number: int, within: int) -> _Batch:
        """The clips of the next `batch_size` packs, of which each rank computes its share, one by one."""
        stage, order = self.training.stages[number], self.orders[number]
        packs = order.take(within * stage.batch_size, stage.batch_size)
        clips = [(i, self._is_image(number, i)) for pack in packs for i in pack.indices]
        ends = accumulate(len(pack.indices) for pack in packs)
        places = [list(range(end - len(pack.indices), end)) for pack, end in zip(packs, ends)]
        # The average number of clips, so that a clip counts the same in a pack of many and in one of few.
        total = order.clips_a_pack * stage.batch_size / self.ranks.teams
        return _Batch(clips, places[self.ranks.part(stage.batch_size)], True, total)

    def example(self, number: int, index: int, image: bool, step: int, place: int, part: int, count: int) -> Example:
        """Clip `index` of the stage's set, or its first latent frame, at this place of the joint batch.

        `part`: the clip's own, of `count` equal parts of the timesteps; `count`: the clips of the joint batch.
        """
        clips, training = self.sets[number], self.training
        words = random.Random(f"clip {self.seed} {step} {place}")
        generator = torch.Generator().manual_seed(number_of("clip", self.seed, step, place))
        caption, text = caption_with_dropout(clips, index, words, training, self.zero_text)
        latents = clips.latents(index, generator if training.posterior == "sample" else None)
        latents = whole_patches(latents[:, :1] if image else latents, self.config.patch_size_t)
        noise = torch.randn(latents.shape, generator=generator)
        timestep = self._timestep(part, count, torch.rand((), generator=generator).item())
        features = clips.features(index)[:latents.shape[1]].clone() if training.alignment_weight else None
        picture, picture_noise = None, latents[:0, :1]
        if training.image_to_video:
            picture = noised_picture(clips.first_pixels(index), training.image, generator)
            picture_noise = torch.randn(latents[:, :1].shape, generator=generator)
        kept, routed = None, training.stages[number].routed
        if routed:
            kept = kept_tokens(self.config.num_patches(tuple(latents.shape[1:])), routed, generator)
        return Example(latents, noise, timestep, caption, text, features, picture, picture_noise, kept)

    def _timestep(self, part: int, count: int, u: float) -> int:
        """From this clip's own part of 0 .. T-1, from this rank's, or from all of it (paper 3.3); `u`: random, 0..1."""
        if self.training.timesteps == "stratified":
            return min(int((part / count + u / count) * self.T), self.T - 1)
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

    def _tokens(self, size: tuple[int, int, int], text_slots: int | None = None) -> int:
        return (text_slots or self.config.max_text_seq_length) + self.config.num_patches(size)


def caption_with_dropout(clips: Clips, index: int, words: random.Random, training: TransformerTraining,
                         zero_text: bool = False) -> tuple[str, Float[Tensor, "n d"] | None]:
    """A clip's caption, and its features if they are stored; otherwise the step encodes it.

    One caption in ten (`text_dropout`) is replaced by the empty one: what the model learns from these, guidance
    subtracts when it samples.
    """
    dropped = words.random() < training.text_dropout
    caption = "" if dropped else clips.caption(index, words, training.caption_style)
    if not clips.has_text:
        return caption, None
    features = clips.empty_text() if dropped else clips.text(index)
    return caption, torch.zeros_like(features) if dropped and zero_text else features


def whole_patches(latents: Float[Tensor, "c t h w"], patch_t: int | None) -> Float[Tensor, "c t2 h w"]:
    """Repeats the first latent frame until the patches divide the frames, as sampling does (1.5 models)."""
    front = -latents.shape[1] % (patch_t or 1)
    return torch.cat([latents[:, :1].expand(-1, front, -1, -1), latents], dim=1)
