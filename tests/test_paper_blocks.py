"""The VAE's blocks of the paper are short enough to show, what is shown is the formula, and notebook 02 shows it."""

import inspect
import re
from pathlib import Path

import pytest

from minicogvx.vae.blocks import Downsample, ResnetBlock, SpatialNormSiLU, Upsample
from minicogvx.vae.causal_conv import CausalConv3d
from minicogvx.vae.layers import Conv3d, DownConv2d, NormSiLU, UpConv2d, halve_time, stretch_time

SHOWN = [ResnetBlock, SpatialNormSiLU, NormSiLU, Downsample, Upsample, CausalConv3d, halve_time]
LEAVES = [Conv3d, DownConv2d, UpConv2d, stretch_time]
TRICK = re.compile(r"channels_last|as_strided|is_compiling|contiguous|_hooks|autograd|\.[a-z]\w*[a-z]_\(")
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "source" / "02_causal_vae.py"


@pytest.mark.parametrize("block", [*SHOWN, *LEAVES], ids=lambda block: block.__name__)
def test_a_block_of_the_paper_reads_in_one_screen_and_without_tricks(block):
    source = inspect.getsource(block)
    assert len(source.splitlines()) <= 40
    assert TRICK.findall(source) == []


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: block.__name__)
def test_notebook_02_shows_it(block):
    assert f"\nshow_source({block.__name__})\n" in NOTEBOOK.read_text()


def test_a_trick_would_be_found():
    assert TRICK.findall("h.add_(x)") and TRICK.findall("x.contiguous()") and not TRICK.findall("super().__init__()")
