"""Trains the expert transformer and its text encoder on cached latents (paper 2.2, 3).

v-prediction, explicit uniform timesteps, images before videos.
"""

import copy
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minicogvx.compat import choose_dtype
from minicogvx.data.clips.world import LatentSet
from minicogvx.data.world.captions import caption, most_tokens, vocabulary
from minicogvx.data.world.features import check_kinds
from minicogvx.data.world.scenes import SHAPES, Scene
from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.diffusion.timesteps import stratified_timesteps, uniform_timesteps
from minicogvx.engine.limits import check_limits
from minicogvx.engine.optim import MuonAdamW, average, is_block_matrix, warmup_cosine
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharding import average_gradients, mean_over_ranks
from minicogvx.presets import Preset
from minicogvx.text import TextEncoder
from minicogvx.training.alignment import Alignment
from minicogvx.training.joint_batch import Batch, own_part, parts
from minicogvx.training.loop import Keep, Run
from minicogvx.transformer.attention import Attention
from minicogvx.transformer.block import FeedForward
from minicogvx.transformer.expert_norm import ExpertNorm
from minicogvx.transformer.model import ExpertTransformer


@dataclass(frozen=True)
class TransformerStage:
    """One stage of diffusion training: how long, and on how much of each clip."""

    steps: int
    batch_size: int = 32
    latent_frames: int | None = None  # None: whole clips; 1: images (the first latent frame of a causal VAE)
    num_frames: int | None = None  # of the clips, in pixels; None: the preset's
    side: int | None = None  # height and width in pixels; None: the preset's

    def __post_init__(self):
        check_limits(self, {"steps batch_size latent_frames num_frames side": "1 or more"})


@dataclass(frozen=True)
class TransformerTraining:
    """All stages, under one learning-rate schedule. Images first is progressive training in time (paper 3.2)."""

    stages: tuple[TransformerStage, ...]
    muon_lr: float = 0.03
    adamw_lr: float = 3e-3
    warmup: int = 50
    text_dropout: float = 0.1  # share of captions replaced by the empty one, for classifier-free guidance
    caption_style: Literal["short", "dense"] | None = None  # None: either; see data/captions.py
    ema_decay: float = 0.998
    alignment_weight: float = 1.0  # decays to 0 towards the end; see training/alignment.py
    alignment_kinds: tuple[str, ...] = ("shape", "motion")
    optimizer: Literal["muon", "adamw"] = "muon"  # "adamw": for all weights, at adamw_lr
    weight_decay: float = 0.0
    clip: float = 1.0  # gradient norm
    accumulate: int = 1  # gradient accumulation: passes per batch
    gradient_checkpointing: bool = False  # recompute each block in the backward pass: a third more time, less memory
    compile: bool = False  # torch.compile; micro on two cores: a first step of 54 s, then 163 instead of 174 ms
    sample_every: int = 0  # steps between sample clips; 0: none
    timesteps: Literal["stratified", "uniform"] = "stratified"  # explicit uniform sampling (paper 3.3), or plain draws

    def __post_init__(self):
        if not self.stages:
            raise ValueError("stages is (); it must hold at least one stage")
        check_limits(self, {"accumulate": "1 or more", "clip": "above 0", "text_dropout ema_decay": "from 0 to below 1",
                            "muon_lr adamw_lr warmup alignment_weight weight_decay sample_every": "0 or more"})
        check_kinds(self.alignment_kinds)

    def new_optimizer(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> MuonAdamW:
        """Muon for the matrices of the blocks and AdamW for the rest, or AdamW alone."""
        muon_on = is_block_matrix if self.optimizer == "muon" else lambda name, p: False
        return MuonAdamW(named_parameters, self.muon_lr, self.adamw_lr, muon_on, self.weight_decay, self.clip)


@torch.no_grad()
def initialise(model: ExpertTransformer) -> None:
    """Initial values for training from scratch: every block is the identity, yet its weights get gradients at once.

    With the usual zero gates the blocks get no gradient until the gates have grown. Here the gates start at one, and
    the last layer of each branch at zero.
    """
    for part in model.transformer_blocks.modules():
        if isinstance(part, ExpertNorm):
            gates = part.linear.bias.view(-1, 3, model.config.width)[:, 2]  # (shift, scale, gate) of video and of text
            gates.fill_(1.0)
        elif isinstance(part, (Attention, FeedForward)):
            last = part.to_out[0] if isinstance(part, Attention) else part.net[2]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    nn.init.zeros_(model.proj_out.weight)


class Networks:
    """Everything that is trained: float32 weights, their copy in `dtype` that computes, and their moving averages."""

    def __init__(self, preset: Preset, training: TransformerTraining, dtype: torch.dtype, device: torch.device):
        self.dtype, self.master = dtype, ExpertTransformer(preset.transformer)
        initialise(self.master)
        self.text = TextEncoder.from_config(preset.text, vocabulary(), preset.transformer.max_text_seq_length)
        self.learning = self.master.to(device), self.text.encoder.to(device)
        self.ema = [copy.deepcopy(net).requires_grad_(False) for net in self.learning]
        self.averaged = self.ema[0], TextEncoder(self.text.tokenizer, self.ema[1], self.text.max_length)
        self.working = copy.deepcopy(self.master).to(dtype)
        self.working.gradient_checkpointing = training.gradient_checkpointing
        self.alignment = Alignment(self.working, training.alignment_kinds).to(device)
        self.model = torch.compile(self.working) if training.compile else self.working
        self.text.encoder.train()

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters of the optimizer."""
        return [*self.alignment.named_parameters(prefix="alignment"),
                *self.master.named_parameters(prefix="transformer"), *self.text.encoder.named_parameters(prefix="text")]

    def kept(self) -> dict[str, nn.Module]:
        """The modules in a checkpoint."""
        return {"transformer": self.master, "text": self.text.encoder, "ema_transformer": self.ema[0],
                "ema_text": self.ema[1], "alignment": self.alignment}


OnSample = Callable[[int, ExpertTransformer, TextEncoder], Mapping[str, float]]


def train_transformer(preset: Preset, latents: LatentSet | Sequence[LatentSet], training: TransformerTraining,
                      seed: int = 0, dtype: torch.dtype | None = None, keep: Keep = Keep(),
                      on_sample: OnSample | None = None,
                      here: Ranks = Ranks()) -> tuple[ExpertTransformer, TextEncoder]:
    """Trains a transformer and a text encoder together, from scratch; returns their moving averages.

    `latents`: one set for all stages, or one for each. The forward and backward pass run in `dtype` (None: see
    choose_dtype) on a copy of the weights, which stay float32. Every step draws its clips, words, noise and timesteps
    from its own seed, so on a CPU a run that was killed and resumed ends with the same weights, bit for bit. With
    several ranks, each takes its part of every batch. With `accumulate` 1, the result is that of a single rank up to
    rounding; with more, other clips share a pass and its draws. `on_sample(step, transformer, text)` is called on the
    first rank, with the averages, after every `training.sample_every` steps; the figures that it returns are recorded.
    """
    for stage in training.stages:
        here.part(stage.batch_size)  # raises ValueError for a batch that the ranks do not divide
    pairs = pair_up(training.stages, latents)
    check_captions(preset, training, [scene for _, clips in pairs for scene in clips.scenes])
    plan = [pair for pair in pairs for _ in range(pair[0].steps)]
    torch.manual_seed(seed)
    dtype = choose_dtype(here.device, dtype, training=True)
    nets, schedule = Networks(preset, training, dtype, here.device), NoiseSchedule(preset.schedule)
    optimizer = training.new_optimizer(nets.named_parameters())
    run = Run("transformer", len(plan), keep, here.first)
    run.resume(nets.kept(), {"optimizer": optimizer})
    nets.working.load_state_dict(nets.master.state_dict())
    for step in run:
        stage, clips = plan[step]
        batch = draw_step(clips, stage, training, schedule, torch.Generator().manual_seed(seed * 10_000_000 + step))
        weight = training.alignment_weight * (1 - step / len(plan))
        losses = backward(nets, schedule, batch, weight, training.accumulate, here)
        factor = warmup_cosine(step, len(plan), training.warmup)
        norm = update_master(nets.master, nets.working, optimizer, factor, here)
        average(nets.ema, nets.learning, min(training.ema_decay, (1 + step) / (10 + step)))
        rare = rare_figures(run, nets, clips, schedule, training.sample_every, on_sample) if here.first else {}
        run.record(norm, rare, **mean_over_ranks(losses, here))
    nets.averaged[0].eval(), nets.averaged[1].encoder.eval()
    return nets.averaged


def draw_step(clips: LatentSet, stage: TransformerStage, training: TransformerTraining, schedule: NoiseSchedule,
              generator: torch.Generator) -> Batch:
    """The joint batch of all ranks for one step."""
    x0, captions, features = draw_batch(clips, stage.batch_size, training.text_dropout, generator, stage.latent_frames,
                                        training.caption_style)
    return Batch(x0, captions, features, *draw_noise(x0, schedule, generator, training.timesteps == "uniform"))


def backward(nets: Networks, schedule: NoiseSchedule, joint: Batch, alignment_weight: float, accumulate: int = 1,
             here: Ranks = Ranks()) -> dict[str, Tensor]:
    """Adds the gradients of this rank's part of a batch, not yet averaged; returns its mean losses by name."""
    batch = own_part(joint, here)
    asked, losses = nets.alignment.asked, []
    for piece in parts(len(batch.t), accumulate):
        one = batch[piece]
        # The alignment loss is divided by the variance of its features: it should be that of the joint batch.
        scale = 1.0 if len(one.t) == len(joint.t) else one.variance(asked) / joint.variance(asked)
        loss = v_loss(nets.model, schedule, one.x0, one.noise, one.t, nets.text.encode(one.captions).to(nets.dtype))
        aligned = nets.alignment(one.features.to(here.device)) * scale
        ((loss + alignment_weight * aligned) * len(one.t) / len(batch.t)).backward()
        losses.append(torch.stack([loss.detach(), aligned.detach()]) * len(one.t) / len(batch.t))
    return dict(zip(("loss", "alignment"), sum(losses)))


def rare_figures(run: Run, nets: Networks, clips: LatentSet, schedule: NoiseSchedule, sample_every: int,
                 on_sample: OnSample | None) -> dict[str, float]:
    """Measurements that few steps have: the caption-swap gain with every tenth row, samples when they are due."""
    step, figures = run.done, {}
    if run.logs(step) and step % (10 * run.keep.log_every) == 0:
        figures["swap_gain"] = swap_gain(nets.working, nets.text, clips, schedule, nets.dtype)
    if on_sample and sample_every and (step + 1) % sample_every == 0:
        figures |= on_sample(step + 1, *nets.averaged)
    return figures


def pair_up(stages: Sequence[TransformerStage],
            latents: LatentSet | Sequence[LatentSet]) -> list[tuple[TransformerStage, LatentSet]]:
    """Each stage with its clips. Raises ValueError unless there is one set for all stages, or one for each."""
    sets = [latents] * len(stages) if isinstance(latents, LatentSet) else list(latents)
    if len(sets) != len(stages):
        raise ValueError(f"there are {len(sets)} sets of latents for {len(stages)} stages; give one, or one for each")
    return list(zip(stages, sets))


def check_captions(preset: Preset, training: TransformerTraining, scenes: list[Scene]) -> None:
    """Raises ValueError if a caption could be longer than the transformer takes: better now than in step 900."""
    most, room = most_tokens(scenes, training.caption_style), preset.transformer.max_text_seq_length
    if most > room:
        raise ValueError(f"max_text_seq_length is {room}; these captions have up to {most} tokens: take a larger one, "
                         f"caption_style='short', or clips of one object")


def draw_batch(latents: LatentSet, batch_size: int, text_dropout: float, generator: torch.Generator,
               latent_frames: int | None = None, caption_style: str | None = None) -> tuple[
                   Float[Tensor, "b c t h w"], list[str], Float[Tensor, "b t h w k"]]:
    """Clean latents, captions and features of randomly drawn clips, cut to their first `latent_frames`."""
    index = torch.randint(len(latents.scenes), (batch_size,), generator=generator)
    words = random.Random(generator.initial_seed())
    captions = [caption(latents.scenes[i], words, caption_style) if words.random() >= text_dropout else ""
                for i in index]
    frames = slice(latent_frames)
    return latents.draw(index, generator)[:, :, frames], captions, latents.features[index][:, frames]


def diffusion_step_loss(model: ExpertTransformer, schedule: NoiseSchedule, x0: Float[Tensor, "b c t h w"],
                        text_features: Float[Tensor, "b n d"], generator: torch.Generator) -> Float[Tensor, ""]:
    """Mean loss of a batch: noise and timesteps drawn, one forward pass."""
    return v_loss(model, schedule, x0, *draw_noise(x0, schedule, generator), text_features)


def draw_noise(x0: Float[Tensor, "b c t h w"], schedule: NoiseSchedule, generator: torch.Generator,
               plain: bool = False) -> tuple[Float[Tensor, "b c t h w"], Int[Tensor, " b"]]:
    """Noise, then timesteps, one from each of b equal parts: explicit uniform sampling on one device (paper 3.3).

    `plain`: each from all of them.
    """
    noise, draw = torch.randn(x0.shape, generator=generator), uniform_timesteps if plain else stratified_timesteps
    return noise, draw(len(x0), schedule.num_train_timesteps, generator)


def v_loss(model: nn.Module, schedule: NoiseSchedule, x0: Float[Tensor, "b c t h w"],
           noise: Float[Tensor, "b c t h w"], t: Int[Tensor, " b"],
           text_features: Float[Tensor, "b n d"]) -> Float[Tensor, ""]:
    """Mean loss of one forward pass, in the dtype and on the device of `text_features`."""
    x0, noise, t = (x.to(text_features.device) for x in (x0, noise, t))
    prediction = model(schedule.add_noise(x0, noise, t).to(text_features.dtype), t, text_features)
    return diffusion_loss(prediction, x0, noise, t, schedule).mean()


@torch.no_grad()
def update_master(master: nn.Module, working: nn.Module, optimizer: MuonAdamW, factor: float,
                  here: Ranks = Ranks()) -> Tensor:
    """One step of the float32 weights with the gradients of their 16-bit copy, which is updated; the gradient norm.

    With several ranks the gradients are averaged first, in float32.
    """
    for p, low in zip(master.parameters(), working.parameters()):
        if low.grad is not None:
            p.grad, low.grad = low.grad.float(), None
    average_gradients(optimizer.matrices + optimizer.others, here)
    norm = optimizer.step(factor)
    torch._foreach_copy_(list(working.parameters()), list(master.parameters()))
    return norm


@torch.no_grad()
def swap_gain(model: ExpertTransformer, text: TextEncoder, latents: LatentSet, schedule: NoiseSchedule,
              dtype: torch.dtype, clips: int = 192) -> float:
    """How much the loss rises when each caption names the wrong shape: near 0 if the model has not learnt the word.

    It reveals a model that ignores shapes long before samples do.
    """
    clips = min(clips, len(latents.scenes))
    x0 = latents.draw(torch.arange(clips), torch.Generator().manual_seed(0))

    def loss(scenes: list[Scene]) -> Float[Tensor, ""]:
        words = random.Random(0)  # the same phrasing, noise and timesteps for both
        features = text.encode([caption(scene, words, "short") for scene in scenes]).to(dtype)
        return diffusion_step_loss(model, schedule, x0, features, torch.Generator().manual_seed(1))

    scenes = latents.scenes[:clips]
    return (loss([_other_shapes(scene) for scene in scenes]) - loss(scenes)).item()


def _other_shapes(scene: Scene) -> Scene:
    return replace(scene, objects=tuple(
        replace(thing, shape=SHAPES[(SHAPES.index(thing.shape) + 1 + i) % len(SHAPES)])
        for i, thing in enumerate(scene.objects)))
