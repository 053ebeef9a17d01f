"""The expert transformer (paper 2.2): text and video tokens in one sequence, under full attention.

Parameter names are those of diffusers' `CogVideoXTransformer3DModel`: published weights load strictly, unrenamed.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minicogvx.presets import TransformerConfig
from minicogvx.transformer.block import Block
from minicogvx.transformer.embeddings import PatchEmbed, TimeEmbedding
from minicogvx.transformer.expert_norm import LayerNorm, OutputNorm
from minicogvx.transformer.layout import DenseLayout, Layout, dense_layout
from minicogvx.transformer.variants import ValueResidualBlock, VariantBlock


class ExpertTransformer(nn.Module):
    """Predicts v (or what the schedule's `prediction_type` says) from noisy latents, a timestep and text features.

    Set `gradient_checkpointing = True` to recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        d, d_time = config.width, config.time_embed_dim
        self.patch = config.patch
        self.patch_embed = PatchEmbed(config)
        self.time_embedding = TimeEmbedding(d, d_time)
        self.ofs_embedding = TimeEmbedding(d_time, d_time) if config.ofs_embed_dim else None
        self.transformer_blocks = nn.ModuleList([block_of(config, number) for number in range(config.num_layers)])
        self.norm_final = LayerNorm(d, config.norm_eps)
        self.norm_out = OutputNorm(d, d_time, config.norm_eps)
        self.proj_out = nn.Linear(d, self.patch[0] * config.patch_size**2 * config.out_channels)
        nn.init.xavier_uniform_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.gradient_checkpointing = False
        self._layouts = {}  # with the position tables of the sizes met so far; not part of the state dict

    def forward(self, latents: Float[Tensor, "b c t h w"] | Sequence[Float[Tensor, "c _t _h _w"]],
                timestep: Num[Tensor, " b"],
                text: Float[Tensor, "b n_text d_text"] | Sequence[Float[Tensor, "_n_text d_text"]],
                ofs: Num[Tensor, " b"] | None = None, layout: Layout | None = None,
                ) -> Float[Tensor, "b c_out t h w"] | tuple[Float[Tensor, "c_out _t _h _w"], ...]:
        """One evaluation of the network.

        Args:
            latents: scaled latents; for image to video the image latents are already concatenated on channels.
            timestep: 0..999, one a sample.
            text: text features, of any length up to `max_text_seq_length`. No mask: padding takes part.
            ofs: the second number that 1.5-5b-i2v is conditioned on (always 2.0 there).
            layout: None for clips of one size. Otherwise where their tokens lie: packed, from lists of latents and of
                text (call `packed.forward_clips`), or split over ranks (call `sequence_parallel.forward_split`).

        Raises:
            ValueError: if a size does not fit the config; the sentence names the size.
        """
        if layout is None:
            check_inputs(self.config, latents, text, ofs)
            layout = self.layout(self.grid(latents), text.shape[1], latents.device)

        t_emb = self.time_embedding(timestep)                   # b d_time
        if ofs is not None:
            t_emb = t_emb + self.ofs_embedding(ofs)             # b d_time
        t_emb = F.silu(t_emb)                                   # b d_time: every modulation starts with this SiLU

        x = layout.embed(self.patch_embed, latents, text)       # b n d: text, then video
        for block in self.transformer_blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, t_emb, layout, use_reentrant=False)
            else:
                x = block(x, t_emb, layout)                     # b n d
        x = layout.video(x)                                     # b n_video d
        x = self.norm_final(x)                                  # b n_video d
        x = self.norm_out(x, t_emb, layout)                     # b n_video d: two norms in a row, as published
        x = self.proj_out(x)                                    # b n_video c_out*p_t*p*p
        return layout.unpatchify(x)                             # b c_out t h w

    def grid(self, latents: Float[Tensor, "b c t h w"]) -> tuple[int, int, int]:
        """Patches along time, height and width."""
        t, h, w = (size // patch for size, patch in zip(latents.shape[2:], self.patch))
        return t, h, w

    def layout(self, grid: tuple[int, int, int], num_text: int, device: torch.device) -> DenseLayout:
        """The layout of clips of one size, with its position tables; kept for the next call."""
        key = (grid, num_text, device)
        if key not in self._layouts:
            if len(self._layouts) == 16:
                self._layouts.clear()
            # Leave inference mode, so that a table cached while sampling can be used in training; compute on the CPU,
            # for the same values on every device, meta included.
            with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
                self._layouts[key] = dense_layout(self.config, grid, num_text, device)
        return self._layouts[key]


def block_of(config: TransformerConfig, number: int) -> Block | VariantBlock:
    """Block `number` of a model: the published one, or a departure."""
    if config.attention != "full" or config.modulation == "separate":
        return VariantBlock(config)
    return ValueResidualBlock(config, number) if config.value_residual else Block(config)


def check_inputs(config: TransformerConfig, latents: Float[Tensor, "b c t h w"],
                 text: Float[Tensor, "b n_text d_text"], ofs: Num[Tensor, " b"] | None) -> None:
    """Raise a ValueError of one sentence if a size does not fit the config."""
    _, c, t, h, w = latents.shape
    p_t, p, _ = config.patch
    if c != config.in_channels:
        raise ValueError(f"latents have {c} channels; this transformer takes {config.in_channels}")
    if h % p or w % p:
        raise ValueError(f"latents are {h} x {w}; height and width must be multiples of patch_size={p}")
    if t % p_t:
        raise ValueError(f"latents have {t} frames; with patch_size_t={p_t} their number must be a multiple of {p_t} "
                         f"(repeat the first latent frame in front)")
    if text.shape[2] != config.text_embed_dim:
        raise ValueError(f"text features are {text.shape[2]} wide; this transformer takes {config.text_embed_dim}")
    if text.shape[1] > config.max_text_seq_length:
        raise ValueError(f"the text has {text.shape[1]} tokens; max_text_seq_length is {config.max_text_seq_length}")
    size = config.sample_latent_size
    if "learned" in config.position and (t, h, w) != size:
        raise ValueError(f"latents are {t} x {h} x {w} (frames x height x width); the learned position table fits only "
                         f"{size[0]} x {size[1]} x {size[2]}")
    if ofs is None and config.ofs_embed_dim:
        raise ValueError("ofs is None; this transformer needs one number a sample, 2.0 in the published model")
    if ofs is not None and not config.ofs_embed_dim:
        raise ValueError("ofs was given; this transformer has no ofs embedding, so it must be None")


def flops(config: TransformerConfig, latent_size: tuple[int, int, int], num_text: int, batch: int = 1) -> int:
    """Floating-point operations of one forward pass in its matrix products: two for each multiply and add.

    `latent_size` is (frames, height, width) of the latents. A training step costs three times as much.
    """
    d, d_time, (p_t, p, _) = config.width, config.time_embed_dim, config.patch
    t, h, w = latent_size[0] // p_t, latent_size[1] // p, latent_size[2] // p
    video, n = t * h * w, num_text + t * h * w
    pairs, modulations = n * n, 6 if config.modulation == "shared" else 12  # query-key pairs; vectors of width d
    block = n * 12 * d * d                                                 # q, k, v, out: 4 d^2; feed-forward: 8 d^2
    if config.attention == "factorised":
        pairs = num_text * n + video * (num_text + h * w) + video * t
        modulations += 3
        block += video * 4 * d * d
    block += 2 * pairs * d + modulations * d * d_time
    values = p_t * p * p                                                   # of one channel in one patch
    ends = video * values * (config.in_channels + config.out_channels) * d + num_text * config.text_embed_dim * d
    time = (d + d_time + 2 * d + (2 * d_time if config.ofs_embed_dim else 0)) * d_time
    return 2 * batch * (config.num_layers * block + ends + time)
