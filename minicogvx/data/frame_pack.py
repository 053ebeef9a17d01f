"""Multi-Resolution Frame Pack (paper 3.1): images and clips of any length and size fill one fixed-length sequence.

The paper takes the idea from Patch'n Pack (Dehghani et al. 2023, NaViT) and says why: one fixed length of clip splits
training into two modes, by tokens, throws short clips away and cuts long ones. How the clips are chosen was never
published, nor the share of images; the rule and the mixtures below are ours. `padded_batches` and `bucketed_batches`
are the two older ways, to compare with. `transformer/packed.py` runs the model on what is packed here.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from minicogvx.presets import Preset, preset

LOOK_AHEAD = 64  # clips that wait for a place; on both mixtures below 256 fill no more, and leave emptier last packs


@dataclass(frozen=True)
class ClipSize:
    """What decides how much room a clip takes, in pixels and pixel frames. An image is a clip of one frame."""

    frames: int
    height: int
    width: int

    def latent_size(self, model: Preset) -> tuple[int, int, int]:
        """Frames, height and width of the clip's latents; frames filled up to whole patches (front copies, 1.5 only).

        Raises ValueError where the VAE or the patches do not divide the clip.
        """
        time, space = model.vae.temporal_compression_ratio, model.vae.spatial_compression_ratio
        side, patch_t = space * model.transformer.patch_size, model.transformer.patch_size_t or 1
        if self.frames < 1 or (self.frames - 1) % time:
            raise ValueError(f"frames is {self.frames}; it must be {time} k + 1, with k = 0 for an image")
        if min(self.height, self.width) < side or self.height % side or self.width % side:
            raise ValueError(f"the size is {self.height}x{self.width}; both sides must be multiples of {side}")
        latent_frames = (self.frames - 1) // time + 1
        return -(-latent_frames // patch_t) * patch_t, self.height // space, self.width // space

    def tokens(self, model: Preset) -> int:
        """Places that the clip takes in a sequence: its text, padded as the published text is, and its patches."""
        t, h, w = self.latent_size(model)
        config = model.transformer
        patches = t // (config.patch_size_t or 1) * (h // config.patch_size) * (w // config.patch_size)
        return config.max_text_seq_length + patches


@dataclass(frozen=True)
class Mixture:
    """A make-up of training data: each clip draws a length and, apart from it, a size. Weights need not add up to 1."""

    preset: str
    sequence_length: int
    frames: tuple[tuple[int, float], ...]  # pixel frames and weight
    sizes: tuple[tuple[int, int, float], ...]  # height, width and weight

    def draw(self, clips: int, seed: int) -> list[ClipSize]:
        """So many independent draws; the same seed, the same draws."""
        chance = random.Random(seed)
        lengths = chance.choices([n for n, _ in self.frames], [weight for _, weight in self.frames], k=clips)
        sizes = chance.choices([size[:2] for size in self.sizes], [weight for *_, weight in self.sizes], k=clips)
        return [ClipSize(n, *size) for n, size in zip(lengths, sizes)]

    def tokens(self, clips: Sequence[ClipSize]) -> list[int]:
        """Places that each of these clips takes in a sequence of the mixture's model."""
        model = preset(self.preset)
        counted = {size: size.tokens(model) for size in set(clips)}
        return [counted[size] for size in clips]


# Both: a quarter images, the clips 2 s and longer at 8 frames a second, with the paper's mean of about 6 s where 10 s
# are allowed; wide films most, then upright and square ones, and one size in four from an earlier, smaller stage.
# A sequence has room for about four of the longest clips, as 75k tokens have in the paper's second stage (table 5).
TOY_MIXTURE = Mixture(
    "toy", sequence_length=2048,
    frames=((1, 0.25), (17, 0.15), (33, 0.15), (49, 0.19), (65, 0.15), (81, 0.11)),
    sizes=((64, 64, 0.25), (48, 80, 0.3), (80, 48, 0.1), (64, 96, 0.1), (32, 48, 0.15), (48, 32, 0.1)))
PUBLISHED_MIXTURE = Mixture(
    "5b", sequence_length=75_000,
    frames=((1, 0.25), (17, 0.2), (33, 0.25), (49, 0.3)),
    sizes=((480, 720, 0.35), (448, 784, 0.2), (720, 480, 0.1), (592, 592, 0.1), (256, 384, 0.15), (384, 256, 0.1)))


@dataclass(frozen=True)
class Pack:
    """The clips of one training step on one rank, by their index, and how much of the paid-for room they use."""

    indices: tuple[int, ...]
    tokens: int  # of the clips themselves
    sequence_length: int  # the room

    @property
    def filled(self) -> float:
        """Share of the room that holds tokens of clips, 0..1."""
        return self.tokens / self.sequence_length


def filled_share(packs: Sequence[Pack]) -> float:
    """Share of the room of all packs together that holds tokens of clips, 0..1."""
    return sum(pack.tokens for pack in packs) / sum(pack.sequence_length for pack in packs)


def frame_packs(tokens: Sequence[int], sequence_length: int, seed: int, look_ahead: int = LOOK_AHEAD) -> Iterator[Pack]:
    """One pass over all clips in random order; each is in exactly one pack, whole. The same seed, the same packs.

    A pack takes waiting clips in order of arrival until one does not fit, then, again and again, the longest waiting
    clip that does (best fit), out of `look_ahead`. The first part keeps a pack's make-up that of the data, the second
    fills it. The clip that has waited longest is always first, so none waits for more than `look_ahead` packs.
    On many ranks every rank draws the same packs and keeps its own: `islice(packs, rank, None, world_size)`.

    Args:
        tokens: places that each clip takes, its text and its patches.
        sequence_length: places in a pack.

    Raises:
        ValueError: at once, if a clip has no token or does not fit a pack alone, or if `look_ahead` is below 1.
    """
    _check(tokens, sequence_length)
    if look_ahead < 1:
        raise ValueError(f"look_ahead is {look_ahead}; at least 1 clip must wait for a place")
    return _fill(tokens, sequence_length, _shuffled(len(tokens), seed), look_ahead)


def _fill(tokens: Sequence[int], sequence_length: int, order: list[int], look_ahead: int) -> Iterator[Pack]:
    arriving = iter(order)
    waiting = list(islice(arriving, look_ahead))
    while waiting:
        pack, room, in_order = [], sequence_length, True
        while fitting := [i for i in waiting if tokens[i] <= room]:
            in_order = in_order and fitting[0] == waiting[0]
            taken = fitting[0] if in_order else max(fitting, key=lambda i: tokens[i])  # of equals the first to arrive
            waiting.remove(taken)
            waiting.extend(islice(arriving, 1))
            pack.append(taken)
            room -= tokens[taken]
        yield Pack(tuple(pack), sequence_length - room, sequence_length)


def bucketed_batches(tokens: Sequence[int], sizes: Sequence[object], sequence_length: int, seed: int) -> Iterator[Pack]:
    """One pass in random order; a batch has clips of one size alone, as many as the room holds.

    A batch waits until its bucket has enough clips; buckets that are not full at the end come last, as they are.
    Raises ValueError as `frame_packs` does, and where there is not one entry of `sizes` for each clip.
    """
    _check(tokens, sequence_length)
    if len(sizes) != len(tokens):
        raise ValueError(f"sizes has {len(sizes)} entries for {len(tokens)} clips; give one for each")
    return _bucket(tokens, sizes, sequence_length, _shuffled(len(tokens), seed))


def _bucket(tokens: Sequence[int], sizes: Sequence[object], sequence_length: int, order: list[int]) -> Iterator[Pack]:
    buckets: dict[object, list[int]] = {}
    for i in order:
        bucket = buckets.setdefault(sizes[i], [])
        bucket.append(i)
        if (len(bucket) + 1) * tokens[i] > sequence_length:
            yield _pack(buckets.pop(sizes[i]), tokens, sequence_length)
    for bucket in buckets.values():
        yield _pack(bucket, tokens, sequence_length)


def padded_batches(tokens: Sequence[int], sequence_length: int, seed: int) -> Iterator[Pack]:
    """One pass in random order; each clip of a batch takes as much room as the longest one, as many as the room holds.

    Raises ValueError as `frame_packs` does.
    """
    _check(tokens, sequence_length)
    return _pad(tokens, sequence_length, _shuffled(len(tokens), seed))


def _pad(tokens: Sequence[int], sequence_length: int, order: list[int]) -> Iterator[Pack]:
    batch, longest = [], 0
    for i in order:
        if batch and (len(batch) + 1) * max(longest, tokens[i]) > sequence_length:
            yield _pack(batch, tokens, sequence_length)
            batch, longest = [], 0
        batch.append(i)
        longest = max(longest, tokens[i])
    if batch:
        yield _pack(batch, tokens, sequence_length)


def _pack(indices: list[int], tokens: Sequence[int], sequence_length: int) -> Pack:
    return Pack(tuple(indices), sum(tokens[i] for i in indices), sequence_length)


def _shuffled(clips: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(clips), clips)


def _check(tokens: Sequence[int], sequence_length: int) -> None:
    for i, count in enumerate(tokens):
        if not 1 <= count <= sequence_length:
            raise ValueError(f"clip {i} has {count} tokens; a clip is packed whole, so it must have 1 to "
                             f"{sequence_length}, the sequence length")
