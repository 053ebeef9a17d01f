"""Cached clips: latents equal the VAE's, interrupted runs resume, and changed settings are rejected."""

import copy
import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from films import caption, mp4, pan, texture
from PIL import Image

from minicogvx import cli
from minicogvx.data import command
from minicogvx.data.clips import encode as cache
from minicogvx.data.clips.encode import CachedClips, CacheSettings, cache_clips, is_cache, open_cache
from minicogvx.data.clips.plan import file_fingerprint, plan_items, shard
from minicogvx.data.films.folder import read_clip, scan_folder
from minicogvx.files import locked
from minicogvx.presets import preset
from minicogvx.text import TextEncoder
from minicogvx.vae import CausalVAE

MICRO = preset("micro")
CONFIG = replace(MICRO.vae, block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4, scaling_factor=0.7)
SETTINGS = CacheSettings(num_frames=9, height=32, width=32, fps=8)
SETTINGS_PLAIN = replace(SETTINGS, bucketed=False)


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    text = TextEncoder.from_config(replace(MICRO.text, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
                                   ("a", "pan", "of", "noise", "picture"), 12)
    return CausalVAE(CONFIG), text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two square videos, a wide one, a short one, one of half a second and a picture."""
    folder = tmp_path_factory.mktemp("films")
    for name, video, words in (("a.mp4", pan(16, 40, 40, seed=1), "a pan"),
                               ("b.mp4", pan(20, 40, 40, seed=2), "a pan of noise"),
                               ("wide.mp4", pan(16, 32, 96, seed=3), "a pan"),
                               ("short.mp4", pan(7, 40, 40, seed=4), "a pan"), ("half.mp4", pan(4, 40, 40), "a pan")):
        caption(mp4(folder / name, video), words)
    Image.fromarray((texture(48, 48).numpy() * 255).astype("uint8")).save(caption(folder / "still.png", "a picture"))
    return folder


def clips(folder):
    return scan_folder(folder, min_seconds=0.0).clips


def make(folder, out, models, settings=SETTINGS, **options):
    return cache_clips(clips(folder), out, *models, settings, **{"dtype": torch.float32, "progress": False} | options)


def test_latents_are_those_of_the_vae_and_text_those_of_the_encoder(folder, tmp_path, models):
    vae, text = models
    cached = make(folder, tmp_path, models)
    assert len(cached) == 5 and [str(problem) for problem in cached.problems] == [
        "half.mp4: has 4 frames at 8 fps; too few to encode"]
    assert cached.buckets().keys() == {(1, 32, 32), (5, 32, 32), (9, 32, 32), (9, 24, 48)}
    squares = cached.buckets()[9, 32, 32]
    assert [cached.captions[i] for i in squares] == ["a pan", "a pan of noise"]
    by_name = {clip.name: clip for clip in clips(folder)}
    video = torch.stack([read_clip(by_name[name], 0.0, 9, 8, 32, 32) for name in ("a.mp4", "b.mp4")])
    with torch.no_grad():
        posterior = vae.encode(video.permute(0, 4, 1, 2, 3) * 2 - 1)
        features = text.encode(["a pan of noise", "a pan", ""])
    mean = CachedClips(tmp_path, sample=False).draw(squares)
    assert torch.allclose(mean, posterior.mean * 0.7, rtol=1e-3, atol=1e-5)  # float16 keeps 11 bits
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(4))
    drawn = cached.draw(squares, torch.Generator().manual_seed(4))
    error = (drawn - (posterior.mean + posterior.std * noise) * 0.7).abs()
    assert (error <= 2**-11 * (posterior.mean.abs() + posterior.std * noise.abs()) + 1e-5).all()  # float16 rounds so
    assert not torch.equal(drawn, cached.draw(squares, torch.Generator().manual_seed(5)))
    assert torch.allclose(cached.text(squares.flip(0)), features[:2], rtol=1e-3, atol=1e-5)
    assert torch.allclose(cached.empty_text(), features[2:], rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="2 sizes"):
        cached.draw([0, len(cached) - 1])


def test_pixels_of_first_frames_are_kept(folder, tmp_path, models):
    cached = make(folder, tmp_path / "first", models, replace(SETTINGS_PLAIN, first_frame=True))
    cached.sample = False
    index = cached.buckets()[9, 32, 32]
    assert len(index) == 3
    pixels = cached.first_pixels(index)
    assert pixels.shape == (3, 3, 1, 32, 32) and -1 <= pixels.min() < pixels.max() <= 1
    files = {clip.name: clip for clip in clips(folder)}
    first = torch.stack([read_clip(files[cached._items[i]["file_name"]], 0.0, 1, 8, 32, 32)[0] for i in index])
    assert (pixels[:, :, 0].permute(0, 2, 3, 1) - (first * 2 - 1)).abs().max() < 0.01  # of bytes
    with pytest.raises(ValueError, match="no first frames; make one with `--first-frame`"):
        make(folder, tmp_path / "none", models).first_pixels(index)


def test_files_stay_small_and_hold_what_the_index_says(folder, tmp_path, models):
    cached = make(folder, tmp_path, models, replace(SETTINGS, shard_bytes=4000))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len([file for file in files if file.name.startswith("clips")]) == 4  # the two smallest share one
    assert len([file for file in files if file.name.startswith("text")]) == 1
    assert max(file.stat().st_size for file in files) < 4000 + 1500  # the header of a file comes on top
    assert all(torch.isfinite(cached.draw([i])).all() for i in range(len(cached)))


def test_a_run_that_was_killed_goes_on(folder, tmp_path, models, monkeypatch):
    settings = replace(SETTINGS, shard_bytes=4000)
    whole = make(folder, tmp_path / "whole", models, settings)
    real, count = cache.write_tensors, []

    def killed(path, *rest):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(path)
        return real(path, *rest)

    monkeypatch.setattr(cache, "write_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        make(folder, tmp_path / "cut", models, settings)
    with pytest.raises(ValueError, match="is not finished; run `minicogvx data cache` on it again"):
        CachedClips(tmp_path / "cut")
    cut_short = tmp_path / "cut" / "clips-00001.safetensors"
    cut_short.write_bytes(cut_short.read_bytes()[:-100])  # a disk that filled up, say
    before = (tmp_path / "cut" / "clips-00000.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(cache, "write_tensors", lambda path, *rest: (count.append(path), real(path, *rest)))
    resumed = make(folder, tmp_path / "cut", models, settings)
    assert [path.name for path in count[2:]] == ["clips-00001.safetensors", "clips-00002.safetensors",
                                                 "clips-00003.safetensors", "text-00000.safetensors"]
    assert (tmp_path / "cut" / "clips-00000.safetensors").stat().st_mtime_ns == before
    for i in range(len(whole)):
        seed = torch.Generator().manual_seed(i)
        assert torch.equal(whole.draw([i], seed), resumed.draw([i], torch.Generator().manual_seed(i)))
    del count[:]
    make(folder, tmp_path / "cut", models, settings)
    assert not count  # nothing to do


def test_what_changed_is_named(folder, tmp_path, models):
    work = tmp_path / "films"
    work.mkdir()
    for file in folder.iterdir():
        (work / file.name).write_bytes(file.read_bytes())
    make(work, tmp_path / "out", models)
    torch.manual_seed(9)
    vae, text = models
    for change, message in (((CausalVAE(CONFIG), text), "the VAE is another"),
                            ((vae, None), "the text encoder is another")):
        with pytest.raises(ValueError, match=message):
            make(work, tmp_path / "out", change)
    with pytest.raises(ValueError, match="fps is 4; .*out was begun with 8: name a new folder"):
        make(work, tmp_path / "out", models, replace(SETTINGS, fps=4))
    with pytest.raises(ValueError, match="the number format is another"):
        make(work, tmp_path / "out", models, dtype=torch.bfloat16)


@pytest.fixture
def work(folder, tmp_path):
    """A copy of the videos."""
    shutil.copytree(folder, tmp_path / "films")
    return tmp_path / "films"


def caption_other(work):
    (work / "wide.txt").write_text("a pan of a picture")


def add_film(work):
    caption(mp4(work / "z.mp4", pan(9, 40, 40, seed=8)), "a pan of noise")


def add_caption(work):
    rows = [{"file_name": "b.mp4", "text": "a pan of noise"}, {"file_name": "b.mp4", "text": "noise"}]
    (work / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("change, told, clips_more, texts_more", [
    (caption_other, r"5 clips and now has 5: 1 with another caption \(wide.mp4\)$", 0, 1),
    (add_film, r"now has 6: 1 new \(z.mp4\)$", 1, 0),
    (add_caption, r"now has 6: 1 with another caption \(b.mp4\)$", 0, 1),
    (lambda work: mp4(work / "b.mp4", pan(20, 40, 40, seed=7)), r"has 5: 1 with another video \(b.mp4\)$", 1, 0),
    (lambda work: (work / "b.mp4").unlink(), r"now has 4: 1 gone \(b.mp4\)$", 0, 0),
    (lambda work: [(work / f"b.{end}").rename(work / f"y.{end}") for end in ("mp4", "txt")],
     r"1 new \(y.mp4\), 1 gone \(b.mp4\)$", 0, 0)])
def test_a_cache_grows_by_what_is_new(work, tmp_path, models, change, told, clips_more, texts_more):
    make(work, tmp_path / "out", models)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    change(work)
    with pytest.warns(UserWarning, match=told):
        grown = make(work, tmp_path / "out", models)
    after = set((tmp_path / "out").glob("*.safetensors")) - before.keys()
    assert len([path for path in after if path.name.startswith("clips")]) == clips_more
    assert len([path for path in after if path.name.startswith("text")]) == texts_more
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    fresh = make(work, tmp_path / "fresh", models)
    assert grown.captions == fresh.captions and [str(each) for each in grown.problems] == [
        str(each) for each in fresh.problems]
    for i in range(len(fresh)):
        same = [each.draw([i], torch.Generator().manual_seed(i)) for each in (grown, fresh)]
        assert torch.allclose(*same, atol=5e-3) and torch.equal(grown.text([i]), fresh.text([i]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(work, tmp_path / "out", models)


def test_a_disk_that_was_away_is_asked_again(work, tmp_path, models, monkeypatch):
    def away(clip, *rest):
        if clip.name == "b.mp4":
            raise OSError(5, "Input/output error")
        return read_clip(clip, *rest)

    monkeypatch.setattr(cache, "read_clip", away)
    cached = make(work, tmp_path / "out", models)
    assert len(cached) == 4 and "b.mp4: [Errno 5] Input/output error" in [str(each) for each in cached.problems]
    monkeypatch.setattr(cache, "read_clip", read_clip)
    with pytest.warns(UserWarning, match="1 new"):
        assert len(make(work, tmp_path / "out", models)) == 5


def test_copies_of_a_video_are_encoded_once(work, tmp_path, models):
    for end in ("mp4", "txt"):
        shutil.copy(work / f"b.{end}", work / f"copy.{end}")
    cached = make(work, tmp_path / "out", models)
    index = json.loads((tmp_path / "out" / "index.json").read_text())["items"]
    assert len(cached) == 6 and len({row["key"] for row in index}) == 5


def test_one_run_at_a_time_writes(folder, tmp_path, models):
    with locked(tmp_path / "out"), pytest.raises(ValueError, match="in use by another run"):
        make(folder, tmp_path / "out", models)
    assert not (tmp_path / "out").exists()


def test_a_cache_is_opened_for_the_models_that_made_it(folder, tmp_path, models):
    vae, text = models
    settings = replace(SETTINGS_PLAIN, windows=2, mixed_lengths=False, num_frames=5)
    made = make(folder, tmp_path / "out", models, settings)
    half = copy.deepcopy(vae).bfloat16()  # as a GPU holds it
    assert is_cache(tmp_path / "out") and not is_cache(folder)
    assert len(open_cache(tmp_path / "out", vae, text)) == len(open_cache(tmp_path / "out", half, text)) == len(made)
    torch.manual_seed(9)
    with pytest.raises(ValueError, match="made with another VAE"):
        open_cache(tmp_path / "out", CausalVAE(CONFIG), text)
    with pytest.raises(ValueError, match="made with another text encoder"):
        open_cache(tmp_path / "out", vae, None)


def test_a_fingerprint_sees_both_ends_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"a" * 3_000_000)
    first = file_fingerprint(tmp_path / "x")
    for data in (b"b" + b"a" * 2_999_999, b"a" * 2_999_999 + b"b", b"a" * 3_000_001):
        (tmp_path / "y").write_bytes(data)
        assert file_fingerprint(tmp_path / "y") != first
    (tmp_path / "y").write_bytes(b"a" * 3_000_000)
    assert file_fingerprint(tmp_path / "y") == first


def test_bad_clips_are_left_out_by_name(folder, tmp_path, models):
    long = [replace(clip, caption="a pan of " * 9) if clip.name == "a.mp4" else clip for clip in clips(folder)]
    gone = [replace(clip, path=tmp_path / "gone.mp4", caption="noise") if clip.name == "b.mp4" else clip
            for clip in long]
    (tmp_path / "gone.mp4").write_text("words")
    cached = cache_clips(gone, tmp_path / "out", *models, SETTINGS, torch.float32, progress=False)
    told = [str(problem) for problem in cached.problems]
    assert any("a.mp4: the caption" in line and "at most 12 fit" in line for line in told)
    assert any("b.mp4: is not a video" in line for line in told)
    assert len(cached) == 3 and "noise" not in cached.captions
    again = cache_clips(gone, tmp_path / "out", *models, SETTINGS, torch.float32, progress=False)
    assert [str(problem) for problem in again.problems] == told
    with pytest.raises(ValueError, match="none of 1 clips can be encoded; a.mp4: the caption"):
        cache_clips(gone[:1], tmp_path / "none", *models, SETTINGS, progress=False)


def test_plan_of_pieces(folder):
    every = clips(folder)
    items, problems = plan_items(every, replace(SETTINGS, windows=3, num_frames=5), CONFIG)
    b = [(item.start, item.frames) for item in items if item.clip.name == "b.mp4"]
    assert b == [(0.0, 5), (7 / 8, 5), (15 / 8, 5)]  # 20 frames: three pieces, from the beginning to the end
    assert [item.frames for item in items if item.clip.name == "short.mp4"] == [5]
    items, problems = plan_items(every, replace(SETTINGS, mixed_lengths=False), CONFIG)
    assert {problem.name for problem in problems} == {"short.mp4", "half.mp4"}
    assert {item.frames for item in items} == {1, 9}
    assert shard([3, 3, 3, 9, 1], 7) == [range(0, 2), range(2, 3), range(3, 4), range(4, 5)] and shard([], 7) == []


@pytest.mark.parametrize("change, message", [
    ({"num_frames": 10}, "num_frames is 10; it must be 4k \\+ 1, such as 9 or 13"), ({"fps": 0}, "fps is 0"),
    ({"width": 20, "bucketed": False}, "the size is 32x20; both sides must be multiples of 8"),
    ({"windows": 0}, "windows is 0")])
def test_bad_settings_are_refused_first(folder, tmp_path, models, change, message):
    with pytest.raises(ValueError, match=message):
        make(folder, tmp_path / "out", models, replace(SETTINGS, **change))
    assert not (tmp_path / "out").exists()


def test_damage_is_reported_when_a_cache_is_read(folder, tmp_path, models):
    with pytest.raises(FileNotFoundError, match="holds no cache; make one"):
        CachedClips(tmp_path)
    make(folder, tmp_path, models)
    (tmp_path / "clips-00000.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="clips-00000.safetensors is missing or damaged; run"):
        CachedClips(tmp_path).draw([0])
    make(folder, tmp_path, (models[0], models[1]))
    assert CachedClips(tmp_path).draw([0]).shape == (1, 4, 1, 8, 8)
    without = make(folder, tmp_path / "mute", (models[0], None))
    with pytest.raises(ValueError, match="made without a text encoder; use its captions"):
        without.text([0])


def test_the_command_encodes_with_the_shipped_model(folder, tmp_path, capsys):
    arguments = ["cache", str(folder), "--out", str(tmp_path / "out"), "--num-frames", "5", "--one-size"]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "5 frames of 64x64: 4" in printed and printed.endswith("out: 5 clips, 3 captions\n")
    assert "not used: half.mp4: has 4 frames" in printed
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["settings"]["num_frames"] == 5
    assert CachedClips(tmp_path / "out").draw([1, 2]).shape == (2, 16, 2, 8, 8)


def test_the_command_encodes_clips_and_captions_in_the_format_that_is_asked_for(folder, tmp_path, monkeypatch, capsys):
    seen = []

    def watched(clips, out, vae, text, settings, dtype, batch_size):
        seen.append((dtype, text.encoder.dtype, str(text.encoder.device), str(next(vae.parameters()).device)))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("minicogvx.data.clips.encode.cache_clips", watched)
    for dtype in ("float32", "bfloat16"):
        assert cli.main(["data", "cache", str(folder), "--out", str(tmp_path / "out"), "--device", "cpu", "--dtype",
                         dtype]) == 2
        assert seen.pop() == (getattr(torch, dtype), getattr(torch, dtype), "cpu", "cpu")
    assert "not enough memory on the GPU; what helps: a smaller --batch-size, fewer frames" in capsys.readouterr().err
