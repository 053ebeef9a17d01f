"""The paper's blocks are short enough to show, what is shown is the formula, and the notebooks show them."""

import ast
import inspect
import re
import textwrap

from minicogvx.course.notebook_builder import sources
from minicogvx.diffusion.sampling import guided_output, sample_loop
from minicogvx.transformer.attention import Attention, attention
from minicogvx.transformer.block import Block
from minicogvx.transformer.embeddings import PatchEmbed
from minicogvx.transformer.expert_norm import ExpertNorm, add_gated, modulate
from minicogvx.transformer.positions import rope_3d, rotate
from minicogvx.vae.blocks import Downsample, ResnetBlock, SpatialNormSiLU, Upsample
from minicogvx.vae.causal_conv import CausalConv3d
from minicogvx.vae.layers import Conv3d, DownConv2d, NormSiLU, UpConv2d, halve_time, stretch_time

SHOWN = {
    "02": [ResnetBlock, SpatialNormSiLU, NormSiLU, Downsample, Upsample, CausalConv3d, halve_time],
    "05": [sample_loop], "06": [PatchEmbed.forward, rope_3d, rotate], "07": [ExpertNorm, Block],
    "08": [Attention, attention],
}
LEAVES = [Conv3d, DownConv2d, UpConv2d, stretch_time, add_gated, modulate, guided_output]
VAE_TRICK = re.compile(r"channels_last|as_strided|is_compiling|contiguous|_hooks|autograd|\.[a-z]\w*[a-z]_\(")
TRANSFORMER_TRICK = re.compile(
    r"autograd.Function|checkpoint|compile|cache|_layouts|dtype|device|is_grad_enabled|None if|else None")


def test_a_block_of_the_paper_fits_on_a_screen_and_a_notebook_shows_it(subtests):
    for notebook, blocks in SHOWN.items():
        text = "".join(path.read_text("utf-8") for path in sources() if path.name.startswith(notebook))
        for block in blocks:
            with subtests.test(block.__qualname__, notebook=notebook):
                assert len(inspect.getsource(block).splitlines()) <= 40
                assert f"show_source({block.__qualname__})" in text
    for leaf in LEAVES:
        with subtests.test(leaf.__qualname__):
            assert len(inspect.getsource(leaf).splitlines()) <= 40


def test_a_block_of_the_paper_has_no_tricks(subtests):
    vae = [*SHOWN["02"], Conv3d, DownConv2d, UpConv2d, stretch_time]
    for blocks, trick in ((vae, VAE_TRICK), ([Attention, Block, ExpertNorm], TRANSFORMER_TRICK)):
        for block in blocks:
            with subtests.test(block.__qualname__):
                assert trick.findall(inspect.getsource(block)) == []
    assert VAE_TRICK.findall("h.add_(x)") and VAE_TRICK.findall("x.contiguous()")  # they would be found
    assert not VAE_TRICK.findall("super().__init__()") and TRANSFORMER_TRICK.findall("x.to(dtype)")


def test_the_loops_of_sampling_are_a_few_lines():
    for function in (sample_loop, guided_output):
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        assert all(len(node.body) <= 5 for node in ast.walk(tree) if isinstance(node, ast.For))
