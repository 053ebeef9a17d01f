"""The benchmark of ways to sample: each way is what its name says, and the table compares the same clips."""

import json

import pytest
import torch

import minicogvx
from benchmarks import sampling
from benchmarks.sampling import Way, in_two_passes, ways
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.evaluation.intervals import paired_difference, wilson
from tests.tiny import tiny_pipe


def make():
    return tiny_pipe(transformer={"num_layers": 3})


def test_each_way_has_a_reference_that_comes_before_it():
    plan = ways([25, 50], [0.1, 0.2])
    assert list(plan)[:2] == [Way(50), Way(25)] and plan[Way(50)] is None and plan[Way(25)] == Way(50)
    assert plan[Way(25, two_passes=True)] == Way(25) and plan[Way(50, 0.2)] == Way(50) and len(plan) == 7
    assert [way.name for way in plan][1:4] == ["25 steps", "25 steps, two passes", "50 steps, cache 0.1"]


def test_two_passes_compute_what_one_batch_does():
    pipe, calls = make(), []
    split = in_two_passes(pipe.transformer)
    pipe.transformer.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    given = torch.randn(2, 4, 3, 8, 8), torch.tensor([500, 500]), torch.randn(2, 6, 16)
    with torch.no_grad():
        torch.testing.assert_close(split(*given), pipe.transformer(*given))
    assert calls[-3:] == [1, 1, 2]


def test_intervals_of_shares():
    assert wilson(0.8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson(0.0, 20)[0] == pytest.approx(0, abs=1e-9)
    new, old = [True] * 80 + [False] * 20, [True] * 60 + [False] * 40
    difference, low, high = paired_difference(new, old)
    assert difference == pytest.approx(0.2) and 0.1 < low < difference < high < 0.3
    difference, low, high = paired_difference(old, old)
    assert difference == 0 and low == -high and 0 < high < 0.03  # equal on these, not for certain on all
    assert paired_difference([True, False] * 50, [False, True] * 50)[2] > 0.15  # equal by chance


def test_quality_compares_clip_by_clip_and_counts_what_was_skipped():
    pipe, scenes = make(), sample_scenes(3, 0, "train", 0.0)
    found = sampling.quality(pipe, ways([4, 2], [1.0]), scenes, 0, 2)
    assert all(len(one.obeyed) == 3 for one in found.values()) and found[Way(4)].psnr is None
    assert found[Way(2, two_passes=True)].psnr > 60 > found[Way(2)].psnr
    assert found[Way(4)].skipped == 0 and 0 < found[Way(4, 1.0)].skipped <= 0.75
    assert found[Way(4, 1.0)].psnr < 60
    assert not any(block._forward_pre_hooks for block in pipe.transformer.transformer_blocks)


def test_the_command_prints_and_writes(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(vars(minicogvx), "load", lambda *_: make())
    monkeypatch.setattr(sampling, "ceiling", lambda dtype: 1e11)
    small, path = ["--rounds", "2", "--steps", "3", "2", "--cache", "0.5"], tmp_path / "ways.json"
    assert sampling.main([*small, "--clips", "2", "--markdown", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "one clip with 2 steps: captions" in printed and " 3 steps, cache 0.5 |" in printed
    written = json.loads(path.read_text())
    assert [row["way"] for row in written["ways"]][-1] == "2 steps, cache 0.5"
    assert all(len(row["seconds"]) == 2 and len(row["obeyed"]) == 2 for row in written["ways"])
    assert sampling.main([*small, "--clips", "0"]) == 0 and "2 steps, two passes" in capsys.readouterr().out
    for given, sentence in ((["--steps", "0"], "--steps is [0]"), (["--cache", "0"], "each threshold must be above 0"),
                            (["--rounds", "1"], "--rounds is 1; it must be at least 2"),
                            (["--json", str(tmp_path / "no" / "x.json")], "there is no folder")):
        with pytest.raises(SystemExit):
            sampling.main(given)
        assert sentence in capsys.readouterr().err
