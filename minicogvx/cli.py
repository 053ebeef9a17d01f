"""The command `minicogvx`: which commands there are, and how each of their mistakes becomes one line.

Every command has a module with `main(words)`, imported when it is asked for. None imports anything heavy before it has
read its options, so that `--help` and a misspelt option answer at once.
"""

import importlib
import itertools
import os
import shlex
import sys
import warnings
from collections.abc import Sequence

from minicogvx import __version__
from minicogvx.parsing import choose_command

COMMANDS = {  # name -> (module, what it does)
    "generate": ("minicogvx.generate_command", "make a video from a caption"),
    "words": ("minicogvx.words_command", "the words that the shipped model knows, by kind"),
    "data": ("minicogvx.data.command", "films: draw, scan, curate, caption, encode once"),
    "train": ("minicogvx.training.command", "train a VAE, a transformer or a whole model"),
    "finetune": ("minicogvx.training.finetune_command", "train a model further on your own films"),
    "memory": ("minicogvx.training.memory_command", "what training takes on each GPU, by sharding"),
    "evaluate": ("minicogvx.evaluation.command", "how often a model obeys its captions"),
    "ablate": ("minicogvx.ablation.command", "train variants on the same data and compare them"),
    "export": ("minicogvx.export_command", "write a folder that diffusers opens"),
    "doctor": ("minicogvx.doctor", "what this machine has, and what to mend"),
}
_ABOUT = ("A caption becomes a video: minicogvx generate \"a red circle moves right\"\n\n"
          "--version prints the version; --traceback shows where an error came from.")
_ARTICLES = ("a", "an", "the", "there")  # how a caption begins


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 where `doctor` finds something broken, 2 for a user's mistake.

    A mistake (ValueError or OSError) and too little memory are told in one line; with `--traceback` among the words
    they are raised, to show where they came from.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    argv = [word for word in given if word != "--traceback"]
    show_traceback = argv != given
    _print_any_name()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return _run(argv)
            finally:
                sys.stdout.flush()  # a closed pipe shows itself here, and not while Python ends
    except KeyboardInterrupt as stop:
        print(f"minicogvx: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _end_quietly()
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if show_traceback:
            raise
        print(f"minicogvx: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        from minicogvx.room import is_out_of_memory, out_of_memory_sentence

        if show_traceback or not is_out_of_memory(error):
            raise
        print(f"minicogvx: {out_of_memory_sentence(error, argv)}", file=sys.stderr)
        return 2


def _run(argv: list[str]) -> int:
    if argv[:1] in (["version"], ["--version"]):
        print(f"minicogvx {__version__}")
        return 0
    if argv and argv[0] not in COMMANDS and (" " in argv[0].strip() or argv[0].lower() in _ARTICLES):
        words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
        command = shlex.join(["minicogvx", "generate", " ".join(words), *argv[len(words):]])
        raise ValueError(f"there is no command {argv[0]!r}; for a video of a caption, write: {command}")
    chosen = choose_command("minicogvx", _ABOUT, {name: words for name, (_, words) in COMMANDS.items()}, argv)
    if chosen is None:
        return 0
    name, rest = chosen
    return importlib.import_module(COMMANDS[name][0]).main(rest) or 0


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"minicogvx: note: {' '.join(str(message).split())}", file=sys.stderr)


def _print_any_name() -> None:
    """A file's name may hold what the terminal's encoding has no sign for; that is no reason to end."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _end_quietly() -> int:
    """Whoever read the output, such as `head`, has enough of it; what is left of it goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    return 0
