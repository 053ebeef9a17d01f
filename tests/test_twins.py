"""The worlds of twins: what moves, what the labels are, and who can find them."""

from dataclasses import replace

import pytest
import torch

from minicogvx import cli
from minicogvx.ablation import compare_twins, load_results, twins
from minicogvx.ablation.paired import gain_of, steps_until
from minicogvx.ablation.results import read_results
from minicogvx.ablation.studies import STUDIES
from minicogvx.ablation.twins import CHANNELS, twin_clips, twin_loss
from minicogvx.ablation.twins_study import TWIN_TRANSFORMER
from minicogvx.transformer.model import ExpertTransformer

FULL, FACTORISED = (replace(TWIN_TRANSFORMER, attention=kind, num_layers=1) for kind in ("full", "factorised"))


def drawn(count: int, moved: int, seed: int = 0):
    """Clips and labels as tokens: vectors of both frames, labels of the first, wanted labels of the second."""
    clips, labels = twin_clips(count, moved, torch.Generator().manual_seed(seed))
    assert clips.shape == (count, 2 * CHANNELS, 2, 4, 4) and labels.shape == (count, CHANNELS, 4, 4)
    tokens = clips.flatten(3).permute(2, 0, 3, 1)  # 2 b n c
    assert not tokens[1, :, :, CHANNELS:].any(), "the second frame has no labels"
    vectors, first = tokens[..., :CHANNELS], tokens[0, :, :, CHANNELS:]
    return vectors[0], vectors[1], first, labels.flatten(2).mT


@pytest.mark.parametrize("moved", [0, 2, 8, 16])
def test_so_many_tokens_have_moved_and_labels_are_those_of_their_twins(moved):
    before, after, first, wanted = drawn(50, moved)
    same = (before == after).all(dim=-1)  # b n
    assert ((~same).sum(dim=1) == moved).all()
    was = (after[:, :, None] == before[:, None]).all(dim=-1).long().argmax(dim=-1)  # b n: where each twin stood
    torch.testing.assert_close(wanted, first.gather(1, was[..., None].expand_as(first)))
    assert (was.sort(dim=1).values == torch.arange(16)).all(), "every twin is there once"
    assert before.var() == pytest.approx(1, abs=0.1) and wanted.var() == pytest.approx(1, abs=0.1)
    if 0 < moved < 16:
        assert len({tuple(one.tolist()) for one in same}) > 20, "which ones move differs from clip to clip"


def test_a_model_that_knows_nothing_has_a_loss_of_one():
    class Silent(ExpertTransformer):
        def forward(self, clips, timestep, text):
            assert text.shape[1] == 0, "no text may carry messages"
            return clips.new_zeros(len(clips), CHANNELS, 2, 4, 4)

    clips, labels = twin_clips(200, 16, torch.Generator().manual_seed(0))
    assert twin_loss(Silent(FULL), clips, labels).item() == pytest.approx(1, abs=0.05)


def test_a_seed_fixes_the_curves_and_still_worlds_are_easier_for_factorised_attention():
    done: list = []
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        curves = compare_twins({"f": FACTORISED}, (0, 16), 40, seed=1, batch_size=16, every=20,
                               on_step=lambda *s: done.append(s))
    assert torch.equal(torch.get_rng_state(), state)
    assert done == [(name, step) for name in ("f, 0 moved", "f, 16 moved") for step in range(1, 41)]
    again = compare_twins({"f": FACTORISED}, (16,), 40, seed=1, batch_size=16, every=20)["f, 16 moved"]
    assert again.loss == curves["f, 16 moved"].loss and again.steps == [0, 20, 40]
    other = compare_twins({"f": FACTORISED}, (16,), 20, seed=2, batch_size=16, every=20)["f, 16 moved"]
    assert other.loss[-1] != again.loss[1]
    assert curves["f, 0 moved"].loss[-1] < 0.8 < 0.95 < curves["f, 16 moved"].loss[-1]
    assert again.parameters == sum(p.numel() for p in again.model.parameters()) and not again.model.training
    for options, told in (({"steps": 0}, "steps is 0"), ({"variants": {}}, "variants is empty"),
                          ({"worlds": (0, 1)}, "worlds has 1; of 16 tokens none can have moved, or 2 to 16"),
                          ({"worlds": (17,)}, "worlds has 17")):
        with pytest.raises(ValueError, match=told):
            compare_twins(**{"variants": {"f": FACTORISED}, "worlds": (0,), "steps": 1} | options)


def test_the_study_is_about_attention_alone():
    for name, config in STUDIES["twins"].variants.items():
        assert replace(config, attention="full", num_layers=2) == TWIN_TRANSFORMER
        assert config.attention == name.partition(",")[0] and config.num_layers == (1 if "1 block" in name else 2)


def test_the_command_makes_curves_of_every_seed_and_world(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(twins, "_MEASURED", 4)
    out = tmp_path / "twins.json"
    run = ["ablate", "twins", "--steps", "2", "--out", str(out)]
    assert cli.main(run) == 0 and cli.main([*run, "--seeds", "2", "--resume"]) == 0
    made = read_results(out)
    assert [(curve.name, curve.seed) for curve in made.curves] == [
        (f"{name}, {moved} moved", seed) for seed in (0, 1) for name in STUDIES["twins"].variants
        for moved in (0, 8, 16)]
    assert made.command.endswith("--dtype float32")
    assert "factorised, 8 moved against full, 8 moved, loss on validation clips: " in capsys.readouterr().out


def test_the_committed_worlds_say_who_wins_where():
    """Claims of notebook 08, over five seeds."""
    curves, half = load_results("twins"), steps_until(0.5)
    moved = gain_of(curves, "full, 16 moved", "factorised, 16 moved")
    still = gain_of(curves, "full, 0 moved", "factorised, 0 moved", half)
    assert moved.seeds >= 5 and moved.verdict == "lower" and still.verdict == "higher"
    assert gain_of(curves, "full, 1 block, 16 moved", "factorised, 1 block, 16 moved").verdict == "lower"
