import sys
import types
import warnings
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image

import minicogvx
from minicogvx import cli, pipeline
from minicogvx.data.films.decode import read_video
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import SHAPES, sample_scenes
from minicogvx.media import write_mp4
from minicogvx.presets import preset


class FakePipeline:
    """Answers every prompt with one true clip, and remembers how it was called."""

    fps = 8
    text = types.SimpleNamespace(whole_words=True, vocabulary={"a", *SHAPES})

    def __init__(self, video: torch.Tensor):
        self.video = video
        self.calls = []

    def __call__(self, prompt, *, on_step, **options):
        self.calls.append({"prompt": prompt} | options)
        for done in range(options["num_inference_steps"]):
            on_step(done + 1, options["num_inference_steps"])
        return self.video


@pytest.fixture
def pipe(monkeypatch, tmp_path) -> FakePipeline:
    monkeypatch.chdir(tmp_path)
    scene = next(scene for scene in sample_scenes(200, seed=1) if _is_plain(scene))
    fake = FakePipeline(render(scene, 9, 32, 32))
    fake.prompt = f"a {scene.objects[0].colour} {scene.objects[0].shape} {scene.objects[0].motion}"
    monkeypatch.setitem(vars(minicogvx), "load", lambda name, *_, **__: fake if name == "toy" else pytest.fail(name))
    return fake


def _is_plain(scene) -> bool:
    return len(scene.objects) == 1 and scene.objects[0].motion in ("moves left", "moves right")


@pytest.fixture
def no_load(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(vars(minicogvx), "load", lambda *_, **__: pytest.fail("the model was loaded"))


def test_generate_writes_three_files_and_tells_what_the_oracle_sees(pipe, capsys):
    assert cli.main(["generate", pipe.prompt, "--out", "new/clip.mp4", "--steps", "3"]) == 0
    printed = capsys.readouterr()
    assert sorted(path.name for path in Path("new").iterdir()) == ["clip.gif", "clip.mp4", "clip.png"]
    assert "new/clip.mp4\nnew/clip.gif\nnew/clip.png\n" in printed.out
    words = pipe.prompt.split()
    assert f"the oracle sees a {words[1]} {words[2]} that {' '.join(words[3:])} on " in printed.out
    assert printed.out.endswith(": as asked\n")
    assert "denoising: 100%" in printed.err and "3/3" in printed.err
    seen = read_video("new/clip.mp4", 9, 32, 32, fps=8)
    assert (seen - pipe.video).abs().mean() < 0.04


def test_generate_says_what_is_not_as_asked_and_what_cannot_be_judged(pipe, capsys):
    assert cli.main(["generate", " ".join([*pipe.prompt.split()[:3], "moves up"])]) == 0
    assert "not as asked (motion)" in capsys.readouterr().out
    assert cli.main(["generate", "a cat reads the newspaper"]) == 0
    assert "the oracle has nothing to judge: the caption names no shape" in capsys.readouterr().out
    assert cli.main(["generate", f"{pipe.prompt} and a cat sleeps on a pink wall"]) == 0
    assert "as asked, as far as it can judge; it cannot judge 'cat sleeps on a pink wall'" in capsys.readouterr().out
    pipe.video = pipe.video.repeat_interleave(9, dim=1).repeat_interleave(9, dim=2)  # larger than the oracle reads
    assert cli.main(["generate", pipe.prompt]) == 0
    assert "oracle" not in capsys.readouterr().out


def test_generate_passes_every_option_on(pipe):
    assert cli.main(["generate", "Two cats!", "--seed", "7", "--steps", "4", "--guidance-scale", "2.5",
                     "--negative-prompt", "dogs", "--num-frames", "5", "--height", "16", "--width", "32"]) == 0
    assert pipe.calls == [{
        "prompt": "Two cats!", "image": None, "video": None, "prefix": None, "strength": 0.8, "negative_prompt": "dogs",
        "num_frames": 5, "height": 16, "width": 32, "num_inference_steps": 4, "guidance_scale": 2.5, "seed": 7}]
    assert Path("outputs/two-cats-7.mp4").is_file() and (pipe.tile, pipe.cache) == (False, 0)
    assert cli.main(["generate", "x", "--cache", "0.2", "--tile"]) == 0 and (pipe.tile, pipe.cache) == (True, 0.2)


def test_generate_reads_image_and_video_at_the_models_size(pipe):
    Image.new("RGB", (50, 40), (255, 0, 0)).save("red.png")
    write_mp4("film.mp4", pipe.video.repeat(2, 1, 2, 1), fps=8)
    assert cli.main(["generate", "x", "--image", "red.png"]) == 0
    assert cli.main(["generate", "x", "--video", "film.mp4", "--strength", "0.5"]) == 0
    first, second = pipe.calls
    assert first["image"].shape == (64, 64, 3) and first["image"][..., 0].min() > 0.99
    assert second["video"].shape == (17, 64, 64, 3) and second["strength"] == 0.5 and second["image"] is None
    assert cli.main(["generate", "x", "--prefix", "film.mp4"]) == 0
    assert cli.main(["generate", "x", "--prefix", "film.mp4", "--prefix-frames", "5", "--num-frames", "9"]) == 0
    assert [call["prefix"].shape for call in pipe.calls[2:]] == [(9, 64, 64, 3), (5, 64, 64, 3)]
    assert pipe.calls[3]["num_frames"] == 9 and pipe.calls[3]["video"] is None


def mistake(capsys, *arguments: str) -> str:
    """What is told about them: one line."""
    assert cli.main([*arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("minicogvx: ") and told.count("\n") == 1
    return told


def test_mistakes_are_reported_in_one_line_before_the_model_is_loaded(no_load, capsys, subtests):
    giant = " frames of 64x64 take more than "
    cases = [
        (["generate", "  "], "the prompt is empty"),
        (["generate", "x", "--image", "none.png"], "there is no file none.png"),
        (["generate", "x", "--video", "none.mp4"], "there is no file none.mp4"),
        (["generate", "x", "--image", "words.png"], "words.png is not a picture"),
        (["generate", "x", "--video", "words.png"], "words.png is not a "),
        (["generate", "x", "--out", "clip.avi"], "must end in .mp4"),
        (["generate", "x", "--strength", "0.5"], "--strength belongs to --video"),
        (["generate", "x", "--prefix", "none.mp4"], "there is no file none.mp4"),
        (["generate", "x", "--prefix-frames", "5"], "--prefix-frames belongs to --prefix"),
        (["generate", "x", "--model", "toy-prefix"], "toy-prefix makes videos from a picture"),
        (["export", "."], ". already exists"), (["export", ""], "FOLDER is empty; it must name a file or a folder"),
        (["generate", "x", "--out", "words.png/new/a.mp4"], "words.png/new/a.mp4 cannot be written"),
        (["export", "words.png/new"], "words.png/new cannot be written"),
        (["evaluate", "--clips", "1", "--out", "words.png/a.json"], "words.png/a.json cannot be written"),
        (["ablate", "position", "--out", "words.png/a.json"], "words.png/a.json cannot be written"),
        (["generate", "x", "--num-frames", "10"], "num_frames is 10; it must be 4k + 1, such as 9 or 13"),
        (["generate", "x", "--height", "72"], "height is 72; it must be a multiple of 16"),
        (["generate", "x", "--lora", "none"], "none"),
        (["generate", "x", "--device", "cpu", "--height", "100000", "--width", "100000"],
         "17 frames of 100000x100000 take more than "),
        (["generate", "x", "--device", "cpu", "--num-frames", "9999999997"], f"9999999997{giant}"),
        (["generate", "x", "--device", "cpu", "--num-frames", "4000000000000000001", "--tile"],
         f"4000000000000000001{giant}"),
    ]
    Path("words.png").write_text("only words")
    for arguments, message in cases:
        with subtests.test(arguments=arguments):
            told = mistake(capsys, *arguments)
            assert message in told and [path.name for path in Path().iterdir()] == ["words.png"]
            assert "take more" not in told or "ask for fewer frames or a smaller height and width" in told


def test_bad_options_are_reported_in_one_line(no_load, capsys, subtests):
    cases = [
        (["--steps", "0"], "--steps is 0; it must be 1 or more"), (["--steps", "2.5"], "--steps is '2.5'"),
        (["--seed", "-1"], "--seed is -1"), (["--seed", "9" * 30], f"from 0 to {2**63 - 1}"),
        (["--num-frames", "x"], "--num-frames is 'x'"), (["--width", "0"], "--width is 0; it must be 1 or more"),
        (["--strength", "0"], "--strength is 0"), (["--strength", "1.1"], "above 0, at most 1"),
        (["--guidance-scale", "nan"], "--guidance-scale is nan"), (["--out", "clip.avi"], "must end in .mp4"),
        (["--image", "a", "--video", "b"], "not allowed with"), (["--image", "a", "--prefix", "b"], "not allowed with"),
        (["--prefix", "a", "--prefix-frames", "0"], "--prefix-frames is 0; it must be 1 or more"),
        (["--cache", "2"], "--cache is 2; it must be from 0"),
        (["--stepz", "3"], "there is no option --stepz; did you mean --steps?"),
        (["--negative", "x"], "did you mean --negative-prompt?"), (["--lora", ""], "--lora is empty"),
    ]
    for options, message in cases:
        with subtests.test(options=options):
            told = mistake(capsys, "generate", "x", *options)
            assert message in told and told.endswith("(see minicogvx generate --help)\n")


def test_a_prefix_that_the_model_cannot_take_is_refused_before_it_is_loaded(no_load, capsys, subtests):
    write_mp4("film.mp4", render(sample_scenes(1, seed=1)[0], 17, 32, 32), fps=8)
    for options, message in ((("--prefix-frames", "4"), "the prefix has 4 frames, and the video is to have 17; it"),
                             (("--prefix-frames", "17"), "fewer than the video's"),
                             (("--num-frames", "9"), "the prefix has 9 frames, and the video is to have 9"),
                             (("--out", "film.mp4"), "it is what --prefix names")):
        with subtests.test(options=options):
            assert message in mistake(capsys, "generate", "x", "--prefix", "film.mp4", *options)


def test_a_caption_needs_no_quotation_marks(pipe, capsys):
    words = pipe.prompt.split()
    assert cli.main(["generate", *words]) == 0 and cli.main(["generate", *words[:2], "--seed", "3", *words[2:]]) == 0
    assert [call["prompt"] for call in pipe.calls] == [pipe.prompt] * 2 and pipe.calls[1]["seed"] == 3
    assert cli.main(["generate", "a red circle", "a blue star", "--seed", "3"]) == 2
    assert "2 captions are given" in capsys.readouterr().err and len(pipe.calls) == 2


def test_two_objects_are_named_as_unreliable(pipe, capsys):
    for prompt, noted in (("a red circle moves right and a blue star moves left", True),
                          ("a red circle and a star", True), ("a ring moves up and to the left on black", False),
                          ("two dogs and a cat", False)):
        assert cli.main(["generate", prompt]) == 0
        assert ("note: the caption names more than one object" in capsys.readouterr().err) == noted, prompt
    for text in (types.SimpleNamespace(whole_words=False),  # as that of the published models
                 types.SimpleNamespace(whole_words=True, vocabulary={"a", "cat"})):  # of somebody's films
        pipe.text = text
        assert cli.main(["generate", "a red circle and a blue star"]) == 0
        assert "more than one object" not in capsys.readouterr().err


def test_a_model_that_needs_a_picture_says_so_in_the_commands_words(no_load, capsys, monkeypatch):
    with_picture = preset("5b-i2v")
    monkeypatch.setattr("minicogvx.interop.folder_configs.read_configs", lambda folder: with_picture)
    assert cli.main(["generate", "x", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "minicogvx: toy makes videos from a picture; name one with --image\n"


def test_a_home_folder_in_an_option_is_the_users(pipe, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "me"))
    assert cli.main(["generate", "x", "--out", "~/new/x.mp4"]) == 0
    assert (tmp_path / "me" / "new" / "x.mp4").is_file() and not Path("~").exists()


def test_errors_of_the_model_are_one_line_warnings_become_notes_and_a_stop_is_quiet(pipe, capsys, monkeypatch):
    def refuse(name, *_, **__):
        raise ValueError(f"a weight of {name} is missing;\n copy the folder again")

    monkeypatch.setitem(vars(minicogvx), "load", refuse)
    assert cli.main(["generate", "x"]) == 2
    assert capsys.readouterr().err == "minicogvx: a weight of toy is missing; copy the folder again\n"
    assert list(Path().iterdir()) == []
    with pytest.raises(ValueError, match="a weight of toy"):
        cli.main(["--traceback", "generate", "x"])

    def warn(*_, **__):
        warnings.warn("the toy has never seen the word 'cat'")
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(minicogvx), "load", warn)
    assert cli.main(["generate", "x"]) == 130
    assert capsys.readouterr().err == "minicogvx: note: the toy has never seen the word 'cat'\nminicogvx: stopped\n"


def test_export_loads_and_writes(monkeypatch, tmp_path, capsys):
    seen = []
    module = types.SimpleNamespace(write_folder=lambda *given: seen.append(given), is_free=lambda folder: True,
                                   read_folder=lambda folder: f"parts of {folder}")
    package = types.SimpleNamespace(find_folder=lambda name: name)
    monkeypatch.setitem(sys.modules, "minicogvx.interop", package)
    monkeypatch.setitem(sys.modules, "minicogvx.interop.diffusers_folder", module)
    assert cli.main(["export", str(tmp_path / "new"), "--model", "mine"]) == 0
    assert cli.main(["export", str(tmp_path / "short"), "--model", "mine", "--dtype", "float16"]) == 0
    assert seen == [("parts of mine", tmp_path / "new", None), ("parts of mine", tmp_path / "short", torch.float16)]
    assert capsys.readouterr().out == f"{tmp_path / 'new'}\n{tmp_path / 'short'}\n"


# ---- where it computes, and too little memory


def test_generate_loads_the_model_as_it_is_asked_to(pipe, monkeypatch):
    seen = []
    monkeypatch.setitem(vars(minicogvx), "load", lambda *given, **how: seen.append((given, how)) or pipe)
    monkeypatch.delenv("MINICOGVX_DEVICE", raising=False)
    monkeypatch.delenv("MINICOGVX_DTYPE", raising=False)
    assert cli.main(["generate", "x", "--device", "cpu", "--dtype", "bfloat16", "--tile", "--offload"]) == 0
    assert seen == [(("toy", "cpu", torch.bfloat16), {"offload": True, "lora": None})] and pipe.tile is True
    monkeypatch.setenv("MINICOGVX_DTYPE", "float32")
    assert cli.main(["generate", "x", "--device", "cpu"]) == 0
    assert seen[1] == (("toy", "cpu", torch.float32), {"offload": False, "lora": None}) and pipe.tile is False


def test_adapters_that_do_not_fit_are_refused_before_weights_are_read(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "read_folder", lambda *_: pytest.fail("weights were read"))
    Path("words.png").write_text("only words")
    assert "words.png" in mistake(capsys, "generate", "x", "--lora", "words.png")
    assert [path.name for path in Path().iterdir()] == ["words.png"]


def test_every_command_that_computes_checks_device_and_format_first(no_load, capsys, subtests):
    options = {
        "--device tpu": "device is 'tpu', which is not a device that PyTorch knows; it must be 'cpu'",
        "--device xpu:7": "device is 'xpu:7', and PyTorch finds no such device here",
        "--device cpu --dtype float16": "it must be float32 or bfloat16",
        "--device cpu --dtype int8": "dtype is 'int8', which is unknown; it must be float32 or bfloat16",
    }
    commands = ("generate x", "evaluate --clips 1", "ablate position", "train micro", "finetune .",
                "data encode . --out cache", "data caption . --captioner shapes",
                "data curate . --out kept")
    for command, (words, message) in product(commands, options.items()):
        with subtests.test(f"{command} {words}"):
            assert message in mistake(capsys, *command.split(), *words.split())
            assert list(Path().iterdir()) == []


def test_training_in_float16_is_refused_where_the_device_could_compute_in_it(no_load, capsys, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for command in (["train", "micro"], ["finetune", "."], ["ablate", "position"]):
        assert cli.main([*command, "--device", "mps", "--dtype", "float16"]) == 2
        assert "dtype is 'float16', which is too narrow for gradients" in capsys.readouterr().err


def test_too_little_memory_is_one_sentence_with_what_helps(pipe, capsys, monkeypatch):
    def fail(error):
        def load(*_, **__):
            raise error

        monkeypatch.setitem(vars(minicogvx), "load", load)

    on_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 23")
    fail(on_gpu)
    assert cli.main(["generate", "x", "--tile"]) == 2
    assert capsys.readouterr().err == (
        "minicogvx: there is not enough memory on the GPU (20.50 GiB more were needed); what helps: fewer frames "
        "(--num-frames), a smaller --height and --width, --offload or --device cpu\n")
    assert cli.main(["evaluate", "--clips", "1", "--offload"]) == 2
    assert capsys.readouterr().err.endswith("what helps: a smaller --batch-size, --tile or --device cpu\n")
    for words in ("MPS backend out of memory (MPS allocated: 5 GB)", "Invalid buffer size: 9 GB"):
        fail(RuntimeError(words))
        assert cli.main(["generate", "x"]) == 2 and "there is not enough memory" in capsys.readouterr().err
    with pytest.raises(torch.OutOfMemoryError):
        fail(on_gpu)
        cli.main(["--traceback", "generate", "x"])


def test_a_processor_without_memory_says_so_in_its_own_ways(pipe, capsys, monkeypatch, subtests):
    ways = {"too much": lambda: torch.empty(10**15), "overflow": lambda: torch.empty(2**62, 8),
            "Python": lambda: bytearray(2**60)}
    for name, allocate in ways.items():
        with subtests.test(name):
            monkeypatch.setitem(vars(minicogvx), "load", lambda *_, **__: allocate())
            told = mistake(capsys, "generate", "x")
            assert told.startswith("minicogvx: there is not enough memory on this machine")
            assert "--tile or closing other programs" in told and "--offload" not in told
    monkeypatch.setitem(vars(minicogvx), "load", lambda *_, **__: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):  # another error of PyTorch is not taken for it
        cli.main(["generate", "x"])
