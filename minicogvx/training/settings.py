"""Every number of a training. The defaults are the published ones, where they are known; recipes name departures."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from minicogvx.data.world.features import check_kinds
from minicogvx.engine.limits import check_limits
from minicogvx.engine.optim import MuonAdamW, is_block_matrix, warmup_cosine, warmup_stable_decay
from minicogvx.training.stages import Stage
from minicogvx.vae.discriminator import DiscriminatorConfig
from minicogvx.vae.losses import VAELossConfig
from minicogvx.vae.perceptual import SMALLEST_SIDE


@dataclass(frozen=True)
class ImageCondition:
    """How image to video sees its first frame. As published, `dropout` is drawn once a batch, sigma for each clip."""

    log_sigma_mean: float = -3.0
    log_sigma_std: float = 0.5
    dropout: float = 0.05

    def __post_init__(self):
        check_limits(self, {"dropout": "from 0 to below 1", "log_sigma_std": "0 or more", "log_sigma_mean": "any"})


@dataclass(frozen=True)
class TransformerTraining:
    """The training of a transformer, and of a text encoder that begins with random weights (paper 2.2, 3)."""

    stages: tuple[Stage, ...] = (Stage(1000, batch_size=2),)
    # What is learnt.
    learning_rate: float | None = None  # None: 1e-4 from random weights, 2e-5 from others, 1e-3 for LoRA
    optimizer: Literal["adamw", "muon"] = "adamw"  # "muon": for the matrices of the blocks, AdamW for the rest
    muon_factor: float = 10.0  # Muon's rate over AdamW's
    schedule: Literal["cosine", "wsd"] = "cosine"  # of the learning rate; "wsd": warm-up, stable, decay
    cooldown: float = 0.2  # share of the steps in which it falls in "wsd"
    warmup: int = 100  # steps
    weight_decay: float = 1e-4
    clip: float = 1.0  # gradient norm
    ema_decay: float = 0.0  # above 0: the result is the weights' moving average
    text_dropout: float = 0.1  # share of captions replaced by the empty one, for classifier-free guidance
    caption_style: Literal["short", "dense"] | None = None  # of the shapes world; None: either
    # Explicit uniform sampling (3.3): an interval for each rank, as published; one for each clip; or plain draws.
    timesteps: Literal["rank", "stratified", "uniform"] = "rank"
    posterior: Literal["sample", "mean"] = "sample"  # of latents; "mean" spares a small model the noise
    open_gates: bool = False  # from random weights: begin with gates of 1 and branches of 0, not with gates of 0
    text_bias_slope: float | None = None  # of a text encoder with random weights; see local_text.py
    alignment_weight: float = 0.0  # of an auxiliary loss; see alignment.py
    alignment_kinds: tuple[str, ...] = ("shape", "motion")
    alignment_blocks: tuple[int, ...] = ()  # whose outputs are aligned, counted from 0; (): the middle one's
    alignment_schedule: Literal["decay", "constant"] = "decay"  # "decay": the weight falls to 0 in a straight line
    alignment_end: float = 1.0  # share of the training after which the weight is 0
    foreground_weight: float = 0.0  # of an object's cells in the loss, besides 1; see foreground.py
    routed_blocks: tuple[int, ...] = ()  # the first and the last that routed tokens skip; (): see routing.py
    lora_rank: int = 0  # 0: all weights learn; the released code has 128
    lora_alpha: float | None = None  # None: half the rank, or that of lora_from
    lora_from: str | None = None  # a LoRA file to start from
    image_to_video: bool = False
    image: ImageCondition = field(default_factory=ImageCondition)
    # How it is computed.
    accumulate: int = 1  # gradient accumulation: at least so many passes a step on each rank
    gradient_checkpointing: bool | None = None  # a third more time, far less memory; None: from a billion parameters on
    compile: bool = False  # torch.compile
    sharding: Literal["replicate", "fsdp", "hsdp"] = "replicate"
    offload: bool = False  # under "fsdp": keep weights and optimizer state in CPU memory
    context_ranks: int = 1  # so many neighbouring ranks share the tokens of each clip
    workers: int = 0  # processes that read clips ahead
    # What is watched.
    validate_every: int = 0  # steps between measurements of the loss on clips held back; 0: none
    sample_every: int = 0  # steps between sample clips

    def __post_init__(self):
        if not self.stages:
            raise ValueError("stages is (); it must hold at least one stage")
        check_limits(self, {"accumulate context_ranks": "1 or more", "clip muon_factor": "above 0",
                            "text_dropout ema_decay": "from 0 to below 1", "cooldown alignment_end": "from 0 to 1",
                            "learning_rate warmup text_bias_slope alignment_weight foreground_weight weight_decay "
                            "lora_rank lora_alpha workers validate_every sample_every": "0 or more"})
        check_kinds(self.alignment_kinds)
        if self.lora_from is not None and not self.lora_rank:
            raise ValueError(f"lora_from is {self.lora_from!r} and lora_rank 0; it must be the rank of the adapters")
        if self.offload and self.sharding == "replicate":
            raise ValueError("offload is True; it goes with sharding='fsdp' or 'hsdp', not 'replicate'")
        if self.offload and self.sample_every:
            raise ValueError(f"sample_every is {self.sample_every}; with offload=True it must be 0, as samples are "
                             f"made where the weights lie")
        if self.foreground_weight and not self.alignment_weight:
            raise ValueError(f"foreground_weight is {self.foreground_weight} and alignment_weight 0; both read what "
                             f"covers each cell, so it goes with an alignment_weight above 0")
        if self.context_ranks > 1 and self.alignment_weight:
            raise ValueError(f"alignment_weight is {self.alignment_weight}; with context_ranks={self.context_ranks} no "
                             f"rank has all tokens of a clip, so it must be 0")
        if self.context_ranks > 1 and self.routes:
            raise ValueError(f"context_ranks is {self.context_ranks}; in a training with routed tokens it must be 1")
        if self.stages[-1].text_slots is not None:
            raise ValueError(f"stages.{len(self.stages) - 1}.text_slots is {self.stages[-1].text_slots}; in the last "
                             f"stage it must be None, as samples are padded to the model's own max_text_seq_length, "
                             f"which may be smaller instead")
        for i, stage in enumerate(self.stages if self.image_to_video else ()):
            if stage.images:
                raise ValueError(f"stages.{i}.images is {stage.images}; with image_to_video=True it must be 0, as a "
                                 f"picture would be its own answer")
        if self.sharding != "replicate" and self.optimizer == "muon":
            raise ValueError(f"optimizer is 'muon'; with sharding={self.sharding!r} it must be 'adamw'")

    @property
    def routes(self) -> bool:
        """Whether in any stage tokens skip blocks."""
        return any(stage.routed for stage in self.stages)

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    def alignment_at(self, progress: float) -> float:
        """The weight of the alignment loss after this share of the training."""
        if progress >= self.alignment_end:
            return 0.0
        return self.alignment_weight * (1 - progress / self.alignment_end if self.alignment_schedule == "decay" else 1)

    def schedule_at(self, step: int, steps: int, warmup: int) -> float:
        """The learning rate at `step` of `steps`, as a factor."""
        if self.schedule == "wsd":
            return warmup_stable_decay(step, steps, warmup, self.cooldown)
        return warmup_cosine(step, steps, warmup)

    def from_image(self) -> "TransformerTraining":
        """The same for image to video: of whole clips, as a picture would be its own answer."""
        return replace(self, image_to_video=True, stages=tuple(replace(stage, images=0.0) for stage in self.stages))

    @property
    def alpha(self) -> float:
        """Alpha of new adapters; those of `lora_from` keep their own (`lora.trained_alpha`)."""
        return self.lora_rank / 2 if self.lora_alpha is None else self.lora_alpha

    def rate(self, from_random: bool = False) -> float:
        """The learning rate of AdamW."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-4 if from_random else 1e-3 if self.lora_rank else 2e-5

    def new_optimizer(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> MuonAdamW:
        """Muon for the matrices of the blocks and AdamW for the rest, or AdamW alone."""
        rate = self.rate()
        muon_on = is_block_matrix if self.optimizer == "muon" else lambda name, p: False
        return MuonAdamW(named_parameters, self.muon_factor * rate, rate, muon_on, self.weight_decay, self.clip)


WORLD_FPS = 8  # of a clip of the shapes world at its usual speed


@dataclass(frozen=True)
class VAEStage(Stage):
    """A stage of a VAE's training: what it sees, and what it is judged by."""

    batch_size: int = 4
    loss: VAELossConfig = VAELossConfig()
    decoder_only: bool = False  # the encoder stays as it is: latents that a diffusion model has seen keep their meaning
    crowd: int = 1  # of the shapes world: each clip has the objects of so many scenes, hence more edges to learn from
    frame_rates: tuple[int, ...] = (WORLD_FPS,)  # one is drawn each time; (8, 16) in the published first stage
    context_ranks: int = 1  # so many ranks share the frames of each clip, as in the published second stage

    def __post_init__(self):
        super().__post_init__()
        check_limits(self, {"context_ranks crowd": "1 or more"})
        if not self.frame_rates or min(self.frame_rates) < 1:
            raise ValueError(f"frame_rates is {self.frame_rates}; it must hold at least one rate, 1 or more")
        if self.pack or self.images:
            raise ValueError(f"pack is {self.pack} and images {self.images}; a VAE takes clips of one size, so both "
                             f"must be 0")
        if self.loss.correlation_weight and (self.decoder_only or self.context_ranks > 1):
            raise ValueError(f"correlation_weight is {self.loss.correlation_weight}; it is measured on the encoder's "
                             f"gradient, so it goes with decoder_only=False and context_ranks=1")
        if self.text_slots is not None or self.routed:
            raise ValueError(f"text_slots is {self.text_slots} and routed {self.routed}; a VAE has no tokens, so they "
                             f"must be None and 0")


@dataclass(frozen=True)
class VAETraining:
    """The training of a VAE. Of the published one, learning rate, loss weights and optimizer were never released."""

    stages: tuple[VAEStage, ...]
    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "muon"] = "adamw"  # "muon": for matrices and kernels, AdamW for the rest
    muon_factor: float = 20.0
    warmup: int = 20  # steps, in every stage
    weight_decay: float = 0.0
    clip: float = 1.0
    ema_decay: float = 0.0
    discriminator: DiscriminatorConfig = DiscriminatorConfig(width=16)  # where a loss has a GAN
    small_branches: bool = False  # from random weights: residual branches begin small, and the latent's noise
    whiten: bool = False  # before the last stage, latents are centred and decorrelated; see latent_scale.py
    # How it is computed.
    accumulate: int = 1
    chunk_frames: int | None = 8  # frames that pass through the network at once; None: all
    gradient_checkpointing: bool = False
    workers: int = 0
    # What is watched.
    validate_every: int = 0  # steps between measurements on videos held back; 0: none

    def __post_init__(self):
        if not self.stages:
            raise ValueError("stages is (); it must hold at least one stage")
        check_limits(self, {"accumulate chunk_frames": "1 or more", "clip muon_factor": "above 0",
                            "learning_rate warmup weight_decay workers validate_every": "0 or more",
                            "ema_decay": "from 0 to below 1"})
        if self.whiten and len(self.stages) == 1:
            raise ValueError("whiten is True; the last stage adapts the decoder to it, so it goes with two stages or "
                             "more")
        shared = next((stage for stage in self.stages if stage.context_ranks > 1), None)
        if shared and (self.chunk_frames is not None or self.gradient_checkpointing):
            raise ValueError(f"context_ranks is {shared.context_ranks}; ranks that share a clip take it in one piece, "
                             f"so it goes with chunk_frames=None and gradient_checkpointing=False")

    def least_sides(self, stage: VAEStage) -> dict[str, int]:
        """The networks of a stage's loss that need frames of some size: height and width in pixels, at least."""
        loss, least = stage.loss, {}
        if loss.lpips_weight:
            least["LPIPS"] = -(-SMALLEST_SIDE[loss.lpips_net] // loss.lpips_upscale)
        if loss.gan_weight:
            least["the discriminator"] = 2**min(self.discriminator.stages, 64)
        return least

    def new_optimizer(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> MuonAdamW:
        """Muon for matrices and kernels and AdamW for the rest, or AdamW alone."""
        muon_on = (lambda name, p: p.ndim >= 2) if self.optimizer == "muon" else lambda name, p: False
        return MuonAdamW(named_parameters, self.muon_factor * self.learning_rate, self.learning_rate, muon_on,
                         self.weight_decay, self.clip)
