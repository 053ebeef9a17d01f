"""The two programs that are compared, each ready to run one operation with the same weights and the same input.

A side has three methods: `inputs(small)` creates its inputs (small: only to warm up), `run(inputs)` runs once what is
timed, and `result(inputs)` returns tensors that must be equal on both sides.
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

import minicogvx
from minicogvx.data.world.captions import vocabulary
from minicogvx.interop import DATA
from minicogvx.interop.configs import to_diffusers
from minicogvx.pipeline import Pipeline
from minicogvx.presets import Preset, TransformerConfig, VAEConfig
from minicogvx.text import TextEncoder
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE

for log in (diffusers_logging, transformers_logging):  # no progress bars and notes between the figures
    log.set_verbosity_error()
    log.disable_progress_bar()

OURS, THEIRS = "minicogvx", "diffusers"
PROMPT = "a red circle moves right"


class VAESide:
    """Encode, decode or one training step, the whole clip in one chunk.

    Training step: encode, sample, decode, L1 loss, backward, AdamW. `dtype` is that of the activations. Weights have it
    as well, unless `float32_weights`: minicogvx casts them on the fly, diffusers runs under autocast.
    """

    def __init__(self, who: str, config: VAEConfig, operation: str, dtype: torch.dtype, batch: int, frames: int,
                 size: int, float32_weights: bool = False):
        self.operation, self.dtype, self.shape = operation, dtype, (batch, 3, frames, size, size)
        self.ours, self.config = who == OURS, config
        self.autocast = float32_weights and not self.ours
        self.model = _twin(CausalVAE(config), AutoencoderKLCogVideoX, who, config)
        self.model.to(torch.float32 if float32_weights else dtype)
        if not self.ours:
            self.model.num_sample_frames_batch_size = self.model.num_latent_frames_batch_size = frames  # one chunk
        self.optimizer = _adamw(self.model) if operation.startswith("training") else None

    def inputs(self, small: bool = False) -> tuple[Tensor, Tensor]:
        """A clip in -1..1 and a latent-sized standard normal."""
        shape = (1, 3, 9, 16, 16) if small else self.shape
        generator = torch.Generator().manual_seed(1)
        video = torch.rand(shape, generator=generator) * 2 - 1
        latent = (self.config.latent_channels, *self.config.latent_size(*shape[2:]))
        noise = torch.randn(shape[0], *latent, generator=generator)
        return video.to(torch.float32 if self.autocast else self.dtype), noise.to(self.dtype)

    def run(self, inputs: tuple[Tensor, Tensor]) -> None:
        if self.optimizer is None:
            self._forward(*inputs)
        else:
            self._loss_and_backward(*inputs)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def result(self, inputs: tuple[Tensor, Tensor]) -> list[Tensor]:
        if self.optimizer is None:
            return [self._forward(*inputs)]
        return [self._loss_and_backward(*inputs), _take_gradients(self.model)]

    @torch.no_grad()
    def _forward(self, video, noise):
        if self.operation == "encode":
            posterior = self._encode(video)
            return torch.cat([posterior.mean, posterior.logvar], dim=1)
        return self._decode(noise)

    def _loss_and_backward(self, video, noise):
        with torch.autocast("cpu", self.dtype, enabled=self.autocast):
            posterior = self._encode(video)
            reconstruction = self._decode((posterior.mean + posterior.std * noise).to(video.dtype))
        (reconstruction.float() - video.float()).abs().mean().backward()
        return reconstruction.detach()

    def _encode(self, video):
        return self.model.encode(video, None) if self.ours else self.model.encode(video).latent_dist

    def _decode(self, latents):
        return self.model.decode(latents, None) if self.ours else self.model.decode(latents).sample


class TransformerSide:
    """One forward pass, or one training step: forward, mean squared error, backward, AdamW."""

    def __init__(self, who: str, config: TransformerConfig, operation: str, dtype: torch.dtype, batch: int):
        self.operation, self.dtype, self.config, self.batch, self.ours = operation, dtype, config, batch, who == OURS
        self.model = _twin(ExpertTransformer(config), CogVideoXTransformer3DModel, who, config).to(dtype)
        self.optimizer = _adamw(self.model) if operation.startswith("training") else None

    def inputs(self, small: bool = False) -> tuple:
        """Latents, timesteps, text features, target, rotary table (diffusers only), in the layout of the program."""
        c, batch, generator = self.config, 1 if small else self.batch, torch.Generator().manual_seed(1)
        frames, *size = c.sample_latent_size
        shape = (batch, c.in_channels, frames, *size)
        latents, target = (torch.randn(shape, generator=generator).to(self.dtype) for _ in range(2))
        text = torch.randn(batch, c.max_text_seq_length, c.text_embed_dim, generator=generator).to(self.dtype)
        timestep = torch.randint(1000, (batch,), generator=generator)
        if self.ours:
            return latents, timestep, text, target, None
        h, w = c.sample_height // c.patch_size, c.sample_width // c.patch_size
        rope = None
        if "rope" in c.position:
            rope = get_3d_rotary_pos_embed(c.attention_head_dim, ((0, 0), (h, w)), (h, w), frames)
        latents, target = (x.transpose(1, 2).contiguous() for x in (latents, target))
        return latents, timestep, text, target, rope

    def run(self, inputs: tuple) -> None:
        if self.optimizer is None:
            self._forward(inputs)
        else:
            self._loss_and_backward(inputs)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def result(self, inputs: tuple) -> list[Tensor]:
        if self.optimizer is None:
            return [self._as_ours(self._forward(inputs))]
        return [self._as_ours(self._loss_and_backward(inputs)), _take_gradients(self.model)]

    def _as_ours(self, output):
        return output if self.ours else output.transpose(1, 2)

    @torch.no_grad()
    def _forward(self, inputs):
        return self._predict(inputs)

    def _loss_and_backward(self, inputs):
        prediction = self._predict(inputs)
        F.mse_loss(prediction.float(), inputs[3].float()).backward()
        return prediction.detach()

    def _predict(self, inputs):
        latents, timestep, text, _, rope = inputs
        if self.ours:
            return self.model(latents, timestep, text)
        return self.model(latents, text, timestep, image_rotary_emb=rope).sample


class SamplingSide:
    """A caption to pixels: text encoder, every denoising step under guidance 6, chunked decode. Same starting noise.

    The shipped model if `preset` has one in data/, otherwise random weights. diffusers opens what `export` wrote.
    """

    def __init__(self, who: str, preset: Preset, dtype: torch.dtype, steps: int):
        self.ours, self.preset, self.dtype, self.steps = who == OURS, preset, dtype, steps
        pipe = _pipeline(preset)
        if self.ours:
            self.pipe = pipe.to(dtype)
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = pipe.save(Path(folder) / "pipeline")
                self.pipe = CogVideoXPipeline.from_pretrained(path).to(dtype)
            self.pipe.set_progress_bar_config(disable=True)

    def inputs(self, small: bool = False) -> tuple:
        """Frames, height and width in pixels, steps, starting noise `b c t h w`."""
        c, vae = self.preset.transformer, self.preset.vae
        frames, height, width, steps = c.sample_frames, vae.sample_height, vae.sample_width, self.steps
        if small:
            frames, height, width, steps = 9, 16, 16, 2
        shape = (1, vae.latent_channels, *vae.latent_size(frames, height, width))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self.dtype)
        return frames, height, width, steps, noise

    def run(self, inputs: tuple) -> None:
        self.result(inputs)

    @torch.no_grad()
    def result(self, inputs: tuple) -> list[Tensor]:
        frames, height, width, steps, noise = inputs
        size = {"num_frames": frames, "height": height, "width": width, "num_inference_steps": steps,
                "guidance_scale": 6.0}
        if self.ours:
            return [self.pipe.decode(self.pipe.sample([PROMPT], latents=noise, **size))]  # b t h w 3
        video = self.pipe(PROMPT, latents=noise.transpose(1, 2), output_type="pt", **size,
                          max_sequence_length=self.preset.transformer.max_text_seq_length).frames
        return [video.permute(0, 1, 3, 4, 2)]


# ---- the same weights


def _twin(ours: nn.Module, their_class: type, who: str, config) -> nn.Module:
    """`ours` with its seeded weights, or diffusers' model with the same ones. No weight keeps its initial 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            noise = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
            parameter.copy_(noise + 1 if parameter.ndim == 1 and _is_gain(ours, parameter) else noise)
    if who == OURS:
        return ours
    values = {key: value for key, value in to_diffusers(config).items() if not key.startswith("_")}
    theirs = their_class(**values)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs


def _is_gain(model: nn.Module, parameter: nn.Parameter) -> bool:
    norms = (module for module in model.modules() if isinstance(module, (nn.GroupNorm, nn.LayerNorm)))
    return any(parameter is norm.weight for norm in norms)


def _pipeline(preset: Preset) -> Pipeline:
    if (DATA / preset.name / "model_index.json").is_file():
        return minicogvx.load(preset.name, "cpu", torch.float32)
    torch.manual_seed(0)
    vae, transformer = CausalVAE(preset.vae).eval(), ExpertTransformer(preset.transformer).eval()
    text = TextEncoder.from_config(preset.text, vocabulary(), preset.transformer.max_text_seq_length)
    text.encoder.eval()
    return Pipeline(vae, transformer, preset.schedule, text, preset.fps)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def _take_gradients(model: nn.Module) -> Tensor:
    """All gradients in one vector, in the order of the parameters' names; and clears them."""
    gradients = []
    for _, parameter in sorted(model.named_parameters()):
        gradients.append(parameter.grad.float().flatten())
        parameter.grad = None
    return torch.cat(gradients)
