"""The benchmark of growing cost: exponents, where attention overtakes the matrices, limits, and what is written."""

import json

import pytest
import torch
from PIL import Image

from benchmarks import growth, growth_points
from benchmarks.growth_points import DECODE, ENCODE, STEP, Limits, Point, beyond
from minicogvx.evaluation.intervals import exponent
from minicogvx.presets import preset


@pytest.fixture
def quick(monkeypatch):
    """No processes for the memory, and matrix products that need no 2048 x 2048."""
    monkeypatch.setattr(growth_points, "peak_memory", lambda point, who: 1000 * point.frames * point.size**2)
    monkeypatch.setattr(growth, "ceiling", lambda dtype: 1e11)


def test_the_exponent_is_the_slope_and_its_interval_widens_where_points_bend():
    x = [1.0, 2.0, 4.0, 8.0, 16.0]
    slope, low, high = exponent(x, [3 * each**1.7 for each in x])
    assert slope == pytest.approx(1.7) and high - low < 1e-6
    slope, low, high = exponent(x, [each + each**2 for each in x])
    assert 1 < low < slope < high < 2 and high - low > 0.1
    assert exponent(x[:2], x[:2]) is None


def test_attention_overtakes_where_both_take_as_long_and_by_operations_at_six_widths():
    def row(tokens: int) -> dict:
        point = Point("toy", STEP, 17, 64, torch.float32)
        return {"tokens": tokens, "attention_seconds": 2e-9 * tokens**2, "matrix_seconds": 4e-6 * tokens,
                **{key: growth_points.parts_of_a_step(point, 0)[key] for key in ("attention_flops", "matrix_flops")}}

    found = growth.crossing([row(112), {"operation": ENCODE, "seconds": 1.0}])
    assert found["tokens"] == pytest.approx(2000) and growth.crossing([{"operation": ENCODE}]) is None
    assert found["tokens_at_equal_rates"] == pytest.approx(6 * preset("toy").transformer.width, rel=0.02)
    point = Point("toy", STEP, 81, 256, torch.float32)
    assert growth.frames_of(point.tokens, 256, "toy") == 81
    assert "at 2000 tokens, which are 28 frames of 256x256" in growth.say_crossing(found, 256, "toy")


def test_a_point_beyond_a_limit_is_judged_by_its_own_curve():
    def at(frames: int, size: int, operation: str = DECODE) -> Point:
        return Point("toy", operation, frames, size, torch.float32)

    measured = {at(17, 64): {"seconds": 1.0, "peak_bytes": int(1e9)}, at(33, 64): {"seconds": 2.0, "peak_bytes": None},
                at(17, 128): {"seconds": 5.0, "peak_bytes": int(4e9)}}
    limits = Limits(10.0, 8.0, 1.0)
    assert beyond(at(161, 64), measured, Limits(9.0, 8.0, 1.0)).startswith("it would take about 10 s")
    assert beyond(at(161, 64), measured, limits) is None  # 9.8 s; memory unknown
    assert beyond(at(17, 192), measured, limits).startswith("it would take about 11 s, and the limit is 10 s")
    assert "could need 9.0 GB, and the limit is 8 GB" in beyond(at(17, 192), measured, Limits(100.0, 8.0, 1.0))
    assert beyond(at(17, 128, ENCODE), measured, limits) is None and beyond(at(21, 96), measured, limits) is None


def test_every_point_is_measured_or_has_a_reason_and_the_figure_shows_them(quick, tmp_path, capsys):
    sizes = ["--preset", "micro", "--frames", "5", "9", "17", "--sizes", "16", "24", "32", "--out", str(tmp_path)]
    assert growth.main([*sizes, "--seconds", "0.01", "--markdown"]) == 0
    printed = capsys.readouterr()
    assert "| more frames of 32x32 " in printed.out and "Attention takes as long as" in printed.out
    written = json.loads((tmp_path / "growth-micro.json").read_text())
    clips = {(row["operation"], row["frames"], row["size"]) for row in written["points"]}
    assert len(written["points"]) == len(clips) == 3 * 7 and all(row["seconds"] > 0 for row in written["points"])
    assert written["machine"]["threads"] and written["crossing"]["tokens"] > 0
    memory = [fit["exponent"][0] for fit in written["exponents"] if fit["cost"] == "peak_bytes"]
    assert memory == pytest.approx([1.0] * 9)
    with Image.open(tmp_path / "growth-micro.png") as picture:
        assert picture.width > 1500 and "against frames and size" in picture.info["Description"]

    assert growth.main([*sizes, "--limit", "1e-9", "--seconds", "0.01"]) == 0
    left = [row for row in json.loads((tmp_path / "growth-micro.json").read_text())["points"] if "skipped" in row]
    reasons = {row["skipped"] for row in left}
    assert len(left) == 3 * 6 and reasons == {"it would take about 0 s, and the limit is 1e-09 s",
                                              "a smaller clip was left out already"}


def test_a_point_that_memory_ends_is_left_out_and_other_errors_are_not_hidden(monkeypatch):
    point, limits = Point("micro", DECODE, 5, 16, torch.float32), Limits(1.0, 1.0, 0.01)
    for error, hidden in ((RuntimeError("measuring the memory of minicogvx in x failed; the reason is above"), True),
                          (torch.OutOfMemoryError("CUDA out of memory"), True), (RuntimeError("a bug"), False)):
        monkeypatch.setattr(growth_points, "peak_memory", lambda *_, error=error: (_ for _ in ()).throw(error))
        if hidden:
            assert growth_points.measure(point, limits)["skipped"].startswith("there was not enough memory")
        else:
            with pytest.raises(RuntimeError, match="a bug"):
                growth_points.measure(point, limits)


def test_the_memory_of_a_point_is_measured_in_a_process_of_its_own():
    small, large = (growth_points.peak_memory(Point("micro", DECODE, frames, 128, torch.float32), "minicogvx")
                    for frames in (5, 65))
    assert 1e6 < small < large < 6 * small  # in chunks: far from 13 times as much


def test_bad_options_are_refused_before_any_work(quick, capsys, tmp_path, subtests):
    cases = [(["--frames", "18"], "--frames is [18]; each must be 4k + 1"), (["--limit", "0"], "--limit is 0.0"),
             (["--sizes", "64", "72"], "--sizes is [64, 72]; each must be a multiple of 16"),
             (["--out", __file__], "which is a file; it must be a folder"), (["--preset", "5b"], "invalid choice")]
    for given, sentence in cases:
        with subtests.test(given=given), pytest.raises(SystemExit):
            growth.main(["--out", str(tmp_path), *given])
        assert sentence in capsys.readouterr().err
