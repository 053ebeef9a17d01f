"""`minicogvx tour`: a first clip, a minute of training that can be watched, and where to go on."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from minicogvx.parsing import SEED, Parser, number, path_to

SUGGESTED = ("a blue star moves up", "a red circle moves right", "a small yellow ring bounces on a navy background")
FILES = ("first.mp4", "first.gif", "first.png", "before.png", "trained.mp4", "trained.gif", "trained.png")
_ROOT = Path(__file__).resolve().parents[1]  # of the repository, if this is one


def main(argv: list[str] | None = None) -> int:
    """Makes a clip, trains a small model, prints commands. Raises ValueError, OSError; KeyboardInterrupt with words."""
    arguments = _parser().parse_args(argv)
    out = Path(arguments.out)
    _check_out(out)
    made: list[Path] = []
    try:
        caption = " ".join(arguments.prompt) or _ask()
        _run(caption, arguments.seed, 60 * arguments.minutes, out, made)
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()  # behind the terminal's ^C
        kept = f"; {len(made)} files are in {out}" if made else ""
        raise KeyboardInterrupt(f"the tour was stopped{kept}") from None
    return 0


def _parser() -> Parser:
    parser = Parser(prog="minicogvx tour",
                    description="A first clip from a caption, a minute of training that you can watch, and where to "
                                "go on: about two minutes on two cores. It computes on the CPU.")
    parser.gathers = "prompt"
    parser.add_argument("prompt", nargs="*", metavar="PROMPT",
                        help=f'the caption; without one the tour asks in a terminal, else takes "{SUGGESTED[0]}"')
    parser.add_argument("--seed", type=SEED, default=0, metavar="N",
                        help="of the clip and of the training (default: 0)")
    parser.add_argument("--minutes", type=number(above=0.0, most=60.0), default=1.0, metavar="X",
                        help="how long to train (default: 1)")
    parser.add_argument("--out", type=path_to(), default="outputs/tour", metavar="FOLDER",
                        help="where to write clips and strips (default: outputs/tour)")
    return parser


def _check_out(out: Path) -> None:
    """Raises OSError for a folder that cannot be written, ValueError for files that the tour did not make."""
    from minicogvx.files import check_writable

    check_writable(out, folder=True)
    for path in (out / name for name in FILES):
        check_writable(path)
        if path.exists():
            from minicogvx.media import made_here

            if not made_here(path):
                raise ValueError(f"{path} would be written over, and minicogvx did not make it; name another folder "
                                 f"with --out")


# ---- words


def _say(*paragraphs: str) -> None:
    """Prints paragraphs as wide as the terminal."""
    for paragraph in paragraphs:
        print(textwrap.fill(paragraph, _width(), break_long_words=False, break_on_hyphens=False))
    sys.stdout.flush()


def _width() -> int:
    return max(20, min(100, shutil.get_terminal_size().columns - 1))


def _ask() -> str:
    """A caption from the terminal; without one, or for an empty answer, the first that is suggested."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        return SUGGESTED[0]
    from minicogvx.data.world.captions import words_by_kind

    words = words_by_kind()
    _say("What should the clip show? The shipped model knows one moving shape.",
         f"Shapes: {', '.join(words['shapes'])}. Colours: {', '.join(words['colours'])}.",
         f"Motions: {', '.join(words['motions'])}.", f"Backgrounds: {', '.join(words['backgrounds'])}.",
         f'For example: "{SUGGESTED[1]}", or "{SUGGESTED[2]}".')
    for last in (False, True):
        said = _answer()
        unknown = _unknown(said)
        if not unknown or last:
            break
        _say(f"The model has never seen {unknown}", "Type another caption, or the same one again.")
    return said or SUGGESTED[0]


def _answer() -> str:
    try:
        return input(f"Caption (Enter: {SUGGESTED[0]}): ").strip()
    except EOFError:
        print()
        return ""
    except UnicodeDecodeError:
        raise ValueError("the caption is not UTF-8; write its letters in that encoding") from None


def _unknown(caption: str) -> str:
    """The words of a caption that the shipped model does not know, as the end of a sentence; empty without any."""
    from minicogvx.data.world.captions import vocabulary
    from minicogvx.suggest import did_you_mean

    known = vocabulary()
    words = [word for word in re.findall(r"\w+", caption.lower()) if word not in known]
    named = " or ".join(f"'{word}'" for word in dict.fromkeys(words))
    meant = did_you_mean(words[0], known) if len(set(words)) == 1 else ""
    return named + (meant or "." * bool(words))


# ---- the three parts


def _run(caption: str, seed: int, seconds: int | float, out: Path, made: list[Path]) -> None:
    _say("", "1 of 3: a clip from a caption", "", f"A clip for: {caption}", "Loading PyTorch ...")
    with _stopped_afterwards():
        import torch

        _say("Loading the model ...")
        import minicogvx
        from minicogvx.terminal import screen_of
        from minicogvx.tour import first_clip, train_and_show

    screen = screen_of(sys.stdout)
    pipe = minicogvx.load("toy", "cpu", torch.float32)
    first_clip(pipe, caption, seed, out, made, screen, _say)
    _say("", "2 of 3: a model of your own, from random weights", "")
    train_and_show(pipe, seed, seconds, out, made, screen, _say)
    _say("", "3 of 3: where to go on", "")
    _go_on(out)


@contextlib.contextmanager
def _stopped_afterwards() -> Iterator[None]:
    """Ctrl-C during imports counts at their end: in their midst some libraries make another error of it."""
    asked = []
    before = signal.signal(signal.SIGINT, lambda *given: asked.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _go_on(out: Path) -> None:
    for what, lines in further(out):
        _say(what)
        for line in lines:
            print("  " + " \\\n      ".join([line] if os.name == "nt" else pieces(line, _width() - 8)))


def pieces(command: str, width: int) -> list[str]:
    """A command in pieces of so many characters where its options allow that; each begins with an option."""
    options = re.findall(r"""(?:"[^"]*"|'[^']*'|(?! --)[^"'])+""", command)
    made = [options[0]]
    for option in map(str.strip, options[1:]):
        if len(made[-1]) + 1 + len(option) > width:
            made.append(option)
        else:
            made[-1] += f" {option}"
    return made


def further(out: Path) -> list[tuple[str, list[str]]]:
    """(what, commands that run as they are printed), from the current folder."""
    call, folder = _program(), shlex.quote(str(out / "ten-clips"))
    lora, tuned = (shlex.quote(str(out / name)) for name in ("lora", "sepia.mp4"))
    own = [f"{call} data shapes {folder} --clips 10 --style sepia",
           f"{call} finetune {folder} --lora 16 --steps 100 --learning-rate 3e-3 --out {lora}",
           f'{call} generate "{SUGGESTED[0]}" --lora {lora} --out {tuned}']
    found = [("A longer training, in which more words can be heard:", [f"{call} tour --minutes 5"]),
             ("More clips:", [f"{call} words", f'{call} generate "{SUGGESTED[2]}" --seed 1'])]
    if (_ROOT / "notebooks").is_dir():
        found.append(("The course, which builds all of this from an empty file, begins with notebook 00:", _course()))
    found.append(("Your own clips: the first line writes ten example clips with captions in a style that the model "
                  "has not seen; a folder of yours can take their place. The others teach the model, and use it:", own))
    pages = [path for path in ("README.md", "docs/architecture.md") if (_ROOT / path).is_file()]
    if pages:
        found.append((f"To read: {', '.join(_shown(_ROOT / path) for path in pages)}.", []))
    return found


def _course() -> list[str]:
    """Commands that open the first notebook."""
    if shutil.which("make"):
        here = Path.cwd() == _ROOT
        return ["make lab" if here else f"make -C {shlex.quote(_shown(_ROOT))} lab"]
    python, notebooks = _shown(Path(sys.executable)), _ROOT / "my_notebooks"
    return [f"{shlex.quote(python)} -m minicogvx.course.copies",
            f"{shlex.quote(python)} -m jupyter lab {shlex.quote(_shown(notebooks / '00_first_video.ipynb'))}"]


def _program() -> str:
    """How this program is called here: its name if the shell finds it, else by its interpreter."""
    found = shutil.which("minicogvx")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "minicogvx"
    python = Path(sys.executable)
    beside = python.with_name("minicogvx")
    return shlex.quote(_shown(beside)) if beside.is_file() else f"{shlex.quote(_shown(python))} -m minicogvx"


def _shown(path: Path) -> str:
    """A path as short as it can be said from the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
