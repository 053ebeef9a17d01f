"""Trains the 3D causal VAE in stages, as published: short low-resolution clips first, then long ones (paper 2.1).

The published run's loss weights, learning rate and optimizer were never released. Ours were chosen on two CPU cores.
"""

import random
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.compat import choose_dtype
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.engine.limits import check_limits
from minicogvx.engine.optim import MuonAdamW, average, warmup_cosine
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharding import average_gradients, broadcast_weights, form_team, joint_gradient, mean_over_ranks
from minicogvx.interop.lpips_weights import check_lpips, load_perceptual
from minicogvx.presets import VAEConfig
from minicogvx.training.critic import Critic, mark_if_not_finite
from minicogvx.training.loop import Keep, Run
from minicogvx.training.recompute import recomputed_blocks
from minicogvx.vae import CausalVAE, context_parallel
from minicogvx.vae.autoencoder import DiagonalGaussian
from minicogvx.vae.discriminator import DiscriminatorConfig
from minicogvx.vae.losses import VAELoss, VAELossConfig
from minicogvx.vae.perceptual import SMALLEST_SIDE

WORLD_FPS = 8  # of a clip of the shapes world at its usual speed


@dataclass(frozen=True)
class VAEStage:
    """One stage of training: what it sees, how long, and what it is judged by."""

    steps: int
    batch_size: int
    num_frames: int
    height: int
    width: int
    loss: VAELossConfig
    muon_lr: float = 0.02
    adamw_lr: float = 1e-3
    warmup: int = 20
    chunk_frames: int | None = 8
    decoder_only: bool = False  # the encoder stays as it is: latents that a diffusion model has seen keep their meaning
    frame_rates: tuple[int, ...] = (WORLD_FPS,)  # one is drawn for each batch; (8, 16) in the published first stage
    discriminator: DiscriminatorConfig = DiscriminatorConfig(width=16)  # where the loss has a GAN
    optimizer: Literal["muon", "adamw"] = "muon"  # "adamw": for all weights, at adamw_lr
    weight_decay: float = 0.0
    clip: float = 1.0  # gradient norm
    accumulate: int = 1  # passes that one batch is cut into
    context_ranks: int = 1  # so many ranks share the frames of each clip, as in the published second stage
    ema_decay: float = 0.0  # 0: the stage ends with its last weights, not with their moving average
    gradient_checkpointing: bool = False  # compute residual blocks again in the backward pass: more time, less memory

    def __post_init__(self):
        check_limits(self, {"steps batch_size num_frames height width chunk_frames context_ranks": "1 or more",
                            "muon_lr adamw_lr warmup weight_decay": "0 or more", "clip": "above 0",
                            "ema_decay": "from 0 to below 1"})
        if not self.frame_rates or any(rate % WORLD_FPS or rate < WORLD_FPS for rate in self.frame_rates):
            raise ValueError(f"frame_rates is {self.frame_rates}; it must hold multiples of {WORLD_FPS}")
        if not 1 <= self.accumulate <= self.batch_size:
            raise ValueError(f"accumulate is {self.accumulate}; it must be from 1 to batch_size={self.batch_size}")
        if self.context_ranks > 1 and self.chunk_frames is not None:
            raise ValueError(f"chunk_frames is {self.chunk_frames}; with context_ranks={self.context_ranks} it must be "
                             f"None, because each rank takes its frames in one piece")
        if self.context_ranks > 1 and self.gradient_checkpointing:
            raise ValueError(f"gradient_checkpointing is True; with context_ranks={self.context_ranks} it must be "
                             f"False")

    def share_out(self, here: Ranks, config: VAEConfig) -> Ranks:
        """`here`, its ranks in teams that share clips. Raises ValueError for a batch or clip they cannot divide."""
        here, ratio = replace(here, context=self.context_ranks), config.temporal_compression_ratio
        here.part(self.batch_size)
        if here.context > 1:
            if (self.num_frames - 1) % ratio or config.first_frame != "start":
                raise ValueError(f"num_frames is {self.num_frames} and first_frame {config.first_frame!r}; ranks that "
                                 f"share a clip need {ratio}k + 1 frames and 'start'")
            latent_frames, *_ = config.latent_size(self.num_frames, self.height, self.width)
            context_parallel.latent_shares(latent_frames, here.context)
        return here

    def new_optimizer(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> MuonAdamW:
        """Muon for matrices and kernels and AdamW for the rest, or AdamW alone."""
        muon_on = (lambda name, p: p.ndim >= 2) if self.optimizer == "muon" else lambda name, p: False
        return MuonAdamW(named_parameters, self.muon_lr, self.adamw_lr, muon_on, self.weight_decay, self.clip)


def initialise(vae: CausalVAE) -> None:
    """Start values that save about a minute: residual branches small, the latent's modulation near "times one"."""
    for name, parameter in vae.named_parameters():
        if name.endswith("conv2.conv.weight") or name.endswith("conv_y.conv.weight"):
            parameter.data.mul_(0.2)
        elif name.endswith("conv_y.conv.bias"):
            parameter.data.fill_(1.0)
    logvar_bias = vae.encoder.conv_out.conv.bias.data[vae.config.latent_channels:]
    logvar_bias.fill_(-4.0)


def world_batch(size: int, seed: int, num_frames: int, height: int, width: int,
                frame_rate: int = WORLD_FPS, own: slice = slice(None)) -> Float[Tensor, "b 3 t h w"]:
    """A batch of training clips of the shapes world as the model sees them: `b c t h w` in -1..1.

    At twice the frame rate the same number of frames shows the first half of the motion, in steps half as long.
    `own`: the clips of the batch that are wanted.
    """
    times, scenes = frame_rate // WORLD_FPS, sample_scenes(size, seed, "train")[own]
    clips = render_batch(scenes, times * (num_frames - 1) + 1, height, width)[:, :num_frames]
    return clips.permute(0, 4, 1, 2, 3) * 2 - 1


def psnr(video: Tensor, reconstruction: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in -1..1."""
    mse = (video.float() - reconstruction.float().clamp(-1, 1)).square().mean()
    return (10 * torch.log10(4 / mse)).item()


def train_vae(config: VAEConfig, stages: tuple[VAEStage, ...], seed: int = 0, dtype: torch.dtype | None = None,
              keep: Keep = Keep(), here: Ranks = Ranks()) -> CausalVAE:
    """A VAE trained from scratch on the shapes world. Weights stay float32; activations are `dtype` (see choose_dtype).

    After a stage that trains the encoder at the VAE's own size, each latent channel is brought to unit variance
    (`normalise_latents`). Deterministic on a CPU for a seed and a number of threads: a run that was killed and is
    resumed from `keep.folder` ends in the same weights, bit for bit. On many ranks each takes its shard of every batch.
    With `accumulate` 1, all end in the weights of one rank up to rounding; with more, other clips share a pass and its
    draws. Ranks that share clips (`context_ranks`) see each in one piece, as one rank does with `chunk_frames` None.
    A GAN is kept from stage to stage, and its `gan_start` counts the steps of all.
    Raises what `check_stages` raises.
    """
    check_stages(config, stages, here)
    dtype = choose_dtype(here.device, dtype, training=True)
    torch.manual_seed(seed)
    vae = CausalVAE(config)
    initialise(vae)
    vae.to(here.device)
    first_seed, before, critic = seed * 10_000_000 + 1, 0, None
    for i, stage in enumerate(stages):
        critic = train_stage(vae, stage, first_seed + before, dtype, keep, f"vae_{i}", here, critic, before)
        if not stage.decoder_only and stage.height == config.sample_height:
            normalise_latents(vae, seed)
            broadcast_weights(vae, here)  # each rank has measured for itself
        before += stage.steps
    return vae


def check_stages(config: VAEConfig, stages: Sequence[VAEStage], here: Ranks = Ranks()) -> None:
    """Raises, before any work, what would end it late: ValueError for a batch or clip that the ranks do not divide, for
    frames too small for a loss and for a GAN that would never begin; FileNotFoundError or ImportError where LPIPS is
    asked for and not there."""
    for i, stage in enumerate(stages):
        stage.share_out(here, config)
        _check_sides(i, stage)
        if stage.loss.lpips_weight:
            check_lpips(stage.loss.lpips_net)
    last = max((i for i, stage in enumerate(stages) if stage.loss.gan_weight), default=-1)
    steps = sum(stage.steps for stage in stages[:last + 1])
    if last >= 0 and stages[last].loss.gan_start >= steps:
        raise ValueError(f"gan_start is {stages[last].loss.gan_start}, and the last stage with a GAN ends after "
                         f"{steps} steps in all; set it lower, or gan_weight to 0")


def _check_sides(number: int, stage: VAEStage) -> None:
    """Raises ValueError for frames that are too small for LPIPS or for the discriminator, where the loss has them."""
    loss, least = stage.loss, {}
    if loss.lpips_weight:
        least["LPIPS"] = -(-SMALLEST_SIDE[loss.lpips_net] // loss.lpips_upscale)
    if loss.gan_weight:
        least["the discriminator"] = 2**min(stage.discriminator.stages, 64)
    for network, side in least.items():
        for name in ("height", "width"):
            if getattr(stage, name) < side:
                raise ValueError(f"vae.{number}.{name} is {getattr(stage, name)}; it must be at least {side}, which is "
                                 f"what {network} needs")


def train_stage(vae: CausalVAE, stage: VAEStage, first_seed: int, dtype: torch.dtype | None = None,
                keep: Keep = Keep(), name: str = "vae", here: Ranks = Ranks(), earlier: Critic | None = None,
                before: int = 0) -> Critic:
    """One stage, in place; step i draws its clips and noise from seed `first_seed + i`. Figures are recorded by name.

    `earlier`: what the stage before returned, and `before` the steps up to here: the GAN resumes from them. A loss or
    a gradient that is not finite leaves the weights as they are; too many in a row raise FloatingPointError.
    """
    broadcast_weights(vae, here)
    dtype = choose_dtype(here.device, dtype, training=True)
    part = vae.decoder if stage.decoder_only else vae
    vae.encoder.requires_grad_(not stage.decoder_only)
    optimizer = stage.new_optimizer(part.named_parameters())
    critic = Critic(stage.loss, stage.discriminator, stage.num_frames, here, earlier)
    averages = [deepcopy(part).requires_grad_(False)] if stage.ema_decay else []
    here = form_team(stage.share_out(here, vae.config))
    perceptual = load_perceptual(stage.loss, shard=(here.rank // here.context, here.teams))
    objective = VAELoss(stage.loss, critic.network, perceptual, strict=False).to(here.device)
    run = Run(name, stage.steps, keep, here.first)
    run.resume({"vae": vae} | ({"ema": averages[0]} if averages else {}) | critic.modules,
               {"optimizer": optimizer} | critic.optimizers)
    for step in run:
        seed = first_seed + step
        rate = random.Random(seed).choice(stage.frame_rates)
        video = world_batch(stage.batch_size, seed, stage.num_frames, stage.height, stage.width, rate,
                            here.part(stage.batch_size)).to(here.device)
        with recomputed_blocks(vae, stage.gradient_checkpointing):
            losses, reconstruction = backward(vae, objective, video, before + step, seed, dtype, stage.chunk_frames,
                                              stage.accumulate, here)
        losses |= critic.step(objective, video, reconstruction, before + step)
        average_gradients(part.parameters(), here)
        norm = optimizer.step(warmup_cosine(step, stage.steps, stage.warmup))
        average(averages, [part], min(stage.ema_decay, (1 + step) / (10 + step)))
        run.record(norm, **mean_over_ranks({"psnr": psnr(video, reconstruction)} | losses, here))
    if averages:
        part.load_state_dict(averages[0].state_dict())
    vae.encoder.requires_grad_(True)
    return critic


def backward(vae: CausalVAE, objective: VAELoss, video: Float[Tensor, "b c t h w"], step: int, seed: int,
             dtype: torch.dtype, chunk_frames: int | None = 8,
             accumulate: int = 1, here: Ranks = Ranks()) -> tuple[dict[str, Tensor], Float[Tensor, "b c t h w"]]:
    """Leaves the gradients of one batch on the autoencoder; the losses by name, and the reconstruction, detached.

    `accumulate` cuts the batch into as many passes, whose mean is taken. On many ranks `video` is this rank's part of
    the batch, and the gradients are still to be averaged.
    """
    generator, last_layer = torch.Generator().manual_seed(seed), vae.decoder.conv_out.conv.weight
    passes, copies = [], []
    for piece in video.tensor_split(min(accumulate, len(video))):
        reconstruction, posterior = reconstruct(vae, piece.to(dtype), generator, chunk_frames, here)
        reconstruction = reconstruction.float()
        share = len(piece) / len(video)
        with joint_gradient(last_layer, here):  # where the adaptive weight is measured
            losses = objective.autoencoder(piece, reconstruction, posterior, step, last_layer, generator)
        (losses["total"] * share).backward()
        mark_if_not_finite(losses["total"], last_layer)
        passes.append({name: loss.detach() * share for name, loss in losses.items()})
        copies.append(reconstruction.detach())
    return {name: sum(one[name] for one in passes) for name in passes[0]}, torch.cat(copies)


def reconstruct(vae: CausalVAE, video: Float[Tensor, "b c t h w"], generator: torch.Generator,
                chunk_frames: int | None = 8,
                here: Ranks = Ranks()) -> tuple[Float[Tensor, "b c t h w"], DiagonalGaussian]:
    """What `vae(video, generator, chunk_frames)` returns, on any device and for one rank's shard of a batch.

    The posterior's noise is drawn for the whole batch, on the CPU, and cut: it does not depend on the number of ranks.
    A latent that is not finite, which `decode` refuses, gives a video of NaN, for a trainer that skips the step. Ranks
    that share clips each compute their own frames, and all return the whole.
    """
    shared = here.context > 1
    posterior = context_parallel.encode_joined(vae, video, here.group) if shared else vae.encode(video, chunk_frames)
    b, *size = posterior.mean.shape
    noise = torch.randn(b * here.teams, *size, generator=generator)[here.part(b * here.teams)]
    latents = posterior.mean + posterior.std * noise.to(video.device)
    finite = bool(torch.isfinite(latents).all())
    latents = (latents if finite else torch.zeros_like(latents)).to(video.dtype)
    chunk_latents = chunk_frames and max(chunk_frames // vae.config.temporal_compression_ratio, 1)
    again = (context_parallel.decode_joined(vae, latents, here.group) if shared
             else vae.decode(latents, chunk_latents))
    return again if finite else again * float("nan"), posterior


@torch.no_grad()
def normalise_latents(vae: CausalVAE, seed: int, clips: int = 64) -> None:
    """Folds a scale for each latent channel into the weights, so that every channel has unit variance.

    The file format holds one scaling factor for all channels; the diffusion model learns faster if they are alike.
    The encoder's last layer divides by the deviation, the layers that read the latent multiply: same reconstruction.
    """
    config, c = vae.config, vae.config.latent_channels
    frames = 4 * config.temporal_compression_ratio + 1
    video = world_batch(clips, seed + 987_654_321, frames, config.sample_height, config.sample_width)
    video = video.to(next(vae.parameters()).device)
    deviation = vae.encode(video).mean.transpose(0, 1).flatten(1).std(1)
    out = vae.encoder.conv_out.conv
    out.weight[:c] /= deviation[:, None, None, None, None]
    out.bias[:c] /= deviation
    out.bias[c:] -= 2 * deviation.log()
    for name, parameter in vae.decoder.named_parameters():
        if name == "conv_in.conv.weight" or name.endswith(("conv_y.conv.weight", "conv_b.conv.weight")):
            parameter *= deviation[None, :, None, None, None]
