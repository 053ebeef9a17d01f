"""The shipped model that continues a film: loaded from a small file, trained by a command, and better than pinning."""

import random

import torch

from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.evaluation.reconstruction import psnr
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
