"""The worlds of twins: what moves, what the labels are, and who can find them."""

from dataclasses import replace

import pytest
import torch

from minicogvx import cli
from minicogvx.ablation import compare_twins, load_results, paired, twins
from minicogvx.ablation.results import read_results
from minicogvx.ablation.studies import STUDIES
from minicogvx.ablation.twins import CHANNELS, Twins, twin_clips, twin_loss
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


def test_a_number_of_moved_tokens_that_cannot_be_is_refused():
    for moved in (-1, 1, 17):
        with pytest.raises(ValueError, match=f"moved is {moved}; it must be 0 or 2 to 16"):
            Twins(FULL, moved)


def test_a_model_that_knows_nothing_has_a_loss_of_one():
    class Silent(ExpertTransformer):
        def forward(self, clips, timestep, text):
            assert text.shape[1] == 0, "no text may carry messages"
            return clips.new_zeros(len(clips), CHANNELS, 2, 4, 4)

    clips, labels = twin_clips(200, 16, torch.Generator().manual_seed(0))
    assert twin_loss(Silent(FULL), clips, labels).item() == pytest.approx(1, abs=0.05)


def test_a_seed_fixes_the_curve_and_worlds_are_told_apart():
    variants = {"still": Twins(FACTORISED, 0), "moved": Twins(FACTORISED, 16)}
    done: list = []
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        curves = compare_twins(variants, 40, seed=1, batch_size=16, every=20, on_step=lambda *s: done.append(s))
    assert torch.equal(torch.get_rng_state(), state)
    assert done == [(name, step) for name in variants for step in range(1, 41)]
    again = compare_twins({"moved": variants["moved"]}, 40, seed=1, batch_size=16, every=20)["moved"]
    assert again.loss == curves["moved"].loss and curves["moved"].steps == [0, 20, 40]
    assert compare_twins({"moved": variants["moved"]}, 20, seed=2, batch_size=16, every=20)["moved"].loss[-1] != \
        curves["moved"].loss[1]
    assert curves["still"].loss[-1] < 0.8 < 0.95 < curves["moved"].loss[-1]
    assert curves["still"].parameters == sum(p.numel() for p in curves["still"].model.parameters())
    for options, told in (({"steps": 0}, "steps is 0"), ({"variants": {}}, "variants is empty")):
        with pytest.raises(ValueError, match=told):
            compare_twins(**{"variants": variants, "steps": 1} | options)


def test_the_study_is_about_attention_alone():
    for name, variant in STUDIES["twins"].variants.items():
        kind, moved = name.split(", ")[:2]
        assert replace(variant.transformer, attention="full", num_layers=2) == TWIN_TRANSFORMER
        assert variant.transformer.attention == kind and variant.moved == int(moved.split()[0])
        assert ("1 block" in name) == (variant.transformer.num_layers == 1)


def test_the_command_makes_curves_of_every_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(twins, "_MEASURED", 4)
    out = tmp_path / "twins.json"
    assert cli.main(["ablate", "twins", "--seeds", "2", "--steps", "2", "--out", str(out)]) == 0
    made = read_results(out)
    assert [curve.seed for curve in made.curves] == [0] * 8 + [1] * 8
    assert made.command.endswith("--dtype float32")


def test_the_committed_worlds_say_who_wins_where():
    """A claim of notebook 08, over five seeds."""
    curves = load_results("twins")
    assert paired.difference(curves, "full, 16 moved", "factorised, 16 moved").sign == -1
    found = paired.difference(curves, "full, 0 moved", "factorised, 0 moved",
                              lambda curve: curve.loss[curve.steps.index(50)])
    assert len(found.values) >= 5 and found.sign == 1
