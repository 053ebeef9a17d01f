"""Image to video: wider patches, the noised first frame beside the latents, and which clips can be learnt from."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from minicogvx import cli
from minicogvx.data.clips.cache import CachedClips
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.media import write_mp4
from minicogvx.pipeline import Pipeline
from minicogvx.training.batches import Steps, whole_patches
from minicogvx.training.image_condition import image_channels, noised_picture, widen_for_image
from minicogvx.training.settings import ImageCondition, TransformerTraining
from minicogvx.training.stages import Stage
from tests.tiny import CAPTIONS, TINY, load_pipeline, tiny_pipe, tiny_text, tiny_transformer, tiny_vae
from tests.trained import further, take_steps

TRAINING = TransformerTraining((Stage(30, batch_size=3),), learning_rate=1e-3, image_to_video=True,
                               image=ImageCondition(dropout=0.3))


def steps_of(clips, training: TransformerTraining) -> Steps:
    return Steps(clips, training, TINY.transformer)


def test_a_widened_model_computes_what_the_old_one_did_whatever_the_picture(subtests):
    for patch_t, frames in ((None, 3), (2, 4)):
        with subtests.test(patch_size_t=patch_t):
            model = tiny_transformer(patch_size_t=patch_t)
            wide = widen_for_image(model)
            latents, text, t = torch.randn(2, 4, frames, 8, 8), torch.randn(2, 5, 16), torch.tensor([10, 700])
            with torch.no_grad():
                for picture in (torch.zeros_like(latents), torch.randn_like(latents)):
                    both = wide(torch.cat([latents, picture], 1), t, text)
                    assert torch.allclose(both, model(latents, t, text), atol=1e-5)
    with pytest.raises(ValueError, match="in_channels is 8 for 4 out_channels: this model takes an image already"):
        widen_for_image(wide)
    latents = torch.randn(4, 3, 8, 8)  # temporal patches take whole numbers of frames: the first is repeated
    assert torch.equal(whole_patches(latents, 2), torch.cat([latents[:, :1], latents], dim=1))
    assert torch.equal(whole_patches(latents, None), latents) and torch.equal(whole_patches(latents, 3), latents)


def test_the_picture_is_noised_as_published_and_stands_in_the_first_frame():
    """sigma = exp(N(-3, 0.5^2)): median 0.0498; two thirds between 0.030 and 0.082."""
    generator, black = torch.Generator().manual_seed(0), torch.zeros(3, 1, 32, 32)
    sigma = torch.stack([noised_picture(black, ImageCondition(), generator).std() for _ in range(600)])
    assert sigma.median().item() == pytest.approx(0.0498, rel=0.1)
    assert ((sigma > 0.0302) & (sigma < 0.0821)).float().mean().item() == pytest.approx(0.683, abs=0.06)
    vae, pictures, noise = tiny_vae(), torch.rand(2, 3, 1, 32, 32) * 2 - 1, torch.randn(2, 4, 1, 8, 8)
    posterior = vae.encode(pictures)
    channels = image_channels(vae, pictures, noise, 3)
    assert torch.allclose(channels[:, :, :1], 0.9 * (posterior.mean + posterior.std * noise), atol=1e-5)
    assert channels.shape == (2, 4, 3, 8, 8) and not channels[:, :, 1:].any()
    inverted = tiny_vae(scaling_factor=0.5, invert_scale_latents=True)  # the 1.5 models divide
    assert torch.allclose(image_channels(inverted, pictures, noise, 3), channels * 2 / 0.9, atol=1e-5)


def test_a_step_is_that_of_plain_pytorch_in_packs_too(clips, subtests):
    """And in a share of the steps the picture is dropped, for the whole batch."""
    schedule, vae = NoiseSchedule(TINY.schedule), tiny_vae()
    packed = replace(TRAINING, stages=(Stage(30, batch_size=2, pack=200),))
    wide = widen_for_image(tiny_transformer())
    torch.nn.init.normal_(wide.patch_embed.proj.weight[:, 4:], std=0.2)
    for name, training in {"one size": TRAINING, "packs": packed}.items():
        with subtests.test(name):
            data, task = steps_of(clips, training), further(training, wide)
            shown = [data[step][0].shows_pictures for step in range(30)]
            assert 14 <= sum(shown) <= 27  # 21 expected
            for step in (shown.index(True), shown.index(False)):
                one, losses = data[step][0], []
                for clip in one.examples:
                    picture = image_channels(vae, clip.picture[None], clip.picture_noise[None], 3)
                    t, x0, noise = torch.tensor([clip.timestep]), clip.latents[None], clip.noise[None]
                    x = torch.cat([schedule.add_noise(x0, noise, t), picture * one.shows_pictures], dim=1)
                    losses.append((wide(x, t, clip.text[None]) - schedule.velocity(x0, noise, t)).square().mean())
                assert torch.allclose(task.losses(one), torch.stack(losses), rtol=1e-3)


def test_it_learns_to_look_at_the_picture(clips):
    task = further(replace(TRAINING, image=ImageCondition(dropout=0.0)))
    take_steps(task, steps_of(clips, task.training), range(4))
    assert task.model.patch_embed.proj.weight[:, 4:].abs().max() > 1e-3
    pipe = Pipeline(tiny_vae(), task.model.eval(), TINY.schedule, tiny_text())
    red, blue = (torch.tensor(colour).expand(32, 32, 3) for colour in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    videos = [pipe(CAPTIONS[0], image=image, num_inference_steps=2, seed=0) for image in (red, blue)]
    assert videos[0].shape == (9, 32, 32, 3) and not torch.equal(*videos)


def test_where_an_image_is_given_pictures_are_left_out_by_name(films, tiny_folder, tmp_path, capsys):
    """A picture would be its own answer."""
    folder = tmp_path / "films"
    shutil.copytree(films, folder)
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    (folder / "a.txt").write_text(CAPTIONS[0])

    def finetune(films, out, *options, status=0):
        assert cli.main(["finetune", str(films), "--model", str(tiny_folder), "--out", str(tmp_path / out), "--steps",
                         "1", "--dtype", "float32", *options]) == status
        return capsys.readouterr()

    assert "left out a.png: a picture" in finetune(folder, "image", "--image-to-video").out
    assert load_pipeline(tmp_path / "image" / "pipeline").image_to_video
    assert not CachedClips(tmp_path / "image" / "cache").pictures.any()
    assert "left out" not in finetune(folder, "text").out and CachedClips(tmp_path / "text" / "cache").pictures.any()
    for video in folder.glob("*.mp4"):
        video.unlink()
    assert "holds only pictures" in finetune(folder, "none", "--image-to-video", status=2).err


@pytest.fixture(scope="module")
def one_size(tmp_path_factory):
    """A model from images whose positions are a table for 9 frames of 32 x 48."""
    pipe = tiny_pipe(vae={"sample_width": 48}, transformer={"in_channels": 8, "position": "rope+learned",
                                                           "sample_width": 12})
    return pipe.save(tmp_path_factory.mktemp("learned") / "model", allow_departures=True)


def test_a_learned_table_of_positions_fits_one_size_to_which_films_are_cropped(films, one_size, tmp_path, capsys,
                                                                              monkeypatch, subtests):
    folder = tmp_path / "films"
    folder.mkdir()
    for name, frames, height, width in (("portrait", 9, 64, 48), ("square", 20, 40, 40), ("short", 8, 32, 48)):
        write_mp4(folder / f"{name}.mp4", torch.rand(frames, height, width, 3), 8)
        (folder / f"{name}.txt").write_text("a red circle")

    def finetune(films, *options):
        return cli.main(["finetune", str(films), "--model", str(one_size), "--out", str(tmp_path / "run"), "--steps",
                         "1", "--dtype", "float32", "--image-to-video", *options])

    with monkeypatch.context() as patch:
        patch.setattr("minicogvx.training.film_data.scan_folder", lambda *_, **__: pytest.fail("films were read"))
        for options in (("--num-frames", "5"), ("--height", "64"), ("--width", "32", "--height", "48")):
            with subtests.test(options=options):
                assert finetune(films, *options) == 2
                assert "fits only 9 frames of 32x48" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert finetune(folder) == 0
    assert "left out short.mp4" in capsys.readouterr().out
    assert CachedClips(tmp_path / "run" / "cache").sizes.tolist() == [[3, 8, 12]] * 2
