"""The command as a whole: its subcommands, their help, and the messages for mistakes."""

import os
import re
import subprocess
import sys
import types
import warnings
from itertools import product
from pathlib import Path

import av
import torch
from PIL import Image
from tqdm import tqdm

import minicogvx
from minicogvx import cli, room, words_command
from minicogvx.ablation.questions import QUESTIONS
from minicogvx.ablation.studies import STUDIES
from minicogvx.data.command import COMMANDS as DATA_COMMANDS
from minicogvx.data.world import captions
from minicogvx.media import write_mp4

EVERY = [[], *([name] for name in cli.COMMANDS), *(["data", name] for name in DATA_COMMANDS)]
HEAVY = ("torch", "numpy", "av", "PIL", "transformers", "diffusers", "tokenizers", "scipy", "matplotlib", "tqdm")


def run(*argv: str, **how) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=60, **how)


def test_help_and_mistakes_of_every_command_import_nothing_heavy():
    # One process for all: what one of them imports, the others would show, too.
    code = ("import sys\nfrom minicogvx.cli import main\n"
            f"for command in {EVERY!r}:\n"
            "    for more in (['--help'], ['--no-such-option']):\n"
            "        try:\n            main([*command, *more])\n        except SystemExit:\n            pass\n"
            f"    print('IMPORTED', command, [name for name in {HEAVY!r} if name in sys.modules])")
    done = run("-c", code)
    told = re.findall(r"^IMPORTED \[.*?\] (.*)$", done.stdout, re.MULTILINE)
    assert told == ["[]"] * len(EVERY), done.stdout[-2000:]
    assert done.stderr.count("\n") == done.stderr.count("minicogvx: ") == len(EVERY)
    assert "--guidance-scale W" in done.stdout and "--min-sharpness X" in done.stdout


def test_words_and_a_misspelt_name_do_not_wait_for_pytorch():
    misspelt = (["generate", "x", "--model", "toi"], ["evaluate", "--lora", "nosuch"],
                ["finetune", ".", "--model", "toi"], ["data", "encode", ".", "--out", "x", "--model", "toi"],
                ["finetune", "nowhere"], ["finetune", ".", "--list", "no.jsonl"], ["train", "toy", "--data", "nowhere"],
                ["data", "scan", "nowhere"], ["data", "encode", "nowhere", "--out", "x"],
                ["data", "curate", ".", "--list", "no.jsonl", "--out", "x"])
    code = ("import sys\nfrom minicogvx.cli import main\nassert main(['words']) == 0\n"
            f"for command in {misspelt!r}:\n    assert main(command) == 2, command\n"
            "print('torch' in sys.modules)")
    done = run("-c", code)
    assert done.stdout.endswith("False\n"), done.stderr


def test_every_command_gets_its_own_words(monkeypatch, subtests):
    for command in cli.COMMANDS:
        with subtests.test(command):
            seen = []
            module = types.SimpleNamespace(main=lambda arguments: seen.append(arguments))
            monkeypatch.setitem(sys.modules, cli.COMMANDS[command][0], module)
            assert cli.main([command, "micro", "--out", "runs/a", "--help"]) == 0
            assert cli.main(["help", command]) == 0
            assert seen == [["micro", "--out", "runs/a", "--help"], ["--help"]]


def test_the_version_is_a_command_too_and_python_dash_m_the_command(capsys):
    version = f"minicogvx {minicogvx.__version__}\n"
    assert [cli.main([word]) for word in ("version", "--version", "-v", "-V")] == [0] * 4
    assert capsys.readouterr().out == version * 4
    assert [run("-m", module, "--version").stdout for module in ("minicogvx", "minicogvx.cli")] == [version] * 2


def test_the_command_alone_shows_every_command(capsys, subtests):
    for argv in [[], ["help"], ["--help"], ["-h"], ["--traceback"]]:
        with subtests.test(argv=argv):
            assert cli.main(argv) == 0
            printed = capsys.readouterr()
            assert all(f"  {name} " in printed.out for name in cli.COMMANDS) and printed.err == ""


def test_a_mistake_is_one_line_that_says_what_was_meant(monkeypatch, tmp_path, capsys, subtests):
    cases = [
        (["generat", "x"], "there is no command 'generat'; did you mean generate? (see minicogvx --help)"),
        (["a", "red", "circle"], "write: minicogvx generate 'a red circle'"),
        (["a red circle moves right"], "write: minicogvx generate 'a red circle moves right'"),
        (["the", "blue", "star", "--out", "my star.mp4", "--tile"],
         "write: minicogvx generate 'the blue star' --out 'my star.mp4' --tile"),
        (["red", "circle", "moves", "right"], "write: minicogvx generate 'red circle moves right'"),
        (["blue", "star", "--tile"], "write: minicogvx generate 'blue star' --tile"),
        (["ring", "up"], "generate 'ring up'"),
        (["finetun", "my", "films"], "did you mean finetune?"), (["gener", "a", "star"], "did you mean generate?"),
        (["circle"], "there is no command 'circle'; the commands are"), (["mine", "./films"], "the commands are"),
        (["generate", "x", "--model", "toi"], "did you mean toy?"),
        (["export", "x", "--model", "tou"], "did you mean toy?"),
        (["evaluate", "--before", "toyy"], "did you mean toy?"),
        (["finetune", ".", "--model", "toi"], "did you mean toy?"),
        (["generate", "x", "--model", "5b"], "the weights of '5b' are not shipped"),
        (["generate", "x", "--lora", "nosuch"], "there is no file nosuch; it must be a LoRA file or its folder"),
        (["finetune", ".", "--lora-from", "no/such"], "there is no file no/such"),
        (["generate", "\x1b\x07"], "the prompt is empty"), (["generate", "\u200b"], "the prompt is empty"),
        (["generate", "x", "--video", "/dev/zero"], "/dev/zero is a device or a pipe; give a file"),
        (["gener\x1b[31mate", "x"], "there is no command"), (["\x1b[2J\u202ered"], "'\\x1b[2J\\u202ered'"),
        (["generate", "x", "--image", "\x1b[31mred.png"], "there is no file \\x1b[31mred.png"),
        (["--seed", "3", "generate"], "--seed comes before the command"),
        (["data", "scann", "x"], "did you mean scan? (see minicogvx data --help)"),
        (["data", "scan", "x", "--lits", "y"], "no option --lits; did you mean --list? (see minicogvx data scan"),
        (["ablate", "positoin"], "did you mean position? (see minicogvx ablate --help)"),
        (["memory", "smal"], "the presets are micro, toy, small"), (["train", "micor"], "did you mean micro?"),
        (["train", "smal"], "there is no recipe 'smal'; the recipes are finetune, micro, published, small, toy"),
        (["finetune", "films", "--learning_rate", "1"], "did you mean --learning-rate?"),
        (["evaluate", "vea"], "it must be captions or vae"), (["export", "x", "--dtype", "int8"], "--dtype is 'int8'"),
        (["data", "scan", "nowhere"], "there is no folder nowhere"), (["finetune", "no/such"], "no folder no/such"),
        (["data", "scan", "my films/a.MOV"], "my films/a.MOV is a file; name its folder, my films"),
        (["train", "micro", "--data", "my films/a.MOV"], "my films/a.MOV is a file; name its folder, my films"),
        (["finetune", ".", "--list", "no.jsonl"], "there is no file no.jsonl; it must list clips"),
        (["doctor", "all"], "'all' is one word too many"), (["words", "--all"], "there is no option --all"),
        (["generate", "x", "--model", "tyo"], "there is no model 'tyo'"),
        (["generate", "x", "--device", "cpuu"], "did you mean cpu?"),
    ]
    monkeypatch.chdir(tmp_path)
    Path("my films").mkdir()
    Path("my films/a.MOV").touch()
    for argv, message in cases:
        with subtests.test(argv=argv):
            assert cli.main(argv) == 2
            told = capsys.readouterr().err
            assert told.startswith("minicogvx: ") and message in told and told.count("\n") == 1


def test_words_lists_every_word_by_kind(capsys):
    assert cli.main(["words"]) == 0
    told = capsys.readouterr().out
    assert set(captions.vocabulary()) <= set(re.findall("[a-z]+", told))
    listed = {line.split("  ")[0]: line for line in told.splitlines()}
    assert "cyan" in listed["colours"] and "navy" in listed["backgrounds"] and "moves in a circle" in listed["motions"]
    for example in words_command.EXAMPLES:
        assert f'generate "{example}"' in told and set(example.split()) <= set(captions.vocabulary())
        assert len(captions.parse_caption(example).objects) == 1
    assert len(words_command.EXAMPLES) == 2


def test_what_every_command_can_be_asked_for_is_what_there_is():
    assert QUESTIONS == {name: study.question for name, study in STUDIES.items()}


def test_a_reader_that_has_enough_and_a_name_that_cannot_be_shown_are_no_mistakes(subtests):
    for argv in (["help"], ["generate", "--help"], ["words"]):
        with subtests.test(argv=argv):
            # `| head -1` closes its end of the pipe; what the command then writes has no reader
            reader, writer = os.pipe()
            os.close(reader)
            done = subprocess.run([sys.executable, "-m", "minicogvx", *argv], stdout=writer, stderr=subprocess.PIPE,
                                  timeout=60)
            os.close(writer)
            assert done.returncode == 0 and done.stderr == b""
    code = "from minicogvx.cli import main, _print_any_name\n_print_any_name()\nprint('caf\\udce9 \\u2603')"
    done = run("-c", code, env=os.environ | {"PYTHONIOENCODING": "ascii:strict"})
    assert done.returncode == 0 and done.stdout == "caf\\udce9 \\u2603\n"


def test_what_a_stop_says_is_reported(monkeypatch, capsys):
    def stop(arguments):
        raise KeyboardInterrupt("stopped after step 3")

    monkeypatch.setitem(sys.modules, cli.COMMANDS["words"][0], types.SimpleNamespace(main=stop))
    assert cli.main(["words"]) == 130
    assert capsys.readouterr().err == "minicogvx: stopped after step 3\n"


def test_a_note_stands_on_a_line_of_its_own_while_a_progress_bar_is_open(monkeypatch, capsys):
    def work(arguments):
        with tqdm(total=9, desc="denoising", ncols=40) as bar:
            warnings.warn("something", stacklevel=1)
            bar.update(9)

    monkeypatch.setitem(sys.modules, cli.COMMANDS["words"][0], types.SimpleNamespace(main=work))
    assert cli.main(["words"]) == 0
    assert "minicogvx: note: something" in re.split(r"[\n\r]+", capsys.readouterr().err)


def test_what_helps_depends_on_the_command_and_on_what_it_does_already(subtests):
    cases = [
        (["finetune", "films", "--lora", "64"], ["a smaller --batch-size", "--set gradient_checkpointing=True"]),
        (["finetune", "films"], ["--lora 64"]),
        (["train", "micro", "--set", "transformer.accumulate=2"], ["--set transformer.gradient_checkpointing=True"]),
        (["data", "encode", "films"], ["a smaller --batch-size"]), (["data", "caption", "films"], ["a smaller model"]),
        (["export", "folder"], []), ([], []),
    ]
    for argv, helps in cases:
        with subtests.test(argv=argv):
            told = room.out_of_memory_sentence(torch.OutOfMemoryError("CUDA out of memory."), argv)
            assert all(words in told for words in [*helps, "--device cpu"])
            assert ("--lora 64" in told) == (argv == ["finetune", "films"]) and "transformer.accumulate" not in told


def test_what_a_video_is_made_of_is_not_written_over(monkeypatch, tmp_path, capsys, subtests):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    pictures[0].save("cat.png")
    (tmp_path / "new.png").symlink_to("cat.png")
    pictures[0].save("film.gif", save_all=True, append_images=pictures[1:])
    write_mp4("other.mp4", torch.rand(2, 16, 16, 3), 8)
    for given, name, out in (("--image", "cat.png", "cat.mp4"), ("--image", "new/../cat.png", "cat.mp4"),
                             ("--image", "cat.png", "new.mp4"), ("--video", "film.gif", "film.mp4"),
                             ("--video", "other.mp4", "other.mp4")):
        with subtests.test(name, out=out):
            before = (tmp_path / name).read_bytes()
            assert cli.main(["generate", "x", given, name, "--out", out]) == 2
            told = capsys.readouterr().err
            assert "is to be written, and it is what --image or --video names" in told and told.count("\n") == 1
            assert (tmp_path / name).read_bytes() == before


def not_ours(name: str, kind: str) -> None:
    """Makes a file that minicogvx did not write: a text, a picture or a film."""
    if kind == "text":
        Path(name).write_text("my cat")
    elif kind == "picture":
        Image.new("RGB", (16, 16), "red").save(name, format="PNG")
    else:
        with av.open(name, "w", format="mp4") as film:
            film.metadata["comment"] = "minicogvx and I"
            stream = film.add_stream("mpeg4", rate=8)
            stream.width = stream.height = 16
            film.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
            film.mux(stream.encode())


def test_a_file_that_the_line_does_not_name_is_replaced_only_if_minicogvx_made_it(monkeypatch, tmp_path, capsys,
                                                                                  subtests):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    names = [("cat.png", ["--out", "cat.mp4"]), ("cat.gif", ["--out", "cat.mp4"]), ("cat.gif", ["--out", "cat.MP4"]),
             ("outputs/a-cat-0.mp4", []), ("outputs/a-cat-0.png", [])]
    for (name, out), kind in product(names, ("text", "picture", "film")):
        with subtests.test(name, kind=kind, out=out):
            not_ours(name, kind)
            before = (tmp_path / name).read_bytes()
            assert cli.main(["generate", "a cat", *out]) == 2
            told = capsys.readouterr().err
            assert f"{name} would be written over, and minicogvx did not make it; name another" in told
            assert (tmp_path / name).read_bytes() == before
        (tmp_path / name).unlink()


def test_the_same_line_again_replaces_its_files(monkeypatch, tmp_path, subtests):
    for number, options in enumerate((["--out", "cat.mp4"], [])):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        (folder / "cat.mp4").write_text("named on the line")
        with subtests.test(options=options):
            for _ in range(2):
                assert cli.main(["generate", "a red circle", "--steps", "1", "--seed", "0", *options]) == 0
            assert len(list(folder.rglob("*.gif"))) == len(list(folder.rglob("*.png"))) == 1
