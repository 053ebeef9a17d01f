"""docs/questions.md: its links lead somewhere, its table follows from the presets, and its Python runs."""

import re
from itertools import product
from pathlib import Path

import pytest
import torch

from minicogvx.presets import PUBLISHED, preset
from minicogvx.ranges import valid_frames
from minicogvx.training.recipes import load_recipe
from minicogvx.vae import CausalVAE
from tests.tiny import tiny_vae

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "questions.md"
FRAMES = (48, 49, 53, 81, 161)


def came_back(latent_frames: int) -> int:
    """Frames that the published VAE decodes: the first latent frame stands alone if their number is odd."""
    return 4 * (latent_frames - 1) + 1 if latent_frames % 2 else 4 * latent_frames


def row_of(name: str) -> str:
    """One line of the table, from the preset alone."""
    vae, transformer, video = preset(name).vae, preset(name).transformer, preset(name).video_size
    one_size = "learned" in transformer.position

    def cell(frames: int) -> str:
        latents = vae.latent_size(frames, *video[1:])[0]
        more = transformer.whole_patches(latents) - latents
        if one_size and frames != video.num_frames:
            return "does not fit"
        return f"{latents}{f' + {more}' * bool(more)} → {came_back(latents)}"

    side = vae.spatial_compression_ratio * transformer.patch_size
    sizes = f"only {video.height}x{video.width}" if one_size else f"multiples of {side}"
    tokens = transformer.num_patches(vae.latent_size(*video))
    return (f"| {name} | {video.num_frames}x{video.height}x{video.width} | {' | '.join(map(cell, FRAMES))} | {sizes} "
            f"| {tokens:,} |")


def test_the_table_of_frames_follows_from_the_presets():
    table = PAGE.read_text(encoding="utf-8").split("<!-- frames -->")[1].split("<!-- /frames -->")[0]
    assert table.strip().splitlines()[2:] == [row_of(name) for name in PUBLISHED]


@torch.no_grad()
def test_the_table_is_what_a_vae_by_the_published_rule_does(subtests):
    vae: CausalVAE = tiny_vae(first_frame="parity")
    for frames in (5, 8, 9, 13, 16, 17, *FRAMES[:4]):
        with subtests.test(frames=frames):
            latents = vae.encode(torch.zeros(1, 3, frames, 8, 8)).mean
            assert latents.shape[2] == preset("5b").vae.latent_size(frames, 480, 720)[0]
            assert vae.decode(latents).shape[2] == came_back(latents.shape[2])
            assert (came_back(latents.shape[2]) == frames) == (frames % 8 in (0, 1))


def test_every_link_leads_somewhere(subtests):
    text = PAGE.read_text(encoding="utf-8")
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
               for title in re.findall(r"^## (.+)$", text, flags=re.MULTILINE)}
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 60
    for link in dict.fromkeys(links):
        with subtests.test(link):
            if link.startswith("#"):
                assert link[1:] in anchors
            elif link.startswith("https://"):
                assert re.fullmatch(r"https://github\.com/[\w-]+/[\w-]+(/issues/\d+)?", link)
            else:
                assert (PAGE.parent / link.partition("#")[0]).exists()


def test_every_question_cites_where_it_was_asked():
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(parts) == 12
    for part in parts:
        assert re.search(r"https://github\.com/zai-org/CogVideo/issues/\d+", part), part.splitlines()[0]


def code(language: str) -> list[str]:
    """The blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(3))
def test_the_pages_python_prints_what_it_says(number, capsys):
    blocks = code("python")
    assert len(blocks) == 3
    exec(compile(blocks[number], str(PAGE), "exec"), {})
    printed, said = capsys.readouterr().out, re.findall(r"print\(.*\)  # (.*)$", blocks[number], flags=re.MULTILINE)
    assert len(said) == 1
    wanted, found = (re.findall(r"\d+", text) for text in (said[0], printed))
    assert wanted and wanted == found, (said, printed)


def test_the_pages_recipe_loads(tmp_path):
    (recipe,) = code("toml")
    (tmp_path / "packs.toml").write_text(recipe)
    stages = load_recipe(str(tmp_path / "packs.toml")).transformer.stages
    assert [stage.pack for stage in stages] == [256, 512] and stages[0].num_frames == 9


def test_the_row_would_notice_another_rule():
    assert row_of("1.5-5b").startswith("| 1.5-5b | 81x768x1360 | 12 → 48 | 13 + 1 → 49 | 14 → 56 | 21 + 1 → 81 |")
    assert "does not fit" in row_of("5b-i2v") and "does not fit" not in row_of("5b")
    assert valid_frames(81, 8) == "8k + 1, such as 81 or 89"
    assert all(came_back(preset(name).vae.latent_size(frames, 480, 720)[0]) == frames
               for name, frames in product(PUBLISHED, (49, 81, 161)))
