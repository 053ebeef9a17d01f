"""docs/extending.md: every example runs as it stands on the page."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minicogvx.ablation import read_study, run_study
from minicogvx.data.films.folder import scan_folder
from minicogvx.diffusion import samplers

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The page's Python blocks; those that begin with the name of a file lie in it, in the current folder."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        name = re.match(r"# (\w+\.py)\n", block)
        if name:
            (tmp_path / name[1]).write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield [block for block in blocks if not re.match(r"# \w+\.py\n", block)]
    for name in ("blinking", "kept_in_range"):
        sys.modules.pop(name, None)


def test_the_study_is_one_that_can_be_trained(examples):
    results = run_study(replace(read_study("my_study.py"), steps=2), seeds=1)
    assert [curve.name for curve in results.curves] == ["two heads, 16 moved", "one head, 16 moved"]


def test_the_world_s_captions_are_read_back_from_its_films(examples, tmp_path):
    exec(compile(examples[0], "example", "exec"), {})
    import blinking

    from minicogvx.data.films.decode import read_video

    found = scan_folder("outputs/videos")
    assert len(found.clips) == 12
    for clip in found.clips:
        video = read_video(clip.path, 17, 64, 64, 8)
        assert clip.caption == blinking.caption(blinking.read(video))


def test_the_sampler_is_known_by_name_and_keeps_guesses_in_range(examples):
    known = dict(samplers.SAMPLERS)
    try:
        names = {}
        exec(compile(examples[1], "example", "exec"), names)
        video, kept = names["video"], names["KeptInRange"]
        assert video.shape == (17, 64, 64, 3) and video.isfinite().all()
        schedule = names["pipe"].schedule
        mine, theirs = kept(schedule, 8), samplers.DDIMSampler(schedule, 8)
        noise = samplers.draw_noise((1, 16, 5, 8, 8), torch.Generator().manual_seed(0))
        small, large = 0.1 * noise, 50 * noise
        for i in (0, 3, 7):
            torch.testing.assert_close(mine.step(small, i, small)[0], theirs.step(small, i, small)[0])
            cut, uncut = (sampler.step(large, i, noise)[1].abs().max() for sampler in (mine, theirs))
            assert cut <= kept.limit + 1e-3 < uncut
    finally:
        samplers.SAMPLERS.clear()
        samplers.SAMPLERS.update(known)
