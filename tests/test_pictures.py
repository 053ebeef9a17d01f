"""Pictures of every kind are read as a viewer shows them, for training and as a start image."""

import errno
import os

import numpy as np
import pytest
import torch
from films import caption, pictures
from PIL import Image

from minicogvx.data.films.decode import read_image, read_video, stream_frames
from minicogvx.data.films.folder import read_clip, scan_folder
from minicogvx.data.films.pictures import UnusableFile, check_size, upright_picture
from minicogvx.data.films.probe import IMAGES, probe
from minicogvx.data.films.shots import find_shots

RAMP = np.linspace(0, 1, 64 * 64, dtype=np.float64).reshape(64, 64)


DEPTHS = {
    "16.png": (RAMP * 65535).astype(np.uint16), "16.tif": (RAMP * 65535).astype(np.uint16),
    "big_endian.tif": (RAMP * 65535).astype(">u2"), "32.tif": (RAMP * 65535).astype(np.int32),
    "bytes.tif": (RAMP * 255).astype(np.int32), "floats.tif": RAMP.astype(np.float32),
    "255.tif": (RAMP * 255).astype(np.float32), "65535.tif": (RAMP * 65535).astype(np.float32),
    "8.png": (RAMP * 255).astype(np.uint8),
}


def test_a_grey_ramp_stays_a_ramp_at_any_depth(tmp_path, subtests):
    for name, values in DEPTHS.items():
        Image.fromarray(values).save(caption(tmp_path / name))
    clips = {clip.name: clip for clip in scan_folder(tmp_path).clips}
    for name in DEPTHS:
        with subtests.test(msg=name):
            seen = read_image(tmp_path / name, 64, 64)
            assert (seen - torch.from_numpy(RAMP)[..., None]).abs().max() < 0.006
            assert torch.equal(read_clip(clips[name], 0.0, 1, 8, 64, 64)[0], seen)
            assert find_shots(clips[name])[0].scores["black"] == 0


def test_a_dark_picture_of_16_bits_stays_dark_and_lamps_may_be_brighter_than_white(tmp_path):
    Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(tmp_path / "night.png")
    assert read_image(tmp_path / "night.png", 8, 8).max() < 0.02
    lamp = np.full((8, 8), 0.25, np.float32)
    lamp[0] = 1.5
    Image.fromarray(lamp).save(tmp_path / "lamp.tif")
    seen = read_image(tmp_path / "lamp.tif", 8, 8)
    assert seen[0].min() == 1 and (seen[1:] - 0.25).abs().max() < 0.01


def test_floats_without_a_scale_are_named(tmp_path, subtests):
    for level, message in ((np.nan, "NaN"), (np.inf, "NaN or infinite"), (1e9, r"0\.\.65535")):
        Image.fromarray(np.array([[0.5, level]], np.float32)).save(tmp_path / "wild.tif")
        for read in (probe, lambda path: read_image(path, 8, 8)):
            with subtests.test(msg=message), pytest.raises(UnusableFile, match=f"wild.tif has .*{message}"):
                read(tmp_path / "wild.tif")


def test_colours_and_transparency(tmp_path, subtests):
    for mode, colour, ending, shown in (
        ("RGBA", (255, 0, 0, 0), "png", (1, 1, 1)), ("RGBA", (255, 0, 0, 128), "webp", (1, 0.5, 0.5)),
        ("LA", (0, 128), "png", (0.5, 0.5, 0.5)), ("CMYK", (0, 255, 255, 0), "jpg", (1, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "tif", (1, 0, 0)), ("1", 1, "png", (1, 1, 1)), ("1", 1, "tif", (1, 1, 1)),
        ("YCbCr", (76, 84, 255), "jpg", (1, 0, 0)), ("L", 51, "bmp", (0.2, 0.2, 0.2)),
        ("RGB", (0, 0, 255), "avif", (0, 0, 1)), ("RGB", (0, 255, 0), "jp2", (0, 1, 0)),
        ("RGB", (255, 0, 0), "apng", (1, 0, 0)), ("RGB", (255, 0, 0), "gif", (1, 0, 0)),
    ):
        with subtests.test(msg=f"{mode} in {ending}"):
            path = tmp_path / f"a.{ending}"
            Image.new(mode, (48, 32), colour).save(path)
            assert (read_image(path, 32, 48) - torch.tensor(shown)).abs().max() < 0.03
            facts = probe(path)
            assert (facts.frames, facts.fps, facts.height, facts.width, facts.seconds) == (1, 0, 32, 48, 0)


def test_a_palette_with_a_hole_is_white_there(tmp_path):
    picture = Image.new("P", (32, 32), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.paste(0, (0, 0, 32, 16))
    picture.save(tmp_path / "hole.png", transparency=0)
    seen = read_image(tmp_path / "hole.png", 32, 32)
    assert (seen[:15] == 1).all() and torch.equal(seen[20, 5], torch.tensor([1.0, 0.0, 0.0]))


def test_pictures_of_16_bits_are_turned_upright_too(tmp_path):
    sideways = np.zeros((10, 20), np.uint16)
    sideways[:, :10] = 65535
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(sideways).save(tmp_path / "phone.png", exif=exif)
    seen = read_image(tmp_path / "phone.png", 20, 10)
    assert seen[:9].min() > 0.9 and seen[11:].max() < 0.1


def test_the_bound_on_size_holds_before_pixels_are_made(tmp_path):
    Image.new("L", (16, 16)).save(tmp_path / "huge.bmp")
    data = bytearray((tmp_path / "huge.bmp").read_bytes())
    data[18:22], data[22:26] = (20000).to_bytes(4, "little"), (12000).to_bytes(4, "little")
    (tmp_path / "huge.bmp").write_bytes(data)
    with pytest.raises(UnusableFile, match="huge.bmp"):
        probe(tmp_path / "huge.bmp")
    with pytest.raises(UnusableFile, match="12000 pixels; at most"):
        check_size(tmp_path / "huge.bmp", 12000, 20000)


def test_pages_of_a_document_are_no_video(tmp_path):
    pages = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime")]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert probe(tmp_path / "pages.tif").fps == 0
    assert torch.allclose(read_image(tmp_path / "pages.tif", 8, 8), torch.tensor([1.0, 0.0, 0.0]), atol=1e-3)


def moving(path, durations=(100, 300, 100), **options):
    """A red square with a hole that walks over nothing: what is left of its old place is cleared, not drawn."""
    frames = []
    for k in range(len(durations)):
        frame = Image.new("RGBA", (48, 32), (0, 0, 0, 0))
        frame.paste((255, 0, 0, 255), (16 * k, 0, 16 * k + 16, 32))
        frame.paste((0, 0, 0, 0), (16 * k + 4, 8, 16 * k + 12, 24))
        frames.append(frame)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=list(durations), **options)
    return path


def test_animated_pictures_are_videos(tmp_path, subtests):
    for name, options in (("a.webp", {"lossless": True}), ("b.png", {"disposal": 1}), ("c.apng", {"disposal": 1}),
                          ("d.avif", {}), ("e.gif", {"disposal": 2})):
        with subtests.test(msg=name):
            moving(tmp_path / name, **options)
            clip = scan_folder(tmp_path, min_seconds=0.1, need_captions=False).clips[-1]
            assert clip.name == name and not clip.is_image and clip.variable_rate
            assert (clip.frames, clip.height, clip.width) == (3, 32, 48)
            assert clip.seconds == pytest.approx(0.5, abs=1e-3) and clip.fps == pytest.approx(5, abs=1e-2)
            seen = read_clip(clip, 0.0, 5, 10, 32, 48)  # on screen: 0, 1, 1, 1, 2
            for frame, k in zip(seen, (0, 1, 1, 1, 2)):
                expected = torch.ones(32, 48, 3)
                expected[:, 16 * k:16 * k + 16, 1:] = 0
                expected[8:24, 16 * k + 4:16 * k + 12] = 1
                assert (frame - expected).abs().mean() < 0.03
            with pytest.raises(UnusableFile, match=f"{name} .*0.50 s; 6 frames at 10 fps"):
                read_video(clip.path, 6, 32, 48, fps=10)
            assert next(stream_frames(clip.path, [0.0], 16)).shape == (16, 24, 3)


def test_the_picture_for_programs_without_animation_is_left_out(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("blue", "red", "lime")]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=100, default_image=True)
    assert probe(tmp_path / "a.png").frames == 2
    seen = read_video(tmp_path / "a.png", 2, 8, 8, fps=10)[:, 0, 0]
    assert torch.allclose(seen, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), atol=1e-3)


def test_a_frame_marked_to_last_no_time_lasts_a_tenth_of_a_second(tmp_path):
    assert probe(moving(tmp_path / "a.webp", (0, 0, 0), lossless=True)).seconds == pytest.approx(0.3)


def test_an_animation_that_breaks_off_is_named(tmp_path):
    whole = moving(tmp_path / "a.webp", (100,) * 8, lossless=True).read_bytes()
    (tmp_path / "cut.webp").write_bytes(whole[:len(whole) * 2 // 3])
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(tmp_path / "b.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:-200])
    for name in ("cut.webp", "cut.png"):
        with pytest.raises(UnusableFile, match=f"{name} .*cut off"):
            probe(tmp_path / name)


def test_every_ending_is_seen_in_any_case(tmp_path):
    kinds = {".jpe": "JPEG", ".jfif": "JPEG", ".apng": "PNG"}
    for ending in IMAGES:
        Image.new("RGB", (32, 32), "red").save(caption(tmp_path / f"{ending[1:]}{ending.upper()}"),
                                               kinds.get(ending, Image.registered_extensions().get(ending)))
    assert {clip.path.suffix.lower() for clip in scan_folder(tmp_path).clips} == set(IMAGES)


def test_whatever_a_reader_says_of_a_damaged_picture_is_a_problem_of_it(tmp_path, monkeypatch):
    pictures(tmp_path, "a.avif", "b.png")
    for error in (RuntimeError("decoder failed"), NotImplementedError("a corner of the format")):
        def upright(image, path, error=error):
            if image.format == "AVIF":
                raise error
            return upright_picture(image, path)

        monkeypatch.setattr("minicogvx.data.films.probe.upright_picture", upright)
        found = scan_folder(tmp_path, need_captions=False)
        assert [clip.name for clip in found.clips] == ["b.png"]
        problem, = found.problems
        assert str(problem).startswith("a.avif: is not a picture"), error


def test_a_disk_that_fails_says_nothing_of_the_picture(tmp_path, monkeypatch, subtests):
    pictures(tmp_path, "a.png")
    for code, kind in ((errno.ESTALE, OSError), (errno.ENFILE, OSError), (errno.EINVAL, UnusableFile)):
        def broken(path, code=code):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Image, "open", broken)
        with subtests.test(msg=errno.errorcode[code]):
            words = "cannot be read: " if kind is OSError else "is not a picture"
            with pytest.raises(kind, match=f"a.png {words}") as told:
                read_image(tmp_path / "a.png", 8, 8)
            assert type(told.value) is kind
