"""The expert transformer (paper 2.2): text and video tokens in one sequence, under full attention.

Parameter names are those of diffusers' `CogVideoXTransformer3DModel`: published weights load strictly, unrenamed.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Num
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minicogvx.presets import TransformerConfig
from minicogvx.transformer.attention import Attention
from minicogvx.transformer.embeddings import PatchEmbed, TimeEmbedding, sample_latent_size
from minicogvx.transformer.expert_norm import ExpertNorm, LayerNorm, OutputNorm, add_gated, by_modality
from minicogvx.transformer.patchify import unpatchify
from minicogvx.transformer.positions import rope_3d, rotations, sincos_3d


class ExpertTransformer(nn.Module):
    """Predicts v (or what the schedule's `prediction_type` says) from noisy latents, a timestep and text features.

    Set `gradient_checkpointing = True` to recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        d, d_time = config.width, config.time_embed_dim
        self.patch = (config.patch_size_t or 1, config.patch_size, config.patch_size)
        self.patch_embed = PatchEmbed(config)
        self.time_embedding = TimeEmbedding(d, d_time)
        self.ofs_embedding = TimeEmbedding(d_time, d_time) if config.ofs_embed_dim else None
        self.transformer_blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.norm_final = LayerNorm(d, config.norm_eps)
        self.norm_out = OutputNorm(d, d_time, config.norm_eps)
        self.proj_out = nn.Linear(d, self.patch[0] * config.patch_size**2 * config.out_channels)
        nn.init.xavier_uniform_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.gradient_checkpointing = False
        self._tables = {}  # position tables of the sizes met so far; not part of the state dict, always float32

    def forward(self, latents: Float[Tensor, "b c t h w"], timestep: Num[Tensor, " b"],
                text: Float[Tensor, "b n_text d_text"],
                ofs: Num[Tensor, " b"] | None = None) -> Float[Tensor, "b c_out t h w"]:
        """One evaluation of the network.

        Args:
            latents: scaled latents; for image to video the image latents are already concatenated on channels.
            timestep: 0..999, one a sample.
            text: text features, of any length up to `max_text_seq_length`. No mask: padding takes part.
            ofs: the second number that 1.5-5b-i2v is conditioned on (always 2.0 there).

        Raises:
            ValueError: if a size does not fit the config; the sentence names the size.
        """
        check_inputs(self.config, latents, text, ofs)
        num_text, grid = text.shape[1], self.grid(latents)
        rope, sincos = self.positions(grid, num_text, latents.device)

        time = self.time_embedding(timestep)                    # b d_time
        if ofs is not None:
            time = time + self.ofs_embedding(ofs)               # b d_time
        time = F.silu(time)                                     # b d_time: every modulation starts with this SiLU

        x = self.patch_embed(latents, text, sincos)             # b n d: text, then video
        for block in self.transformer_blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, num_text, grid[0], time, rope, use_reentrant=False)
            else:
                x = block(x, num_text, grid[0], time, rope)     # b n d
        x = x[:, num_text:]                                     # b n_video d
        x = self.norm_final(x)                                  # b n_video d
        x = self.norm_out(x, time)                              # b n_video d: two norms in a row, as published
        x = self.proj_out(x)                                    # b n_video c_out*p_t*p*p
        return unpatchify(x, grid, self.patch[0], self.patch[1])  # b c_out t h w

    def grid(self, latents: Float[Tensor, "b c t h w"]) -> tuple[int, int, int]:
        """Patches along time, height and width."""
        t, h, w = (size // patch for size, patch in zip(latents.shape[2:], self.patch))
        return t, h, w

    def positions(self, grid: tuple[int, int, int], num_text: int, device: torch.device) -> tuple[
            Complex[Tensor, "n half_dim"] | None, Float[Tensor, "n_video d"] | None]:
        """The rotary table of the whole sequence and the sincos table of the video tokens, kept for the next call."""
        key = (grid, num_text, device)
        if key not in self._tables:
            if len(self._tables) == 16:
                self._tables.clear()
            # A table made while sampling may serve in training, too; its arithmetic is the CPU's, even on meta.
            with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
                self._tables[key] = position_tables(self.config, grid, num_text, device)
        return self._tables[key]


class Block(nn.Module):
    """Expert norm, attention, gated residual; expert norm, feed-forward, gated residual.

    The departures add their own weights beside the published ones: `ff_text` and `attn1.text` with
    modulation="separate", `norm_time` and `attn_time` with attention="factorised".
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        d, heads = config.width, config.num_attention_heads
        experts, separate = config.modulation != "shared", config.modulation == "separate"
        factorised = config.attention == "factorised"
        self.norm1 = ExpertNorm(d, config.time_embed_dim, config.norm_eps, experts, separate)
        self.attn1 = Attention(d, heads, "frame" if factorised else "all", separate)
        self.norm_time = ExpertNorm(d, config.time_embed_dim, config.norm_eps, experts=False) if factorised else None
        self.attn_time = Attention(d, heads, "time") if factorised else None
        self.norm2 = ExpertNorm(d, config.time_embed_dim, config.norm_eps, experts, separate)
        self.ff = FeedForward(d)
        self.ff_text = FeedForward(d) if separate else None

    def forward(self, x: Float[Tensor, "b n d"], num_text: int, frames: int, time: Float[Tensor, "b d_time"],
                rope: Complex[Tensor, "n half_dim"] | None) -> Float[Tensor, "b n d"]:
        """`x` is text, then video; `time` is the time embedding after its SiLU."""
        y, text_gate, gate = self.norm1(x, num_text, time)      # b n d; b 1 d for text and for video
        y = self.attn1(y, num_text, frames, rope)               # b n d
        x = add_gated(x, y, text_gate, gate, num_text)          # b n d: x + gate y
        if self.attn_time is not None:
            x = self.attend_over_time(x, num_text, frames, time, rope)
        y, text_gate, gate = self.norm2(x, num_text, time)      # b n d; b 1 d for text and for video
        y = self.feed_forward(y, num_text)                      # b n d
        return add_gated(x, y, text_gate, gate, num_text)       # b n d: x + gate y

    def feed_forward(self, y: Float[Tensor, "b n d"], num_text: int) -> Float[Tensor, "b n d"]:
        """The same weights for both modalities; with modulation="separate" the text has its own."""
        if self.ff_text is None:
            return self.ff(y)
        text, video = by_modality(y, num_text)
        return torch.cat([self.ff_text(text), self.ff(video)], dim=1)

    def attend_over_time(self, x: Float[Tensor, "b n d"], num_text: int, frames: int, time: Float[Tensor, "b d_time"],
                         rope: Complex[Tensor, "n half_dim"] | None) -> Float[Tensor, "b n d"]:
        """The 1D half of 2D + 1D attention, for the video tokens, with a norm and a gate of its own."""
        text, video = by_modality(x, num_text)
        y, _, gate = self.norm_time(video, 0, time)
        # At one place rows and columns are equal, so of the 3D rotation only the time part acts.
        y = self.attn_time(y, 0, frames, None if rope is None else rope[num_text:])
        return torch.cat([text, torch.addcmul(video, y, gate)], dim=1)


class FeedForward(nn.Module):
    """d -> 4d -> d with the tanh approximation of GELU (the exact one drifts from the published weights)."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([GELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.net[2](self.net[0](x))


class GELU(nn.Module):
    """A linear layer and its activation; a module of its own only because of the published name `net.0.proj`."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Linear(in_dim, out_dim)

    def forward(self, x: Float[Tensor, "b n d_in"]) -> Float[Tensor, "b n d_out"]:
        return F.gelu(self.proj(x), approximate="tanh")


def position_tables(config: TransformerConfig, grid: tuple[int, int, int], num_text: int,
                    device: torch.device) -> tuple[
        Complex[Tensor, "n half_dim"] | None, Float[Tensor, "n_video d"] | None]:
    """What `ExpertTransformer.positions` keeps: (rotary table, sincos table), None where the config has none."""
    rope = sincos = None
    if "rope" in config.position:
        base = (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
        cos, sin = rope_3d(grid, config.attention_head_dim, base if config.position_scaling == "interpolate" else None)
        rope = rotations(cos, sin, num_text).to(device)
    if config.position == "sincos":
        sincos = sincos_3d(grid, config.width, config.spatial_interpolation_scale,
                           config.temporal_interpolation_scale).to(device)
    return rope, sincos


def check_inputs(config: TransformerConfig, latents: Float[Tensor, "b c t h w"],
                 text: Float[Tensor, "b n_text d_text"], ofs: Num[Tensor, " b"] | None) -> None:
    """Raise a ValueError of one sentence if a size does not fit the config."""
    _, c, t, h, w = latents.shape
    p, p_t = config.patch_size, config.patch_size_t or 1
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
    size = sample_latent_size(config)
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
    d, d_time, p_t, p = config.width, config.time_embed_dim, config.patch_size_t or 1, config.patch_size
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
