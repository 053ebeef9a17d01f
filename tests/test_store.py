"""The store of encoded clips: what the models gave is read back; it grows, resumes, and keeps what is not its own."""

import copy
import errno
import json
import os
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from minicogvx import cli
from minicogvx.data import command
from minicogvx.data.clips import cache, contents, encode, fingerprints, plan
from minicogvx.data.clips.cache import CachedClips, check_models
from minicogvx.data.clips.cache_files import files_of, holds_clips, is_cache
from minicogvx.data.clips.clips import Clips
from minicogvx.data.clips.encode import encode_clips
from minicogvx.data.clips.plan import CacheSettings, clip_lengths, in_shards, plan_items
from minicogvx.data.films.folder import read_clip, scan_folder
from minicogvx.files import locked
from minicogvx.interop.safetensors_files import write_tensors
from minicogvx.presets import preset
from minicogvx.text import TextEncoder
from minicogvx.vae import CausalVAE
from tests.films import caption, mp4, pan, texture

MICRO = preset("micro")
CONFIG = replace(MICRO.vae, block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4, scaling_factor=0.7)
SETTINGS = CacheSettings(num_frames=9, height=32, width=32, fps=8)


def small_models(seed=0):
    """A VAE and a text encoder."""
    torch.manual_seed(seed)
    text = TextEncoder.from_config(replace(MICRO.text, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
                                   ("a", "pan", "of", "noise", "picture"), 12)
    text.encoder.eval()
    return CausalVAE(CONFIG).eval(), text


def write_films(folder):
    """Two square videos, a wide one, a short one, one of half a second and a picture, in `folder`, which it returns."""
    for name, video, words in (("a.mp4", pan(16, 40, 40, seed=1), "a pan"),
                               ("b.mp4", pan(20, 40, 40, seed=2), "a pan of noise"),
                               ("wide.mp4", pan(16, 32, 96, seed=3), "a pan"),
                               ("short.mp4", pan(7, 40, 40, seed=4), "a pan"), ("half.mp4", pan(4, 40, 40), "a pan")):
        caption(mp4(folder / name, video), words)
    Image.fromarray((texture(48, 48).numpy() * 255).astype("uint8")).save(caption(folder / "still.png", "a picture"))
    return folder


@pytest.fixture(scope="module")
def models():
    return small_models()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("films"))


@pytest.fixture
def work(folder, tmp_path):
    """A copy of the films, to be changed."""
    return shutil.copytree(folder, tmp_path / "films")


def encoded(folder, out, models, settings=SETTINGS, **options):
    """The clips, and the problems in words."""
    films = scan_folder(folder, min_seconds=0.0).clips if isinstance(folder, os.PathLike) else folder
    options = {"dtype": torch.float32, "progress": False} | options
    clips, problems = encode_clips(films, out, *models, settings, **options)
    return clips, [str(problem) for problem in problems]


def make(folder, out, models, settings=SETTINGS, **options):
    return encoded(folder, out, models, settings, **options)[0]


def by_name(clips):
    """The number of each film's clip."""
    return {clips.name(i): i for i in range(len(clips))}


def files(out):
    """Every file with its time, so that one that was written again differs."""
    return {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


def of_kind(names, kind):
    return len([name for name in names if name.startswith(kind)])


def never(monkeypatch):
    monkeypatch.setattr(encode, "read_clip", lambda *_: pytest.fail("a film was read"))


# ---- what is read


def test_latents_are_those_of_the_vae_and_text_that_of_the_encoder(folder, tmp_path, models):
    vae, text = models
    clips, problems = encoded(folder, tmp_path, models)
    assert isinstance(clips, Clips) and len(clips) == 5
    assert problems == ["half.mp4: has 4 frames at 8 fps; it must have at least 5"]
    number = by_name(clips)
    assert {name: clips.latent_size(i) for name, i in number.items()} == {
        "a.mp4": (3, 8, 8), "b.mp4": (3, 8, 8), "wide.mp4": (3, 6, 12), "short.mp4": (2, 8, 8), "still.png": (1, 8, 8)}
    assert clips.sizes.shape == (5, 3)
    films = {clip.name: clip for clip in scan_folder(folder, 0.0).clips}
    for name, words in (("b.mp4", "a pan of noise"), ("a.mp4", "a pan")):
        i = number[name]
        with torch.no_grad():
            video = read_clip(films[name], 0.0, 9, 8, 32, 32).permute(3, 0, 1, 2)[None] * 2 - 1
            posterior, features, empty = vae.encode(video), text.encode([words])[0], text.encode([""])[0]
        mean, std = posterior.mean[0], posterior.std[0]
        assert torch.allclose(clips.latents(i), mean * 0.7, rtol=1e-3, atol=1e-4)  # float16 keeps 11 bits
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(4))
        drawn = clips.latents(i, torch.Generator().manual_seed(4))
        assert torch.allclose(drawn, (mean + std * noise) * 0.7, rtol=1e-2, atol=1e-3)
        assert not torch.equal(drawn, clips.latents(i, torch.Generator().manual_seed(5)))
        assert clips.caption(i) == words and torch.allclose(clips.text(i), features, rtol=1e-3, atol=1e-4)
        assert torch.allclose(clips.empty_text(), empty, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="no first frames; make one with `--first-frame`"):
        clips.first_pixels(0)


def test_pixels_of_first_frames_are_kept(folder, tmp_path, models):
    clips = make(folder, tmp_path, models, replace(SETTINGS, first_frame=True, bucketed=False))
    films = {clip.name: clip for clip in scan_folder(folder, 0.0).clips}
    for name, i in by_name(clips).items():
        pixels = clips.first_pixels(i)
        assert pixels.shape == (3, 1, 32, 32) and -1 <= pixels.min() < pixels.max() <= 1
        first = read_clip(films[name], 0.0, 1, 8, 32, 32)[0]
        assert (pixels[:, 0].permute(1, 2, 0) - (first * 2 - 1)).abs().max() < 0.01  # of bytes


def test_few_files_are_open_and_only_when_they_are_needed(folder, tmp_path, models, monkeypatch):
    make(folder, tmp_path, models, shard_bytes=1)
    names = [path.name for kind in ("latents", "text") for path in files_of(tmp_path, kind).values()]
    assert of_kind(names, "latents") == 5 and of_kind(names, "text") == 4
    monkeypatch.setattr(cache, "OPEN_FILES", 2)
    opening, real = [], cache.opened
    monkeypatch.setattr(cache, "opened", lambda path: (opening.append(path.name), real(path))[1])
    clips = CachedClips(tmp_path)
    assert [clips.latent_size(i)[0] for i in range(5)] == [1, 2, 3, 3, 3]
    assert not opening
    whole = [clips.latents(i) for i in range(5)]
    assert len(opening) == 5 and torch.equal(clips.latents(4), whole[4]) and len(opening) == 5
    assert clips._open.cache_info().currsize == 2
    copied = pickle.loads(pickle.dumps(clips))  # as the workers of a DataLoader get it
    assert torch.equal(copied.latents(0), whole[0]) and copied.caption(0) == clips.caption(0)


def test_files_stay_small(folder, tmp_path, models):
    assert in_shards([], 7) == [] and in_shards([9], 7, ranks=3) == [[0]]
    assert in_shards([3, 3, 3, 9, 1], 7) == [[0, 1, 2], [3], [4]]
    shares = in_shards([5] * 100, 60, ranks=4)
    assert len(shares) == 12 and {len(share) for share in shares} <= {8, 9} and sum(shares, []) == list(range(100))
    make(folder, tmp_path, models, shard_bytes=4000)
    assert max(path.stat().st_size for path in tmp_path.glob("latents-*")) < 4000 + 3100 + 1500  # a clip, a header


# ---- how it grows


def caption_other(work):
    (work / "wide.txt").write_text("a pan of a picture")


def caption_twice(work):
    rows = [{"file_name": "b.mp4", "text": "a pan of noise"}, {"file_name": "b.mp4", "text": "noise"}]
    (work / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


CHANGES = {  # what: (how, new files of latents, of text and of the index, clips of the run, and in all)
    "another caption": (caption_other, 0, 1, 1, 5, 5),
    "one caption more": (caption_twice, 0, 1, 1, 6, 6),
    "a new film": (lambda work: caption(mp4(work / "z.mp4", pan(9, 40, 40, seed=8)), "a pan of noise"), 1, 0, 1, 6, 6),
    "another film": (lambda work: mp4(work / "b.mp4", pan(20, 40, 40, seed=7)), 1, 0, 1, 5, 5),
    "a copy": (lambda work: [shutil.copy(work / f"b.{end}", work / f"y.{end}") for end in ("mp4", "txt")], 0, 0, 1, 6,
               6),
    "another name": (lambda work: [(work / f"b.{end}").rename(work / f"y.{end}") for end in ("mp4", "txt")], 0, 0, 1, 5,
                     5),
    "a film less": (lambda work: (work / "b.mp4").unlink(), 0, 0, 0, 4, 5)}


@pytest.mark.parametrize("what", CHANGES)
def test_it_grows_by_what_is_new(work, tmp_path, models, what, monkeypatch):
    change, latents, texts, indices, own, every = CHANGES[what]
    out = tmp_path / "out"
    before, numbers = (make(work, out, models), files(out)), by_name(CachedClips(out))
    change(work)
    clips, problems = encoded(work, out, models)
    assert [of_kind(files(out).keys() - before[1].keys(), kind) for kind in ("latents", "text", "clips")] == [
        latents, texts, indices]
    assert before[1].items() <= files(out).items()  # nothing was written over
    assert (len(clips), len(CachedClips(out))) == (own, every)
    fresh, same_problems = encoded(work, tmp_path / "fresh", models)
    assert problems == same_problems
    found, wanted = ({(each.name(i), each.caption(i)): each.latents(i) for i in range(len(each))}
                     for each in (clips, fresh))
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[key], wanted[key], atol=5e-3) for key in wanted)
    if what == "another caption":
        assert by_name(CachedClips(out)) == numbers and clips.caption(numbers["wide.mp4"]) == "a pan of a picture"
    after = files(out)
    never(monkeypatch)
    make(work, out, models)
    assert files(out) == after


def test_films_of_several_folders_are_added_whatever_their_names(folder, tmp_path, models):
    (tmp_path / "more").mkdir()
    caption(mp4(tmp_path / "more" / "a.mp4", pan(12, 40, 40, seed=9)), "noise")
    make(folder, tmp_path / "out", models)
    added = make(tmp_path / "more", tmp_path / "out", models)
    assert [added.name(i) for i in range(len(added))] == ["a.mp4"] and added.caption(0) == "noise"
    every = CachedClips(tmp_path / "out")
    assert len(every) == 6 and [every.name(i) for i in range(6)].count("a.mp4") == 2


def test_a_killed_run_resumes_with_what_is_missing(folder, tmp_path, models, monkeypatch):
    whole, real, written = make(folder, tmp_path / "whole", models, shard_bytes=4000), contents.write_tensors, []

    def killed(path, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return real(path, *rest)

    out = tmp_path / "cut"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(contents, "write_tensors", killed)
        make(folder, out, models, shard_bytes=4000)
    assert is_cache(out)
    with pytest.raises(ValueError, match="has no clips yet; run `minicogvx data encode` on it again"):
        CachedClips(out)
    damaged = out / "latents-00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    (out / ".latents-00002.0123abcd.part.safetensors").touch()
    before, read = files(out), []
    monkeypatch.setattr(encode, "read_clip", lambda clip, *rest: (read.append(clip.name), read_clip(clip, *rest))[1])
    resumed = make(folder, out, models, shard_bytes=4000)
    kept = [name for name, i in by_name(resumed).items() if int(resumed._index["latents"][i]) == 0]
    assert kept and sorted(read) == sorted(by_name(whole).keys() - set(kept))
    assert not list(out.glob(".*")) and files(out)["latents-00000.safetensors"] == before["latents-00000.safetensors"]
    for name, i in by_name(whole).items():
        assert torch.allclose(whole.latents(i), resumed.latents(by_name(resumed)[name]), atol=5e-3)


def test_what_is_damaged_is_reported_when_it_is_read_and_then_encoded_again(folder, tmp_path, models):
    with pytest.raises(FileNotFoundError, match="holds no encoded clips; make them with `minicogvx data encode`"):
        CachedClips(tmp_path)
    make(folder, tmp_path, models)
    for kind, read in (("latents", lambda clips: clips.latents(0)), ("text", lambda clips: clips.text(0)),
                       ("text", lambda clips: clips.empty_text())):
        last = list(files_of(tmp_path, kind).values())[-1]
        last.write_bytes(last.read_bytes()[:-1])
        with pytest.raises(ValueError, match=f"{last.name} is missing or damaged; run `minicogvx data encode` again"):
            read(CachedClips(tmp_path))
        read(make(folder, tmp_path, models))
        assert len(CachedClips(tmp_path)) == 5
    index = list(files_of(tmp_path, "clips").values())[-1]
    index.write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{index.name} is damaged or not of a cache; move it away"):
        CachedClips(tmp_path)
    index.unlink()
    assert len(make(folder, tmp_path, models)) == 5


# ---- what cannot be encoded


def test_films_that_cannot_be_encoded_are_left_out_by_name(folder, tmp_path, models):
    films = [replace(clip, caption="a pan of " * 9) if clip.name == "a.mp4" else
             replace(clip, path=tmp_path / "gone.mp4", caption="noise") if clip.name == "b.mp4" else clip
             for clip in scan_folder(folder, 0.0).clips]
    (tmp_path / "gone.mp4").write_text("words")
    clips, told = encoded(films, tmp_path / "out", models)
    assert any("a.mp4: the caption" in line and "at most 12 fit" in line for line in told)
    assert any("b.mp4: is not a video" in line for line in told)
    assert len(clips) == 3 and "noise" not in [clips.caption(i) for i in range(3)]
    assert encoded(films, tmp_path / "out", models)[1] == told
    with pytest.raises(ValueError, match="none of 1 clips can be encoded; a.mp4: the caption"):
        encoded(films[:1], tmp_path / "none", models)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("code", [None, errno.ESTALE])
def test_a_film_that_goes_after_the_scan_is_a_problem(work, tmp_path, models, monkeypatch, code):
    films, real = scan_folder(work, 0.0).clips, plan.file_fingerprint

    def fingerprint(path):
        if path.name == "b.mp4" and code:
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    monkeypatch.setattr(plan, "file_fingerprint", fingerprint)
    if not code:
        (work / "b.mp4").unlink()
    clips, told = encoded(films, tmp_path / "out", models)
    assert len(clips) == 4 and f"b.mp4: cannot be read: {os.strerror(code or errno.ENOENT)}" in told
    shutil.rmtree(work)
    with pytest.raises(ValueError, match="none of 5 pieces can be encoded; .* cannot be read"):
        encoded(films, tmp_path / "none", models)


def test_a_disk_that_was_away_is_asked_again(folder, tmp_path, models, monkeypatch):
    def away(clip, *rest):
        if clip.name == "b.mp4":
            raise OSError(5, "Input/output error")
        return read_clip(clip, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(encode, "read_clip", away)
        clips, told = encoded(folder, tmp_path, models)
    assert len(clips) == 4 and "b.mp4: [Errno 5] Input/output error" in told
    assert len(make(folder, tmp_path, models)) == 5


@pytest.mark.parametrize("value", [float("nan"), 7e4, -float("inf")])
def test_latents_that_no_file_can_hold_are_left_out_by_name(folder, tmp_path, models, monkeypatch, value):
    vae, real = copy.deepcopy(models[0]), models[0].encode

    def encode_wild(video):
        posterior = real(video)
        wild = video.abs().amax((1, 2, 3, 4)).view(-1, 1, 1, 1, 1) > 1e3
        posterior.mean = torch.where(wild, value, posterior.mean)
        return posterior

    monkeypatch.setattr(vae, "encode", encode_wild)
    monkeypatch.setattr(encode, "read_clip", lambda clip, *rest: read_clip(clip, *rest) * (
        1e4 if clip.name == "b.mp4" else 1))
    clips, told = encoded(folder, tmp_path, (vae, None))
    assert "b.mp4: has latents that are NaN or infinite as float16" in told
    assert len(clips) == 4 and all(torch.isfinite(clips.latents(i)).all() for i in range(4))
    never(monkeypatch)  # it is not tried again
    assert encoded(folder, tmp_path, (vae, None))[1] == told


def test_a_full_disk_is_named_and_nothing_is_lost(folder, tmp_path, models, monkeypatch):
    real = contents.write_tensors

    def full(path, *rest):
        if path.name.startswith("text"):
            raise OSError(f"{path} cannot be written: No space left on device")
        return real(path, *rest)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="text-00000.safetensors cannot be written"):
        patch.setattr(contents, "write_tensors", full)
        make(folder, tmp_path, models)
    never(monkeypatch)
    assert len(make(folder, tmp_path, models)) == 5


# ---- which folder, which model


def test_one_run_at_a_time_writes(folder, tmp_path, models):
    with locked(tmp_path / "out"), pytest.raises(ValueError, match="in use by another run"):
        make(folder, tmp_path / "out", models)
    assert not (tmp_path / "out").exists()


def test_files_of_others_stay(folder, tmp_path, models, monkeypatch, subtests):
    never(monkeypatch)
    for k, (name, content) in enumerate([
            ("cache.json", '{"title": "mine"}'), ("cache.json", "[1]"), ("cache.json", "notes"), ("cache.json", None),
            ("clips-00000.safetensors", "notes"), ("clips-00007.safetensors", b"")]):
        with subtests.test(name=name, content=content):
            path = tmp_path / str(k) / name
            path.parent.mkdir()
            if content is None:
                path.mkdir()
            elif content == b"":
                write_tensors(path, {"mine": torch.ones(2)})
            else:
                path.write_text(content)
            before = path.read_bytes() if path.is_file() else None
            with pytest.raises((ValueError, OSError), match=name) as told:
                make(folder, path.parent, models)
            assert "\n" not in str(told.value) and (path.read_bytes() if path.is_file() else None) == before


def test_shards_of_others_are_neither_read_nor_written_over(folder, tmp_path, models):
    others = [write_tensors(tmp_path / name, {"mine": torch.ones(2)}) for name in (
        "latents-00000.safetensors", "text-00003.safetensors")]
    before = [path.read_bytes() for path in others]
    assert len(make(folder, tmp_path, models)) == 5
    assert [path.read_bytes() for path in others] == before


def test_a_cache_of_an_earlier_version_is_refused_and_not_touched(folder, tmp_path, models):
    (tmp_path / "plan.json").write_text('{"vae": "x", "text": "", "settings": {"fps": 8}}')
    (tmp_path / "index.json").write_text('{"items": []}')
    before = files(tmp_path)
    assert is_cache(tmp_path)
    for use in (CachedClips, lambda out: make(folder, out, models), lambda out: check_models(out, *models)):
        with pytest.raises(ValueError, match="an earlier version encoded; encode the films again, into a new folder"):
            use(tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize("error, kind", [(KeyboardInterrupt(), KeyboardInterrupt), (ValueError("is odd"), ValueError),
                                         (OSError("is away"), ValueError)])
def test_a_start_without_a_result_can_be_changed(folder, tmp_path, models, monkeypatch, error, kind):
    def fails(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(kind):
        patch.setattr(encode, "read_clip", fails)
        make(folder, tmp_path / "out", models)
    assert not holds_clips(tmp_path / "out")
    other = replace(SETTINGS, num_frames=5, fps=4)
    assert len(make(folder, tmp_path / "out", models, other)) == 4 and holds_clips(tmp_path / "out")  # one is too short
    with pytest.raises(ValueError, match="num_frames is 9; .* were encoded with 5"):
        make(folder, tmp_path / "out", models)


def test_a_cache_is_used_only_with_the_models_and_settings_that_made_it(folder, tmp_path, models, subtests):
    vae, text = models
    clips, out = make(folder, tmp_path / "out", models), tmp_path / "out"
    other_vae, other_text = small_models(9)
    scaled = CausalVAE(replace(CONFIG, scaling_factor=0.5))
    scaled.load_state_dict(vae.state_dict())
    check_models(out, copy.deepcopy(vae).bfloat16(), text)  # as a GPU holds it
    check_models(out, vae, None)  # the run trains a text encoder, from captions
    assert len(make(folder, out, models, replace(SETTINGS, fps=8.0))) == len(clips)
    mute = make(folder, tmp_path / "mute", (vae, None))
    assert not mute.has_text and mute.caption(0) in ("a pan", "a pan of noise", "a picture")
    for name, use, message in (
            ("vae", lambda: check_models(out, other_vae, text), "the VAE is not the one"),
            ("text", lambda: check_models(out, vae, other_text), "the text encoder is not the one"),
            ("scaling", lambda: check_models(out, scaled, text), r"scaling_factor is not the one .* \(0.5, not 0.7\)"),
            ("no text", lambda: check_models(tmp_path / "mute", vae, text), "have no text features"),
            ("no features", lambda: mute.text(0), "made without a text encoder; use its captions"),
            ("other vae", lambda: make(folder, out, (other_vae, text)), "the VAE is not the one"),
            ("no encoder", lambda: make(folder, out, (vae, None)), "the text encoder is not the one"),
            ("fps", lambda: make(folder, out, models, replace(SETTINGS, fps=4)), "fps is 4.0; .* encoded with 8.0"),
            ("dtype", lambda: make(folder, out, models, dtype=torch.bfloat16), r"\(bfloat16, not float32\)")):
        with subtests.test(name), pytest.raises(ValueError, match=message):
            use()


# ---- what is planned


def test_lengths_are_few_and_pieces_spread(folder, tmp_path):
    assert {(most, step): clip_lengths(most, step) for most, step in ((49, 4), (9, 4), (5, 4), (1, 4), (81, 8))} == {
        (49, 4): (13, 25, 37, 49), (9, 4): (5, 9), (5, 4): (5,), (1, 4): (1,), (81, 8): (17, 41, 57, 81)}
    films = scan_folder(folder, 0.0).clips
    items, _ = plan_items(films, replace(SETTINGS, windows=3, num_frames=5), CONFIG)
    b = [(item.start, item.frames) for item in items if item.clip.name == "b.mp4"]
    assert b == [(0.0, 5), (7 / 8, 5), (15 / 8, 5)]  # 20 frames: three pieces, from the beginning to the end
    assert [item.frames for item in items if item.clip.name == "short.mp4"] == [5]
    items, problems = plan_items(films, replace(SETTINGS, mixed_lengths=False), CONFIG)
    assert {problem.name for problem in problems} == {"short.mp4", "half.mp4"}
    assert {item.frames for item in items} == {1, 9}


@pytest.mark.parametrize("change, message", [
    ({"num_frames": 10}, "num_frames is 10; it must be 4k \\+ 1, such as 9 or 13"), ({"fps": 0}, "fps is 0"),
    ({"width": 20, "bucketed": False}, "the size is 32x20; both sides must be multiples of 8"),
    ({"windows": 0}, "windows is 0")])
def test_bad_settings_are_refused_first(folder, tmp_path, models, change, message):
    with pytest.raises(ValueError, match=message):
        make(folder, tmp_path / "out", models, replace(SETTINGS, **change))
    assert not (tmp_path / "out").exists()


def test_a_fingerprint_sees_both_ends_of_a_file(tmp_path):
    def of(data):
        (tmp_path / "x").write_bytes(data)
        return fingerprints.file_fingerprint(tmp_path / "x")

    first = of(b"a" * 3_000_000)
    assert first not in {of(b"b" + b"a" * 2_999_999), of(b"a" * 2_999_999 + b"b"), of(b"a" * 3_000_001)}
    assert of(b"a" * 3_000_000) == first


# ---- the command


def test_the_command_encodes_with_the_shipped_model(folder, tmp_path, capsys):
    arguments = ["encode", str(folder), "--out", str(tmp_path / "out"), "--num-frames", "5", "--one-size",
                 "--windows", "2", "--one-length"]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "7 clips and 1 picture: 7 of 5 frames at 64x64, 1 of 1 frame at 64x64 (height x width)\n" in printed
    assert printed.endswith("out: 8 clips\n")
    assert "not used: half.mp4: has 4 frames" in printed
    clips = CachedClips(tmp_path / "out")
    assert clips.latents(7).shape == (16, 2, 8, 8) and clips.has_text
    with pytest.raises(ValueError, match="there is no command 'cache'; did you mean encode?"):
        command.main(["cache", *arguments[1:]])


def test_the_command_computes_in_the_dtype_that_is_asked_for(folder, tmp_path, monkeypatch, capsys):
    seen = []

    def watched(films, out, vae, text, settings, dtype, batch_size, ranks):
        seen.append((dtype, text.encoder.dtype, str(text.encoder.device), str(next(vae.parameters()).device)))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encode, "encode_clips", watched)
    for dtype in ("float32", "bfloat16"):
        assert cli.main(["data", "encode", str(folder), "--out", str(tmp_path / "out"), "--device", "cpu", "--dtype",
                         dtype]) == 2
        assert seen.pop() == (getattr(torch, dtype), getattr(torch, dtype), "cpu", "cpu")
    assert "not enough memory on the GPU; what helps: a smaller --batch-size, fewer frames" in capsys.readouterr().err
