"""The sizes of the checks: the published ones, and tiny ones to test the checks themselves on a CPU."""

from dataclasses import dataclass, replace

from minicogvx.presets import ScheduleConfig, TransformerConfig, VAEConfig, preset


@dataclass(frozen=True)
class Sizes:
    """Clips of transformers are (frames, height, width) in latents, those of VAEs the same in pixels."""

    transformers: dict[str, TransformerConfig]
    vae: VAEConfig
    schedule: ScheduleConfig  # of the 5B
    parity_frames: int  # latents; height and width are the model's own
    vae_parity: tuple[int, int, int]
    layers: int  # of the 5B for packing, FSDP and torch.compile, whose time to compile grows with layers
    layers_frames: int
    pack: tuple[tuple[int, int, int, int], ...]  # frames, height, width, text tokens
    vae_to_compile: VAEConfig
    vae_training: tuple[int, int, int]
    full_frames: int  # latents of the clip whose speed is measured
    large_vae: VAEConfig
    large: tuple[int, int, int]
    lora_rank: int
    matrix: int  # side of the matrix product for the peak rate
    rounds: int

    def pixels(self, config: TransformerConfig, latents: int) -> str:
        """A clip of so many latents at the size of `config`, such as 480x720x49: height, width, frames."""
        space, time = self.vae.spatial_compression_ratio, self.vae.temporal_compression_ratio
        return f"{space * config.sample_height}x{space * config.sample_width}x{time * (latents - 1) + 1}"

    @property
    def cut(self) -> TransformerConfig:
        """The 5B with its first layers only."""
        return replace(self.transformers["5b"], num_layers=self.layers)

    @property
    def cut_label(self) -> str:
        """For the table."""
        return f"5b, {self.layers} of {self.transformers['5b'].num_layers} layers"


PUBLISHED = Sizes(
    transformers={name: preset(name).transformer for name in ("2b", "5b")}, vae=preset("5b").vae,
    schedule=preset("5b").schedule, parity_frames=3, vae_parity=(17, 480, 720), layers=6, layers_frames=5,
    pack=((1, 60, 90, 226), (5, 30, 46, 100), (3, 60, 90, 226), (5, 30, 46, 100), (2, 46, 30, 17)),
    vae_to_compile=replace(preset("5b").vae, layers_per_block=1), vae_training=(9, 240, 360), full_frames=13,
    large_vae=preset("1.5-5b").vae, large=(81, 768, 1360), lora_rank=128, matrix=8192, rounds=3)


def _tiny_transformer(config: TransformerConfig) -> TransformerConfig:
    """A tiny model with the same options."""
    return replace(config, num_attention_heads=2, attention_head_dim=16, num_layers=2, text_embed_dim=24,
                   max_text_seq_length=7, time_embed_dim=20, sample_height=4, sample_width=6, sample_frames=9)


_TINY_VAE = replace(PUBLISHED.vae, latent_channels=4, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
                    temporal_compression_ratio=2, sample_height=16, sample_width=16)

TINY = replace(
    PUBLISHED, transformers={name: _tiny_transformer(config) for name, config in PUBLISHED.transformers.items()},
    vae=_TINY_VAE, vae_parity=(17, 8, 12), layers=1, layers_frames=2,
    pack=((1, 4, 6, 7), (2, 2, 4, 3), (3, 4, 6, 7), (2, 2, 4, 3)),
    # one stage: on a CPU, tracing takes the time
    vae_to_compile=replace(_TINY_VAE, block_out_channels=(8,), temporal_compression_ratio=1), vae_training=(3, 4, 4),
    full_frames=3, large_vae=_TINY_VAE, large=(5, 12, 20), lora_rank=2, matrix=256, rounds=1)
