"""Parsing of arguments: limits, names, paths, and suggestions."""

import os

import pytest

from minicogvx.parsing import Parser, choose_command, number, one_of, path_to, whole
from minicogvx.suggest import did_you_mean


def read(reader, text: str):
    """The value of one option, as a command reads it."""
    parser = Parser(prog="minicogvx try")
    parser.add_argument("--value", type=reader)
    return parser.parse_args([f"--value={text}"]).value


def test_what_is_right_is_taken_as_it_is_and_a_home_folder_found(subtests, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    cases = [
        (whole(), "-3", -3), (whole(1, 4), "4", 4), (whole(0), str(2**63 - 1), 2**63 - 1), (whole(0), " +7 ", 7),
        (number(0.0, most=1.0), "1", 1.0), (number(above=0.0), "1e-9", 1e-9), (number(), "-2.5", -2.5),
        (one_of(("a", "b")), "b", "b"), (path_to(), "runs/a b", "runs/a b"), (path_to(".mp4"), "A.MP4", "A.MP4"),
        (path_to(), "./~x", "./~x"), (path_to(), "./toy", "./toy"),
        (path_to(), "~/x.mp4", os.path.join(str(tmp_path), "x.mp4")), (path_to(), "~", str(tmp_path)),
    ]
    for reader, text, value in cases:
        with subtests.test(text, value=value):
            assert read(reader, text) == value


def test_what_is_wrong_is_one_sentence_with_what_would_be_right(subtests):
    cases = [
        (whole(1), "0", "--value is 0; it must be 1 or more"),
        (whole(1, 4), "5", "--value is 5; it must be from 1 to 4"),
        (whole(1, 4), "0", "from 1 to 4"), (whole(0), "-1", "0 or more"), (whole(0), "", "is ''; it must be a whole"),
        (whole(0), "1e3", "is '1e3'; it must be a whole number, 0 or more"),
        (whole(9, 100), "x", "number from 9 to 100"),
        (whole(0), "2.0", "whole number"), (whole(0), "0x10", "whole number"), (whole(0), "1_000", "whole number"),
        (whole(0), "\u0663", "whole number"),  # a digit, but not of ours
        (whole(0), str(2**63), f"is {2**63}; it must be from 0 to {2**63 - 1}"),
        (whole(1), "9" * 5000, "is a number of 5000 digits; it must be from 1 to"),
        (whole(1), "-" + "9" * 5000, "1 or more"), (whole(), "9" * 39, f"from {1 - 2**63} to"),
        (number(0.0), "-0.5", "--value is -0.5; it must be 0 or more"),
        (number(0.0), "nan", "is nan; it must be 0 or more"),
        (number(), "inf", "a finite number"), (number(), "1e400", "a finite number"),
        (number(above=0.0, most=1.0), "0", "above 0, at most 1"),
        (number(0.0, most=1.0), "1.5", "is 1.5; it must be from 0 to 1"),
        (number(), "half", "is 'half'; it must be a number"),
        (one_of(("ddim", "dpm", "euler")), "plms", "is 'plms'; it must be ddim, dpm or euler"),
        (one_of(("tiny", "large"), "size", "sizes"), "lage",
         "there is no size 'lage'; the sizes are tiny, large; did you mean large?"),
        (path_to(), "", "--value is empty"), (path_to(), "  ", "--value is empty"),
        (path_to(".mp4"), "a.mp4.avi", "it must end in .mp4"),
        (path_to(".png", ".gif"), "x", "must end in .png or .gif"),
        (path_to(".mp4"), ".mp4", "must end in .mp4"),
        (path_to(), "~nobody-of-that-name/a", "no user of that name"),
    ]
    for reader, text, message in cases:
        with subtests.test(text[:40], told=message):
            with pytest.raises(ValueError) as wrong:
                read(reader, text)
            assert message in str(wrong.value) and str(wrong.value).endswith("(see minicogvx try --help)")


def test_what_was_meant(subtests):
    cases = [
        ("generat", ("generate", "data"), "generate"), ("gen", ("generate", "data"), "generate"),
        ("5B", ("2b", "5b"), "5b"), ("--lr", ("--lora", "--list"), None),
        ("--num_frames", ("--num-frames", "--fps"), "--num-frames"),
        ("--guid", ("--guidance-scale",), "--guidance-scale"),
        ("frobnicate", ("generate", "data"), None), ("gpu", ("cpu",), None), ("", ("a", "ab"), None),
        ("--", ("--out",), None),
        ("x", (), None), ("CUDA", ("cuda", "cpu"), "cuda"), ("cdua:1", ("cuda", "cpu"), "cuda"),
    ]
    for wrong, known, meant in cases:
        with subtests.test(wrong, known=known):
            assert did_you_mean(wrong, known) == (f"; did you mean {meant}?" if meant else "")


def talker() -> Parser:
    """A command of a caption and two options."""
    parser = Parser(prog="minicogvx say")
    parser.gathers = "caption"
    parser.add_argument("caption", nargs="+")
    parser.add_argument("--seed", type=whole(0))
    parser.add_argument("--loud", action="store_true")
    return parser


def test_words_of_a_caption_may_stand_around_options(subtests):
    cases = [
        "a red circle moves --seed 3", "--seed 3 a red circle moves", "a red --seed 3 circle --loud moves",
        "a --loud red circle moves --seed=3", "--seed 3 -- a red circle moves",
    ]
    for words in cases:
        with subtests.test(words):
            arguments = talker().parse_args(words.split())
            assert arguments.caption == "a red circle moves".split() and arguments.seed == 3


def test_options_are_never_guessed(subtests):
    cases = [
        ("a --sede 3", "there is no option --sede; did you mean --seed? (see minicogvx say --help)"),
        ("a --see 3", "there is no option --see; did you mean --seed?"), ("a --lou", "did you mean --loud?"),
        ("a --seed=x", "--seed is 'x'"), ("--seed 3", "required"), ("a --seed", "expected one argument"),
        ("a --quite=3", "there is no option --quite (see"), ("a -s 3", "there is no option -s"),
    ]
    for words, message in cases:
        with subtests.test(words):
            with pytest.raises(ValueError) as wrong:
                talker().parse_args(words.split())
            assert message in str(wrong.value)


def test_a_word_that_nothing_takes_is_named():
    parser = Parser(prog="minicogvx measure")
    parser.add_argument("folder", type=path_to())
    with pytest.raises(ValueError, match=r"'b' is one word too many \(see minicogvx measure --help\)"):
        parser.parse_args(["a", "b"])
    with pytest.raises(ValueError, match=r"^folder is empty; it must name a file or a folder"):
        parser.parse_args([""])


def test_a_command_and_its_words(capsys, subtests):
    def chosen(*argv):
        return choose_command("minicogvx data", "Films.", {"scan": "look at videos", "cache": "encode them"}, [*argv])

    assert chosen("scan", "a", "--b") == ("scan", ["a", "--b"]) and chosen("help", "scan") == ("scan", ["--help"])
    assert chosen("help", "cache", "more") == ("cache", ["more", "--help"])
    for argv in ([], ["--help"], ["-h"], ["help"], ["help", "help"]):  # a question for help
        with subtests.test(argv=argv):
            assert chosen(*argv) is None
            told = capsys.readouterr().out
            assert told.startswith("usage: minicogvx data COMMAND") and "scan       look at videos" in told
    cases = [
        ("scna", "there is no command 'scna'; did you mean scan? (see minicogvx data --help)"),
        ("paint", "there is no command 'paint'; the commands are scan, cache"), ("SCAN", "did you mean scan?"),
        ("--list scan", "--list comes before the command"), (" ", "there is no command ''"),
    ]
    for words, message in cases:
        with subtests.test(words):
            with pytest.raises(ValueError) as wrong:
                chosen(*words.split(" "))
            assert message in str(wrong.value)
