"""Fine-tunes a model on real clips (data/clips/encode.py): all weights or LoRA, text or image to video.

The text encoder and the VAE are frozen. Learning rates and other defaults are those of the released fine-tuning code.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from minicogvx.data.clips.cache import CachedClips
from minicogvx.engine.limits import check_limits
from minicogvx.engine.master_weights import MasterWeights
from minicogvx.engine.optim import MuonAdamW, average, is_block_matrix, warmup_cosine
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharded_run import ShardedCheckpoints
from minicogvx.engine.sharding import mean_over_ranks, wrap
from minicogvx.pipeline import Pipeline
from minicogvx.presets import TransformerConfig
from minicogvx.training.draws import Draw, PackedDraw
from minicogvx.training.image_condition import ImageCondition, widen_for_image
from minicogvx.training.loop import Keep, Run
from minicogvx.training.lora import add_lora, check_lora, continue_lora
from minicogvx.transformer.model import ExpertTransformer

LARGE = 10**9  # parameters; from here on (the published sizes) blocks are recomputed by default, or no GPU holds them


@dataclass(frozen=True)
class FineTuning:
    """Everything about a fine-tuning run except its data."""

    steps: int = 1000
    batch_size: int = 2  # per rank; all clips of a batch have one size. With sequence_length: packs
    sequence_length: int = 0  # tokens; above 0: clips of all sizes share sequences, frame pack (paper 3.1)
    learning_rate: float | None = None  # None: 2e-5 for all weights, 1e-3 for LoRA
    warmup: int = 100
    weight_decay: float = 1e-4
    clip: float = 1.0  # gradient norm
    text_dropout: float = 0.1  # share of captions replaced by the empty one, for classifier-free guidance
    lora_rank: int = 0  # 0: all weights learn; the released code has 128
    lora_alpha: float | None = None  # None: half the rank, or that of lora_from
    lora_from: str | None = None  # a LoRA file to start from
    image_to_video: bool = False
    image: ImageCondition = field(default_factory=ImageCondition)
    optimizer: Literal["adamw", "muon"] = "adamw"  # "muon": for the matrices of the blocks, at ten times the rate
    ema_decay: float = 0.0  # 0: keep the last weights, not their moving average
    accumulate: int = 1  # gradient accumulation: passes per batch
    gradient_checkpointing: bool | None = None  # a third more time, far less memory; None: from LARGE on
    compile: bool = False
    timesteps: Literal["rank", "stratified", "uniform"] = "stratified"  # see training/rank_draws.py
    sharding: Literal["replicate", "fsdp"] = "replicate"  # "fsdp": for several ranks, or for one with offload
    offload: bool = False  # under "fsdp": keep weights and optimizer state in CPU memory

    def __post_init__(self):
        check_limits(self, {"steps batch_size accumulate": "1 or more", "clip": "above 0",
                            "sequence_length learning_rate warmup weight_decay lora_rank lora_alpha": "0 or more",
                            "text_dropout ema_decay": "from 0 to below 1"})
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate is {self.accumulate}; it must be from 1 to batch_size={self.batch_size}")
        if self.lora_from is not None and not self.lora_rank:
            raise ValueError(f"lora_from is {self.lora_from!r} and lora_rank 0; it must be the rank of the adapters")
        if self.sharding == "fsdp" and (self.optimizer == "muon" or self.ema_decay or self.compile):
            raise ValueError("sharding is 'fsdp'; it goes with optimizer='adamw', ema_decay=0 and compile=False")
        if self.offload and self.sharding != "fsdp":
            raise ValueError(f"offload is True; it goes with sharding='fsdp', not {self.sharding!r}")
        if self.sequence_length and (self.image_to_video or self.sharding == "fsdp" or self.accumulate > 1
                                     or self.compile):
            raise ValueError(f"sequence_length is {self.sequence_length}; packing does not go with image_to_video, "
                             f"sharding='fsdp', compile or accumulate (each pack is a pass already)")

    @property
    def rate(self) -> float:
        """The learning rate."""
        if self.learning_rate is None:
            return 1e-3 if self.lora_rank else 2e-5
        return self.learning_rate

    @property
    def alpha(self) -> float:
        """Alpha of new adapters; those of `lora_from` keep their own (`lora.trained_alpha`)."""
        return self.lora_rank / 2 if self.lora_alpha is None else self.lora_alpha

    def recomputes(self, model: nn.Module) -> bool:
        """Whether each block of `model` is recomputed in the backward pass (activation checkpointing)."""
        if self.gradient_checkpointing is None:
            return sum(p.numel() for p in model.parameters()) >= LARGE
        return self.gradient_checkpointing


def check_model(config: TransformerConfig, tuning: FineTuning) -> None:
    """Raises ValueError for a model that cannot be trained with these options.

    Such as an image-to-video model without images, LoRA on a model whose image channels are new (they would stay zero),
    and `lora_from` with the adapters of another model.
    """
    if config.image_to_video and not tuning.image_to_video:
        raise ValueError("this model makes videos from an image; train it with image_to_video=True")
    if tuning.lora_rank and tuning.image_to_video and not config.image_to_video:
        raise ValueError(f"lora_rank is {tuning.lora_rank}, and this model takes no image yet; train all its "
                         f"weights with image_to_video=True first")
    if tuning.lora_rank:
        check_lora(config, tuning.lora_rank, tuning.alpha)
    if tuning.lora_from is not None:
        with torch.device("meta"):
            continue_lora(ExpertTransformer(config), tuning.lora_from, tuning.lora_rank, tuning.lora_alpha)


def prepare(pipe: Pipeline, tuning: FineTuning) -> ExpertTransformer:
    """The transformer to train: with image channels or adapters, if the options say so.

    Raises what `check_model` and `continue_lora` raise.
    """
    model = pipe.transformer
    check_model(model.config, tuning)
    if tuning.image_to_video and not model.config.image_to_video:
        model = widen_for_image(model)
    model.requires_grad_(True)
    if tuning.lora_from is not None:
        continue_lora(model, tuning.lora_from, tuning.lora_rank, tuning.lora_alpha)
    elif tuning.lora_rank:
        add_lora(model, tuning.lora_rank, tuning.alpha)
    model.gradient_checkpointing = tuning.recomputes(model)
    return model


def finetune(pipe: Pipeline, clips: CachedClips, tuning: FineTuning, seed: int = 0, keep: Keep = Keep(),
             ranks: Ranks = Ranks()) -> ExpertTransformer:
    """Trains `pipe.transformer` on `clips` and returns it; with `lora_rank` it has adapters in it.

    The model computes in its own dtype; trained weights have a float32 master copy. Every step and rank draws from its
    own seed: a run that was killed and resumed ends with the same weights, bit for bit. With several ranks, each draws
    its own clips, and gradients are averaged. Raises ValueError for a cache that does not fit, before any work.
    """
    torch.manual_seed(seed)  # adapters start at random
    model = prepare(pipe, tuning)
    check_clips(clips, pipe, model, tuning)
    network, weights, files = spread(model, tuning, keep, ranks)
    optimizer = MuonAdamW(weights.named_weights(), 10 * tuning.rate, tuning.rate,
                          lambda name, p: tuning.optimizer == "muon" and is_block_matrix("transformer." + name, p),
                          weight_decay=tuning.weight_decay, clip=tuning.clip)
    averages = [MasterWeights(model).requires_grad_(False)] if tuning.ema_decay else []
    data = (PackedDraw if tuning.sequence_length else Draw)(pipe, model, clips, tuning, ranks, seed)
    run = Run("finetune", tuning.steps, keep, ranks.first, files)
    run.resume({"weights": weights} | ({"ema": averages[0]} if averages else {}), {"optimizer": optimizer})
    weights.write_back()
    network.train()
    for step in run:
        loss = sum(data.backward(network, batch) for batch in data.batches(step))
        weights.take_gradients(ranks)
        norm = optimizer.step(warmup_cosine(step, tuning.steps, tuning.warmup))
        weights.write_back()
        average(averages, [weights], min(tuning.ema_decay, (1 + step) / (10 + step)))
        run.record(norm, **mean_over_ranks({"loss": loss}, ranks))
    if averages:
        weights.write_back(averages[0])
    return model.eval()


def spread(model: ExpertTransformer, tuning: FineTuning, keep: Keep, ranks: Ranks) -> tuple[
        nn.Module, MasterWeights, ShardedCheckpoints | None]:
    """The network, its master weights and its checkpoints: replicated on all ranks, or sharded over them (FSDP2)."""
    if tuning.sharding == "replicate":
        return torch.compile(model) if tuning.compile else model, MasterWeights(model), None
    dtype = model.proj_out.weight.dtype
    network = wrap(model.float(), ranks, "fsdp", None if dtype == torch.float32 else dtype, tuning.offload)
    files = keep.folder and ShardedCheckpoints(keep.folder / "checkpoints", "finetune", ranks, keep.checkpoints)
    return network, MasterWeights(model, own=True), files


def check_clips(clips: CachedClips, pipe: Pipeline, model: ExpertTransformer, tuning: FineTuning) -> None:
    """Raises ValueError, in one sentence, for a cache that this run cannot use."""
    if not clips.has_text:
        raise ValueError(f"the cache in {clips.folder} has no text features; make it with the model that is trained")
    if tuning.image_to_video and not clips.has_first_frames:
        raise ValueError(f"the cache in {clips.folder} has no first frames; make it with --first-frame")
    if clips.scaling_factor != pipe.vae.config.scaling_factor:
        raise ValueError(f"the cache in {clips.folder} has scaling_factor={clips.scaling_factor}; the model's VAE has "
                         f"{pipe.vae.config.scaling_factor}")
    channels, width = clips.draw([0]).shape[1], clips.empty_text().shape[-1]
    if channels != model.config.out_channels:
        raise ValueError(f"the cache in {clips.folder} has latents of {channels} channels; the model has "
                         f"{model.config.out_channels}")
    if width != model.config.text_embed_dim:
        raise ValueError(f"the cache in {clips.folder} has text features {width} wide; the model takes "
                         f"{model.config.text_embed_dim}")
    _check_sizes(clips, model.config, tuning)


def _check_sizes(clips: CachedClips, config: TransformerConfig, tuning: FineTuning) -> None:
    if tuning.image_to_video and all(frames == 1 for frames, _, _ in clips.buckets()):
        raise ValueError(f"the cache in {clips.folder} has only clips of 1 frame; from an image a model learns to "
                         f"make the frames after it")
    size = config.sample_latent_size
    for i in range(len(clips)) if "learned" in config.position else ():
        t, h, w = clips.latent_size(i)
        if (config.whole_patches(t), h, w) != size:
            raise ValueError(f"clip {i} in {clips.folder} has latents of {t} x {h} x {w} (frames x height x width); "
                             f"the learned position table of this model fits only {size[0]} x {size[1]} x {size[2]}")
