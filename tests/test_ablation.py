"""Ablations: fair (the same data for every variant), reproducible, and stored in complete files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minicogvx import cli
from minicogvx.ablation import (
    Curve,
    VAECurve,
    command,
    compare_transformers,
    compare_vaes,
    load_results,
    results,
    vaes,
)
from minicogvx.ablation.results import Results, read_results, write_results
from minicogvx.ablation.schedules_study import SchedulesStudy
from minicogvx.ablation.studies import STUDIES, TransformerStudy, VAEStagesStudy, VAEStudy
from minicogvx.ablation.timesteps import TimestepsStudy
from minicogvx.ablation.twins_study import TwinStudy
from minicogvx.data.clips.world import WorldClips
from minicogvx.data.world.features import FEATURES
from minicogvx.data.world.scenes import is_held_out, sample_scenes
from minicogvx.files import locked
from minicogvx.training.settings import VAEStage
from minicogvx.training.transformer import TransformerTask
from minicogvx.training.vae import VAETask
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE, DiagonalGaussian
from minicogvx.vae.losses import VAELossConfig
from tests.tiny import TINY

ROPE = TINY.transformer
LEARNED = replace(ROPE, position="learned", num_layers=1)  # draws other random numbers for its weights
VAE = TINY.vae
L1 = VAELossConfig(lpips_weight=0.0, kl_weight=0.06, gan_weight=0.0)


@pytest.fixture
def latents() -> WorldClips:
    """72 clips, of which 64 are for validation; the latents lie around one value a channel, which can be learnt."""
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(1, 4, 1, 1, 1, generator=generator) + 0.1 * torch.randn(72, 4, 3, 8, 8, generator=generator)
    return WorldClips(sample_scenes(72, 0), mean.half(), torch.full_like(mean, 0.1).half(), 1.0,
                      torch.zeros(72, 3, 8, 8, FEATURES), 32)


def compare(variants, latents, steps=3, **options):
    return compare_transformers(variants, latents, steps, **{"batch_size": 4, "every": 2, "text": TINY.text} | options)


# ---- transformers


def test_every_variant_sees_the_same_clips_noise_and_first_text_features(latents, monkeypatch):
    seen, losses = [], TransformerTask.losses

    def watched(self, batch, *weight):
        drawn = [(e.caption, e.timestep, e.latents.sum().item(), e.noise.sum().item()) for e in batch.examples]
        seen.append((drawn, self.text_features(batch).detach()))
        return losses(self, batch, *weight)

    monkeypatch.setattr(TransformerTask, "losses", watched)
    calls = []
    for config in (ROPE, LEARNED):
        seen.clear()
        compare({"one": config}, latents)
        calls.append([*seen])
    assert [len(drawn) for drawn, _ in calls[0]] == [64, 4, 4, 64, 4, 64]  # measured after 0, 2 and 3 steps
    assert [drawn for drawn, _ in calls[0]] == [drawn for drawn, _ in calls[1]]
    assert all(torch.equal(calls[0][i][1], calls[1][i][1]) for i in (0, 1))  # before the first update


def test_a_curve_falls_and_a_seed_fixes_it_in_any_order_of_the_variants(latents):
    done = []
    both = compare({"rope": ROPE, "learned": LEARNED}, latents, steps=30, every=20, on_step=lambda *s: done.append(s))
    again = compare({"learned": LEARNED, "rope": ROPE}, latents, 30, every=20)
    first, other = both["rope"], compare({"rope": ROPE}, latents, 30, seed=1)["rope"]
    assert list(both) == ["rope", "learned"] and all(both[name].loss == again[name].loss for name in both)
    assert first.steps == [0, 20, 30] and other.steps == [*range(0, 31, 2)]
    assert first.loss[-1] != other.loss[-1]
    assert first.loss[0] == other.loss[0]  # a new model predicts 0: the same clips, noise and timesteps for every seed
    assert first.loss[-1] < 0.9 * first.loss[0]
    assert done == [(name, step) for name in both for step in range(1, 31)]
    assert first.parameters == sum(p.numel() for p in first.model.parameters())
    assert next(first.model.parameters()).dtype == torch.float32 and not first.model.training
    assert first.text.encode(["a red circle moves right"]).shape == (1, 32, 16) and not first.text.encoder.training


def test_a_judge_is_asked_about_each_trained_model_and_its_answer_is_kept(latents, tmp_path):
    asked, shares = [], {"shape": 0.25, "all": 0.0}

    def judge(model, text):
        asked.append((model.config, model.training))
        return shares

    curves = compare({"rope": ROPE, "learned": LEARNED}, latents, judge=judge)
    assert asked == [(ROPE, False), (LEARNED, False)]
    write_results(tmp_path / "position.json", some_results(list(curves.values())))
    assert [curve.obeyed for curve in read_results(tmp_path / "position.json").curves] == [shares, shares]
    assert compare({"rope": ROPE}, latents, steps=1)["rope"].obeyed == {}


def test_clips_held_back_are_never_trained_on(latents):
    poisoned = latents.mean.clone()
    poisoned[8:] = float("nan")
    curve = compare({"rope": ROPE}, replace(latents, mean=poisoned), steps=6)["rope"]
    assert all(loss != loss for loss in curve.loss)  # measured on them
    clean = compare({"rope": ROPE}, latents, steps=6)["rope"]
    assert all(torch.equal(a, b) for a, b in zip(curve.model.state_dict().values(), clean.model.state_dict().values()))


def test_a_comparison_leaves_random_state_and_gradient_mode_alone(latents):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        curve = compare({"rope": ROPE}, latents, steps=4)["rope"]
        compare_vaes({"l1": (VAE, L1)}, steps=1, batch_size=1)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state) and curve.loss[-1] < curve.loss[0]


def test_what_cannot_be_compared_is_refused(latents, subtests):
    few = replace(latents, scenes=latents.scenes[:64])
    for options, told in (({"steps": 0}, "steps is 0"), ({"batch_size": 0}, "batch_size is 0"),
                          ({"every": -1}, "every is -1"), ({"variants": {}}, "variants is empty"),
                          ({"latents": few}, "latents hold 64 clips; 64 are held back")):
        with subtests.test(told=told), pytest.raises(ValueError, match=told):
            compare(**{"variants": {"rope": ROPE}, "latents": latents} | options)


# ---- VAEs


def watch_videos(monkeypatch) -> list[tuple[VAEStage, torch.Tensor]]:
    """The stage and the videos of every batch that is drawn from now on."""
    seen, batch = [], vaes.WorldVideos.batch

    def draw_and_keep(self, stage, *arguments):
        seen.append((stage, batch(self, stage, *arguments)))
        return seen[-1][1]

    monkeypatch.setattr(vaes.WorldVideos, "batch", draw_and_keep)
    return seen


def test_every_vae_sees_the_same_clips_and_a_seed_fixes_the_curve(monkeypatch):
    seen = watch_videos(monkeypatch)
    wide = (replace(VAE, latent_channels=8), replace(L1, kl_weight=0.0))
    curves = compare_vaes({"l1": (VAE, L1), "wide": wide, "again": (VAE, L1)}, steps=3, batch_size=2, every=2)
    videos = [video for _, video in seen]
    assert len(videos) == 9 and all(torch.equal(videos[i], videos[i + 3]) for i in range(6))
    assert not torch.equal(videos[0], videos[1]) and videos[0].shape == (2, 3, 9, 32, 32)
    one, again = curves["l1"], curves["again"]
    assert one.steps == [0, 2, 3] and again.seed == 0 and again.flicker_of_true > 0
    for name in ("psnr", "lpips", "flicker", "sharpness", "kl_per_element"):
        assert getattr(one, name) == getattr(again, name) and len(getattr(one, name)) == 3
    assert one.psnr != curves["wide"].psnr and isinstance(one.vae, CausalVAE)
    other = compare_vaes({"l1": (VAE, L1)}, steps=3, seed=1, batch_size=2, every=3)["l1"]
    assert other.psnr[-1] != one.psnr[-1]


def test_a_gan_takes_part_from_its_start():
    gan = replace(L1, gan_weight=0.5, gan_start=1)
    curves = compare_vaes({"l1": (VAE, L1), "gan": (VAE, gan)}, steps=3, batch_size=2, every=1)
    assert curves["l1"].psnr[:2] == curves["gan"].psnr[:2]  # the first step has no GAN yet
    assert curves["l1"].psnr[2] != curves["gan"].psnr[2]
    assert curves["l1"].parameters == curves["gan"].parameters


def test_stages_of_a_vae_follow_each_other_and_are_judged_on_every_length(monkeypatch):
    seen = watch_videos(monkeypatch)
    stages = VAEStage(3, 2, num_frames=5, frame_rates=(8, 16)), VAEStage(1, 1, num_frames=9)
    curves = vaes.compare_vae_stages(VAE, L1, {"both": stages}, {"": (13, 32), ", short": (5, 32)}, steps=8, every=4)
    assert [tuple(video.shape) for _, video in seen] == [(2, 3, 5, 32, 32)] * 6 + [(1, 3, 9, 32, 32)] * 2
    assert [stage.frame_rates for stage, _ in seen] == [(8, 16)] * 6 + [(8,)] * 2
    assert list(curves) == ["both", "both, short"] and curves["both"].steps == curves["both, short"].steps == [0, 4, 8]
    assert curves["both"].vae is curves["both, short"].vae and curves["both"].psnr != curves["both, short"].psnr
    for steps, bounds in ((8, [0, 6, 8]), (1, [0, 1, 1]), (100, [0, 75, 100])):
        assert vaes.shared_out(steps, stages) == bounds


def test_the_measured_clips_are_of_the_training_split_and_never_trained_on():
    scenes = sample_scenes(vaes.MEASURED, vaes.MEASURED_SEED, "train")
    assert not any(is_held_out(thing.shape, thing.colour, thing.motion) for scene in scenes for thing in scene.objects)
    drawn = [scene for seed in (0, 1, 2) for step in range(600)
             for scene in sample_scenes(4, seed * 10_000_000 + 1 + step, "train")]
    assert len(drawn) == 7200 and not any(scene in drawn for scene in scenes)
    assert vaes.measured_clips(5, 16, 24).shape == (16, 5, 16, 24, 3)


class FakeVAE(CausalVAE):
    """Gives back each clip blurred along its rows `times` times."""

    def __init__(self, times: int):
        super().__init__(VAE)
        self.times = times

    def encode(self, video, chunk_frames=None):
        return DiagonalGaussian(torch.cat([video, torch.full_like(video, -30.0)], dim=1))

    def decode(self, latents, chunk_latents=None):
        for _ in range(self.times):
            latents = (latents + latents.roll(1, -1)) / 2
        return latents


def test_measures_of_known_reconstructions():
    measures = vaes.Measures(vaes.measured_clips(), torch.float32)
    perfect, soft, softer = (measures.of(FakeVAE(times)) for times in (0, 1, 3))
    assert perfect["psnr"] > 100 and perfect["lpips"] == pytest.approx(0, abs=1e-6)
    assert perfect["sharpness"] == pytest.approx(1, abs=1e-4)
    assert perfect["flicker"] == pytest.approx(measures.flicker_of_true, rel=1e-4)
    assert 1 > soft["sharpness"] > softer["sharpness"] > 0 and soft["psnr"] > softer["psnr"]
    assert 0 < soft["lpips"] < softer["lpips"]


# ---- files


CURVE = Curve("rope", 0, 5, [0, 25], [1.0, 1 / 3], 2.0)


def some_results(curves) -> Results:
    return Results("position", "minicogvx ablate position", [0], 25, torch.__version__, 2, 0.5, curves)


def test_results_survive_the_file_without_their_models(tmp_path):
    path = tmp_path / "new" / "position.json"
    vae = VAECurve("L1", 0, 10, [0, 25], [1.0, 20.5], [0.5, 0.25], [3.0, 2.0], [0.1, 1 / 3], [0.0, 1.5], 2.5, 9.0,
                   vae=CausalVAE(VAE))
    for curves, name in (([replace(CURVE, model=ExpertTransformer(ROPE)), replace(CURVE, seed=1)], "loss"),
                         ([vae], "sharpness")):
        write_results(path, some_results(curves))
        back = read_results(path)
        assert replace(back, curves=[]) == some_results([])
        for one, again in zip(curves, back.curves, strict=True):
            assert type(again) is type(one) and (again.name, again.seed, again.steps) == (one.name, one.seed, one.steps)
            assert getattr(again, name) == pytest.approx(getattr(one, name), rel=1e-5)
            assert getattr(again, "model", None) is None and getattr(again, "vae", None) is None
        assert [path.name for path in path.parent.iterdir()] == ["position.json"]
        write_results(tmp_path / "twice.json", back)
        assert read_results(tmp_path / "twice.json") == back


def test_load_results_finds_the_folder_of_the_shipped_data(tmp_path, monkeypatch):
    data = Path(__file__).resolve().parents[1] / "data"
    assert results.default_file("position") == data / "results" / "position.json"
    monkeypatch.setattr(results, "DATA", tmp_path)
    with pytest.raises(FileNotFoundError, match="no file .*position.json; `minicogvx ablate position --out .*` makes"):
        load_results("position")
    curve = replace(CURVE, loss=[1.0, 0.5])
    write_results(tmp_path / "results" / "position.json", some_results([curve]))
    assert load_results("position") == [curve]
    with pytest.raises(ValueError, match="there are no results called 'positions'; the studies are vae-losses, "):
        load_results("positions")


def test_a_file_that_is_not_whole_is_reported_in_one_sentence(tmp_path, subtests):
    path = tmp_path / "position.json"
    with pytest.raises(ValueError, match="curves is empty"):
        write_results(path, some_results([]))
    write_results(path, some_results([CURVE]))
    text = path.read_text()
    for wrong in (text[:len(text) // 2], "", "[]", text.replace('"loss"', '"lost"'),
                  text.replace('"kind": "transformer"', '"kind": "text"'), text.replace('"steps": 25,', "")):
        path.write_text(wrong)
        with subtests.test(wrong=wrong), pytest.raises(ValueError, match="position.json is not a complete") as error:
            read_results(path)
        assert str(error.value).count("\n") == 0


# ---- studies and the command


def test_studies_are_fair_and_compressions_what_they_are_called():
    assert set(STUDIES) == {"vae-losses", "vae-kl", "vae-compression", "vae-stages", "latents", "latents-micro",
                            "minutes-micro", "position", "modulation", "attention", "twins", "uniform-sampling",
                            "schedules", "stages"}
    with torch.device("meta"):
        for name in ("position", "modulation", "attention"):
            counts = [sum(p.numel() for p in ExpertTransformer(config).parameters())
                      for config in STUDIES[name].variants.values()]
            assert all(abs(count / counts[0] - 1) < 0.02 for count in counts), (name, counts)
        for name, latent in {"8x8x1, 4 channels": (4, 9, 4, 4), "8x8x4, 16 channels": (16, 3, 4, 4),
                             "8x8x8, 32 channels": (32, 2, 4, 4), "16x16x8, 128 channels": (128, 2, 2, 2)}.items():
            config, _ = STUDIES["vae-compression"].variants[name]
            assert CausalVAE(config).encode(torch.empty(1, 3, 9, 32, 32)).mean.shape[1:] == latent
    assert list(STUDIES["modulation"].variants) == ["expert", "shared", "separate"]
    assert list(STUDIES["attention"].variants) == ["full", "factorised"]
    assert list(STUDIES["position"].variants) == ["rope", "sincos", "learned", "none"]
    for name, study in STUDIES.items():
        assert study.name == name and len(study.variants) > 1
        if not hasattr(study, "minutes"):  # they count minutes: tests/test_stages.py, tests/test_latents.py
            assert isinstance(study, (TransformerStudy, SchedulesStudy, TimestepsStudy, TwinStudy, VAEStudy,
                                      VAEStagesStudy))
            assert study.steps % study.every == 0


@pytest.fixture
def tiny_study(monkeypatch):
    """`vae-kl` with one variant."""
    monkeypatch.setitem(STUDIES, "vae-kl", replace(STUDIES["vae-kl"], variants={"0": (VAE, L1)}, batch_size=1))


def test_the_command_writes_after_each_seed_and_resumes_with_those_missing(tiny_study, tmp_path, monkeypatch, capsys):
    out, done = tmp_path / "kl.json", []
    base = ["ablate", "vae-kl", "--steps", "1", "--out", str(out)]
    assert cli.main([*base, "--seeds", "2"]) == 0
    told = capsys.readouterr()
    assert "0, seed 1, " in told.out and told.out.endswith(f"{out}\n") and "2/2" in told.err
    content = json.loads(out.read_text())
    assert content["seeds"] == [0, 1] and content["steps"] == 1 and content["torch"] == torch.__version__
    assert content["command"].startswith("minicogvx ablate vae-kl --seeds 2 --steps 1 --threads ")
    first, real = read_results(out), command.comparison

    def watched(*study_and_place):
        compare = real(*study_and_place)
        return lambda steps, seed, on_step, names: done.append(seed) or compare(steps, seed, on_step, names)

    monkeypatch.setattr(command, "comparison", watched)
    assert cli.main([*base, "--seeds", "3", "--resume"]) == 0
    all_three = read_results(out)
    assert done == [2] and all_three.seeds == [0, 1, 2] and all_three.curves[:2] == first.curves
    assert all_three.minutes >= first.minutes and "--seeds 3" in all_three.command
    assert cli.main([*base, "--seeds", "1", "--resume"]) == 0 and done == [2]
    assert "--seeds 3" in read_results(out).command  # as before: all are still there
    capsys.readouterr()
    assert cli.main(["ablate", "vae-kl", "--steps", "2", "--out", str(out), "--resume"]) == 2
    assert "was made with steps=1, this run has 2; name another file with --out" in capsys.readouterr().err
    content["command"] = content["command"].replace("--device cpu", "--device cuda")
    out.write_text(json.dumps(content))
    assert cli.main([*base, "--seeds", "2", "--resume"]) == 2
    assert "was made with --device cuda --dtype " in capsys.readouterr().err


def test_the_command_resumes_stages_of_a_vae(tmp_path, monkeypatch):
    stages = (VAEStage(1, 1, num_frames=5),)
    tiny = replace(STUDIES["vae-stages"], variants={"a": stages, "b": stages}, config=VAE, loss=L1)
    monkeypatch.setitem(STUDIES, "vae-stages", tiny)
    monkeypatch.setattr(VAEStagesStudy, "judged", {"": (5, 32), ", longer": (9, 32)})
    run = ["ablate", "vae-stages", "--steps", "1", "--out", str(tmp_path / "s.json")]
    assert cli.main(run) == 0 and cli.main([*run, "--seeds", "2", "--resume"]) == 0
    assert [(curve.name, curve.seed) for curve in read_results(tmp_path / "s.json").curves] == [
        (name, seed) for seed in (0, 1) for name in ("a", "a, longer", "b", "b, longer")]


def test_a_study_computes_where_and_in_the_format_that_is_asked_for(tiny_study, tmp_path, monkeypatch):
    seen, real = [], VAETask.reconstruct

    def watched(self, *arguments):
        seen.append(self.dtype)
        return real(self, *arguments)

    monkeypatch.setattr(VAETask, "reconstruct", watched)
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / f"{dtype}.json"
        assert cli.main(["ablate", "vae-kl", "--steps", "1", "--out", str(out), "--dtype", dtype]) == 0
        assert read_results(out).command.endswith(f"--device cpu --dtype {dtype}")
    assert seen == [torch.float32, torch.bfloat16]


def test_what_is_there_or_in_use_is_left_alone_and_by_default_the_user_s_folder_is_written(tmp_path, monkeypatch,
                                                                                           capsys):
    monkeypatch.chdir(tmp_path)
    shipped = results.default_file("position").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(command, "comparison", lambda *_: lambda steps, seed, on_step, names: made(names, seed))
        assert cli.main(["ablate", "position", "--steps", "25"]) == 0
    assert read_results("runs/ablate/position.json").steps == 25
    assert results.default_file("position").read_bytes() == shipped
    monkeypatch.setattr(command, "comparison", lambda *_: pytest.fail("something was trained"))
    monkeypatch.setattr("minicogvx.ablation.stages_command.run", lambda *_: pytest.fail("something was trained"))
    capsys.readouterr()
    for study in ("attention", "stages"):
        out = tmp_path / f"{study}.json"
        out.write_text("mine")
        assert cli.main(["ablate", study, "--out", str(out)]) == 2
        assert f"{out} already exists; add --resume, or name another" in capsys.readouterr().err
        assert out.read_text() == "mine"
        with locked(tmp_path / f".{study}.json.run"):
            assert cli.main(["ablate", study, "--out", str(out), "--resume"]) == 2
        assert "is in use by another run" in capsys.readouterr().err


def made(names, seed: int) -> dict[str, Curve]:
    return {name: replace(CURVE, name=name, seed=seed) for name in names}


def test_an_interrupted_seed_keeps_the_variants_that_are_done(tmp_path, monkeypatch):
    stops, trained = [(1, "learned")], []

    def compare(steps, seed, on_step, names):
        if (seed, *names) in stops:
            raise KeyboardInterrupt
        trained.append((seed, *names))
        return made(names, seed)

    monkeypatch.setattr(command, "comparison", lambda *_: compare)
    run = ["ablate", "position", "--seeds", "3", "--steps", "25", "--out", str(tmp_path / "a.json")]
    assert cli.main(run) == 130
    kept, names = read_results(tmp_path / "a.json"), list(STUDIES["position"].variants)
    assert [(curve.seed, curve.name) for curve in kept.curves] == trained == [
        *((0, name) for name in names), (1, "rope"), (1, "sincos")]
    assert kept.seeds == [0, 1]
    stops.clear()
    trained.clear()
    assert cli.main([*run, "--resume"]) == 0
    assert trained == [(1, "learned"), (1, "none"), *((2, name) for name in names)]
    whole = read_results(tmp_path / "a.json").curves
    assert [(curve.seed, curve.name) for curve in whole] == [(seed, name) for seed in range(3) for name in names]


def test_a_file_with_variants_of_another_study_is_not_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "comparison", lambda *_: lambda steps, seed, on_step, names: made(names, seed))
    out = tmp_path / "a.json"
    run = ["ablate", "position", "--steps", "25", "--out", str(out)]
    assert cli.main(run) == 0
    out.write_text(out.read_text().replace('"sincos"', '"cosines"'))
    assert cli.main([*run, "--resume"]) == 2
    assert "has the variants rope, cosines, learned, none, this study rope, sincos" in capsys.readouterr().err


def test_mistakes_are_reported_in_one_line_before_anything_is_written(tmp_path, monkeypatch, capsys, subtests):
    monkeypatch.chdir(tmp_path)
    for arguments, told in (
            ("positions", "there is no study 'positions'; the studies are vae-losses, vae-kl, "),
            ("position --seeds 0", "seeds is 0"), ("position --steps -3", "steps is -3"),
            ("position --threads 0", "threads is 0"), ("position --device tpu", "device is 'tpu'"),
            ("position --dtype float16", "dtype is 'float16'"),
            ("position --minutes 3", "--minutes does not go with position, which counts steps"),
            ("position --only rope", "--only does not go with position"),
            ("stages --steps 3", "--steps does not go with stages, which counts minutes"),
            ("stages --plot x.png", "--plot does not go with stages, which counts minutes"),
            ("twins --plot x.png", "--plot does not go with twins, whose runs have several curves each"),
            ("position --plot x.pdf", "plot is 'x.pdf'; it must end in .png"),
            ("latents --best-fifth 1", "--best-fifth does not go with latents, which trains on all clips"),
            ("stages --vae toy", "--vae does not go with stages, which takes the VAE of the toy"),
            ("position --vae toy", "--vae does not go with position, which counts steps"),
            ("latents --only plane", "only is 'plane'; the variants of latents are plain; masked; "),
            ("latents --steps 3", "--steps does not go with latents, which counts minutes"),
            ("stages --minutes 0", "minutes is 0.0; it must be above 0"),
            ("stages --best-fifth -1", "best_fifth is -1.0; it must be 0 or more"),
            ("stages --only growing", "only is 'growing'; the variants of stages are full size; progressive; ")):
        with subtests.test(arguments=arguments):
            assert cli.main(["ablate", *arguments.split()]) == 2
            error = capsys.readouterr().err
            assert told in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.json"))
