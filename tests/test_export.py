"""Pipeline folders: an export is whole or not there, comes back bit for bit, and what is broken is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import minicogvx
from minicogvx import interop
from minicogvx.data.world.captions import vocabulary
from minicogvx.files import locked
from minicogvx.pipeline import Pipeline
from minicogvx.presets import ScheduleConfig
from tests.tiny import load_pipeline, same, tiny_pipe, weights


def one_sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 400 and not text.endswith("."), text
    return text


def about(pipe: Pipeline):
    return (pipe.vae.config, pipe.transformer.config, pipe.schedule_config, pipe.fps, pipe.unconditional,
            pipe.guidance_scale, pipe.text.max_length)


def test_a_pipeline_comes_back_bit_for_bit(tmp_path):
    pipe = tiny_pipe(schedule=ScheduleConfig(sampler="dpm"), fps=7, guidance_scale=2.5)
    back = load_pipeline(pipe.save(tmp_path / "out"))
    assert about(back) == about(pipe) and same(weights(back), weights(pipe))
    assert back.text.vocabulary == set(vocabulary())
    assert not back.vae.training and not back.transformer.training
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "minicogvx.json", "model_index.json", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"]


def test_number_formats(tiny_folder, tmp_path):
    half = load_pipeline(tiny_folder, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in weights(half).values()} == {torch.bfloat16}
    tiny_pipe().save(tmp_path / "half", dtype=torch.bfloat16, max_shard_bytes=1000)
    assert len(list((tmp_path / "half" / "text_encoder").glob("*.safetensors"))) > 1
    assert same(weights(load_pipeline(tmp_path / "half")), weights(half))
    full = load_pipeline(tmp_path / "half", dtype=torch.float32)
    assert {tensor.dtype for tensor in weights(full).values()} == {torch.float32}


def test_export_replaces_only_what_it_may(tmp_path):
    pipe, place = tiny_pipe(), tmp_path / "out"
    place.mkdir()
    pipe.save(place)
    with pytest.raises(ValueError, match="out is there already"):
        pipe.save(place)
    (place / "note").write_text("old")
    for name in ("vae.encoder.conv_in.conv.bias", "text.shared.weight"):
        bad = tiny_pipe()
        weights(bad)[name].view(-1)[0] = float("nan")
        with pytest.raises(ValueError, match=f"{name.partition('.')[2]} holds NaN"):
            bad.save(place, overwrite=True)
        assert (place / "note").exists() and same(weights(load_pipeline(place)), weights(pipe))
    tiny_pipe(transformer={"position": "sincos"}).save(place, overwrite=True)
    assert not (place / "note").exists() and load_pipeline(place).transformer.config.position == "sincos"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is there already"):
        pipe.save(tmp_path / "file", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_what_a_killed_export_left_is_cleared_by_the_next(tmp_path):
    pipe, place, part = tiny_pipe(), tmp_path / "out", tmp_path / ".out.part"
    old = part / "old"
    pipe.save(place)
    for left in (part / "new", old):
        (left / "vae").mkdir(parents=True)
    pipe.save(place, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    part.mkdir()
    place.rename(old)  # killed between the two renames
    with pytest.raises(ValueError, match="out is there already"):
        tiny_pipe(transformer={"position": "sincos"}).save(place)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert same(weights(load_pipeline(place)), weights(pipe))


def test_what_is_not_the_exports_own_stays(tmp_path):
    pipe, place = tiny_pipe(), tmp_path / "out"
    mine = (tmp_path / ".out.old", tmp_path / ".out.part" / "mine")
    for folder in mine:
        folder.mkdir(parents=True)
        (folder / "note").write_text("mine")
    pipe.save(place)
    pipe.save(place, overwrite=True)
    assert all((folder / "note").read_text() == "mine" for folder in mine)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.old", ".out.part", "out"]
    assert [path.name for path in (tmp_path / ".out.part").iterdir()] == ["mine"]


def test_two_exports_to_one_place_do_not_mix(tmp_path):
    pipe = tiny_pipe()
    with locked(tmp_path / ".out.part"):
        with pytest.raises(ValueError, match="is in use by another run"):
            pipe.save(tmp_path / "out")
    pipe.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert same(weights(load_pipeline(tmp_path / "out")), weights(pipe))


def test_an_interrupted_replacement_gives_the_old_folder_back(tmp_path, monkeypatch):
    place, real = tmp_path / "out", os.replace
    tiny_pipe().save(place)

    def interrupted(source, target):
        if Path(source).name == "new":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_pipe(transformer={"position": "sincos"}).save(place, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert load_pipeline(place).transformer.config.position == "rope"


def test_a_linked_folder_stays_a_link_and_is_named_as_written(tmp_path):
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.mkdir(parents=True)
    link.symlink_to(real)
    assert tiny_pipe().save(link) == link and link.is_symlink()
    with pytest.raises(ValueError, match=f"^{link} is there already"):
        tiny_pipe().save(link)
    tiny_pipe(transformer={"position": "sincos"}).save(link, overwrite=True)
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
    tiny_pipe().save(".")
    assert place.stat().st_ino == number and moved[-1] == place / "model_index.json"
    assert "model_index.json" in os.listdir(".") and not list(place.glob(".*")) and os.listdir(tmp_path) == ["out"]
    assert same(weights(load_pipeline(place)), weights(tiny_pipe()))


def test_where_a_disk_is_full_the_file_is_named_and_nothing_stays(tmp_path, monkeypatch, subtests):
    def full(tensors, path, **_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    real = os.replace
    for made, name in ((True, "vae"), (True, "model_index.json"), (True, None), (False, None)):
        place = tmp_path / f"{made} {name}"
        if made:
            place.mkdir()

        def no_room(source, target):
            if Path(target) == place / name:
                raise OSError(28, "No space left on device", str(source))
            real(source, target)

        with subtests.test(made=made, name=name), monkeypatch.context() as patch:
            if name:
                patch.setattr(os, "replace", no_room)
            else:
                patch.setattr("minicogvx.interop.safetensors_files.save_file", full)
            told = f"{place / name}.*" if name else rf"^{place}/\w+/\S+ cannot be written: I/O error: No space left"
            with pytest.raises(OSError, match=told) as error:
                tiny_pipe().save(place)
            assert ".part" not in str(error.value)
            assert place.exists() == made and not list(tmp_path.glob("*/*"))


def test_departures_are_exported_only_on_request(tmp_path, subtests):
    cases = {
        "modulation='separate'": {"transformer": {"modulation": "separate"}},
        "position='learned'": {"transformer": {"position": "learned"}},
        "value_residual=True": {"transformer": {"value_residual": True}},
        "norm_over='frame'": {"vae": {"norm_over": "frame"}}, "unconditional='zeros'": {"unconditional": "zeros"},
    }
    for found, change in cases.items():
        with subtests.test(found):
            pipe, place = tiny_pipe(**change), tmp_path / found
            with pytest.raises(ValueError, match=f"diffusers cannot compute {found}") as error:
                pipe.save(place)
            one_sentence(error)
            assert not place.exists()
            pipe.save(place, allow_departures=True)
            back = load_pipeline(place)
            assert about(back) == about(pipe) and same(weights(back), weights(pipe))
            index = json.loads((place / "model_index.json").read_text())
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


def test_broken_folders_are_refused(tiny_folder, tmp_path, subtests):
    for number, (message, damage) in enumerate(BROKEN.items()):
        with subtests.test(message):
            broken = Path(shutil.copytree(tiny_folder, tmp_path / str(number)))
            damage(broken)
            with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
                load_pipeline(broken)
            assert str(broken) in one_sentence(error)


def test_names_and_folders(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(interop, "DATA", tiny_folder.parent)
    assert interop.shipped() == ["tiny"] and interop.find_folder("tiny") == tiny_folder
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
    assert about(minicogvx.load("tiny", device="cpu", dtype="float32")) == about(tiny_pipe())


def test_load_puts_the_model_where_and_in_the_format_that_is_asked_for(tiny_folder, monkeypatch):
    def formats(pipe):
        return {p.dtype for part in (pipe.vae, pipe.transformer, pipe.text.encoder) for p in part.parameters()}

    monkeypatch.setenv("MINICOGVX_DTYPE", "bfloat16")
    assert formats(minicogvx.load(tiny_folder, "cpu")) == {torch.bfloat16}
    for dtype in ("float32", torch.float32):
        assert formats(minicogvx.load(tiny_folder, torch.device("cpu"), dtype)) == {torch.float32}
    turns = minicogvx.load(tiny_folder, "cpu", torch.float32, offload=True)
    assert turns._turns_on == torch.device("cpu") and minicogvx.load(tiny_folder, "cpu")._turns_on is None
    monkeypatch.setenv("MINICOGVX_DEVICE", "tpu")
    for options, message in (({}, "MINICOGVX_DEVICE is 'tpu', which is not a device"), (
            {"device": "cpu", "dtype": torch.float16}, "dtype is 'float16', which a processor cannot compute in")):
        with pytest.raises(ValueError, match=message) as error:
            minicogvx.load(tiny_folder, **options)
        one_sentence(error)


def test_too_little_memory_is_not_reported_as_a_broken_folder(tiny_folder, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("minicogvx.interop.diffusers_folder.read_text", fail)
    with pytest.raises(torch.OutOfMemoryError):
        load_pipeline(tiny_folder)
