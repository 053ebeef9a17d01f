"""Differences paired by seed: known answers, and sets that make no pairs."""

import pytest
import torch

from minicogvx.ablation import load_results, paired, paired_figure
from minicogvx.ablation.obeyed import Obeyed
from minicogvx.ablation.transformers import Curve
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.evaluation.intervals import mean_interval
from tests.tiny import tiny_pipe

SHARES = {"shape": 0.5, "colour": 0.75, "motion": 0.25, "background": 1.0, "all": 0.125}


def some_curves(better: float = 0.1, noise: float = 0.0, seeds: int = 5) -> list[Curve]:
    """Two variants whose losses differ by `better` in every seed, give or take; seeds differ by far more."""
    generator = torch.Generator().manual_seed(0)
    curves = []
    for seed in range(seeds):
        end = 0.4 + 0.1 * seed
        for name, loss in (("new", end - better + noise * float(torch.randn((), generator=generator))), ("old", end)):
            curves.append(Curve(name, seed, 10, [0, 5, 10], [2.0, 1.0, loss], 1.0, dict(SHARES)))
    return curves


# ---- numbers


def test_pairs_find_what_differs_by_less_than_seeds_do():
    close = some_curves(better=0.01)
    found = paired.gain_of(close, "new", "old")
    assert found.verdict == "lower" and found.mean == pytest.approx(-0.01) and found.seeds == 5
    assert paired.gain_of(close, "old", "new").verdict == "higher"
    (_, _, high), (_, low, _) = (mean_interval([curve.loss[-1] for curve in paired.of_variant(close, name)])
                                 for name in ("new", "old"))
    assert high > low, "unpaired, the two intervals overlap"
    assert paired.gain_of(some_curves(better=0.01, noise=0.1), "new", "old").verdict == "cannot be told"


def test_only_equal_seeds_are_pairs():
    curves = some_curves()
    assert paired.gain_of(curves[::-1], "new", "old").mean == pytest.approx(-0.1)
    with pytest.raises(ValueError, match=r"'new' has the seeds \[0, 1, 2, 3, 4\] and 'old' \[0, 1, 2, 3\]; pairs need"):
        paired.gain_of(curves[:-1], "new", "old")
    with pytest.raises(ValueError, match="there is no variant 'newer'; there are new, old"):
        paired.gain_of(curves, "newer", "old")


def test_what_is_obeyed_is_a_mean_of_four_properties():
    curves = some_curves()
    assert paired.properties_obeyed(curves[0]) == pytest.approx(62.5)
    assert paired.gain_of(curves, "new", "old", paired.properties_obeyed).verdict == "cannot be told"
    assert paired.say_obeyed(curves, "new") == (
        "new: shape 50 (50 to 50), colour 75 (75 to 75), motion 25 (25 to 25), background 100 (100 to 100), "
        "all 12 (12 to 12)")


def test_the_step_at_which_a_loss_is_low_enough():
    curve = some_curves()[0]
    assert [paired.steps_until(loss)(curve) for loss in (3.0, 1.5, 0.5, 0.1)] == [0, 5, 10, 10]


def test_the_figure_shows_every_seed_and_zero():
    figure = paired_figure(some_curves(), "old")
    losses, ends, obeyed = figure.axes
    assert [line.get_label() for line in losses.lines] == ["new", "old"]
    dots = ends.lines[0]
    assert sorted(dots.get_xdata()) == pytest.approx([-0.1] * 5)
    assert [label.get_text() for label in obeyed.get_yticklabels()] == [*paired.PROPERTIES, "all"]
    with pytest.raises(ValueError, match="'old' has one seed; how much seeds differ takes at least 2"):
        paired_figure(some_curves(seeds=1), "old")


@pytest.mark.parametrize("name, reference", [("position", "rope"), ("modulation", "expert"), ("attention", "full")])
def test_no_number_of_an_axis_runs_into_the_next(name, reference):
    figure = paired_figure(load_results(name), reference)
    figure.draw_without_rendering()
    for axis in figure.axes[1:]:
        boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
        assert len(boxes) >= 3 and all(left.x1 + 3 < right.x0 for left, right in zip(boxes, boxes[1:]))


# ---- captions


def test_a_model_is_asked_captions_that_the_study_s_clips_do_not_show():
    shown, pipe = sample_scenes(30, 0), tiny_pipe()
    judge = Obeyed(pipe, shown, 5)
    assert len(judge.scenes) == 5 and not set(judge.scenes) & set(shown)
    assert judge.scenes == Obeyed(pipe, shown, 5).scenes
    shares = judge(pipe.transformer, pipe.text)
    assert set(paired.PROPERTIES) < set(shares) and all(0 <= share <= 1 for share in shares.values())
    assert shares == judge(pipe.transformer, pipe.text), "the noise is the same"


# ---- what is committed


@pytest.mark.parametrize("name, reference", [("position", "rope"), ("modulation", "expert"), ("attention", "full")])
def test_committed_studies_have_five_seeds_and_captions(name, reference):
    curves = load_results(name)
    others = {curve.name for curve in curves} - {reference}
    for other in others:
        for measure in (paired.final_loss, paired.properties_obeyed):
            assert paired.gain_of(curves, other, reference, measure).seeds >= 5
