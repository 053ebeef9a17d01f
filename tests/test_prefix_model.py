"""The shipped model that continues a film: loaded from a small file, trained by a command, and better than pinning."""

import json
import random
import shutil

import pytest
import torch

import minicogvx
from minicogvx import cli
from minicogvx.data.films.decode import read_video
from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.evaluation.reconstruction import psnr
from minicogvx.interop import DATA, shipped
from minicogvx.interop.folder_configs import base_of, read_configs
from minicogvx.media import write_mp4
from minicogvx.pipeline import Pipeline
from minicogvx.training import prefix_model
from minicogvx.training.prefix_model import FILE, LEARNS, load_prefix_model, train_prefix_model
from tests.tiny import weights


def test_it_is_the_toy_but_for_a_small_file():
    pipe, toy = load_prefix_model("cpu", torch.float32), Pipeline.load("toy", "cpu", torch.float32)
    assert pipe.image_to_video and FILE.stat().st_size < 2_500_000
    ours, theirs = weights(pipe), weights(toy)
    assert ours.keys() == theirs.keys()
    changed = {name for name in ours if ours[name].shape != theirs[name].shape
               or not torch.equal(ours[name], theirs[name])}
    assert changed and all(any(part in name for part in LEARNS) for name in changed)


def test_it_continues_what_pinning_does_not():
    """Five true frames of a moving shape, its caption, and the whole film's distance from the true one."""
    scenes = [scene for scene in sample_scenes(40, 77, two_objects=0.0) if "moves" in scene.objects[0].motion][:3]
    true = render_batch(scenes, 17, 64, 64)
    words = [evaluation_caption(scene, random.Random(0)) for scene in scenes]
    found = {}
    for name, pipe in (("pinned", Pipeline.load("toy", "cpu")), ("trained", load_prefix_model("cpu"))):
        for frames in (1, 5):
            made = pipe.decode(pipe.sample(words, prefix=true[:, :frames], num_inference_steps=8, seed=1))
            found[name, frames] = psnr(true, made)
    assert found["trained", 1] > found["pinned", 1] + 1 and found["trained", 5] > found["pinned", 5] + 2, found


def test_the_command_trains_and_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_model, "BATCH", 2)
    path = train_prefix_model(tmp_path / "new" / "difference.safetensors", clips=4, steps=3)
    pipe = load_prefix_model("cpu", torch.float32, path)
    picture = torch.rand(64, 64, 3)
    assert pipe("a red circle moves right", image=picture, num_inference_steps=1).shape == (17, 64, 64, 3)


def test_it_opens_by_its_name_like_any_other_model(tmp_path):
    pipe, same = minicogvx.load("toy-prefix", "cpu", torch.float32), load_prefix_model("cpu", torch.float32)
    assert "toy-prefix" in shipped() and read_configs(DATA / "toy-prefix").transformer == pipe.transformer.config
    assert all(torch.equal(tensor, weights(same)[name]) for name, tensor in weights(pipe).items())
    half = weights(minicogvx.load("toy-prefix", "cpu", torch.bfloat16))  # rounded once, after the sum
    assert all(torch.equal(tensor, weights(pipe)[name].bfloat16()) for name, tensor in half.items())
    assert cli.main(["export", str(tmp_path / "whole"), "--model", "toy-prefix"]) == 0
    assert minicogvx.load(tmp_path / "whole", "cpu").image_to_video


def test_a_difference_without_its_base_is_refused_by_name(tmp_path, subtests):
    folder = tmp_path / "mine"
    shutil.copytree(DATA / "toy-prefix", folder)
    assert base_of(tmp_path) is None
    for said, error, sentence in (
        ({"base": "../toy", "image_channels": True}, FileNotFoundError, "names the model '../toy' as its base"),
        ({"base": str(DATA / "toy")}, ValueError, "must have two fields: base"),
        ({"base": 3, "image_channels": True}, ValueError, "must have two fields: base"),
        ({"base": str(DATA / "toy"), "image_channels": False}, ValueError, "changes patch_embed.proj.weight of shape"),
    ):
        (folder / "difference.json").write_text(json.dumps(said))
        with subtests.test(said=said), pytest.raises(error, match=sentence):
            minicogvx.load(folder, "cpu")


def test_the_command_continues_a_film(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scene = next(one for one in sample_scenes(40, 77, two_objects=0.0) if "moves" in one.objects[0].motion)
    true = render_batch([scene], 17, 64, 64)[0]
    write_mp4("film.mp4", true, 8)
    words = evaluation_caption(scene, random.Random(0))
    found = {}
    for model in ("toy", "toy-prefix"):
        assert cli.main(["generate", words, "--model", model, "--prefix", "film.mp4", "--steps", "8", "--seed", "1",
                         "--out", f"{model}.mp4"]) == 0
        found[model] = psnr(true, read_video(f"{model}.mp4", 17, 64, 64, 8))
    assert found["toy-prefix"] > found["toy"] and found["toy-prefix"] > 18, found
