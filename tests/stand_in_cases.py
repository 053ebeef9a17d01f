"""Tests on the device "stand_in", in their own process: test_stand_in.py starts pytest on this file.

A device can be registered once in a process and never taken back, so these tests are not collected with the others.
"""

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from minicogvx import cli
from minicogvx.ablation import transformers, vaes
from minicogvx.ablation.studies import STUDIES, TransformerStudy
from minicogvx.compat import choose_device
from minicogvx.course import clips, notebook_device, output, widget_parts, widgets
from minicogvx.course.exercises.checking import find
from minicogvx.diffusion import NoiseSchedule
from minicogvx.presets import ScheduleConfig
from tests.stand_in import NAME, StandInTensor
from tests.tiny import CAPTIONS, tiny_pipe, write_films

HERE = torch.arange(12.0).reshape(3, 4)  # on the CPU


def there(x=HERE):
    return x.to(NAME)


# ---- the device itself

REFUSED = {
    "sum": lambda: there() + HERE, "sum, the other way": lambda: HERE + there(),
    "matrix product": lambda: HERE @ there().T, "cat": lambda: torch.cat([there(), HERE]),
    "stack of numbers": lambda: torch.stack([there()[0, 0], HERE[0, 0]]),
    "where": lambda: torch.where(there() > 3, there(), HERE), "equal": lambda: torch.equal(there(), HERE),
    "allclose": lambda: torch.allclose(there(), HERE), "a layer": lambda: torch.nn.Linear(4, 4)(there()),
    "index there": lambda: HERE[there(torch.tensor([0, 1]))], "written into": lambda: there().add_(HERE),
    "written by": lambda: HERE.clone().mul_(there()), "out": lambda: torch.add(there(), 1, out=HERE.clone()),
    "generator": lambda: torch.randn(2, device=NAME, generator=torch.Generator()),
    "generator in place": lambda: there().normal_(generator=torch.Generator()),
    "permutation": lambda: torch.randperm(3, device=NAME, generator=torch.Generator()),
    "numpy": lambda: there().numpy(), "asarray": lambda: np.asarray(there()),
    "from a list": lambda: np.array([there()]),
}


def test_a_cpu_tensor_is_refused(subtests):
    for name, meeting in REFUSED.items():
        with subtests.test(name), pytest.raises((RuntimeError, TypeError), match="same device|generator|numpy"):
            meeting()


def test_what_a_gpu_allows():
    assert (there() + torch.tensor(1.0)).cpu().equal(HERE + 1)  # a single number
    assert there()[torch.tensor([2, 0])].cpu().equal(HERE[[2, 0]]) and there()[HERE > 5].cpu().equal(HERE[HERE > 5])
    target = torch.zeros(3, 4)
    target.copy_(there())
    assert target.equal(HERE) and there().tolist() == HERE.tolist()
    assert float(there().sum()) == 66 == there().sum().item()
    for made in (torch.arange(3, device=NAME), torch.zeros(2, device=NAME), torch.tensor([1, 2], device=NAME),
                 torch.randn(2, device=NAME), torch.eye(2, device=NAME), torch.linspace(0, 1, 3, device=NAME),
                 there().new_ones(2), torch.empty_like(there()), torch.randperm(3, device=NAME)):
        assert made.device.type == NAME
    assert f"{there()[1, 1]:.1f}" == "5.0" and choose_device() == NAME == notebook_device()


def test_views_share_and_modules_keep_their_parameters():
    x = there(HERE.clone())
    x[:, 0] = 7
    x.T[1].mul_(0)
    assert x[:, :2].cpu().tolist() == [[7, 0]] * 3
    layer = torch.nn.Linear(4, 2)
    weight, before = layer.weight, layer.weight.detach().clone()
    twin = copy.deepcopy(layer.to(NAME))
    assert layer.weight is weight and weight.device.type == NAME and isinstance(weight, torch.nn.Parameter)
    with torch.no_grad():
        twin.weight.add_(1)
    assert layer.weight.cpu().equal(before) and layer.cpu().weight.equal(before) and twin.weight.device.type == NAME


def test_training_there_gives_the_weights_of_the_cpu():
    weights = []
    for device in ("cpu", NAME):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1)).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        for _ in range(3):
            net(HERE.to(device)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(torch.cat([p.detach().cpu().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*weights)


# ---- the library and what notebooks show


def test_a_pipeline_there_makes_the_video_of_the_cpu():
    pipe, picture = tiny_pipe(), torch.rand(32, 32, 3)
    settings = {"image": picture, "num_inference_steps": 2}
    here = pipe(CAPTIONS[0], **settings)
    video = pipe.to(NAME)(CAPTIONS[0], **settings)
    assert video.device.type == "cpu"
    torch.testing.assert_close(video, here, atol=1e-4, rtol=0)
    latents = pipe.sample(list(CAPTIONS[:2]), num_inference_steps=1)
    torch.testing.assert_close(pipe.decode(latents.cpu()), pipe.decode(latents))
    assert pipe(CAPTIONS[0], video=video, num_inference_steps=2).shape == video.shape


def test_what_notebooks_show_may_lie_there(monkeypatch):
    shown = []
    monkeypatch.setattr(output, "display", lambda data, metadata: shown.append(data))
    monkeypatch.setattr(widget_parts, "display_widget", shown.append)
    clip = there(torch.rand(5, 32, 32, 3))
    clips.show_clip(clip, "noise")
    clips.show_rows({"a": clip, "b": clip[:3]}, "noise")
    widgets.explore_frames(clip, "noise")
    clips.compare_clips({"a": clip, "b": 1 - clip}, "noise")
    widgets.explore_sweep({1: clip, 2: clip}, "w", "noise")
    widgets.explore_noise(clip.permute(3, 0, 1, 2)[None], NoiseSchedule(ScheduleConfig()),
                          lambda z: z.clamp(0, 1).permute(0, 2, 3, 4, 1), "noise")
    assert len(shown) > 10


def test_the_packages_version_of_an_exercise_works_there(subtests):
    cases = [  # what a notebook calls with tensors of its device; stubs are filled in by these
        "2.1", "2.3", "3.3", "3.4", "5.4", "6.1", "6.2", "7.1", "7.2", "7.3", "7.5", "8.1", "8.3"]
    for number in cases:
        with subtests.test(number=number):
            exercise = find(number)

            def on_device(*given, **named):
                answer = exercise.reference(*tree_map_only(torch.Tensor, there, given), **named)
                assert all(x.device.type == NAME for x in tree_leaves(answer))
                return tree_map_only(torch.Tensor, torch.Tensor.cpu, answer)

            exercise.check(on_device)


# ---- the commands


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with three videos and a tiny model."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "films").mkdir()
    write_films(folder / "films")
    tiny_pipe().save(folder / "model")
    return folder


@pytest.fixture
def run(home, monkeypatch):
    """Runs one command in that folder, on the device that the environment names; it must succeed and compute there."""
    monkeypatch.chdir(home)

    def run_it(*arguments):
        before = StandInTensor.operations
        assert cli.main(["--traceback", *arguments]) == 0
        least = {"export": 0, "train": 10_000, "ablate": 10_000, "finetune": 3000}.get(arguments[0], 1000)
        assert StandInTensor.operations >= before + least

    return run_it


def test_generate(run, home):
    common = ("--model", "model", "--steps", "2")
    run("generate", CAPTIONS[0], *common, "--out", "a.mp4")
    run("generate", CAPTIONS[0], *common, "--video", "a.mp4", "--out", "b.mp4", "--tile")
    run("generate", CAPTIONS[0], *common, "--image", "a.png", "--out", "c.mp4", "--offload")
    assert all((home / f"{name}.mp4").is_file() for name in "abc")


def test_evaluate(run):
    run("evaluate", "--model", "model", "--clips", "2", "--steps", "1")
    run("evaluate", "vae", "--model", "model", "--clips", "2")
    run("evaluate", "--model", "model", "--clips", "2", "--steps", "1", "--image-to-video", "--strip", "strip.png")


def test_data_encode(run, home):
    run("data", "encode", "films", "--model", "model", "--out", "cached", "--first-frame")
    assert (home / "cached").is_dir()


def test_finetune(run):
    common = ("finetune", "films", "--model", "model", "--steps", "2")
    run(*common, "--out", "all")
    run(*common, "--out", "lora", "--lora", "2")
    run(*common, "--out", "image", "--image-to-video")
    run("generate", CAPTIONS[0], "--model", "model", "--lora", "lora", "--steps", "1", "--out", "d.mp4")


def test_train(run, home):
    changes = ["vae.stages.0.steps=2", "vae.stages.0.batch_size=1", "vae.stages.1.steps=1",
               "vae.stages.1.batch_size=1", "transformer.stages.0.steps=1", "transformer.stages.1.steps=2",
               "transformer.stages.0.batch_size=2", "transformer.stages.1.batch_size=2", "clips=4",
               "sizes.transformer.num_layers=1"]
    run("train", "micro", "--out", "trained", *(word for change in changes for word in ("--set", change)))
    assert (home / "trained" / "pipeline" / "model_index.json").is_file()
    run("train", "micro", "--data", "films", "--out", "on_films", *(word for change in changes
                                                                    for word in ("--set", change)))


def test_ablate(run, monkeypatch):
    study = STUDIES["position"]
    few = replace(study, variants=dict(list(study.variants.items())[:2]), batch_size=2)
    monkeypatch.setitem(STUDIES, "position", few)
    monkeypatch.setattr(TransformerStudy, "clips", 4)
    monkeypatch.setattr(transformers, "HELD_BACK", 2)
    run("ablate", "position", "--steps", "2", "--out", "position.json")
    losses = STUDIES["vae-losses"]
    few = replace(losses, variants=dict(list(losses.variants.items())[-1:]), batch_size=1)
    monkeypatch.setitem(STUDIES, "vae-losses", few)
    monkeypatch.setattr(vaes, "MEASURED", 2)
    run("ablate", "vae-losses", "--steps", "2", "--out", "losses.json")


def test_export(run, home):
    run("export", "exported", "--model", "model")
    assert (home / "exported" / "model_index.json").is_file()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
