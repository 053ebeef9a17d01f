"""The inputs of the transformer: time, patches of latents, text (paper 2.2)."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Num
from torch import Tensor, nn

from minicogvx.presets import TransformerConfig
from minicogvx.transformer.patchify import patchify


def timestep_sinusoid(timestep: Num[Tensor, " b"], dim: int) -> Float[Tensor, "b dim"]:
    """Cosines, then sines, of the timestep (0..999) at dim / 2 frequencies from 1 to almost 1/10000, in float32."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
    angles = timestep.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """The sinusoid of one number a sample, then a small MLP. It has no activation at the end."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.in_dim = in_dim
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, timestep: Num[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        sinusoid = timestep_sinusoid(timestep, self.in_dim).to(next(self.parameters()).dtype)
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


class PatchConv2d(nn.Conv2d):
    """A convolution whose stride is its kernel, computed as what it is: one matrix product a patch."""

    def forward(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n d h2 w2"]:
        p, q = self.kernel_size
        patches = rearrange(x, "... c (h p) (w q) -> ... h w (c p q)", p=p, q=q)
        return F.linear(patches, self.weight.flatten(1), self.bias).movedim(-1, -3)


class PatchEmbed(nn.Module):
    """Patches of latents and text features, projected to the model's width and joined, text first.

    `proj` is what the published models have: a Conv2d of every frame where a patch has one (1.0), a Linear of patches
    where it has two (1.5).

    `pos_embedding` is the learned table of absolute positions, text rows first. In "learned" it is a parameter.
    In "rope+learned" it is a buffer, as `diffusers` has it: loaded and saved, close to zero, not trained.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        c, p, d = config.in_channels, config.patch_size, config.width
        self.patch, self.patch_t, self.by_frame = p, config.patch[0], config.patch_size_t is None
        if self.by_frame:
            self.proj = PatchConv2d(c, d, kernel_size=p, stride=p)
        else:
            self.proj = nn.Linear(c * self.patch_t * p * p, d)
        self.text_proj = nn.Linear(config.text_embed_dim, d)
        nn.init.xavier_uniform_(self.proj.weight.data.view(d, -1))
        nn.init.zeros_(self.proj.bias)

        self.max_text = config.max_text_seq_length
        self.learned_size = config.sample_latent_size
        if config.position == "learned":
            self.pos_embedding = nn.Parameter(0.02 * torch.randn(1, self.table_rows(), d))
        elif config.position == "rope+learned":
            self.register_buffer("pos_embedding", torch.zeros(1, self.table_rows(), d))
        else:
            self.pos_embedding = None

    def table_rows(self) -> int:
        """Rows of the learned table: the longest text, then the patches of a video of the sample size."""
        t, h, w = self.learned_size
        return self.max_text + (t // self.patch_t) * (h // self.patch) * (w // self.patch)

    def forward(self, latents: Float[Tensor, "b c t h w"], text: Float[Tensor, "b n_text d_text"],
                sincos: Float[Tensor, "n_video d"] | None) -> Float[Tensor, "b n d"]:
        """`sincos` is the fixed table to add to the video tokens, if the model has one; the text gets no position."""
        if self.by_frame:
            video = self.proj(rearrange(latents, "b c t h w -> (b t) c h w"))       # bt d h/p w/p
            video = rearrange(video, "(b t) d h w -> b (t h w) d", b=len(latents))  # b n_video d
        else:
            video = self.proj(patchify(latents, self.patch_t, self.patch))          # b n_video d
        text = self.text_proj(text)                                                 # b n_text d
        if sincos is not None:
            video = video + sincos.to(video.dtype)
        if self.pos_embedding is not None:
            text = text + self.pos_embedding[:, :text.shape[1]]
            video = video + self.pos_embedding[:, self.max_text:]
        return torch.cat([text, video], dim=1)                                      # b n d
