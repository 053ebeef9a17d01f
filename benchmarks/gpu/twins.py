"""minicogvx and diffusers with random weights that share memory: 5B once, not twice."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn

from benchmarks.measure import difference
from minicogvx.interop.configs import to_diffusers
from minicogvx.presets import TransformerConfig, VAEConfig
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE

SAMPLES = 2**16  # about this many values of each gradient are compared


def random_model(kind: type[nn.Module], config, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A model of ours with `fill`ed weights, created on `device`."""
    with torch.device("meta"):
        model = kind(config)
    model = model.to(dtype).to_empty(device=device)
    fill(model)
    return model


@torch.no_grad()
def fill(model: nn.Module, seed: int = 0) -> None:
    """Random weights from `seed`; none keeps its initial 0 or 1, which would hide a mistake.

    All fit in 16 bits, so that the model is the same one in every number format.
    """
    gains = {id(norm.weight) for norm in model.modules() if isinstance(norm, nn.GroupNorm | nn.LayerNorm)}
    tensors = [*model.parameters(), *model.buffers()]
    generator = torch.Generator(tensors[0].device).manual_seed(seed)
    for tensor in tensors:
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 25
        noise = torch.randn(tensor.shape, generator=generator, device=tensor.device) * fan_in**-0.5
        tensor.copy_((noise + 1 if id(tensor) in gains else noise).bfloat16())


def their_model(ours: nn.Module, config: TransformerConfig | VAEConfig) -> nn.Module:
    """diffusers' model, sharing the tensors of `ours`."""
    kind = CogVideoXTransformer3DModel if isinstance(config, TransformerConfig) else AutoencoderKLCogVideoX
    with torch.device("meta"):
        theirs = _of_config(kind, config)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    missing = {name for name, buffer in theirs.named_buffers() if buffer.is_meta}
    if missing:  # tables that are not in files; they do not depend on the number of layers
        weight = next(ours.parameters())
        for name, buffer in _of_config(kind, replace(config, num_layers=1)).named_buffers():
            if name in missing:
                owner, _, last = name.rpartition(".")
                setattr(theirs.get_submodule(owner), last, buffer.to(weight.device, weight.dtype))
    return theirs


def _of_config(kind, config):
    return kind(**{key: value for key, value in to_diffusers(config).items() if not key.startswith("_")})


# ---- transformers


@dataclass(frozen=True)
class Inputs:
    """Inputs and target of a transformer."""

    latents: Tensor  # b c t h w
    timestep: Tensor  # b
    text: Tensor  # b n d_text
    target: Tensor  # b c t h w


def inputs(config: TransformerConfig, frames: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    """One clip of `frames` latents at the model's own height and width, the same numbers on every device."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().to(device, dtype)

    shape = (1, config.in_channels, frames, config.sample_height, config.sample_width)
    return Inputs(noise(*shape), torch.tensor([501], device=device),
                  noise(1, config.max_text_seq_length, config.text_embed_dim), noise(*shape))


class TransformerTwins:
    """Both programs' transformers with gradient checkpointing."""

    def __init__(self, config: TransformerConfig, frames: int, dtype: torch.dtype, device: torch.device):
        self.ours = random_model(ExpertTransformer, config, dtype, device)
        self.theirs = their_model(self.ours, config)
        self.ours.gradient_checkpointing = True
        self.theirs.enable_gradient_checkpointing()
        self.inputs = inputs(config, frames, dtype, device)
        self.rope = None
        if "rope" in config.position:
            h, w = config.sample_height // config.patch_size, config.sample_width // config.patch_size
            tables = get_3d_rotary_pos_embed(config.attention_head_dim, ((0, 0), (h, w)), (h, w), frames)
            self.rope = tuple(table.to(device) for table in tables)

    def ours_says(self, x: Inputs) -> Tensor:
        """Our prediction, `b c t h w`."""
        return self.ours(x.latents, x.timestep, x.text)

    def theirs_says(self, x: Inputs) -> Tensor:
        """The prediction of diffusers, `b c t h w`."""
        latents = x.latents.transpose(1, 2)
        return self.theirs(latents, x.text, x.timestep, image_rotary_emb=self.rope).sample.transpose(1, 2)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """The loss of all checks, in float32."""
    return F.mse_loss(prediction.float(), target.float())


# ---- VAEs


def vae_twins(config: VAEConfig, dtype: torch.dtype, device: torch.device) -> tuple[CausalVAE, AutoencoderKLCogVideoX]:
    """Both programs' VAEs."""
    ours = random_model(CausalVAE, config, dtype, device)
    return ours, their_model(ours, config)


def vae_inputs(config: VAEConfig, clip: tuple[int, int, int], dtype: torch.dtype,
               device: torch.device) -> tuple[Tensor, Tensor]:
    """A video `1 3 t h w` of `clip` (frames, height, width) in -1..1, and standard normal latents for it."""
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(1, config.in_channels, *clip, generator=generator) * 2 - 1
    latents = torch.randn(1, config.latent_channels, *config.latent_size(*clip), generator=generator)
    return tuple(tensor.bfloat16().to(device, dtype) for tensor in (video, latents))


# ---- errors and gradients


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest ||a - b|| / ||b|| of two lists of tensors; infinite where shapes differ or a value is not finite.

    Computed on the CPU, because not every device has float64.
    """
    return difference([tensor.cpu() for tensor in ours], [tensor.cpu() for tensor in theirs])


def sampled(gradient: Tensor) -> Tensor:
    """About SAMPLES values from all over the tensor, in float32; all of them if there are fewer."""
    flat = gradient.detach().flatten()
    stride = max(len(flat) // SAMPLES, 1)
    while gcd(stride, len(flat)) > 1:  # a stride that divides the width would hit only a few columns
        stride += 1
    return flat[::stride].float()


def loss_and_gradients(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and samples of the gradients by name; each gradient is freed as soon as it was sampled.

    So a training step of the 5B needs memory for its weights and one gradient, not for all of them.
    """
    samples: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(parameter: Tensor) -> None:
            samples[name] = sampled(parameter.grad)
            parameter.grad = None
        return hook

    handles = [p.register_post_accumulate_grad_hook(keep(name)) for name, p in model.named_parameters()
               if p.requires_grad]
    try:
        value = loss()
        value.backward()
    finally:
        for handle in handles:
            handle.remove()
    return value.detach().float(), samples


def worst_gradient(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest relative error of one parameter's gradient; infinite where one is missing or not finite.

    Without rotations a bias of the keys shifts all scores equally, so its gradient is only rounding error: below a
    thousandth of the largest norm, errors are relative to that.
    """
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in theirs):
        return float("inf")
    floor = 1e-3 * max(gradient.norm().item() for gradient in theirs.values())
    errors = [((ours[name] - gradient).norm() / max(gradient.norm().item(), floor)).item()
              for name, gradient in theirs.items()]
    return max(errors) if all(error == error for error in errors) else float("inf")


def joined(gradients: dict[str, Tensor]) -> Tensor:
    """All of them in one vector, in the order of their names."""
    return torch.cat([gradients[name] for name in sorted(gradients)])
