"""What a step of the 3D causal VAE computes, its discriminator among it, and the stages of its training (paper 2.1).

Published are two stages: short clips at 256 x 256, then long ones. The published run's loss weights, learning rate and
optimizer were never released. Ours were chosen on two CPU cores.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.compat import choose_dtype
from minicogvx.engine.optim import warmup_cosine
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharding import broadcast_weights, form_team, joint_gradient
from minicogvx.engine.weights import Weights, update_average
from minicogvx.interop.lpips_weights import load_perceptual
from minicogvx.presets import VAEConfig
from minicogvx.training.critic import Critic, mark_if_not_finite
from minicogvx.training.latent_scale import normalise_latents, whiten_latents
from minicogvx.training.loop import fit
from minicogvx.training.recompute import recomputed_blocks
from minicogvx.training.run import Keep, Run
from minicogvx.training.settings import VAEStage, VAETraining
from minicogvx.training.videos import VideoPass, Videos, VideoSteps, stage_size
from minicogvx.vae import CausalVAE, context_parallel
from minicogvx.vae.autoencoder import DiagonalGaussian
from minicogvx.vae.losses import VAELoss, reconstruction_l1
from minicogvx.vae.regularise import MaskedLatents, Transform, draw_transform

_MEASURED = 64  # videos whose latents are brought to unit variance


@torch.no_grad()
def small_branches(vae: CausalVAE) -> None:
    """Start values that save about a minute: residual branches small, the latent's modulation near "times one"."""
    for name, parameter in vae.named_parameters():
        if name.endswith("conv2.conv.weight") or name.endswith("conv_y.conv.weight"):
            parameter.mul_(0.2)
        elif name.endswith("conv_y.conv.bias"):
            parameter.fill_(1.0)
    vae.encoder.conv_out.conv.bias[vae.config.latent_channels:] = -4.0


def train_vae(config: VAEConfig, training: VAETraining, videos: Videos, seed: int = 0,
              dtype: torch.dtype | None = None, keep: Keep = Keep(), ranks: Ranks = Ranks()) -> CausalVAE:
    """A VAE trained from scratch, through its stages. Weights stay float32; it computes in `dtype` (see choose_dtype).

    After each stage that trains the encoder, every latent channel is brought to unit variance (`normalise_latents`);
    with `whiten`, before the last stage also to mean 0 and independent of the others (`whiten_latents`).
    Deterministic on a CPU for a seed and a number of threads: a run that was killed and is resumed from `keep.folder`
    ends in the same weights, bit for bit. On many ranks each takes its part of every batch, and all end in the weights
    of one rank up to rounding. Ranks that share clips (`context_ranks`) see each in one piece, as one rank does with
    `chunk_frames` None.
    Call `checks.check_vae` before it: what does not fit ends this one late. Raises ValueError, before the first step,
    if videos are to be measured and none is held back that is long enough.
    """
    torch.manual_seed(seed)
    vae = CausalVAE(config)
    if training.small_branches:
        small_branches(vae)
    task = VAETask(vae.to(ranks.device), training, ranks, choose_dtype(ranks.device, dtype, training=True))
    watched = [[VAEValidation(videos, stage, stage_size(stage, config), training.validate_every)]
               if training.validate_every else [] for stage in training.stages]
    for number, stage in enumerate(training.stages):
        task.begin(number)
        data = VideoSteps(videos, training, number, config, task.ranks, seed)
        run = Run(f"vae_{number}", stage.steps, keep, ranks)
        fit(task, data, run,
            lambda step: stage.learning_rate_factor * warmup_cosine(step, stage.steps, training.warmup),
            watched[number], training.workers)
        task.finish()
        if not stage.decoder_only:
            task.to_unit_variance(_some_videos(videos, training, number, config))
        if training.whiten and number == len(training.stages) - 2:
            task.whiten(_some_videos(videos, training, number, config))
    return vae.eval()


def _some_videos(videos: Videos, training: VAETraining, number: int,
                 config: VAEConfig) -> Iterator[Float[Tensor, "b c t h w"]]:
    """Enough of the videos of a stage to measure latents, one by one."""
    size = training.stages[number].batch_size
    data = VideoSteps(videos, replace(training, accumulate=size), number, config)
    for step in range(math.ceil(_MEASURED / size)):
        for one in data[step]:
            yield one.video


class VAETask:
    """A VAE in training, and its discriminator where the loss has a GAN."""

    def __init__(self, vae: CausalVAE, training: VAETraining, ranks: Ranks = Ranks(),
                 dtype: torch.dtype = torch.float32):
        broadcast_weights(vae, ranks)
        self.vae, self.training, self.all_ranks, self.ranks, self.dtype = vae, training, ranks, ranks, dtype
        self.mask: MaskedLatents | None = None  # learns with the VAE, and is no part of it
        if any(stage.loss.masked_latents for stage in training.stages):
            self.mask = MaskedLatents(vae.config.latent_channels).to(ranks.device)
            broadcast_weights(self.mask, ranks)
        self.weights = Weights({"vae": vae} | ({"mask": self.mask} if self.mask is not None else {}))
        self.optimizer = training.new_optimizer(self.weights.named())
        self.average: dict[str, Tensor] = {}
        self.critic: Critic | None = None
        self.seen: list[tuple[Tensor, Tensor]] = []  # with a GAN, videos and reconstructions of the step so far

    def begin(self, number: int) -> None:
        """Prepares for a stage. A discriminator is kept from stage to stage where its shapes allow."""
        stage = self.training.stages[number]
        self.stage, self.size = stage, stage_size(stage, self.vae.config)
        self.ranks = form_team(replace(self.all_ranks, context=stage.context_ranks))
        self.vae.encoder.requires_grad_(not stage.decoder_only)
        self.average = self.weights.copies() if self.training.ema_decay else {}
        self.critic = Critic(stage.loss, self.training.discriminator, self.size[0], self.all_ranks, self.critic)
        perceptual = load_perceptual(stage.loss, shard=(self.ranks.rank // self.ranks.context, self.ranks.teams))
        self.objective = VAELoss(stage.loss, self.critic.network, perceptual, strict=False).to(self.ranks.device)

    def backward(self, batch: VideoPass, progress: float, last: bool = True) -> dict[str, Tensor]:
        """Adds this pass's share of the step's gradients, and returns its share of the losses, by name.

        A loss that is not finite leaves a gradient that is not, and the optimizer skips the step.
        """
        video, layer = batch.video.to(self.ranks.device), self.vae.decoder.conv_out.conv.weight
        transform, pixels = self._transform(batch.transform_seed), video[0].numel()
        with recomputed_blocks(self.vae, self.training.gradient_checkpointing):
            reconstruction, posterior = self.reconstruct(video, batch.seeds, transform, self.stage.loss.masked_latents)
            reconstruction = reconstruction.float()
            if transform:
                video = transform(video, self.vae.config.spatial_compression_ratio)
            with joint_gradient(layer, self.ranks):  # where the adaptive weight of the GAN is measured
                losses = self.objective.autoencoder(video, reconstruction, posterior, batch.step, layer,
                                                    torch.Generator().manual_seed(batch.seed))
            losses = self.objective.regularised(losses, posterior, self.vae.encoder.conv_out.conv.weight, pixels,
                                                video[0].numel())
            (losses["total"] * batch.share).backward()
        mark_if_not_finite(losses["total"], layer)
        if self.objective.gan_active(batch.step):
            self.seen.append((video, reconstruction.detach()))
        losses = {"psnr": psnr(video, reconstruction.detach())} | losses
        figures = {name: value.detach() * batch.share for name, value in losses.items()}
        return figures | self._critic_step(batch.step) if last and self.seen else figures

    def _transform(self, seed: int) -> Transform | None:
        """The transform of equivariance, which a share of the steps has; never too small for a network of the loss."""
        ratio = self.vae.config.spatial_compression_ratio
        least = max(self.training.least_sides(self.stage).values(), default=1)
        return draw_transform((self.size[1] // ratio, self.size[2] // ratio), self.stage.loss.equivariance,
                              -(-least // ratio), seed)

    def _critic_step(self, step: int) -> Mapping[str, Tensor]:
        """A step of the discriminator on all videos of the step; its figures."""
        videos, reconstructions = map(torch.cat, zip(*self.seen))
        self.seen = []
        return self.critic.step(self.objective, videos, reconstructions, step)

    def reconstruct(self, video: Float[Tensor, "b c t h w"], seeds: list[int], transform: Transform | None = None,
                    masked: float = 0.0) -> tuple[Float[Tensor, "b c t2 h2 w2"], DiagonalGaussian]:
        """The video through encoder, sampled posterior and decoder, in the task's dtype.

        `seeds`: one a video, so that the noise of its latent does not depend on the number of ranks. `transform`: what
        is decoded instead of the latents themselves; `masked`: the share of clips of which cells are hidden. A latent
        that is not finite, which `decode` refuses, gives a video of NaN. Ranks that share clips each compute their own
        frames, and all return the whole.
        """
        vae, group, chunk = self.vae, self.ranks.group, self.training.chunk_frames
        shared, x = self.ranks.context > 1, video.to(self.dtype)
        posterior = context_parallel.encode_joined(vae, x, group) if shared else vae.encode(x, chunk)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(posterior.mean.shape[1:], generator=one) for one in generators])
        latents = posterior.mean + posterior.std * noise.to(video.device)
        finite = bool(torch.isfinite(latents).all())
        latents = latents if finite else torch.zeros_like(latents)
        latents = transform(latents) if transform else latents
        latents = (self.mask(latents, masked, generators) if masked else latents).to(self.dtype)
        chunk_latents = chunk and max(chunk // vae.config.temporal_compression_ratio, 1)
        again = (context_parallel.decode_joined(vae, latents, group) if shared
                 else vae.decode(latents, chunk_latents))
        return again if finite else again * float("nan"), posterior

    def update(self, step: int, rate: float) -> Tensor:
        """A step of the optimizer, at `rate` times the learning rate, and of the moving average; the gradient norm."""
        self.weights.take_gradients(self.ranks)
        norm = self.optimizer.step(rate)
        update_average(self.average, self.weights.tensors(), self.training.ema_decay, step)
        return norm

    def state(self) -> dict[str, Tensor]:
        """The complete state, by name: the tensors themselves, so that loading can write into them."""
        parts = {"weights": self.weights.tensors(), "average": self.average, "optimizer": self.optimizer.state(),
                 "critic": self.critic.state()}
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def restored(self) -> None:
        """Nothing is derived from the state."""

    def to_unit_variance(self, videos: Iterable[Float[Tensor, "_ c t h w"]]) -> None:
        """Brings the latents to unit variance, and with them the token of the masks."""
        deviation = normalise_latents(self.vae, videos)
        broadcast_weights(self.vae, self.all_ranks)  # each rank has measured for itself
        if self.mask is not None:
            self.mask.token.data /= deviation
            broadcast_weights(self.mask, self.all_ranks)

    def whiten(self, videos: Iterable[Float[Tensor, "_ c t h w"]]) -> None:
        """Centres and decorrelates the latents. The optimizer starts anew, as its momenta are of other weights."""
        mix, centre = whiten_latents(self.vae, videos)
        broadcast_weights(self.vae, self.all_ranks)
        if self.mask is not None:
            self.mask.token.data = mix @ (self.mask.token.data - centre)
            broadcast_weights(self.mask, self.all_ranks)
        self.optimizer = self.training.new_optimizer(self.weights.named())

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within this context, the VAE is the one that `finish` leaves."""
        with self.weights.replaced_by(self.average) if self.average else nullcontext():
            yield

    @torch.no_grad()
    def finish(self) -> None:
        """Leaves what was learnt in the VAE: the moving average, if there is one."""
        for name, value in self.average.items():
            self.weights.learning[name].copy_(value)
        self.vae.encoder.requires_grad_(True)


class VAEValidation:
    """A watcher of a VAE: `validation_psnr` and `validation_l1` of the moving average, if there is one, or the weights.

    On videos that are held back, with fixed noise. Every rank measures all of them, one at a time.
    """

    def __init__(self, videos: Videos, stage: VAEStage, size: tuple[int, int, int], every: int):
        """Raises ValueError or OSError if no video of this size is held back, or the first cannot be read."""
        self.videos, self.stage, self.size, self.every = videos, stage, size, every
        next(videos.held_back(stage, size))

    @torch.no_grad()
    def __call__(self, step: int, task: VAETask) -> dict[str, float]:
        """Means over the videos, on every rank the same."""
        figures = []
        with task.averaged_weights():
            for i, video in enumerate(self.videos.held_back(self.stage, self.size)):
                video = video[None].to(task.ranks.device)
                reconstruction = task.reconstruct(video, [i])[0].float()
                figures.append((psnr(video, reconstruction), reconstruction_l1(video, reconstruction)))
        names = "validation_psnr", "validation_l1"
        return {name: sum(map(float, values)) / len(values) for name, values in zip(names, zip(*figures))}


def psnr(video: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pixels in -1..1."""
    mse = (video.float() - reconstruction.float().clamp(-1, 1)).square().mean()
    return 10 * torch.log10(4 / mse)
