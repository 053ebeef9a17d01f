"""The studies behind docs/questions.md: noise on the given picture, and what the loss of a LoRA shows."""

import json
import math

import pytest
import torch

import minicogvx
from minicogvx.ablation import lora_loss, picture_noise
from minicogvx.ablation.picture_noise import ASKED, VARIANTS, by_seed, noise_difference, noise_runs, pooled_difference
from minicogvx.data.world.scenes import DIRECTIONS
from minicogvx.data.world.styles import style
from minicogvx.training.batches import Steps
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.stages import Stage
from minicogvx.training.validation import TIMESTEPS
from tests.tiny import TINY


def made_up(name: str, seed: int, moves: list[int], still: list[int]) -> dict:
    found = {"moves": moves, "still": still, "change": [1.0] * len(moves), "picture": [30.0] * len(moves)}
    return {"name": name, "seed": seed, "seconds": 1, "losses": {}, "found": dict.fromkeys(ASKED, found)}


def test_the_two_variants_differ_in_the_noise_alone(clips):
    """Same clips, latents, timesteps and captions; without noise the picture is the clip's own first frame."""
    drawn = {}
    for name, condition in VARIANTS.items():
        training = TransformerTraining((Stage(1, 2),), image_to_video=True, image=condition)
        drawn[name] = Steps(clips, training, TINY.transformer)[0][0].examples
    for with_noise, without in zip(drawn["published"], drawn["none"]):
        assert torch.equal(with_noise.latents, without.latents) and torch.equal(with_noise.noise, without.noise)
        assert (with_noise.timestep, with_noise.caption) == (without.timestep, without.caption)
        assert not torch.equal(with_noise.picture, without.picture)
        assert min((without.picture - clips.first_pixels(i)).abs().max().item() for i in range(len(clips))) == 0


def test_differences_are_paired_by_seed_and_by_clip():
    runs = [made_up("published", 0, [1, 1, 0, 0], [0] * 4), made_up("none", 0, [1, 0, 0, 0], [0, 0, 1, 1]),
            made_up("published", 1, [1, 1, 1, 1], [0] * 4), made_up("none", 1, [1, 1, 1, 1], [0] * 4),
            made_up("none", 2, [0] * 4, [1] * 4)]  # a seed without its other half
    assert by_seed(runs, "caption", "moves") == {"published": [0.5, 1.0], "none": [0.25, 1.0]}
    gap, low, high = noise_difference(runs, "caption", "moves")
    assert gap == -0.125 and low < -1 < 1 < high  # two seeds
    assert noise_difference(runs[:2], "caption", "still")[1] == -math.inf
    gap, low, high = pooled_difference(runs, "caption", "still")
    assert gap == 0.25 and low < 0.25 < high
    assert "n = 2 seeds" in picture_noise.say_noise(runs)


def test_what_is_stored_is_whole_and_comes_from_the_command():
    content = json.loads(picture_noise.RESULTS_FILE.read_text(encoding="utf-8"))
    runs, seeds = noise_runs(), {run["seed"] for run in noise_runs()}
    assert content["command"].startswith("python -m minicogvx.ablation.picture_noise --seeds 0 1 ")
    assert {(run["name"], run["seed"]) for run in runs} == {(name, seed) for name in VARIANTS for seed in seeds}
    assert len(seeds) >= 2 and noise_runs(steps=content["steps"] + 1) == []
    for run in runs:
        assert set(run["found"]) == set(ASKED)
        for found in run["found"].values():
            assert all(len(values) == content["pictures"] for values in found.values())
    assert all(scene.objects[0].motion in DIRECTIONS for scene in picture_noise.moving_scenes())


def test_a_run_of_two_steps_is_stored_and_not_repeated(tmp_path, monkeypatch, capsys):
    for name, value in {"CLIPS": 6, "HELD_BACK": 2, "BATCH": 2, "PICTURES": 2, "SAMPLE_STEPS": 1}.items():
        monkeypatch.setattr(picture_noise, name, value)
    monkeypatch.setattr(picture_noise, "moving_scenes", lambda: _moving(2))
    out = tmp_path / "noise.json"
    arguments = ["--seeds", "3", "--steps", "2", "--out", str(out)]
    assert picture_noise.main(arguments) == 0
    runs = noise_runs(out)
    assert [(run["name"], run["seed"]) for run in runs] == [("published", 3), ("none", 3)]
    assert runs[0]["losses"] != runs[1]["losses"] and set(runs[0]["losses"]) > {f"loss_{t}" for t in TIMESTEPS}
    before = out.read_bytes()
    monkeypatch.setattr(picture_noise, "finetuned", lambda *_: pytest.fail("a stored run was repeated"))
    assert picture_noise.main(arguments) == 0 and out.read_bytes() == before
    assert "without less with" in capsys.readouterr().out


def _moving(count: int):
    drawn = picture_noise.sample_scenes(40, 404, two_objects=0.0)
    return [scene for scene in drawn if scene.objects[0].motion in DIRECTIONS][:count]


def test_a_lora_is_watched(monkeypatch):
    for name, value in {"LEARNT": 4, "HELD_BACK": 2, "ASKED": 2}.items():
        monkeypatch.setattr(lora_loss, name, value)
    run = lora_loss.watched_lora(2, measured=(0,), asked=2)
    assert run["steps"] == [0, 2] and run["style"][0] == 0.0 and len(run["training"]) == 2
    assert all(len(run[f"loss_{t}"]) == 2 for t in TIMESTEPS)
    assert "t=900" in lora_loss.say_lora_loss(run, 2)
    assert len(lora_loss.lora_loss_figure(run).axes) == 2


def test_styled_clips_are_latents_of_the_style():
    pipe, look = minicogvx.load("toy", "cpu", torch.float32), style("sepia")
    clips = lora_loss.styled_clips(pipe.vae, _moving(2), look, 17, 64)
    film = pipe.decode(clips.latents(0)[None])[0]
    assert len(clips) == 2 and (film[..., 0].median() - look.ground[0]).abs() < 0.1
