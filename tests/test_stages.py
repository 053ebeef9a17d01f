"""Stages of growing size, the best fifth, and the published stages as numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minicogvx import cli
from minicogvx.ablation import results, stage_judge, stages, stages_command, stages_figure
from minicogvx.ablation.results import read_results
from minicogvx.ablation.stage_clips import (
    choose_flawed,
    encode_blurred,
    encode_clips,
    out_of_focus,
    steepness,
    unseen_scenes,
)
from minicogvx.ablation.stage_judge import Judge
from minicogvx.ablation.stages import Bench, Learner, StagesCurve, compare_stages, refine, train
from minicogvx.ablation.studies import STAGES, STUDIES, StagesStudy, TimedStage
from minicogvx.data.world.captions import vocabulary
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import is_held_out, sample_scenes
from minicogvx.evaluation.adherence import Adherence
from minicogvx.pipeline import Pipeline
from minicogvx.presets import preset
from minicogvx.text import TextEncoder
from minicogvx.training.stages import PUBLISHED_STAGES, StageSize, clip_tokens, published_stage, rank_batch, stage_size
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE

MICRO = preset("micro")
VAE = replace(MICRO.vae, block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4)
TEXT = replace(MICRO.text, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
MODEL = replace(MICRO.transformer, num_attention_heads=2, attention_head_dim=16, num_layers=2, in_channels=4,
                out_channels=4, time_embed_dim=16, text_embed_dim=32, max_text_seq_length=32)
GROWING = (TimedStage(0.25, 5, 16, 8), TimedStage(0.25, 5, 32, 4), TimedStage(0.5, 9, 32, 4))
STUDY = StagesStudy("stages", "does it grow?", {
    "full size": (MODEL, (TimedStage(1.0, 9, 32, 4),)), "progressive": (MODEL, GROWING),
    "interpolated": (replace(MODEL, position_scaling="interpolate"), GROWING),
}, refined="progressive", minutes=0.05, best_fifth=0.025, every=1.0, clips=56, held_back=16, measured=4)
TOKENS = {(5, 16): 32 + 2 * 2 * 2, (5, 32): 32 + 2 * 4 * 4, (9, 32): 32 + 3 * 4 * 4}


class Clock:
    """A clock that advances by an eighth of a second per call, the time of a step: runs are reproducible."""

    def __init__(self):
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 0.125
        return self.time


@pytest.fixture(scope="module")
def clips_and_pipe():
    torch.manual_seed(0)
    text = TextEncoder.from_config(TEXT, vocabulary(), MODEL.max_text_seq_length)
    pipe = Pipeline(CausalVAE(VAE).eval(), ExpertTransformer(MODEL), MICRO.schedule, text)
    sizes = STUDY.sizes(("full size", "progressive"))
    assert sizes == ((9, 32), (5, 16), (5, 32))
    return encode_clips(pipe.vae, STUDY, sizes, torch.float32, progress=False), pipe


@pytest.fixture
def bench(clips_and_pipe) -> Bench:
    clips, pipe = clips_and_pipe
    return Bench(STUDY, clips, pipe, TEXT, MICRO.schedule, torch.float32, now=Clock())


class QuickJudge(Judge):
    """A judge with the same verdict on every model."""

    references = {"blurred": {"sharpness": 0.3, "obeyed": 1.0}}

    def __init__(self, study, shown, pipe, schedule):
        assert shown and study.measured

    def __call__(self, model, text):
        assert not model.training and not text.encoder.training
        return {"all": 0.5, "shape": 0.75}, 4, 0.9


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(stages, "Judge", QuickJudge)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# ---- stages and time


def test_stages_follow_each_other_and_share_the_time(bench, monkeypatch):
    taken, real = [], Learner.step

    def watched(self, latents, batch_size, seed, factor, alignment_weight):
        taken.append((tuple(latents.mean.shape[2:]), batch_size, seed, factor, alignment_weight))
        return real(self, latents, batch_size, seed, factor, alignment_weight)

    monkeypatch.setattr(Learner, "step", watched)
    learner, curve = train(bench, "progressive", seed=2)
    shapes, batches, seeds, factors, aligned = zip(*taken)
    assert shapes == ((2, 4, 4),) * 6 + ((2, 8, 8),) * 6 + ((3, 8, 8),) * 12  # 3 seconds of an eighth: 24 steps
    assert batches == (8,) * 6 + (4,) * 18 and seeds == tuple(range(20_000_000, 20_000_024))
    peak = factors.index(max(factors))
    assert 0 < factors[0] < 0.01 and peak == 1 and max(factors) > 0.99  # one warm-up
    assert all(a > b for a, b in zip(factors[1:], factors[2:])) and factors[-1] < 0.05  # one cosine over all stages
    assert aligned[0] == 1.0 and aligned[12] == pytest.approx(0.5) and aligned[-1] == pytest.approx(1 / 24)
    assert curve.stages == ["16x16, 5 frames", "32x32, 5 frames", "32x32, 9 frames"] and curve.ends == [0.75, 1.5, 3.0]
    assert curve.seconds == [0.0, 0.75, 1.0, 1.5, 2.0, 3.0] and curve.steps == [0, 6, 8, 12, 16, 24]
    assert curve.clips[-1] == learner.clips == 6 * 8 + 18 * 4
    assert curve.tokens[-1] == 48 * TOKENS[5, 16] + 24 * TOKENS[5, 32] + 48 * TOKENS[9, 32]
    assert len(curve.loss) == len(curve.loss_of_sharp) == len(curve.seconds)


def test_the_clock_stands_still_while_the_loss_is_measured(bench, monkeypatch):
    def slow(*arguments):
        bench.now.time += 1000.0
        return 0.5

    monkeypatch.setattr(stages, "held_back_loss", slow)
    _, curve = train(bench, "full size", 0)
    assert curve.steps[-1] == 24 and curve.seconds[-1] == 3.0 and bench.now.time > 2000


def test_a_slow_step_at_the_end_of_a_stage_does_not_lengthen_the_run(bench):
    slow = replace(bench, now=lambda clock=bench.now: 3.2 * clock())  # 0.4 s a step
    learner, curve = train(slow, "progressive", 0)
    assert curve.ends == pytest.approx([0.8, 1.6, 3.2]) and learner.steps == 8


def test_seconds_are_reported_once_each(bench, quick):
    told = []
    compare_stages(replace(bench, on_second=told.append), ["progressive"])
    names = ["progressive", "progressive, then all clips", "progressive, then the best fifth"]
    assert told == [names[0]] * 3 + [names[1]] + [names[2]]
    assert stages_command._seconds(STUDY, ["progressive"]) == len(told)


def test_a_seed_fixes_the_run_and_variants_share_batches_and_text_encoder(bench, monkeypatch):
    drawn, draw = [], stages.draw_batch

    def kept(*arguments):
        batch = draw(*arguments)
        drawn.append(batch[:2])
        return batch

    monkeypatch.setattr(stages, "draw_batch", kept)
    starts = [Learner(MODEL, bench, 0), Learner(replace(MODEL, num_layers=1), bench, 0)]
    assert same(*(start.text.encoder for start in starts))
    runs = [train(bench, name, seed) for name, seed in
            (("progressive", 0), ("progressive", 0), ("interpolated", 0), ("progressive", 1))]
    calls = [drawn[i * 24:(i + 1) * 24] for i in range(4)]
    for other in (1, 2):
        assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(calls[0], calls[other], strict=True))
    assert not torch.equal(calls[0][0][0], calls[3][0][0])
    assert runs[0][1].loss == runs[1][1].loss and same(runs[0][0].master, runs[1][0].master)
    assert runs[0][1].loss[0] == runs[2][1].loss[0] and runs[0][1].loss[-1] != runs[2][1].loss[-1]


def test_runs_learn_and_leave_random_state_and_gradient_mode_alone(bench, quick):
    longer = replace(bench, study=replace(STUDY, minutes=0.1, best_fifth=0.0))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        curves = compare_stages(longer, ["full size", "progressive"])
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert [curve.name for curve in curves] == ["full size", "progressive"]
    for curve in curves:
        assert curve.loss[-1] < 0.9 * curve.loss[0] and curve.sharp_share == pytest.approx(0.2, abs=0.15)
        assert curve.adherence == {"all": 0.5, "shape": 0.75} and curve.measured == 4 and curve.sharpness == 0.9
        assert curve.parameters == sum(p.numel() for p in curve.model.parameters())


def test_every_run_ends_with_clips_that_it_made(bench):
    study = replace(STUDY, measured=2, best_fifth=0.0)
    (curve,) = compare_stages(replace(bench, study=study), ["interpolated"])
    assert curve.measured == 2 and set(curve.adherence) >= {"all", "shape", "colour", "motion", "background"}
    assert curve.sharpness > 0 and set(curve.references) == {
        "blurred", "sharp, through the VAE", "blurred, through the VAE"}
    assert curve.text.encode(["a red circle moves right"]).shape == (1, 32, 32)


# ---- the best fifth


def test_the_best_fifth_continues_from_the_averages_with_chosen_clips_alone(bench, monkeypatch):
    learner, before = train(bench, "progressive", 0)
    averages = [net for net in learner.averages]
    drawn, factors, real = [], [], Learner.step

    def watched(self, latents, batch_size, seed, factor, alignment_weight):
        drawn.append((latents, seed))
        factors.append(factor)
        assert alignment_weight == 0.0
        return real(self, latents, batch_size, seed, factor, alignment_weight)

    monkeypatch.setattr(Learner, "step", watched)
    after = {kind: refine(bench, learner, before, kind) for kind in ("all clips", "the best fifth")}
    for kind, (on, curve) in after.items():
        assert curve.name == f"progressive, then {kind}" and curve.seconds[0] == 3.0 and curve.ends == [4.5]
        assert curve.loss[0] == before.loss[-1] and curve.steps[0] == 24 and curve.steps[-1] == 36
        assert not same(on.averages[0], averages[0])
    assert max(factors) <= 0.2 and len(drawn) == 24
    assert [seed for _, seed in drawn[:12]] == [seed for _, seed in drawn[12:]]
    chosen = bench.clips.best()
    whole = bench.clips.train[9, 32]
    assert len(chosen) == 8 and drawn[0][0].mean.shape == whole.mean.shape
    assert drawn[12][0].scenes == [whole.scenes[i] for i in chosen.tolist()]
    assert torch.equal(drawn[12][0].mean, whole.mean[chosen])
    assert after["all clips"][1].sharp_share == before.sharp_share < after["the best fifth"][1].sharp_share


def differs(some, others) -> torch.Tensor:
    """Which clips have other latents, by more than the rounding of another batch."""
    return (some.mean.float() - others.mean.float()).abs().flatten(1).amax(1) > 0.01


def test_exactly_four_fifths_have_the_flaw_and_the_others_are_untouched(clips_and_pipe):
    clips, pipe = clips_and_pipe
    for count in (40, 201):
        flawed = choose_flawed(count, 0.8, seed=3)
        assert flawed.sum() == round(0.8 * count) and torch.equal(flawed, choose_flawed(count, 0.8, 3))
    assert not torch.equal(choose_flawed(40, 0.8, 3), choose_flawed(40, 0.8, 4))
    flawed = choose_flawed(STUDY.clips, STUDY.flawed, STUDY.clips_seed)
    assert torch.equal(clips.flawed, flawed[:40])
    scenes = sample_scenes(STUDY.clips, STUDY.clips_seed, "train", 0.0)
    for (frames, side), latents in clips.train.items():
        _, sharp = encode_blurred(pipe.vae, scenes[:40], torch.zeros(40, dtype=torch.bool), frames, side, STUDY.blur,
                                  torch.float32, progress=False)
        changed = differs(sharp, latents)
        assert torch.equal(changed, clips.flawed) and latents.scenes == scenes[:40]
    assert clips.held_back.scenes == clips.held_back_sharp.scenes == scenes[40:]
    assert torch.equal(differs(clips.held_back, clips.held_back_sharp), flawed[40:])


def test_blur_has_its_width_and_keeps_what_is_plain():
    dot = torch.zeros(1, 1, 33, 33, 3)
    dot[0, 0, 16, 16] = 1.0
    soft = out_of_focus(dot, 1.2)[0, 0, :, :, 0]
    places = torch.arange(33.0) - 16
    assert soft.sum().item() == pytest.approx(1, abs=1e-5)
    for axis in (0, 1):
        assert (soft.sum(axis) * places**2).sum().item() == pytest.approx(1.2**2, rel=0.02)
    plain = torch.rand(2, 3, 1, 1, 3).expand(2, 3, 16, 16, 3)
    assert torch.allclose(out_of_focus(plain, 0.6), plain, atol=1e-6)
    assert out_of_focus(dot[:0], 1.2).shape == (0, 1, 33, 33, 3)


@pytest.fixture(scope="module")
def true_clips():
    scenes = sample_scenes(80, 17, "train", 0.0)
    return scenes, render_batch(scenes, 17, 64, 64)


def test_the_score_picks_the_clips_in_focus_whatever_they_show(true_clips):
    _, clips = true_clips
    flawed = choose_flawed(len(clips), 0.8, 0)
    seen = clips.clone()
    seen[flawed] = out_of_focus(clips[flawed], STAGES.blur * 64)
    score = steepness(seen)
    assert not flawed[score.topk(16).indices].any()  # all of the best fifth are in focus
    assert score[~flawed].min() > 1.2 * score[flawed].max()
    noisy = (seen + 0.01 * torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert not flawed[steepness(noisy).topk(16).indices].any()
    assert torch.allclose(steepness(0.3 * clips[:4]), steepness(clips[:4]), atol=1e-4)  # contrast does not count
    assert steepness(torch.full((1, 2, 64, 64, 3), 0.5)).item() == 0


def test_the_oracle_reads_blurred_clips_rightly(true_clips):
    scenes, clips = true_clips
    blurred = out_of_focus(clips, STAGES.blur * 64)
    right = sum(matches(read(clip), scene)["all"] for clip, scene in zip(blurred, scenes))
    assert right >= 0.97 * len(scenes)


def test_captions_that_are_measured_belong_to_no_clip():
    shown = sample_scenes(2000, 3, "train", 0.0)
    scenes = unseen_scenes(shown, 50)
    assert len(scenes) == 50 and scenes == unseen_scenes(shown, 50)
    things = {(scene.background, *scene.objects[0].__dict__.values()) for scene in scenes}
    assert len(things) == 50

    def words(scene):
        thing = scene.objects[0]
        return scene.background, thing.shape, thing.colour, thing.motion

    assert not {words(scene) for scene in scenes} & {words(scene) for scene in shown}
    assert not any(is_held_out(*words(scene)[1:]) for scene in scenes)
    with pytest.raises(ValueError, match="captions of 50 are in none of 20000 clips; take fewer clips"):
        unseen_scenes(sample_scenes(20_000, 3, "train", 0.0), 50)


@pytest.mark.parametrize("soft", [False, True])
def test_the_judge_holds_generated_clips_against_true_ones(bench, monkeypatch, soft):
    judge = Judge(STUDY, bench.clips.train[9, 32].scenes, bench.pipe, MICRO.schedule)
    true = render_batch(judge.scenes, 9, 32, 32)
    made = out_of_focus(true, STUDY.blur * 32) if soft else true
    monkeypatch.setattr(Pipeline, "decode", lambda self, latents: made)

    def measured(pipe, scenes, seed, progress):
        assert scenes == judge.scenes and pipe.decode(torch.empty(0)) is not None
        return Adherence({"all": 0.5}, len(scenes), 0.0, [])

    monkeypatch.setattr(stage_judge, "measure_adherence", measured)
    shares, count, sharpness = judge(bench.pipe.transformer, bench.pipe.text)
    assert shares == {"all": 0.5} and count == 4
    assert sharpness == pytest.approx(judge.references["blurred"]["sharpness"] if soft else 1.0, abs=1e-5)
    assert judge.references["blurred"]["sharpness"] < 0.9


# ---- what is refused


@pytest.mark.parametrize(("change", "message"), [
    ({"minutes": 0.0}, "minutes is 0.0; it must be above 0"), ({"minutes": float("nan")}, "minutes is nan"),
    ({"best_fifth": -1.0}, "best_fifth is -1.0"), ({"flawed": 1.0}, "flawed is 1.0"), ({"clips": 20}, "clips is 20"),
    ({"refined": "growing"}, "refined is 'growing'; it must be one of full size, progressive, interpolated"),
    ({"variants": {"progressive": (MODEL, GROWING[:2])}}, "the shares of 'progressive' add up to 0.5"),
    ({"variants": {"progressive": (MODEL, ())}}, "without a stage"),
    ({"variants": {"progressive": (MODEL, GROWING), "small": (MODEL, (TimedStage(1.0, 5, 16, 4),))}},
     "the last stages of variants differ in size"),
])
def test_a_study_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(STUDY, **change)


def test_unknown_variants_and_sizes_that_do_not_fit_are_refused(bench):
    with pytest.raises(ValueError, match="there is no variant 'small'; the variants are full size; progressive; "):
        compare_stages(bench, ["small"])
    with pytest.raises(ValueError, match="names is empty"):
        compare_stages(bench, [])
    small = replace(STUDY, variants={"progressive": (MODEL, (TimedStage(1.0, 5, 16, 4),))})
    with pytest.raises(ValueError, match="of 'progressive' is for 32x32, 9 frames; its last stage is of 16x16, 5"):
        compare_stages(replace(bench, study=small), ["progressive"])


# ---- the committed study, its file and its figure


def test_the_study_is_what_it_says():
    assert STUDIES["stages"] is STAGES and STAGES.full == (17, 64)
    assert [stage.size for stage in STAGES.variants["progressive"][1]] == [(9, 32), (9, 64), (17, 64)]
    assert [config.position_scaling for config, _ in STAGES.variants.values()] == [
        "extrapolate", "extrapolate", "interpolate"]
    for config, stages_of in STAGES.variants.values():
        for stage in stages_of:  # about equally many tokens a step
            size = StageSize(stage.num_frames, stage.side, stage.side, 8)
            assert 2500 < stage.batch_size * clip_tokens(size, preset("toy").vae, config) < 3600


@pytest.fixture
def tiny_command(bench, quick, tmp_path, monkeypatch):
    """`minicogvx ablate stages` with the tiny study, and the file that it writes."""
    monkeypatch.setitem(STUDIES, "stages", STUDY)

    def make(study, names, on_second, *_):
        return replace(bench, study=study, now=Clock(), on_second=on_second)

    monkeypatch.setattr(stages_command, "make_bench", make)
    out = tmp_path / "stages.json"
    return ["ablate", "stages", "--out", str(out)], out


def test_the_command_writes_curves_that_come_back_and_resumes(tiny_command, capsys, monkeypatch):
    command, out = tiny_command
    assert cli.main([*command, "--only", "progressive", "--minutes", "0.03"]) == 0
    told = capsys.readouterr()
    assert told.out.count("captions obeyed") == 3 and told.out.endswith(f"{out}\n")
    content = json.loads(out.read_text())
    assert content["kind"] == "stages" and content["steps"] is None and content["seeds"] == [0]
    assert content["minutes_each"] == 0.03 and content["best_fifth"] == 0.025
    assert '--minutes 0.03 --best-fifth 0.025 --only "progressive" --threads' in content["command"]
    first = read_results(out)
    assert [curve.name for curve in first.curves] == [
        "progressive", "progressive, then all clips", "progressive, then the best fifth"]
    assert all(type(curve) is StagesCurve and curve.model is None for curve in first.curves)
    assert cli.main([*command, "--minutes", "0.03", "--resume"]) == 0
    both = read_results(out)
    assert both.curves[:3] == first.curves
    assert [curve.name for curve in both.curves[3:]] == ["full size", "interpolated"]
    assert "--only" not in both.command and both.minutes >= first.minutes
    monkeypatch.setattr(results, "default_file", lambda name: out)
    assert results.load_results("stages") == both.curves
    content = json.loads(out.read_text())
    for curve in content["curves"]:
        curve["seed"] = 4
    out.write_text(json.dumps(content | {"seeds": [4]}))
    assert cli.main([*command, "--minutes", "0.03", "--resume", "--only", "full size"]) == 0
    assert "--seeds 5" in read_results(out).command and read_results(out).seeds == [0, 4]
    capsys.readouterr()
    assert cli.main([*command, "--minutes", "0.04", "--resume"]) == 2
    assert "was made with minutes_each=0.03, this run has 0.04; name another file with --out" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["stages", "--steps", "3"], "--steps does not go with stages, which counts minutes"),
    (["position", "--minutes", "3"], "--minutes does not go with position, which counts steps"),
    (["position", "--only", "rope"], "--only does not go with position"),
    (["stages", "--minutes", "0"], "minutes is 0.0; it must be above 0"),
    (["stages", "--best-fifth", "-1"], "best_fifth is -1.0; it must be 0 or more"),
    (["stages", "--only", "growing"], "only is 'growing'; the variants of stages are full size; progressive; "),
])
def test_mistakes_are_reported_in_one_line(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ablate", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_the_figure_shows_every_variant_and_marks_where_stages_end():
    pytest.importorskip("matplotlib")
    points = {"seconds": [0.0, 30.0, 60.0], "steps": [0, 9, 20], "loss": [1.0, 0.7, 0.5]}
    curves = [StagesCurve("full size", 0, 5, ["64x64, 17 frames"], [60.0], **points),
              StagesCurve("progressive", 0, 5, ["32x32, 9 frames", "64x64, 17 frames"], [30.0, 60.0], **points),
              StagesCurve("progressive", 1, 5, ["32x32, 9 frames", "64x64, 17 frames"], [30.0, 60.0], **points)]
    (axis,) = stages_figure(curves).axes
    assert axis.get_xlabel() == "seconds of training" and "validation" in axis.get_ylabel()
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["full size", "progressive"]
    assert [text.get_text().strip() for text in axis.texts] == ["32x32, 9 frames", "64x64, 17 frames"]
    drawn = [line.get_xydata().tolist() for line in axis.get_lines()]
    assert [[30.0, 0.7], [60.0, 0.5]] in drawn and [[30.0, 0.7]] in drawn
    with pytest.raises(ValueError, match="curves is empty"):
        stages_figure([])


# ---- the published stages


def test_the_published_stages_are_those_of_table_5():
    rows = [(s.max_height, s.max_width, s.seconds, s.batch_size, s.sequence_length, s.steps) for s in PUBLISHED_STAGES]
    assert rows == [(256, 384, 6, 2000, 25_000, 400_000), (480, 720, 6, 1000, 75_000, 220_000),
                    (768, 1360, 10, 250, 700_000, 120_000), (768, 1360, 10, 100, 700_000, 10_000)]
    assert [s.best_share for s in PUBLISHED_STAGES] == [1, 1, 1, 0.2]
    assert [s.short_side for s in PUBLISHED_STAGES] == [256, 512, 768, 768]
    for number in (0, 5, -1):
        with pytest.raises(ValueError, match=f"stage is {number}; it must be from 1 to 4"):
            published_stage(number)
    assert [rank_batch(published_stage(1), n) for n in (1, 64, 999, 5000)] == [2000, 32, 3, 1]
    with pytest.raises(ValueError, match="world_size is 0"):
        rank_batch(published_stage(1), 0)


@pytest.mark.parametrize(("name", "frames"), [("5b", (49, 49, 81, 81)), ("1.5-5b", (97, 97, 161, 161))])
def test_tokens_of_the_published_stages(name, frames):
    sizes = preset(name)
    of = [stage_size(stage, sizes.vae, sizes.fps) for stage in PUBLISHED_STAGES]
    assert tuple(size.num_frames for size in of) == frames and all(n % 8 == 1 for n in frames)
    tokens = [clip_tokens(size, sizes.vae, sizes.transformer) for size in of]
    assert tokens == [5_218, 17_776, 85_906, 85_906]
    with torch.device("meta"):  # the model itself counts them alike
        model = ExpertTransformer(replace(sizes.transformer, num_layers=1))
        latent_frames = (frames[1] - 1) // 4 + 1
        t, h, w = model.grid(torch.empty(1, 16, latent_frames + latent_frames % model.patch[0], 60, 90))
    assert 226 + t * h * w == tokens[1]
    assert all(count < stage.sequence_length for count, stage in zip(tokens, PUBLISHED_STAGES))
    for rule, longest in (("parity", 57), ("start", 61)):
        assert stage_size(published_stage(1), replace(sizes.vae, first_frame=rule), 10).num_frames == longest
    with pytest.raises(ValueError, match="fps is 0"):
        stage_size(published_stage(1), sizes.vae, 0)


def shown(capsys, *arguments) -> dict[str, str]:
    assert cli.main(["finetune", "films", "--show", *arguments]) == 0
    return dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())


def test_finetune_takes_its_numbers_from_a_stage_and_options_change_them(capsys, monkeypatch):
    plain = shown(capsys)
    assert plain["steps"] == "1000" and plain["batch_size"] == "2" and "height" not in plain
    two = shown(capsys, "--model", "5b", "--stage", "2")
    for name, value in {"height": 480, "width": 720, "num_frames": 49, "fps": 8, "steps": 220_000, "batch_size": 1000,
                        "accumulate": 1000, "tokens_a_clip": 17_776, "published_sequence_length": 75_000,
                        "sequence_length": 0, "ranks": 1}.items():
        assert two[name] == str(value)
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert shown(capsys, "--stage", "4")["ranks"] == "1"  # without a rank it is not torchrun's
    monkeypatch.setenv("RANK", "0")
    four = shown(capsys, "--stage", "4", "--steps", "7", "--height", "64", "--fps", "4", "--set", "accumulate=2")
    for name, value in {"height": 64, "width": 1360, "num_frames": 41, "fps": 4, "steps": 7, "batch_size": 7,
                        "accumulate": 2, "ranks": 16, "best_share": 0.2}.items():
        assert four[name] == str(value)
    assert shown(capsys, "--stage", "1", "--batch-size", "3")["accumulate"] == "1"
    packed = ["sequence_length=25000", "accumulate=1"]  # neither goes without the other
    for one, other in (packed, packed[::-1]):
        assert shown(capsys, "--stage", "1", "--set", one, "--set", other)["sequence_length"] == "25000"
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert cli.main(["finetune", "films", "--show", "--stage", "1"]) == 2
    assert "WORLD_SIZE is 'many'; torchrun sets it to a whole number" in capsys.readouterr().err


def test_a_stage_that_is_none_is_refused_before_anything_is_read(capsys, tmp_path):
    for number in ("0", "5"):
        assert cli.main(["finetune", str(tmp_path / "nowhere"), "--stage", number]) == 2
        told = capsys.readouterr().err
        assert f"stage is {number}; it must be from 1 to 4" in told and told.count("\n") == 1
    assert not Path("runs").joinpath("finetune", "finetuning.json").exists()
