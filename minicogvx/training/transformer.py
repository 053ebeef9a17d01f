"""What a step of the expert transformer computes (paper 2.2, 3): v-prediction on a few clips, and an update.

`loop.fit` is the loop, `batches.Steps` chooses and draws what comes in. With a text encoder of random weights that is
trained as well, or one that is given; replicated over ranks or sharded; all weights, or adapters.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.compat import products_in
from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.sampling import OFS
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharding import broadcast_weights, form_team, sum_within_teams, without_sync, wrap
from minicogvx.engine.weights import Weights, update_average
from minicogvx.presets import ScheduleConfig
from minicogvx.text import TextEncoder
from minicogvx.training.alignment import Alignment
from minicogvx.training.batches import Pass
from minicogvx.training.foreground import cell_weights
from minicogvx.training.image_condition import image_channels
from minicogvx.training.packed import packed_diffusion_loss
from minicogvx.training.routing import Routing, skipped_blocks
from minicogvx.training.settings import TransformerTraining
from minicogvx.transformer.attention import Attention
from minicogvx.transformer.block import FeedForward
from minicogvx.transformer.expert_norm import ExpertNorm
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.transformer.sequence_parallel import forward_split
from minicogvx.vae import CausalVAE

LARGE = 10**9  # parameters; from here on (the published sizes) blocks are recomputed by default, or no GPU holds them


class TransformerTask:
    """A transformer in training, and its text encoder if that is trained as well."""

    def __init__(self, model: ExpertTransformer, text: TextEncoder, schedule: ScheduleConfig,
                 training: TransformerTraining, ranks: Ranks = Ranks(), dtype: torch.dtype = torch.float32,
                 trains_text: bool = False, vae: CausalVAE | None = None, zero_text: bool = False,
                 feature_variance: float = 1.0):
        """Moves everything to the ranks' device, `model` in `dtype`.

        Args:
            trains_text: the text encoder is trained as well, with matrix products in `dtype`; else it is frozen.
            vae: for image to video, where pictures are noised and encoded in every step.
            zero_text: a dropped caption has features of zeros, not those of the empty caption.
            feature_variance: of what the alignment head predicts; see alignment.py.
        """
        self.training, self.vae, self.zero_text = training, vae, zero_text
        self.ranks = form_team(replace(ranks, context=training.context_ranks))
        self.trains_text = trains_text
        self.schedule, self.text, self.dtype = NoiseSchedule(schedule), text, dtype
        self.model = model.to(ranks.device) if training.sharding == "replicate" else model
        self.model.gradient_checkpointing = recomputes(model, training)
        self.alignment = None
        if training.alignment_weight:
            self.alignment = Alignment(model, training.alignment_kinds, feature_variance,
                                       training.alignment_blocks).to(ranks.device)
        self.routing = Routing(model, skipped_blocks(training, model.config)) if training.routes else None
        text.encoder.requires_grad_(trains_text).train(trains_text)
        if trains_text:
            text.encoder.to(ranks.device)
        modules = {"transformer": model} | ({"text": text.encoder} if trains_text else {})
        modules |= {"alignment": self.alignment} if self.alignment else {}
        self.weights = self._spread(modules)
        self.network = torch.compile(model) if training.compile else model
        self.optimizer = training.new_optimizer(self.weights.named())
        self.average = self.weights.copies() if training.ema_decay else {}
        model.train()

    def _spread(self, modules: Mapping[str, nn.Module]) -> Weights:
        """The weights on this rank: copies of all, or its shards, which FSDP2 rounds and gathers as they are needed."""
        how, offload = self.training.sharding, self.training.offload
        if how == "replicate":
            for module in modules.values():
                broadcast_weights(module, self.ranks)
            low = self.dtype != torch.float32
            return Weights(modules, {"transformer": self.dtype} if low else {})
        for name, module in modules.items():
            blocks = self.model.transformer_blocks if name == "transformer" else ()
            dtype = self.dtype if name == "transformer" and self.dtype != torch.float32 else None
            wrap(module.float(), self.ranks, how, dtype, offload, blocks)
            sum_within_teams(module, self.ranks)
        return Weights(modules)

    def backward(self, batch: Pass, progress: float, last: bool = True) -> dict[str, Tensor]:
        """Adds this pass's share of the step's gradients, and returns its share of the losses, by name.

        `progress`: share of the training that is done. `last`: whether it is the last pass of the step. In those before
        it, gradients add up on each rank: in float32, and under FSDP2 without a message.
        """
        with without_sync(self.model, not last), self._routed(batch):
            loss = self.losses(batch, self.training.foreground_weight).sum() / batch.total
            figures = {"loss": loss.detach()}
            if self.alignment:
                aligned = self.alignment(batch.stack("features", self.ranks.device))
                aligned = aligned * len(batch.examples) / batch.total
                figures["alignment"] = aligned.detach()
                loss = loss + self.training.alignment_at(progress) * aligned
            loss.backward()
        if not last:
            self.weights.add_gradients()
        return figures

    def _routed(self, batch: Pass) -> AbstractContextManager:
        """Within this context, the tokens that skip blocks in this pass do so."""
        if batch.examples[0].kept is None:
            return nullcontext()
        return self.routing.keeping(batch.stack("kept", self.ranks.device))

    def update(self, step: int, rate: float) -> Tensor:
        """A step of the optimizer, at `rate` times the learning rate, and of the moving average; the gradient norm."""
        self.weights.take_gradients(self.ranks)
        norm = self.optimizer.step(rate)
        self.weights.write_back()
        update_average(self.average, self.weights.tensors(), self.training.ema_decay, step)
        return norm

    def losses(self, batch: Pass, foreground: float = 0.0) -> Float[Tensor, " clips"]:
        """The mean squared error of each clip's velocity (paper 3). `foreground`: see foreground.py."""
        texts = self.text_features(batch)
        t = batch.timesteps(self.ranks.device)
        if batch.packed:
            latents, noises = (batch.each(name, self.ranks.device) for name in ("latents", "noise"))
            beside = [self.pictures(one, clip.shape[1])[0] for one, clip in zip(batch.one_by_one(), latents)]
            return packed_diffusion_loss(self.network, self.schedule, latents, list(texts), t, noises,
                                         beside if self.training.image_to_video else None, self._ofs(t),
                                         self.ranks.group)
        x0, noise = (batch.stack(name, self.ranks.device) for name in ("latents", "noise"))
        x = self.schedule.add_noise(x0, noise, t)
        x = torch.cat([x, self.pictures(batch, x.shape[2])], dim=1)  # none, but for image to video
        velocity = forward_split(self.network, x.to(self.dtype), t, texts, self._ofs(t), self.ranks.group)
        weight = None
        if foreground:
            features = batch.stack("features", self.ranks.device)
            weight = cell_weights(features, self.schedule.alphas_cumprod, t, foreground)
        return diffusion_loss(velocity, x0, noise, t, self.schedule, weight)

    def text_features(self, batch: Pass) -> Float[Tensor, "b n d"]:
        """The stored features of the captions, or those that the text encoder gives now."""
        if batch.examples[0].text is not None:
            return batch.stack("text", self.ranks.device).to(self.dtype)
        text = self.text
        if batch.text_slots:
            text = TextEncoder(text.tokenizer, text.encoder, batch.text_slots)
        with products_in(self.dtype if self.trains_text else torch.float32, self.ranks.device):
            features = text.encode(batch.captions)
        if self.zero_text:
            features = features * torch.tensor([bool(words) for words in batch.captions])[:, None, None].to(features)
        return features.to(self.ranks.device, self.dtype)

    def pictures(self, batch: Pass, frames: int) -> Float[Tensor, "b c t h w"]:
        """The image channels, for image to video: the pictures' latents, or zeros where pictures are dropped."""
        noise = batch.stack("picture_noise", self.ranks.device)  # b c 1 h w; without channels if there are none
        if not (self.training.image_to_video and batch.shows_pictures):
            return torch.zeros_like(noise).expand(-1, -1, frames, -1, -1)
        return image_channels(self.vae, batch.stack("picture"), noise, frames).to(noise)

    def _ofs(self, t: Tensor) -> Tensor | None:
        return torch.full_like(t, OFS, dtype=self.dtype) if self.model.config.ofs_embed_dim else None

    def state(self) -> dict[str, Tensor]:
        """The complete state, by name: the tensors themselves, so that loading can write into them."""
        parts = {"weights": self.weights.tensors(), "average": self.average, "optimizer": self.optimizer.state()}
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def restored(self) -> None:
        """To be called after `state` was written into."""
        self.weights.write_back()

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within this context, the networks are those that `result` gives, and do not train."""
        self.model.eval(), self.text.encoder.eval()
        with self.weights.replaced_by(self.average) if self.average else nullcontext():
            yield
        self.model.train(), self.text.encoder.train(self.trains_text)

    def result(self) -> dict[str, Tensor]:
        """What was learnt, by name: the moving average if there is one, in float32."""
        return self.average or self.weights.tensors()


def recomputes(model: nn.Module, training: TransformerTraining) -> bool:
    """Whether each block of `model` is recomputed in the backward pass (activation checkpointing)."""
    if training.gradient_checkpointing is None:
        return sum(p.numel() for p in model.parameters()) >= LARGE
    return training.gradient_checkpointing


@torch.no_grad()
def open_gates(model: ExpertTransformer) -> None:
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
