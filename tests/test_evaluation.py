"""Scores: what the oracle says of generated and of reconstructed clips, on models whose score is known."""

import json

import pytest
import torch
from torch import nn

import minicogvx
from minicogvx.data.shapes import render_batch, sample_scenes
from minicogvx.evaluation.adherence import measure_adherence
from minicogvx.evaluation.command import main
from minicogvx.evaluation.reconstruction import flicker, measure_reconstruction
from minicogvx.pipeline import Pipeline
from minicogvx.presets import VAEConfig
from minicogvx.vae import CausalVAE, DiagonalGaussian

SCENES = sample_scenes(6, 5, "held_out", two_objects=0.0)


class Perfect(Pipeline):
    """A pipeline that shows exactly what is asked, or for the first `wrong` clips the next scene instead."""

    num_frames = 17

    def __init__(self, wrong: int = 0):
        self.wrong, self.asked = wrong, 0

    def sample(self, captions, **_):
        start, self.asked = self.asked, self.asked + len(captions)
        chosen = [SCENES[(i + 1) % len(SCENES)] if i < self.wrong else SCENES[i] for i in range(start, self.asked)]
        return render_batch(chosen, 17, 64, 64)

    def decode(self, latents):
        return latents


class PerfectVAE(CausalVAE):
    """Latents are the pixels themselves; `loss` blacks everything out."""

    def __init__(self, loss: bool = False):
        nn.Module.__init__(self)
        self.config, self.loss = VAEConfig(sample_height=64, sample_width=64), loss
        self.weight = nn.Parameter(torch.zeros(1))

    def encode(self, video):
        return DiagonalGaussian(torch.cat([video, torch.full_like(video, -30.0)], dim=1))

    def decode(self, latents):
        return torch.full_like(latents, -1.0) if self.loss else latents


def test_a_perfect_model_scores_one():
    result = measure_adherence(Perfect(), SCENES, batch_size=4, progress=False)
    assert result.share["all"] == 1.0 and not result.failures and result.clips == 6
    assert str(result).startswith("100.0 % of 6 clips right in everything")


def test_wrong_clips_are_counted_and_told():
    result = measure_adherence(Perfect(wrong=2), SCENES, batch_size=4, progress=False)
    assert result.share["all"] == pytest.approx(4 / 6)
    assert len(result.failures) == 2
    assert all(failure["caption"] and failure["wrong"] and failure["read"] for failure in result.failures)


def test_reconstruction_of_a_perfect_and_of_a_useless_vae():
    good = measure_reconstruction(PerfectVAE(), SCENES, 17, batch_size=4, progress=False)
    assert good.share["all"] == 1.0 and good.psnr > 60 and good.flicker == pytest.approx(good.flicker_of_true, rel=0.02)
    bad = measure_reconstruction(PerfectVAE(loss=True), SCENES, 17, batch_size=4, progress=False)
    assert bad.share["all"] == 0.0 and bad.psnr < 20 and bad.flicker == 0.0


def test_flicker_is_in_grey_levels():
    video = torch.zeros(3, 2, 2, 3)
    video[1] = 10 / 255
    assert flicker(video) == pytest.approx(10.0)


def test_command_prints_and_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(vars(minicogvx), "load", lambda name: Perfect())
    monkeypatch.setattr("minicogvx.data.shapes.sample_scenes", lambda *_: SCENES)
    out = tmp_path / "figures.json"
    assert main(["--clips", "6", "--out", str(out)]) == 0
    assert "toy, held_out: 100.0 % of 6 clips" in capsys.readouterr().out
    assert json.loads(out.read_text())["share"]["all"] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize("arguments, sentence", [(["--clips", "0"], "clips is 0"), (["--two-objects", "2"], "two-objects is 2.0")])
def test_mistakes_are_one_sentence(monkeypatch, arguments, sentence):
    monkeypatch.setitem(vars(minicogvx), "load", lambda name: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match=sentence):
        main(arguments)
