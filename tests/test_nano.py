"""The nano world: its data, what is measured in it, and what is wrong with each patient of its clinic."""

import json
from dataclasses import replace

import pytest
import torch

import minicogvx
from minicogvx.ablation import nano, nano_study
from minicogvx.ablation.nano import HELD, KINDS, PATIENTS, Patient, nano_batches, nano_losses, train_nano, word_gains
from minicogvx.data.world.captions import parse_caption
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import is_held_out
from minicogvx.evaluation.reconstruction import psnr


@pytest.fixture(scope="module")
def pipe():
    return minicogvx.load("toy", "cpu", torch.float32)


@pytest.fixture(scope="module")
def world(pipe):
    return nano.nano_world(pipe.text)


@pytest.fixture
def small(monkeypatch):
    """A network with one narrow block, and few clips."""
    monkeypatch.setattr(nano, "NANO_TRANSFORMER", replace(nano.NANO_TRANSFORMER, num_attention_heads=1, num_layers=1,
                                                          attention_head_dim=16))
    return nano.new_nano(0)


def test_the_stored_latents_are_those_of_the_scenes(pipe, world):
    wanted = render_batch(world.scenes[:3], nano.FRAMES, 64, 64)
    assert world.latents.shape == (nano.CLIPS, 16, 3, 8, 8)
    assert psnr(pipe.decode(world.latents[:3]), wanted) > 25
    assert psnr(pipe.decode(world.latents[3:6]), wanted) < 20


def test_the_world_is_small_and_holds_combinations_back(world):
    for scene in world.scenes:
        (thing,) = scene.objects
        assert not is_held_out(thing.shape, thing.colour, thing.motion) and scene.background in ("black", "grey")
    assert len({scene.objects[0].shape for scene in world.scenes}) == 3
    assert set(world.wrong) == set(KINDS) and all(len(each) == HELD for each in world.wrong.values())
    assert all(not torch.equal(each, world.features[-HELD:]) for each in world.wrong.values())
    for words in nano_study.ASKED:
        (thing,) = parse_caption(words).objects
        assert thing.shape in nano.CHOICES["shape"] and thing.motion in nano.CHOICES["motion"]


def test_each_clip_comes_once_before_any_comes_again():
    chosen = torch.cat([chosen for chosen, _ in nano_batches(10, 5, 4, seed=0)])
    assert sorted(chosen[:10].tolist()) == sorted(chosen[10:].tolist()) == list(range(10))


def test_a_fresh_network_is_deaf_and_a_training_repeats_itself(small, world, pipe):
    losses = nano_losses(small, world, pipe.schedule)
    assert set(word_gains(losses).values()) == {0.0} and losses["none"] == losses["own"]
    first = list(train_nano(small, world, pipe.schedule_config, 3, batch_size=4))
    assert first == list(train_nano(nano.new_nano(0), world, pipe.schedule_config, 3, batch_size=4))
    assert len(first) == 3 and all(value > 0 for value in first)
    assert set(word_gains(nano_losses(small, world, pipe.schedule)).values()) != {0.0}


def test_each_patient_differs_from_the_healthy_one_in_its_disease(small, world, pipe):
    def after(patient: Patient) -> tuple[list[float], torch.Tensor]:
        model = nano.new_nano(0)
        losses = list(train_nano(model, world, pipe.schedule_config, 4, patient=patient, batch_size=4))
        return losses, model.proj_out.weight.detach()

    healthy, weights = after(Patient())
    for patient in PATIENTS[1:]:
        losses, other = after(patient)
        assert not torch.equal(other, weights), patient.name
        assert (losses == healthy) == bool(patient.decay), patient.name  # an average changes no loss
    assert after(PATIENTS[-1])[1].abs().max() < 0.01 * weights.abs().max(), "still where it began"


def test_a_study_writes_what_the_notebook_reads(small, world, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(nano_study, "FOLDER", tmp_path / "nano")
    monkeypatch.setattr(nano_study, "RESULTS", tmp_path / "results")
    curve, samples = nano_study.words_of(pipe, world, 2, 0)
    assert curve["steps"] == [0, 2] and samples[0].shape == (4, 16, 3, 8, 8)
    run, made = nano_study.chart_of(pipe, world, PATIENTS[3], 2, 0)
    assert run["chart"]["time"] < 0.01 and made.shape == (4, 16, 3, 8, 8)
    nano_study.add_run("clinic", run | {"seed": 1}, {}, 2)
    nano_study.add_run("clinic", run, {run["name"]: made}, 2)
    content = json.loads((tmp_path / "results" / "nano-clinic.json").read_text())
    assert content["command"] == "python -m minicogvx.ablation.nano_study clinic --seeds 0 1 --steps 2"
    assert [each["seed"] for each in content["runs"]] == [0, 1] and content["runs"][0]["name"] == PATIENTS[3].name
    assert len(nano_study.stored_runs("clinic", 2)) == 2 and nano_study.stored_runs("clinic", 3) == []
    assert nano_study.stored_runs("words", 2) == [] and (tmp_path / "nano" / "nano-clinic.safetensors").exists()


def test_the_stored_runs_name_their_commands():
    for name in ("words", "taught", "clinic"):
        content = json.loads((nano_study.RESULTS / f"nano-{name}.json").read_text())
        assert content["command"].startswith(f"python -m minicogvx.ablation.nano_study {name} ")
        assert len({run["seed"] for run in content["runs"]}) >= (3 if name == "clinic" else 1)
        assert nano.nano_samples(name)
