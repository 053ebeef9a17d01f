"""The study of latents: VAEs judged by what a transformer learns on their latents in equal time."""

import json
from dataclasses import fields, replace

import pytest
import torch

from minicogvx import cli
from minicogvx.ablation import latents
from minicogvx.ablation.latents import LatentsBench, LatentsCurve, compare_latents
from minicogvx.ablation.latents_study import Latents, LatentsStudy
from minicogvx.ablation.results import read_results
from minicogvx.ablation.studies import STUDIES
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.presets import preset
from minicogvx.training.recipes import load_recipe
from minicogvx.training.settings import VAEStage, VAETraining
from minicogvx.training.stages import Stage
from minicogvx.vae import CausalVAE
from tests.test_stages import Clock
from tests.tiny import TINY, same
from tests.trained import LOSS

LONGER = replace(TINY.vae, block_out_channels=(4, 4, 8, 8), temporal_compression_ratio=8, latent_channels=6)
STUDY = LatentsStudy("latents", "which?", {
    "plain": Latents(TINY.vae), "masked": Latents(TINY.vae, {"masked_latents": 1.0}),
    "8x8x8": Latents(LONGER, patch_size=1),
}, VAETraining((VAEStage(1, 2, 9, 16, 16, loss=LOSS), VAEStage(2, 2, 9, loss=LOSS)), small_branches=True),
    TINY.transformer, (Stage(1, 4, images=1.0), Stage(3, 4)), minutes=0.05, every=1.0, clips=40, held_back=16,
    measured=3, schedule=TINY.schedule)


def bench(**changed) -> LatentsBench:
    return LatentsBench(STUDY, text=TINY.text, dtype=torch.float32, now=Clock(), **changed)


def test_each_variant_trains_its_vae_and_a_transformer_on_its_latents(monkeypatch):
    judged, told, kept, real = [], [], [], latents.measure_adherence

    def watched(pipe, scenes, *arguments, **options):
        judged.append((pipe.video_size, pipe.guidance_scale, scenes))
        return real(pipe, scenes, *arguments, num_inference_steps=2, **options)

    monkeypatch.setattr(latents, "measure_adherence", watched)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        curves = compare_latents(bench(on_second=told.append), list(STUDY.variants), seed=1, on_curves=kept.append)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state) and kept == [[curve] for curve in curves]
    plain, masked, longer = curves
    assert [(curve.name, curve.seed) for curve in curves] == [(name, 1) for name in STUDY.variants]
    assert (plain.latent_size, plain.tokens) == ([4, 3, 8, 8], 3 * 4 * 4)
    assert (longer.latent_size, longer.tokens) == ([6, 2, 4, 4], 2 * 4 * 4)
    assert plain.vae.state_dict().keys() == masked.vae.state_dict().keys()
    assert not same(plain.vae.state_dict(), masked.vae.state_dict())
    assert told == [name for name in STUDY.variants for _ in range(3)]
    for curve in curves:
        assert curve.seconds == [0.0, 1.0, 2.0, 3.0] and curve.steps == [0, 8, 16, 24]  # an eighth of a second each
        assert len(curve.loss) == 4 and curve.loss[-1] < curve.loss[0]
        assert curve.measured == 3 and set(curve.adherence) >= {"all", "shape", "colour", "motion"}
        assert -1 <= curve.correlation <= 1 and 0 <= curve.readable <= 1 and curve.psnr > 0 and curve.vae_seconds > 0
    shown = {(scene.background, scene.objects[0].shape, scene.objects[0].colour, scene.objects[0].motion)
             for scene in sample_scenes(40, STUDY.clips_seed, "train", 0.0)}
    for size, guidance_scale, scenes in judged:
        assert size == (9, 32, 32) and guidance_scale == 3.0 and scenes == judged[0][2] and len(scenes) == 3
        assert not shown & {(scene.background, scene.objects[0].shape, scene.objects[0].colour, scene.objects[0].motion)
                            for scene in scenes}
    again, = compare_latents(bench(), ["plain"], seed=1)
    timed = {"vae_seconds": 0.0, "vae": None}
    assert replace(again, **timed) == replace(plain, **timed)


def test_variants_of_a_transformer_share_a_vae_and_differ_in_what_they_name(monkeypatch):
    trained, tasks, real = [], [], latents.train_vae
    monkeypatch.setattr(latents, "train_vae", lambda *given: trained.append(given) or real(*given))
    monkeypatch.setattr(latents, "judge", lambda bench, vae, task, scenes: tasks.append(task) or {"all": 0.0})
    batches = (Stage(1, 2, images=1.0), Stage(3, 6))
    study = replace(STUDY, variants={
        "plain": Latents(TINY.vae), "deeper": Latents(TINY.vae, transformer={"num_layers": 3}),
        "batches": Latents(TINY.vae, training={"stages": batches, "schedule": "wsd", "alignment_weight": 0.0}),
        "masked": Latents(TINY.vae, {"masked_latents": 1.0})}, training={"ema_decay": 0.5, "alignment_weight": 2.0})
    curves = compare_latents(replace(bench(), study=study), list(study.variants), seed=1)
    assert len(trained) == 2 and [given[1].stages[0].loss.masked_latents for given in trained] == [0.0, 1.0]
    assert len({curve.psnr for curve in curves[:3]}) == 1 and curves[3].psnr != curves[0].psnr
    plain, deeper, others, masked = (task.training for task in tasks)
    assert len(tasks[1].model.transformer_blocks) == 3 == 1 + len(tasks[0].model.transformer_blocks)
    assert plain == deeper == masked and (plain.ema_decay, plain.alignment_weight) == (0.5, 2.0)
    assert others == replace(plain, stages=batches, schedule="wsd", alignment_weight=0.0)
    assert [curve.tokens for curve in curves] == [48] * 4 and curves[2].loss != curves[0].loss


def test_a_vae_that_is_given_serves_all_variants_and_seeds(monkeypatch):
    monkeypatch.setattr(latents, "train_vae", lambda *_: pytest.fail("a VAE was trained"))
    judged = []
    monkeypatch.setattr(latents, "judge", lambda bench, vae, task, scenes: judged.append(vae) or {"all": 0.0})
    study = replace(STUDY, variants={"plain": Latents(TINY.vae), "no alignment": Latents(
        TINY.vae, training={"alignment_weight": 0.0})})
    given = replace(bench(), study=study, vae=CausalVAE(TINY.vae).eval())
    curves = [curve for seed in (0, 1) for curve in compare_latents(given, list(study.variants), seed)]
    assert len(judged) == 4 and all(vae is given.vae for vae in judged)
    assert len({curve.psnr for curve in curves}) == 1 and {curve.vae_seconds for curve in curves} == {0.0}
    assert len({curve.loss[-1] for curve in curves}) == 4


def test_what_cannot_be_compared_is_refused_before_work(subtests, monkeypatch):
    monkeypatch.setattr(latents, "train_vae", lambda *_: pytest.fail("something was trained"))
    for names, config, told in ((["plain", "masked"], TINY.vae, "variants 'plain' and 'masked' of latents have differ"),
                                (["plain"], LONGER, "the VAE that is given has other sizes than that of latents")):
        with subtests.test(told=told), pytest.raises(ValueError, match=told):
            compare_latents(bench(vae=CausalVAE(config)), names)
    odd = Latents(TINY.vae, {"correlation_weight": 0.1})
    small = replace(STUDY, variants={"odd": odd}, vae=VAETraining((VAEStage(1, 2, 9, 4, 4, loss=LOSS),)))
    for study, names, told in ((STUDY, [], "names is empty; give at least one of plain; masked"),
                               (STUDY, ["plain", "plane"], "there is no variant 'plane'; the variants are plain; "),
                               (small, ["odd"], "vae.stages.0 cannot be trained: correlation_weight is 0.1")):
        with subtests.test(told=told), pytest.raises(ValueError, match=told):
            compare_latents(replace(bench(), study=study), names)
    large = Latents(replace(TINY.vae, sample_height=64, sample_width=64))
    for change, told in (({"minutes": 0.0}, "minutes is 0.0"), ({"every": float("nan")}, "every is nan"),
                         ({"clips": 20}, "clips is 20; 16 are held back, so it must be at least 32"),
                         ({"variants": {"a": Latents(TINY.vae), "b": large}}, "have sides of 32, 64 pixels; all")):
        with subtests.test(told=told), pytest.raises(ValueError, match=told):
            replace(STUDY, **change)


def test_the_study_is_what_it_says(subtests):
    study = STUDIES["latents"]
    assert study.size == (17, 64, 64)
    sizes = {"plain": (16, 5, 8, 8, 80), "8x8x8": (32, 3, 8, 8, 48), "16x16x4": (48, 5, 4, 4, 80),
             "16x16x4, residual": (48, 5, 4, 4, 80), "16x16x4, residual, a quarter of the tokens": (48, 5, 4, 4, 20)}
    for name, (channels, frames, height, width, tokens) in sizes.items():
        with subtests.test(name):
            vae, transformer = study.variants[name].vae, study.transformer_of(name)
            with torch.device("meta"):
                latent = CausalVAE(vae).encode(torch.empty(1, 3, *study.size)).mean
            assert latent.shape[1:] == (channels, frames, height, width)
            assert transformer.num_patches((frames, height, width)) == tokens and transformer.in_channels == channels
    small = STUDIES["latents-micro"]
    assert small.size == (9, 32, 32) and list(small.variants)[:6] == list(study.variants)[:6]
    assert {one.vae for one in small.variants.values()} == {preset("micro").vae}
    micro, minutes = load_recipe("micro"), STUDIES["minutes-micro"]
    assert minutes.size == (9, 32, 32) and minutes.transformer_of("micro") == preset("micro").transformer
    assert minutes.vae_training("micro") == micro.vae and minutes.guidance_scale == micro.guidance_scale
    stages = tuple(replace(stage, steps=steps) for stage, steps in zip(micro.transformer.stages, (20, 70, 10)))
    assert minutes.training_of("micro") == replace(micro.transformer, stages=stages)
    assert minutes.schedule == micro.model_sizes.schedule
    plain = study.vae_training("plain")
    assert plain == study.vae and all(not stage.loss.masked_latents for stage in plain.stages)
    for name, changed in {"masked, correlation": {"masked_latents": 0.3, "correlation_weight": 0.002},
                          "equivariance": {"equivariance": 0.5}}.items():
        for stage, other in zip(study.vae_training(name).stages, plain.stages):
            assert stage == replace(other, loss=replace(other.loss, **changed))
    crowds, plain = small.vae_training("crowds, half the learning rate"), small.vae_training("plain")
    assert crowds == replace(plain, stages=(replace(plain.stages[0], crowd=8), plain.stages[1]), learning_rate=5e-4)


def test_the_command_writes_after_each_variant_and_resumes(tmp_path, monkeypatch, capsys):
    done = []

    def compare(bench, names, seed, on_curves):
        for name in names:
            done.append((name, seed, bench.study.minutes))
            on_curves([LatentsCurve(name, seed, 10, [4, 3, 8, 8], 48, 1.0, 30.0, 0.1, 1.5, 0.5, 0.9, 3, [0.0, 3.0],
                                    [0, 24], [1.0, 1 / 3], {"all": 0.5, "shape": 0.75}, CausalVAE(TINY.vae))])

    monkeypatch.setitem(STUDIES, "latents", STUDY)
    monkeypatch.setattr(latents, "compare_latents", compare)
    out = tmp_path / "latents.json"
    command = ["ablate", "latents", "--minutes", "0.1", "--out", str(out)]
    assert cli.main([*command, "--only", "masked", "--seeds", "2"]) == 0
    told = capsys.readouterr().out
    assert "masked, seed 1, latents 3x8x8 of 4 channels, 48 tokens; VAE 1 s, PSNR 30.00 dB" in told
    assert "50.0 % of 3 captions obeyed (shape 75.0)" in told and told.endswith(f"{out}\n")
    content = json.loads(out.read_text())
    assert content["kind"] == "latents" and content["minutes_each"] == 0.1 and "best_fifth" not in content
    assert content["command"].startswith('minicogvx ablate latents --seeds 2 --minutes 0.1 --only "masked" --threads ')
    assert cli.main([*command, "--seeds", "2", "--resume"]) == 0
    assert done == [(name, seed, 0.1) for names in (("masked",), ("plain", "8x8x8")) for seed in (0, 1)
                    for name in names]
    capsys.readouterr()
    assert cli.main([*command, "--seeds", "3", "--resume", "--vae", str(tmp_path)]) == 2
    assert f"was made with vae=None, this run has '{tmp_path}'" in capsys.readouterr().err
    curves = read_results(out).curves
    assert len(curves) == 6 and curves[0].loss == pytest.approx([1.0, 1 / 3], rel=1e-5) and curves[0].vae is None
    assert {field.name for field in fields(LatentsCurve)} - set(content["curves"][0]) == {"vae"}
