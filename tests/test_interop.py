"""Files of weights, config files and pipeline folders: read bit for bit if they fit, otherwise rejected."""

import json
import os
import pickle
import shutil
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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import minicogvx
from minicogvx import interop
from minicogvx.interop import safetensors_files
from minicogvx.interop.configs import departures, from_diffusers, own_fields, to_diffusers, unsupported
from minicogvx.interop.diffusers_folder import read_folder
from minicogvx.interop.safetensors_files import load_into, read_sharded, read_tensors, write_sharded, write_tensors
from minicogvx.pipeline import Pipeline
from minicogvx.presets import PRESETS, ScheduleConfig, TextConfig, TransformerConfig, VAEConfig
from minicogvx.text import TextEncoder
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE

PUBLISHED = ("2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v")


def load_pipeline(folder, **options) -> Pipeline:
    """The pipeline in a folder, in the number format of its files."""
    return Pipeline(*read_folder(folder, **options))


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4), "half": torch.randn(2, 2).bfloat16(),
            "turned": torch.randn(3, 5).T, "scalar": torch.tensor(2.0)}


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in ours)


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


def test_views_of_one_storage_can_be_written(tmp_path):
    whole = torch.arange(12.0)
    path = write_tensors(tmp_path / "x.safetensors", {"q": whole[:4], "k": whole[4:8], "again": whole[:4].clone()})
    assert torch.equal(read_tensors(path)["k"], whole[4:8])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(tmp_path, bad):
    path = write_tensors(tmp_path / "x.safetensors", some_tensors())
    tensors = some_tensors()
    tensors["a.bias"][1] = bad
    with pytest.raises(ValueError, match="a.bias holds NaN or infinity") as error:
        write_tensors(path, tensors)
    one_sentence(error)
    assert same(read_tensors(path), some_tensors()) and len(list(tmp_path.iterdir())) == 1


def test_a_cast_that_overflows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="big holds NaN or infinity as float16"):
        write_sharded(tmp_path, {"big": torch.tensor([1e6])}, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


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


def test_foreign_and_truncated_files_are_refused(tmp_path):
    for path, message in foreign_files(tmp_path).values():
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


def test_broken_shards_are_refused(tmp_path):
    write_sharded(tmp_path, some_tensors(), max_shard_bytes=50)
    index = next(tmp_path.glob("*.index.json"))
    good = json.loads(index.read_text())
    for weight_map, message in [({"a": "../x.safetensors"}, "must be one beside it"), ({}, "no weight_map"),
                                ({"a": "x.safetensors"}, "there is no file"),
                                ({**good["weight_map"], "lost": good["weight_map"]["half"]}, "lacks the tensor lost")]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            read_sharded(tmp_path)
        one_sentence(error)
    index.write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_sharded(tmp_path)


def test_a_folder_without_weights_is_refused_and_a_pickle_never_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        read_sharded(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="as a pickle, diffusion_pytorch_model.bin"):
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


def tiny_transformer(config: TransformerConfig) -> TransformerConfig:
    return replace(config, num_attention_heads=1, attention_head_dim=32, num_layers=1, sample_height=4, sample_width=4,
                   sample_frames=9, max_text_seq_length=8)


@pytest.mark.parametrize("name", PRESETS)
def test_configs_are_those_that_diffusers_saves(name):
    preset = PRESETS[name]
    vae = replace(preset.vae, block_out_channels=(8, 8, 8, 16), norm_num_groups=4)
    for config in (preset.schedule, tiny_transformer(preset.transformer), vae):
        ours, theirs = to_diffusers(config), their_config(config)
        assert {key: value for key, value in theirs.items() if key not in ours} == {}
        assert {key: value for key, value in ours.items() if theirs.get(key) != value} == {}
        if name.startswith("1.5") and config is not preset.schedule and config is not vae:
            assert ours["patch_bias"] is False  # as published


@pytest.mark.parametrize("name", PRESETS)
def test_configs_survive_both_ways(name):
    preset = PRESETS[name]
    for config in (preset.schedule, preset.transformer, preset.vae):
        values = json.loads(json.dumps(to_diffusers(config)))
        back = from_diffusers(type(config), values, "here")
        assert from_diffusers(type(config), values, "here", json.loads(json.dumps(own_fields(config)))) == config
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


@pytest.mark.parametrize("config, change, message", BAD)
def test_bad_configs_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message) as error:
        from_diffusers(type(config), to_diffusers(config) | change, "here")
    assert one_sentence(error).startswith("here")


@pytest.mark.parametrize("config, found", [
    (VAEConfig(norm_over="frame", time_padding="zeros"), ["time_padding='zeros'", "norm_over='frame'"]),
    (VAEConfig(), []),
    (VAEConfig(first_frame="start"), ["first_frame='start'"]),
    (VAEConfig(first_frame="start", temporal_compression_ratio=1), []),
    (TransformerConfig(modulation="shared"), ["modulation='shared'"]),
    (TransformerConfig(attention="factorised"), ["attention='factorised'"]),
    (TransformerConfig(position="none", attention_head_dim=20), ["position='none'"]),
    (TransformerConfig(position="learned"), ["position='learned'"]),
    (TransformerConfig(position="sincos", patch_size_t=2, position_scaling="extrapolate"),
     ["position='sincos' with patch_size_t=2"]),
    (TransformerConfig(position_scaling="extrapolate"), ["position_scaling='extrapolate'"]),
    (TransformerConfig(patch_size_t=2, position_scaling="extrapolate"), []),
    (TransformerConfig(patch_size_t=2), ["position_scaling='interpolate'"]),
    (TransformerConfig(position="sincos", position_scaling="extrapolate"), []),
    (ScheduleConfig(prediction_type="sample", rescale_betas_zero_snr=False), []),
])
def test_departures_are_named_and_kept(config, found):
    assert departures(config) == found
    values = to_diffusers(config)
    assert from_diffusers(type(config), values, "here", own_fields(config), "there") == config
    for own, message in (({"colour": 1}, "there sets 'colour'; a .* has no such field"),
                         ({[*vars(config)][0]: -1}, "there: .* is -1")):
        with pytest.raises(ValueError, match=message):
            from_diffusers(type(config), values, "here", own, "there")
    if getattr(config, "position", "") != "none":  # sincos, which its values imply, has no table of that width
        assert own_fields(from_diffusers(type(config), values, "here")) == {}


# ---- folders


def tiny_pipeline(transformer: dict | None = None, vae: dict | None = None, unconditional: str = "empty") -> Pipeline:
    torch.manual_seed(0)
    text = TextConfig(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=16)
    vae = VAEConfig(**{
        "latent_channels": 4, "block_out_channels": (4, 4, 4), "norm_num_groups": 2, "layers_per_block": 1,
        "scaling_factor": 0.5, "sample_height": 16, "sample_width": 16} | (vae or {}))
    transformer = TransformerConfig(**{
        "num_attention_heads": 1, "attention_head_dim": 16, "num_layers": 1, "in_channels": 4, "out_channels": 4,
        "text_embed_dim": 16, "max_text_seq_length": 8, "time_embed_dim": 8, "sample_height": 4, "sample_width": 4,
        "sample_frames": 9, "position_scaling": "extrapolate"} | (transformer or {}))
    return Pipeline(CausalVAE(vae).eval(), ExpertTransformer(transformer).eval(), ScheduleConfig(sampler="dpm"),
                    TextEncoder.from_config(text, ("red", "ring", "moves"), 8), fps=7, unconditional=unconditional,
                    guidance_scale=2.5)


def weights(pipe: Pipeline) -> dict[str, torch.Tensor]:
    parts = {"vae": pipe.vae, "transformer": pipe.transformer, "text": pipe.text.encoder}
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


def about(pipe: Pipeline):
    return (pipe.vae.config, pipe.transformer.config, pipe.schedule_config, pipe.fps, pipe.unconditional,
            pipe.guidance_scale, pipe.text.max_length)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pipeline folder for reading only."""
    return tiny_pipeline().save(tmp_path_factory.mktemp("pipelines") / "tiny")


def test_a_pipeline_comes_back_bit_for_bit(folder):
    pipe, back = tiny_pipeline(), load_pipeline(folder)
    assert about(back) == about(pipe) and same(weights(back), weights(pipe))
    assert back.text.vocabulary == {"red", "ring", "moves"}
    assert not back.vae.training and not back.transformer.training
    assert [file.name for file in folder.parent.iterdir()] == ["tiny"]
    assert sorted(file.name for file in folder.iterdir()) == [
        "minicogvx.json", "model_index.json", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"]


def test_number_formats(folder, tmp_path):
    half = load_pipeline(folder, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in weights(half).values()} == {torch.bfloat16}
    tiny_pipeline().save(tmp_path / "half", dtype=torch.bfloat16, max_shard_bytes=1000)
    assert len(list((tmp_path / "half" / "text_encoder").glob("*.safetensors"))) > 1
    assert same(weights(load_pipeline(tmp_path / "half")), weights(half))
    full = load_pipeline(tmp_path / "half", dtype=torch.float32)
    assert {tensor.dtype for tensor in weights(full).values()} == {torch.float32}


def test_export_replaces_only_what_it_may(tmp_path):
    pipe, place = tiny_pipeline(), tmp_path / "out"
    place.mkdir()
    pipe.save(place)
    with pytest.raises(ValueError, match="out is there already"):
        pipe.save(place)
    (place / "note").write_text("old")
    with torch.no_grad():
        pipe.vae.encoder.conv_in.conv.bias[0] = float("nan")
    with pytest.raises(ValueError, match="encoder.conv_in.conv.bias holds NaN"):
        pipe.save(place, overwrite=True)
    assert (place / "note").exists() and same(weights(load_pipeline(place)), weights(tiny_pipeline()))
    tiny_pipeline({"position": "sincos"}).save(place, overwrite=True)
    assert not (place / "note").exists() and load_pipeline(place).transformer.config.position == "sincos"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is there already"):
        pipe.save(tmp_path / "file", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_what_a_killed_export_left_is_cleared_by_the_next(tmp_path):
    pipe, place, part = tiny_pipeline(), tmp_path / "out", tmp_path / ".out.part"
    old = part / "old"
    pipe.save(place)
    for left in (part / "new", old):
        (left / "vae").mkdir(parents=True)
    pipe.save(place, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    part.mkdir()
    place.rename(old)  # killed between the two renames
    with pytest.raises(ValueError, match="out is there already"):
        tiny_pipeline({"position": "sincos"}).save(place)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert same(weights(load_pipeline(place)), weights(pipe))


def test_what_is_not_the_exports_own_stays(tmp_path):
    pipe, place = tiny_pipeline(), tmp_path / "out"
    mine = (tmp_path / ".out.old", tmp_path / ".out.part" / "mine")
    for folder in mine:
        folder.mkdir(parents=True)
        (folder / "note").write_text("mine")
    pipe.save(place)
    pipe.save(place, overwrite=True)
    assert all((folder / "note").read_text() == "mine" for folder in mine)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.old", ".out.part", "out"]
    assert [path.name for path in (tmp_path / ".out.part").iterdir()] == ["mine"]


def test_an_interrupted_replacement_gives_the_old_folder_back(tmp_path, monkeypatch):
    place, real = tmp_path / "out", os.replace
    tiny_pipeline().save(place)

    def interrupted(source, target):
        if Path(source).name == "new":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_pipeline({"position": "sincos"}).save(place, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert load_pipeline(place).transformer.config.position == "rope"


def test_a_linked_folder_stays_a_link_and_is_named_as_written(tmp_path):
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.mkdir(parents=True)
    link.symlink_to(real)
    assert tiny_pipeline().save(link) == link and link.is_symlink()
    with pytest.raises(ValueError, match=f"^{link} is there already"):
        tiny_pipeline().save(link)
    tiny_pipeline({"position": "sincos"}).save(link, overwrite=True)
    assert link.is_symlink() and load_pipeline(real).transformer.config.position == "sincos"
    assert [path.name for path in real.parent.iterdir()] == ["real"]


def test_an_empty_folder_is_filled_and_stays_the_same_one(tmp_path, monkeypatch):
    place, real = tmp_path / "out", os.replace
    (place / ".export.part" / "new" / "vae").mkdir(parents=True)  # a killed export left it
    number, moved = place.stat().st_ino, []

    def replace(source, target):
        moved.append(Path(target))
        assert Path(source) != place and Path(target) != place, "a folder that is mounted cannot be renamed"
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.chdir(place)
    tiny_pipeline().save(".")
    assert place.stat().st_ino == number and moved[-1] == place / "model_index.json"
    assert "model_index.json" in os.listdir(".") and not list(place.glob(".*")) and os.listdir(tmp_path) == ["out"]
    assert same(weights(load_pipeline(place)), weights(tiny_pipeline()))


@pytest.mark.parametrize("name", ["vae", "model_index.json"])
def test_an_empty_folder_that_cannot_be_filled_stays_empty(tmp_path, monkeypatch, name):
    place, real = tmp_path / "out", os.replace
    place.mkdir()

    def full(source, target):
        if Path(target) == place / name:
            raise OSError(28, "No space left on device", str(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=f"{place / name}.*") as told:
        tiny_pipeline().save(place)
    assert ".part" not in str(told.value) and place.is_dir() and not list(place.iterdir())


@pytest.mark.parametrize("made", [True, False])
def test_a_full_disk_is_reported_by_the_file_that_was_asked_for(tmp_path, monkeypatch, made):
    def full(tensors, path, **_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    place = tmp_path / "out"
    if made:
        place.mkdir()
    monkeypatch.setattr("minicogvx.interop.safetensors_files.save_file", full)
    with pytest.raises(OSError, match=rf"^{place}/\w+/\S+ cannot be written: I/O error: No space left"):
        tiny_pipeline().save(place)
    assert place.exists() == made and not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("change, found", [
    ({"transformer": {"modulation": "separate"}}, "modulation='separate'"),
    ({"transformer": {"position": "learned"}}, "position='learned'"),
    ({"vae": {"norm_over": "frame"}}, "norm_over='frame'"),
    ({"unconditional": "zeros"}, "unconditional='zeros'"),
])
def test_departures_are_exported_only_on_request(tmp_path, change, found):
    pipe = tiny_pipeline(**change)
    with pytest.raises(ValueError, match=f"diffusers cannot compute {found}") as error:
        pipe.save(tmp_path / "out")
    one_sentence(error)
    assert not list(tmp_path.iterdir())
    pipe.save(tmp_path / "out", allow_departures=True)
    back = load_pipeline(tmp_path / "out")
    assert about(back) == about(pipe) and same(weights(back), weights(pipe))
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert (index["transformer"][0] == "minicogvx") == ("transformer" in change)
    assert (index["vae"][0] == "minicogvx") == ("vae" in change)


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BROKEN = {
    "has no model_index.json": lambda f: (f / "model_index.json").unlink(),
    "must be of a CogVideoXPipeline": lambda f: change_json(f / "model_index.json", _class_name="FluxPipeline"),
    "vae='AutoencoderKL'; it must be": lambda f: change_json(
        f / "model_index.json", vae=["diffusers", "AutoencoderKL"]),
    "transformer=None; it must be": lambda f: change_json(f / "model_index.json", transformer=None),
    "has no folder vae": lambda f: shutil.rmtree(f / "vae"),
    "there is no file .*scheduler_config.json": lambda f: (f / "scheduler" / "scheduler_config.json").unlink(),
    "model_index.json is no JSON": lambda f: (f / "model_index.json").write_bytes(b"\xff\xfe"),
    "minicogvx.json: fps is 0": lambda f: change_json(f / "minicogvx.json", fps=0),
    "minicogvx.json: fps is 1000000000": lambda f: change_json(f / "minicogvx.json", fps=10**9),
    "minicogvx.json: guidance_scale is 'much'": lambda f: change_json(f / "minicogvx.json", guidance_scale="much"),
    "minicogvx.json: guidance_scale is -1": lambda f: change_json(f / "minicogvx.json", guidance_scale=-1),
    "minicogvx.json has a field 'speed'; the fields are version, fps": lambda f: change_json(
        f / "minicogvx.json", speed=1),
    "minicogvx.json: version is 2; it must be 1, the only one": lambda f: change_json(f / "minicogvx.json", version=2),
    "minicogvx.json: version is None": lambda f: change_json(f / "minicogvx.json", version=None),
    "minicogvx.json: attention_head_dim is 18": lambda f: (
        change_json(f / "minicogvx.json", transformer={"position": "rope"}),
        change_json(f / "transformer" / "config.json", attention_head_dim=18, num_attention_heads=8,
                    use_rotary_positional_embeddings=False)),
    "minicogvx.json: vae is 5": lambda f: change_json(f / "minicogvx.json", vae=5),
    "minicogvx.json: modulation is 'soft'": lambda f: change_json(
        f / "minicogvx.json", transformer={"modulation": "soft"}),
    "minicogvx.json: it is a link that leads nowhere": lambda f: (
        (f / "minicogvx.json").unlink(), (f / "minicogvx.json").symlink_to("elsewhere")),
    "vae.config.json is no JSON": lambda f: (f / "vae" / "config.json").write_text('{"a":' * 100_000),
    "temporal_compression_ratio=2; with the VAE beside it": lambda f: change_json(
        f / "transformer" / "config.json", temporal_compression_ratio=2),
    "has in_channels=12; with the VAE beside it, it must be 4 or 8": lambda f: change_json(
        f / "transformer" / "config.json", in_channels=12),
    "names the file 'xxxx": lambda f: (
        (f / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "x" * 5000}}))),
    "has no minicogvx.json, which says how its vae": lambda f: (
        change_json(f / "model_index.json", vae=["minicogvx", "CausalVAE"]), (f / "minicogvx.json").unlink()),
    "vae holds no weights": lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
    "vae lacks the tensor encoder.down_blocks.0.resnets.1": lambda f: change_json(
        f / "vae" / "config.json", layers_per_block=2),
    "patch_embed.proj.weight in .*transformer has the shape": lambda f: change_json(
        f / "transformer" / "config.json", out_channels=4, patch_size=1),
    "text_encoder has d_model=32": lambda f: change_json(f / "text_encoder" / "config.json", d_model=32),
    "model.safetensors is empty": lambda f: (f / "text_encoder" / "model.safetensors").write_bytes(b""),
    "q.weight in .*text_encoder has the shape": lambda f: change_json(f / "text_encoder" / "config.json", d_kv=4),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_folders_are_refused(folder, tmp_path, message):
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    BROKEN[message](broken)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_pipeline(broken)
    assert str(broken) in one_sentence(error)


def test_names_and_folders(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(interop, "DATA", folder.parent)
    assert interop.shipped() == ["tiny"] and interop.find_folder("tiny") == folder
    assert interop.find_folder(tmp_path) == tmp_path
    for name, message in [("5b", "weights of '5b' are not shipped; download"),
                          ("small", "'small' are not shipped; train"),
                          ("tony", "no model 'tony'; it must be 'tiny' or an existing folder .*1.5-5b-i2v"),
                          ("~no-such-user/model", "no model '~no-such-user/model'"), ("", "no model ''")]:
        with pytest.raises(ValueError, match=message) as error:
            minicogvx.load(name)
        one_sentence(error)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_pipeline(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="has no model_index.json"):
        minicogvx.load(tmp_path)
    assert about(minicogvx.load("tiny", device="cpu", dtype="float32")) == about(tiny_pipeline())


def test_load_puts_the_model_where_and_in_the_format_that_is_asked_for(folder, monkeypatch):
    def formats(pipe):
        return {p.dtype for part in (pipe.vae, pipe.transformer, pipe.text.encoder) for p in part.parameters()}

    monkeypatch.setenv("MINICOGVX_DTYPE", "bfloat16")
    assert formats(minicogvx.load(folder, "cpu")) == {torch.bfloat16}
    for dtype in ("float32", torch.float32):
        assert formats(minicogvx.load(folder, torch.device("cpu"), dtype)) == {torch.float32}
    turns = minicogvx.load(folder, "cpu", torch.float32, offload=True)
    assert turns._turns_on == torch.device("cpu") and minicogvx.load(folder, "cpu")._turns_on is None
    monkeypatch.setenv("MINICOGVX_DEVICE", "tpu")
    for options, message in (({}, "MINICOGVX_DEVICE is 'tpu', which is not a device"), (
            {"device": "cpu", "dtype": torch.float16}, "dtype is 'float16', which a processor cannot compute in")):
        with pytest.raises(ValueError, match=message) as error:
            minicogvx.load(folder, **options)
        one_sentence(error)


def test_too_little_memory_is_not_reported_as_a_broken_folder(folder, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("minicogvx.interop.diffusers_folder.read_text", fail)
    with pytest.raises(torch.OutOfMemoryError):
        load_pipeline(folder)
