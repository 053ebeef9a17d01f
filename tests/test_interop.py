"""Files of weights and config files: read bit for bit if they fit, otherwise rejected in one sentence."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXTransformer3DModel,
)
from safetensors.torch import load_file
from torch import nn

from minicogvx.interop import safetensors_files
from minicogvx.interop.configs import departures, from_diffusers, own_fields, to_diffusers, unsupported
from minicogvx.interop.safetensors_files import load_into, read_sharded, read_tensors, write_sharded, write_tensors
from minicogvx.presets import PRESETS, ScheduleConfig, TransformerConfig, VAEConfig
from tests.tiny import same

PUBLISHED = ("2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v")


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4), "half": torch.randn(2, 2).bfloat16(),
            "turned": torch.randn(3, 5).T, "scalar": torch.tensor(2.0)}


def one_sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 400 and not text.endswith("."), text
    return text


# ---- files


def test_tensors_come_back_bit_for_bit(tmp_path):
    path = write_tensors(tmp_path / "new" / "x.safetensors", some_tensors(), {"made by": "a test"})
    assert same(read_tensors(path), some_tensors())
    assert same(load_file(path), some_tensors())
    assert [file.name for file in path.parent.iterdir()] == ["x.safetensors"]
    whole = torch.arange(12.0)  # views of one storage
    path = write_tensors(tmp_path / "x.safetensors", {"q": whole[:4], "k": whole[4:8], "again": whole[:4].clone()})
    assert torch.equal(read_tensors(path)["k"], whole[4:8])


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", some_tensors())
    for bad in (float("nan"), float("inf")):
        tensors = some_tensors()
        tensors["a.bias"][1] = bad
        with pytest.raises(ValueError, match="a.bias holds NaN or infinity") as error:
            write_tensors(path, tensors)
        one_sentence(error)
        assert same(read_tensors(path), some_tensors()) and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="big holds NaN or infinity as float16"):  # a cast that overflows
        write_sharded(tmp_path / "new", {"big": torch.tensor([1e6])}, dtype=torch.float16)
    assert not list(tmp_path.glob("new/*"))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_tensors(tmp_path / "x.safetensors", some_tensors())

    def full(tensors, part, metadata):
        Path(part).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors_files, "save_file", full)
    with pytest.raises(OSError):
        write_tensors(path, {"b": torch.ones(1)})
    assert same(read_tensors(path), some_tensors()) and len(list(tmp_path.iterdir())) == 1


def foreign_files(folder: Path) -> dict[str, tuple[Path, str]]:
    whole = write_tensors(folder / "whole.safetensors", some_tensors()).read_bytes()
    torch.save(some_tensors(), folder / "zip")
    contents = {"empty": (b"", "is empty"), "truncated": (whole[:-5], "cut short"), "header": (whole[:40], "cut short"),
                "long": (whole + b"xx", "cut short or damaged"),
                "text": (b"weights go here\n" * 9, "no safetensors file"),
                "short": (b"{}", "no safetensors file"),
                "pickle": (pickle.dumps({"a": 1}), "is a pickle"),
                "torch": ((folder / "zip").read_bytes(), "is a pickle"),
                "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
                "shape": (whole.replace(b"[4,3]", b"[9,3]"), "damaged")}
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: (folder / name, message) for name, (_, message) in contents.items()}


def test_foreign_and_truncated_files_are_refused(tmp_path, subtests):
    for name, (path, message) in foreign_files(tmp_path).items():
        with subtests.test(name):
            with pytest.raises(ValueError, match=message) as error:
                read_tensors(path)
            assert str(path) in one_sentence(error)
    with pytest.raises(FileNotFoundError, match="there is no file") as error:
        read_tensors(tmp_path / "absent")
    one_sentence(error)


def test_shards_are_those_of_diffusers(tmp_path):
    tensors = {f"layer.{i}": torch.randn(100, generator=torch.Generator().manual_seed(i)) for i in range(5)}
    write_sharded(tmp_path / "three", tensors, max_shard_bytes=900)
    names = sorted(file.name for file in (tmp_path / "three").iterdir())
    stem = "diffusion_pytorch_model"
    assert names == [f"{stem}-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + [f"{stem}.safetensors.index.json"]
    index = json.loads((tmp_path / "three" / names[-1]).read_text())
    assert index["metadata"] == {"total_size": 2000} and index["weight_map"]["layer.2"] == names[1]
    assert same(read_sharded(tmp_path / "three"), tensors)
    write_sharded(tmp_path / "one", tensors, max_shard_bytes=2000)
    assert [file.name for file in (tmp_path / "one").iterdir()] == [f"{stem}.safetensors"]
    write_sharded(tmp_path / "tight", tensors, dtype=torch.float16, max_shard_bytes=1)
    assert len(list((tmp_path / "tight").iterdir())) == 6
    assert same(read_sharded(tmp_path / "tight"), {name: tensor.half() for name, tensor in tensors.items()})


def test_broken_shards_and_folders_without_weights_are_refused_and_a_pickle_never_opened(tmp_path, subtests):
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        read_sharded(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="as a pickle, diffusion_pytorch_model.bin"):
        read_sharded(tmp_path)
    write_sharded(tmp_path, some_tensors(), max_shard_bytes=50)
    index = next(tmp_path.glob("*.index.json"))
    good = json.loads(index.read_text())["weight_map"]
    cases = {"must be one beside it": {"a": "../x.safetensors"}, "no weight_map": {},
             "there is no file": {"a": "x.safetensors"}, "lacks the tensor lost": good | {"lost": good["half"]}}
    for message, weight_map in cases.items():
        index.write_text(json.dumps({"weight_map": weight_map}))
        with subtests.test(message):
            with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
                read_sharded(tmp_path)
            one_sentence(error)
    index.write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_sharded(tmp_path)


def test_load_into_checks_before_it_copies():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    good = {name: torch.ones_like(tensor) for name, tensor in before.items()}
    for bad, message in [({k: v for k, v in good.items() if "weight" in k}, r"lacks the tensor 0.bias \(and 1 more\)"),
                         (good | {"x": torch.ones(1)}, "has a tensor x,"),
                         (good | {"1.bias": torch.ones(3)}, r"1.bias in here has the shape \(3,\); .* \(2,\)"),
                         (good | {"1.bias": torch.ones(2, dtype=torch.int8)}, "1.bias in here holds int8")]:
        with pytest.raises(ValueError, match=message) as error:
            load_into(module, bad, "here")
        one_sentence(error)
        assert same(module.state_dict(), before)
    load_into(module, good, "here")
    assert same(module.state_dict(), good) and module[0].weight is not good["0.weight"]
    with torch.device("meta"):
        module = nn.Linear(3, 4)
    load_into(module, {"weight": good["0.weight"], "bias": good["0.bias"]}, "here")
    assert module.weight.data_ptr() == good["0.weight"].data_ptr() and module.weight.requires_grad


# ---- configs


def their_config(config) -> dict:
    """What diffusers itself saves for a model made with our config file."""
    values = to_diffusers(config)
    makers = (AutoencoderKLCogVideoX, CogVideoXTransformer3DModel, CogVideoXDDIMScheduler, CogVideoXDPMScheduler)
    make, = (maker for maker in makers if maker.__name__ == values["_class_name"])
    with torch.device("meta"):
        made = make.from_config(values)
    return json.loads(made.to_json_string())


def shrunken(config: TransformerConfig) -> TransformerConfig:
    return replace(config, num_attention_heads=1, attention_head_dim=32, num_layers=1, sample_height=4, sample_width=4,
                   sample_frames=9, max_text_seq_length=8)


def test_configs_are_those_that_diffusers_saves(subtests):
    for name, preset in PRESETS.items():
        with subtests.test(name):
            vae = replace(preset.vae, block_out_channels=(8, 8, 8, 16), norm_num_groups=4)
            for config in (preset.schedule, shrunken(preset.transformer), vae):
                ours, theirs = to_diffusers(config), their_config(config)
                assert {key: value for key, value in theirs.items() if key not in ours} == {}
                assert {key: value for key, value in ours.items() if theirs.get(key) != value} == {}
                if name.startswith("1.5") and config is not preset.schedule and config is not vae:
                    assert ours["patch_bias"] is False  # as published


def test_configs_survive_both_ways(subtests):
    for name, preset in PRESETS.items():
        with subtests.test(name):
            for config in (preset.schedule, preset.transformer, preset.vae):
                values = json.loads(json.dumps(to_diffusers(config)))
                back = from_diffusers(type(config), values, "here")
                own = json.loads(json.dumps(own_fields(config)))
                assert from_diffusers(type(config), values, "here", own) == config
                assert unsupported(config) == []
                if name in PUBLISHED:
                    assert back == config and own_fields(config) == {} and departures(config) == []


def test_missing_fields_have_the_defaults_of_diffusers():
    transformer = from_diffusers(TransformerConfig, {"_class_name": "CogVideoXTransformer3DModel"}, "here")
    assert transformer.num_layers == 30 and transformer.position == "sincos" and transformer.patch_size_t is None
    for config, make in [(transformer, CogVideoXTransformer3DModel), (VAEConfig(), AutoencoderKLCogVideoX)]:
        with torch.device("meta"):
            expected = make()
        ours = to_diffusers(config)
        assert {k: v for k, v in ours.items() if not k.startswith("_") and (expected.config[k] != v)} == {
            k: list(expected.config[k]) for k in ours if isinstance(expected.config.get(k), tuple)}
    values = {"_class_name": "CogVideoXDPMScheduler"}
    expected = CogVideoXDPMScheduler().config
    schedule = vars(from_diffusers(ScheduleConfig, values, "here"))
    assert schedule.pop("sampler") == "dpm" and all(value == expected[name] for name, value in schedule.items())


def test_published_oddities():
    """1.5 files say patch_bias false though the bias is there; VAE files may write the ratio as 4.0."""
    values = to_diffusers(PRESETS["1.5-5b"].transformer) | {"patch_bias": False}
    assert from_diffusers(TransformerConfig, values, "here") == PRESETS["1.5-5b"].transformer
    values = to_diffusers(PRESETS["5b"].vae) | {"temporal_compression_ratio": 4.0, "scaling_factor": 1}
    assert from_diffusers(VAEConfig, values, "here") == replace(PRESETS["5b"].vae, scaling_factor=1.0)
    with pytest.warns(UserWarning, match="'novelty'"):
        from_diffusers(VAEConfig, values | {"novelty": 1}, "here")


BAD = [
    (TransformerConfig(), {"_class_name": "SD3Transformer2DModel"}, "must be CogVideoXTransformer3DModel"),
    (TransformerConfig(), {"num_layers": "many"}, "num_layers is 'many'; it must be a whole number from 1 to"),
    (TransformerConfig(), {"num_layers": 0}, "num_layers is 0"),
    (TransformerConfig(), {"num_layers": True}, "num_layers is True"),
    (TransformerConfig(), {"patch_size_t": 0.5}, "patch_size_t is 0.5; it must be a whole number from 1 to"),
    (TransformerConfig(), {"attention_head_dim": 40}, "here: attention_head_dim is 40"),
    (TransformerConfig(), {"use_rotary_positional_embeddings": 1}, "embeddings=1; it must be true or false"),
    (TransformerConfig(), {"use_learned_positional_embeddings": "no"}, "embeddings='no'; it must be true or false"),
    (TransformerConfig(), {"activation_fn": "gelu"}, "only 'gelu-approximate' is supported"),
    (TransformerConfig(), {"patch_bias": False}, "patch_bias=False"),
    (TransformerConfig(position="sincos"), {"use_learned_positional_embeddings": True}, "positions need rotary"),
    (VAEConfig(), {"block_out_channels": 128}, "block_out_channels is 128; it must be a list"),
    (VAEConfig(), {"block_out_channels": []}, "block_out_channels is"),
    (VAEConfig(), {"block_out_channels": [32, "64"]}, "block_out_channels is '64'"),
    (VAEConfig(), {"scaling_factor": float("nan")}, "scaling_factor is nan; it must be a number"),
    (VAEConfig(), {"scaling_factor": 10**400}, "scaling_factor is 1000.*401 characters"),
    (VAEConfig(), {"invert_scale_latents": 0.5}, "invert_scale_latents is 0.5; it must be true or false"),
    (VAEConfig(), {"use_quant_conv": True}, "use_quant_conv=True"),
    (VAEConfig(), {"down_block_types": ["DownBlock2D"]}, "down_block_types=.'DownBlock2D'.; it must be"),
    (VAEConfig(), {"up_block_types": 5}, "up_block_types=5; it must be 'CogVideoXUpBlock3D' 4 times"),
    (VAEConfig(), {"up_block_types": ["CogVideoXUpBlock3D"] * 3}, "it must be 'CogVideoXUpBlock3D' 4 times"),
    (TransformerConfig(), {"quantization_config": {"quant_method": "torchao"}}, "has a quantization_config"),
    (ScheduleConfig(), {"_class_name": "EulerDiscreteScheduler"}, "CogVideoXDDIMScheduler or CogVideoXDPMScheduler"),
    (ScheduleConfig(), {"prediction_type": "flow"}, "prediction_type is 'flow'; it must be one of 'v_prediction'"),
    (ScheduleConfig(), {"beta_schedule": "linear"}, "beta_schedule='linear'"),
    (ScheduleConfig(), {"timestep_spacing": "karras"}, "timestep_spacing is 'karras'"),
    (ScheduleConfig(), {"num_train_timesteps": 10**12}, "num_train_timesteps is 10000"),
]


def test_bad_configs_are_refused(subtests):
    for config, change, message in BAD:
        with subtests.test(message):
            with pytest.raises(ValueError, match=message) as error:
                from_diffusers(type(config), to_diffusers(config) | change, "here")
            assert one_sentence(error).startswith("here")


def test_departures_are_named_and_kept(subtests):
    cases = [
        (VAEConfig(norm_over="frame", time_padding="zeros"), ["time_padding='zeros'", "norm_over='frame'"]),
        (VAEConfig(resampling="residual"), ["resampling='residual'"]),
        (VAEConfig(), []),
        (VAEConfig(first_frame="start"), ["first_frame='start'"]),
        (VAEConfig(first_frame="start", temporal_compression_ratio=1), []),
        (TransformerConfig(modulation="shared"), ["modulation='shared'"]),
        (TransformerConfig(attention="factorised"), ["attention='factorised'"]),
        (TransformerConfig(value_residual=True), ["value_residual=True"]),
        (TransformerConfig(position="none", attention_head_dim=20), ["position='none'"]),
        (TransformerConfig(position="learned"), ["position='learned'"]),
        (TransformerConfig(position="sincos", patch_size_t=2, position_scaling="extrapolate"),
         ["position='sincos' with patch_size_t=2"]),
        (TransformerConfig(position_scaling="extrapolate"), ["position_scaling='extrapolate'"]),
        (TransformerConfig(patch_size_t=2, position_scaling="extrapolate"), []),
        (TransformerConfig(patch_size_t=2), ["position_scaling='interpolate'"]),
        (TransformerConfig(position="sincos", position_scaling="extrapolate"), []),
        (ScheduleConfig(prediction_type="sample", rescale_betas_zero_snr=False), []),
    ]
    for config, found in cases:
        with subtests.test(type(config).__name__, found=found):
            assert departures(config) == found
            values = to_diffusers(config)
            assert from_diffusers(type(config), values, "here", own_fields(config), "there") == config
            for own, message in (({"colour": 1}, "there sets 'colour'; a .* has no such field"),
                                 ({[*vars(config)][0]: -1}, "there: .* is -1")):
                with pytest.raises(ValueError, match=message):
                    from_diffusers(type(config), values, "here", own, "there")
            if getattr(config, "position", "") != "none":  # sincos, which its values imply, has no table of that width
                assert own_fields(from_diffusers(type(config), values, "here")) == {}
