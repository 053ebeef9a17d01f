"""Folders as found in practice: variants, 8-bit weights, one network alone, no dtype; and the message of export."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file

import minicogvx
from minicogvx.interop import find_folder
from minicogvx.interop.diffusers_folder import load_transformer, load_vae, same_in_diffusers
from minicogvx.interop.safetensors_files import read_sharded, read_tensors, write_sharded
from minicogvx.presets import preset
from tests.tiny import load_pipeline, same

STEM = "diffusion_pytorch_model"


@pytest.fixture
def copy(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def test_a_byte_order_mark_is_no_part_of_the_json(tiny_folder, copy):
    paths = [copy / "model_index.json", *copy.glob("*/config.json"), *copy.glob("scheduler/*.json")]
    for path in paths:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(paths) == 5 and minicogvx.load(copy, "cpu").fps == minicogvx.load(tiny_folder, "cpu").fps


# ---- variants and number formats


def test_a_folder_of_one_variant_opens(tiny_folder, tmp_path):
    theirs = AutoencoderKLCogVideoX.from_pretrained(tiny_folder / "vae").to(torch.float16)
    for most_bytes in (10**9, 2000):
        place = tmp_path / str(most_bytes)
        theirs.save_pretrained(place, variant="fp16", max_shard_size=most_bytes)
        assert (len(list(place.glob("*.safetensors"))) > 1) == (most_bytes == 2000)
        assert same(load_vae(place).state_dict(), theirs.state_dict())


def test_plain_weights_go_before_variants_and_several_variants_are_named(tmp_path):
    tensors = {"a": torch.ones(2)}
    for variant in ("fp16", "ema", "non_ema"):
        save_file({"a": torch.zeros(2)}, tmp_path / f"{STEM}.{variant}.safetensors")
    with pytest.raises(ValueError, match="the variants ema and fp16 and non_ema; it must hold one of them"):
        read_sharded(tmp_path)
    write_sharded(tmp_path, tensors)
    assert same(read_sharded(tmp_path), tensors)
    save_file({"b": torch.ones(1)}, tmp_path / "x.fp16-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        read_sharded(tmp_path, "x")  # a shard without its index


def test_8_bit_weights_are_widened_without_loss(copy, subtests):
    path = copy / "transformer" / f"{STEM}.safetensors"
    weights = load_file(path)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        with subtests.test(dtype=dtype):
            narrow = {name: tensor.to(dtype) for name, tensor in weights.items()}
            save_file(narrow, path)
            for asked, wanted in ((None, torch.bfloat16), (torch.float32, torch.float32)):
                opened = load_transformer(copy, dtype=asked).state_dict()
                assert same(opened, {name: tensor.to(wanted) for name, tensor in narrow.items()})
            save_file(narrow | {"proj_out.weight_scale": torch.ones(1)}, path)
            with pytest.raises(ValueError, match="has a tensor proj_out.weight_scale"):
                load_transformer(copy)


# ---- one network alone


def test_a_network_alone_opens_from_its_folder_or_the_pipelines(tiny_folder, tmp_path, monkeypatch):
    pipe = load_pipeline(tiny_folder)
    for load, name, part in ((load_vae, "vae", pipe.vae), (load_transformer, "transformer", pipe.transformer)):
        for place in (tiny_folder, tiny_folder / name, str(tiny_folder / name)):
            opened = load(place, "cpu", torch.float32)
            assert opened.config == part.config and same(opened.state_dict(), part.state_dict()) and not opened.training
        alone = Path(shutil.copytree(tiny_folder / name, tmp_path / name))
        published = load(alone).config  # what minicogvx.json said is gone, so the published behaviour holds
        assert published == replace(part.config, **{"first_frame": "parity"} if name == "vae" else {
            "position_scaling": "interpolate"})
        monkeypatch.chdir(tiny_folder / name)
        assert load(".").config == part.config
    monkeypatch.chdir(tiny_folder)
    assert load_vae("vae").config.first_frame == load_vae(".").config.first_frame == "start"
    with pytest.raises(FileNotFoundError, match="neither model_index.json nor config.json"):
        load_vae(tmp_path)
    with pytest.raises(ValueError, match="is of the class 'CogVideoXTransformer3DModel'; it must be AutoencoderKL"):
        load_vae(tiny_folder / "transformer")
    with pytest.raises(FileNotFoundError, match="no model_index.json.*load_vae or load_transformer"):
        minicogvx.load(tiny_folder / "vae")


def test_a_network_alone_is_refused_without_the_file_that_its_index_needs(copy):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"transformer": ["minicogvx", "ExpertTransformer"]}))
    load_transformer(copy / "transformer")
    (copy / "minicogvx.json").unlink()
    for load in (load_transformer, load_pipeline):
        with pytest.raises(FileNotFoundError, match="has no minicogvx.json, which says how its transformer departs"):
            load(copy)
    load_vae(copy)  # of a published class


def test_what_diffusers_saves_alone_opens(tmp_path):
    torch.manual_seed(0)
    theirs = CogVideoXTransformer3DModel(
        num_attention_heads=1, attention_head_dim=32, in_channels=4, out_channels=4, num_layers=1, text_embed_dim=8,
        time_embed_dim=8, sample_width=4, sample_height=4, sample_frames=9, max_text_seq_length=4)
    theirs.save_pretrained(tmp_path)
    assert same(load_transformer(tmp_path).state_dict(), theirs.state_dict())


# ---- export and its word


def test_the_shipped_toy_samples_in_diffusers_without_a_word_about_formats():
    """Asked as a user asks: from_pretrained and a prompt; with what export says, the same video as here."""
    theirs = CogVideoXPipeline.from_pretrained(find_folder("toy"))
    theirs.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (theirs.vae, theirs.transformer, theirs.text_encoder)} == {torch.float32}
    pipe = minicogvx.load("toy", "cpu", "float32")
    call = {"num_inference_steps": 2, "num_frames": 9, "guidance_scale": 3.0}
    video = theirs("a red circle moves right", **call, generator=torch.Generator().manual_seed(4), output_type="pt",
                   max_sequence_length=32).frames[0].permute(0, 2, 3, 1)
    assert torch.allclose(pipe("a red circle moves right", **call, seed=4), video, atol=1e-4)


def test_the_toys_files_are_those_of_its_export(tmp_path):
    toy = find_folder("toy")
    with pytest.warns(UserWarning, match="max_sequence_length=32, guidance_scale=3.0, height=64, width=64"):
        load_pipeline(toy).save(tmp_path / "toy", dtype=torch.float16)
    for path in sorted(toy.rglob("*")):
        again = tmp_path / "toy" / path.relative_to(toy)
        if path.suffix == ".safetensors":
            assert same(read_tensors(path), read_tensors(again)), path
        elif path.is_file():
            ours, theirs = json.loads(path.read_text()), json.loads(again.read_text())
            if path.name == "tokenizer_config.json":  # there transformers also notes how it was opened
                theirs = {name: value for name, value in theirs.items() if name in ours}
            assert ours | {"transformers_version": 0} == theirs | {"transformers_version": 0}, path


def test_what_a_call_in_diffusers_must_say(subtests):
    cases = {
        "toy": "max_sequence_length=32, height=64, width=64, num_frames=8k + 1; it scales positions at other sizes and "
               "has another rule for the first frame at other counts",
        "small": "max_sequence_length=64, height=128, width=128, num_frames=8k + 1; it", "2b": "", "5b-i2v": "",
        "1.5-5b": "called with height=768, width=1360",
        "1.5-5b-i2v": "called with height=768, width=1360, num_frames=81",
    }
    for name, sentence in cases.items():
        with subtests.test(name):
            sizes = preset(name)
            said = same_in_diffusers(sizes.vae, sizes.transformer, 6.0)
            assert said.endswith(sentence) or "; it" in said and sentence in said
            assert bool(said) == bool(sentence) and "\n" not in said
            assert "guidance_scale=3.5" in same_in_diffusers(sizes.vae, sizes.transformer, 3.5)
            shorter = replace(sizes.transformer, sample_frames=25)
            image = sizes.transformer.image_to_video  # whose default is 49 there
            assert ("num_frames=25" in same_in_diffusers(sizes.vae, shorter, 6.0)) == image
            higher = replace(sizes.vae, sample_height=64 + sizes.vae.sample_height)
            fixed = "learned" in sizes.transformer.position or name in ("toy", "small")  # to their positions' size
            assert (f"height={higher.sample_height}, width=" in same_in_diffusers(higher, shorter, 6.0)) != fixed
            paired = replace(sizes.vae, temporal_compression_ratio=2, first_frame="start")
            assert "num_frames=4k + 1" in same_in_diffusers(paired, sizes.transformer, 6.0)


def test_a_folder_is_published_where_it_does_not_say_otherwise(copy):
    assert load_pipeline(copy).vae.config.first_frame == "start"
    (copy / "minicogvx.json").unlink()
    pipe = load_pipeline(copy)
    assert (pipe.vae.config.first_frame, pipe.transformer.config.position_scaling) == ("parity", "interpolate")
    assert (pipe.fps, pipe.guidance_scale, pipe.unconditional) == (8, 6.0, "empty")


def test_a_file_without_a_version_is_from_when_the_first_frame_was_kept_by_default(copy, subtests):
    path = copy / "minicogvx.json"
    own = json.loads(path.read_text())
    assert own.pop("version") == 1 and own.pop("vae") == {"first_frame": "start"}
    for vae, rule in (({}, "start"), ({"vae": {}}, "start"), ({"vae": {"norm_over": "frame"}}, "start"),
                      ({"vae": {"first_frame": "parity"}}, "parity")):
        with subtests.test(vae=vae):
            path.write_text(json.dumps(own | vae))
            assert load_vae(copy).config.first_frame == load_pipeline(copy).vae.config.first_frame == rule
            path.write_text(json.dumps(own | vae | {"version": 1}))
            assert load_vae(copy / "vae").config.first_frame == "parity"
