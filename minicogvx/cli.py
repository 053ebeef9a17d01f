"""The command `minicogvx`: its subcommands, and the conversion of user errors to one-line messages.

Every subcommand has a module with `main(words)`, imported when needed. None imports anything heavy before it has read
its options, so that `--help` and a misspelt option answer at once.
"""

import contextlib
import difflib
import importlib
import itertools
import os
import shlex
import sys
import warnings
from collections.abc import Sequence

from minicogvx import __version__
from minicogvx.parsing import choose_command
from minicogvx.visible import Visible, visible

COMMANDS = {  # name -> (module, description)
    "tour": ("minicogvx.tour_command", "a first clip and a minute of training, in two minutes"),
    "generate": ("minicogvx.generate_command", "make a video from a caption"),
    "words": ("minicogvx.words_command", "the words that the shipped model knows, by kind"),
    "data": ("minicogvx.data.command", "videos: draw, scan, curate, caption, encode once"),
    "train": ("minicogvx.training.command", "train a VAE, a transformer or a whole model"),
    "finetune": ("minicogvx.training.finetune_command", "fine-tune a model on your own videos"),
    "memory": ("minicogvx.training.memory_command", "memory and time that training and videos need on a GPU"),
    "evaluate": ("minicogvx.evaluation.command", "how often a model obeys its captions"),
    "ablate": ("minicogvx.ablation.command", "train variants on the same data and compare them"),
    "speedrun": ("minicogvx.speedrun.command", "minutes from nothing to a model that obeys"),
    "export": ("minicogvx.export_command", "write a folder that diffusers opens"),
    "doctor": ("minicogvx.doctor", "check this machine, with a fix for each problem"),
}
_ABOUT = ("A caption becomes a video: minicogvx generate \"a red circle moves right\"\n\n"
          "--version prints the version; --traceback shows the traceback of an error.")
_ARTICLES = ("a", "an", "the", "there")  # with which a caption begins


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 if `doctor` finds something broken, 2 for a user's mistake.

    Mistakes (ValueError or OSError) and lack of memory are reported in one line; with `--traceback` they are raised.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    argv = [word for word in given if word != "--traceback"]
    show_traceback = argv != given
    _print_any_name()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(Visible(sys.stdout)):
            warnings.showwarning = _show_warning
            try:
                return _run(argv)
            finally:
                sys.stdout.flush()  # raises for a closed pipe here, not at exit
    except KeyboardInterrupt as stop:
        print(f"minicogvx: {visible(str(stop)) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _end_quietly()
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if show_traceback:
            raise
        print(f"minicogvx: {visible(' '.join(str(error).split())) or type(error).__name__}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        from minicogvx.room import is_out_of_memory, out_of_memory_sentence

        if show_traceback or not is_out_of_memory(error):
            raise
        print(f"minicogvx: {out_of_memory_sentence(error, argv)}", file=sys.stderr)
        return 2


def _run(argv: list[str]) -> int:
    if argv[:1] in (["version"], ["--version"], ["-V"], ["-v"]):
        print(f"minicogvx {__version__}")
        return 0
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    if _are_caption(words):
        command = shlex.join(["minicogvx", "generate", " ".join(words), *argv[len(words):]])
        raise ValueError(f"there is no command {argv[0]!r}; for a video of a caption, write: {command}")
    chosen = choose_command("minicogvx", _ABOUT, {name: words for name, (_, words) in COMMANDS.items()}, argv)
    if chosen is None:
        return 0
    name, rest = chosen
    return importlib.import_module(COMMANDS[name][0]).main(rest) or 0


def _are_caption(words: list[str]) -> bool:
    """Whether these words, the first of a command line, are a caption without a command."""
    if not words or words[0] in (*COMMANDS, "help"):
        return False
    if " " in words[0].strip() or words[0].lower() in _ARTICLES:
        return True
    if len(words) < 2 or any(os.sep in word or os.path.exists(word) for word in words):
        return False
    # Less strict, colours and shapes would pass for misspelt commands: blue for ablate.
    misspelt = difflib.get_close_matches(words[0].lower(), COMMANDS, n=1, cutoff=0.75)
    return not misspelt and not any(name.startswith(words[0].lower()) for name in COMMANDS)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    note = f"minicogvx: note: {visible(' '.join(str(message).split()))}"
    if bar := getattr(sys.modules.get("tqdm"), "tqdm", None):  # one may be open; the note goes above it
        bar.write(note, file=sys.stderr)
    else:
        print(note, file=sys.stderr)


def _print_any_name() -> None:
    """Lets file names be printed that the terminal's encoding cannot represent."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _end_quietly() -> int:
    """The reader of the output, such as `head`, has closed the pipe: discards the rest."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
