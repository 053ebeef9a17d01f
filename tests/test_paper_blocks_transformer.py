"""A notebook can show the transformer's own blocks: what is printed is the formula, and it fits on a screen."""

import inspect
from pathlib import Path

import pytest

from minicogvx.transformer.attention import Attention, attention
from minicogvx.transformer.block import Block
from minicogvx.transformer.embeddings import PatchEmbed
from minicogvx.transformer.expert_norm import ExpertNorm, add_gated, modulate
from minicogvx.transformer.positions import rope_3d, rotate

SOURCES = Path(__file__).parents[1] / "notebooks" / "source"
SHOWN = {"06": [PatchEmbed.forward, rope_3d, rotate], "07": [ExpertNorm, Block], "08": [Attention, attention]}
TRICKS = ("autograd.Function", "checkpoint", "compile", "cache", "_layouts", "dtype", "device", "is_grad_enabled",
          "None if", "else None")


@pytest.mark.parametrize("thing", [Attention, Block, ExpertNorm, PatchEmbed.forward, rope_3d, rotate, attention,
                                   add_gated, modulate], ids=lambda thing: thing.__qualname__)
def test_the_papers_blocks_fit_on_a_screen(thing):
    assert len(inspect.getsource(thing).splitlines()) <= 40


@pytest.mark.parametrize("thing", [Attention, Block, ExpertNorm], ids=lambda thing: thing.__qualname__)
def test_the_papers_blocks_hold_no_tricks(thing):
    source = inspect.getsource(thing)
    assert [trick for trick in TRICKS if trick in source] == []


@pytest.mark.parametrize("notebook", SHOWN)
def test_the_notebooks_show_them(notebook):
    path, = SOURCES.glob(f"{notebook}_*.py")
    shown = path.read_text("utf-8")
    assert [thing for thing in SHOWN[notebook] if f"show_source({thing.__qualname__})" not in shown] == []
