"""The study of schedules: equal tokens whatever the stages, clips of three sizes, runs that repeat, and its file."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import minicogvx
from minicogvx import cli
from minicogvx.ablation import load_results, nano, schedules
from minicogvx.ablation.figures import schedules_figure
from minicogvx.ablation.results import default_file, read_results
from minicogvx.ablation.schedules import ScheduleClips, compare_schedules, schedule_clips
from minicogvx.ablation.schedules_study import SCHEDULES, SchedulesStudy, ends_of
from minicogvx.ablation.seeds import paired_gain
from minicogvx.ablation.studies import STUDIES
from minicogvx.data.world.drawing import render_batch
from minicogvx.evaluation.reconstruction import psnr

SMALL = replace(SCHEDULES, variants={name: SCHEDULES.variants[name] for name in ("clips only", "half thumbnails")},
                every=2, tokens=140, asked=2)


@pytest.fixture(scope="module")
def pipe():
    return minicogvx.load("toy", "cpu", torch.float32)


@pytest.fixture(scope="module")
def clips(pipe):
    """The nano world; pooled latents stand for thumbnails."""
    world = nano.nano_world(pipe.text)

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])

    covered = pooled(world.covered.movedim(-1, 1).flatten(1, 2)).unflatten(1, (-1, 3)).movedim(1, -1)
    return ScheduleClips(
        world, {"thumbnails": pooled(world.latents.flatten(1, 2)).unflatten(1, (16, 3)),
                "pictures": world.latents[:, :, :1], "clips": world.latents},
        {"thumbnails": covered, "pictures": world.covered[:, :1], "clips": world.covered})


@pytest.fixture
def small(monkeypatch):
    """A network with one narrow block."""
    monkeypatch.setattr(nano, "NANO_TRANSFORMER", replace(nano.NANO_TRANSFORMER, num_attention_heads=1, num_layers=1,
                                                          attention_head_dim=16))


def test_thumbnails_are_the_same_scenes_and_pictures_their_first_frames(pipe, clips, monkeypatch):
    world = clips.world
    few = replace(world, scenes=world.scenes[:3], latents=world.latents[:3], features=world.features[:3],
                  covered=world.covered[:3])
    monkeypatch.setattr(nano, "nano_world", lambda text: few)
    made = schedule_clips(pipe, progress=False)
    assert {kind: tuple(x.shape) for kind, x in made.latents.items()} == {
        "thumbnails": (3, 16, 3, 4, 4), "pictures": (3, 16, 1, 8, 8), "clips": (3, 16, 3, 8, 8)}
    for kind, x in made.latents.items():
        assert made.covered[kind].shape[:-1] == (3, *x.shape[2:])
    assert psnr(pipe.decode(made.latents["thumbnails"]), render_batch(few.scenes, 9, 32, 32)) > 20
    first = render_batch(few.scenes, 1, 64, 64)
    assert psnr(pipe.decode(made.latents["pictures"]), first) > 20
    with torch.no_grad():
        alone = pipe.vae.encode(first.movedim(-1, 1) * 2 - 1).mode() * pipe.vae.config.scaling_factor
    apart = (alone - made.latents["pictures"]).square().mean().sqrt() / alone.std()
    assert apart < 0.05, "a causal VAE makes the first latent frame of the first frame alone, but for 8 bits"


def test_every_schedule_spends_the_same_tokens_in_steps_of_equal_size():
    assert STUDIES["schedules"] is SCHEDULES
    counts = {"thumbnails": 20 + 3 * 4, "pictures": 20 + 16, "clips": 20 + 48}
    for name, schedule in SCHEDULES.variants.items():
        ends = ends_of(schedule, SCHEDULES.steps)
        assert ends[-1] == SCHEDULES.steps and ends == sorted(set(ends)), name
        for kind, _ in schedule:
            assert SCHEDULES.tokens * 0.97 < SCHEDULES.tokens // counts[kind] * counts[kind] <= SCHEDULES.tokens
    assert ends_of((("thumbnails", 0.25), ("pictures", 0.25), ("clips", 0.5)), 9) == [2, 4, 9]


def test_schedules_that_cannot_be_are_refused():
    for stages, said in (((("films", 1.0),), "'a' has a stage of 'films'; the kinds are thumbnails, pictures, clips"),
                         ((("clips", 0.5),), "the shares of 'a' add up to 0.5; they must add up to 1"),
                         ((("clips", 1.5), ("pictures", -0.5)), "a share of 1.5; it must be above 0")):
        with pytest.raises(ValueError, match=said):
            SchedulesStudy("x", "?", {"a": stages})


def test_runs_repeat_and_count_what_they_spend(small, pipe, clips):
    curves = compare_schedules(SMALL, pipe, clips, 4)
    only, half = curves["clips only"], curves["half thumbnails"]
    assert only.loss[0] == half.loss[0] and only.loss[-1] != half.loss[-1]
    assert only.steps == half.steps == [0, 2, 4] and (only.ends, half.ends) == ([4], [2, 4])
    assert (only.clips, half.clips) == ([8], [8, 4]) and (only.tokens, half.tokens) == (8 * 68, 8 * 32 + 4 * 68)
    assert half.stages == ["thumbnails", "clips"] and 0.8 < half.flops / only.flops < 1
    assert set(only.gain) == set(nano.KINDS) and all(len(each) == 3 for each in only.gain.values())
    assert only.asked == 2 and set(only.obeyed) >= {"shape", "colour", "motion", "background", "all"}
    again = compare_schedules(SMALL, pipe, clips, 4, names=("half thumbnails",))
    assert again == {"half thumbnails": replace(half, seconds=again["half thumbnails"].seconds)}
    other = compare_schedules(SMALL, pipe, clips, 4, seed=1, names=("half thumbnails",))["half thumbnails"]
    assert other.loss != half.loss and torch.is_grad_enabled()


def test_a_stage_without_a_step_is_refused(small, pipe, clips):
    with pytest.raises(ValueError, match="^steps is 1; 'half thumbnails' then has a stage without a step"):
        compare_schedules(SMALL, pipe, clips, 1, names=("half thumbnails",))


def test_the_command_writes_a_row_for_each_run_and_resumes(small, pipe, clips, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(STUDIES, "schedules", SMALL)
    monkeypatch.setattr(schedules, "schedule_clips", lambda pipe: clips)
    out = tmp_path / "schedules.json"
    run = ["ablate", "schedules", "--steps", "2", "--out", str(out), "--plot", str(tmp_path / "plot.png")]
    assert cli.main(run) == 0 and cli.main([*run, "--seeds", "2", "--resume"]) == 0
    made = read_results(out)
    assert [(curve.name, curve.seed) for curve in made.curves] == [
        (name, seed) for seed in (0, 1) for name in ("clips only", "half thumbnails")]
    assert made.command.startswith("minicogvx ablate schedules --seeds 2 --steps 2 ")
    assert all(type(curve) is schedules.SchedulesCurve and len(curve.gain["colour"]) == 2 for curve in made.curves)
    said = capsys.readouterr().out
    assert "half thumbnails against clips only, loss on validation clips: " in said and "obeyed: " in said


def test_the_committed_runs_say_what_notebook_10_says():
    """Half of the tokens on thumbnails is better than none at the full size, and seven eighths are worse."""
    results = read_results(default_file("schedules"))
    assert {curve.name for curve in results.curves} == set(SCHEDULES.variants) and results.steps == SCHEDULES.steps
    half = paired_gain(results.curves, "loss", "half thumbnails", "clips only")
    burst = paired_gain(results.curves, "loss", "thumbnails, then a burst", "clips only")
    assert half.seeds >= 4 and half.verdict == "lower" and burst.verdict == "higher"
    spent = [(curve.tokens, curve.flops) for curve in results.curves]
    assert all(min(each) > 0.96 * max(each) for each in zip(*spent)), "equal tokens, nearly equal work"
    pictures = [curve for curve in results.curves if curve.name == "half pictures"]
    assert all(curve.gain["motion"][4] < 0.01 < curve.gain["colour"][4] for curve in pictures), "nothing moves in them"


def test_the_figure_marks_one_schedule_and_its_stages():
    curves = load_results("schedules")
    for measure in ("loss", "motion"):
        figure = schedules_figure(curves, "half pictures", "clips only", measure)
        left, right = figure.axes
        assert [text.get_text() for text in left.texts] == ["pictures", "clips"]
        assert [text.get_text() for text in right.get_yticklabels()] == list(SCHEDULES.variants)
        assert measure in left.get_ylabel()
    with pytest.raises(ValueError, match="there is no variant 'films'"):
        schedules_figure(curves, "films", "clips only")
    with pytest.raises(ValueError, match="^measure is 'size'; it must be 'loss' or one of background, colour"):
        schedules_figure(curves, "clips only", "clips only", "size")
