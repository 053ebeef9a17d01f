"""Configs that cannot be built are rejected on creation, in one sentence that says what would be valid."""

import json
import math
from dataclasses import asdict, fields, replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from minicogvx.interop.configs import from_diffusers, to_diffusers
from minicogvx.presets import PRESETS, ScheduleConfig, TextConfig, TransformerConfig, VAEConfig
from minicogvx.ranges import RANGES, check_fields, check_number, shown
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE

CONFIGS = (VAEConfig(), TransformerConfig(), ScheduleConfig(), TextConfig())


def refused(config, name: str, value) -> str:
    """The sentence about one field; past __init__, where the shape checks of the test run would speak first."""
    broken = replace(config)
    object.__setattr__(broken, name, value)
    with pytest.raises(ValueError) as error:
        broken.__post_init__()
    assert "\n" not in str(error.value) and len(str(error.value)) < 250
    return str(error.value)


def test_no_number_may_be_absurd(subtests):
    for config in CONFIGS:
        with subtests.test(type(config).__name__):
            for field in fields(config):
                value = getattr(config, field.name)
                if isinstance(value, bool) or not isinstance(value, (int, float, tuple, type(None))):
                    continue
                for odd in (0, -1, 2**70, 10**400, math.nan, math.inf, -math.inf, "4", True, [8], {}):
                    if odd == 0 and RANGES[field.name][0] == 0:
                        continue
                    odd = (odd,) if isinstance(value, tuple) else odd
                    assert refused(config, field.name, odd).startswith(f"{field.name} is ")


def test_every_number_of_a_config_has_a_range_and_the_presets_lie_in_it():
    numbers = {field.name for config in CONFIGS for field in fields(config)
               if field.type in (int, float, int | None, tuple[int, ...])}
    assert numbers <= set(RANGES)
    for preset in PRESETS.values():
        for part in (preset, preset.vae, preset.transformer, preset.schedule, preset.text):
            check_fields(part)


def test_values_that_do_not_go_together(subtests):
    transformer = TransformerConfig
    cases = [
        (VAEConfig(), "block_out_channels", (), "block_out_channels is ()"),
        (VAEConfig(), "block_out_channels", (32,) * 9, "block_out_channels has 9 entries"),
        (VAEConfig(), "block_out_channels", (32, 48, 64, 64), "block_out_channels has 48, which norm_num_groups=32"),
        (VAEConfig(), "temporal_compression_ratio", 3, "temporal_compression_ratio is 3; with 4 stages"),
        (VAEConfig(block_out_channels=(32, 64, 64)), "temporal_compression_ratio", 8,
         "temporal_compression_ratio is 8; with 3 stages it must be a power of two up to 4"),
        (VAEConfig(), "invert_scale_latents", 1, "invert_scale_latents is 1; it must be true or false"),
        (VAEConfig(), "time_padding", "reflect", "time_padding is 'reflect'; it must be one of 'first', 'zeros'"),
        (VAEConfig(), "norm_over", "clip", "norm_over is 'clip'; it must be one of 'chunk', 'frame'"),
        (VAEConfig(), "resampling", "cubic", "resampling is 'cubic'; it must be one of 'plain', 'residual'"),
        (VAEConfig(block_out_channels=(32, 96, 96)), "resampling", "residual", "block_out_channels has 32 beside 96; "),
        (VAEConfig(), "first_frame", "never", "first_frame is 'never'; it must be one of 'parity', 'start'"),
        (transformer(), "attention_head_dim", 40, "attention_head_dim is 40; 3D RoPE"),
        (transformer(position="sincos", num_attention_heads=3), "attention_head_dim", 5, "width is 15; "),
        (transformer(position="none", num_attention_heads=1), "attention_head_dim", 7, "width is 7; the timestep's"),
        (transformer(), "position", "alibi", "position is 'alibi'; it must be one of 'rope', "),
        (transformer(), "position_scaling", "stretch", "position_scaling is 'stretch'; it must be one of "),
        (transformer(), "modulation", "film", "modulation is 'film'; it must be one of 'expert', "),
        (transformer(), "attention", "window", "attention is 'window'; it must be one of 'full', 'factorised'"),
        (transformer(), "patch_size", 64, "sample_height is 60; it must be at least patch_size=64"),
        (transformer(position="rope+learned"), "patch_size", 7, "sample_height is 60; it must be a multiple of"),
        (transformer(position="learned"), "sample_width", 91, "sample_width is 91; it must be a multiple of"),
        (transformer(), "ofs_embed_dim", 256, "ofs_embed_dim is 256; "),
        (ScheduleConfig(), "beta_end", 0.0001, "beta_start is 0.00085 and beta_end 0.0001"),
        (ScheduleConfig(), "sampler", "euler", "sampler is 'euler'; it must be one of 'ddim', 'dpm'"),
        (ScheduleConfig(), "prediction_type", "flow", "prediction_type is 'flow'; it must be one of "),
        (ScheduleConfig(), "prediction_type", "epsilon", "prediction_type is 'epsilon' with rescale_betas_zero"),
        (TextConfig(), "feed_forward_proj", "gated-tanh", "feed_forward_proj is 'gated-tanh'; it must be one of"),
        (PRESETS["toy"], "fps", 10**9, "fps is 1000000000; it must be a whole number from 1 to 1000"),
    ]
    for config, name, value, sentence in cases:
        with subtests.test(name, value=value):
            assert refused(config, name, value).startswith(sentence)
    assert TransformerConfig(position="none", attention_head_dim=20).width == 960  # no table needs a multiple of 16


def test_the_largest_sizes_can_still_be_refused_by_their_weights():
    """On the meta device nothing overflows: what is in range becomes a module, whose shapes the weights do not fit."""
    most = {name: high for name, (_, high) in RANGES.items()}
    huge = {name: most[name] for name in ("attention_head_dim", "num_attention_heads", "text_embed_dim", "patch_size",
                                          "sample_height", "sample_width", "sample_frames", "max_text_seq_length")}
    with torch.device("meta"):
        model = ExpertTransformer(TransformerConfig(
            **huge, num_layers=1, in_channels=65_536, out_channels=65_536, position="rope+learned"))
        vae = CausalVAE(VAEConfig(block_out_channels=(65_536, 65_536), temporal_compression_ratio=2, norm_num_groups=1,
                                  latent_channels=65_536, layers_per_block=1))
    assert model.patch_embed.pos_embedding.is_meta and vae.encoder.conv_in.conv.weight.is_meta


def test_a_config_file_is_refused_for_the_same_numbers(subtests):
    for config in CONFIGS[:3]:
        with subtests.test(type(config).__name__):
            values = to_diffusers(config)
            for name in set(values) & set(RANGES):
                for odd in (-1, 10**400, float("nan"), None, "x"):
                    if odd is None and "None" in str(type(config).__dataclass_fields__[name].type):
                        continue
                    given = json.loads(json.dumps(values | {name: [odd] if isinstance(values[name], list) else odd}))
                    with pytest.raises(ValueError, match=f"here: {name} is ") as error:
                        from_diffusers(type(config), given, "here")
                    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_numbers_by_themselves():
    check_number("fps", 24)
    check_number("guidance_scale", 6, whole=False)
    with pytest.raises(ValueError, match="fps is 24.0; it must be a whole number from 1 to 1000"):
        check_number("fps", 24.0)
    for number in (np.int64(24), np.uint8(24)):
        check_number("fps", number)
    for number in (np.float32(6), np.int16(6), Fraction(13, 2)):
        check_number("guidance_scale", number, whole=False)
    for odd in (np.float64(24), np.True_, "24", 24j, np.array([24])):
        with pytest.raises(ValueError, match="^fps is .*; it must be a whole number"):
            check_number("fps", odd)
    with pytest.raises(ValueError, match="^guidance_scale is .*nan"):
        check_number("guidance_scale", np.float32("nan"), whole=False)
    for value in (torch.eye(3), np.eye(2), type("Odd", (), {"__repr__": lambda self: "a\n  b"})()):
        assert "\n" not in shown(value)
    assert shown(np.eye(2)) == "array([[1., 0.], [0., 1.]])"
    assert shown("a\nb") == "'a\\nb'" and shown("x" * 99).endswith("(101 characters)")
    assert asdict(VAEConfig())["first_frame"] == "parity"
