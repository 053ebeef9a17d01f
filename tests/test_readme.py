"""The commands in the README: each is valid, and its files exist or are made by an earlier line."""

import importlib
import re
import shlex
from pathlib import Path

from minicogvx import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("benchmarks/*/README.md"),
                                        *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.md")))
# What a command reads (names of its arguments), and the files that it makes.
READS = ("image", "video", "lora", "list", "model", "before", "captioner", "summary", "aesthetic", "folder")
MADE = {"train": ["pipeline"], "finetune": ["pipeline"], "data curate": ["kept.jsonl", "best.jsonl", "report.html"]}
NAMES = ("toy", "shapes", "random", "world")  # instead of a folder


def blocks(text: str) -> list[str]:
    """The lines of all code blocks for a shell, continued ones joined."""
    pieces = re.split(r"^```(.*)\n", text, flags=re.MULTILINE)  # prose, language, code, "", prose, language, ...
    inside = "".join(code for language, code in zip(pieces[1::4], pieces[2::4]) if language in ("", "bash", "sh"))
    return inside.replace("\\\n", " ").splitlines()


def words_of(line: str) -> list[str] | None:
    """What follows `minicogvx` in a line of a shell; None where that is not called."""
    if "minicogvx " not in line:
        return None
    words = shlex.split(line, comments=True)
    while words and (words[0] in ("PYTHONPATH=.", "torchrun") or words[0].startswith("-") or words[0].isdigit()):
        words = words[1:]  # torchrun's own options, up to `-m minicogvx`
    words = words[:words.index(">")] if ">" in words else words
    return words[1:] if words[:1] in (["minicogvx"], [".venv/bin/minicogvx"]) else None


def parse(words: list[str]):
    """(name of the command, its arguments), by the command's own parser."""
    module = importlib.import_module(cli.COMMANDS[words[0]][0])
    if words[0] == "data":
        return " ".join(words[:2]), module._parser(words[1]).parse_args(words[2:])
    if not hasattr(module, "_parser"):
        assert not words[1:]
        return words[0], None
    return words[0], module._parser().parse_args(words[1:])


def test_the_readmes_commands_run_as_written():
    lines = [line for line in blocks((ROOT / "README.md").read_text()) if words_of(line)]
    made, seen = set(), set()
    for line in lines:
        command, arguments = parse(words_of(line))
        seen.add(command)
        given = {} if arguments is None else vars(arguments)
        writes = "folder" if command in ("data shapes", "export") else "out"
        for name in set(READS) - {writes}:
            value = given.get(name)
            if isinstance(value, str) and value not in NAMES:  # --lora is also a rank
                shipped = (ROOT / value).exists() and Path(value).parts[0] not in ("outputs", "runs")
                assert value in made or shipped, f"{line}\n{value} is nowhere"
        out = given.get(writes) or (f"runs/{given['recipe']}" if command == "train" else None)
        if out:
            made |= {out, *(f"{out}/{name}" for name in MADE.get(command, []))}
        if command == "generate" and out:
            made |= {str(Path(out).with_suffix(ending)) for ending in (".gif", ".png")}
    assert seen >= set(cli.COMMANDS) - {"data"} and len(lines) > 25


def test_every_command_on_a_page_is_one_that_the_program_takes(subtests):
    for page in PAGES:
        text = page.read_text()
        inline = [" ".join(piece.split()) for piece in re.findall(r"`((?:minicogvx|torchrun) [^`]+)`", text)]
        for line in (*blocks(text), *inline):
            words = None if "..." in line or re.search(r"\b[A-Z]{4,}\b", line) else words_of(line)
            if not words or words[0] in ("version", "--version", "help"):
                continue  # part of a command, or one with a word to fill in
            with subtests.test(line, page=page.name):
                assert words[0] in cli.COMMANDS
                try:
                    parse(words) if words[1:] else None
                except ValueError as error:  # in a sentence, a command may lack what goes without saying
                    assert line in inline and re.search("are required|expected one argument", str(error)), error
