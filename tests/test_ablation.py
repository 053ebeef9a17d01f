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
    transformers,
    vaes,
)
from minicogvx.ablation.results import Results, read_results, write_results
from minicogvx.ablation.studies import STUDIES, TransformerStudy, VAEPart, VAEStagesStudy, VAEStudy
from minicogvx.data.clips.world import LatentSet
from minicogvx.data.world.features import FEATURES
from minicogvx.data.world.scenes import is_held_out, sample_scenes
from minicogvx.files import locked
from minicogvx.presets import preset
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE, DiagonalGaussian
from minicogvx.vae.losses import VAELossConfig

MICRO = preset("micro")
TEXT = replace(MICRO.text, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
ROPE = replace(MICRO.transformer, num_attention_heads=2, attention_head_dim=16, num_layers=1, in_channels=4,
               out_channels=4, time_embed_dim=16, text_embed_dim=32, max_text_seq_length=32)
LEARNED = replace(ROPE, position="learned", num_layers=2)  # draws other random numbers for its weights
VAE = replace(MICRO.vae, block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4)
L1 = VAELossConfig(lpips_weight=0.0, kl_weight=0.06, gan_weight=0.0)


@pytest.fixture
def latents() -> LatentSet:
    """72 clips, of which 64 are for validation; the latents lie around one value a channel, which can be learnt."""
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(1, 4, 1, 1, 1, generator=generator) + 0.1 * torch.randn(72, 4, 3, 8, 8, generator=generator)
    return LatentSet(sample_scenes(72, 0), mean.bfloat16(), torch.full_like(mean, 0.1).bfloat16(), 1.0,
                     torch.zeros(72, 3, 8, 8, FEATURES))


def compare(variants, latents, steps=3, **options):
    return compare_transformers(variants, latents, steps, **{"batch_size": 4, "every": 2, "text": TEXT} | options)


# ---- transformers


def test_every_variant_sees_the_same_batches_and_starts_with_the_same_text_encoder(latents, monkeypatch):
    seen, draw, loss = [], transformers.draw_batch, transformers.diffusion_step_loss

    def draw_and_keep(*arguments):
        batch = draw(*arguments)
        seen.append((batch[0], batch[1]))
        return batch

    def keep_and_lose(model, schedule, x0, text_features, generator):
        seen.append((text_features.detach(), generator.get_state()))  # from which noise and timesteps follow
        return loss(model, schedule, x0, text_features, generator)

    monkeypatch.setattr(transformers, "draw_batch", draw_and_keep)
    monkeypatch.setattr(transformers, "diffusion_step_loss", keep_and_lose)
    calls = []
    for config in (ROPE, LEARNED):
        seen.clear()
        compare({"one": config}, latents)
        calls.append([*seen])
    measured, drawn, used = calls[0][0], calls[0][1], calls[0][2]
    assert len(measured[0]) == 64 and len(drawn[0]) == len(drawn[1]) == len(used[0]) == 4
    for one, other in zip(*calls, strict=True):
        if isinstance(one[1], list):  # clips and captions of a batch
            assert torch.equal(one[0], other[0]) and one[1] == other[1]
        else:
            assert torch.equal(one[1], other[1])
    assert all(torch.equal(calls[0][i][0], calls[1][i][0]) for i in (0, 2))  # text features before the first update


def test_a_curve_falls_and_a_seed_fixes_it(latents):
    done = []
    first = compare({"rope": ROPE}, latents, steps=30, every=20, on_step=lambda *step: done.append(step))["rope"]
    again = compare({"rope": ROPE}, latents, 30, every=20)["rope"]
    other = compare({"rope": ROPE}, latents, 30, seed=1)["rope"]
    assert first.steps == [0, 20, 30] and other.steps == [*range(0, 31, 2)]
    assert first.loss == again.loss and first.loss[-1] != other.loss[-1]
    assert first.loss[0] == other.loss[0]  # a new model predicts 0: the same clips, noise and timesteps for every seed
    assert first.loss[-1] < 0.9 * first.loss[0]
    assert done == [("rope", step) for step in range(1, 31)]
    assert first.parameters == sum(p.numel() for p in first.model.parameters())
    assert next(first.model.parameters()).dtype == torch.float32 and not first.model.training
    assert first.text.encode(["a red circle moves right"]).shape == (1, 32, 32)


def test_the_order_of_the_variants_does_not_matter(latents):
    one, other = (compare(dict(variants), latents) for variants in (
        [("rope", ROPE), ("learned", LEARNED)], [("learned", LEARNED), ("rope", ROPE)]))
    assert list(one) == ["rope", "learned"] and list(other) == ["learned", "rope"]
    assert one["rope"].loss == other["rope"].loss and one["learned"].loss == other["learned"].loss


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
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state) and curve.loss[-1] < curve.loss[0]


@pytest.mark.parametrize("options, message", [
    ({"steps": 0}, "steps is 0"), ({"batch_size": 0}, "batch_size is 0"), ({"every": -1}, "every is -1"),
    ({"variants": {}}, "variants is empty"), ({"clips": 64}, "latents hold 64 clips; 64 are held back"),
])
def test_what_cannot_be_compared_is_refused(latents, options, message):
    clips = options.pop("clips", 72)
    with pytest.raises(ValueError, match=message):
        compare(**{"variants": {"rope": ROPE}, "latents": latents.part(0, clips)} | options)


# ---- VAEs


def test_every_vae_sees_the_same_clips_and_a_seed_fixes_the_curve(monkeypatch):
    seen, batch = [], vaes.world_batch

    def draw_and_keep(*arguments):
        seen.append(batch(*arguments))
        return seen[-1]

    monkeypatch.setattr(vaes, "world_batch", draw_and_keep)
    wide = (replace(VAE, latent_channels=8), replace(L1, kl_weight=0.0))
    variants = {"l1": (VAE, L1), "wide": wide, "again": (VAE, L1)}
    curves = compare_vaes(variants, steps=3, batch_size=2, every=2)
    assert all(torch.equal(a, b) for i in range(3) for a, b in [(seen[i], seen[i + 3])])
    assert not torch.equal(seen[0], seen[1]) and seen[0].shape == (2, 3, 9, 32, 32)
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


def some_results(curves) -> Results:
    return Results("position", "minicogvx ablate position", [0], 25, torch.__version__, 2, 0.5, curves)


def test_results_survive_the_file(tmp_path, latents):
    curve = compare({"rope": ROPE}, latents)["rope"]
    vae = VAECurve("L1", 0, 10, [0, 25], [1.0, 20.5], [0.5, 0.25], [3.0, 2.0], [0.1, 1 / 3], [0.0, 1.5], 2.5, 9.0,
                   vae=CausalVAE(VAE))
    for curves in ([curve, replace(curve, seed=1, model=None)], [vae]):
        write_results(tmp_path / "new" / "position.json", some_results(curves))
        back = read_results(tmp_path / "new" / "position.json")
        assert back.command == "minicogvx ablate position" and back.threads == 2 and back.torch == torch.__version__
        for one, again in zip(curves, back.curves, strict=True):
            assert type(again) is type(one) and again.name == one.name and again.steps == one.steps
            for name in ("loss",) if isinstance(one, Curve) else ("psnr", "lpips", "flicker", "sharpness"):
                assert getattr(again, name) == pytest.approx(getattr(one, name), rel=1e-5)
            assert getattr(again, "model", None) is None and getattr(again, "vae", None) is None
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["position.json"]
    write_results(tmp_path / "twice.json", back)
    assert read_results(tmp_path / "twice.json") == back


def test_load_results_finds_the_folder_of_the_shipped_data(tmp_path, monkeypatch):
    data = Path(__file__).resolve().parents[1] / "data"
    assert results.default_file("position") == data / "results" / "position.json"
    monkeypatch.setattr(results, "DATA", tmp_path)
    with pytest.raises(FileNotFoundError, match="no file .*position.json; `minicogvx ablate position --out .*` makes"):
        load_results("position")
    curve = Curve("rope", 0, 5, [0], [1.0], 2.0)
    write_results(tmp_path / "results" / "position.json", some_results([curve]))
    assert load_results("position") == [curve]
    with pytest.raises(ValueError, match="there are no results called 'positions'; the studies are vae-losses, "):
        load_results("positions")


@pytest.mark.parametrize("mend", [
    lambda text: text[:len(text) // 2], lambda text: "", lambda text: "[]",
    lambda text: text.replace('"loss"', '"lost"'), lambda text: text.replace('"kind": "transformer"', '"kind": "text"'),
    lambda text: text.replace('"steps": 25,', "")])
def test_a_file_that_is_not_whole_is_reported_in_one_sentence(tmp_path, mend):
    path = tmp_path / "position.json"
    write_results(path, some_results([Curve("rope", 0, 5, [0], [1.0], 2.0)]))
    path.write_text(mend(path.read_text()))
    with pytest.raises(ValueError, match="position.json is not a complete file of results") as error:
        read_results(path)
    assert str(error.value).count("\n") == 0


def test_nothing_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="curves is empty"):
        write_results(tmp_path / "position.json", some_results([]))


# ---- studies and the command


def parameters(config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in ExpertTransformer(config).parameters())


def test_studies_are_fair():
    assert set(STUDIES) == {"vae-losses", "vae-kl", "vae-compression", "vae-stages", "position", "modulation",
                            "attention", "stages"}
    for name in ("position", "modulation", "attention"):
        counts = {variant: parameters(config) for variant, config in STUDIES[name].variants.items()}
        first = next(iter(counts.values()))
        assert all(abs(count / first - 1) < 0.02 for count in counts.values()), counts
    assert list(STUDIES["modulation"].variants) == ["expert", "shared", "separate"]
    assert list(STUDIES["attention"].variants) == ["full", "factorised"]
    assert list(STUDIES["position"].variants) == ["rope", "sincos", "learned", "none"]
    for name, study in STUDIES.items():
        assert study.name == name and len(study.variants) > 1
        if name != "stages":  # it counts minutes: tests/test_stages.py
            assert isinstance(study, (TransformerStudy, VAEStudy, VAEStagesStudy)) and study.steps % study.every == 0


def test_stages_of_a_vae_follow_each_other_and_are_judged_on_every_length(monkeypatch):
    drawn, draw = [], vaes.world_batch

    def draw_and_keep(size, seed, num_frames, height, width, rate):
        drawn.append((size, num_frames, rate))
        return draw(size, seed, num_frames, height, width, rate)

    monkeypatch.setattr(vaes, "world_batch", draw_and_keep)
    parts = VAEPart(0.75, 5, 2, frame_rates=(8, 16)), VAEPart(0.25, 9, 1)
    curves = vaes.compare_vae_stages(VAE, L1, {"both": parts}, {"": (13, 32), ", short": (5, 32)}, steps=8, every=4)
    assert [(size, frames) for size, frames, _ in drawn] == [(2, 5)] * 6 + [(1, 9)] * 2
    assert {rate for _, frames, rate in drawn if frames == 5} == {8, 16} and drawn[-1][2] == 8
    assert list(curves) == ["both", "both, short"] and curves["both"].steps == curves["both, short"].steps == [0, 4, 8]
    assert curves["both"].vae is curves["both, short"].vae and curves["both"].psnr != curves["both, short"].psnr
    with pytest.raises(ValueError, match="add up to 0.75"):
        replace(STUDIES["vae-stages"], variants={"short": parts[:1]})


def test_the_command_resumes_stages_of_a_vae(tmp_path, monkeypatch):
    parts = (VAEPart(1.0, 5, 1),)
    tiny = replace(STUDIES["vae-stages"], variants={"a": parts, "b": parts}, config=VAE, loss=L1)
    monkeypatch.setitem(STUDIES, "vae-stages", tiny)
    monkeypatch.setattr(VAEStagesStudy, "judged", {"": (5, 32), ", longer": (9, 32)})
    run = ["ablate", "vae-stages", "--steps", "1", "--out", str(tmp_path / "s.json")]
    assert cli.main(run) == 0 and cli.main([*run, "--seeds", "2", "--resume"]) == 0
    assert [(curve.name, curve.seed) for curve in read_results(tmp_path / "s.json").curves] == [
        (name, seed) for seed in (0, 1) for name in ("a", "a, longer", "b", "b, longer")]


@pytest.mark.parametrize("name, latent", [
    ("8x8x1, 4 channels", (4, 9, 4, 4)), ("8x8x4, 16 channels", (16, 3, 4, 4)),
    ("8x8x8, 32 channels", (32, 2, 4, 4)), ("16x16x8, 128 channels", (128, 2, 2, 2))])
def test_compressions_are_what_they_are_called(name, latent):
    config, _ = STUDIES["vae-compression"].variants[name]
    with torch.device("meta"):
        assert CausalVAE(config).encode(torch.empty(1, 3, 9, 32, 32)).mean.shape[1:] == latent


def test_the_command_writes_after_each_seed(tmp_path, monkeypatch, capsys):
    tiny = replace(STUDIES["vae-kl"], variants={"0": (VAE, L1), "1": (VAE, replace(L1, kl_weight=1.0))}, batch_size=1)
    monkeypatch.setitem(STUDIES, "vae-kl", tiny)
    assert cli.main(["ablate", "vae-kl", "--seeds", "2", "--steps", "1", "--out", str(tmp_path / "kl.json")]) == 0
    told = capsys.readouterr()
    assert "1, seed 1, " in told.out and told.out.endswith(f"{tmp_path / 'kl.json'}\n") and "4/4" in told.err
    content = json.loads((tmp_path / "kl.json").read_text())
    assert content["seeds"] == [0, 1] and content["steps"] == 1 and content["torch"] == torch.__version__
    assert content["command"].startswith("minicogvx ablate vae-kl --seeds 2 --steps 1 --threads ")
    assert [(curve.name, curve.seed) for curve in read_results(tmp_path / "kl.json").curves] == [
        ("0", 0), ("1", 0), ("0", 1), ("1", 1)]


def test_a_study_resumes_with_the_missing_seeds(tmp_path, monkeypatch, capsys):
    tiny = replace(STUDIES["vae-kl"], variants={"0": (VAE, L1)}, batch_size=1)
    monkeypatch.setitem(STUDIES, "vae-kl", tiny)
    out, done = str(tmp_path / "kl.json"), []
    base = ["ablate", "vae-kl", "--steps", "1", "--out", out]
    assert cli.main([*base, "--seeds", "1"]) == 0
    first, real = read_results(out), command.comparison

    def watched(*study_and_place):
        compare = real(*study_and_place)
        return lambda steps, seed, on_step: done.append(seed) or compare(steps, seed, on_step)

    monkeypatch.setattr(command, "comparison", watched)
    assert cli.main([*base, "--seeds", "2", "--resume"]) == 0
    both = read_results(out)
    assert done == [1] and both.seeds == [0, 1] and both.curves[:len(first.curves)] == first.curves
    assert both.minutes >= first.minutes and "--seeds 2" in both.command
    assert cli.main([*base, "--seeds", "1", "--resume"]) == 0 and done == [1]
    assert "--seeds 2" in read_results(out).command  # as before: both are still there
    capsys.readouterr()
    assert cli.main(["ablate", "vae-kl", "--steps", "2", "--out", out, "--resume"]) == 2
    assert "was made with steps=1, this run has 2; name another file with --out" in capsys.readouterr().err
    content = json.loads(Path(out).read_text())
    Path(out).write_text(json.dumps(content | {"command": content["command"].replace("--device cpu", "--device cuda")}))
    assert cli.main([*base, "--seeds", "2", "--resume"]) == 2
    assert "was made with --device cuda --dtype " in capsys.readouterr().err


def test_a_study_computes_where_and_in_the_format_that_is_asked_for(tmp_path, monkeypatch, capsys):
    tiny = replace(STUDIES["vae-kl"], variants={"0": (VAE, L1)}, batch_size=1)
    monkeypatch.setitem(STUDIES, "vae-kl", tiny)
    seen, real = [], vaes.backward

    def watched(vae, objective, video, step, seed, dtype):
        seen.append(dtype)
        return real(vae, objective, video, step, seed, dtype)

    monkeypatch.setattr(vaes, "backward", watched)
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / f"{dtype}.json"
        assert cli.main(["ablate", "vae-kl", "--steps", "1", "--out", str(out), "--dtype", dtype]) == 0
        assert read_results(out).command.endswith(f"--device cpu --dtype {dtype}")
    assert seen == [torch.float32, torch.bfloat16]
    capsys.readouterr()
    for options, message in ((["--device", "tpu"], "device is 'tpu'"), (["--dtype", "float16"], "dtype is 'float16'")):
        assert cli.main(["ablate", "vae-kl", *options]) == 2
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1


def test_left_to_itself_a_study_is_written_where_the_user_is(tmp_path, monkeypatch):
    def compare(steps, seed, on_step):
        return {"rope": Curve("rope", seed, 5, [0, steps], [1.0, 0.5], 2.0)}

    shipped = results.default_file("position").read_bytes()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minicogvx.ablation.command.comparison", lambda *_: compare)
    assert cli.main(["ablate", "position", "--steps", "4"]) == 0
    assert read_results("runs/ablate/position.json").steps == 4
    assert results.default_file("position").read_bytes() == shipped


def test_results_that_are_there_and_a_file_in_use_are_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("minicogvx.ablation.command.comparison", lambda *_: pytest.fail("something was trained"))
    monkeypatch.setattr("minicogvx.ablation.stages_command.run", lambda *_: pytest.fail("something was trained"))
    for study in ("attention", "stages"):
        out = tmp_path / f"{study}.json"
        out.write_text("mine")
        assert cli.main(["ablate", study, "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert f"{out} already exists; add --resume, or name another file with --out" in told
        assert out.read_text() == "mine"
        out.unlink()
        with locked(tmp_path / f".{study}.json.run"):
            assert cli.main(["ablate", study, "--out", str(out), "--resume"]) == 2
        told += capsys.readouterr().err
        assert "is in use by another run" in told and "or name another file with --out" in told
        assert told.count("\n") == 2
    assert not list(tmp_path.iterdir())


def test_an_interrupted_study_keeps_the_seeds_that_are_done(tmp_path, monkeypatch):
    def compare(steps, seed, on_step):
        if seed == 1:
            raise KeyboardInterrupt
        return {"rope": Curve("rope", seed, 5, [0, steps], [1.0, 0.5], 2.0)}

    monkeypatch.setattr("minicogvx.ablation.command.comparison", lambda *_: compare)
    assert cli.main(["ablate", "position", "--seeds", "3", "--steps", "4", "--out", str(tmp_path / "a.json")]) == 130
    assert read_results(tmp_path / "a.json").seeds == [0]


@pytest.mark.parametrize("arguments, message", [
    (["positions"], "there is no study 'positions'; the studies are vae-losses, vae-kl, "),
    (["position", "--seeds", "0"], "seeds is 0; it must be 1 or more"),
    (["position", "--steps", "-3"], "steps is -3; it must be 1 or more"),
    (["position", "--threads", "0"], "threads is 0; it must be 1 or more"),
])
def test_mistakes_are_reported_in_one_line(capsys, arguments, message):
    assert cli.main(["ablate", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
