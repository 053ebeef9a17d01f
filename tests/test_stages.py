"""The study of stages: of growing size against the full size, for equal time; then the best fifth of the clips."""

import json
from dataclasses import replace

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
from minicogvx.ablation.stages import Bench, StagesCurve, compare_stages, new_task, refine, train
from minicogvx.ablation.studies import STAGES, STUDIES, StagesStudy, size_of
from minicogvx.data.clips.clips import Clips, stack_latents
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import is_held_out, sample_scenes
from minicogvx.evaluation.adherence import Adherence
from minicogvx.pipeline import Pipeline
from minicogvx.presets import preset
from minicogvx.training.stages import Stage
from minicogvx.training.transformer import TransformerTask
from tests.tiny import TINY, same, tiny_pipe

MODEL = TINY.transformer
GROWING = (Stage(1, 8, 5, 16, 16), Stage(1, 4, 5, 32, 32), Stage(2, 4, 9, 32, 32))
STUDY = StagesStudy("stages", "does it grow?", {
    "full size": (MODEL, (Stage(1, 4, 9, 32, 32),)), "progressive": (MODEL, GROWING),
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
    pipe = tiny_pipe()
    sizes = STUDY.sizes(("full size", "progressive"))
    assert sizes == ((9, 32), (5, 16), (5, 32))
    return encode_clips(pipe.vae, STUDY, sizes, torch.float32, progress=False), pipe


@pytest.fixture
def bench(clips_and_pipe) -> Bench:
    clips, pipe = clips_and_pipe
    return Bench(STUDY, clips, pipe, TINY.text, TINY.schedule, torch.float32, now=Clock())


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


def watch_steps(monkeypatch) -> list[dict]:
    """What each training step from now on draws, and its learning rate and weight of the alignment."""
    steps, backward, update = [], TransformerTask.backward, TransformerTask.update

    def watched_backward(self, batch, progress, last=True):
        steps.append({"drawn": [(e.caption, e.timestep, e.latents, e.noise) for e in batch.examples],
                      "alignment": self.training.alignment_weight * (1 - progress)})
        return backward(self, batch, progress, last)

    def watched_update(self, step, rate):
        steps[-1]["rate"] = rate
        return update(self, step, rate)

    monkeypatch.setattr(TransformerTask, "backward", watched_backward)
    monkeypatch.setattr(TransformerTask, "update", watched_update)
    return steps


def same_draws(one: list[dict], other: list[dict]) -> bool:
    return len(one) == len(other) and all(
        a[:2] == b[:2] and torch.equal(a[2], b[2]) and torch.equal(a[3], b[3])
        for x, y in zip(one, other) for a, b in zip(x["drawn"], y["drawn"], strict=True))


# ---- stages and time


def test_stages_follow_each_other_and_share_the_time(bench, monkeypatch):
    taken = watch_steps(monkeypatch)
    _, curve = train(bench, "progressive", seed=2)
    shapes = [tuple(step["drawn"][0][2].shape[1:]) for step in taken]
    assert shapes == [(2, 4, 4)] * 6 + [(2, 8, 8)] * 6 + [(3, 8, 8)] * 12  # 3 seconds of an eighth: 24 steps
    assert [len(step["drawn"]) for step in taken] == [8] * 6 + [4] * 18
    rates, aligned = [step["rate"] for step in taken], [step["alignment"] for step in taken]
    assert 0 < rates[0] < 0.01 and rates.index(max(rates)) == 1 and rates[1] > 0.99  # one warm-up
    assert all(a > b for a, b in zip(rates[1:], rates[2:])) and rates[-1] < 0.05  # one cosine over all stages
    assert aligned[0] == 1.0 and aligned[12] == pytest.approx(0.5) and aligned[-1] == pytest.approx(1 / 24)
    assert curve.stages == ["16x16, 5 frames", "32x32, 5 frames", "32x32, 9 frames"] and curve.ends == [0.75, 1.5, 3.0]
    assert curve.seconds == [0.0, 0.75, 1.0, 1.5, 2.0, 3.0] and curve.steps == [0, 6, 8, 12, 16, 24]
    assert curve.clips[-1] == 6 * 8 + 18 * 4
    assert curve.tokens[-1] == 48 * TOKENS[5, 16] + 24 * TOKENS[5, 32] + 48 * TOKENS[9, 32]
    assert len(curve.loss) == len(curve.loss_of_sharp) == len(curve.seconds)


def test_the_clock_stands_still_while_the_loss_is_measured_and_a_slow_step_lengthens_no_run(bench, monkeypatch):
    slow = replace(bench, now=lambda clock=bench.now: 3.2 * clock())  # 0.4 s a step
    _, curve = train(slow, "progressive", 0)
    assert curve.ends == pytest.approx([0.8, 1.6, 3.2]) and curve.steps[-1] == 8
    slower = replace(bench, now=lambda clock=bench.now: 16 * clock())  # 2 s a step, longer than the first two stages
    _, curve = train(slower, "progressive", 0)
    assert curve.ends == [2.0, 2.0, 4.0] and len(curve.stages) == 3 and curve.steps == [0, 1, 2]

    def measured(*arguments):
        bench.now.time += 1000.0
        return 0.5

    monkeypatch.setattr(stages, "held_back_loss", measured)
    _, curve = train(bench, "full size", 0)
    assert curve.steps[-1] == 24 and curve.seconds[-1] == 3.0 and bench.now.time > 2000


def test_a_seed_fixes_the_run_and_variants_share_batches_and_text_encoder(bench, monkeypatch):
    starts = [new_task(bench, config, GROWING, 0) for config in (MODEL, replace(MODEL, num_layers=1))]
    assert same(*(start.text.encoder.state_dict() for start in starts))
    drawn, runs = watch_steps(monkeypatch), []
    for name, seed in (("progressive", 0), ("progressive", 0), ("interpolated", 0), ("progressive", 1)):
        runs.append((*train(bench, name, seed), [*drawn]))
        drawn.clear()
    (task, curve, steps), (same_task, same_curve, _), (_, other_curve, other_steps), (*_, new_steps) = runs
    assert same_draws(steps, other_steps) and not same_draws(steps, new_steps)
    assert curve.loss == same_curve.loss and same(task.result(), same_task.result())
    assert curve.loss[0] == other_curve.loss[0] and curve.loss[-1] != other_curve.loss[-1]


def test_runs_learn_tell_each_second_and_leave_random_state_and_gradient_mode_alone(bench, quick):
    told = []
    longer = replace(bench, study=replace(STUDY, minutes=0.1), on_second=told.append)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        curves = compare_stages(longer, ["full size", "progressive"])
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    names = ["full size", "progressive", "progressive, then all clips", "progressive, then the best fifth"]
    assert [curve.name for curve in curves] == names
    assert told == [names[0]] * 6 + [names[1]] * 6 + [names[2]] + [names[3]]
    assert stages_command._seconds(longer.study, names[:2]) == len(told)
    for curve in curves:
        assert curve.adherence == {"all": 0.5, "shape": 0.75} and curve.measured == 4 and curve.sharpness == 0.9
        assert curve.parameters == sum(p.numel() for p in curve.model.parameters())
    for curve in curves[:2]:
        assert curve.loss[-1] < 0.9 * curve.loss[0] and curve.sharp_share == pytest.approx(0.2, abs=0.15)


def test_every_run_ends_with_clips_that_it_made(bench):
    study = replace(STUDY, measured=2, best_fifth=0.0)
    (curve,) = compare_stages(replace(bench, study=study), ["interpolated"])
    assert curve.measured == 2 and set(curve.adherence) >= {"all", "shape", "colour", "motion", "background"}
    assert curve.sharpness > 0 and set(curve.references) == {
        "blurred", "sharp, through the VAE", "blurred, through the VAE"}
    assert curve.text.encode(["a red circle moves right"]).shape == (1, 32, 16)


# ---- the best fifth


def test_the_best_fifth_continues_from_the_averages_with_chosen_clips_alone(bench, monkeypatch):
    task, before = train(bench, "progressive", 0)
    averages, drawn = {name: tensor.clone() for name, tensor in task.result().items()}, watch_steps(monkeypatch)
    for kind in ("all clips", "the best fifth"):
        refined, curve = refine(bench, task, before, kind)
        assert curve.name == f"progressive, then {kind}" and curve.seconds[0] == 3.0 and curve.ends == [4.5]
        assert curve.loss[0] == before.loss[-1] and curve.steps[0] == 24 and curve.steps[-1] == 36
        assert curve.clips[-1] == before.clips[-1] + 12 * 4
        assert not same(refined.result(), averages) and same(task.result(), averages)
        assert (curve.sharp_share == before.sharp_share) == (kind == "all clips")
    assert len(drawn) == 24 and max(step["rate"] for step in drawn) <= 0.2
    assert not any(step["alignment"] for step in drawn) and curve.sharp_share > before.sharp_share
    noise = [[step["drawn"][0][3] for step in steps] for steps in (drawn[:12], drawn[12:])]
    assert all(torch.equal(a, b) for a, b in zip(*noise))
    chosen, whole = bench.clips.best().tolist(), bench.clips.train[9, 32]
    assert len(chosen) == 8 and bench.clips.score[chosen].min() >= bench.clips.score.sort().values[-8]
    best = [whole.latents(i) for i in chosen]
    shown = [clip[2] for step in drawn[12:] for clip in step["drawn"]]
    assert all(any(torch.equal(clip, one) for one in best) for clip in shown)
    assert all(any(torch.equal(clip, one) for clip in shown) for one in best)


def differs(some: Clips, others: Clips) -> torch.Tensor:
    """Which clips have other latents, by more than the rounding of another batch."""
    one, other = (stack_latents(clips, range(len(clips))) for clips in (some, others))
    return (one - other).abs().flatten(1).amax(1) > 0.01


def test_exactly_four_fifths_have_the_flaw_and_the_others_are_untouched(clips_and_pipe):
    clips, pipe = clips_and_pipe
    for count in (40, 201):
        flawed = choose_flawed(count, 0.8, seed=3)
        assert flawed.sum() == round(0.8 * count) and torch.equal(flawed, choose_flawed(count, 0.8, 3))
    assert not torch.equal(choose_flawed(40, 0.8, 3), choose_flawed(40, 0.8, 4))
    flawed = choose_flawed(STUDY.clips, STUDY.flawed, STUDY.clips_seed)
    scenes = sample_scenes(STUDY.clips, STUDY.clips_seed, "train", 0.0)
    assert torch.equal(clips.flawed, flawed[:40]) and clips.scenes == scenes[:40]
    for (frames, side), latents in clips.train.items():
        _, sharp = encode_blurred(pipe.vae, scenes[:40], torch.zeros(40, dtype=torch.bool), frames, side, STUDY.blur,
                                  torch.float32, progress=False)
        assert len(latents) == 40 and torch.equal(differs(sharp, latents), clips.flawed)
    assert clips.held_back_sharp.scenes == scenes[40:] and len(clips.held_back) == 16
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


def test_the_score_picks_the_clips_in_focus_whatever_they_show_and_the_oracle_reads_the_others():
    scenes = sample_scenes(80, 17, "train", 0.0)
    clips, flawed = render_batch(scenes, 17, 64, 64), choose_flawed(80, 0.8, 0)
    seen = clips.clone()
    seen[flawed] = out_of_focus(clips[flawed], STAGES.blur * 64)
    score = steepness(seen)
    assert not flawed[score.topk(16).indices].any()  # all of the best fifth are in focus
    assert score[~flawed].min() > 1.2 * score[flawed].max()
    noisy = (seen + 0.01 * torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert not flawed[steepness(noisy).topk(16).indices].any()
    assert torch.allclose(steepness(0.3 * clips[:4]), steepness(clips[:4]), atol=1e-4)  # contrast does not count
    assert steepness(torch.full((1, 2, 64, 64, 3), 0.5)).item() == 0
    assert sum(matches(read(clip), scene)["all"] for clip, scene in zip(seen, scenes)) >= 0.97 * len(scenes)


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


def test_the_judge_holds_generated_clips_against_true_ones(bench, monkeypatch):
    judge = Judge(STUDY, bench.clips.scenes, bench.pipe, TINY.schedule)
    true = render_batch(judge.scenes, 9, 32, 32)
    soft = out_of_focus(true, STUDY.blur * 32)

    def measured(pipe, scenes, seed, progress):
        assert scenes == judge.scenes and pipe.decode(torch.empty(0)) is not None
        return Adherence({"all": 0.5}, len(scenes), 0.0, [])

    monkeypatch.setattr(stage_judge, "measure_adherence", measured)
    for made, expected in ((true, 1.0), (soft, judge.references["blurred"]["sharpness"])):
        monkeypatch.setattr(Pipeline, "decode", lambda self, latents, made=made: made)
        shares, count, sharpness = judge(bench.pipe.transformer, bench.pipe.text)
        assert shares == {"all": 0.5} and count == 4 and sharpness == pytest.approx(expected, abs=1e-5)
    assert judge.references["blurred"]["sharpness"] < 0.9


# ---- the committed study, its file and its figure


def test_a_study_that_cannot_be_is_refused(bench, subtests):
    small = {"progressive": (MODEL, GROWING), "small": (MODEL, (Stage(1, 4, 5, 16, 16),))}
    for change, told in (
            ({"minutes": 0.0}, "minutes is 0.0"), ({"minutes": float("nan")}, "minutes is nan"),
            ({"best_fifth": -1.0}, "best_fifth is -1.0"), ({"flawed": 1.0}, "flawed is 1.0"),
            ({"clips": 20}, "clips is 20"), ({"refined": "growing"}, "refined is 'growing'; it must be one of full"),
            ({"variants": {"progressive": (MODEL, ())}}, "'progressive' without a stage"),
            ({"variants": small}, "the last stages of variants differ in size")):
        with subtests.test(told=told), pytest.raises(ValueError, match=told):
            replace(STUDY, **change)
    with pytest.raises(ValueError, match="there is no variant 'small'; the variants are full size; progressive; "):
        compare_stages(bench, ["small"])
    with pytest.raises(ValueError, match="names is empty"):
        compare_stages(bench, [])
    other = replace(STUDY, variants={"progressive": (MODEL, (Stage(1, 4, 5, 16, 16),))})
    with pytest.raises(ValueError, match="of 'progressive' is for 32x32, 9 frames; its last stage is of 16x16, 5"):
        compare_stages(replace(bench, study=other), ["progressive"])


def test_the_study_is_what_it_says():
    assert STUDIES["stages"] is STAGES and STAGES.full == (17, 64)
    assert [size_of(stage) for stage in STAGES.variants["progressive"][1]] == [(9, 32), (9, 64), (17, 64)]
    assert [config.position_scaling for config, _ in STAGES.variants.values()] == [
        "extrapolate", "extrapolate", "interpolate"]
    for config, of_variant in STAGES.variants.values():
        for stage in of_variant:  # about equally many tokens a step
            latents = preset("toy").vae.latent_size(stage.num_frames, stage.height, stage.width)
            assert 2500 < stage.batch_size * (config.max_text_seq_length + config.num_patches(latents)) < 3600


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
