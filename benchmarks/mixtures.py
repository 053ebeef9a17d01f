"""Mixtures of training clips, and the two older ways to make batches of them: buckets of one size, and padding."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minicogvx.data.clips.packs import Pack, check_tokens, shuffled
from minicogvx.presets import Preset, preset


@dataclass(frozen=True)
class ClipSize:
    """The size of a clip in pixels and pixel frames. An image is a clip of one frame."""

    frames: int
    height: int
    width: int

    def latent_size(self, model: Preset) -> tuple[int, int, int]:
        """Frames, height and width of the clip's latents; frames padded in front to whole patches (1.5 only).

        Raises ValueError for a clip that the VAE or the patches do not divide.
        """
        time = model.vae.temporal_compression_ratio
        side = model.vae.spatial_compression_ratio * model.transformer.patch_size
        if self.frames < 1 or (self.frames - 1) % time:
            raise ValueError(f"frames is {self.frames}; it must be {time} k + 1, with k = 0 for an image")
        if min(self.height, self.width) < side or self.height % side or self.width % side:
            raise ValueError(f"the size is {self.height}x{self.width}; both sides must be multiples of {side}")
        latent_frames, *size = model.vae.latent_size(self.frames, self.height, self.width)
        return model.transformer.whole_patches(latent_frames), *size

    def tokens(self, model: Preset) -> int:
        """Tokens of the clip in a sequence: its text, padded as published, and its patches."""
        return model.transformer.max_text_seq_length + model.transformer.num_patches(self.latent_size(model))


@dataclass(frozen=True)
class Mixture:
    """A distribution of training clips: independent lengths and sizes. Weights need not add up to 1."""

    preset: str
    sequence_length: int
    frames: tuple[tuple[int, float], ...]  # pixel frames and weight
    sizes: tuple[tuple[int, int, float], ...]  # height, width and weight

    def draw(self, clips: int, seed: int) -> list[ClipSize]:
        """`clips` independent draws, determined by `seed`."""
        chance = random.Random(seed)
        lengths = chance.choices([n for n, _ in self.frames], [weight for _, weight in self.frames], k=clips)
        sizes = chance.choices([size[:2] for size in self.sizes], [weight for *_, weight in self.sizes], k=clips)
        return [ClipSize(n, *size) for n, size in zip(lengths, sizes)]

    def tokens(self, clips: Sequence[ClipSize]) -> list[int]:
        """Tokens of each of these clips in a sequence of the mixture's model."""
        model = preset(self.preset)
        counted = {size: size.tokens(model) for size in set(clips)}
        return [counted[size] for size in clips]


# Both: a quarter images; clips of 2 s or more at 8 fps, with the paper's mean of about 6 s if 10 s are allowed; mostly
# wide videos, then upright and square ones; one size in four is that of an earlier, smaller stage. A sequence holds
# about four of the longest clips, like 75k tokens in the paper's second stage (table 5).
TOY_MIXTURE = Mixture(
    "toy", sequence_length=2048,
    frames=((1, 0.25), (17, 0.15), (33, 0.15), (49, 0.19), (65, 0.15), (81, 0.11)),
    sizes=((64, 64, 0.25), (48, 80, 0.3), (80, 48, 0.1), (64, 96, 0.1), (32, 48, 0.15), (48, 32, 0.1)))
PUBLISHED_MIXTURE = Mixture(
    "5b", sequence_length=75_000,
    frames=((1, 0.25), (17, 0.2), (33, 0.25), (49, 0.3)),
    sizes=((480, 720, 0.35), (448, 784, 0.2), (720, 480, 0.1), (592, 592, 0.1), (256, 384, 0.15), (384, 256, 0.1)))


def filled_share(packs: Sequence[Pack]) -> float:
    """Share of the capacity of all packs that holds tokens of clips, 0..1."""
    return sum(pack.tokens for pack in packs) / sum(pack.sequence_length for pack in packs)


def bucketed_batches(tokens: Sequence[int], sizes: Sequence[object], sequence_length: int, seed: int) -> Iterator[Pack]:
    """One pass in random order; a batch has clips of one size, as many as fit.

    A bucket yields a batch once it has enough clips; incomplete buckets follow at the end.
    Raises ValueError as `frame_packs` does, and unless `sizes` has one entry for each clip.
    """
    check_tokens(tokens, sequence_length)
    if len(sizes) != len(tokens):
        raise ValueError(f"sizes has {len(sizes)} entries for {len(tokens)} clips; give one for each")
    return _bucket(tokens, sizes, sequence_length, shuffled(len(tokens), seed))


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
    """One pass in random order; each clip of a batch is padded to the longest one, as many as fit.

    Raises ValueError as `frame_packs` does.
    """
    check_tokens(tokens, sequence_length)
    return _pad(tokens, sequence_length, shuffled(len(tokens), seed))


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
