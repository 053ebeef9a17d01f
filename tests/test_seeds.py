"""What several seeds allow to say: differences paired by seed, with intervals that cover what they promise."""

import math
import random
from dataclasses import replace

import pytest

from minicogvx import cli
from minicogvx.ablation.seeds import Gain, comparisons, final_values, gain_of_pairs, paired_gain
from minicogvx.ablation.studies import STUDIES
from minicogvx.ablation.transformers import Curve
from minicogvx.ablation.vaes import VAECurve
from minicogvx.evaluation.intervals import mean_interval
from minicogvx.vae.losses import VAELossConfig
from tests.tiny import TINY


def vae_curve(name: str, seed: int, psnr: float, lpips: float = 0.2) -> VAECurve:
    return VAECurve(name, seed, 10, [0, 25], [9.0, psnr], [0.9, lpips], [3.0, 2.0], [0.1, 1.0], [0.0, 1.5], 2.5, 9.0)


def test_an_interval_of_a_mean_is_students():
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0 and high == pytest.approx(3 + 2.776 * math.sqrt(2.5 / 5), abs=1e-3)  # t with 4 degrees
    assert mean - low == pytest.approx(high - mean)
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0, 2.0)
    assert mean_interval([2.0]) == (2.0, -math.inf, math.inf)
    with pytest.raises(ValueError, match="values is empty"):
        mean_interval([])


def test_an_interval_covers_the_true_mean_95_times_of_100():
    chance, covered = random.Random(0), 0
    for _ in range(2000):
        low, high = mean_interval([chance.gauss(1.0, 2.0) for _ in range(5)])[1:]
        covered += low <= 1.0 <= high
    assert 0.935 < covered / 2000 < 0.965


def test_what_seeds_share_does_not_hide_a_difference():
    old = [20.0, 24.0, 19.0, 22.0, 26.0]  # seeds differ by far more than variants
    gain = gain_of_pairs([value + extra for value, extra in zip(old, (0.4, 0.5, 0.6, 0.5, 0.5))], old)
    assert gain.mean == pytest.approx(0.5) and 0.4 < gain.low < gain.high < 0.6 and gain.verdict == "higher"
    assert mean_interval(old)[2] - mean_interval(old)[0] > 3
    assert gain_of_pairs(old, [value + 0.5 for value in old]).verdict == "lower"
    assert gain_of_pairs([1.0, -1.0], [0.0, 0.0]).verdict == "cannot be told"
    assert gain_of_pairs([5.0], [0.0]).verdict == "cannot be told"  # one seed never tells


def test_gains_are_paired_by_seed_and_not_by_order():
    curves = [vae_curve("L1", 0, 20.0), vae_curve("L1", 1, 25.0), vae_curve("L2", 1, 26.0), vae_curve("L2", 0, 21.0),
              vae_curve("L2", 2, 90.0), vae_curve("other", 3, 5.0)]
    assert final_values(curves, "psnr")["L2"] == {1: 26.0, 0: 21.0, 2: 90.0}
    assert paired_gain(curves, "psnr", "L2", "L1") == Gain(1.0, 1.0, 1.0, 2)
    with pytest.raises(ValueError, match="'other' and 'L1' have no seed in common"):
        paired_gain(curves, "psnr", "other", "L1")
    with pytest.raises(ValueError, match="there is no variant 'L3'; the variants are L1, L2, other"):
        paired_gain(curves, "psnr", "L3", "L1")


def test_sentences_name_variant_measure_and_verdict():
    curves = [vae_curve(name, seed, psnr + seed, lpips) for seed in (0, 1)
              for name, psnr, lpips in (("L1", 20.0, 0.3), ("L2", 21.5, 0.3 - 0.1 * seed))]
    said = comparisons(curves, ["L1", "L2"])
    assert len(said) == 5
    assert said[0] == "L2 against L1, PSNR in dB: +1.50 (95 % interval +1.50 to +1.50, 2 seeds): higher"
    assert said[1].startswith("L2 against L1, LPIPS: -0.050 (") and said[1].endswith(": cannot be told")
    assert comparisons([one for one in curves if one.seed == 0], ["L1", "L2"]) == []
    losses = [Curve(name, seed, 5, [0, 25], [1.0, loss], 2.0) for seed in (0, 1)
              for name, loss in (("rope", 0.5), ("none", 0.6))]
    assert [line.partition(":")[0] for line in comparisons(losses, ["rope", "none"])] == [
        "none against rope, loss on validation clips"]
    assert Gain(1.0, -math.inf, math.inf, 1).said() == "+1.00 (one seed, no interval): cannot be told"
    assert Gain(-0.0003, -0.012, 0.012, 5).said(3).startswith("0.000 (95 % interval -0.012 to +0.012, 5 seeds)")


def test_the_command_says_what_its_seeds_allow_to_say(tmp_path, monkeypatch, capsys):
    loss = VAELossConfig(lpips_weight=0.0, kl_weight=0.0, gan_weight=0.0)
    variants = {"0": (TINY.vae, loss), "9": (TINY.vae, replace(loss, kl_weight=9.0))}
    monkeypatch.setitem(STUDIES, "vae-kl", replace(STUDIES["vae-kl"], variants=variants, batch_size=1))
    run = ["ablate", "vae-kl", "--steps", "1", "--out", str(tmp_path / "kl.json")]
    assert cli.main(run) == 0
    assert "9 against 0" not in capsys.readouterr().out
    assert cli.main([*run, "--seeds", "2", "--resume"]) == 0
    assert "9 against 0, PSNR in dB: " in capsys.readouterr().out
