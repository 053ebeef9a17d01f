"""The batches of a fine-tuning run: clips of one size, or packs of all sizes, from the cache."""

import random
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minicogvx.data.clips.cache import CachedClips
from minicogvx.data.clips.packs import Pack, frame_packs
from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.sampling import OFS
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.engine.ranks import Ranks
from minicogvx.pipeline import Pipeline
from minicogvx.training.image_condition import image_latents
from minicogvx.training.joint_batch import parts
from minicogvx.training.packed import mean_loss, packed_diffusion_loss
from minicogvx.training.rank_draws import draw_timesteps, rank_generator
from minicogvx.transformer.model import ExpertTransformer


@dataclass
class Batch:
    """Inputs and target of one forward pass; `share` is its weight in the step."""

    x0: Float[Tensor, "b c t h w"]
    text: Float[Tensor, "b n d"]
    beside: Float[Tensor, "b c t h w"] | None  # image latents
    noise: Float[Tensor, "b c t h w"]
    t: Int[Tensor, " b"]
    share: float


class Draw:
    """Draws the batches of each step and computes their loss; `tuning` is a `FineTuning`."""

    def __init__(self, pipe: Pipeline, model: ExpertTransformer, clips: CachedClips, tuning, ranks: Ranks, seed: int):
        self.vae, self.model, self.clips, self.empty = pipe.vae, model, clips, empty_text(pipe, clips)
        self.tuning, self.ranks, self.seed = tuning, ranks, seed
        # With `offload` the weights are not on the device that computes.
        self.device = ranks.device if tuning.offload else model.proj_out.weight.device
        # A single image would be its own target.
        self.buckets = [numbers for bucket, numbers in clips.buckets().items()
                        if not tuning.image_to_video or bucket[0] > 1]
        self.schedule = NoiseSchedule(pipe.schedule_config)
        self.weights = [len(bucket) for bucket in self.buckets]

    def batches(self, step: int) -> list[Batch]:
        """The passes of one step. A step has one clip size, the same on all ranks, so that none waits for another.

        A size is drawn in proportion to its number of clips. A rank's generator draws clips, dropped captions, latents,
        noise, timesteps, and the noise of the image.
        """
        # Python's generator: torch's keeps 32 bits of a seed, and size and clips must be independent.
        bucket, = random.Random(f"size {self.seed} {step}").choices(self.buckets, self.weights)
        generator = rank_generator(self.seed * 10_000_000 + step, self.ranks)
        index = bucket[torch.randint(len(bucket), (self.tuning.batch_size,), generator=generator)]
        dropped = torch.rand(len(index), generator=generator) < self.tuning.text_dropout
        x0 = whole_patches(self.clips.draw(index, generator), self.model.config.patch_size_t)
        text = torch.where(dropped[:, None, None], self.empty, self.clips.text(index))
        noise = torch.randn(x0.shape, generator=generator)
        t = draw_timesteps(len(x0), self.schedule.num_train_timesteps, self.ranks, generator, self.tuning.timesteps)
        beside = None
        if self.tuning.image_to_video:
            beside = image_latents(self.vae, self.clips.first_pixels(index), x0.shape[2], self.tuning.image, generator)
        return [Batch(x0[i], text[i], None if beside is None else beside[i], noise[i], t[i], len(x0[i]) / len(x0))
                for i in parts(len(x0), self.tuning.accumulate)]

    def backward(self, network: nn.Module, batch: Batch) -> float:
        """Adds gradients to the model; returns the loss times the batch's share."""
        weight = self.model.proj_out.weight
        x0, noise, text, t = (x.to(self.device) for x in (batch.x0, batch.noise, batch.text, batch.t))
        x = self.schedule.add_noise(x0, noise, t)
        if batch.beside is not None:
            x = torch.cat([x, batch.beside.to(x)], dim=1)
        ofs = torch.full_like(t, OFS, dtype=weight.dtype) if self.model.config.ofs_embed_dim else None
        prediction = network(x.to(weight.dtype), t, text.to(weight.dtype), ofs)
        loss = diffusion_loss(prediction, x0, noise, t, self.schedule).mean() * batch.share
        loss.backward()
        return loss.item()


@dataclass
class PackBatch:
    """One sequence of clips of any sizes."""

    x0: list[Float[Tensor, "c _t _h _w"]]
    texts: list[Float[Tensor, "n d"]]
    noises: list[Float[Tensor, "c _t _h _w"]]
    t: Int[Tensor, " clips"]


class PackedDraw:
    """Fills sequences of `sequence_length` tokens; a step of one rank is `batch_size` of them.

    Every clip has the same weight, whatever else is in its pack: losses are summed and divided by the mean number of
    clips per step.
    """

    def __init__(self, pipe: Pipeline, model: ExpertTransformer, clips: CachedClips, tuning, ranks: Ranks, seed: int):
        self.model, self.clips, self.tuning, self.ranks, self.seed = model, clips, tuning, ranks, seed
        self.empty = empty_text(pipe, clips)
        self.schedule, self.epoch, self.before = NoiseSchedule(pipe.schedule_config), 0, 0
        self.tokens = [self._tokens(i) for i in range(len(clips))]
        self.packs = self._fill(0)
        self.clips_a_step = len(clips) / len(self.packs) * tuning.batch_size

    def batches(self, step: int) -> list[PackBatch]:
        """This rank's sequences. Every clip occurs once per epoch; the packs of an epoch go to the ranks in turn."""
        generator = rank_generator(self.seed * 10_000_000 + step, self.ranks)
        first = (step * self.ranks.world_size + self.ranks.rank) * self.tuning.batch_size
        return [self._read(self._pack(first + i), generator) for i in range(self.tuning.batch_size)]

    def backward(self, network: nn.Module, batch: PackBatch) -> float:
        """Adds gradients to the model; returns the sum of the pack's losses over the mean number of clips per step."""
        losses = packed_diffusion_loss(network, self.schedule, batch.x0, batch.texts, batch.t, batch.noises)
        loss = mean_loss(losses, batch.x0, total=self.clips_a_step)
        loss.backward()
        return loss.item()

    def _tokens(self, i: int) -> int:
        return self.model.config.max_text_seq_length + self.model.config.num_patches(self.clips.latent_size(i))

    def _fill(self, epoch: int) -> list[Pack]:
        return list(frame_packs(self.tokens, self.tuning.sequence_length, self.seed * 1_000_003 + epoch))

    def _pack(self, number: int) -> Pack:
        """Pack `number` of the run, counted over all epochs."""
        while number >= self.before + len(self.packs):
            self.before, self.epoch = self.before + len(self.packs), self.epoch + 1
            self.packs = self._fill(self.epoch)
        return self.packs[number - self.before]

    def _read(self, pack: Pack, generator: torch.Generator) -> PackBatch:
        weight, patch_t = self.model.proj_out.weight, self.model.config.patch_size_t
        dropped = torch.rand(len(pack.indices), generator=generator) < self.tuning.text_dropout
        x0 = [whole_patches(self.clips.draw([i], generator), patch_t)[0].to(weight.device) for i in pack.indices]
        texts = [(self.empty if drop else self.clips.text([i]))[0].to(weight.device, weight.dtype)
                 for i, drop in zip(pack.indices, dropped)]
        noises = [torch.randn(clip.shape, generator=generator).to(weight.device) for clip in x0]
        t = draw_timesteps(len(x0), self.schedule.num_train_timesteps, self.ranks, generator, self.tuning.timesteps)
        return PackBatch(x0, texts, noises, t.to(weight.device))


def empty_text(pipe: Pipeline, clips: CachedClips) -> Float[Tensor, "1 n d"]:
    """The features for a dropped caption: those that the pipeline's guidance uses."""
    empty = clips.empty_text()
    return torch.zeros_like(empty) if pipe.unconditional == "zeros" else empty


def whole_patches(latents: Float[Tensor, "b c t h w"], patch_t: int | None) -> Float[Tensor, "b c t2 h w"]:
    """Repeats the first latent frame until the patches divide the frames, as sampling does (1.5 models)."""
    front = -latents.shape[2] % (patch_t or 1)
    return torch.cat([latents[:, :, :1].expand(-1, -1, front, -1, -1), latents], dim=2)
