"""The study of timesteps: one difference between its variants, a yardstick that knows nothing of it, and its file."""

import random
from dataclasses import replace

import pytest
import torch

from minicogvx import cli
from minicogvx.ablation import compare_timesteps, load_results, roughness
from minicogvx.ablation import timesteps as file
from minicogvx.ablation.results import read_results
from minicogvx.ablation.seeds import gain_of_pairs
from minicogvx.ablation.studies import STUDIES
from minicogvx.data.clips.world import WorldClips
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.presets import TransformerConfig, preset
from minicogvx.training.batches import Steps

TINY = TransformerConfig(num_attention_heads=1, attention_head_dim=16, num_layers=1, in_channels=4, out_channels=4,
                         text_embed_dim=32, max_text_seq_length=32, time_embed_dim=16, sample_height=4, sample_width=4,
                         sample_frames=5)
TEXT = replace(preset("toy").text, d_model=32, d_kv=8, d_ff=32, num_heads=2, num_layers=1)
WAYS = {"uniform": "uniform", "stratified": "stratified"}


def latents(count: int = 80) -> WorldClips:
    """Random latents with the captions of scenes."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(count, 4, 2, 4, 4, generator=generator).half()
    return WorldClips(sample_scenes(count, 1), mean, torch.zeros_like(mean), 1.0, torch.zeros(count, 2, 4, 4, 27), 32)


def compared(steps: int = 6, seed: int = 0, **options) -> dict[str, file.TimestepsCurve]:
    return compare_timesteps(WAYS, TINY, latents(), steps, seed, batch_size=4, every=3, text=TEXT,
                             dtype=torch.float32, **options)


@pytest.fixture
def drawn(monkeypatch) -> list[list[int]]:
    """The timesteps of every step that is trained."""
    found, get = [], Steps.__getitem__

    def noted(steps, number):
        passes = get(steps, number)
        found.append([example.timestep for one in passes for example in one.examples])
        return passes

    monkeypatch.setattr(Steps, "__getitem__", noted)
    return found


def test_only_the_timesteps_differ(drawn):
    random.seed(3)
    curves = compared()
    uniform, stratified = drawn[:6], drawn[6:]
    assert uniform != stratified and len(drawn) == 12
    assert all(sorted(t // 250 for t in step) == [0, 1, 2, 3] for step in stratified)
    assert not all(sorted(t // 250 for t in step) == [0, 1, 2, 3] for step in uniform)
    a, b = curves.values()
    assert a.loss[0] == b.loss[0] and a.training != b.training and a.at != b.at
    for curve in (a, b):
        assert curve.steps == [0, 3, 6] and len(curve.training) == 6 and len(curve.loss) == 3
        assert list(curve.at) == ["100", "300", "500", "700", "900"] and curve.parameters > 0
    again, other = compared(), compared(seed=1)
    assert again["uniform"].training == a.training and again["uniform"].at == a.at
    assert other["uniform"].training != a.training


def test_mistakes_are_told_in_one_sentence():
    with pytest.raises(ValueError, match="^steps is 0"):
        compared(steps=0)
    with pytest.raises(ValueError, match="^latents hold 64 clips; 64 are held back"):
        compare_timesteps(WAYS, TINY, latents(64), 1)
    with pytest.raises(ValueError, match="^there are 1 losses"):
        roughness([1.0])


def test_roughness_is_the_noise_of_a_curve_that_falls():
    chance = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(4000, generator=chance)
    falling = torch.linspace(1.0, 0.2, 4000)
    assert roughness((falling + noise).tolist()) == pytest.approx(0.1, rel=0.05)
    assert roughness(falling.tolist()) < 1e-3


def test_the_command_writes_curves_that_can_be_read(tmp_path, monkeypatch, capsys):
    study = replace(STUDIES["uniform-sampling"], config=TINY, batch_size=4)
    monkeypatch.setitem(STUDIES, "uniform-sampling", study)
    monkeypatch.setattr("minicogvx.ablation.comparing.study_latents", lambda *arguments: latents())
    out = tmp_path / "sampling.json"
    small = compare_timesteps
    monkeypatch.setattr(file, "compare_timesteps",
                        lambda *arguments, **options: small(*arguments, **options | {"text": TEXT}))
    run = ["ablate", "uniform-sampling", "--steps", "2", "--dtype", "float32", "--out", str(out)]
    assert cli.main([*run, "--seeds", "2"]) == 0
    made = read_results(out)
    assert [(curve.name, curve.seed) for curve in made.curves] == [
        (name, seed) for seed in (0, 1) for name in ("uniform", "stratified")]
    assert all(type(curve) is file.TimestepsCurve and len(curve.training) == 2 for curve in made.curves)
    said = capsys.readouterr().out
    assert "noise of the curve" in said and "stratified against uniform, loss on validation clips: " in said


def test_the_committed_curves_are_calmer_and_say_no_more():
    """Claims of notebook 12: the noise of the curve, and the loss at the timesteps of Table 9, paired by seed."""
    curves = load_results("uniform-sampling")
    runs = [[curve for curve in curves if curve.name == name] for name in ("stratified", "uniform")]
    calm, wild = ([roughness(curve.training[100:]) for curve in each] for each in runs)
    noise = gain_of_pairs(calm, wild)
    assert noise.seeds >= 5 and noise.verdict == "lower" and noise.mean < -0.01
    for t in ("100", "300", "500", "700", "900"):
        a, b = ([curve.at[t] for curve in each] for each in runs)
        assert gain_of_pairs(a, b).verdict == "cannot be told"
