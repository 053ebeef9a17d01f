"""Scores of generated and of reconstructed clips, for models whose score is known."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

import minicogvx
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.data.world.styles import STYLES, render_styled
from minicogvx.diffusion.samplers import randn
from minicogvx.evaluation.adherence import clip_seed, generate, judge, measure_adherence
from minicogvx.evaluation.command import main
from minicogvx.evaluation.comparison import write_comparison
from minicogvx.evaluation.finetuning import measure_image_to_video, measure_style
from minicogvx.evaluation.reconstruction import flicker, measure_reconstruction, psnr
from minicogvx.pipeline import Pipeline
from minicogvx.presets import VAEConfig, VideoSize
from minicogvx.training.image_condition import widen_for_image
from minicogvx.training.lora import add_lora, lora_tensors, write_lora
from minicogvx.vae import CausalVAE, DiagonalGaussian
from tests.tiny import tiny_pipe, tiny_transformer

SCENES = sample_scenes(6, 5, "held_out", two_objects=0.0)


class Perfect(Pipeline):
    """A pipeline that shows exactly what is asked, or for the first `wrong` clips the next scene instead.

    From the clip `toned` on it shows them in sepia.
    """

    video_size, image_to_video = VideoSize(17, 64, 64), False

    def __init__(self, wrong: int = 0, toned: int = 99):
        self.wrong, self.toned, self.asked, self.pictures = wrong, toned, 0, []

    def sample(self, captions, image=None, **_):
        start, self.asked = self.asked % len(SCENES), self.asked + len(captions)
        numbers = range(start, start + len(captions))
        self.pictures += [] if image is None else list(image)
        chosen = [SCENES[(i + 1) % len(SCENES)] if i < self.wrong else SCENES[i] for i in numbers]
        plain, sepia = render_batch(chosen, 17, 64, 64), render_styled(chosen, STYLES["sepia"], 17, 64, 64)
        return torch.stack([sepia[k] if i >= self.toned else plain[k] for k, i in enumerate(numbers)])

    def decode(self, latents):
        return latents


class PerfectVAE(CausalVAE):
    """Latents are the pixels themselves; `loss` blacks everything out."""

    def __init__(self, loss: bool = False):
        nn.Module.__init__(self)
        self.config, self.loss = VAEConfig(sample_height=64, sample_width=64), loss
        self.weight = nn.Parameter(torch.zeros(1))

    def encode(self, video):
        return DiagonalGaussian(torch.cat([video, torch.full_like(video, -30.0)], dim=1))

    def decode(self, latents):
        return torch.full_like(latents, -1.0) if self.loss else latents


def test_a_perfect_model_scores_one_and_wrong_clips_are_counted_and_reported():
    result = measure_adherence(Perfect(), SCENES, batch_size=4, progress=False)
    assert result.share["all"] == 1.0 and not result.failures and result.clips == 6
    assert str(result).startswith("100.0 % of 6 clips fully correct")
    result = measure_adherence(Perfect(wrong=2), SCENES, batch_size=4, progress=False)
    assert result.share["all"] == pytest.approx(4 / 6)
    assert len(result.failures) == 2
    assert all(failure["caption"] and failure["wrong"] and failure["read"] for failure in result.failures)


def test_reconstruction_of_a_perfect_and_of_a_useless_vae_on_a_look_too():
    good = measure_reconstruction(PerfectVAE(), SCENES, 17, batch_size=4, progress=False)
    assert good.share["all"] == 1.0 and good.psnr > 60 and good.flicker == pytest.approx(good.flicker_of_true, rel=0.02)
    bad = measure_reconstruction(PerfectVAE(loss=True), SCENES, 17, batch_size=4, progress=False)
    assert bad.share["all"] == 0.0 and bad.psnr < 20 and bad.flicker == 0.0
    good = measure_reconstruction(PerfectVAE(), SCENES, 17, progress=False, style=STYLES["cyanotype"])
    assert good.share["all"] == good.share["style"] == 1.0 and good.psnr > 60
    bad = measure_reconstruction(PerfectVAE(loss=True), SCENES, 17, progress=False, style=STYLES["cyanotype"])
    assert bad.share["style"] == 0.0


def test_the_posterior_is_sampled_with_the_seed_of_each_clip():
    class Noisy(PerfectVAE):
        def encode(self, video):
            return DiagonalGaussian(torch.cat([video, torch.full_like(video, -4.0)], dim=1))

    found = measure_reconstruction(Noisy(), SCENES[:2], 17, seed=3, progress=False)
    true = render_batch(SCENES[:2], 17, 64, 64)
    posterior = Noisy().encode(true.permute(0, 4, 1, 2, 3) * 2 - 1)
    noise = randn(posterior.mean.shape, [torch.Generator().manual_seed(clip_seed(3, clip)) for clip in (0, 1)])
    sampled = posterior.mean + posterior.std * noise
    back = (sampled.permute(0, 2, 3, 4, 1) / 2 + 0.5).clamp(0, 1)
    assert found.psnr == pytest.approx(sum(map(psnr, true, back)) / 2) and 15 < found.psnr < 40
    each = [measure_reconstruction(Noisy(), SCENES, 17, seed=3, batch_size=size, progress=False) for size in (1, 4, 6)]
    assert each[0].psnr == pytest.approx(each[1].psnr) == pytest.approx(each[2].psnr)
    assert each[0].psnr != measure_reconstruction(Noisy(), SCENES, 17, seed=4, progress=False).psnr


class Seeds(Perfect):
    """Keeps the seeds that it is asked for."""

    def __init__(self):
        super().__init__()
        self.seeds = []

    def sample(self, captions, seed=0, **options):
        self.seeds += seed
        return super().sample(captions, **options)


def test_the_seed_of_a_clip_depends_on_its_place_and_not_on_the_batch():
    def asked(seed, batch):
        pipe = Seeds()
        captions = [caption for _, caption, _ in generate(pipe, SCENES, seed, batch_size=batch, progress=False)]
        return pipe.seeds, captions

    first = asked(0, 16)
    assert asked(0, 4) == asked(0, 1) == asked(0, 5) == first and len(set(first[0])) == len(SCENES)
    others = [asked(seed, 4)[0] for seed in (1, 2, 6, 16, 10**6, 2**63 - 1)]
    assert len({seed for seeds in (first[0], *others) for seed in seeds}) == 7 * len(SCENES)
    assert all(0 <= seed < 2**63 for seeds in others for seed in seeds)


def test_a_vae_of_the_published_rule_is_measured_on_clips_that_keep_their_length(subtests):
    fits = {4: (1, 8, 17), 2: (13,), 8: (33,), 1: (2,)}  # numbers of frames by the VAE's ratio
    others = {4: (5, 13, 11), 2: (3,), 8: (9,), 1: ()}
    for ratio in fits:
        vae = CausalVAE(VAEConfig(block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2,
                                  sample_height=64, sample_width=64, temporal_compression_ratio=ratio))
        vae.requires_grad_(False)
        for frames in fits[ratio]:
            with subtests.test(frames=frames, ratio=ratio):
                assert measure_reconstruction(vae, SCENES[:1], frames, progress=False).clips == 1
        for frames in others[ratio]:
            told = f"^num_frames is {frames}, .*; it must be {2 * ratio}k . 1, such as "
            with subtests.test(frames=frames, ratio=ratio), pytest.raises(ValueError, match=told):
                measure_reconstruction(vae, SCENES[:1], frames, progress=False)


def test_what_has_no_score(subtests):
    class Broken(PerfectVAE):
        def decode(self, latents):
            return latents / 0 * 0

    empty = "^scenes is empty; it must have one scene at least$"
    two = sample_scenes(3, 0, "train", 1.0)
    calls = [
        (lambda: measure_adherence(Perfect(), []), empty), (lambda: measure_image_to_video(Perfect(), []), empty),
        (lambda: measure_style(Perfect(), [], STYLES["sepia"]), empty),
        (lambda: measure_reconstruction(PerfectVAE(), [], 17), empty),
        (lambda: measure_reconstruction(Broken(), SCENES, 17, progress=False), "holds NaN or infinity"),
        (lambda: measure_style(Perfect(), two, STYLES["sepia"], progress=False), "some scenes have two objects"),
    ]
    for number, (call, told) in enumerate(calls):
        with subtests.test(told, call=number), pytest.raises(ValueError, match=told):
            call()


class Still(Perfect):
    """Makes single frames."""

    video_size = VideoSize(1, 64, 64)

    def sample(self, captions, **options):
        return super().sample(captions, **options)[:, :1]


@pytest.fixture
def load(monkeypatch):
    """Sets the pipeline that the command loads; it is measured on SCENES."""
    monkeypatch.setattr("minicogvx.data.world.scenes.sample_scenes", lambda *_: SCENES)
    return lambda pipe: monkeypatch.setitem(vars(minicogvx), "load", lambda *_, **__: pipe)


def test_a_model_of_single_frames_has_no_step_and_no_flicker(load, tmp_path):
    result = measure_image_to_video(Still(), SCENES, progress=False)
    assert result.step == result.step_of_true == 0.0 and result.psnr == pytest.approx(100)
    result = measure_reconstruction(PerfectVAE(), SCENES, 1, progress=False)
    assert result.flicker == result.flicker_of_true == 0.0
    load(Still())
    out = tmp_path / "a.json"
    assert main(["--image-to-video", "--clips", "6", "--out", str(out)]) == 0
    assert json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(name))["step"] == 0.0


def test_the_command_prints_figures_and_writes_them_before_the_strip_is_made(load, monkeypatch, tmp_path, capsys):
    load(Perfect())
    out = tmp_path / "new" / "figures.json"
    assert main(["--clips", "6", "--out", str(out)]) == 0
    assert "toy, held_out: 100.0 % of 6 clips fully correct, 95 % interval 61.0 to 100.0 % (" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["share"]["all"] == 1.0 and written["intervals"]["all"] == pytest.approx([0.6097, 1.0], abs=1e-4)
    assert written["intervals"].keys() == written["share"].keys()
    assert [path.name for path in out.parent.iterdir()] == ["figures.json"]

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("minicogvx.evaluation.command._write_strip", fail)
    out.unlink()
    with pytest.raises(MemoryError):
        main(["--clips", "6", "--out", str(out), "--strip", str(tmp_path / "a.png")])
    assert json.loads(out.read_text())["clips"] == 6


def test_flicker_is_in_grey_levels_and_psnr_in_decibels():
    video, zeros = torch.zeros(3, 2, 2, 3), torch.zeros(4, 4, 3)
    video[1] = 10 / 255
    assert flicker(video) == pytest.approx(10.0)
    assert psnr(zeros, zeros + 0.1) == pytest.approx(20.0, abs=1e-3) and psnr(zeros, zeros) == pytest.approx(100.0)


def test_mistakes_are_one_sentence_before_the_model_is_loaded(monkeypatch, tmp_path, subtests):
    monkeypatch.setitem(vars(minicogvx), "load", lambda *_, **__: pytest.fail("the model was loaded"))
    cases = [
        (["--clips", "0"], "clips is 0"), (["--two-objects", "2"], "two-objects is 2;"),
        (["--steps", "0"], "steps is 0"),
        (["--style", "noir"], "style is 'noir'; it must be one of plain, sepia, cyanotype"),
        (["--style", "sepia", "--two-objects", "0.5"], "two-objects is 0.5; with --style sepia it must be 0"),
        (["--style", "sepia", "--image-to-video"], "style is 'sepia'; with --image-to-video it must be 'plain'"),
        (["vae", "--image-to-video"], "vae goes with none of --lora, --image-to-video and --strip"),
        (["vae", "--offload"], "vae measures the VAE alone and whole; leave out --tile and --offload"),
        (["vae", "--steps", "25"], "vae measures the VAE alone, without a sampler; leave out --steps"),
        (["vae", "--cache", "0.1"], "vae measures the VAE alone, without a sampler; leave out --cache"),
        (["vae", "--guidance-scale", "0"], "leave out --guidance-scale"),
        (["--sampler", "dpm", "vae"], "leave out --sampler"),
        (["--batch-size", "0"], "batch-size is 0; it must be 1 or more"), (["--device", "tpu"], "device is 'tpu'"),
        (["--strip", "a.gif"], "must end in .png"), (["--out", "a.txt"], "must end in .json"),
        (["--clips", "1" + 23 * "0"], "clips is 1000"), (["--batch-size", "1" + 23 * "0"], "batch-size is 1000"),
        (["--guidance-scale", "-1"], "guidance-scale is -1; it must be from 0 to 1000"),
        (["--guidance-scale", "nan"], "guidance-scale is nan"), (["--seed", "-1"], "seed is -1"),
        (["--sampler", "euler"], "sampler is 'euler'"), (["--out", "/dev/null/figures.json"], "cannot be written"),
        (["--strip", "/dev/null/strip.png"], "cannot be written"), (["--lora", ""], "lora is empty"),
        (["--before", "toy"], "before is 'toy', and so is model; it must be another one, or give --lora"),
        (["--lora", str(tmp_path)], "there is no file"),
        (["--lora", str(tmp_path / "none.safetensors")], "there is no file"),
    ]
    for arguments, sentence in cases:
        with subtests.test(arguments=arguments), pytest.raises((ValueError, OSError), match=sentence):
            main(arguments)


# ---- fine-tuned models


def test_the_look_and_what_it_leaves_are_counted_apart():
    """Six clips: two of the wrong scene; the last three in sepia."""
    result = measure_style(Perfect(wrong=2, toned=3), SCENES, STYLES["sepia"], batch_size=4, progress=False)
    assert result.share["style"] == 0.5 and result.share["kept"] == pytest.approx(4 / 6) and result.share["all"] == 0.5
    assert set(result.share) == {"style", "shape", "motion", "count", "kept", "all"} and result.share["count"] == 1.0
    assert [failure["wrong"][0] for failure in result.failures] == ["style"] * 3
    assert str(result).startswith("50.0 % of 6 clips show sepia, 66.7 % are right in what it leaves (shape ")
    plain = measure_style(Perfect(), SCENES, STYLES["sepia"], progress=False)
    assert plain.share["style"] == plain.share["all"] == 0.0 and plain.share["kept"] == 1.0
    clip = render_styled(SCENES[:1], STYLES["sepia"], 17, 64, 64)[0]  # a plain judgement knows nothing of looks
    assert not judge(clip, SCENES[0])[0]["all"] and judge(clip, SCENES[0], STYLES["sepia"])[0]["all"]


def test_a_given_picture_is_compared_with_the_first_frame():
    pipe = Perfect(wrong=3)
    result = measure_image_to_video(pipe, SCENES, batch_size=4, progress=False)
    true = render_batch(SCENES, 17, 64, 64)
    assert torch.equal(torch.stack(pipe.pictures), true[:, 0])
    wrong = [psnr(true[i, 0], true[i + 1, 0]) for i in range(3)]
    assert result.psnr == pytest.approx((300 + sum(wrong)) / 6, rel=1e-4) and max(wrong) < 30
    assert result.share["all"] == 0.5 and len(result.failures) == 3
    clips = [psnr(true[i], true[i + 1]) for i in range(3)]
    assert result.psnr_of_clip == pytest.approx((300 + sum(clips)) / 6, rel=1e-4)
    perfect = measure_image_to_video(Perfect(), SCENES, progress=False)
    assert perfect.step == pytest.approx(perfect.step_of_true) and perfect.step > 0 and perfect.share["all"] == 1.0


def test_a_comparison_has_a_column_for_each_label_and_a_row_for_each_caption(tmp_path):
    red, blue = torch.tensor([1.0, 0, 0]).expand(9, 16, 16, 3), torch.tensor([0, 0, 1.0]).expand(9, 16, 16, 3)
    path = write_comparison(tmp_path / "new" / "a.png", {"before": [red, blue], "a label " * 60: [blue, red]},
                            ["one", "two"], num_frames=2, side=32)
    with Image.open(path) as picture:
        pixels, size = picture.convert("RGB"), picture.size
        found = [[pixels.getpixel((x, y)) for x in (12 + 16, 12 + 67 + 18 + 16)] for y in (79, 152)]
    assert size == (2 * 67 + 18 + 24, 2 * 12 + 28 + 2 * 73 - 18)
    assert found == [[(255, 0, 0), (0, 0, 255)], [(0, 0, 255), (255, 0, 0)]]
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match="the column 'x' has 1 clips; it must have 2, one for each caption"):
        write_comparison(path, {"x": [red]}, ["one", "two"])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with two pipelines of random weights, `plain` and `image`, and LoRA files, `lora` and `bad`."""
    folder, pipe = tmp_path_factory.mktemp("models"), tiny_pipe()
    pipe.save(folder / "plain")
    wide = Pipeline(pipe.vae, widen_for_image(pipe.transformer), pipe.schedule_config, pipe.text)
    wide.save(folder / "image")
    for name, model in (("lora", pipe.transformer), ("bad", tiny_transformer(num_attention_heads=1))):
        add_lora(model, 2, 2.0)
        torch.nn.init.ones_(dict(model.named_parameters())[
            "transformer_blocks.0.attn1.to_out.0.lora_B.default.weight"])
        write_lora(folder / name, lora_tensors(model), 2, 2.0)
    return folder


def test_commands_measure_real_models_before_and_after(models, tmp_path, capsys):
    plain, out, strip = str(models / "plain"), tmp_path / "figures.json", tmp_path / "strip.png"
    short = ["--clips", "2", "--steps", "1", "--out", str(out), "--strip", str(strip)]
    assert main(["--model", plain, "--lora", str(models / "lora"), "--style", "sepia", *short]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", held_out: ")[0] for line in lines] == [plain, f"{plain} with {models / 'lora'}", str(strip)]
    assert list(json.loads(out.read_text())) == [plain, f"{plain} with {models / 'lora'}"]
    with Image.open(strip) as picture:  # before, after, true; two captions
        assert picture.width == 3 * (4 * 99 - 3 + 18) - 18 + 24
    assert main(["--model", str(models / "image"), "--before", plain, "--image-to-video", *short]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", train: ")[0] for line in lines] == [plain, str(models / "image"), str(strip)]
    assert all("the first frame is the picture to " in line for line in lines[:2])
    with pytest.raises(ValueError, match="makes videos from a picture; measure it with --image-to-video"):
        main(["--model", str(models / "image"), *short])
    with pytest.raises(ValueError, match="does not fit|does not have"):
        main(["--model", str(models / "image"), "--image-to-video", *short, "--lora", str(models / "bad")])


def test_a_model_that_takes_turns_scores_the_same(models, tmp_path, monkeypatch):
    seen, real = [], Pipeline.decode

    def decode(self, latents, tile=None):
        seen.append((self.tile, self._turns_on, len(latents)))
        return real(self, latents, tile)

    monkeypatch.setattr(Pipeline, "decode", decode)
    base = ["--model", str(models / "plain"), "--clips", "3", "--steps", "1", "--batch-size", "2", "--device", "cpu"]
    told = []
    for options in ([], ["--offload"], ["--tile"]):
        assert main([*base, *options, "--out", str(tmp_path / "a.json")]) == 0
        told.append(json.loads((tmp_path / "a.json").read_text()) | {"seconds_per_clip": 0})
    assert told[0] == told[1]
    cpu = torch.device("cpu")
    ways = ((False, None), (False, cpu), (True, None))
    assert seen == [(*way, clips) for way in ways for clips in (2, 1)]


def test_the_strip_shows_the_clips_that_were_measured_whatever_the_batch(models, tmp_path, monkeypatch):
    made, real = [], Pipeline.decode

    def decode(self, latents, tile=None):
        made.append(real(self, latents, tile))
        return made[-1]

    monkeypatch.setattr(Pipeline, "decode", decode)
    clips = []
    for batch in ("1", "2", "4"):
        made.clear()
        assert main(["--model", str(models / "plain"), "--clips", "4", "--steps", "2", "--batch-size", batch,
                     "--device", "cpu", "--sampler", "dpm", "--strip", str(tmp_path / "strip.png")]) == 0
        clips.append(torch.cat(made))
    for found in clips:  # four that are measured, and the first three again
        assert len(found) == 7 and torch.allclose(found[:3], found[4:], atol=1e-4)
        assert torch.allclose(found, clips[0], atol=1e-4)
    assert not torch.allclose(clips[0][0], clips[0][1], atol=1e-2)
