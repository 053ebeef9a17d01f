"""The presets have the published numbers, are immutable, and reject what cannot work."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from minicogvx.presets import PRESETS, TextConfig, preset

PUBLISHED = ("2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v")
EVERY = ("micro", "toy", "small", *PUBLISHED)
# layers, heads, in_channels, patch_size_t, position, ofs_embed_dim
TRANSFORMERS = {"2b":         (30, 30, 16, None, "sincos", None),
                "5b":         (42, 48, 16, None, "rope", None),
                "5b-i2v":     (42, 48, 32, None, "rope+learned", None),
                "1.5-5b":     (42, 48, 16, 2, "rope", None),
                "1.5-5b-i2v": (42, 48, 32, 2, "rope", 512)}


def test_presets_are_frozen_all_the_way_down(subtests):
    assert tuple(PRESETS) == EVERY
    for name in EVERY:
        with subtests.test(name):
            whole = preset(name)
            assert whole.name == name and whole is PRESETS[name]
            for part in (whole, whole.vae, whole.transformer, whole.schedule, whole.text):
                for field in fields(part):
                    with pytest.raises(FrozenInstanceError):
                        setattr(part, field.name, None)
            hash(whole)  # no list hides inside
    assert (replace(preset("toy"), fps=16).fps, preset("toy").fps) == (16, 8)
    with pytest.raises(ValueError, match=f"'nope'.* {', '.join(EVERY)}"):
        preset("nope")


def test_published_transformers(subtests):
    for name, numbers in TRANSFORMERS.items():
        with subtests.test(name):
            config = preset(name).transformer
            assert (config.num_layers, config.num_attention_heads, config.in_channels, config.patch_size_t,
                    config.position, config.ofs_embed_dim) == numbers
            assert config.width == {30: 1920, 48: 3072}[config.num_attention_heads]
            assert (config.attention_head_dim, config.out_channels, config.patch_size) == (64, 16, 2)
            assert (config.text_embed_dim, config.max_text_seq_length, config.time_embed_dim) == (4096, 226, 512)
            assert (config.spatial_interpolation_scale, config.temporal_interpolation_scale) == (1.875, 1.0)
            assert (config.norm_eps, config.temporal_compression_ratio) == (1e-5, 4)
            assert (config.sample_height, config.sample_width, config.sample_frames) == (
                (300, 300, 81) if name.startswith("1.5") else (60, 90, 49))
            assert config.position_scaling == ("extrapolate" if name.startswith("1.5") else "interpolate")
            assert config.image_to_video == name.endswith("i2v")
            assert (config.modulation, config.attention) == ("expert", "full")  # the departures


def test_published_vaes_schedules_text_encoders_and_videos(subtests):
    for name in PUBLISHED:
        with subtests.test(name):
            whole, is_15 = preset(name), name.startswith("1.5")
            vae, schedule = whole.vae, whole.schedule
            assert (vae.block_out_channels, vae.latent_channels, vae.layers_per_block) == ((128, 256, 256, 512), 16, 3)
            assert (vae.in_channels, vae.out_channels, vae.norm_num_groups, vae.norm_eps) == (3, 3, 32, 1e-6)
            assert (vae.temporal_compression_ratio, vae.spatial_compression_ratio) == (4, 8)
            assert vae.scaling_factor == (1.15258426 if name == "2b" else 0.7)
            assert vae.invert_scale_latents == (name == "1.5-5b-i2v")
            assert (schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end) == (1000, 0.00085, 0.012)
            assert schedule.snr_shift_scale == (3.0 if name == "2b" else 1.0)
            assert schedule.sampler == ("ddim" if name == "2b" else "dpm")
            assert (*whole.video_size, whole.fps) == ((81, 768, 1360, 16) if is_15 else (49, 480, 720, 8))
            assert whole.text == TextConfig(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                                            vocab_size=32128, feed_forward_proj="gated-gelu")
            assert (vae.time_padding, vae.norm_over, vae.first_frame) == ("first", "chunk", "parity")  # the departures
            assert vae.resampling == "plain"
            with pytest.raises(ValueError, match=f"vae.resampling is 'residual'; in the published model '{name}' it"):
                replace(whole, vae=replace(vae, resampling="residual"))
            replace(whole, vae=replace(vae, resampling="residual"), name="mine")
            assert (schedule.rescale_betas_zero_snr, schedule.prediction_type) == (True, "v_prediction")


def test_the_parts_of_a_preset_fit_together(subtests):
    for name in EVERY:
        with subtests.test(name):
            whole = preset(name)
            vae, transformer, text = whole.vae, whole.transformer, whole.text
            assert transformer.out_channels == vae.latent_channels
            assert transformer.in_channels == vae.latent_channels * (2 if transformer.image_to_video else 1)
            assert transformer.text_embed_dim == text.d_model
            assert transformer.temporal_compression_ratio == vae.temporal_compression_ratio
            frames, height, width = whole.video_size
            assert frames % vae.temporal_compression_ratio == 1
            cell = vae.spatial_compression_ratio * transformer.patch_size
            assert height % cell == 0 and width % cell == 0
            if not name.startswith("1.5"):
                assert transformer.sample_height * vae.spatial_compression_ratio == height
                assert transformer.sample_width * vae.spatial_compression_ratio == width
            if name not in PUBLISHED:  # where those that are trained here depart
                assert (vae.first_frame, transformer.position_scaling) == ("start", "extrapolate")
