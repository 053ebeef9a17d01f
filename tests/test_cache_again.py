"""A cache in a used folder: foreign files are not overwritten, and leftovers do not block."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from films import caption, mp4, pan
from PIL import Image

from minicogvx.data.clips import encode as cache
from minicogvx.data.clips import plan as cache_plan
from minicogvx.data.clips.encode import CachedClips, CacheSettings, cache_clips, holds_clips, is_cache
from minicogvx.data.films.folder import scan_folder
from minicogvx.interop.safetensors_files import write_tensors
from minicogvx.presets import preset
from minicogvx.vae import CausalVAE

SETTINGS = CacheSettings(num_frames=9, height=32, width=32, fps=8)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return CausalVAE(replace(preset("micro").vae, block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4,
                             scaling_factor=0.7))


@pytest.fixture
def folder(tmp_path):
    """Two videos and a picture."""
    folder = tmp_path / "films"
    folder.mkdir()
    for i, name in enumerate(("a.mp4", "b.mp4")):
        caption(mp4(folder / name, pan(12, 40, 40, seed=i)))
    Image.new("RGB", (40, 40), "red").save(caption(folder / "c.png"))
    return folder


def make(folder, out, vae, settings=SETTINGS):
    return cache_clips(scan_folder(folder, 0.0).clips, out, vae, None, settings, torch.float32, progress=False)


def never(monkeypatch):
    monkeypatch.setattr(cache, "read_clip", lambda *_: pytest.fail("videos were read"))


@pytest.mark.parametrize("name, content", [
    ("index.json", {"weight_map": {}}), ("index.json", {"items": 3}), ("index.json", {"items": [{"key": "k"}]}),
    ("index.json", [1]), ("index.json", None), ("plan.json", {"title": "my plan"}), ("plan.json", [1]),
    ("plan.json", {"vae": "x", "settings": ["fps"]}), ("plan.json", None)])
def test_files_of_others_stay(folder, tmp_path, vae, monkeypatch, name, content):
    never(monkeypatch)
    path = tmp_path / "out" / name
    path.parent.mkdir()
    path.write_text("notes" if content is None else json.dumps(content))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"{name} (is|holds) ") as told:
        make(folder, path.parent, vae)
    assert "\n" not in str(told.value) and path.read_bytes() == before
    assert os.listdir(path.parent) == [name] and not is_cache(path.parent)


@pytest.mark.parametrize("content", ['{"items": [{"fi', "", "[]", '{"items": {}}'])
def test_a_truncated_index_is_made_again(folder, tmp_path, vae, monkeypatch, content):
    whole = make(folder, tmp_path / "out", vae)
    (tmp_path / "out" / "index.json").write_text(content)
    never(monkeypatch)  # the clips are still there
    assert len(make(folder, tmp_path / "out", vae)) == len(whole) == 3


def test_a_folder_in_the_place_of_the_index_is_reported_first(folder, tmp_path, vae, monkeypatch):
    never(monkeypatch)
    (tmp_path / "out" / "index.json").mkdir(parents=True)
    with pytest.raises(OSError, match="index.json cannot be written: it is a folder"):
        make(folder, tmp_path / "out", vae)


@pytest.mark.parametrize("name", ["clips-00000.safetensors", "text-00003.safetensors"])
@pytest.mark.parametrize("begun", [False, True])
def test_shards_of_others_stay(folder, tmp_path, vae, monkeypatch, name, begun):
    if begun:
        make(folder, tmp_path / "out", vae)
    monkeypatch.setattr(cache, "read_clip", lambda *_: pytest.fail("a clip was encoded"))
    path = write_tensors(tmp_path / "out" / name, {"mine": torch.ones(2)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"{name} is not of a cache, and would be written over; name a new folder"):
        make(folder, tmp_path / "out", vae)
    assert path.read_bytes() == before


@pytest.mark.parametrize("error, kind", [(KeyboardInterrupt(), KeyboardInterrupt), (ValueError("is odd"), ValueError),
                                         (OSError("is away"), ValueError)])
def test_a_start_without_a_result_can_be_changed(folder, tmp_path, vae, monkeypatch, error, kind):
    def fails(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(kind):
        patch.setattr(cache, "read_clip", fails)
        make(folder, tmp_path / "out", vae)
    (tmp_path / "out" / ".clips-00000.0123abcd.part.safetensors").touch()  # as a killed run leaves it
    assert not holds_clips(tmp_path / "out")
    other = replace(SETTINGS, num_frames=5, fps=4)
    assert len(make(folder, tmp_path / "out", vae, other)) == 3 and holds_clips(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))
    with pytest.raises(ValueError, match="num_frames is 9; .* was begun with 5"):
        make(folder, tmp_path / "out", vae)


@pytest.mark.parametrize("code", [None, errno.ESTALE])
def test_a_video_that_goes_after_the_scan_is_a_problem(folder, tmp_path, vae, monkeypatch, code):
    clips = scan_folder(folder, 0.0).clips
    real = cache_plan.file_fingerprint

    def fingerprint(path):
        if path.name == "b.mp4" and code:
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    monkeypatch.setattr(cache_plan, "file_fingerprint", fingerprint)
    if not code:
        (folder / "b.mp4").unlink()
    made = cache_clips(clips, tmp_path / "out", vae, None, SETTINGS, torch.float32, progress=False)
    assert len(made) == 2
    assert [str(each) for each in made.problems] == [f"b.mp4: cannot be read: {os.strerror(code or errno.ENOENT)}"]
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="none of 3 clips can be encoded; c.png: cannot be read"):
        cache_clips(clips, tmp_path / "none", vae, None, SETTINGS, torch.float32, progress=False)


@pytest.mark.parametrize("value", [float("nan"), 7e4, -float("inf")])
def test_latents_that_no_file_can_hold_are_left_out_by_name(folder, tmp_path, vae, monkeypatch, value):
    def wild(clip, *rest):
        frames = cache_read(clip, *rest)
        return torch.full_like(frames, 1e4) if clip.name == "b.mp4" else frames

    def encode(video):
        posterior = real(video)
        size = video.abs().amax((1, 2, 3, 4)).view(-1, 1, 1, 1, 1)
        posterior.mean = torch.where(size < 1e3, posterior.mean, value)
        return posterior

    cache_read, real = cache.read_clip, vae.encode
    monkeypatch.setattr(cache, "read_clip", wild)
    monkeypatch.setattr(vae, "encode", encode)
    made = make(folder, tmp_path / "out", vae)
    assert [str(each) for each in made.problems] == ["b.mp4: has latents that are NaN or infinite as float16"]
    assert len(made) == 2 and torch.isfinite(made.draw([1])).all()
    assert [str(each) for each in make(folder, tmp_path / "out", vae).problems] == [str(made.problems[0])]
    assert len(CachedClips(tmp_path / "out")) == 2


@pytest.mark.parametrize("lacking", ["items", "fps"])
def test_an_index_that_lacks_something_is_reported_when_it_is_read(folder, tmp_path, vae, lacking):
    make(folder, tmp_path / "out", vae)
    path = tmp_path / "out" / "index.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items()
                                if name != lacking}))
    with pytest.raises(ValueError, match=f"index.json has no {lacking}; run `minicogvx data cache` again"):
        CachedClips(path.parent)
