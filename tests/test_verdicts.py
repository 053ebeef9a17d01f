"""What seeds say of the paper's claims, and the page that lists all of them."""

import inspect
import math
from pathlib import Path

import pytest

from minicogvx.ablation import report, verdicts
from minicogvx.ablation.claims import PAPER, UNTESTED, judge_claims
from minicogvx.ablation.figures import claims_figure
from minicogvx.ablation.results import default_file, read_results
from minicogvx.ablation.seeds import Gain
from minicogvx.ablation.studies import STUDIES
from minicogvx.ablation.transformers import Curve
from minicogvx.ablation.verdicts import Claim, judge_claim, verdict_on

CLAIM = Claim("new is lower", "4.1", "position", "new", "old", "loss", "lower")


def curves_of(differences) -> list[Curve]:
    """Two variants, by seed; `new` ends above `old` by `differences`, and seeds differ by far more."""
    return [Curve(name, seed, 10, [0, 5], [2.0, 1.0 + seed + extra], 1.0)
            for seed, difference in enumerate(differences) for name, extra in (("old", 0.0), ("new", difference))]


def test_a_verdict_needs_an_interval_on_one_side():
    for low, high, lower, higher in ((-3.0, -1.0, "agrees", "disagrees"), (1.0, 3.0, "disagrees", "agrees"),
                                     (-1.0, 3.0, "cannot be told", "cannot be told"),
                                     (-math.inf, math.inf, "cannot be told", "cannot be told")):
        gain = Gain((low + high) / 2 if math.isfinite(low) else 1.0, low, high, 5)
        assert (verdict_on(gain, "lower"), verdict_on(gain, "higher")) == (lower, higher)
    with pytest.raises(ValueError, match="expected is 'better'; it must be 'higher' or 'lower'"):
        inspect.unwrap(verdict_on)(gain, "better")  # the test run checks types before, with its own words


def test_exchanged_variants_exchange_the_verdict():
    for differences, told, turned in (((-0.10, -0.12, -0.11), "agrees", "disagrees"),
                                      ((0.1, 0.12, 0.11), "disagrees", "agrees"),
                                      ((-0.1, 0.1, 0.0), "cannot be told", "cannot be told"),
                                      ((-0.5,), "cannot be told", "cannot be told")):
        curves = curves_of(differences)
        found = judge_claim(CLAIM, curves)
        assert found.verdict == told and found.gain.seeds == len(differences)
        assert list(found.differences.values()) == pytest.approx(list(differences))
        assert judge_claim(CLAIM._replace(new="old", old="new"), curves).verdict == turned
        assert found.said().endswith(f": {told}")


def test_pairs_are_of_common_seeds():
    curves = [curve for curve in curves_of((-0.1, -0.1, -0.1)) if (curve.name, curve.seed) != ("new", 1)]
    assert set(judge_claim(CLAIM, curves[::-1]).differences) == {0, 2}
    with pytest.raises(ValueError, match="'newer' of position; the variants are old, new"):
        judge_claim(CLAIM._replace(new="newer"), curves_of((0.1,)))
    apart = [curve for curve in curves_of((0.1, 0.1)) if (curve.name, curve.seed) in (("new", 0), ("old", 1))]
    with pytest.raises(ValueError, match="'new' and 'old' have no seed in common"):
        judge_claim(CLAIM, apart)


def test_every_claim_is_about_variants_that_exist():
    for claim in PAPER + UNTESTED:
        study = STUDIES[claim.study]
        names = {name + behind for name in study.variants for behind in getattr(study, "judged", ("",))}
        assert {claim.new, claim.old} <= names and claim.expected in ("higher", "lower"), claim
    assert len({claim.says for claim in PAPER + UNTESTED}) == len(PAPER + UNTESTED)


def test_committed_results_judge_every_claim():
    for found, made_by in judge_claims(PAPER) + judge_claims(UNTESTED):
        assert found.verdict in verdicts.VERDICTS and made_by.startswith(f"minicogvx ablate {found.claim.study} ")
        one_seed = found.claim.study in ("stages", "vae-stages")
        assert found.gain.seeds == 1 if one_seed else found.gain.seeds >= 5
        assert f"--seeds {found.gain.seeds} " in f"{made_by} "


def test_the_page_is_up_to_date():
    assert report.PAGE.read_text(encoding="utf-8") == report.page(), "run: python -m minicogvx.ablation.report"
    for claim in PAPER + UNTESTED:
        assert f"| {claim.says} |" in report.page()
    assert read_results(default_file("position")).command in report.page()


def test_the_page_is_written_by_its_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "PAGE", tmp_path / "docs" / "ablations.md")
    assert report.main(["--print"]) == 0
    assert capsys.readouterr().out == report.page() + "\n" and not list(tmp_path.iterdir())
    assert report.main([]) == 0 and Path(capsys.readouterr().out.strip()).read_text() == report.page()


def test_the_figure_puts_the_claimed_side_at_the_right():
    told = (-0.10, -0.12, -0.11), (0.1, 0.12, 0.11), (1.0,)
    found = [judge_claim(CLAIM, curves_of(differences)) for differences in told]
    axis, = claims_figure(found).axes
    marks = {line.get_ydata()[0]: line for line in axis.lines if line.get_markersize() == 7 and len(line.get_xdata())
             and line.get_label().startswith("_")}
    assert marks[0].get_xdata()[0] > 0 > marks[1].get_xdata()[0] and len(marks) == 3
    assert len({mark.get_color() for mark in marks.values()}) == 3
    with pytest.raises(ValueError, match="found is empty"):
        claims_figure([])
