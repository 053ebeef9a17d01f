"""The presets have the published numbers, are immutable, and reject what cannot work."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from minicogvx.presets import PRESETS, Preset, ScheduleConfig, TextConfig, TransformerConfig, VAEConfig, preset

PUBLISHED = ("2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v")
EVERY = ("micro", "toy", "small", *PUBLISHED)


def test_there_are_eight_presets_by_name():
    assert tuple(PRESETS) == EVERY
    assert all(preset(name).name == name and preset(name) is PRESETS[name] for name in EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_presets_are_frozen_all_the_way_down(name):
    whole = preset(name)
    for part in (whole, whole.vae, whole.transformer, whole.schedule, whole.text):
        for field in fields(part):
            with pytest.raises(FrozenInstanceError):
                setattr(part, field.name, None)
    hash(whole)  # no list hides inside


# layers, heads, in_channels, patch_size_t, position, ofs_embed_dim
TRANSFORMERS = {"2b":         (30, 30, 16, None, "sincos", None),
                "5b":         (42, 48, 16, None, "rope", None),
                "5b-i2v":     (42, 48, 32, None, "rope+learned", None),
                "1.5-5b":     (42, 48, 16, 2, "rope", None),
                "1.5-5b-i2v": (42, 48, 32, 2, "rope", 512)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_transformer_numbers(name):
    config = preset(name).transformer
    assert (config.num_layers, config.num_attention_heads, config.in_channels, config.patch_size_t, config.position,
            config.ofs_embed_dim) == TRANSFORMERS[name]
    assert config.width == {30: 1920, 48: 3072}[config.num_attention_heads]
    assert (config.attention_head_dim, config.out_channels, config.patch_size) == (64, 16, 2)
    assert (config.text_embed_dim, config.max_text_seq_length, config.time_embed_dim) == (4096, 226, 512)
    assert (config.spatial_interpolation_scale, config.temporal_interpolation_scale) == (1.875, 1.0)
    assert (config.norm_eps, config.temporal_compression_ratio) == (1e-5, 4)
    assert (config.sample_height, config.sample_width, config.sample_frames) == (
        (300, 300, 81) if name.startswith("1.5") else (60, 90, 49))
    assert config.position_scaling == ("extrapolate" if name.startswith("1.5") else "interpolate")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_vae_schedule_and_video_numbers(name):
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
    assert whole.transformer.image_to_video == name.endswith("i2v")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_text_encoder_is_t5_xxl(name):
    assert preset(name).text == TextConfig(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                                           vocab_size=32128, feed_forward_proj="gated-gelu")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_departure_from_the_published_system_is_never_a_published_preset(name):
    whole = preset(name)
    assert (whole.vae.time_padding, whole.vae.norm_over, whole.vae.first_frame) == ("first", "chunk", "parity")
    assert (whole.transformer.modulation, whole.transformer.attention) == ("expert", "full")
    assert (whole.schedule.rescale_betas_zero_snr, whole.schedule.prediction_type) == (True, "v_prediction")


@pytest.mark.parametrize("name", EVERY)
def test_the_parts_of_a_preset_fit_together(name):
    whole = preset(name)
    vae, transformer, text = whole.vae, whole.transformer, whole.text
    assert transformer.out_channels == vae.latent_channels
    assert transformer.in_channels == vae.latent_channels * (2 if whole.transformer.image_to_video else 1)
    assert transformer.text_embed_dim == text.d_model
    assert transformer.temporal_compression_ratio == vae.temporal_compression_ratio
    frames, height, width = whole.video_size
    assert frames % vae.temporal_compression_ratio == 1
    cell = vae.spatial_compression_ratio * transformer.patch_size
    assert height % cell == 0 and width % cell == 0
    if not name.startswith("1.5"):
        assert transformer.sample_height * vae.spatial_compression_ratio == height
        assert transformer.sample_width * vae.spatial_compression_ratio == width


@pytest.mark.parametrize(("config", "changed", "sentence"), [
    (VAEConfig(), {"temporal_compression_ratio": 3},
     "temporal_compression_ratio is 3; with 4 stages it must be a power of two up to 8"),
    (VAEConfig(block_out_channels=(32, 64, 64)), {"temporal_compression_ratio": 8},
     "temporal_compression_ratio is 8; with 3 stages it must be a power of two up to 4"),
    (VAEConfig(), {"block_out_channels": (128, 250, 256, 512)},
     "block_out_channels has 250, which norm_num_groups=32 "),
    (VAEConfig(), {"time_padding": "reflect"}, "time_padding is 'reflect'; it must be one of 'first', 'zeros'"),
    (VAEConfig(), {"norm_over": "clip"}, "norm_over is 'clip'; it must be one of 'chunk', 'frame'"),
    (VAEConfig(), {"first_frame": "never"}, "first_frame is 'never'; it must be one of 'parity', 'start'"),
    (TransformerConfig(), {"attention_head_dim": 40}, "attention_head_dim is 40; 3D RoPE"),
    (TransformerConfig(position="sincos"), {"attention_head_dim": 5, "num_attention_heads": 3}, "width is 15; "),
    (TransformerConfig(), {"position": "alibi"}, "position is 'alibi'; it must be one of 'rope', "),
    (TransformerConfig(), {"position_scaling": "stretch"}, "position_scaling is 'stretch'; "),
    (TransformerConfig(), {"modulation": "film"}, "modulation is 'film'; it must be one of 'expert', "),
    (TransformerConfig(), {"attention": "window"}, "attention is 'window'; it must be one of 'full', 'factorised'"),
    (ScheduleConfig(), {"sampler": "euler"}, "sampler is 'euler'; it must be one of 'ddim', 'dpm'"),
    (ScheduleConfig(), {"prediction_type": "flow"}, "prediction_type is 'flow'; it must be one of "),
    (ScheduleConfig(), {"snr_shift_scale": 0.0}, "snr_shift_scale is 0.0; it must be a number from"),
])
def test_a_config_that_cannot_work_is_refused_in_one_sentence(config, changed, sentence):
    broken = replace(config)
    for name, value in changed.items():  # past __init__, where the shape checks of the test run would speak first
        object.__setattr__(broken, name, value)
    with pytest.raises(ValueError) as error:
        broken.__post_init__()
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def test_the_models_that_are_trained_here_state_where_they_depart():
    for name in EVERY[:3]:
        assert (preset(name).vae.first_frame, preset(name).transformer.position_scaling) == ("start", "extrapolate")


def test_position_none_needs_no_special_head_dimension():
    assert TransformerConfig(position="none", attention_head_dim=20).width == 960


def test_an_unknown_preset_is_answered_with_the_names_there_are():
    with pytest.raises(ValueError) as error:
        preset("nope")
    assert str(error.value) == f"there is no preset 'nope'; the presets are {', '.join(EVERY)}"


def test_a_preset_is_changed_by_replace_and_not_in_place():
    wider = replace(preset("toy"), fps=16)
    assert isinstance(wider, Preset) and (wider.fps, preset("toy").fps) == (16, 8)
